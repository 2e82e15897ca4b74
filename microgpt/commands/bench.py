"""Time the recipe of microgpt against the limits of this machine.

example:
  microgpt bench names.txt
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE, and how often."""
    parser.add_argument("file", metavar="FILE", nargs="?", help="default: US first names that come with the package")
    parser.add_argument("--repeats", type=int, default=7, metavar="N", help="runs, of which the median counts")


def run(parsed: argparse.Namespace) -> None:
    """Print the tables of `microgpt.commands.benchmark`."""
    from microgpt.commands import benchmark  # only who uses it pays for its import

    for line in benchmark.report(parsed.file, parsed.repeats):
        print(line, flush=True)
