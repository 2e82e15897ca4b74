"""Write a page about a model: its training, samples, predictions, attention and embedding.

examples:
  microgpt report names.safetensors
  microgpt report names.safetensors --text "maria" --out maria.html
"""

from __future__ import annotations

import argparse
import os


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, and what is shown of it."""
    parser.add_argument("model", metavar="MODEL", help="a .safetensors file that train has written")
    parser.add_argument("--text", help="what the model is watched reading; default: the first sample")
    parser.add_argument("--out", default="report.html", metavar="FILE", help="the page")
    parser.add_argument("--samples", type=int, default=20, metavar="N", help="documents to sample")
    parser.add_argument("--seed", type=int, default=42, metavar="N", help="of the samples")


def run(parsed: argparse.Namespace) -> None:
    """Write the page of `microgpt.report`."""
    from microgpt.checkpoint import load  # only who uses it pays for its import
    from microgpt.report import write_report

    write_report(load(parsed.model), parsed.out, text=parsed.text, samples=parsed.samples, seed=parsed.seed)
    print(f"{parsed.out}: {os.path.getsize(parsed.out):,} bytes")
