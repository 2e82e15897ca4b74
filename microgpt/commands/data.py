"""List the data sets that come with the package, or print one.

examples:
  microgpt data
  microgpt data elements
  microgpt data cities | grep ville | microgpt train -
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from microgpt.data.datasets import Dataset, dataset_names, load_dataset
from microgpt.training.recipe import Recipe

SHOWN = 6  # documents of each


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add NAME."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="the data set to print, one document a line")
    parser.add_argument("--json", action="store_true", help="list as JSON objects, one per line")


def run(parsed: argparse.Namespace) -> None:
    """Print the documents of a data set, or what there is."""
    if parsed.name is not None:
        if parsed.json:
            raise ValueError("json is for the list of data sets: NAME must be left out")
        sys.stdout.write("".join(f"{document}\n" for document in load_dataset(parsed.name)))
        return
    for dataset in map(load_dataset, dataset_names()):
        if parsed.json:
            print(json.dumps(facts(dataset)))
        else:
            print_facts(dataset)


def facts(dataset: Dataset) -> dict[str, Any]:
    """The facts about a data set; `bytes` is the size of its text in UTF-8."""
    return {
        "name": dataset.name,
        "title": dataset.title,
        "documents": len(dataset),
        "bytes": sum(len(document.encode()) + 1 for document in dataset),
        "longest": max(map(len, dataset)),
        "source": dataset.source,
        "license": dataset.license,
        "sample": dataset[:: len(dataset) // SHOWN][:SHOWN],
    }


def print_facts(dataset: Dataset) -> None:
    """Print the facts about a data set, and how to train on it."""
    known = facts(dataset)
    context = known["longest"] + 1  # with the end
    size = f" --block-size {context}" if context > Recipe.block_size else ""
    print(f"{dataset.name:10} {dataset.title}: {len(dataset):,} documents, {known['bytes']:,} bytes")
    for line in (
        ", ".join(known["sample"]),
        f"source: {dataset.source}",
        f"licence: {dataset.license}",
        f"microgpt train --data {dataset.name}{size}",
    ):
        print(f"{'':10} {line}")
    print()
