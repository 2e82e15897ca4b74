"""The history of a model's training, and the progress of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def falls_below(loss: float, lowest: float) -> bool:
    """Whether `loss` is below the lowest one before it. NaN counts as highest; as `lowest`, it means none yet."""
    return not math.isnan(loss) and not loss >= lowest


def lowest_validation_loss(pairs: list[tuple[int, float]]) -> tuple[int, float]:
    """The first (step, loss) pair with the lowest loss; NaN counts as highest."""
    return min(pairs, key=lambda pair: (math.isnan(pair[1]), pair[1]))


@dataclass(frozen=True)
class Origin:
    """The model whose parameters a run began with. Two are equal if the parameters are.

    Attributes:
        file: its path, as it was given; None for a model in memory.
        parameters: a hash of its parameters, 32 hexadecimal digits.
    """

    file: str | None = field(compare=False)
    parameters: str

    def __str__(self) -> str:
        return f"{self.file or 'a model'} (parameters {self.parameters[:8]})"


@dataclass(frozen=True)
class TrainingHistory:
    """The history of a model's training.

    Attributes:
        losses: float64, one for each step, in nats: the loss of the step's batch, before the update.
        validation_losses: pairs (steps completed, loss of the held-out data): the mean over its tokens, in nats, as
            `GPT.evaluate` computes it.
        options: the options of `train`, see `Recipe`.
        seconds: duration of training.
        validation_tokens: number of tokens that each validation predicted.
        held_out_tokens: number of tokens to predict in the held-out data; if there are more, the losses are estimates.
        init_from: the model whose parameters training began with, or None if they were drawn.
        fingerprint: a hash of the data, 32 hexadecimal digits, see `Corpus.fingerprint`; None if it is not known.
    """

    losses: NDArray[np.float64]
    validation_losses: list[tuple[int, float]]
    options: dict[str, Any]
    seconds: float
    validation_tokens: int = 0
    held_out_tokens: int = 0
    init_from: Origin | None = None
    fingerprint: str | None = None


@dataclass(frozen=True)
class TrainingProgress:
    """The progress of a run: what `train` passes to its `progress` callback.

    Attributes:
        step: number of steps completed.
        steps: number of steps of the whole run; None if a time limit ends it.
        loss: mean loss of the last 100 steps, or of all if there are fewer, in nats; NaN before the first step.
        learning_rate: of the last step; NaN before the first step of this call.
        tokens_per_second: positions computed per second, averaged over this call; NaN before its first step.
        seconds: duration of all steps so far, including those before an interruption.
        validation: the latest of `TrainingHistory.validation_losses`, or None.
    """

    step: int
    steps: int | None
    loss: float
    learning_rate: float
    tokens_per_second: float
    seconds: float
    validation: tuple[int, float] | None
