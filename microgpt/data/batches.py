"""Batches for training and the held-out data for validation: token sequences of documents, or windows of a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from microgpt.data.corpus import Corpus
from microgpt.engine.arrays import check_room
from microgpt.engine.packing import PackedSequences

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from microgpt.random.interface import Generator

SAMPLED = 32_768  # sequences from which the mean length is estimated
SEQUENCE_BYTES = 24  # at least: start, length and two tokens
LONG_DOCUMENTS = ("cut", "split")


class Batches(Protocol):
    """A source of token sequences; `len` of them make an epoch."""

    def __len__(self) -> int: ...

    def mean_positions(self) -> float:
        """Mean number of positions computed per sequence."""

    def batch(self, first_step: int, steps: int, batch_size: int) -> PackedSequences:
        """The sequences of consecutive steps, `batch_size` for each."""

    def rewind(self, step: int, batch_size: int) -> None:
        """Undo what the last `batch` drew for the steps from `step` on, which were not completed."""

    def held_out_tokens(self) -> int:
        """Number of tokens to predict in the held-out data; 0 if nothing is held out."""

    def held_out(self, most_tokens: int) -> PackedSequences:
        """The held-out data, in pieces that fit the context, so that every token is predicted once.

        If there are more than `most_tokens` to predict, only some of the pieces: at least one, and otherwise no more
        tokens than that.
        """


class DocumentBatches:
    """Documents in a given order, over and over. The last `validation_fraction` of them is held out.

    Args:
        corpus: the documents, at least two if some are held out.
        order: their numbers, in the order in which they are used.
        length: the most tokens of a sequence: the context and the token after it.
        validation_fraction: the fraction of the documents that is held out.
        long_documents: for a longer document, "cut" trains on the beginning, "split" on one piece after the other: the
            last target of a piece is the first input of the next. Held-out documents are always split.
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
        training = len(order) - held_out_count(len(order), validation_fraction)
        self._training = _Sequences(corpus, order[:training], length, split=long_documents == "split")
        self._held_out = _Sequences(corpus, order[training:], length, split=True)

    def __len__(self) -> int:
        return len(self._training)

    def mean_positions(self) -> float:
        """See `Batches`. Documents are in random order: the first represent all."""
        _, lengths = self._training.bounds(np.arange(min(len(self), SAMPLED)))
        return float(lengths.mean()) - 1

    def batch(self, first_step: int, steps: int, batch_size: int) -> PackedSequences:
        """See `Batches`."""
        _check_room(steps, batch_size)
        numbers = np.arange(first_step * batch_size, (first_step + steps) * batch_size, dtype=np.int64)
        return self._training.select(numbers % len(self._training))

    def rewind(self, step: int, batch_size: int) -> None:
        """See `Batches`. Nothing was drawn."""

    def held_out_tokens(self) -> int:
        """See `Batches`."""
        return self._held_out.positions()

    def held_out(self, most_tokens: int) -> PackedSequences:
        """See `Batches`. Documents are in random order: the first pieces represent all."""
        numbers = np.arange(min(len(self._held_out), most_tokens))
        _, lengths = self._held_out.bounds(numbers)
        fitting = np.searchsorted(np.cumsum(lengths - 1), most_tokens, "right")
        return self._held_out.select(numbers[: max(1, fitting)])


