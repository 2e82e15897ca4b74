"""Show which engine runs and why, or what is in a model file.

examples:
  microgpt info
  microgpt info names.safetensors
"""

from __future__ import annotations

import argparse
import os

from microgpt.checkpoint import FORMAT, VERSION, read
from microgpt.display.summary import describe_model, describe_training
from microgpt.engine.backend import backend_info
from microgpt.model import from_checkpoint
from microgpt.utils.text import visible


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add MODEL."""
    parser.add_argument("model", metavar="MODEL", nargs="?", help="a .safetensors file from microgpt train --out")


def run(parsed: argparse.Namespace) -> None:
    """Print the result of `backend_info`, or the contents of a file."""
    facts = backend_facts() if parsed.model is None else file_facts(parsed.model)
    width = max(map(len, facts)) + 2
    for name, fact in facts.items():  # a file may hold anything
        print(visible(f"{name:{width}}{fact}", layout=""))


def backend_facts() -> dict[str, str]:
    """The engine, and the reason for it."""
    info = backend_info()
    return {
        "backend": f"{info.backend}: {info.reason}",
        "instruction set": info.instruction_set or "none",
        "threads": str(info.threads),
    }


def file_facts(path: str) -> dict[str, str]:
    """The contents of a checkpoint: the file, the model and its training."""
    checkpoint = read(path)
    facts = {"file": f"{path}: {os.path.getsize(path):,} bytes, safetensors, format {FORMAT!r} version {VERSION}"}
    model = from_checkpoint(checkpoint)
    facts |= describe_model(model) | {"dtype": checkpoint.dtype}
    if model.history is None:
        return facts | {"training": "none"}
    resumable = "yes" if checkpoint.progress else "no: saved without the state of the optimizer"
    return facts | {"resumable": resumable} | describe_training(model)
