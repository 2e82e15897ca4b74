"""The result of a search, and the command that gives its model."""

from __future__ import annotations

import os
import shlex
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from microgpt.checkpoint import plain, read
from microgpt.model import GPT, load
from microgpt.training.recipe import Recipe
from microgpt.tuning.search import Trial


@dataclass(frozen=True)
class TuneResult:
    """The result of `tune`.

    Attributes:
        model: the model of the best trial, with its tokenizer and its history.
        trials: all trials, in order of their numbers.
        best: the best trial.
        flops: the compute of a trial that trains to its end, in multiply-adds: with it `tune` repeats the search.
        files: the files of the data, as they were named; None for data in memory.
        dataset: the name of the data set of the package, if it is one.
    """

    model: GPT
    trials: list[Trial]
    best: Trial
    flops: int
    files: tuple[str, ...] | None
    dataset: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The options with which `train` gives the same model, bit for bit."""
        return dict(self.best.options)

    @property
    def command(self) -> str:
        """The command line that gives the same model, bit for bit."""
        return train_command(self)

    def _repr_html_(self) -> str:
        """HTML for notebooks: tables of the model, its options and the trials."""
        from microgpt.display.html import facts_table  # imported here because only notebooks need it

        ranked = sorted((trial for trial in self.trials if trial.validation_losses), key=lambda trial: trial.place)
        trials = {
            f"trial {trial.number}": f"{trial.validation_loss:.4f} nats after {trial.completed:,} of {trial.steps:,} "
            f"steps, {trial.params:,} parameters"
            for trial in ranked
        }
        options = {name: str(value) for name, value in self.options.items()}
        return (
            self.model._repr_html_()
            + facts_table(f"Options of trial {self.best.number}", options)
            + facts_table("Trials", trials)
        )


def train_command(result: TuneResult, out: object = None) -> str:
    """The `microgpt train` that trains the best trial; only options that differ from their defaults are named."""
    files = ["FILE"] if result.files is None else map(shlex.quote, result.files)
    words = ["microgpt", "train", *(files if result.dataset is None else ["--data", result.dataset])]
    for field in fields(Recipe):
        value = result.best.options.get(field.name)
        if value is not None and value != field.default:
            shown = os.fspath(value) if isinstance(value, os.PathLike) else value
            words += ["--" + field.name.replace("_", "-"), shlex.quote(str(shown))]
    if out is not None:
        words += ["--out", shlex.quote(str(out))]
    return " ".join(words)


def read_model(checkpoint: bytes, backend: str) -> GPT:
    """The model in the content of a file."""
    with tempfile.TemporaryDirectory(prefix="microgpt-") as folder:
        path = Path(folder, "model.safetensors")
        path.write_bytes(checkpoint)
        return load(path, backend=backend)


def is_checkpoint_of(trial: Trial, path: str | os.PathLike[str], fingerprint: str) -> bool:
    """Whether a file is the checkpoint of this trial at its end, on these data."""
    try:
        content = read(path)
    except ValueError:
        return False
    progress, history = content.progress, content.history
    return (
        progress is not None
        and history is not None
        and (progress.step, history.fingerprint) == (trial.steps, fingerprint)
        and history.options == plain(Recipe(**trial.options).options())
    )
