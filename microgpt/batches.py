"""What each step trains on, and what a model is validated with: token sequences of documents, or windows of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from microgpt.packing import PackedSequences
from microgpt.tokenizer import CharTokenizer

VALIDATION_TOKENS = 32_768  # of a text, spread evenly: more would tell little more


class Batches(Protocol):
    """A source of token sequences. `count` of them make an epoch."""

    count: int

    def batch(self, first_step: int, steps: int, batch_size: int) -> PackedSequences:
        """The sequences of some consecutive steps, `batch_size` for each."""

    def mean_positions(self, block_size: int) -> float:
        """Positions of a sequence that are computed, on average."""

    def validation(self) -> PackedSequences | None:
        """The sequences that no step trains on; None where nothing has been set aside."""


class DocumentBatches:
    """Documents in their order, from the start again after the last. The last `validation_fraction` is set aside."""

    def __init__(self, documents: Sequence[str], tokenizer: CharTokenizer, validation_fraction: float) -> None:
        packed = tokenizer.pack_documents(documents)
        training = len(documents) - set_aside(len(documents), validation_fraction)
        self._training, self._validation = (
            packed.select(np.arange(*bounds)) for bounds in ((0, training), (training, len(documents)))
        )

    def batch(self, first_step: int, steps: int, batch_size: int) -> PackedSequences:
        """See `Batches`."""
        indices = np.arange(first_step * batch_size, (first_step + steps) * batch_size)
        return self._training.select(indices % len(self._training))

    def validation(self) -> PackedSequences | None:
        """See `Batches`."""
        return self._validation if len(self._validation) else None

    @property
    def count(self) -> int:
        return len(self._training)

    def mean_positions(self, block_size: int) -> float:
        """See `Batches`."""
        return float(np.minimum(self._training.lengths - 1, block_size).mean())

    def fingerprint(self) -> str:
        import hashlib

        return hashlib.blake2b(self._training.tokens.tobytes(), digest_size=16).hexdigest()


class TextBatches:
    """Windows of `length` tokens of one text, each drawn anew. The end of the text is set aside.

    Args:
        text: at least a window long, after `validation_fraction` has been set aside.
        length: the context and the token after it.
        generator: what the starts of the windows are drawn from.
    """

    def __init__(
        self, text: str, tokenizer: CharTokenizer, length: int, generator: Any, validation_fraction: float
    ) -> None:
        self._tokens = np.array(tokenizer.encode(text), np.int32)
        self._length = length
        self._generator = generator
        self._end = len(self._tokens) - set_aside(len(self._tokens), validation_fraction)
        if self._end < length:
            raise ValueError(
                f"data must have at least block_size + 1 = {length} characters to train on, got {self._end}"
            )

    def batch(self, first_step: int, steps: int, batch_size: int) -> PackedSequences:
        """See `Batches`. Steps have to be asked for in order: each draws."""
        starts = self._end - self._length + 1
        return self._windows(np.array([self._generator.randrange(starts) for _ in range(steps * batch_size)], np.int64))

    def validation(self) -> PackedSequences | None:
        """See `Batches`."""
        context = self._length - 1
        starts = np.arange(self._end, len(self._tokens) - context, context)
        if not starts.size:
            return None
        count = min(len(starts), max(1, VALIDATION_TOKENS // context))
        return self._windows(starts[np.arange(count) * len(starts) // count])

    def mean_positions(self, block_size: int) -> float:
        """See `Batches`."""
        return block_size

    @property
    def count(self) -> int:
        return max(1, self._end // self._length)

    def fingerprint(self) -> str:
        import hashlib

        return hashlib.blake2b(self._tokens.tobytes(), digest_size=16).hexdigest()

    def _windows(self, starts: np.ndarray) -> PackedSequences:
        return PackedSequences(self._tokens, starts, np.full(len(starts), self._length, np.int64))


def set_aside(count: int, fraction: float) -> int:
    """How many of `count` are for validation: none without a fraction, else at least one."""
    return min(count - 1, max(1, round(count * fraction))) if fraction else 0
