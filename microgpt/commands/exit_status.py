"""The exit status of a command, and the one line that it prints when it fails.

`__main__` imports this module first, and the rest of the package under `exit_status`, so that an error in an import
ends a command as any other does. So it imports only what is small and needs no other package.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from microgpt.commands.output import drop_output, prepare_streams, print_error

INTERRUPTED = 130  # by convention of shells, after Ctrl-C; also in `__main__`
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
    except BrokenPipeError:  # the reader of our output is gone, and an error message would not reach it
        drop_output()
        return 1
    except OSError as error:  # errors of other files are ValueErrors by now
        print_error(f"cannot write to standard output: {error.strerror or error}")
        drop_output()
        return USAGE
    return 0
