"""Drawing tokens from a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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

# What commands and pages draw, unless told otherwise; the first two are microgpt's.
SAMPLES = 20  # documents
TEMPERATURE = 0.5
TEXT_TOKENS = 500  # of a continuous text
DRAWN_TOGETHER = 64  # documents: more would gain little and take memory
LOWEST_TEMPERATURE = 1e-30  # above 0: float32 can still divide by it
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what decoders make of bytes that are no character, or not yet
MOST_INCOMPLETE = 3  # bytes of a character in UTF-8 that lacks its last


@dataclass(frozen=True)
class Sampler:
    """How the next token is chosen. `ValueError` or `TypeError` says which attribute is wrong.

    Attributes:
        temperature: divides the logits: 1 samples the model as it is, towards 0 the likeliest token always wins. At 0,
            and below 1e-30, that is the token with the largest logit.
        top_k: how many of the likeliest tokens can be drawn; None: all of them. 1 is the same as temperature 0.
        top_p: the probability, more than 0 and at most 1, that the tokens that can be drawn must have together: no more
            of the likeliest than that takes (Holtzman et al., 2020); None: all of them. With both, `top_k` comes first.

    Of tokens with the same probability, the one with the smaller id counts as the likelier.
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
        """Whether `top_k` or `top_p` keeps tokens from being drawn that the temperature would allow."""
        return self.temperature > 0 and ((self.top_k or vocab_size) < vocab_size or (self.top_p or 1) < 1)

    def draw(
        self, engine: Engine, cache: Cache, tokens: NDArray[np.int32], uniforms: NDArray[np.float64]
    ) -> NDArray[np.int32]:
        """Append a token to each document of `cache`: int32, what follows, drawn with these numbers of random()."""
        if not self.excludes_tokens(engine.config.vocab_size):
            return engine.draw_tokens(cache, tokens, self.temperature, uniforms)
        from microgpt.engine.reference_engine import draw_tokens  # only who uses it pays for its import

        return draw_tokens(self.likeliest(engine.next_probabilities(cache, tokens, self.temperature)), uniforms)

    def likeliest(self, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        """The probabilities (documents, vocab_size) of the tokens that can be drawn, and 0 for the others."""
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


@dataclass(frozen=True)
class Context:
    """The beginning of a document or a text, which is to be continued.

    Attributes:
        tokens: those that precede what is drawn, BOS included. In a text, BOS may be a token that training never saw;
            then it is not among them, and there may be none.
        bos: the token that is read where there are none. It is forgotten as soon as one has been drawn.
        ends: whether drawing BOS ends the document; otherwise it goes on.
    """

    tokens: list[int]
    bos: int
    ends: bool

    def read(self) -> list[int]:
        """The tokens that are given to the model, at least one."""
        return self.tokens or [self.bos]

    def is_over(self, token: int) -> bool:
        """Whether drawing this token ends the document."""
        return self.ends and token == self.bos


def context_length(length: int, block_size: int) -> int:
    """How many of `length` tokens, given to a model one after the other, it sees: the last ones, at most block_size.

    A token that finds the context full begins a new one, with its positions from 0, of half the length: the tokens
    before it that fill it, and itself.
    """
    if length <= block_size:
        return length
    half = max(1, block_size // 2)
    return half + (length - block_size - 1) % (block_size - half + 1)


def room(length: int, block_size: int) -> int:
    """How many tokens can be drawn after `length` tokens before a new context begins; at least 1."""
    return block_size + 1 - context_length(length, block_size)


def next_probabilities(engine: Engine, context: Context) -> NDArray[np.float64]:
    """Probabilities (vocab_size) of the token that follows `context`, of which `context_length` tokens count."""
    cache, tokens = engine.new_cache(1), context.read()
    for token in tokens[-context_length(len(tokens), engine.config.block_size) :]:
        probabilities = engine.next_probabilities(cache, np.array([token], np.int32), 1.0)
    return probabilities.ravel()


def continue_together(
    engine: Engine, context: Context, n: int, sampler: Sampler, uniforms: Iterable[NDArray[np.float64]]
) -> Iterator[NDArray[np.int32]]:
    """The next token of each of `n` documents that all begin with `context`, again and again: int32 (n,).

    `uniforms` has an array (n,) for each of them, from which it is drawn. It is for the caller to see where a document
    ends. How much of what came before counts is said at `context_length`.
    """
    block_size = engine.config.block_size
    length = len(context.tokens)  # where it is 0, the first token drawn takes the place of BOS below
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
    """Numbers for one document, from a generator."""
    while True:
        yield np.array([generator.random()])


def stream_uniforms(seed: int, documents: range) -> Iterator[NDArray[np.float64]]:
    """Numbers for these documents, each from its own stream."""
    for position in count():
        yield np.array([uniform_of(seed, document, position) for document in documents])


def sample_one(
    engine: Engine,
    context: Context,
    sampler: Sampler,
    max_tokens: int | None,
    uniforms: Iterable[NDArray[np.float64]],
) -> Iterator[int]:
    """The tokens that follow `context` until it ends, without BOS, at most `max_tokens` of them; None: any number."""
    for (token,) in islice(continue_together(engine, context, 1, sampler, uniforms), max_tokens):
        if context.is_over(token):
            return
        yield int(token)


def sample_in_turn(
    engine: Engine, generator: Generator, context: Context, n: int, sampler: Sampler, max_tokens: int
) -> list[list[int]]:
    """`n` times the tokens that `sample_one` gives.

    Source: the inference loop of microgpt; the generator is spent in its order, once for each token drawn.
    """
    return [list(sample_one(engine, context, sampler, max_tokens, generator_uniforms(generator))) for _ in range(n)]


def sample_independently(
    engine: Engine, seed: int, context: Context, n: int, sampler: Sampler, max_tokens: int
) -> list[list[int]]:
    """The same with random numbers of its own for each document: document i is the same however many there are.

    `seed` is that of their streams, 64 bits.
    """
    vocab_size, block_size = engine.config.vocab_size, engine.config.block_size
    from_bos = context.ends and context.tokens == [context.bos]
    if from_bos and max_tokens == block_size and not sampler.excludes_tokens(vocab_size):
        return _sample_from_bos(engine, seed, context.bos, n, sampler.temperature)
    parts = (range(first, min(first + DRAWN_TOGETHER, n)) for first in range(0, n, DRAWN_TOGETHER))
    return [tokens for part in parts for tokens in _sample_together(engine, seed, context, part, sampler, max_tokens)]


def _sample_together(
    engine: Engine, seed: int, context: Context, documents: range, sampler: Sampler, max_tokens: int
) -> list[list[int]]:
    sampled: list[list[int]] = [[] for _ in documents]
    unfinished = list(range(len(documents)))
    uniforms = stream_uniforms(seed, documents)
    for drawn in islice(continue_together(engine, context, len(documents), sampler, uniforms), max_tokens):
        tokens = drawn.tolist()
        unfinished = [i for i in unfinished if not context.is_over(tokens[i])]
        for i in unfinished:
            sampled[i].append(tokens[i])
        if not unfinished:
            break
    return sampled


def _sample_from_bos(engine: Engine, seed: int, bos: int, n: int, temperature: float) -> list[list[int]]:
    """The same from BOS until the context is full, in one call of the engine: much faster."""
    check_room(n * (4 * engine.config.block_size + 8), f"an n of {n:,}")  # for tokens and lengths
    tokens, lengths = engine.draw_documents(seed, n, bos, temperature)
    counted = tokens[np.arange(engine.config.block_size) < lengths[:, None]].tolist()
    ends = np.cumsum(lengths).tolist()
    return [counted[start:end] for start, end in zip([0, *ends], ends)]


def text_pieces(decode: Callable[[list[int]], str], prompt: Sequence[int], tokens: Iterable[int]) -> Iterator[str]:
    """What `tokens` add to the text of `prompt`, piece by piece, each as soon as no further token can change it.

    A token may be a part of a character. Joined, the pieces are what `decode` makes of all tokens, less the prompt.
    """
    window = list(prompt)  # a few tokens before those that are new: some decoders look at what precedes
    text = decode(window)
    settled, shown = len(window), len(text)
    for token in tokens:
        window.append(token)
        text = decode(window)
        stable = max(len(text.rstrip(REPLACEMENT)), len(text) - MOST_INCOMPLETE)
        if stable > shown:
            yield text[shown:stable]
            shown = stable
        if stable == len(text):
            del window[:settled]
            text = decode(window)
            settled, shown = len(window), len(text)
    if len(text) > shown:
        yield text[shown:]
