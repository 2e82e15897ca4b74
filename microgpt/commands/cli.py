"""The command line: which commands there are."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any, NoReturn

from microgpt import __version__
from microgpt.commands import bench, info, report, sample, train
from microgpt.commands import eval as evaluate
from microgpt.commands.exit_status import USAGE, exit_status
from microgpt.utils.text import visible

COMMANDS: dict[str, ModuleType] = {
    "train": train,
    "sample": sample,
    "eval": evaluate,
    "report": report,
    "info": info,
    "bench": bench,
}

GUIDE = """\
microgpt trains and samples tiny GPTs, with the numbers of microgpt.

  microgpt train                                     train on names that come with the package, and sample
  microgpt train FILE --out MODEL.safetensors        train on your own file, one document a line, and keep the model
  microgpt sample MODEL.safetensors --prompt jo      draw from it
  microgpt eval MODEL.safetensors FILE               say how well it predicts
  microgpt report MODEL.safetensors                  show what is inside, on a page of its own
  microgpt info MODEL.safetensors                    say what it is
  microgpt bench                                     time training against the limits of this machine

Each command explains itself: microgpt train --help
"""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As its base class, but what is left over is an error of this command, not of the one that called it."""
        parsed, left_over = super().parse_known_args(args, namespace)
        if left_over:
            hint = "; files must stand together" if "files" in parsed and not left_over[0].startswith("-") else ""
            self.error(f"unrecognized arguments: {' '.join(left_over)}{hint}")
        return parsed, left_over

    def error(self, message: str) -> NoReturn:
        """Print it, and how to get help, and exit."""
        self.exit(USAGE, f"{self.prog}: error: {visible(message, layout='')} (see {self.prog} --help)\n")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the defaults that there are, and leaves examples as they are."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default
        has_default = not (default is None or default is False or default == "")  # 0 is one
        return super()._get_help_string(action) if has_default else action.help


def build_parser() -> Parser:
    """The parser of the whole command line."""
    parser = Parser(prog="microgpt", description="Train and sample tiny GPTs, with the numbers of microgpt.")
    parser.add_argument("--version", action="version", version=f"microgpt {__version__}")
    parser.set_defaults(run=lambda parsed: print(GUIDE, end=""))
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, module in COMMANDS.items():
        summary, _, examples = (module.__doc__ or "").partition("\n")
        command = subparsers.add_parser(
            name, help=summary, description=summary, epilog=examples, formatter_class=HelpFormatter
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def hyphenated(arguments: Sequence[str]) -> list[str]:
    """Arguments with - for _ in the names of options, which Python, nanoGPT and our own errors spell with _."""
    end = arguments.index("--") if "--" in arguments else len(arguments)  # of the options
    spelled = [re.sub(r"^--[\w-]+(?==|$)", lambda name: name[0].replace("_", "-"), each) for each in arguments[:end]]
    return [*spelled, *arguments[end:]]


def run(arguments: Sequence[str]) -> None:
    """Run a command line; an error or `SystemExit` where it is wrong."""
    parsed = build_parser().parse_args(hyphenated(arguments))
    parsed.run(parsed)


def main(arguments: Sequence[str]) -> int:
    """Run a command line; see `exit_status` for what it returns."""
    return exit_status(lambda: run(arguments))
