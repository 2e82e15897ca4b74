"""Signals that ask a long run to end, deferred until it can."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

# Ctrl-C, a request to terminate, and, if the system has it, a closed terminal.
ENDINGS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(BaseException):
    """A deferred signal has come."""


class DeferredSignals:
    """A context in which signals are deferred until `deliver` is called, or the context ends without an error.

    Only the first signal is deferred; a second one acts at once. Signals that are ignored, or handled outside Python,
    are left alone. Python delivers signals to the main thread only: in other threads, this does nothing.

    Args:
        numbers: the signals to defer.

    Attributes:
        number: the signal that has come, or None.
    """

    def __init__(self, *numbers: int) -> None:
        self.number: int | None = None
        self._numbers = numbers if threading.current_thread() is threading.main_thread() else ()
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._defer()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        self._restore()
        if kind is None:
            self._raise()

    def check(self) -> None:
        """Raise `Stopped` if a signal has come."""
        if self.number is not None:
            raise Stopped

    def deliver(self) -> None:
        """Pass the signal to its own handler; if that returns, defer the next signal."""
        self._restore()
        self._raise()
        self._defer()

    def forget(self) -> None:
        """Forget the signal that has come, if one has, and defer the next."""
        if self.number is not None:
            self.number = None
            self._defer()

    def _defer(self) -> None:
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

    def _raise(self) -> None:
        number, self.number = self.number, None
        if number is None:
            return
        if signal.getsignal(number) is signal.SIG_DFL:  # would end the process without cleaning up
            raise SystemExit(128 + number)
        signal.raise_signal(number)
