"""Learning rate schedules."""

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

    In the first `warmup_steps`, it rises linearly towards `learning_rate`; after them it is `learning_rate` times the
    schedule, which goes from 1 to 0 or stays at 1. `done` is the fraction of the run, without the warmup, completed
    before each step, in [0, 1]. Source: "linear" without warmup is microgpt's.
    """
    rates = np.array([learning_rate * SCHEDULES[schedule](fraction) for fraction in done.tolist()])
    rising = np.minimum(1, (steps + 1) / (warmup_steps + 1))
    return np.where(steps < warmup_steps, learning_rate * rising, rates)
