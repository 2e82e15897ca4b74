"""Write a page that plays a model, and shows its training, samples, predictions, attention and embedding.

examples:
  microgpt report names.safetensors
  microgpt report names.safetensors --text "maria" --out maria.html
"""

from __future__ import annotations

import argparse
import os

from microgpt.commands._options import add_model_arguments, load_model
from microgpt.model import SEED
from microgpt.sampling import SAMPLES
from microgpt.utils.arguments import shown_path
from microgpt.utils.files import check_different


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add MODEL, and the options of the page."""
    add_model_arguments(parser)
    parser.add_argument("--text", help="text for predictions and attention; default: the first sample")
    parser.add_argument("--out", default="report.html", metavar="FILE", help="the page, a .html file")
    parser.add_argument("--samples", type=int, default=SAMPLES, metavar="N", help="number of documents to sample")
    parser.add_argument("--seed", type=int, default=SEED, metavar="N", help="random seed of the samples")


def run(parsed: argparse.Namespace) -> None:
    """Write the page of `microgpt.report`."""
    from microgpt.report.page import (  # imported here because it is slow and rarely needed
        check_report_path,
        write_report,
    )

    check_report_path(parsed.out)
    check_different({"out": parsed.out}, [("model", parsed.model)])
    model, _ = load_model(parsed)
    write_report(model, parsed.out, text=parsed.text, samples=parsed.samples, seed=parsed.seed)
    print(f"{shown_path(parsed.out)}: {os.path.getsize(parsed.out):,} bytes")
