"""The arguments of every command that takes a trained model, and the model they stand for."""

from __future__ import annotations

import argparse

from microgpt.arguments import shown_path
from microgpt.commands.machine import add_machine_arguments
from microgpt.data.tokenizer import Tokenizer
from microgpt.model import GPT


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, and what it runs on."""
    parser.add_argument("model", metavar="MODEL", help="what microgpt train --out wrote, a .safetensors file")
    add_machine_arguments(parser)


def load_model(parsed: argparse.Namespace) -> tuple[GPT, Tokenizer]:
    """The model that these arguments name, and its tokenizer. `ValueError` without one: commands speak of text."""
    from microgpt.checkpoint import load  # only who uses it pays for its import

    model = load(parsed.model, backend=parsed.backend, threads=parsed.threads)
    if model.tokenizer is None:
        raise ValueError(f"{shown_path(parsed.model)} has no tokenizer: it was saved from a model without one")
    return model, model.tokenizer
