"""Draw documents, or continuous text, from a trained model.

examples:
  microgpt sample names.safetensors -n 5 --prompt jo --temperature 0.8
  microgpt sample names.safetensors -n 1000 --seed 1 --json > names.jsonl
  microgpt sample shakespeare.safetensors --prompt "ROMEO:" --max-tokens 1000 --top-k 10
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from microgpt.commands._options import add_model_arguments, load_model
from microgpt.commands.output import printed
from microgpt.model import GPT
from microgpt.sampling import SAMPLES, TEMPERATURE, TEXT_TOKENS
from microgpt.utils.arguments import integer

SEPARATOR = "-" * 15  # nanoGPT's


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add MODEL, and the arguments of `GPT.generate`."""
    add_model_arguments(parser)
    parser.add_argument(
        "-n", type=int, metavar="N", help=f"number of documents, default {SAMPLES}, or texts, default 1"
    )
    parser.add_argument("--prompt", default="", metavar="TEXT", help="the beginning of each")
    parser.add_argument(
        "--temperature",
        type=float,
        default=TEMPERATURE,
        metavar="X",
        help="0: always the likeliest token; 1: the model as it is",
    )
    parser.add_argument("--top-k", type=int, metavar="N", help="draw from this many of the likeliest tokens")
    parser.add_argument(
        "--top-p", type=float, metavar="X", help="draw from the fewest likeliest tokens with this total probability"
    )
    parser.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="random seed; by default the state after training, so that every call gives the same samples",
    )
    parser.add_argument(
        "--max-tokens",
        type=int,
        metavar="N",
        help=f"default: as many as fit the context, or {TEXT_TOKENS} of continuous text",
    )
    parser.add_argument("--json", action="store_true", help="print JSON objects, one per line: text, seed, prompt")


def run(parsed: argparse.Namespace) -> None:
    """Print documents, one per line, or continuous text as it is drawn."""
    model, _ = load_model(parsed)
    options = {name: getattr(parsed, name) for name in ("prompt", "temperature", "top_k", "top_p", "max_tokens")}
    if model.format == "text":
        print_texts(parsed, model, options)
    else:
        print_documents(parsed, model, options)


def print_documents(parsed: argparse.Namespace, model: GPT, options: dict[str, Any]) -> None:
    """Print documents, one per line."""
    n = SAMPLES if parsed.n is None else parsed.n
    for text in model.generate(n, seed=parsed.seed, **options):
        print(json_line(text, parsed.seed, parsed.prompt) if parsed.json else printed(text))


def print_texts(parsed: argparse.Namespace, model: GPT, options: dict[str, Any]) -> None:
    """Print texts one after the other, each with the next seed, so that each can be drawn again alone."""
    n = 1 if parsed.n is None else integer("n", parsed.n, 0)
    if options["max_tokens"] is None:
        options["max_tokens"] = TEXT_TOKENS
    for i in range(n):
        seed = None if parsed.seed is None else parsed.seed + i
        pieces = model.stream(seed=seed, **options)
        if parsed.json:
            print(json_line(parsed.prompt + "".join(pieces), seed, parsed.prompt))
            continue
        if i:
            print(SEPARATOR)
        print(printed(parsed.prompt), end="", flush=True)
        for piece in pieces:
            print(printed(piece), end="", flush=True)
        print()


def json_line(text: str, seed: int | None, prompt: str) -> str:
    """A sample and what is needed to draw it again, as JSON."""
    return json.dumps({"text": text, "seed": seed, "prompt": prompt})
