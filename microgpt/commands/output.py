"""What commands write: nothing that a terminal would obey, and no notice whose loss would end a command."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any

from microgpt.utils.text import LAYOUT, SPACES, visible


def printed(text: str) -> str:
    """Text of a model as standard output gets it: a file or pipe as it is, a terminal without what it would obey."""
    return visible(text, LAYOUT + SPACES) if sys.stdout.isatty() else text


def print_error(error: object) -> None:
    """Write one line about what went wrong to standard error."""
    sys.stderr.write(f"microgpt: error: {visible(str(error), layout='')}\n")


class Notices(io.FileIO):
    """Standard error, to which writing never fails: a line of progress that is lost is no reason to end a run."""

    def write(self, content: Any) -> int:
        """Write what there is room for, and claim to have written all of it."""
        written = None  # as of a write that would have to wait
        with contextlib.suppress(OSError):
            written = super().write(content)
        return len(content) if written is None else written


def prepare_streams() -> None:
    """Let printing never fail for what is printed, nor for who reads standard error.

    Nobody reads a closed stream; what has no encoding is escaped, which standard error does by itself.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
    if isinstance(sys.stdout, io.TextIOWrapper):  # a notebook's is not
        sys.stdout.reconfigure(errors="backslashreplace")
    buffer = getattr(sys.stderr, "buffer", None)
    raw = getattr(buffer, "raw", buffer)
    if type(raw) is io.FileIO:  # neither a notebook's nor the console of Windows
        notices = io.BufferedWriter(Notices(raw.fileno(), "w", closefd=False))
        sys.stderr = io.TextIOWrapper(notices, sys.stderr.encoding, sys.stderr.errors, line_buffering=True)


def drop_output() -> None:
    """Write what standard output still takes, and the rest nowhere: Python would complain of it at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
