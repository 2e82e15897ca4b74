"""The prompt of `microgpt sample --interactive`: a line in, an answer out, until the input ends."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable

from microgpt.commands.output import print_error
from microgpt.data.reading import standard_input

PROMPT = "> "


def converse(answer: Callable[[str, str], None], as_json: bool) -> None:
    """Call `answer` with the place and the text of each line of standard input, and go on after its `ValueError`s.

    They are printed: `as_json`, to standard output in the place of an answer, so that a program can wait for one. Else,
    without a terminal, a `ValueError` after the last line says how many there were.
    On a terminal, there is a prompt, and Ctrl-C ends only an answer, or the line that is being typed.
    """
    if sys.stdin is not None and sys.stdin.isatty():
        _converse_on_a_terminal(answer, as_json)
        return
    lines = failed = 0
    for lines, content in enumerate(standard_input(), 1):
        place, prompt = f"standard input, line {lines}", content.rstrip(b"\r\n")
        try:
            answer(place, prompt.decode())
        except UnicodeDecodeError as error:
            failed += 1
            _refuse(prompt.decode(errors="replace"), f"{place}: not UTF-8 ({error.reason})", as_json)
        except ValueError as error:
            failed += 1
            _refuse(prompt.decode(), error, as_json)
    if failed and not as_json:
        raise ValueError(f"{failed} of {lines} prompts have no answer")


def _refuse(prompt: str, error: object, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"prompt": prompt, "error": str(error)}), flush=True)
    else:
        print_error(error)


def _converse_on_a_terminal(answer: Callable[[str, str], None], as_json: bool) -> None:
    with contextlib.suppress(ImportError):  # on Windows, the console edits lines by itself
        import readline  # noqa: F401 (gives `input` a history and keys)
    while True:
        line = ""
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
            _refuse(line, error, as_json)
