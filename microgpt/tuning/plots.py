"""Figures of a search, drawn by matplotlib."""

from __future__ import annotations

import os
from collections.abc import Sequence

from microgpt.display.curves import TRAINING, VALIDATION
from microgpt.display.plots import INK, STYLE, plot_format, rendered
from microgpt.tuning.search import Trial
from microgpt.utils.files import write_atomically
from microgpt.utils.optional import require


def plot_trials(trials: Sequence[Trial], path: str | os.PathLike[str]) -> None:
    """Draw the validation losses of a search, in nats: over the compute, and over the number of parameters.

    On the left, each trial is a line from rung to rung, in multiply-adds; on the right, a point at its latest loss. The
    front of best models joins those that no smaller model equals. `path` is as in `plot_losses`, with its errors.
    """
    format = plot_format(path)
    matplotlib = require("matplotlib", "plot")
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    shown = sorted((trial for trial in trials if trial.validation_losses), key=lambda trial: trial.number)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 4.5), layout="constrained")
        compute, sizes = figure.subplots(1, 2, sharey=True)
        compute.set(xlabel="multiply-adds", ylabel="validation loss (nats)", xscale="log")
        sizes.set(xlabel="parameters", xscale="log")
        for axes in (compute, sizes):
            axes.xaxis.set_minor_formatter(NullFormatter())
        best = min(shown, key=lambda trial: trial.place, default=None)
        for trial in shown:
            flops = [step * trial.flops_per_step for step, _ in trial.validation_losses]
            losses = [loss for _, loss in trial.validation_losses]
            style = {"color": VALIDATION, "zorder": 3} if trial is best else {"color": TRAINING, "alpha": 0.5}
            compute.plot(flops, losses, "o-", linewidth=1.2, markersize=4, **style)
            sizes.plot(trial.params, trial.validation_loss, "o", markersize=5, **style)
            if trial is best:
                text = {"xytext": (6, -3), "textcoords": "offset points", "color": VALIDATION}
                compute.annotate(f"trial {trial.number}", (flops[-1], losses[-1]), **text)
        front = best_models(shown)
        ends = [*front[-1:], *sorted(shown, key=lambda trial: trial.params)[-1:]]  # the last best is as good up to here
        sizes.step(
            [trial.params for trial in front + ends[-1:]],
            [trial.validation_loss for trial in front + ends[:1]],
            where="post",
            color=INK,
            linewidth=1,
            label="front of best models",
        )
        if front:
            sizes.legend(frameon=False)
        write_atomically(path, rendered(figure, format))


def best_models(trials: Sequence[Trial]) -> list[Trial]:
    """The trials whose latest validation loss is below those of all smaller models, from small to large."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda trial: (trial.params, trial.validation_loss, trial.number)):
        if not front or trial.validation_loss < front[-1].validation_loss:
            front.append(trial)
    return front
