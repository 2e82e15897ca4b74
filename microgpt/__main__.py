"""The command `microgpt`, which is also `python -m microgpt`."""

import os
import signal
import sys

from microgpt.commands.exit_status import INTERRUPTED, exit_status


def main() -> int:
    """Run the command line that the process was started with, and return its exit status."""
    return exit_status(start)


def start() -> None:
    """Import the commands and run one of them. Ctrl-C ends an import at once: NumPy's would make an error of it."""
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interruptible:
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    try:
        from microgpt.commands.cli import run
    finally:
        if interruptible:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
