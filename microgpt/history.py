"""What a model remembers of its training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def falls_below(loss: float, lowest: float) -> bool:
    """Whether a loss is lower than the lowest before it; NaN is the highest, also as the lowest of none."""
    return not math.isnan(loss) and not loss >= lowest


def lowest_validation_loss(pairs: list[tuple[int, float]]) -> tuple[int, float]:
    """Of at least one pair of a number of steps made and a loss, the first with the lowest; NaN is the highest."""
    return min(pairs, key=lambda pair: (math.isnan(pair[1]), pair[1]))


@dataclass(frozen=True)
class TrainingHistory:
    """How a model became what it is.

    Attributes:
        losses: float64, one for each step, in nats: the loss of the step's documents before the step.
        validation_losses: pairs of a number of steps made and the loss of held-out data by then: the mean over its
            tokens, in nats, as `GPT.evaluate` gives it.
        options: what `train` was told, see `Recipe`.
        seconds: how long training took.
        validation_tokens: how many tokens each validation predicted.
        held_out_tokens: how many there were to predict in all held-out data; where more, the losses are estimates.
    """

    losses: NDArray[np.float64]
    validation_losses: list[tuple[int, float]]
    options: dict[str, Any]
    seconds: float
    validation_tokens: int = 0
    held_out_tokens: int = 0


@dataclass(frozen=True)
class TrainingProgress:
    """How far a run has come: the argument of the `progress` that `train` calls.

    Attributes:
        step: number of steps made.
        steps: number of steps of the whole run; None where the clock decides.
        loss: mean of the last 100 steps, or of as many as there are, in nats; NaN before the first step.
        learning_rate: that of the last step; NaN before the first step of this call.
        tokens_per_second: positions computed in a second, on average over this call; NaN before its first step.
        seconds: duration of all steps so far, those before an interruption included.
        validation: the latest of `TrainingHistory.validation_losses`, or None.
    """

    step: int
    steps: int | None
    loss: float
    learning_rate: float
    tokens_per_second: float
    seconds: float
    validation: tuple[int, float] | None
