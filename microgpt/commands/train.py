"""Train a model on a text file, one document a line, and sample from it.

examples:
  microgpt train names.txt --steps 5000 --n-embd 32
  xzcat words.xz | microgpt train - more-words.txt.gz --tokenizer bytes
  microgpt train text.txt --format text --val-fraction 0.1 --dtype float32 --block-size 64 --batch-size 12
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from microgpt.backend import BACKENDS
from microgpt.training import Run, prepare

OPTIONS: dict[str, tuple[type, str]] = {
    "format": (str, "lines: each line of FILE is a document; text: FILE is one text, of which each step draws windows"),
    "tokenizer": (str, "characters, bytes, or a FILE.json of Hugging Face's tokenizers"),
    "long_documents": (str, "of documents longer than the context, cut: the beginning; split: all, in pieces"),
    "val_fraction": (float, "share of the data set aside for validation"),
    "eval_every": (int, "steps from one validation to the next"),
    "steps": (int, "steps of Adam"),
    "seed": (int, "of the random numbers: the same seed gives the same model"),
    "dtype": (str, "float64: the numbers of microgpt, bit for bit; float32: faster"),
    "n_layer": (int, "transformer blocks"),
    "n_embd": (int, "width of the model, a multiple of --n-head"),
    "block_size": (int, "longest context, in tokens"),
    "n_head": (int, "attention heads"),
    "batch_size": (int, "documents, or windows, in a step"),
    "learning_rate": (float, "of the first step; it falls linearly to 0"),
    "beta1": (float, "decay of Adam's mean of the gradients"),
    "beta2": (float, "decay of Adam's mean of their squares"),
    "threads": (int, "that share large batches; by default as many as there are physical cores"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE, what `prepare` takes, and what the report looks like."""
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="*",
        type=Path,
        help="UTF-8; .gz is decompressed, - is standard input; default: US first names that come with the package",
    )
    defaults = inspect.signature(prepare).parameters
    for name, (kind, text) in OPTIONS.items():
        parser.add_argument(option(name), type=kind, default=defaults[name].default, metavar=metavar(kind), help=text)
    parser.add_argument("--temperature", type=float, default=0.5, metavar="X", help="of the samples, above 0")
    parser.add_argument("--samples", type=int, default=20, metavar="N", help="documents to sample after training")
    parser.add_argument("--backend", choices=BACKENDS, help="default: compiled where there is one")
    parser.add_argument("--plain", action="store_true", help="print exactly what microgpt prints")


def option(name: str) -> str:
    """The command line's spelling of an argument."""
    return "--" + name.replace("_", "-")


def metavar(kind: type) -> str:
    return {int: "N", float: "X", str: "NAME"}[kind]


def run(parsed: argparse.Namespace) -> None:
    """Train, and print what a person, or with --plain a program, wants to read."""
    check_sampling(parsed.samples, parsed.temperature)
    options: dict[str, Any] = {name: getattr(parsed, name) for name in OPTIONS}
    training = prepare(parsed.files or None, backend=parsed.backend, **options)
    report = plain_report if parsed.plain else human_report
    report(parsed, training)


def check_sampling(samples: int, temperature: float) -> None:
    """Refuse before training what would fail after it."""
    if samples < 0:
        raise ValueError(f"samples must be at least 0, got {samples}")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be more than 0, got {temperature:g}")


def plain_report(parsed: argparse.Namespace, run: Run) -> None:
    """Byte for byte what microgpt prints."""
    print(f"num docs: {len(run.corpus)}")
    print(f"vocab size: {run.model.config.vocab_size}")
    print(f"num params: {run.model.num_params}")
    steps, printed = len(run.losses), 0

    def progress(completed: int) -> None:
        nonlocal printed
        losses = run.losses[printed:completed].tolist()
        lines = (f"step {step:4d} / {steps:4d} | loss {loss:.4f}\r" for step, loss in enumerate(losses, printed + 1))
        sys.stdout.write("".join(lines))
        printed = completed

    model = run.finish(progress).model
    progress(steps)
    print("\n--- inference (new, hallucinated names) ---")
    for i in range(parsed.samples):
        print(f"sample {i + 1:2d}: {model.generate(1, parsed.temperature)[0]}")


def human_report(parsed: argparse.Namespace, run: Run) -> None:
    """What is trained on what, a live line, and the samples."""
    config, model = run.model.config, run.model
    kind = "documents" if parsed.format == "lines" else "characters"
    count = len(run.corpus) if parsed.format == "lines" else run.corpus.characters
    print(f"data    {run.corpus.name}: {count:,} {kind}, {config.vocab_size} tokens")
    print(
        f"model   {model.num_params:,} parameters: n_layer {config.n_layer}, n_embd {config.n_embd}, "
        f"block_size {config.block_size}, n_head {config.n_head}; {model.dtype}, {model.backend}"
    )
    begin = time.perf_counter()
    with live_line(run) as progress:

        def validated(steps: int, loss: float) -> None:
            tqdm.write(f"step {steps:>7,}  {time.perf_counter() - begin:6.1f} s  validation loss {loss:.4f}")

        run.finish(progress, validated)
    seconds = time.perf_counter() - begin
    if len(run.losses):
        last = run.losses[-100:]
        print(
            f"trained {len(run.losses):,} steps in {seconds:.2f} s ({len(run.losses) / seconds:,.0f} steps/s); "
            f"mean loss of the last {len(last)}: {last.mean():.4f}"
        )
    for text in model.generate(parsed.samples, parsed.temperature):
        print(f"        {text}")


@contextlib.contextmanager
def live_line(run: Run) -> Iterator[Callable[[int], None]]:
    """Step, loss, steps/s and time left on one line of the terminal; nothing where there is no terminal."""
    layout = "step {n_fmt}/{total_fmt}{postfix} | {rate_fmt} | {remaining} left"
    with tqdm(total=len(run.losses), unit=" steps", bar_format=layout, leave=False, disable=None) as line:

        def progress(completed: int) -> None:
            line.set_postfix_str(f"loss {run.losses[max(0, completed - 100) : completed].mean():.4f}", refresh=False)
            line.update(completed - line.n)

        yield progress
