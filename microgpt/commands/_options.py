"""Arguments that several commands share: the data, the machine, a trained model."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from microgpt.data.datasets import Dataset, dataset_names, dataset_of
from microgpt.data.tokenizer import Tokenizer
from microgpt.engine.backend import BACKENDS
from microgpt.model import GPT, load
from microgpt.utils.arguments import shown_path

MODEL_HELP = "a .safetensors file from microgpt train --out"


def add_machine_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add --backend and --threads, as `GPT` takes them, and return their group."""
    group = parser.add_argument_group("machine")
    group.add_argument("--backend", choices=BACKENDS, help="default: compiled, if it is installed")
    group.add_argument(
        "--threads",
        type=int,
        metavar="N",
        help="threads for large batches; default: the number of physical cores",
    )
    return group


def add_data_arguments(parser: argparse.ArgumentParser, files: str) -> None:
    """Add FILE, with this help, and --data."""
    parser.add_argument("files", metavar="FILE", nargs="*", type=Path, help=files)
    parser.add_argument("--data", metavar="NAME", help="instead of FILE: data in the package; microgpt data lists them")


def data_of(parsed: argparse.Namespace) -> list[Path] | Dataset | None:
    """The data that these arguments name; None for the default."""
    if parsed.data is None:
        for file in parsed.files:
            if not os.path.exists(file) and str(file) in dataset_names():
                raise ValueError(f"cannot read {file}: no such file; for the data in the package, --data {file}")
        return parsed.files or None
    if parsed.files:
        raise ValueError("data or FILE must be left out, got both")
    return dataset_of("data", parsed.data)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add MODEL, --backend and --threads."""
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    add_machine_arguments(parser)


def load_model(parsed: argparse.Namespace) -> tuple[GPT, Tokenizer]:
    """Load the only model that these arguments name, see `load_one_of`."""
    return load_one_of(parsed, parsed.model)


def load_one_of(parsed: argparse.Namespace, path: str) -> tuple[GPT, Tokenizer]:
    """Load one of the models that these arguments name, and its tokenizer. `ValueError` if it has none."""
    model = load(path, backend=parsed.backend, threads=parsed.threads)
    if model.tokenizer is None:
        raise ValueError(f"{shown_path(path)} has no tokenizer: it was saved from a model without one")
    return model, model.tokenizer
