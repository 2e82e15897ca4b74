"""Signals that ask a long run to end, held back until it can."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


class Stopped(BaseException):
    """Somebody asked for the end: `ending` is the exception that says so to the rest of the program."""

    def __init__(self, number: int) -> None:
        self.ending = KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)


@contextlib.contextmanager
def held_back() -> Iterator[Callable[[], None]]:
    """Hold back Ctrl-C and SIGTERM until the function that this gives is called, which then raises `Stopped`.

    The second one is not held back. Signals reach the main thread only: in others, this does nothing.
    """
    received: list[int] = []

    def check() -> None:
        if received:
            raise Stopped(received[0])

    if threading.current_thread() is not threading.main_thread():
        yield check
        return

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        restore()

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    handlers = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield check
    finally:
        restore()
