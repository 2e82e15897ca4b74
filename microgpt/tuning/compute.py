"""The compute of training, counted in multiply-adds: the same on every machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from microgpt.config import GPTConfig
from microgpt.data.corpus import Corpus

if TYPE_CHECKING:
    from numpy.typing import NDArray

ADAM = 10  # operations of Adam on a parameter, division and root among them; each counts as a multiply-add


def count_multiply_adds(config: GPTConfig, lengths: NDArray[np.int64]) -> int:
    """Multiply-adds of training on sequences of these lengths, in positions: forward, and twice that backward.

    Those of matrix products and attention count, which are nearly all.
    """
    shapes = config.parameter_shapes()
    products = sum(rows * columns for name, (rows, columns) in shapes.items() if name not in ("wte", "wpe"))
    pairs = int((lengths * (lengths + 1) // 2).sum())  # a position, and one that it attends to
    return 3 * (int(lengths.sum()) * products + 2 * pairs * config.n_embd * config.n_layer)


class StepCounter:
    """Counts the multiply-adds of training steps on a corpus.

    Args:
        corpus: the data.
        long_documents: see `Recipe`.
    """

    def __init__(self, corpus: Corpus, long_documents: str) -> None:
        self._is_text, self._split = corpus.is_text, long_documents == "split"
        predicted = np.diff(corpus.offsets)  # positions of each document
        self._documents = np.bincount(predicted)  # number of documents of each length
        self._per_sequence: dict[GPTConfig, float] = {}

    def multiply_adds(self, config: GPTConfig, batch_size: int) -> int:
        """Multiply-adds of a step, on average: those of `count_multiply_adds`, and `ADAM` for each parameter."""
        if config not in self._per_sequence:
            lengths, counts = self._sequences(config.block_size)
            total = sum(
                count * count_multiply_adds(config, np.array([length]))
                for length, count in zip(lengths.tolist(), counts.tolist())
            )
            self._per_sequence[config] = total / int(counts.sum())
        return round(batch_size * self._per_sequence[config]) + ADAM * config.num_params

    def _sequences(self, block_size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The different lengths of sequences, in positions, and how many have each."""
        if self._is_text:
            return np.array([block_size]), np.array([1])
        lengths = np.arange(len(self._documents))
        counts = np.zeros(block_size + 1, np.int64)
        if self._split:
            np.add.at(counts, lengths % block_size, self._documents)
            counts[block_size] += (lengths // block_size * self._documents).sum()
            counts[0] = 0
        else:
            np.add.at(counts, np.minimum(lengths, block_size), self._documents)
        present = np.flatnonzero(counts)
        return present, counts[present]
