"""Loss curves: the points to draw of a run of any length, and their drawing in pages and notebooks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from microgpt.display.html import escaped

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from microgpt.history import TrainingHistory

DRAWN_POINTS = 1000  # per curve: as many as a figure can show, and its file stays small
TRAINING, VALIDATION = "#4080eb", "#e0662f"  # colours
# Colours of runs that are compared: as many as one can tell apart, in light and in dark.
RUN_COLOURS = (TRAINING, VALIDATION, "#2f9e5b", "#b055d6", "#b98500", "#d6457a", "#1496a8", "#857a6c")
VALIDATED = "validation"  # the name of a curve
Line = Literal["faint", "thin", "clear"]  # behind another, beside others, and the one to look at
LINES: dict[Line, str] = {
    "faint": 'stroke-width="1" opacity="0.35"',
    "thin": 'stroke-width="1.25" opacity="0.6"',
    "clear": 'stroke-width="2.25"',
}
LEVELS, STEPS = 6, 5  # most numbers at the axes, about
STYLE = (
    "display: block; width: calc(100% - 4em); max-width: none; height: 18em; margin: 3em 1em 3.2em 3em; "
    "font-size: 0.8125rem; overflow: visible"
)


@dataclass(frozen=True)
class Curve:
    """A curve of losses, in nats, over steps."""

    name: str
    colour: str
    line: Line
    steps: NDArray[np.intp]
    losses: NDArray[np.float64]


@dataclass(frozen=True)
class Axes:
    """The range of a plot: steps from 0 to `end`, and losses from `low` to `high`."""

    end: int
    low: float
    high: float

    def across(self, step: float) -> str:
        """The place of a step from the left, as SVG has it."""
        return f"{100 * step / self.end:.4g}%"

    def down(self, loss: float) -> str:
        """The place of a loss from the top."""
        return f"{100 * (self.high - loss) / (self.high - self.low):.4g}%"


def losses_svg(history: TrainingHistory, *, steps: int | None = None, guessing: float | None = None) -> str:
    """An <svg> element with the losses of a run, in nats, over its steps: training, its running mean, and validation.

    It is as wide as its place, and its text has the font and the colour of the text around it, but always the same
    size. Losses that are not finite are left out.

    Args:
        history: the losses.
        steps: the last step of the axis, for a run that goes on; by default that of `history`.
        guessing: the loss of guessing blindly, for a line of its own.
    """
    return _drawing(_curves(history), steps or 0, guessing, is_named=True)


def comparison_svg(histories: Mapping[str, TrainingHistory], *, guessing: float | None = None) -> str:
    """The same for several runs, each in one of `RUN_COLOURS`: validation, and the running mean of training.

    Lines of training are thin, unless no run has validation losses. The names of the runs are not in the drawing, but
    in its description.
    """
    has_validation = any(history.validation_losses for history in histories.values())
    curves = [
        replace(
            curve,
            name=f"{name}, {curve.name}",
            colour=colour,
            line="thin" if has_validation and curve.name != VALIDATED else "clear",
        )
        for (name, history), colour in zip(histories.items(), RUN_COLOURS, strict=False)
        for curve in _curves(history)
        if curve.line != "faint"
    ]
    curves.sort(key=lambda curve: curve.line == "clear")  # above the others
    return _drawing(curves, 0, guessing, is_named=False)


def _drawing(curves: list[Curve], steps: int, guessing: float | None, is_named: bool) -> str:
    drawn = [loss for curve in curves for loss in (float(curve.losses.min()), float(curve.losses.max()))]
    drawn += [] if guessing is None else [guessing]
    levels = round_numbers(min(drawn, default=0.0), max(drawn, default=1.0), LEVELS)
    axes = Axes(max([1, steps, *(int(curve.steps[-1]) for curve in curves)]), levels[0], levels[-1])
    parts = [
        '<text dx="-3em" dy="-1.2em">nats</text>',
        *([_legend(curves)] if is_named else []),
        *(_level(axes, level) for level in levels),
        *(_step(axes, step) for step in round_numbers(0, axes.end, STEPS) if step <= axes.end and step == int(step)),
        '<text x="100%" y="100%" dy="2.8em" text-anchor="end">step</text>',
        # Lines have coordinates from 0 to 1000, which are stretched to the size of the plot.
        '<svg width="100%" height="100%" viewBox="0 0 1000 1000" preserveAspectRatio="none" fill="none">',
        *(_line(axes, curve) for curve in curves),
        "</svg>",
        *([] if guessing is None else [_guessing(axes, guessing)]),
    ]
    return (
        f'<svg role="img" aria-label="{escaped(_in_words(curves, guessing))}" fill="currentColor" style="{STYLE}">\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _curves(history: TrainingHistory) -> list[Curve]:
    """The curves that have any points."""
    evaluated = np.array([step for step, _ in history.validation_losses], np.intp)
    validation = np.array([loss for _, loss in history.validation_losses], np.float64)
    ends, means, window = running_mean(history.losses)
    curves = [
        Curve("training", TRAINING, "faint", *outline(history.losses)),
        Curve(f"mean of {window:,}", TRAINING, "clear", ends, means),
        Curve(VALIDATED, VALIDATION, "clear", evaluated, validation),
    ]
    shown = []
    for curve in curves:
        finite = np.isfinite(curve.losses)
        if finite.any():
            shown.append(replace(curve, steps=curve.steps[finite], losses=curve.losses[finite]))
    return shown


def _legend(curves: list[Curve]) -> str:
    return f'<text x="100%" dy="-1.2em" text-anchor="end">{"".join(map(_key, curves))}</text>'


def _key(curve: Curve) -> str:
    opacity = 0.5 if curve.line == "faint" else 1
    dot = f'<tspan dx="0.9em" fill="{curve.colour}" opacity="{opacity}">●</tspan>'
    return f'{dot}<tspan dx="0.3em">{curve.name}</tspan>'


def _level(axes: Axes, loss: float) -> str:
    y = axes.down(loss)
    return (
        f'<line x2="100%" y1="{y}" y2="{y}" stroke="currentColor" stroke-opacity="0.13"/>'
        f'<text dx="-0.6em" y="{y}" dy="0.35em" text-anchor="end">{loss:g}</text>'
    )


def _step(axes: Axes, step: float) -> str:
    return f'<text x="{axes.across(step)}" y="100%" dy="1.5em" text-anchor="middle">{int(step):,}</text>'


def _line(axes: Axes, curve: Curve) -> str:
    x = (1000 * curve.steps / axes.end).tolist()
    y = (1000 * (axes.high - curve.losses) / (axes.high - axes.low)).tolist()
    points = "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y))
    return (
        f'<path d="M{points}{"h0" if len(x) == 1 else ""}" stroke="{curve.colour}" '
        f'{LINES[curve.line]} stroke-linejoin="round" stroke-linecap="round" '
        'vector-effect="non-scaling-stroke"/>'
    )


def _guessing(axes: Axes, loss: float) -> str:
    y = axes.down(loss)
    return (
        f'<line x2="100%" y1="{y}" y2="{y}" stroke="currentColor" stroke-opacity="0.6" stroke-dasharray="5 4"/>'
        f'<text x="100%" y="{y}" dy="-0.4em" text-anchor="end">guessing {loss:.2f}</text>'
    )


def _in_words(curves: list[Curve], guessing: float | None) -> str:
    """A description of the figure, for readers who cannot see it."""
    facts = [
        f"{curve.name} from {curve.losses[0]:.2f} at step {curve.steps[0]:,} to {curve.losses[-1]:.2f} at step "
        f"{curve.steps[-1]:,}"
        for curve in curves
        if curve.line != "faint"
    ]
    facts += [] if guessing is None else [f"guessing blindly costs {guessing:.2f}"]
    return "Loss in nats: " + ("; ".join(facts) or "no step yet")


def round_numbers(low: float, high: float, most: int) -> list[float]:
    """At least two and about `most` round numbers at equal distances, from `low` or less to `high` or more."""
    least = max(high - low, 1e-6 * max(abs(low), abs(high), 1e-6)) / (most - 1)
    magnitude = 10.0 ** math.floor(math.log10(least))
    distance = magnitude * next(factor for factor in (1, 2, 2.5, 5, 10, 20) if factor * magnitude > 0.999 * least)
    first, last = math.floor(low / distance), math.ceil(high / distance)
    digits = max(0, 2 - math.floor(math.log10(distance)))
    return [round(i * distance, digits) for i in range(first, max(last, first + 1) + 1)]


def outline(losses: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Steps and losses of a line that looks like all of them: if there are many, the extremes of each interval."""
    if len(losses) <= DRAWN_POINTS:
        return np.arange(1, len(losses) + 1), losses
    starts = (np.arange(DRAWN_POINTS // 2, dtype=np.int64) * len(losses) // (DRAWN_POINTS // 2)).astype(np.intp)
    bounds = [np.minimum.reduceat(losses, starts), np.maximum.reduceat(losses, starts)]
    return np.repeat(starts + 1, 2), np.stack(bounds, axis=1).ravel()


def running_mean(losses: NDArray[np.float64]) -> tuple[NDArray[np.intp], NDArray[np.float64], int]:
    """Steps, the mean loss of a window that ends at each, and the window: a twentieth of all steps."""
    window = max(1, len(losses) // 20)
    if not len(losses):
        return np.zeros(0, np.intp), np.zeros(0), window
    ends = np.unique(np.linspace(window, len(losses), DRAWN_POINTS).astype(np.intp))
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    return ends, (sums[ends] - sums[ends - window]) / window, window
