"""Streams of random numbers that can be computed in any order: SplitMix64, a mixed counter.

Source: Steele, Lea and Flood, 2014. csrc/splitmix.h is the compiled twin.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

from microgpt.random.mersenne import Generator
from microgpt.utils.arguments import random_seed

BEYOND_DOCUMENTS = 2**63  # no sampled document has this number


def stream_seed(seed: Any, name: str = "seed") -> int:
    """The 64 bits of a seed that streams use: the lowest of a whole number, or the first that another seed generates.

    `TypeError` or `ValueError`, which begins with `name`, if it is not a seed, see `arguments.random_seed`.
    """
    seed = random_seed(name, seed)
    return seed % 2**64 if isinstance(seed, int) else Generator(seed).getrandbits(64)


def stream_of(parent: int, number: int) -> int:
    """Stream `number` of those that derive from a seed, or from another stream: 64 bits."""
    return _mixed(parent + number)


def step_stream(seed: int, step: int) -> int:
    """The stream of a step of training, from which those of its documents derive. Sampling shares none of them."""
    return stream_of(stream_of(stream_of(seed, 0), BEYOND_DOCUMENTS), step)


def uniforms(stream: int) -> Iterator[float]:
    """The numbers of a stream, without end: in [0, 1), with 53 random bits."""
    return (_uniform(stream, number) for number in count())


def uniform_of(seed: int, document: int, number: int) -> float:
    """Number `number` of a document's stream, see `uniforms`."""
    return _uniform(stream_of(stream_of(seed, 0), document), number)


def _uniform(stream: int, number: int) -> float:
    return (_mixed(stream + (number + 1) * 0x9E3779B97F4A7C15) >> 11) * 2.0**-53


def _mixed(word: int) -> int:
    word %= 2**64
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % 2**64
    return word ^ (word >> 31)
