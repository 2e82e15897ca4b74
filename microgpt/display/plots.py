"""Files with figures of losses, drawn by matplotlib."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any

from microgpt.display.curves import TRAINING, VALIDATION, outline, running_mean
from microgpt.utils.arguments import ending
from microgpt.utils.files import check_writable, write_atomically
from microgpt.utils.optional import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from microgpt.history import TrainingHistory

# File formats, each with the metadata that matplotlib would add about itself and the time: left out, so that the same
# history gives the same bytes.
FORMATS = {
    "png": ("Software",),
    "svg": ("Date", "Creator", "Format", "Type"),
    "pdf": ("CreationDate", "Creator", "Producer"),
}
INK = "#3a3b3c"
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
            axes.plot(*outline(history.losses), color=TRAINING, alpha=0.35, linewidth=0.6, label="training")
            steps, means, window = running_mean(history.losses)
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
