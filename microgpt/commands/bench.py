"""Time the recipe of the original against the limits of this machine.

example:
  microgpt bench names.txt
"""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add FILE, --profile and --repeats."""
    parser.add_argument("file", metavar="FILE", nargs="?", help="default: the US first names in the package")
    parser.add_argument("--profile", action="store_true", help="show the time of each operation of a step instead")
    parser.add_argument("--repeats", type=int, default=7, metavar="N", help="number of runs; medians are printed")


def run(parsed: argparse.Namespace) -> None:
    """Print the tables of `microgpt.commands.benchmark`."""
    from microgpt.commands import benchmark  # imported here because it is slow and rarely needed

    report = benchmark.report_profile if parsed.profile else benchmark.report
    for line in report(parsed.file, parsed.repeats):
        print(line, flush=True)
