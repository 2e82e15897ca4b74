"""How a command ends: with which exit status, and with one line where it fails.

It imports nothing that takes time or can fail: what goes wrong while the rest is imported ends in the same way.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable

INTERRUPTED = 130  # what shells expect of a program that Ctrl-C ended
USAGE = 2


def exit_status(run: Callable[[], None]) -> int:
    """Run a command and return its exit status: 0, 2 for bad input, 130 after Ctrl-C."""
    try:
        prepare_streams()
        run()
        sys.stdout.flush()
    except ImportError as error:
        from microgpt.installation import damage

        print(f"microgpt: error: {damage() or error}", file=sys.stderr)
        return USAGE
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
        print(f"microgpt: error: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has gone; nothing more can be said to them
        drop_output()
        return 1
    except OSError as error:  # most likely, there is no room for our output
        print(f"microgpt: error: {error.strerror or error}", file=sys.stderr)
        drop_output()
        return USAGE
    return 0


def prepare_streams() -> None:
    """Let printing never fail for what is printed: nobody reads a closed stream, and what has no encoding is escaped.

    Standard error escapes by itself.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
    if isinstance(sys.stdout, io.TextIOWrapper):  # a notebook's is not
        sys.stdout.reconfigure(errors="backslashreplace")


def drop_output() -> None:
    """Write what standard output still takes, and the rest nowhere: Python would complain of it at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
