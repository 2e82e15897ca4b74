"""The ranks of an engine that trains alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Alone:
    """A single process behind the interface `Ranks`."""

    rank, size, piece = 0, 1, slice(None)

    def share(self, gradients: NDArray[Any]) -> NDArray[Any]:
        """Return `gradients`: every shard is computed here, and nothing is sent."""
        return gradients

    def exchange(self, total: float, loss: float, count: int) -> float:
        """Add the loss."""
        return total + loss

    def gather(self, array: NDArray[Any]) -> None:
        """Do nothing: the array is whole."""

    def end_step(self, parameters: NDArray[Any]) -> None:
        """Do nothing: nobody else can ask to stop."""
