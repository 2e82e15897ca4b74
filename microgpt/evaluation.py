"""How well a model predicts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from microgpt.packing import PackedSequences

if TYPE_CHECKING:
    from microgpt.interface import Engine

EVALUATED_ROWS = 1024  # positions that are looked at together: more would not fit the caches


@dataclass(frozen=True)
class Evaluation:
    """What `GPT.evaluate` returns.

    Attributes:
        nats: the mean over all tokens of -log(probability of the token).
        bits_per_character: the sum of the same, in bits, for each character of the text.
        perplexity: e to the power of `nats`: among how many equally likely tokens the model might as well choose.
        tokens, characters: how many were predicted; the end of a document is one of each. The first token of a
            continuous text without line feeds is not predicted, though its characters count.
    """

    nats: float
    bits_per_character: float
    perplexity: float
    tokens: int
    characters: int


def mean_loss(engine: Engine, packed: PackedSequences, check: Callable[[], object] = lambda: None) -> float:
    """The loss of many sequences, as an engine gives it for a few: in batches that fit the caches.

    Between two of them, `check` may raise what ends it.
    """
    length = int(packed.lengths.max())
    count = max(1, EVALUATED_ROWS // min(length, engine.config.block_size))
    total = 0.0
    for start in range(0, len(packed), count):
        part = packed.select(np.arange(start, min(start + count, len(packed))))
        total += engine.loss(part) * len(part)
        check()
    return total / len(packed)


def evaluate(engine: Engine, sequences: PackedSequences, characters: int) -> Evaluation:
    """Predict every token of these sequences but their first once, in pieces that fit the context.

    `characters` is how many characters the text has that they come from, its ends included.
    """
    pieces = sequences.split(engine.config.block_size)
    tokens, total = int((pieces.lengths - 1).sum()), 0.0
    for length in np.unique(pieces.lengths).tolist():  # the mean of means is a mean where all are of one length
        alike = pieces.select(np.flatnonzero(pieces.lengths == length))
        total += mean_loss(engine, alike) * len(alike) * (length - 1)
    nats = total / tokens
    with np.errstate(over="ignore"):
        return Evaluation(nats, total / math.log(2) / characters, float(np.exp(nats)), tokens, characters)
