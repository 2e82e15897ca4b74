"""Show what a trained model expects after a text.

examples:
  microgpt next names.safetensors jo
  microgpt next names.safetensors jo --json
  microgpt next shakespeare.safetensors "To be, or not to " -n 5
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import islice

from microgpt.commands._options import add_model_arguments, load_model
from microgpt.display.labels import text_label
from microgpt.utils.arguments import positive_integer

SHOWN = 10  # tokens
BAR = 40  # characters for a probability of 1, on a terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add MODEL, TEXT, and how much to print."""
    add_model_arguments(parser)
    parser.add_argument(
        "prompt",
        metavar="TEXT",
        nargs="?",
        default="",
        help="what comes before; by default the beginning of a document",
    )
    parser.add_argument(
        "-n", type=int, metavar="N", help=f"number of the likeliest tokens; default: {SHOWN}, or all with --json"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object: prompt, probabilities by token")


def run(parsed: argparse.Namespace) -> None:
    """Print the tokens of `GPT.next_token_probabilities`, one a line, or all as JSON."""
    n = None if parsed.n is None else positive_integer("n", parsed.n)
    model, _ = load_model(parsed)
    probabilities = model.next_token_probabilities(parsed.prompt)
    if parsed.json:
        print(json.dumps({"prompt": parsed.prompt, "probabilities": dict(islice(probabilities.items(), n))}))
        return
    shown = {text_label(text): share for text, share in islice(probabilities.items(), n or SHOWN)}
    width, bar = max(map(len, shown)), BAR if sys.stdout.isatty() else 0
    for label, share in shown.items():
        print(f"{label:<{width}} {share:8.3%}  {'█' * round(bar * share)}".rstrip())
