"""Say which engine runs and why, or what is in a model.

examples:
  microgpt info
  microgpt info names.safetensors
"""

from __future__ import annotations

import argparse
import os

from microgpt.backend import backend_info


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL."""
    parser.add_argument("model", metavar="MODEL", nargs="?", help="a file that `microgpt train --out` has written")


def run(parsed: argparse.Namespace) -> None:
    """Print what `backend_info` tells, or what a checkpoint holds."""
    rows = backend_rows() if parsed.model is None else model_rows(parsed.model)
    width = max(len(name) for name, _ in rows) + 2
    for name, text in rows:
        print(f"{name:{width}}{text}")


def backend_rows() -> list[tuple[str, str]]:
    info = backend_info()
    return [
        ("backend", f"{info.backend}: {info.reason}"),
        ("instruction set", info.instruction_set or "none"),
        ("threads", str(info.threads)),
    ]


def model_rows(path: str) -> list[tuple[str, str]]:
    from microgpt.checkpoint import FORMAT, VERSION, read  # only who uses it pays for its import

    checkpoint = read(path)
    config, history = checkpoint.config, checkpoint.history
    rows = [
        ("file", f"{path}: {os.path.getsize(path):,} bytes, safetensors, format {FORMAT!r} version {VERSION}"),
        ("parameters", f"{config.num_params:,}, {checkpoint.dtype}"),
        *((name, f"{getattr(config, name):,}") for name in ("vocab_size", "n_layer", "n_embd", "block_size", "n_head")),
        ("tokenizer", "none" if checkpoint.tokenizer is None else f"{checkpoint.tokenizer!r:.100}"),
    ]
    if history is None:
        return [*rows, ("training", "none")]
    trained = f"{len(history.losses):,} steps in {history.seconds:.1f} s"
    if len(history.losses):
        last = history.losses[-100:]
        trained += f", mean loss of the last {len(last)}: {last.mean():.4f}"
    rows.append(("training", trained))
    if history.validation_losses:
        step, loss = min(history.validation_losses, key=lambda pair: pair[1])
        rows.append(("validation loss", f"{history.validation_losses[-1][1]:.4f}, lowest {loss:.4f} after step {step:,}"))
    rows.append(("resumable", "yes" if checkpoint.progress else "no: saved without the optimizer's memory"))
    options = (f"{name} {value}" for name, value in history.options.items() if value is not None)
    return [*rows, ("options", ", ".join(options))]
