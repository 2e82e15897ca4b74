"""What each step trains on, and what a model is validated with: token sequences of documents, or windows of a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np

from microgpt.data.corpus import Corpus
from microgpt.engine.arrays import check_room
from microgpt.engine.packing import PackedSequences

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from microgpt.random.interface import Generator

TYPICAL = 32_768  # sequences that stand for all where their mean length is asked for
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

    def held_out_tokens(self) -> int:
        """Number of tokens to predict in what no step trains on; 0 where nothing is held out."""

    def held_out(self, most_tokens: int) -> PackedSequences:
        """The data that no step trains on, in pieces that fit the context, so that every token is predicted once.

        Where there are more than `most_tokens` to predict, these are some of the pieces: at least one, and otherwise no
        more tokens than that.
        """


class DocumentBatches:
    """Documents in an order, from the start again after the last. The last `validation_fraction` of them is held out.

    Args:
        corpus: the documents, at least two where some are held out.
        order: their numbers, in the order in which they are used.
        length: of a sequence, at most: the context and the token after it.
        validation_fraction: what no step trains on.
        long_documents: of a longer document, "cut" trains on the beginning, "split" on one piece after the other. A
            piece begins with the token that ends the one before: there it is the last target, here the first input.
            What is held out is always split.
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
        training = len(order) - held_out_of(len(order), validation_fraction)
        self._training = _Sequences(corpus, order[:training], length, split=long_documents == "split")
        self._held_out = _Sequences(corpus, order[training:], length, split=True)

    def __len__(self) -> int:
        return len(self._training)

    def mean_positions(self) -> float:
        """See `Batches`. The first ones are as good as any."""
        _, lengths = self._training.bounds(np.arange(min(len(self), TYPICAL)))
        return float(lengths.mean()) - 1

    def batch(self, first_step: int, steps: int, batch_size: int) -> PackedSequences:
        """See `Batches`."""
        _check_room(steps, batch_size)
        numbers = np.arange(first_step * batch_size, (first_step + steps) * batch_size)
        return self._training.select(numbers % len(self._training))

    def rewind(self, step: int, batch_size: int) -> None:
        """See `Batches`. Nothing is drawn here."""

    def held_out_tokens(self) -> int:
        """See `Batches`."""
        return self._held_out.positions()

    def held_out(self, most_tokens: int) -> PackedSequences:
        """See `Batches`. Documents are in no order: the first pieces are as good as any."""
        numbers = np.arange(min(len(self._held_out), most_tokens))
        _, lengths = self._held_out.bounds(numbers)
        fitting = np.searchsorted(np.cumsum(lengths - 1), most_tokens, "right")
        return self._held_out.select(numbers[: max(1, fitting)])


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

    def positions(self) -> int:
        """Number of tokens to predict in all documents, split or not."""
        return int((self._corpus.offsets[self._order + 1] - self._corpus.offsets[self._order]).sum())

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
    """Windows of `length` tokens of one text, each drawn anew. The end of the text is held out.

    Args:
        corpus: the text, at least a window long without what is held out; that part is at least a window long, too.
        length: the context and the token after it.
        generator: what the starts of the windows are drawn from.
    """

    def __init__(self, corpus: Corpus, length: int, generator: Generator, validation_fraction: float = 0.0) -> None:
        self._corpus = corpus
        self._length = length
        self._generator = generator
        self._before = (0, generator.getstate())  # the last `batch`: number of its first window, and the generator
        self._end = len(corpus.tokens) - held_out_of(len(corpus.tokens), validation_fraction)
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

    def held_out_tokens(self) -> int:
        """See `Batches`."""
        return max(0, len(self._corpus.tokens) - 1 - self._held_out_start())

    def held_out(self, most_tokens: int) -> PackedSequences:
        """See `Batches`: it is a text of its own, which begins after BOS. Some of its pieces are evenly spread."""
        context, start, end = self._length - 1, self._held_out_start(), len(self._corpus.tokens)
        starts = np.arange(start, end - 1, context)
        if self.held_out_tokens() > most_tokens:
            count = max(1, most_tokens // context)
            starts = starts[np.arange(count, dtype=np.int64) * len(starts) // count]
        pieces = self._corpus.sequences(starts, np.minimum(end - starts, self._length))
        if start < self._end:
            pieces.tokens[0] = self._corpus.tokenizer.bos
        return pieces

    def _held_out_start(self) -> int:
        """Where the first piece starts: a place before the held-out part, if there is a BOS to stand in it."""
        return self._end - self._corpus.tokenizer.bos_is_text

    def _windows(self, starts: NDArray[np.int64]) -> PackedSequences:
        return self._corpus.sequences(starts, np.full(len(starts), self._length, np.int64))


def _check_room(steps: int, batch_size: int) -> None:
    check_room(steps * batch_size * SEQUENCE_BYTES, f"a batch_size of {batch_size:,}")


def held_out_of(count: int, fraction: float) -> int:
    """How many of `count` are held out: none without a fraction, else at least one."""
    return min(count - 1, max(1, round(count * fraction))) if fraction else 0
