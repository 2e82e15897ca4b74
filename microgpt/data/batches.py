"""What each step trains on, and what a model is validated with: token sequences of documents, or windows of a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from microgpt.arrays import check_room
from microgpt.data.corpus import Corpus
from microgpt.packing import PackedSequences

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from microgpt.interface import Generator

VALIDATION_TOKENS = 32_768  # at most: more would tell little more
SEQUENCE_BYTES = 24  # at least: its start, its length and two tokens
LONG_DOCUMENTS = ("cut", "split")


class Batches(Protocol):
    """A source of token sequences, of which `len` make an epoch."""

    def __len__(self) -> int: ...

    def mean_positions(self) -> float:
        """Positions of a sequence that are computed, on average."""

    def batch(self, first_step: int, steps: int, batch_size: int) -> PackedSequences:
        """The sequences of some consecutive steps, `batch_size` for each."""

    def rewind(self, step: int, batch_size: int) -> None:
        """Take back what the last `batch` drew for the steps from `step` on: they have not been made."""

    def validation(self) -> PackedSequences | None:
        """The sequences that no step trains on; None where nothing has been set aside."""


class DocumentBatches:
    """Documents in an order, from the start again after the last. The last `validation_fraction` of them is set aside.

    Args:
        corpus: the documents, at least two where some are set aside.
        order: their numbers, in the order in which they are used.
        length: of a sequence, at most: the context and the token after it.
        validation_fraction: what no step trains on.
        long_documents: of a longer document, "cut" uses the beginning, "split" one piece after the other. A piece
            begins with the token that ends the one before: there it is the last target, here the first input.
    """

    def __init__(
        self,
        corpus: Corpus,
        order: NDArray[np.int64],
        length: int,
        validation_fraction: float = 0.0,
        long_documents: str = "cut",
    ) -> None:
        if validation_fraction and len(order) < 2:
            raise ValueError("val_fraction needs at least 2 documents, one of them to train on, got 1")
        training = len(order) - set_aside(len(order), validation_fraction)
        self._training, self._validation = (
            _Sequences(corpus, part, length, split=long_documents == "split") for part in np.split(order, [training])
        )

    def __len__(self) -> int:
        return len(self._training)

    def mean_positions(self) -> float:
        """See `Batches`. The first ones are as good as any."""
        _, lengths = self._training.bounds(np.arange(min(len(self), VALIDATION_TOKENS)))
        return float(lengths.mean()) - 1

    def batch(self, first_step: int, steps: int, batch_size: int) -> PackedSequences:
        """See `Batches`."""
        _check_room(steps, batch_size)
        numbers = np.arange(first_step * batch_size, (first_step + steps) * batch_size)
        return self._training.select(numbers % len(self._training))

    def rewind(self, step: int, batch_size: int) -> None:
        """See `Batches`. Nothing is drawn here."""

    def validation(self) -> PackedSequences | None:
        """See `Batches`. They come from documents in no order: the first are as good as any."""
        numbers = np.arange(min(len(self._validation), VALIDATION_TOKENS))
        if not numbers.size:
            return None
        _, lengths = self._validation.bounds(numbers)
        fitting = np.searchsorted(np.cumsum(lengths), VALIDATION_TOKENS, "right")
        return self._validation.select(numbers[: max(1, fitting)])


class _Sequences:
    """Documents as sequences of up to `length` tokens: one of each, or where they are split, as many as it takes."""

    def __init__(self, corpus: Corpus, order: NDArray[np.int64], length: int, split: bool) -> None:
        self._corpus = corpus
        self._order = order
        self._length = length
        self._firsts = None  # the number of the first sequence of each document, where that is not the document's own
        if split:
            predicted = corpus.offsets[order + 1] - corpus.offsets[order]
            self._firsts = np.cumsum(np.append(0, -(-predicted // (length - 1))))

    def __len__(self) -> int:
        return len(self._order) if self._firsts is None else int(self._firsts[-1])

    def bounds(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where the sequences of these numbers start in the corpus, and their lengths."""
        places, skipped = numbers, np.zeros_like(numbers)
        if self._firsts is not None:
            places = np.searchsorted(self._firsts, numbers, "right") - 1
            skipped = (numbers - self._firsts[places]) * (self._length - 1)
        documents = self._order[places]
        starts = self._corpus.offsets[documents] + skipped
        return starts, np.minimum(self._corpus.offsets[documents + 1] + 1 - starts, self._length)

    def select(self, numbers: NDArray[np.int64]) -> PackedSequences:
        """The sequences of these numbers."""
        return self._corpus.sequences(*self.bounds(numbers))


class TextBatches:
    """Windows of `length` tokens of one text, each drawn anew. The end of the text is set aside.

    Args:
        corpus: the text, at least a window long, after `validation_fraction` has been set aside, and so is that part.
        length: the context and the token after it.
        generator: what the starts of the windows are drawn from.
    """

    def __init__(self, corpus: Corpus, length: int, generator: Generator, validation_fraction: float = 0.0) -> None:
        self._corpus = corpus
        self._length = length
        self._generator = generator
        self._before = (0, generator.getstate())  # the last `batch`: number of its first window, and the generator
        self._end = len(corpus.tokens) - set_aside(len(corpus.tokens), validation_fraction)
        if self._end < length:
            raise ValueError(f"data must have at least block_size + 1 = {length} tokens to train on, got {self._end}")
        validation = len(corpus.tokens) - self._end
        if validation_fraction and validation < length:
            raise ValueError(
                f"val_fraction must set aside at least block_size + 1 = {length} tokens, got {validation} of a text"
                f" of {len(corpus.tokens)}"
            )

    def __len__(self) -> int:
        return self._end // (self._length - 1)

    def mean_positions(self) -> float:
        """See `Batches`."""
        return self._length - 1

    def batch(self, first_step: int, steps: int, batch_size: int) -> PackedSequences:
        """See `Batches`. Steps have to be asked for in order: each draws."""
        _check_room(steps, batch_size)
        self._before = (first_step * batch_size, self._generator.getstate())
        return self._windows(self._draw(steps * batch_size))

    def rewind(self, step: int, batch_size: int) -> None:
        """See `Batches`."""
        first, state = self._before
        self._generator.setstate(state)
        self._draw(step * batch_size - first)

    def _draw(self, count: int) -> NDArray[np.int64]:
        """Where the next windows start."""
        starts = self._end - self._length + 1
        return np.fromiter((self._generator.randrange(starts) for _ in range(count)), np.int64, count)

    def validation(self) -> PackedSequences | None:
        """See `Batches`. They are spread evenly over the text."""
        context = self._length - 1
        starts = np.arange(self._end, len(self._corpus.tokens) - context, context)
        if not starts.size:
            return None
        count = min(len(starts), max(1, VALIDATION_TOKENS // context))
        return self._windows(starts[np.arange(count, dtype=np.int64) * len(starts) // count])

    def _windows(self, starts: NDArray[np.int64]) -> PackedSequences:
        return self._corpus.sequences(starts, np.full(len(starts), self._length, np.int64))


def _check_room(steps: int, batch_size: int) -> None:
    check_room(steps * batch_size * SEQUENCE_BYTES, f"a batch_size of {batch_size:,}")


def set_aside(count: int, fraction: float) -> int:
    """How many of `count` are for validation: none without a fraction, else at least one."""
    return min(count - 1, max(1, round(count * fraction))) if fraction else 0
