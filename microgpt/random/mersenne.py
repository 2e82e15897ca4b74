"""Random numbers for the reference engine; csrc/mersenne.pyx is the compiled twin."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Generator(random.Random):
    """A `random.Random` that also fills arrays.

    `seed` is anything that `random.Random` takes, or another generator, whose state is copied.
    """

    def __new__(cls, seed: Any = None) -> Generator:
        """Withhold the seed from `random.Random.__new__`, which would hash it: a bytearray has no hash."""
        return super().__new__(cls)

    def __init__(self, seed: Any = None) -> None:
        if hasattr(seed, "getstate"):
            super().__init__(0)
            self.setstate(seed.getstate())
        else:
            super().__init__(seed)

    def fill_gauss(self, array: NDArray[Any], sigma: float) -> None:
        """Fill a one-dimensional float array with `gauss(0, sigma)`, in order."""
        for i in range(len(array)):
            array[i] = self.gauss(0.0, sigma)

    def permutation(self, n: int) -> NDArray[np.int64]:
        """The numbers below `n` as `shuffle` orders them: int64."""
        numbers = list(range(n))
        self.shuffle(numbers)
        return np.array(numbers, np.int64)
