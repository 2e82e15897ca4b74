"""Measure how well a trained model predicts text files.

examples:
  microgpt eval names.safetensors names.txt
  microgpt eval shakespeare.safetensors act1.txt act2.txt --json
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from microgpt.commands._options import add_model_arguments, load_model
from microgpt.data.corpus import read_corpus
from microgpt.utils.files import to_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add MODEL and FILE."""
    add_model_arguments(parser)
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path, help="in the format the model was trained on")
    parser.add_argument("--json", action="store_true", help="print a JSON object")


def run(parsed: argparse.Namespace) -> None:
    """Print the result of `GPT.evaluate` for the documents of all files, or for their texts."""
    model, tokenizer = load_model(parsed)
    texts = [[file] for file in parsed.files] if model.format == "text" else [parsed.files]
    result = model.evaluate_corpora([read_corpus(files, model.format, tokenizer) for files in texts])
    if parsed.json:  # JSON has no number for infinity
        print(to_json(asdict(result)))
        return
    print(f"nats per token      {result.nats:.4f}")
    print(f"bits per character  {result.bits_per_character:.4f}")
    print(f"perplexity          {result.perplexity:.4f}")
    print(f"tokens              {result.tokens:,} ({result.characters:,} characters)")
