"""The arguments of every command that computes: what a model runs on."""

from __future__ import annotations

import argparse

from microgpt.backend import BACKENDS


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
