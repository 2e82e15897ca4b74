"""The files of a training run: its checkpoint, the best model, a log of metrics. `Run` decides when to write them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from microgpt.checkpoint import save
from microgpt.utils.arguments import file_name, positive_integer
from microgpt.utils.files import check_writable, to_json, write_atomically

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from microgpt.model import GPT
    from microgpt.optimizer import Adam

LOG_EVERY = 10  # steps, by default


class Recorder:
    """Writes the files of one run.

    Args:
        out: the checkpoint, or None for none.
        keep_best: also keep the best model, see `best_path`.
        log: the metrics, one JSON object per line, or None for none.
        log_every: steps from one line to the next; None for `LOG_EVERY`. The last line may cover fewer.

    Attributes:
        files: the paths of the files to write, by argument.
        best: the path of the best model, or None.

    Methods do nothing if their file is None. `ValueError` names an argument without the file it needs, or a file that
    cannot be written.
    """

    def __init__(
        self,
        out: str | os.PathLike[str] | None,
        keep_best: bool,
        log: str | os.PathLike[str] | None,
        log_every: int | None,
    ) -> None:
        if keep_best and out is None:
            raise ValueError("keep_best needs out, the file to write to")
        if log_every is not None and log is None:
            raise ValueError("log_every needs log, the file to write to")
        self.out, self.log = out, log
        self.best = best_path(out) if out is not None and keep_best else None
        self.log_every = LOG_EVERY if log_every is None else positive_integer("log_every", log_every)
        named = {"out": out, "keep_best": self.best, "log": log}
        self.files = {argument: file_name(argument, path) for argument, path in named.items() if path is not None}
        for path in self.files.values():
            check_writable(path)

    def start_log(self, step: int, is_over: bool) -> None:
        """Begin the log; for a run resumed after `step`, keep the lines up to it.

        The line that `log_rest` wrote at that step is dropped, unless the run is over: the next line covers its steps.
        """
        if self.log is None:
            return
        lines = _lines_up_to(self.log, step) if step else []
        if step % self.log_every and not is_over:
            lines = [line for line in lines if not (line["step"] == step and "loss" in line)]
        write_atomically(self.log, "".join(map(_to_line, lines)).encode())

    def log_steps(self, begin: int, losses: NDArray[Any], learning_rates: NDArray[Any], seconds: float) -> None:
        """Log the steps from `begin`, counted from 0: `losses` has all steps so far, `learning_rates` the new ones."""
        if self.log is None:
            return
        every = self.log_every
        self._append(
            _steps_line(step, losses[step - every : step], float(learning_rates[step - 1 - begin]), seconds)
            for step in range(begin + every - begin % every, len(losses) + 1, every)
        )

    def log_rest(self, losses: NDArray[Any], learning_rate: float, seconds: float) -> None:
        """Log the last steps of a run if they are too few for a line of `log_every`."""
        rest = len(losses) % self.log_every
        if self.log is not None and rest:
            self._append([_steps_line(len(losses), losses[-rest:], learning_rate, seconds)])

    def log_validation(self, step: int, loss: float, seconds: float) -> None:
        """Log a validation loss."""
        if self.log is not None:
            self._append([{"step": step, "validation_loss": loss, "seconds": round(seconds, 3)}])

    def save_checkpoint(self, model: GPT, optimizer: Adam) -> None:
        """Write the checkpoint."""
        if self.out is not None:
            save(self.out, model, optimizer)

    def save_best(self, model: GPT) -> None:
        """Write the best model."""
        if self.best is not None:
            model.save(self.best)

    def _append(self, metrics: Iterable[dict[str, Any]]) -> None:
        try:
            with open(self.log, "a", encoding="utf-8") as file:  # type: ignore[arg-type]
                file.writelines(map(_to_line, metrics))
        except OSError as error:
            raise ValueError(f"cannot write {self.log}: {error.strerror}") from error


def best_path(out: str | os.PathLike[str]) -> str:
    """The path of the best model: `names.best.safetensors` next to `names.safetensors`."""
    root, ending = os.path.splitext(os.fspath(out))
    return f"{root}.best{ending}"


def _steps_line(step: int, losses: NDArray[Any], learning_rate: float, seconds: float) -> dict[str, Any]:
    return {
        "step": step,
        "loss": float(losses.mean()),
        "learning_rate": learning_rate,
        "seconds": round(seconds, 3),
    }


def _to_line(metrics: dict[str, Any]) -> str:
    return to_json(metrics) + "\n"


def _lines_up_to(log: str | os.PathLike[str], step: int) -> list[dict[str, Any]]:
    """The lines of a log up to `step`; a partial last line, left by a killed run, is dropped."""
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
            metrics = json.loads(line)
            if metrics["step"] <= step and line.endswith(b"\n"):
                kept.append(metrics)
        except (ValueError, TypeError, KeyError):
            pass
    return kept
