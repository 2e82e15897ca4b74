"""Say which engine runs, and why."""

from __future__ import annotations

import argparse

from microgpt.backend import backend_info


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(parsed: argparse.Namespace) -> None:
    """Print what `backend_info` tells."""
    info = backend_info()
    print(f"backend          {info.backend}: {info.reason}")
    print(f"instruction set  {info.instruction_set or 'none'}")
    print(f"threads          {info.threads}")
