"""The progress of `microgpt train`: a live line on a terminal, or a few lines in a log."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator

from tqdm import tqdm

from microgpt.history import TrainingProgress
from microgpt.training.run import Run

LINES = 10  # of progress in a run, without a terminal
LINE_PAUSE = 0.5  # least seconds between validation lines on a terminal

Watcher = Callable[[TrainingProgress], None]


@contextlib.contextmanager
def live_line(run: Run) -> Iterator[Watcher]:
    """Show step, losses, tokens/s and the time left on one line of the terminal.

    Each validation is printed on a line of its own, except on a terminal those in quick succession.
    """
    left = "{remaining} left" if run.steps is not None else "{elapsed}"
    layout = "step {n_fmt}" + ("/{total_fmt}" if run.steps is not None else "") + "{postfix} | " + left
    first, shown, is_terminal = run.step, latest_validation(run), sys.stdout.isatty()
    unprinted, printed_at = None, -math.inf
    tqdm.monitor_interval = 0  # no monitor thread: with miniters=1 it has nothing to do
    with tqdm(total=run.steps, initial=first, bar_format=layout, leave=False, miniters=1) as line:

        def watch(progress: TrainingProgress) -> None:
            nonlocal shown, unprinted, printed_at
            if progress.validation != shown:
                shown, unprinted = progress.validation, validation_line(progress)
                if not is_terminal or time.monotonic() - printed_at >= LINE_PAUSE:
                    tqdm.write(unprinted, file=sys.stdout)
                    unprinted, printed_at = None, time.monotonic()
            if progress.step == first:
                return
            validation = "" if shown is None else f"  validation loss {shown[1]:.4f}"
            speed = f"{progress.tokens_per_second:,.0f} tokens/s"
            line.set_postfix_str(f"loss {progress.loss:.4f}{validation} | {speed}", refresh=False)
            line.update(progress.step - line.n)

        yield watch
        if unprinted is not None:
            tqdm.write(unprinted, file=sys.stdout)


@contextlib.contextmanager
def printed_lines(run: Run) -> Iterator[Watcher]:
    """Print a line now and then, for a log."""
    printed, shown = lines_due(run, run.step), latest_validation(run)

    def watch(progress: TrainingProgress) -> None:
        nonlocal printed, shown
        if progress.validation != shown:
            print(validation_line(progress), flush=True)
            shown = progress.validation
        due = lines_due(run, progress.step)
        if due > printed:
            printed = due
            of_all = f"  {progress.seconds:.1f} s" if progress.steps is None else f"/{progress.steps:,}"
            print(f"step {progress.step:,}{of_all}  loss {progress.loss:.4f}", file=sys.stderr)

    yield watch


def latest_validation(run: Run) -> tuple[int, float] | None:
    """Step and loss of the latest validation, which the run before an interruption may have printed already."""
    return run.validation_losses[-1] if run.validation_losses else None


def lines_due(run: Run, step: int) -> int:
    """Number of the LINES due after this step: they are spread over the steps, or over the time."""
    if run.recipe.time is not None:
        return int(min(LINES, LINES * run.seconds / run.recipe.time))
    return LINES * step // (run.steps or 1)


def validation_line(progress: TrainingProgress) -> str:
    """The line printed after a validation."""
    assert progress.validation is not None
    step, loss = progress.validation
    return f"step {step:>7,}  {progress.seconds:6.1f} s  validation loss {loss:.4f}"
