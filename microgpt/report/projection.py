"""The plane in which embeddings are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def principal_components(rows: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Project `rows`, a matrix of at least one row and column, onto the plane in which they vary most.

    Returns the coordinates of the rows in it, (rows, 2), and the fraction of the variance along each of its two axes,
    (2,). The largest component of each axis is positive, so that the same rows give the same picture.

    Source: principal component analysis (Pearson, 1901).
    """
    centred = np.asarray(rows, np.float64)
    centred = centred - centred.mean(axis=0)
    _, lengths, axes = np.linalg.svd(np.linalg.qr(centred, mode="r"))  # R has the same axes and fewer rows
    axes = axes[:2] * np.sign([axis[np.abs(axis).argmax()] for axis in axes[:2]])[:, None]
    missing = 2 - len(axes)  # rows of a single number
    lengths = np.pad(lengths, (0, 2))
    shares = lengths[:2] ** 2 / max((lengths**2).sum(), np.finfo(float).tiny)
    return np.pad(centred @ axes.T, ((0, 0), (0, missing))), shares
