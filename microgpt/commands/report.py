"""Write a page about a model: its training, samples, predictions, attention and embedding.

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
    """MODEL, and what is shown of it."""
    add_model_arguments(parser)
    parser.add_argument("--text", help="what the model is watched reading; default: the first sample")
    parser.add_argument("--out", default="report.html", metavar="FILE", help="the page, a .html file")
    parser.add_argument("--samples", type=int, default=SAMPLES, metavar="N", help="documents to sample")
    parser.add_argument("--seed", type=int, default=SEED, metavar="N", help="of the samples")


def run(parsed: argparse.Namespace) -> None:
    """Write the page of `microgpt.report`."""
    from microgpt.report.page import check_report_path, write_report  # only who uses it pays for its import

    check_report_path(parsed.out)
    check_different({"out": parsed.out}, [("model", parsed.model)])
    model, _ = load_model(parsed)
    write_report(model, parsed.out, text=parsed.text, samples=parsed.samples, seed=parsed.seed)
    print(f"{shown_path(parsed.out)}: {os.path.getsize(parsed.out):,} bytes")
