"""Evaluation: measuring how well a model predicts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from microgpt.engine.packing import PackedSequences

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from microgpt.engine.interface import Engine

EVALUATED_ROWS = 1024  # positions in a batch; more would not fit into the CPU's caches


@dataclass(frozen=True)
class Evaluation:
    """The result of `GPT.evaluate`.

    Attributes:
        nats: the mean over all tokens of -log(probability of the token).
        bits_per_character: the sum of these in bits, divided by the number of characters.
        perplexity: e to the power of `nats`: the number of equally likely tokens that would be as hard to guess.
        tokens, characters: how many were predicted; the end of a document counts as one of each. The first token of a
            continuous text without line feeds is not predicted, but its characters count.
    """

    nats: float
    bits_per_character: float
    perplexity: float
    tokens: int
    characters: int


@dataclass(frozen=True)
class DocumentLosses:
    """The result of `GPT.document_losses`: arrays with an element for each document.

    Attributes:
        nats: float64, the loss of the document: -log(its probability), the sum over its tokens.
        tokens: int64, how many were predicted; the end of a document counts as one.
    """

    nats: NDArray[np.float64]
    tokens: NDArray[np.int64]

    @property
    def nats_per_token(self) -> NDArray[np.float64]:
        """The mean over the tokens of each document; NaN where there is none to predict."""
        with np.errstate(invalid="ignore"):
            return self.nats / self.tokens


def mean_loss(engine: Engine, pieces: PackedSequences, check: Callable[[], object] = lambda: None) -> float:
    """Mean over all tokens, except the first of each piece, of -log(probability of the token), in nats.

    This is the loss of held-out data, in training and in `GPT.evaluate`: every token counts the same, however long its
    piece is. Each piece must fit the context. `check` is called after each batch, and may raise to stop.
    """
    total = 0.0
    for length in np.unique(pieces.lengths).tolist():  # the engine's mean of means is the mean where lengths agree
        alike = np.flatnonzero(pieces.lengths == length)
        count = max(1, EVALUATED_ROWS // (length - 1))
        for start in range(0, len(alike), count):
            batch = pieces.select(alike[start : start + count])
            total += engine.loss(batch) * len(batch) * (length - 1)
            check()
    return total / count_tokens(pieces)


def count_tokens(pieces: PackedSequences) -> int:
    """Number of predicted tokens: all but the first of each piece."""
    return int((pieces.lengths - 1).sum())


def evaluate(engine: Engine, sequences: PackedSequences, characters: int) -> Evaluation:
    """Predict every token of these sequences but the first of each, in pieces that fit the context.

    `characters` is the length of their text, with one more for the end of each document.
    """
    pieces = sequences.split(engine.config.block_size)
    nats, tokens = mean_loss(engine, pieces), count_tokens(pieces)
    _check_numbers(nats)
    with np.errstate(over="ignore"):
        perplexity = float(np.exp(nats))
    return Evaluation(nats, nats * (tokens / characters) / math.log(2), perplexity, tokens, characters)


def document_losses(engine: Engine, sequences: PackedSequences) -> DocumentLosses:
    """Predict every token of each of these sequences but the first, in pieces that fit the context."""
    positions = engine.config.block_size
    pieces, nats = sequences.split(positions), np.zeros(len(sequences))
    for i, document in enumerate(np.repeat(np.arange(len(sequences)), sequences.piece_counts(positions))):
        piece = pieces.select(np.array([i]))
        nats[document] += engine.loss(piece) * count_tokens(piece)
    _check_numbers(nats.sum())
    return DocumentLosses(nats, sequences.lengths - 1)


def _check_numbers(nats: float) -> None:
    """`ValueError` if a loss is NaN."""
    if math.isnan(nats):
        raise ValueError(
            "the model's probabilities are not numbers: its parameters are too large, training has diverged"
        )
