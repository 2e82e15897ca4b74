"""Drawing documents from a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


def sample_documents(engine: Any, generator: Any, bos: int, n: int, temperature: float) -> Iterator[list[int]]:
    """`n` documents one after the other, each the tokens between `bos` and the next `bos`, at most block_size.

    Source: the inference loop of microgpt; the generator is spent in its order, once for each token drawn.
    """
    for _ in range(n):
        cache = engine.new_cache(1)
        tokens = [bos]
        while len(tokens) <= engine.config.block_size:
            last, uniforms = np.array(tokens[-1:], np.int32), np.array([generator.random()])
            tokens.append(int(engine.draw_tokens(cache, last, temperature, uniforms)[0]))
            if tokens[-1] == bos:
                tokens.pop()
                break
        yield tokens[1:]


def sample_independent_documents(engine: Any, seed: int, bos: int, n: int, temperature: float) -> list[list[int]]:
    """`n` documents, each drawn with random numbers of its own: document i is the same however many there are."""
    tokens, lengths = engine.draw_documents(seed % 2**64, n, bos, temperature)
    counted = tokens[np.arange(engine.config.block_size) < lengths[:, None]].tolist()
    ends = np.cumsum(lengths).tolist()
    return [counted[start:end] for start, end in zip([0, *ends], ends)]


def uniform_of(seed: int, document: int, number: int) -> float:
    """Number `number` of a document's stream: in [0, 1), with 53 random bits.

    Source: SplitMix64 (Steele, Lea and Flood, 2014); csrc/streams.h is the compiled twin.
    """
    stream = _mixed(_mixed(seed) + document)
    return (_mixed(stream + (number + 1) * 0x9E3779B97F4A7C15) >> 11) * 2.0**-53


def _mixed(word: int) -> int:
    word %= 2**64
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % 2**64
    return word ^ (word >> 31)
