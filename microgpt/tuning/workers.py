"""Workers: any executor of `concurrent.futures`, by default a process for each core, and what happens if one dies."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, wait
from types import TracebackType
from typing import Any, Self

from microgpt.engine.cores import physical_cores
from microgpt.tuning.trial import Outcome, Task, WorkerError, measure_trial, train_trial
from microgpt.utils.arguments import positive_integer, shown
from microgpt.utils.text import one_line

ATTEMPTS = 2  # at a trial, if its worker dies


class Workers:
    """The workers of a search, as a context; leaving it ends those that it has started.

    Args:
        executor: an executor of the user's, or None for processes of our own.
        count: number of trials that are trained at once; by default the number of physical cores, or of the
            executor's workers if it says so.
    """

    def __init__(self, executor: Executor | None, count: int | None) -> None:
        if executor is not None and not callable(getattr(executor, "submit", None)):
            raise TypeError(f"executor must be a concurrent.futures.Executor, got {shown(executor)}")
        if executor is not None and not isinstance(executor, Executor):
            wanted = "; of a Dask client, take client.get_executor()" if hasattr(executor, "get_executor") else ""
            raise TypeError(f"executor must be a concurrent.futures.Executor, got {shown(executor)}{wanted}")
        self._own = executor is None
        self._executor = executor
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        if count is None:
            count = physical_cores() if executor is None else getattr(executor, "_max_workers", None)
        self.count = None if count is None else positive_integer("workers", count)

    def __enter__(self) -> Self:
        if self._own:
            self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        if self._own:
            self._end(at_once=kind is not None)
            if self._folder is not None:
                self._folder.cleanup()

    def _start(self) -> None:
        from concurrent.futures import ProcessPoolExecutor  # slow to import, and WebAssembly has no processes

        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="microgpt-")
        self._executor = ProcessPoolExecutor(self.count, initializer=_become_worker, initargs=(self._folder.name,))

    def _end(self, at_once: bool) -> None:
        assert self._executor is not None
        if at_once:  # rather than after the trials in progress
            for process in list((getattr(self._executor, "_processes", None) or {}).values()):
                process.kill()  # a run in progress would only note a request to terminate
        self._executor.shutdown(cancel_futures=True)

    def outcomes(self, numbers: Iterable[int], task: Callable[[int], Task]) -> Iterator[tuple[int, Outcome]]:
        """Train trials; (number, outcome) of each as it ends.

        A trial whose worker dies is trained again. If one of our processes dies, nobody can say which of the trials in
        progress was to blame: they are then trained one at a time, and a trial is out if it is alone when its worker
        dies for the second time.
        """
        waiting, suspects, deaths = deque(numbers), deque[int](), Counter[int]()
        running: dict[Future[Outcome], int] = {}
        most = self.count if self._own and self.count else len(waiting)
        is_new = False  # whether the pool has been started again, and nothing has been submitted to it yet
        try:
            while waiting or suspects or running:
                queue, limit = (suspects, 1) if suspects else (waiting, most)
                while queue and len(running) < limit:
                    number = queue.popleft()
                    assert self._executor is not None
                    try:
                        future = self._executor.submit(train_trial, task(number), deaths[number] + 1)
                    except BrokenExecutor:  # a worker has died between two tasks
                        if not self._own or is_new:
                            raise
                        queue.appendleft(number)
                        if running:  # they have failed, too
                            break
                        self._end(at_once=True)
                        self._start()
                        is_new = True
                        continue
                    running[future], is_new = number, False
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                broken = [error for error in map(_error_of, done) if isinstance(error, BrokenExecutor)]
                if broken:
                    if not self._own:
                        raise broken[0]
                    done, _ = wait(running)  # all of them have ended, too
                    self._end(at_once=True)
                    self._start()
                was_alone = len(running) == 1
                for future in sorted(done, key=running.__getitem__):
                    number, error = running.pop(future), _error_of(future)
                    if error is None:
                        yield number, future.result()
                        continue
                    if isinstance(error, WorkerError) or not isinstance(error, Exception):
                        raise error
                    deaths[number] += 1
                    is_ours = isinstance(error, BrokenExecutor)
                    if deaths[number] >= ATTEMPTS and (was_alone or not is_ours):
                        reason = "its worker died" if is_ours else f"{type(error).__name__}: {one_line(error)}"
                        yield number, Outcome("failed", error=f"{reason}, {deaths[number]} times")
                    else:
                        (suspects if is_ours else waiting).append(number)
        finally:
            for future in running:
                future.cancel()

    def measure(self, tasks: list[Task], seconds: float) -> list[tuple[int, float]]:
        """Steps and their seconds of each task, trained for about `seconds`, on all workers at once.

        Both are 0 if a worker dies.
        """
        assert self._executor is not None
        futures = [self._executor.submit(measure_trial, task, seconds) for task in tasks]
        wait(futures)
        if self._own and any(isinstance(_error_of(future), BrokenExecutor) for future in futures):
            self._end(at_once=True)
            self._start()
            return [(0, 0.0) if _error_of(future) else future.result() for future in futures]
        return [future.result() for future in futures]


def _error_of(future: Future[Any]) -> BaseException | None:
    return CancelledError("it was cancelled") if future.cancelled() else future.exception()


def _become_worker(folder: str) -> None:
    """Make a process a worker: Ctrl-C is for the search, and without the search there is nothing to do.

    Temporary files are in `folder`, which the search deletes: a worker may be killed.
    """
    import multiprocessing
    from multiprocessing.connection import wait

    tempfile.tempdir = folder
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
