"""Arrays that start on a cache line, and whether there is room for them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

LINE_BYTES = 64


def aligned_zeros(shape: int | tuple[int, ...], dtype: DTypeLike, purpose: str) -> NDArray[Any]:
    """An array of zeros that starts on a cache line: the kernels read it faster.

    `MemoryError` tells what `purpose` would take where there is no room for it.
    """
    sizes = (shape,) if isinstance(shape, int) else shape
    size_bytes = math.prod(sizes) * np.dtype(dtype).itemsize
    try:
        buffer = np.zeros(size_bytes + LINE_BYTES, np.uint8)
    except (MemoryError, ValueError, OverflowError):  # NumPy's errors for more than there is, or can be
        raise MemoryError(f"{purpose} would take {size_bytes:,} bytes") from None
    start = -buffer.ctypes.data % LINE_BYTES
    return buffer[start : start + size_bytes].view(dtype).reshape(sizes)


def not_finite(matrices: Mapping[str, NDArray[Any]]) -> str:
    """The names of the matrices with numbers that are not finite, as errors show them; empty where there are none."""
    first, *others = [name for name, matrix in matrices.items() if not np.isfinite(matrix).all()] or [""]
    return f"{first} and {len(others)} more" if others else first


def check_room(size_bytes: int, purpose: str) -> None:
    """`MemoryError`, as `aligned_zeros` has it, where there is no room for so much: found out before the work."""
    aligned_zeros(size_bytes, np.uint8, purpose)


def aligned_copy(array: NDArray[Any], dtype: DTypeLike, purpose: str) -> NDArray[Any]:
    """The numbers of an array in one of this type that starts on a cache line; see `aligned_zeros`."""
    copy = aligned_zeros(array.shape, dtype, purpose)
    copy[...] = array
    return copy
