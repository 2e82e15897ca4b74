"""The arguments that several commands share: the machine that computes, a trained model."""

from __future__ import annotations

import argparse

from microgpt.data.tokenizer import Tokenizer
from microgpt.engine.backend import BACKENDS
from microgpt.model import GPT
from microgpt.utils.arguments import shown_path


def add_machine_arguments(parser: argparse.ArgumentParser) -> None:
    """--backend and --threads, as `GPT` takes them."""
    group = parser.add_argument_group("machine")
    group.add_argument("--backend", choices=BACKENDS, help="default: compiled where there is one")
    group.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="that share large batches; by default as many as there are physical cores",
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, and what it runs on."""
    parser.add_argument("model", metavar="MODEL", help="what microgpt train --out wrote, a .safetensors file")
    add_machine_arguments(parser)


def load_model(parsed: argparse.Namespace) -> tuple[GPT, Tokenizer]:
    """The model that these arguments name, and its tokenizer. `ValueError` without one: commands speak of text."""
    from microgpt.model import load  # commands that take no model start without it

    model = load(parsed.model, backend=parsed.backend, threads=parsed.threads)
    if model.tokenizer is None:
        raise ValueError(f"{shown_path(parsed.model)} has no tokenizer: it was saved from a model without one")
    return model, model.tokenizer
