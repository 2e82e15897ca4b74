"""The prompt of `microgpt sample --interactive`: a line in, an answer out, until the input ends."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable

from microgpt.commands.output import print_error
from microgpt.data.reading import standard_input

PROMPT = "> "


def converse(answer: Callable[[str, str], None]) -> None:
    """Call `answer` with the place and the text of each line of standard input.

    Its `ValueError`s are printed, and the next line is read.
    On a terminal, there is a prompt, and Ctrl-C ends only an answer, or the line that is being typed.
    """
    if sys.stdin is not None and sys.stdin.isatty():
        _converse_on_a_terminal(answer)
        return
    for number, content in enumerate(standard_input(), 1):
        place = f"standard input, line {number}"
        try:
            answer(place, content.rstrip(b"\r\n").decode())
        except UnicodeDecodeError as error:
            print_error(f"{place}: not UTF-8 ({error.reason})")
        except ValueError as error:
            print_error(error)


def _converse_on_a_terminal(answer: Callable[[str, str], None]) -> None:
    with contextlib.suppress(ImportError):  # on Windows, the console edits lines by itself
        import readline  # noqa: F401 (gives `input` a history and keys)
    while True:
        try:
            if sys.stdout.isatty():
                line = input(PROMPT)
            else:  # keep the prompt out of a file
                sys.stderr.write(PROMPT)
                sys.stderr.flush()
                line = input()
            answer("prompt", line)
        except EOFError:  # Ctrl-D
            print(file=sys.stderr)
            return
        except KeyboardInterrupt:
            print(file=sys.stderr)
        except ValueError as error:
            print_error(error)
