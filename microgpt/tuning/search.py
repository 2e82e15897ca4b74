"""A search by successive halving: trials train in rungs, and after each rung the best third goes on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from microgpt.checkpoint import plain
from microgpt.tuning.journal import Journal
from microgpt.tuning.trial import Outcome, SharedData, Task
from microgpt.tuning.workers import Workers

ETA = 3  # of this many trials one goes on, and a rung trains this many times as long as the one before it
MOST_RUNGS = 3


@dataclass
class Trial:
    """A trial of a search: options, and how far they have come.

    Attributes:
        number: 0 for the options as given.
        options: the options of `train` that are given or drawn, and `steps`.
        params: number of parameters of its model; 0 if the options are not those of a model.
        flops_per_step: multiply-adds of a step.
        state: "waiting", "training", "trained" up to a rung, "out" after it, "finished"; or why it cannot go on:
            "too large", "diverged", "failed".
        error: the reason of the last three, or None.
        validation_losses: pairs (steps completed, validation loss in nats), one for each rung. Before its end it is
            the loss of the mean of parameters over the second half of the rung, which is closer to that of its end.
        seconds: duration of its training.
    """

    number: int
    options: dict[str, Any]
    params: int
    flops_per_step: int
    state: str = "waiting"
    error: str | None = None
    validation_losses: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def steps(self) -> int:
        """Number of steps of the whole trial."""
        steps: int = self.options["steps"]
        return steps

    @property
    def validation_loss(self) -> float:
        """The latest validation loss in nats; NaN before the first."""
        return self.validation_losses[-1][1] if self.validation_losses else math.nan

    @property
    def place(self) -> tuple[float, float, int]:
        """The key of a ranking: trials that have come farthest first, then by validation loss."""
        return -self.completed / max(1, self.steps), self.validation_loss, self.number

    @property
    def completed(self) -> int:
        """Number of steps completed."""
        return self.validation_losses[-1][0] if self.validation_losses else 0


@dataclass(frozen=True)
class TuningProgress:
    """The progress of a search: what `tune` passes to its `progress` callback.

    Attributes:
        trials: all trials.
        rung, rungs: the rung in which trials train, counted from 1, and the number of rungs.
        flops: multiply-adds of a trial that trains to its end.
        workers: number of trials that are trained at once, or None if only the executor knows.
        trial: the trial that has just come to the end of a rung, or None.
    """

    trials: list[Trial]
    rung: int
    rungs: int
    flops: int
    workers: int | None
    trial: Trial | None = None


OnTuningProgress = Callable[[TuningProgress], object]


def count_rungs(trials: int) -> int:
    """Number of rungs: as many as leave a trial to the last."""
    rungs = 1
    while rungs < MOST_RUNGS and trials >= ETA**rungs:
        rungs += 1
    return rungs


def steps_at(rung: int, rungs: int, steps: int) -> int:
    """The step to which a trial of so many steps trains in a rung, counted from 0."""
    return max(1, steps // int(ETA ** (rungs - 1 - rung)))


class Search:
    """The rungs of a search.

    Args:
        trials: all trials, in order of their numbers. Those that are not "waiting" take no part.
        data, backend: see `Task`.
        journal: the files of the search; what its entries tell is not computed again.
        flops: multiply-adds of a trial that trains to its end.
        progress: see `tune`.
    """

    def __init__(
        self,
        trials: list[Trial],
        data: SharedData,
        backend: str,
        journal: Journal,
        flops: int,
        progress: OnTuningProgress | None,
    ) -> None:
        self.trials, self.data, self.backend, self.journal = trials, data, backend, journal
        self.flops, self.progress = flops, progress
        self.rungs = count_rungs(len(trials))

    def run(self, workers: Workers) -> Trial:
        """Train, rung by rung; the best trial. `ValueError` if none finishes."""
        ranked = [trial for trial in self.trials if trial.state == "waiting"]
        for trial in self.trials:
            if trial.state != "waiting":
                self._log(0, trial)
        for rung in range(self.rungs):
            self._report(workers, rung)
            going_on = ranked if rung == 0 else ranked[: max(1, len(ranked) // ETA)]
            others = ranked[len(going_on) :]
            for trial in others:
                trial.state = "out"
            finished = self._train(workers, rung, going_on)
            while others and not finished:  # all of them have failed
                finished, others = self._train(workers, rung, others[:1]), others[1:]
            if not finished:
                raise ValueError(f"no trial has finished; {self._why()}")
            for trial in ranked:
                self.journal.drop(trial.number, rung - 1)
            ranked = sorted(finished, key=lambda trial: (trial.validation_loss, trial.number))
        for trial in ranked:
            trial.state = "finished"
        self._report(workers, self.rungs - 1)
        return ranked[0]

    def best_so_far(self) -> tuple[Trial, bytes] | None:
        """The trial with the lowest latest validation loss, and its checkpoint; None if there is no checkpoint."""
        with_loss = [trial for trial in self.trials if trial.validation_losses]
        for trial in sorted(with_loss, key=lambda trial: (trial.validation_loss, trial.number)):
            checkpoint = self.journal.checkpoint(trial.number, len(trial.validation_losses) - 1)
            if checkpoint is not None:
                return trial, checkpoint
        return None

    def task(self, trial: Trial, rung: int) -> Task:
        """The task of training a trial up to a rung."""
        checkpoint = self.journal.checkpoint(trial.number, rung - 1) if rung else None
        begin = steps_at(rung - 1, self.rungs, trial.steps) if rung else 0
        until = steps_at(rung, self.rungs, trial.steps)
        return Task(self.data, trial.options, self.backend, begin, until, checkpoint)

    def _train(self, workers: Workers, rung: int, trials: list[Trial]) -> list[Trial]:
        """Train these trials up to a rung; those that get there."""
        by_number = {trial.number: trial for trial in trials}
        known = {number for number in by_number if (number, rung) in self.journal.entries}
        for number in known:
            self._restore(by_number[number], self.journal.entries[number, rung])

        def task(number: int) -> Task:
            by_number[number].state = "training"
            self._report(workers, rung)
            return self.task(by_number[number], rung)

        for number, outcome in workers.outcomes([number for number in by_number if number not in known], task):
            trial = by_number[number]
            self._conclude(trial, rung, outcome)
            self._log(rung, trial, outcome.checkpoint)
            self._report(workers, rung, trial)
        return [trial for trial in trials if trial.state == "trained"]

    def _conclude(self, trial: Trial, rung: int, outcome: Outcome) -> None:
        trial.state, trial.error = outcome.state, outcome.error
        if outcome.validation_loss is not None:
            step = steps_at(rung, self.rungs, trial.steps)
            trial.validation_losses.append((step, outcome.validation_loss))
            trial.seconds = outcome.seconds

    def _restore(self, trial: Trial, entry: dict[str, Any]) -> None:
        outcome = Outcome(entry["state"], entry["validation_loss"], entry["seconds"], error=entry.get("error"))
        self._conclude(trial, entry["rung"], outcome)

    def _log(self, rung: int, trial: Trial, checkpoint: bytes | None = None) -> None:
        if (trial.number, rung) in self.journal.entries:
            return
        trained = trial.state == "trained"
        entry = {
            "trial": trial.number,
            "rung": rung,
            "state": trial.state,
            "steps": trial.completed if trained else 0,
            "flops": trial.completed * trial.flops_per_step if trained else 0,
            "params": trial.params,
            "validation_loss": trial.validation_loss if trained else None,
            "seconds": round(trial.seconds, 3),
            "options": plain(shown_options(trial.options)),
        }
        if trial.error is not None:
            entry["error"] = trial.error
        self.journal.add(entry, checkpoint)

    def _report(self, workers: Workers, rung: int, trial: Trial | None = None) -> None:
        if self.progress is not None:
            self.progress(TuningProgress(self.trials, rung + 1, self.rungs, self.flops, workers.count, trial))

    def _why(self) -> str:
        """The reason why no trial has finished: that of each kind of failure, with its number."""
        errors: dict[str, list[int]] = {}
        for trial in self.trials:
            errors.setdefault(trial.error or trial.state, []).append(trial.number)
        error, numbers = max(errors.items(), key=lambda item: len(item[1]))
        return f"{len(numbers)} of {len(self.trials)}, such as trial {numbers[0]}: {error}"


def shown_options(options: dict[str, Any]) -> dict[str, Any]:
    """Options that are not None."""
    return {name: value for name, value in options.items() if value is not None}
