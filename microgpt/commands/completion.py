"""Print a tab-completion script for a shell.

examples:
  microgpt completion bash > ~/.local/share/bash-completion/completions/microgpt
  microgpt completion zsh > "${fpath[1]}/_microgpt"
  microgpt completion fish > ~/.config/fish/completions/microgpt.fish
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from microgpt.config import ACTIVATIONS, DTYPES
from microgpt.data.batches import LONG_DOCUMENTS
from microgpt.data.datasets import dataset_names
from microgpt.data.documents import FORMATS
from microgpt.training.schedule import SCHEDULES
from microgpt.utils.arguments import choice
from microgpt.utils.optional import require

MODELS = "*.safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add SHELL."""
    parser.add_argument("shell", metavar="SHELL", help="bash, zsh, fish, tcsh or powershell")


def run(parsed: argparse.Namespace) -> None:
    """Print the script, which knows commands, options and their values, and which files to offer."""
    from microgpt.commands.cli import build_parser  # it imports this module

    shtab: Any = require("shtab", "completion")
    shells = tuple(shtab.SUPPORTED_SHELLS)
    choice("shell", parsed.shell, shells)
    parser = build_parser()
    values = {**known_values(), "shell": shells}
    # In zsh, the parentheses that shtab puts around a pattern would make it a qualifier of files.
    files = {"FILE": shtab.FILE, "MODEL": {**shtab.glob(MODELS), "zsh": f"_files -g '{MODELS}'"}}
    for action in actions_of(parser):
        if action.dest in values:
            action.choices = values[action.dest]
        elif action.metavar in files:
            action.complete = files[action.metavar]  # type: ignore[attr-defined]
    sys.stdout.write(shtab.complete(parser, parsed.shell).rstrip("\n") + "\n")


def known_values() -> dict[str, Sequence[str]]:
    """The values of arguments that have some, which other functions check, or that can also be files."""
    data = dataset_names()
    return {
        "format": FORMATS,
        "tokenizer": ("characters", "bytes"),
        "long_documents": LONG_DOCUMENTS,
        "activation": ACTIVATIONS,
        "init_std": ("scaled",),
        "dtype": DTYPES,
        "schedule": tuple(SCHEDULES),
        "data": data,
        "name": data,
    }


def actions_of(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All arguments of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from actions_of(command)
