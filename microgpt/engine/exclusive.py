"""One call at a time for the compiled engine, among threads, signal handlers and forked processes."""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class EngineLock:
    """Lock of an engine: it has one arena, and no GIL to guard it while it computes.

    Threads wait for it. A signal handler cannot wait for the call that it interrupts: its own call is refused, except
    between two steps, where `busy` is False because the progress callback, too, may use the model.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.busy = False

    def __enter__(self) -> None:
        self._lock.acquire()
        if self.busy:
            self._lock.release()
            raise RuntimeError("a signal handler cannot use a model that is in the middle of a step")
        self.busy = True

    def __exit__(self, *error: object) -> None:
        self.busy = False
        self._lock.release()

    def held_by_another_thread(self) -> bool:
        """Whether another thread is in a call."""
        if self._lock.acquire(blocking=False):  # it is free, or this thread's own
            self._lock.release()
            return False
        return True


class _Locked(Protocol):
    lock: EngineLock

    def _forget_other_threads(self) -> None: ...


def exclusive(method: Callable[Concatenate[Any, Arguments], Result]) -> Callable[Concatenate[Any, Arguments], Result]:
    """Decorate a method of an engine so that it holds the engine's `lock`."""

    @functools.wraps(method)
    def guarded(self: Any, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with self.lock:
            return method(self, *args, **kwargs)

    return guarded


_engines: weakref.WeakSet[_Locked] = weakref.WeakSet()


def free_in_forks(engine: _Locked) -> None:
    """Have the engine forget, in a forked process, the call that another thread was in.

    Only the thread that forked lives on there, so that call would never end. Its own, if there is one, continues.
    """
    _engines.add(engine)


def _after_fork() -> None:
    for engine in _engines:
        if engine.lock.held_by_another_thread():
            engine._forget_other_threads()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