class _Sequences:
    """Documents as sequences of up to `length` tokens: one for each, or as many as it takes if they are split."""

    def __init__(self, corpus: Corpus, order: NDArray[np.int64], length: int, split: bool) -> None:
        self._corpus = corpus
        self._order = order
        self._length = length
        self._firsts = None  # number of each document's first sequence; None if that is the document's own
        if split:
            predicted = corpus.offsets[order + 1] - corpus.offsets[order]
            self._firsts = np.cumsum(np.append(0, -(-predicted // (length - 1))))

    def __len__(self) -> int:
        return len(self._order) if self._firsts is None else int(self._firsts[-1])

    def positions(self) -> int:
        """Number of tokens to predict in all documents, split or not."""
        return int((self._corpus.offsets[self._order + 1] - self._corpus.offsets[self._order]).sum())

    def bounds(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Starts in the corpus, and lengths, of the sequences with these numbers."""
        indices, skipped = numbers, np.zeros_like(numbers)
        if self._firsts is not None:
            indices = np.searchsorted(self._firsts, numbers, "right") - 1
            skipped = (numbers - self._firsts[indices]) * (self._length - 1)
        documents = self._order[indices]
        starts = self._corpus.offsets[documents] + skipped
        return starts, np.minimum(self._corpus.offsets[documents + 1] + 1 - starts, self._length)

    def select(self, numbers: NDArray[np.int64]) -> PackedSequences:
        """The sequences with these numbers."""
        return self._corpus.sequences(*self.bounds(numbers))


class TextBatches:
    """Windows of `length` tokens, drawn at random from one text. The end of the text is held out.

    Args:
        corpus: the text. The part to train on, and the held-out part if any, each have at least `length` tokens.
        length: the tokens of a window: the context and the token after it.
        generator: the generator that draws the starts of the windows.
        validation_fraction: the fraction of the text that is held out.
    """

    def __init__(self, corpus: Corpus, length: int, generator: Generator, validation_fraction: float = 0.0) -> None:
        self._corpus = corpus
        self._length = length
        self._generator = generator
        self._before = (0, generator.getstate())  # number of the first window of the last `batch`, state before it
        self._end = len(corpus.tokens) - held_out_count(len(corpus.tokens), validation_fraction)
        if self._end < length:
            raise ValueError(f"data must have at least block_size + 1 = {length} tokens to train on, got {self._end}")
        validation = len(corpus.tokens) - self._end
        if validation_fraction and validation < length:
            raise ValueError(
                f"val_fraction must hold out at least block_size + 1 = {length} tokens, got {validation} of a text"
                f" of {len(corpus.tokens)}"
            )

    def __len__(self) -> int:
        return self._end // (self._length - 1)

    def mean_positions(self) -> float:
        """See `Batches`."""
        return self._length - 1

    def batch(self, first_step: int, steps: int, batch_size: int) -> PackedSequences:
        """See `Batches`. Steps must come in order, because each draws."""
        _check_room(steps, batch_size)
        self._before = (first_step * batch_size, self._generator.getstate())
        return self._windows(self._draw(steps * batch_size))

    def rewind(self, step: int, batch_size: int) -> None:
        """See `Batches`."""
        first, state = self._before
        self._generator.setstate(state)
        self._draw(step * batch_size - first)

    def _draw(self, count: int) -> NDArray[np.int64]:
        """The starts of the next windows."""
        starts = self._end - self._length + 1
        return np.fromiter((self._generator.randrange(starts) for _ in range(count)), np.int64, count)

    def held_out_tokens(self) -> int:
        """See `Batches`."""
        return max(0, len(self._corpus.tokens) - 1 - self._held_out_start())

    def held_out(self, most_tokens: int) -> PackedSequences:
        """See `Batches`. A text of its own, which starts after BOS. A selection of its pieces is spread evenly."""
        context, start, end = self._length - 1, self._held_out_start(), len(self._corpus.tokens)
        starts = np.arange(start, end - 1, context, dtype=np.int64)
        if self.held_out_tokens() > most_tokens:
            count = max(1, most_tokens // context)
            starts = starts[np.arange(count, dtype=np.int64) * len(starts) // count]
        pieces = self._corpus.sequences(starts, np.minimum(end - starts, self._length))
        if start < self._end:
            pieces.tokens[0] = self._corpus.tokenizer.bos
        return pieces

    def _held_out_start(self) -> int:
        """The start of the first piece: one token before the held-out part, for BOS if the text has one."""
        return self._end - self._corpus.tokenizer.bos_is_text

    def _windows(self, starts: NDArray[np.int64]) -> PackedSequences:
        return self._corpus.sequences(starts, np.full(len(starts), self._length, np.int64))


def _check_room(steps: int, batch_size: int) -> None:
    check_room(steps * batch_size * SEQUENCE_BYTES, f"a batch_size of {batch_size:,}")


def held_out_count(count: int, fraction: float) -> int:
    """The number of held-out items among `count`: 0 without a fraction, otherwise at least 1."""
    return min(count - 1, max(1, round(count * fraction))) if fraction else 0
