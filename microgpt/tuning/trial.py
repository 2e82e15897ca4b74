"""A trial's training, from one rung of a search to the next: what a worker does, wherever it runs."""

from __future__ import annotations

import math
import os
import pickle
import platform
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from microgpt import __version__
from microgpt.data.corpus import Corpus, read_corpus
from microgpt.engine import backend as backends
from microgpt.training.run import DivergedError, Run
from microgpt.training.train import prepare

SNAPSHOTS = 9  # of parameters, whose mean ranks a trial


class WorkerError(ValueError):
    """A worker cannot take part in the search: it lacks the data, or has another version or backend."""


@dataclass(frozen=True)
class SharedData:
    """The data of a search, as they reach a worker.

    Attributes:
        fingerprint: hash of the data, see `Corpus.fingerprint`.
        files: absolute paths, which the worker reads itself; None for the names that come with the package.
        corpus: the pickled corpus instead, of data that are not in files.
        format, tokenizer: those of the corpus.
    """

    fingerprint: str
    files: tuple[str, ...] | None
    corpus: bytes | None
    format: str
    tokenizer: Any

    def load(self) -> Corpus:
        """The data, read once in each process. `WorkerError` if they cannot be read, or are others."""
        with _lock:
            if self.fingerprint not in _corpora:
                corpus = self._read()
                _corpora.clear()  # the data of an earlier search
                _corpora[self.fingerprint] = corpus
            return _corpora[self.fingerprint]

    def keep(self, corpus: Corpus) -> None:
        """Keep the corpus in this process: a forked worker need not read it again."""
        with _lock:
            _corpora.clear()
            _corpora[self.fingerprint] = corpus

    def _read(self) -> Corpus:
        if self.corpus is not None:
            corpus: Corpus = pickle.loads(self.corpus)
            return corpus
        paths = None if self.files is None else [Path(file) for file in self.files]
        try:
            corpus = read_corpus(paths, self.format, self.tokenizer)
        except ValueError as error:
            raise WorkerError(f"a worker on {platform.node()} {error}") from None
        if corpus.fingerprint() != self.fingerprint:
            raise WorkerError(f"data must be the same for all workers, but {corpus.name} on {platform.node()} differs")
        return corpus


_lock = threading.Lock()  # workers may be threads
_corpora: dict[str, Corpus] = {}  # at most one, by fingerprint


@dataclass(frozen=True)
class Task:
    """Everything that a worker needs to train a trial up to a step. It can be pickled.

    Attributes:
        data: the data of the search.
        options: the options of `train`, `steps` among them.
        backend: the backend, "compiled" or "reference".
        begin, until: the steps between which it trains; without a checkpoint it trains from 0.
        checkpoint: the file in which the trial was saved before, or None to begin; its content, not its path, since
            workers share no folder.
        version: the version of the package.
    """

    data: SharedData
    options: dict[str, Any]
    backend: str
    begin: int
    until: int
    checkpoint: bytes | None
    version: str = __version__


@dataclass(frozen=True)
class Outcome:
    """The result of a `Task`. It can be pickled.

    Attributes:
        state: "trained"; "diverged" if the loss or a parameter stopped being finite; "failed" for other reasons.
        validation_loss: in nats, see `_train_rung`; None unless trained.
        seconds: duration of the trial's training so far.
        checkpoint: the file in which the trial is saved, or None.
        error: the reason why it is not trained, or None.
    """

    state: str
    validation_loss: float | None = None
    seconds: float = 0.0
    checkpoint: bytes | None = None
    error: str | None = None


def train_trial(task: Task, attempt: int = 1) -> Outcome:
    """Train a trial up to a step, on one thread, and validate it there.

    The result depends on `task` alone; another `attempt` only makes it another call, for executors that keep the
    results of calls. `WorkerError` if this worker is of no use for any trial.
    """
    corpus = _ready(task)
    with tempfile.TemporaryDirectory(prefix="microgpt-") as folder:
        path = os.path.join(folder, "trial.safetensors")
        if task.checkpoint is not None:
            Path(path).write_bytes(task.checkpoint)
        try:
            run = prepare(
                corpus,
                out=path,
                resume=True,
                eval_every=task.options["steps"],
                backend=task.backend,
                threads=1 if task.backend == "compiled" else None,
                **task.options,
            )
            loss = _train_rung(run, task.begin, task.until)
        except DivergedError as error:
            return Outcome("diverged", error=str(error))
        except (ValueError, MemoryError) as error:
            return Outcome("failed", error=str(error) or "there is not enough memory")
        if not math.isfinite(loss):
            return Outcome("diverged", error=f"the validation loss is {loss:g}")
        return Outcome("trained", loss, run.seconds, Path(path).read_bytes())


def _train_rung(run: Run, begin: int, until: int) -> float:
    """Train a rung, to the step `until`, validate and save; the loss by which the trial is ranked.

    At the end of a run it is the validation loss. Before, that would prefer low learning rates, since high ones have
    yet to fall: it is the loss of the mean of parameters over the second half of the rung, which anticipates their
    fall (Izmailov et al., 2018).
    """
    assert run.steps is not None
    if until >= run.steps:
        run.train(until=until)
        return run.validation_losses[-1][1]
    matrices = run.model.state_dict()
    means = {name: np.zeros(matrix.shape) for name, matrix in matrices.items()}
    for i in range(SNAPSHOTS):
        run.advance(until - (until - begin) * (SNAPSHOTS - 1 - i) // (2 * (SNAPSHOTS - 1)))
        for name, matrix in matrices.items():
            means[name] += matrix / SNAPSHOTS
    run.train(until=until)
    latest = {name: matrix.copy() for name, matrix in matrices.items()}
    run.model.load_state_dict(means)
    loss = run.held_out_loss()
    run.model.load_state_dict(latest)
    return loss


def measure_trial(task: Task, seconds: float) -> tuple[int, float]:
    """Train a trial from its beginning for about `seconds`; its steps, and the seconds that they took."""
    corpus = _ready(task)
    options = {**task.options, "val_fraction": 0.0, "time": seconds}
    del options["steps"]
    options.pop("eval_tokens", None)
    try:
        run = prepare(
            corpus,
            backend=task.backend,
            threads=1 if task.backend == "compiled" else None,
            **options,
        )
        run.train()
    except (ValueError, MemoryError):
        return 0, 0.0
    return run.step, run.seconds


def _ready(task: Task) -> Corpus:
    """The data, if this worker can train the trial."""
    if task.version != __version__:
        raise WorkerError(f"workers must have microgpt {task.version}, but {platform.node()} has version {__version__}")
    try:
        backends.choose(task.backend)
    except ImportError as error:
        raise WorkerError(f"a worker on {platform.node()} lacks the backend of the search: {error}") from None
    return task.data.load()
