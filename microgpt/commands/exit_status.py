"""How a command ends: with which exit status, and with one line where it fails.

It imports nothing that takes time or can fail: what goes wrong while the rest is imported ends in the same way.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from microgpt.commands.output import drop_output, prepare_streams, print_error

INTERRUPTED = 130  # what shells expect of a program that Ctrl-C ended
USAGE = 2


def exit_status(run: Callable[[], None]) -> int:
    """Run a command and return its exit status: 0, 2 for bad input, 130 after Ctrl-C."""
    try:
        prepare_streams()
        run()
        sys.stdout.flush()
    except ImportError as error:
        from microgpt.commands.installation import damage

        print_error(damage() or error)
        return USAGE
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
        print_error(error)
        return USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever read our output has gone; nothing more can be said to them
        drop_output()
        return 1
    except OSError as error:  # what can go wrong with files is a ValueError by now
        print_error(f"cannot write to standard output: {error.strerror or error}")
        drop_output()
        return USAGE
    return 0
