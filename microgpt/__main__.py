"""The command `microgpt`, which is also `python -m microgpt`."""

import os
import signal
import sys


def main() -> int:
    """Run the command line that the process was started with, and return its exit status.

    Ctrl-C ends the imports at once: NumPy would turn it into an error, and Python into a traceback.
    """
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interruptible:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # `INTERRUPTED`, which is still to be imported
    from microgpt.commands.exit_status import exit_status

    def start() -> None:
        try:
            from microgpt.commands.cli import parse

            parsed = parse(sys.argv[1:])
        finally:
            if interruptible:
                signal.signal(signal.SIGINT, signal.default_int_handler)
        parsed.run(parsed)

    return exit_status(start)


if __name__ == "__main__":
    sys.exit(main())
