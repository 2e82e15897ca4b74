"""Say how well a trained model predicts text files.

examples:
  microgpt eval names.safetensors names.txt
  microgpt eval shakespeare.safetensors act1.txt act2.txt --json
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from microgpt.commands._options import add_model_arguments, load_model
from microgpt.data.corpus import encode_part
from microgpt.data.documents import FileSource, Part
from microgpt.strict_json import to_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL and FILE."""
    add_model_arguments(parser)
    parser.add_argument("files", metavar="FILE", nargs="+", type=Path, help="in the format the model was trained on")
    parser.add_argument("--json", action="store_true", help="print a JSON object")


def run(parsed: argparse.Namespace) -> None:
    """Print what `GPT.evaluate` gives."""
    model, tokenizer = load_model(parsed)
    if tokenizer.bos_is_text:
        texts = [list(FileSource([file]).text()) for file in parsed.files]
        documents = ["".join([passage.text for passage in text]) for text in texts]
        parts: list[Part] = [passage for text in texts for passage in text]
    else:
        lines = list(FileSource(parsed.files).documents())
        documents = [document for part in lines for document in part]
        parts = [*lines]
    try:
        result = model.evaluate(documents)
    except ValueError:
        for part in parts:
            encode_part(part, tokenizer)  # knows the file and line
        raise
    if parsed.json:  # JSON has no number for infinity
        print(to_json(asdict(result)))
        return
    print(f"nats per token      {result.nats:.4f}")
    print(f"bits per character  {result.bits_per_character:.4f}")
    print(f"perplexity          {result.perplexity:.4f}")
    print(f"tokens              {result.tokens:,} ({result.characters:,} characters)")
