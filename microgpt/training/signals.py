"""Signals that ask a long run to end, held back until it can."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

# Ctrl-C, what asks a service to end, and, where there is such a thing, a terminal that is closed.
ENDINGS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(BaseException):
    """A signal is held back."""


class HeldBack:
    """Signals that do not interrupt what is inside `with`, until it lets them go to do what they always do.

    The second one is not held back, and none is that is ignored, or handled outside of Python. Signals reach the main
    thread only: in others, this does nothing.

    Args:
        numbers: the signals.

    Attributes:
        number: the signal that has come, or None.
    """

    def __init__(self, *numbers: int) -> None:
        self.number: int | None = None
        self._numbers = numbers if threading.current_thread() is threading.main_thread() else ()
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._hold()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        self._restore()
        if kind is None:
            self._deliver()

    def check(self) -> None:
        """Raise `Stopped` where a signal has come."""
        if self.number is not None:
            raise Stopped

    def let_go(self) -> None:
        """Hand the signal to its own handler; where that lets the program go on, hold back the next one."""
        self._restore()
        self._deliver()
        self._hold()

    def _hold(self) -> None:
        for number in self._numbers:
            handler = signal.getsignal(number)
            if handler is not signal.SIG_IGN and handler is not None:
                self._handlers[number] = handler
                signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    def _deliver(self) -> None:
        number, self.number = self.number, None
        if number is None:
            return
        if signal.getsignal(number) is signal.SIG_DFL:  # would end the process without any cleaning up
            raise SystemExit(128 + number)
        signal.raise_signal(number)
