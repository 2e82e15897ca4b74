"""Draw documents, or continuous text, from a trained model.

examples:
  microgpt sample names.safetensors -n 5 --prompt jo --temperature 0.8
  microgpt sample names.safetensors -n 1000 --seed 1 --json > names.jsonl
  microgpt sample names.safetensors --prompts beginnings.txt -n 3
  microgpt sample names.safetensors --interactive
  microgpt sample shakespeare.safetensors --prompt "ROMEO:" --max-tokens 1000 --top-k 10 --stop "JULIET:"
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import count, repeat
from typing import Any

from microgpt.commands._interactive import converse
from microgpt.commands._options import add_model_arguments, load_model
from microgpt.commands.output import printed
from microgpt.data.documents import FileSource
from microgpt.model import GPT, tokens_of
from microgpt.sampling import SAMPLES, TEMPERATURE, TEXT_TOKENS
from microgpt.utils.arguments import integer

SEPARATOR = "-" * 15  # nanoGPT's


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add MODEL, the arguments of `GPT.generate`, and where prompts come from."""
    add_model_arguments(parser)
    parser.add_argument(
        "-n",
        type=int,
        metavar="N",
        help=f"samples for each prompt; default: {SAMPLES} documents, 1 text, 1 with --interactive",
    )
    parser.add_argument(
        "--prompt", action="append", default=[], metavar="TEXT", help="the beginning of each; may be repeated"
    )
    parser.add_argument("--prompts", metavar="FILE", help="a prompt on each line; .gz and - as in microgpt train")
    parser.add_argument(
        "-i", "--interactive", action="store_true", help="ask for prompts, until Ctrl-D; Ctrl-C ends an answer"
    )
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end just before this text; the prompt is not searched; may be repeated",
    )
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
    parser.add_argument(
        "--json",
        action="store_true",
        help="print JSON objects, one per line: text, seed, prompt; or prompt, error with --interactive",
    )


def run(parsed: argparse.Namespace) -> None:
    """Print documents, one per line, or continuous text as it is drawn, for each prompt."""
    if parsed.interactive and (parsed.prompt or parsed.prompts):
        raise ValueError("interactive asks for prompts: prompt and prompts must be left out")
    model, tokenizer = load_model(parsed)
    options = {name: getattr(parsed, name) for name in ("temperature", "top_k", "top_p", "max_tokens", "stop")}
    if model.format == "text" and parsed.max_tokens is None:
        options["max_tokens"] = TEXT_TOKENS
    draws_together = model.format == "lines" and not parsed.interactive
    n = (SAMPLES if draws_together else 1) if parsed.n is None else integer("n", parsed.n, 0)
    if parsed.interactive:
        model.stream(**options)  # wrong options are an error now, not after the first prompt
        seeds = seeds_from(parsed.seed)

        def answer(place: str, prompt: str) -> None:
            tokens_of(tokenizer, place, prompt)
            print_streams(model, prompt, n, seeds, options, parsed.json)

        converse(answer, parsed.json)
        return
    prompts = prompts_of(parsed)
    for place, prompt in prompts:  # before anything is printed
        tokens_of(tokenizer, place, prompt)
    for i, (_, prompt) in enumerate(prompts):
        if draws_together:
            for text in model.generate(n, seed=parsed.seed, prompt=prompt, **options):
                print(json_line(text, parsed.seed, prompt) if parsed.json else printed(text))
            continue
        if i and n and not parsed.json:
            print(SEPARATOR)
        print_streams(model, prompt, n, seeds_from(parsed.seed), options, parsed.json)


def prompts_of(parsed: argparse.Namespace) -> list[tuple[str, str]]:
    """(place, prompt) of each prompt, the place for errors; an empty prompt if none is given."""
    prompts = [("prompt", text) for text in parsed.prompt]
    if parsed.prompts is not None:
        lines = [(line.place, line.text.removesuffix("\n")) for line in FileSource([parsed.prompts]).lines()]
        if not lines:
            raise ValueError(f"prompts must have at least one line that is not blank, got none in {parsed.prompts}")
        prompts += lines
    return prompts or [("prompt", "")]


def seeds_from(seed: int | None) -> Iterator[int | None]:
    """A seed for each sample, so that each can be drawn again alone; None for the model's own generator."""
    return repeat(None) if seed is None else count(seed)


def print_streams(
    model: GPT, prompt: str, n: int, seeds: Iterator[int | None], options: dict[str, Any], as_json: bool
) -> None:
    """Print samples one after the other, each as it is drawn, and with the next seed."""
    for i in range(n):
        seed = next(seeds)
        pieces = model.stream(prompt, seed=seed, **options)
        if as_json:
            print(json_line(prompt + "".join(pieces), seed, prompt), flush=True)
            continue
        if i and model.format == "text":
            print(SEPARATOR)
        print(printed(prompt), end="", flush=True)
        for piece in pieces:
            print(printed(piece), end="", flush=True)
        print(flush=True)


def json_line(text: str, seed: int | None, prompt: str) -> str:
    """A sample and what is needed to draw it again, as JSON."""
    return json.dumps({"text": text, "seed": seed, "prompt": prompt})
