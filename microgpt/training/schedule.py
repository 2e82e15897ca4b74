"""The learning rate from step to step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SCHEDULES: dict[str, Callable[[float], float]] = {
    "linear": lambda done: 1 - done,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),  # Loshchilov and Hutter, 2017
    "constant": lambda done: 1.0,
}


def learning_rates(
    schedule: str, learning_rate: float, warmup_steps: int, steps: NDArray[np.int64], done: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The learning rate of each of these steps, counted from 0.

    `done` is the share of the run that is over before each step, in [0, 1], not counting the warmup: in the first
    `warmup_steps` the learning rate rises linearly towards `learning_rate`, after them it follows the schedule, which
    goes from 1 to 0, or stays at 1. Source: "linear" without warmup is microgpt's.
    """
    rates = np.array([learning_rate * SCHEDULES[schedule](share) for share in done.tolist()])
    rising = np.minimum(1, (steps + 1) / (warmup_steps + 1))
    return np.where(steps < warmup_steps, learning_rate * rising, rates)
