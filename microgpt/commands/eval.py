"""Measure how well a trained model predicts text files.

examples:
  microgpt eval names.safetensors names.txt
  microgpt eval shakespeare.safetensors act1.txt act2.txt --json
  microgpt eval names.safetensors --data surnames
  microgpt eval names.safetensors names.txt --per-document > losses.jsonl
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from microgpt.commands._options import add_data_arguments, add_model_arguments, data_of, load_model
from microgpt.data.corpus import Corpus, corpus_of
from microgpt.data.datasets import Dataset
from microgpt.data.documents import FileSource, StringSource
from microgpt.evaluation import document_losses
from microgpt.model import GPT
from microgpt.utils.files import to_json

DOCUMENTS = 1024  # whose losses are computed before they are printed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add MODEL, FILE and --data, and what is printed."""
    add_model_arguments(parser)
    add_data_arguments(parser, "UTF-8 text in the format the model was trained on; .gz and - as in microgpt train")
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    parser.add_argument(
        "--per-document",
        action="store_true",
        help="print a JSON object for each document: text, nats, tokens, nats_per_token, file or data, line; or for"
        " each file of continuous text, without text and line; implies --json",
    )


def run(parsed: argparse.Namespace) -> None:
    """Print the result of `GPT.evaluate` for the documents of all files, or for their texts."""
    data = data_of(parsed)
    if data is None:
        raise ValueError("data or FILE must be given")
    model, tokenizer = load_model(parsed)
    sources: list[FileSource] | list[StringSource]
    if isinstance(data, Dataset):
        sources = [StringSource(data, data.name)]
    else:
        sources = [FileSource([file]) for file in data] if model.format == "text" else [FileSource(data)]
    corpora = [corpus_of(source, model.format, tokenizer) for source in sources]
    if parsed.per_document:
        print_losses(model, corpora, documents_of(sources, data, model.format))
        return
    result = model.evaluate_corpora(corpora)
    if parsed.json:  # JSON has no number for infinity
        print(to_json(asdict(result)))
        return
    print(f"nats per token      {result.nats:.4f}")
    print(f"bits per character  {result.bits_per_character:.4f}")
    print(f"perplexity          {result.perplexity:.4f}")
    print(f"tokens              {result.tokens:,} ({result.characters:,} characters)")


def documents_of(
    sources: list[FileSource] | list[StringSource], data: list[Path] | Dataset, format: str
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """The text and the place of each document, which are printed before and after its numbers."""
    for source in sources:
        place = {"data" if isinstance(data, Dataset) else "file": source.name}
        if format == "text":
            yield {}, place
        elif isinstance(source, FileSource):
            yield from (
                ({"text": line.text.strip()}, {"file": line.file, "line": line.number}) for line in source.lines()
            )
        else:
            yield from (({"text": text}, {**place, "line": number}) for number, text in enumerate(data, 1))


def print_losses(model: GPT, corpora: list[Corpus], documents: Iterator[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    """Print a JSON object with the loss of each of these documents, see `documents_of`."""
    packs = [corpus.documents() for corpus in corpora]
    for corpus, pack in zip(corpora, packs):
        if not len(pack):
            raise ValueError(f"{corpus.name} must have at least 2 tokens, so that one can be predicted")
    for pack in packs:
        indices = np.arange(len(pack))
        for start in range(0, len(pack), DOCUMENTS):
            losses = document_losses(model.engine, pack.select(indices[start : start + DOCUMENTS]))
            columns = losses.nats.tolist(), losses.tokens.tolist(), losses.nats_per_token.tolist()
            for nats, tokens, mean, (before, after) in zip(*columns, documents):
                print(to_json({**before, "nats": nats, "tokens": tokens, "nats_per_token": mean, **after}))
