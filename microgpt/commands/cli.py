"""The command line and its commands."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any, NoReturn

from microgpt import __version__
from microgpt.commands.exit_status import USAGE, exit_status
from microgpt.utils.text import visible

COMMANDS = (
    "train",
    "tune",
    "sample",
    "next",
    "eval",
    "report",
    "info",
    "data",
    "bench",
    "completion",
)  # modules of this package

GUIDE = """\
microgpt trains and samples tiny GPTs, with the bits of the original.

  microgpt train                                     train on the names in the package, and sample
  microgpt train FILE --out MODEL.safetensors        train on your own file, one document a line, and keep the model
  microgpt tune FILE --out MODEL.safetensors         search for the options that suit it best
  microgpt sample MODEL.safetensors --prompt jo      draw from it
  microgpt next MODEL.safetensors jo                 show what it expects after that
  microgpt eval MODEL.safetensors FILE               measure how well it predicts
  microgpt report MODEL.safetensors                  write a page to play with it, and to look inside
  microgpt info MODEL.safetensors                    show its size, tokenizer and training
  microgpt data                                      list the data that come with the package
  microgpt bench                                     time training against the limits of this machine
  microgpt completion SHELL                          print a script with which a shell completes all of this

Each command has its own help: microgpt train --help
"""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Like the base class, but unknown arguments are an error of this command, not of the main parser."""
        parsed, left_over = super().parse_known_args(args, namespace)
        if left_over:
            are_files = {"files", "models"} & vars(parsed).keys() and not left_over[0].startswith("-")
            hint = "; files must stand together" if are_files else ""
            self.error(f"unrecognized arguments: {' '.join(left_over)}{hint}")
        return parsed, left_over

    def error(self, message: str) -> NoReturn:
        """Print the message and how to get help, and exit."""
        self.exit(USAGE, f"{self.prog}: error: {visible(message, layout='')} (see {self.prog} --help)\n")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and prints examples as they are."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default = action.default
        has_default = not (default is None or default is False or default in ("", []))  # 0 counts
        return super()._get_help_string(action) if has_default else action.help


def build_parser(commands: Iterable[str] = COMMANDS) -> Parser:
    """The parser of the command line, with these commands, whose modules it imports."""
    parser = Parser(prog="microgpt", description="Train and sample tiny GPTs, with the bits of the original.")
    parser.add_argument("--version", action="version", version=f"microgpt {__version__}")
    parser.set_defaults(run=lambda parsed: print(GUIDE, end=""))
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name in commands:
        module = import_module(f"microgpt.commands.{name}")
        summary, _, examples = (module.__doc__ or "").partition("\n")
        command = subparsers.add_parser(
            name, help=summary, description=summary, epilog=examples, formatter_class=HelpFormatter
        )
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def hyphenated(arguments: Sequence[str]) -> list[str]:
    """The arguments with - for _ in option names, since Python, nanoGPT and our own errors spell them with _."""
    end = arguments.index("--") if "--" in arguments else len(arguments)  # end of the options
    spelled = [re.sub(r"^--[\w-]+(?==|$)", lambda name: name[0].replace("_", "-"), each) for each in arguments[:end]]
    return [*spelled, *arguments[end:]]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command line: `run` of the result, called with it, runs the command. `SystemExit` if it is wrong.

    Imports the module of the command.
    """
    commands = arguments[:1] if arguments and arguments[0] in COMMANDS else COMMANDS  # others would only take time
    return build_parser(commands).parse_args(hyphenated(arguments))


def run(arguments: Sequence[str]) -> None:
    """Run a command line. Raises an error or `SystemExit` if it is wrong."""
    parsed = parse(arguments)
    parsed.run(parsed)


def main(arguments: Sequence[str]) -> int:
    """Run a command line and return its `exit_status`."""
    return exit_status(lambda: run(arguments))
