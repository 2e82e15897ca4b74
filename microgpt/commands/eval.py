"""Measure how well a trained model predicts text files.

examples:
  microgpt eval names.safetensors names.txt
  microgpt eval shakespeare.safetensors act1.txt act2.txt --json
  microgpt eval names.safetensors names.txt --per-document > losses.jsonl
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from microgpt.commands._options import add_model_arguments, load_model
from microgpt.data.corpus import read_corpus
from microgpt.data.documents import FileSource, read_lines
from microgpt.data.tokenizer import Tokenizer
from microgpt.evaluation import DocumentLosses
from microgpt.model import GPT, tokens_of
from microgpt.utils.files import to_json

DOCUMENTS = 1024  # whose losses are computed before they are printed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add MODEL and FILE."""
    add_model_arguments(parser)
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        type=Path,
        help="UTF-8 text in the format the model was trained on; .gz and - as in microgpt train",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.add_argument(
        "--per-document",
        action="store_true",
        help="print a JSON object for each document: text, nats, tokens, nats_per_token, file, line",
    )


def run(parsed: argparse.Namespace) -> None:
    """Print the result of `GPT.evaluate` for the documents of all files, or for their texts."""
    model, tokenizer = load_model(parsed)
    if parsed.per_document:
        print_each(model, tokenizer, parsed.files)
        return
    texts = [[file] for file in parsed.files] if model.format == "text" else [parsed.files]
    result = model.evaluate_corpora([read_corpus(files, model.format, tokenizer) for files in texts])
    if parsed.json:  # JSON has no number for infinity
        print(to_json(asdict(result)))
        return
    print(f"nats per token      {result.nats:.4f}")
    print(f"bits per character  {result.bits_per_character:.4f}")
    print(f"perplexity          {result.perplexity:.4f}")
    print(f"tokens              {result.tokens:,} ({result.characters:,} characters)")


def print_each(model: GPT, tokenizer: Tokenizer, files: list[Path]) -> None:
    """Print the loss of each document, or of the text of each file, as JSON."""
    if model.format == "text":
        for file in files:
            source = FileSource([file])
            parts = list(source.text())
            places = (place for part in parts for place in part.places())
            losses = losses_of(model, tokenizer, ["".join([part.text for part in parts])], places)
            print_losses(losses, [{}], [{"file": source.name}])
        return
    lines = read_lines(files)
    while batch := list(islice(lines, DOCUMENTS)):
        texts = [line.text.strip() for line in batch]
        losses = losses_of(model, tokenizer, texts, zip([line.place for line in batch], texts))
        print_losses(
            losses, [{"text": text} for text in texts], [{"file": line.file, "line": line.number} for line in batch]
        )


def losses_of(
    model: GPT, tokenizer: Tokenizer, documents: list[str], places: Iterable[tuple[str, str]]
) -> DocumentLosses:
    """`GPT.document_losses`, whose errors name the file and line: `places` are (place, text) of each."""
    try:
        return model.document_losses(documents)
    except ValueError:
        for place, text in places:
            tokens_of(tokenizer, place, text)
        raise


def print_losses(losses: DocumentLosses, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> None:
    """Print a JSON object for each document: what comes before the numbers, the numbers, what comes after."""
    columns = losses.nats.tolist(), losses.tokens.tolist(), losses.nats_per_token.tolist()
    for first, nats, tokens, mean, last in zip(before, *columns, after):
        print(to_json({**first, "nats": nats, "tokens": tokens, "nats_per_token": mean, **last}))
