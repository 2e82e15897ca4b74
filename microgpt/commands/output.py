"""Output of commands: safe for terminals, and never the reason why a command fails."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any

from microgpt.utils.text import LAYOUT, SPACES, visible


def printed(text: str) -> str:
    """Text of a model for standard output: unchanged for a file or pipe, without control codes for a terminal."""
    return visible(text, LAYOUT + SPACES) if sys.stdout.isatty() else text


def print_error(error: object) -> None:
    """Write an error message of one line to standard error."""
    sys.stderr.write(f"microgpt: error: {visible(str(error), layout='')}\n")


class Notices(io.FileIO):
    """Standard error to which writing never fails: losing a line of progress must not end a run."""

    def write(self, content: Any) -> int:
        """Write as much as possible, and report that all of it was written."""
        written = None  # what a write that would block returns
        with contextlib.suppress(OSError):
            written = super().write(content)
        return len(content) if written is None else written


def prepare_streams() -> None:
    """Make print safe: discard output to a closed stream, escape what the encoding lacks.

    Standard error escapes by itself; errors in writing to it are ignored.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
    if isinstance(sys.stdout, io.TextIOWrapper):  # in a notebook it is not
        sys.stdout.reconfigure(errors="backslashreplace")
    buffer = getattr(sys.stderr, "buffer", None)
    raw = getattr(buffer, "raw", buffer)
    if type(raw) is io.FileIO:  # not in a notebook, nor on the console of Windows
        notices = io.BufferedWriter(Notices(raw.fileno(), "w", closefd=False))
        sys.stderr = io.TextIOWrapper(notices, sys.stderr.encoding, sys.stderr.errors, line_buffering=True)


def drop_output() -> None:
    """Flush what standard output still takes and discard the rest, or Python reports it at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
