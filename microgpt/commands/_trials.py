"""The trials of `microgpt tune`, as it shows them: a live table on a terminal, or a line for each in a log."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from microgpt.training.recipe import Recipe, defaults_of
from microgpt.tuning.search import Trial, TuningProgress

PAUSE = 0.1  # least seconds between two pictures of the table
FRAME = 4  # lines of a terminal that are left for the rest
COLUMNS = "trial  validation loss      params               steps  state     options that differ from trial 0"

Watcher = Callable[[TuningProgress], None]


@contextlib.contextmanager
def live_table() -> Iterator[Watcher]:
    """Show all trials on standard error, a terminal, the best first, as they train. The table vanishes at the end."""
    lines, drawn_at, begin = 0, 0.0, time.monotonic()

    def clear() -> None:
        sys.stderr.write(f"\x1b[{lines}F\x1b[J" if lines else "")

    def watch(progress: TuningProgress) -> None:
        nonlocal lines, drawn_at
        now = time.monotonic()
        if now - drawn_at < PAUSE and progress.trial is not None:
            return
        drawn_at = now
        columns, height = shutil.get_terminal_size()
        ranked = sorted(progress.trials, key=rank)
        shown = [COLUMNS, *(row(trial, progress.trials[0]) for trial in ranked[: max(1, height - FRAME)])]
        clear()
        shown.append(f"{state_of(progress)}, {now - begin:.0f} s")
        sys.stderr.write("".join(f"{line:.{max(1, columns - 1)}}\n" for line in shown))
        sys.stderr.flush()
        lines = len(shown)

    try:
        yield watch
    finally:
        clear()
        sys.stderr.flush()


def print_trial(progress: TuningProgress) -> None:
    """Print the trial that has come to the end of a rung, if there is one."""
    if progress.trial is not None:
        print(row(progress.trial, progress.trials[0]), flush=True)


def rank(trial: Trial) -> tuple[bool, float, float, int]:
    """The order in the table: that of `Trial.place`, with trials that cannot go on at the end."""
    return trial.error is not None, *trial.place


def state_of(progress: TuningProgress) -> str:
    """The rung, and how many of its trials have come to its end."""
    states = [trial.state for trial in progress.trials]
    training, waiting = states.count("training"), states.count("waiting")
    left = f"{training} training, {waiting} waiting" if waiting else f"{training} training"
    return f"rung {progress.rung} of {progress.rungs}: {left}"


def row(trial: Trial, first: Trial) -> str:
    """A trial in one line; `first` is trial 0."""
    loss = f"{trial.validation_loss:.4f}" if trial.validation_losses else ""
    steps = f"{trial.completed:,}/{trial.steps:,}"
    about = trial.error or differences(trial, first)
    return f"{trial.number:>5}  {loss:>15}  {trial.params:>10,}  {steps:>18}  {trial.state:<9} {about}".rstrip()


def differences(trial: Trial, first: Trial) -> str:
    """The options in which a trial differs from trial 0, apart from its steps."""
    if trial.number == 0:
        return "(as given)"
    defaults: dict[str, Any] = defaults_of(Recipe)
    return ", ".join(
        f"{name} {value}"
        for name, value in trial.options.items()
        if name != "steps" and value != first.options.get(name, defaults[name])
    )
