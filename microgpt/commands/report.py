"""Write a page on which to try a model, with its training and what is inside; or one that compares several.

examples:
  microgpt report names.safetensors
  microgpt report names.safetensors --text "maria" --out maria.html
  microgpt report narrow.safetensors wide.safetensors deep.safetensors --out compared.html
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from microgpt.commands._options import MODEL_HELP, add_machine_arguments, load_one_of
from microgpt.model import SEED
from microgpt.sampling import SAMPLES
from microgpt.utils.arguments import shown_path
from microgpt.utils.files import check_different


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add MODEL, and the options of the page."""
    parser.add_argument("models", metavar="MODEL", nargs="+", help=f"{MODEL_HELP}; several are compared")
    add_machine_arguments(parser)
    parser.add_argument(
        "--text", help="text for predictions and attention of a single model; default: the first sample"
    )
    parser.add_argument(
        "--no-play",
        action="store_true",
        help="leave the parameters of a single model out of its page, which then cannot run it",
    )
    parser.add_argument("--out", default="report.html", metavar="FILE", help="the page, a .html file")
    parser.add_argument(
        "--samples", type=int, default=SAMPLES, metavar="N", help="number of documents to sample from each model"
    )
    parser.add_argument("--seed", type=int, default=SEED, metavar="N", help="random seed of the samples")


def run(parsed: argparse.Namespace) -> None:
    """Write the page of `write_report`, or for several models that of `write_comparison`."""
    from microgpt.report.comparison import write_comparison  # imported here because it is slow and rarely needed
    from microgpt.report.document import check_report_path
    from microgpt.report.page import write_report

    check_report_path(parsed.out)
    check_different({"out": parsed.out}, [("model", path) for path in parsed.models])
    drawing = {"samples": parsed.samples, "seed": parsed.seed}
    if len(parsed.models) == 1:
        model, _ = load_one_of(parsed, parsed.models[0])
        write_report(model, parsed.out, text=parsed.text, play=not parsed.no_play, **drawing)
    else:
        for name, is_given in {"text": parsed.text is not None, "no_play": parsed.no_play}.items():
            if is_given:
                raise ValueError(f"{name} is for the page about one model, got {len(parsed.models)} models")
        names = names_of(parsed.models)
        write_comparison(
            {name: load_one_of(parsed, path)[0] for name, path in zip(names, parsed.models)}, parsed.out, **drawing
        )
    print(f"{shown_path(parsed.out)}: {os.path.getsize(parsed.out):,} bytes")


def names_of(paths: Sequence[str]) -> list[str]:
    """A short name for each file: without folders and ending, unless only these tell it from the others.

    `ValueError` if two are the same file.
    """
    files = [os.path.realpath(path) for path in paths]
    parts = [os.path.splitext(os.path.abspath(path))[0].split(os.sep) for path in paths]
    names = []
    for i, path in enumerate(paths):
        if files.index(files[i]) < i:
            raise ValueError(f"models must be different files, got {shown_path(path)} twice")
        tails = ([each[-length:] for each in parts] for length in range(1, len(parts[i]) + 1))
        names.append(next(("/".join(tail[i]) for tail in tails if tail.count(tail[i]) == 1), path))
    return names
