"""What a training run leaves on disk while it runs: checkpoints, the best model, and a log of metrics."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

from microgpt.arguments import file_name, positive_integer
from microgpt.history import lowest_validation_loss
from microgpt.strict_json import to_json
from microgpt.writing import check_writable, write_atomically

if TYPE_CHECKING:
    from microgpt.training import Run

MINUTE = 60.0


class Recorder:
    """Writes the files of one run, each when it is due.

    Args:
        out: the checkpoint, or None for none.
        checkpoint_every: steps from one checkpoint to the next; None for one a minute. There is one at the end anyhow.
        keep_best: also keep the model of the lowest validation loss, see `best_path`.
        log: the metrics, one JSON object a line, or None for none.
        log_every: steps from one line to the next.

    Attributes:
        files: those that it writes, by the arguments that name them.
        best: where the best model is kept, or None.
        saved_step: the step of the latest checkpoint, or None.
    """

    def __init__(
        self,
        out: str | os.PathLike[str] | None,
        checkpoint_every: int | None,
        keep_best: bool,
        log: str | os.PathLike[str] | None,
        log_every: int,
    ) -> None:
        if out is None and (keep_best or checkpoint_every is not None):
            raise ValueError(f"{'keep_best' if keep_best else 'checkpoint_every'} needs out, the file to write to")
        self.out, self.log = out, log
        self.checkpoint_every = (
            None if checkpoint_every is None else positive_integer("checkpoint_every", checkpoint_every)
        )
        self.best = best_path(out) if out is not None and keep_best else None
        self.log_every = positive_integer("log_every", log_every)
        named = {"out": out, "keep_best": self.best, "log": log}
        self.files = {argument: file_name(argument, path) for argument, path in named.items() if path is not None}
        for path in self.files.values():
            check_writable(path)
        self.saved_step: int | None = None
        self._first_look = 0  # at a validation loss, from which on the best model is looked for
        self._saved_at = time.monotonic()

    def start(self, run: Run) -> None:
        """Begin the log, or of one that was begun, keep what is not beyond the run's step."""
        if self.log is not None:
            lines = _lines_up_to(self.log, run.step) if run.step else []
            write_atomically(self.log, b"".join(lines))
        if self.best is not None and not os.path.exists(self.best):
            self._first_look = len(run.validation_losses)

    def steps_made(self, run: Run, first: int) -> None:
        """The run has gone on from step `first`."""
        if self.log is not None:
            due = range(first + self.log_every - first % self.log_every, run.step + 1, self.log_every)
            self._append(
                {
                    "step": step,
                    "loss": float(run.losses[step - self.log_every : step].mean()),
                    "learning_rate": float(run.rates[step - 1 - first]),
                    "seconds": round(run.seconds, 3),
                }
                for step in due
            )

    def validated(self, run: Run) -> None:
        """The run has another validation loss."""
        step, loss = run.validation_losses[-1]
        if self.log is not None:
            self._append([{"step": step, "validation_loss": loss, "seconds": round(run.seconds, 3)}])
        if self.best is not None and lowest_validation_loss(run.validation_losses[self._first_look :])[0] == step:
            run.model.save(self.best)

    def save_if_due(self, run: Run) -> None:
        """Write the checkpoint, if it is time."""
        if self.out is None or run.step == self.saved_step:
            return
        if self.checkpoint_every is not None:
            due = run.step > 0 and run.step % self.checkpoint_every == 0
        else:
            due = time.monotonic() - self._saved_at > MINUTE
        if due or run.is_over():
            self.save(run)

    def save(self, run: Run) -> None:
        """Write the checkpoint now."""
        if self.out is not None:
            run.save(self.out)
            self.saved_step, self._saved_at = run.step, time.monotonic()

    def _append(self, metrics: Any) -> None:
        try:
            with open(self.log, "a", encoding="utf-8") as file:  # type: ignore[arg-type]
                file.writelines(to_json(line) + "\n" for line in metrics)
        except OSError as error:
            raise ValueError(f"cannot write {self.log}: {error.strerror}") from error


def best_path(out: str | os.PathLike[str]) -> str:
    """Where the best model is kept: `names.best.safetensors` beside `names.safetensors`."""
    root, ending = os.path.splitext(os.fspath(out))
    return f"{root}.best{ending}"


def _lines_up_to(log: str | os.PathLike[str], step: int) -> list[bytes]:
    """The lines of a log that are not beyond `step`; what a run that was killed left of a line is none."""
    try:
        with open(log, "rb") as file:
            lines = file.readlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ValueError(f"cannot read {log}: {error.strerror}") from error
    kept = []
    for line in lines:
        try:
            if json.loads(line)["step"] <= step and line.endswith(b"\n"):
                kept.append(line)
        except (ValueError, TypeError, KeyError):
            pass
    return kept
