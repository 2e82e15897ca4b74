"""Sampling: drawing tokens from a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import TYPE_CHECKING

import numpy as np

from microgpt.engine.arrays import check_room
from microgpt.random.splitmix import uniform_of
from microgpt.utils.arguments import number, positive_integer

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from microgpt.engine.interface import Cache, Engine
    from microgpt.random.interface import Generator

# Defaults of commands and pages; the first two are microgpt's.
SAMPLES = 20  # documents
TEMPERATURE = 0.5
TEXT_TOKENS = 500  # for continuous text
DRAWN_TOGETHER = 64  # documents: more would gain little and take memory
LOWEST_TEMPERATURE = 1e-30  # float32 can still divide by it; below, sampling is greedy
NO_TOKEN = -1

IsComplete = Callable[[list[int]], bool]  # whether a document is complete with these drawn tokens, though BOS is not


@dataclass(frozen=True)
class Sampler:
    """The rule by which the next token is chosen. `ValueError` or `TypeError` says which attribute is wrong.

    Attributes:
        temperature: divides the logits: 1 samples the model as it is; lower values favour likely tokens. At 0, and
            below 1e-30, the token with the largest logit is always chosen.
        top_k: draw only from the `top_k` likeliest tokens; None: from all. 1 is the same as temperature 0.
        top_p: draw only from the fewest likeliest tokens whose probabilities add up to `top_p`, more than 0 and at most
            1 (nucleus sampling: Holtzman et al., 2020); None: from all. With both, `top_k` is applied first.

    Among tokens of equal probability, a smaller id counts as likelier.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        temperature = number("temperature", self.temperature, minimum=0)
        if self.top_k is not None:
            object.__setattr__(self, "top_k", positive_integer("top_k", self.top_k))
        is_greedy = temperature < LOWEST_TEMPERATURE or self.top_k == 1
        object.__setattr__(self, "temperature", 0.0 if is_greedy else temperature)
        if self.top_p is not None:
            object.__setattr__(self, "top_p", number("top_p", self.top_p, above=0, maximum=1))

    def excludes_tokens(self, vocab_size: int) -> bool:
        """Whether `top_k` or `top_p` rules out tokens that could otherwise be drawn."""
        return self.temperature > 0 and ((self.top_k or vocab_size) < vocab_size or (self.top_p or 1) < 1)

    def draw(
        self, engine: Engine, cache: Cache, tokens: NDArray[np.int32], uniforms: NDArray[np.float64]
    ) -> NDArray[np.int32]:
        """Append `tokens` to the documents of `cache`, and draw the next one of each, int32, with these uniforms."""
        if not self.excludes_tokens(engine.config.vocab_size):
            return engine.draw_tokens(cache, tokens, self.temperature, uniforms)
        return draw_tokens(self.likeliest(engine.next_probabilities(cache, tokens, self.temperature)), uniforms)

    def likeliest(self, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        """`probabilities` (documents, vocab_size), with 0 for the tokens that cannot be drawn."""
        order = np.argsort(-probabilities, axis=1, kind="stable")
        falling = np.take_along_axis(probabilities, order, axis=1)
        if self.top_k is not None:
            falling[:, self.top_k :] = 0
        if self.top_p is not None and self.top_p < 1:
            reached = falling.cumsum(axis=1)
            falling[:, 1:][reached[:, :-1] >= self.top_p * reached[:, -1:]] = 0
        kept = np.empty_like(probabilities)
        np.put_along_axis(kept, order, falling, axis=1)
        return kept


def draw_tokens(probabilities: NDArray[np.float64], uniforms: NDArray[np.float64]) -> NDArray[np.int32]:
    """One token for each row of `probabilities`, which `random.choices` would draw if random() gave its uniform."""
    sums = probabilities.cumsum(axis=1)
    below = (uniforms * sums[:, -1])[:, None] < sums[:, :-1]
    tokens: NDArray[np.int32] = (~below).sum(axis=1, dtype=np.int32)  # where bisect ends, also for NaN
    return tokens


@dataclass(frozen=True)
class Context:
    """The beginning of a document or a text, to be continued.

    Attributes:
        tokens: the tokens before the first one to be drawn, BOS included. In a text, BOS may be a token that training
            never showed; then it is left out, and there may be no tokens at all.
        bos: the token to read if there are none. The first token drawn replaces it.
        ends: whether drawing BOS ends the document.
    """

    tokens: list[int]
    bos: int
    ends: bool

    def read(self) -> list[int]:
        """The tokens to give to the model, at least one."""
        return self.tokens or [self.bos]

    def is_over(self, token: int) -> bool:
        """Whether drawing this token ends the document."""
        return self.ends and token == self.bos


def context_length(length: int, block_size: int) -> int:
    """The number of tokens that the model sees after it has been given `length`: the last ones, at most block_size.

    When the context is full, the next token restarts it with the most recent half, itself included, at position 0.
    """
    if length <= block_size:
        return length
    half = max(1, block_size // 2)
    return half + (length - block_size - 1) % (block_size - half + 1)


def room(length: int, block_size: int) -> int:
    """The number of tokens, at least 1, that can be drawn after `length` tokens before the context restarts."""
    return block_size + 1 - context_length(length, block_size)


def next_probabilities(engine: Engine, context: Context) -> NDArray[np.float64]:
    """Probabilities (vocab_size) of the token after `context`, given its last `context_length` tokens."""
    cache, tokens = engine.new_cache(1), context.read()
    for token in tokens[-context_length(len(tokens), engine.config.block_size) :]:
        probabilities = engine.next_probabilities(cache, np.array([token], np.int32), 1.0)
    return probabilities.ravel()


def continue_together(
    engine: Engine, context: Context, n: int, sampler: Sampler, uniforms: Iterable[NDArray[np.float64]]
) -> Iterator[NDArray[np.int32]]:
    """The next token of each of `n` documents that all begin with `context`, int32 (n,), then the next, and so on.

    `uniforms` yields an array (n,) for each draw. The caller decides when a document ends. The model sees the last
    `context_length` tokens.
    """
    block_size = engine.config.block_size
    length = len(context.tokens)  # if it is 0, the first token drawn replaces BOS below
    columns = [np.full(n, token, np.int32) for token in context.read()[-context_length(length, block_size) :]]
    cache = engine.new_cache(n)
    for numbers in uniforms:
        *before, last = columns[int(cache.lengths[0]) :]
        for column in before:
            engine.next_probabilities(cache, column, sampler.temperature)
        drawn = sampler.draw(engine, cache, last, numbers)
        yield drawn
        length += 1
        columns = [*columns, drawn][-context_length(length, block_size) :]
        if len(columns) <= cache.lengths[0]:
            cache.lengths[:] = 0


def generator_uniforms(generator: Generator) -> Iterator[NDArray[np.float64]]:
    """Uniforms for one document, from a generator."""
    while True:
        yield np.array([generator.random()])


def stream_uniforms(seed: int, documents: range) -> Iterator[NDArray[np.float64]]:
    """Uniforms for these documents, each from its own stream."""
    for position in count():
        yield np.array([uniform_of(seed, document, position) for document in documents])


def sample_one(
    engine: Engine,
    context: Context,
    sampler: Sampler,
    max_tokens: int | None,
    uniforms: Iterable[NDArray[np.float64]],
) -> Iterator[int]:
    """The tokens drawn after `context`, up to a BOS that ends it, at most `max_tokens`; None: any number."""
    for (token,) in islice(continue_together(engine, context, 1, sampler, uniforms), max_tokens):
        if context.is_over(token):
            return
        yield int(token)


def sample_in_turn(
    engine: Engine,
    generator: Generator,
    context: Context,
    n: int,
    sampler: Sampler,
    max_tokens: int,
    is_complete: IsComplete | None = None,
) -> list[list[int]]:
    """The tokens of `n` documents, one after the other, each as `sample_one` draws it, up to `is_complete`.

    Source: the inference loop of microgpt, with one number of the generator for each token, in the same order.
    """
    if is_complete or sampler.excludes_tokens(engine.config.vocab_size):
        tokens = (sample_one(engine, context, sampler, max_tokens, generator_uniforms(generator)) for _ in range(n))
        return [_up_to(is_complete, drawn) for drawn in tokens]
    cache, end = engine.new_cache(1), context.bos if context.ends else NO_TOKEN

    def draw(tokens: list[int], documents: int, limit: int) -> list[list[int]]:
        recent = np.array(tokens, np.int32)
        return engine.draw_in_turn(cache, recent, documents, sampler.temperature, generator.random, end, limit)

    length, block_size = len(context.tokens), engine.config.block_size
    begin = context.read()[-context_length(length, block_size) :]
    if length and max_tokens <= room(length, block_size):
        drawn = draw(begin, n, max_tokens)
    else:
        drawn = [_sample_in_contexts(draw, begin, length, block_size, end, max_tokens) for _ in range(n)]
    return [tokens[:-1] if tokens[-1:] == [end] else tokens for tokens in drawn]


def _up_to(is_complete: IsComplete | None, tokens: Iterable[int]) -> list[int]:
    drawn: list[int] = []
    for token in tokens:
        drawn.append(token)
        if is_complete and is_complete(drawn):
            break
    return drawn


def _sample_in_contexts(
    draw: Callable[[list[int], int, int], list[list[int]]],
    recent: list[int],
    length: int,
    block_size: int,
    end: int,
    max_tokens: int,
) -> list[int]:
    """The tokens of a document that restarts its context, which has `length` tokens before; `recent` ones are seen."""
    sampled: list[int] = []
    while len(sampled) < max_tokens and end not in sampled[-1:]:
        limit = max_tokens - len(sampled) if length else 1  # the first token drawn replaces BOS
        (drawn,) = draw(recent, 1, limit)
        sampled += drawn
        length += len(drawn)
        recent = [*recent, *drawn][-context_length(length, block_size) :]
    return sampled


def sample_independently(
    engine: Engine,
    seed: int,
    context: Context,
    n: int,
    sampler: Sampler,
    max_tokens: int,
    is_complete: IsComplete | None = None,
) -> list[list[int]]:
    """The tokens of `n` documents, each from its own stream: document i is the same however many there are.

    `seed` is the 64-bit seed of the streams. A document may go on after `is_complete` where that is faster.
    """
    vocab_size, block_size = engine.config.vocab_size, engine.config.block_size
    from_bos = context.ends and context.tokens == [context.bos]
    if from_bos and max_tokens == block_size and not sampler.excludes_tokens(vocab_size):
        return _sample_from_bos(engine, seed, context.bos, n, sampler.temperature)
    parts = (range(first, min(first + DRAWN_TOGETHER, n)) for first in range(0, n, DRAWN_TOGETHER))
    drawn = (_sample_together(engine, seed, context, part, sampler, max_tokens, is_complete) for part in parts)
    return [tokens for part in drawn for tokens in part]


def _sample_together(
    engine: Engine,
    seed: int,
    context: Context,
    documents: range,
    sampler: Sampler,
    max_tokens: int,
    is_complete: IsComplete | None,
) -> list[list[int]]:
    sampled: list[list[int]] = [[] for _ in documents]
    unfinished = list(range(len(documents)))
    uniforms = stream_uniforms(seed, documents)
    for drawn in islice(continue_together(engine, context, len(documents), sampler, uniforms), max_tokens):
        tokens = drawn.tolist()
        unfinished = [i for i in unfinished if not context.is_over(tokens[i])]
        for i in unfinished:
            sampled[i].append(tokens[i])
        if is_complete:
            unfinished = [i for i in unfinished if not is_complete(sampled[i])]
        if not unfinished:
            break
    return sampled


def _sample_from_bos(engine: Engine, seed: int, bos: int, n: int, temperature: float) -> list[list[int]]:
    """The same for documents that begin with BOS and end when the context is full: one call, much faster."""
    check_room(n * (4 * engine.config.block_size + 8), f"an n of {n:,}")  # for tokens and lengths
    tokens, lengths = engine.draw_documents(seed, n, bos, temperature)
    counted = tokens[np.arange(engine.config.block_size) < lengths[:, None]].tolist()
    ends = np.cumsum(lengths).tolist()
    return [counted[start:end] for start, end in zip([0, *ends], ends)]
