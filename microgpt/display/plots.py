"""Loss curves, drawn by matplotlib."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from microgpt.utils.arguments import ending
from microgpt.utils.files import check_writable, write_atomically
from microgpt.utils.optional import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from microgpt.history import TrainingHistory

# File formats, each with the metadata that matplotlib would add about itself and the time: left out, so that the same
# history gives the same bytes.
FORMATS = {
    "png": ("Software",),
    "svg": ("Date", "Creator", "Format", "Type"),
    "pdf": ("CreationDate", "Creator", "Producer"),
}
DRAWN_POINTS = 1000  # per curve: as many as a figure can show, and its file stays small
INK, TRAINING, VALIDATION = "#3a3b3c", "#4080eb", "#e0662f"
STYLE: dict[str, Any] = {
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",  # keep text as text, to be searched, copied and read aloud
    "svg.hashsalt": "microgpt",  # ids are the same every time
}


def check_plot_path(path: str | os.PathLike[str]) -> None:
    """Raise before training the errors that `plot_losses` would raise after it."""
    plot_format(path)
    check_writable(path)
    require("matplotlib", "plot")


def plot_losses(history: TrainingHistory, path: str | os.PathLike[str]) -> None:
    """Draw the losses of a training run, in nats, over its steps: training, its running mean, and validation.

    `path` ends in .png, .svg or .pdf. `ValueError` names a path that does not, or cannot be written; `ImportError`
    says what to install if matplotlib is missing.
    """
    format = plot_format(path)
    check_writable(path)
    write_atomically(path, _draw(history, format))


def losses_svg(history: TrainingHistory) -> str:
    """The figure of `plot_losses` as an <svg> element, whose ink has the colour of the surrounding text."""
    document = _draw(history, "svg", transparent=True).decode()
    return document[document.index("<svg") :].replace(INK, "currentColor")


def plot_format(path: str | os.PathLike[str]) -> str:
    """The format that the ending of a path names; `ValueError` if it is none of `FORMATS`."""
    return ending("a plot", path, tuple(FORMATS))


def _draw(history: TrainingHistory, format: str, **options: Any) -> bytes:
    matplotlib = require("matplotlib", "plot")
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 4), layout="constrained")
        axes = figure.add_subplot(xlabel="step", ylabel="loss (nats)")
        if len(history.losses):
            axes.plot(*_outline(history.losses), color=TRAINING, alpha=0.35, linewidth=0.6, label="training")
            steps, means, window = _running_mean(history.losses)
            axes.plot(steps, means, color=TRAINING, linewidth=1.8, label=f"training, mean of {window:,}")
        if history.validation_losses:
            evaluated, losses = zip(*history.validation_losses)
            axes.plot(evaluated, losses, "o-", color=VALIDATION, linewidth=1.2, markersize=4, label="validation")
        if axes.lines:
            figure.legend(loc="outside upper right", ncols=3, frameon=False)
        axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True))
        axes.margins(x=0.01)
        return rendered(figure, format, **options)


def rendered(figure: Figure, format: str, **options: Any) -> bytes:
    """A figure as the content of a file."""
    content = io.BytesIO()
    figure.savefig(content, format=format, dpi=150, metadata=dict.fromkeys(FORMATS[format]), **options)
    return content.getvalue()


def _outline(losses: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Steps and losses of a line that looks like all of them: if there are many, the extremes of each interval."""
    if len(losses) <= DRAWN_POINTS:
        return np.arange(1, len(losses) + 1), losses
    starts = np.arange(DRAWN_POINTS // 2, dtype=np.int64) * len(losses) // (DRAWN_POINTS // 2)
    bounds = [np.minimum.reduceat(losses, starts), np.maximum.reduceat(losses, starts)]
    return np.repeat(starts + 1, 2), np.stack(bounds, axis=1).ravel()


def _running_mean(losses: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64], int]:
    """Steps, the mean loss of a window that ends at each, and the window: a twentieth of all steps."""
    window = max(1, len(losses) // 20)
    ends = np.unique(np.linspace(window, len(losses), DRAWN_POINTS).astype(np.int64))
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    return ends, (sums[ends] - sums[ends - window]) / window, window
