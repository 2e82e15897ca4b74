"""Arrays that start on a cache line, and errors that say what did not fit into memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

LINE_BYTES = 64  # as in csrc/kernels/interface.h


def aligned_zeros(shape: int | tuple[int, ...], dtype: DTypeLike, purpose: str) -> NDArray[Any]:
    """An array of zeros that starts on a cache line, where kernels read it faster.

    `MemoryError` names the `purpose` and the bytes it would take if they do not fit.
    """
    sizes = (shape,) if isinstance(shape, int) else shape
    size_bytes = math.prod(sizes) * np.dtype(dtype).itemsize
    try:
        buffer = np.zeros(size_bytes + LINE_BYTES, np.uint8)
    except (MemoryError, ValueError, OverflowError):  # what NumPy raises for a size it cannot allocate
        raise MemoryError(f"{purpose} would take {size_bytes:,} bytes") from None
    start = -buffer.ctypes.data % LINE_BYTES
    return buffer[start : start + size_bytes].view(dtype).reshape(sizes)


def not_finite(matrices: Mapping[str, NDArray[Any]]) -> str:
    """Names of the matrices with non-finite numbers, as errors show them; empty if all are finite."""
    first, *others = [name for name, matrix in matrices.items() if not np.isfinite(matrix).all()] or [""]
    return f"{first} and {len(others)} more" if others else first


def check_room(size_bytes: int, purpose: str) -> None:
    """Raise the `MemoryError` of `aligned_zeros`, before any work, if so much would not fit."""
    aligned_zeros(size_bytes, np.uint8, purpose)


def aligned_copy(array: NDArray[Any], dtype: DTypeLike, purpose: str) -> NDArray[Any]:
    """A copy of an array, of the given type, that starts on a cache line; see `aligned_zeros`."""
    copy = aligned_zeros(array.shape, dtype, purpose)
    copy[...] = array
    return copy
