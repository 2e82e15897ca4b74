"""The interface of random number generators: `microgpt.random.mersenne`, and csrc/mersenne.pyx."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Generator(Protocol):
    """The random numbers of `random.Random`, in its order."""

    def random(self) -> float:
        """A number in [0, 1)."""

    def randrange(self, n: int, /) -> int:
        """A whole number in [0, n)."""

    def permutation(self, n: int) -> NDArray[np.int64]:
        """The numbers below `n` as `random.shuffle` orders them: int64."""

    def fill_gauss(self, array: NDArray[Any], sigma: float) -> None:
        """Fill a one-dimensional float array with `gauss(0, sigma)`, in order."""

    def getstate(self) -> tuple[Any, ...]:
        """The state, in the form of `random.Random.getstate`."""

    def setstate(self, state: tuple[Any, ...], /) -> None:
        """Restore a state that `getstate` returned."""
