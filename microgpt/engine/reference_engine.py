"""The reference engine: `microgpt.reference` behind the interface that `GPT` uses.

The compiled engine (csrc/engine.pyx) is its twin: same methods, same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from microgpt import reference
from microgpt.engine.ranks import Alone
from microgpt.random.splitmix import step_stream, stream_of, uniform_of, uniforms

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from microgpt.config import GPTConfig
    from microgpt.engine.interface import AdamState, Ranks
    from microgpt.engine.packing import PackedSequences


class Cache:
    """The keys and values of documents in progress.

    Attributes:
        lengths: int32, number of tokens of each document. Setting one to 0 begins a new document there.
    """

    def __init__(self, samples: int, n_layer: int, state_dict: reference.StateDict) -> None:
        self.lengths = np.zeros(samples, np.int32)
        self.keys: list[Any] = [[[] for _ in range(n_layer)] for _ in range(samples)]
        self.values: list[Any] = [[[] for _ in range(n_layer)] for _ in range(samples)]
        self.state_dict = state_dict

    def clear(self, sample: int) -> None:
        """Drop the keys and values of a document."""
        for layer in (*self.keys[sample], *self.values[sample]):
            layer.clear()


class Parameters:
    """A list of `Value` behind the interface that `Adam` uses."""

    def __init__(self, values: list[reference.Value]) -> None:
        self.values = values

    def adam_step(self, adam: AdamState, learning_rate: float) -> None:
        """Update every value by its gradient, and the state of `adam`."""
        clip(self.values, adam)
        move(self.values, adam, learning_rate)


def clip(values: list[reference.Value], adam: AdamState) -> None:
    """Scale the gradients of all values down to the norm that `adam` allows, if it limits that."""
    if adam.max_grad_norm is not None:
        scale = reference.clipping_scale(values, adam.max_grad_norm)
        for value in values:
            value.grad *= scale


def move(values: list[reference.Value], adam: AdamState, learning_rate: float) -> None:
    """Make a step of Adam with gradients that are clipped already."""
    optimizer = reference.Adam(values, learning_rate, adam.beta1, adam.beta2, adam.eps, adam.weight_decay)
    optimizer.m, optimizer.v, optimizer.step_count = adam.m.tolist(), adam.v.tolist(), adam.step_count
    optimizer.step()
    adam.m[:], adam.v[:], adam.step_count = optimizer.m, optimizer.v, optimizer.step_count


def batch_loss(
    documents: Sequence[Sequence[int]],
    streams: Sequence[int] | None,
    state_dict: reference.StateDict,
    config: GPTConfig,
    share: float,
) -> reference.Value:
    """Sum over the documents of `document_loss`, times `share`: their mean if that is 1 / len(documents).

    `streams` are those of the documents, for dropout; without them nothing is dropped.
    """
    losses = [
        reference.document_loss(tokens, state_dict, config, None if streams is None else uniforms(streams[i]))
        for i, tokens in enumerate(documents)
    ]
    return share * sum(losses)  # type: ignore[return-value]  # an empty sum is 0


class Engine:
    """`parameters` and `gradients` are flat float64 arrays in the order of `config.parameter_shapes()`."""

    def __init__(self, config: GPTConfig, parameters: NDArray[Any], gradients: NDArray[Any]) -> None:
        self.config = config
        self.parameters = parameters
        self.gradients = gradients

    def _state_dict(self) -> reference.StateDict:
        values = iter(self.parameters.tolist())
        return {
            name: [[reference.Value(next(values)) for _ in range(n_in)] for _ in range(n_out)]
            for name, (n_out, n_in) in self.config.parameter_shapes().items()
        }

    def _streams(self, stream: int | None, first: int, count: int) -> list[int] | None:
        """The streams of documents `first` and so on of a batch; None if nothing is dropped."""
        if stream is None or self.config.dropout == 0:
            return None
        return [stream_of(stream, document) for document in range(first, first + count)]

    def _loss(
        self, packed: PackedSequences, streams: list[int] | None, state_dict: reference.StateDict, share: float
    ) -> reference.Value:
        documents = [
            packed.tokens[start : start + length].tolist() for start, length in zip(packed.starts, packed.lengths)
        ]
        try:
            return batch_loss(documents, streams, state_dict, self.config, share)
        except ValueError:  # the logarithm of 0
            return reference.Value(self._loss_with_impossible_tokens(documents, streams, state_dict))

    def _loss_with_impossible_tokens(
        self, documents: list[list[int]], streams: list[int] | None, state_dict: reference.StateDict
    ) -> float:
        """NaN if any probability is NaN, otherwise infinity."""
        for i, tokens in enumerate(documents):
            cache = Cache(1, self.config.n_layer, state_dict)
            numbers = None if streams is None else uniforms(streams[i])
            for token in tokens[:-1][: self.config.block_size]:
                if math.isnan(reference.softmax(self._next(cache, 0, token, numbers))[0].data):
                    return math.nan
        return math.inf

    def loss(self, packed: PackedSequences, gradients: bool = False, stream: int | None = None) -> float:
        """See `microgpt.engine.interface.Engine`."""
        streams = self._streams(stream, 0, len(packed))
        if gradients:
            loss, self.gradients[:] = self._loss_and_gradients(packed, streams, 1 / len(packed))
            return loss
        state_dict, total = self._state_dict(), 0.0
        for i in range(len(packed)):  # keep the graph of only one document in memory
            own = None if streams is None else streams[i : i + 1]
            total += self._loss(packed.select(np.array([i])), own, state_dict, 1.0).data
        return total * (1 / len(packed))

    def _loss_and_gradients(
        self, packed: PackedSequences, streams: list[int] | None, share: float
    ) -> tuple[float, list[float] | float]:
        """`_loss` and the gradient of each parameter; NaN if the loss is not finite."""
        state_dict = self._state_dict()
        loss = self._loss(packed, streams, state_dict, share)
        if not math.isfinite(loss.data):
            return float(loss.data), math.nan
        loss.backward()
        return float(loss.data), [p.grad for matrix in state_dict.values() for row in matrix for p in row]

    def adam_step(self, adam: AdamState, learning_rate: float, piece: slice = slice(None)) -> None:
        """Update this piece of `parameters` by `gradients`, and the state of `adam`."""
        values = [reference.Value(p) for p in self.parameters.tolist()]
        for value, grad in zip(values, self.gradients.tolist()):
            value.grad = grad
        clip(values, adam)
        move(values[piece], adam, learning_rate)
        self.parameters[piece] = [value.data for value in values[piece]]

    def train(
        self,
        packed: PackedSequences,
        batch_size: int,
        learning_rates: NDArray[np.float64],
        adam: AdamState,
        losses: NDArray[np.float64],
        progress: Callable[[int], object] | None,
        shards: int = 1,
        ranks: Ranks | None = None,
        seed: int = 0,
    ) -> int:
        """See `microgpt.engine.interface.Engine`."""
        ranks = Alone() if ranks is None else ranks
        for step, learning_rate in enumerate(learning_rates.tolist()):
            stream = step_stream(seed, adam.step_count)
            losses[step] = self._shard_gradients(packed, step, batch_size, shards, ranks, stream)
            if not math.isfinite(losses[step]):
                return step
            if adam.max_grad_norm is not None:
                ranks.gather(self.gradients)
            self.adam_step(adam, learning_rate, ranks.piece)
            ranks.end_step(self.parameters)
            if progress is not None:
                progress(step + 1)
        return len(learning_rates)

    def _shard_gradients(
        self, packed: PackedSequences, step: int, batch_size: int, shards: int, ranks: Ranks, stream: int
    ) -> float:
        """The loss of a step's batch; if it is finite, `gradients` are those of the shards, added in order."""
        size, own = batch_size // shards, len(range(ranks.rank, shards, ranks.size))
        shard, sums, total = np.zeros(len(self.gradients)), self.gradients[ranks.piece], 0.0
        pieces = ranks.share(shard).reshape(ranks.size, -1)
        for turn, first in enumerate(range(0, shards, ranks.size)):
            loss, count = 0.0, min(ranks.size, shards - first)
            if first + ranks.rank < shards:
                documents = np.arange(size) + (step * own + turn) * size
                streams = self._streams(stream, (first + ranks.rank) * size, size)
                loss, shard[:] = self._loss_and_gradients(packed.select(documents), streams, 1 / batch_size)
            total = ranks.exchange(total, loss, count)
            for i in range(count):
                sums[:] = sums + pieces[i] if first + i else pieces[i]
        return total

    def logits_of(self, tokens: NDArray[np.int32]) -> NDArray[Any]:
        """See `microgpt.engine.interface.Engine`."""
        cache = Cache(1, self.config.n_layer, self._state_dict())
        return np.array([[logit.data for logit in self._next(cache, 0, token)] for token in tokens.tolist()])

    def new_cache(self, samples: int) -> Cache:
        """See `microgpt.engine.interface.Engine`."""
        return Cache(samples, self.config.n_layer, self._state_dict())

    def next_probabilities(self, cache: Cache, tokens: NDArray[np.int32], temperature: float) -> NDArray[np.float64]:
        """See `microgpt.engine.interface.Engine`."""
        logits = [self._next(cache, sample, token) for sample, token in enumerate(tokens.tolist())]
        return np.array([reference.next_token_probs(row, temperature) for row in logits])

    def draw_tokens(
        self, cache: Cache, tokens: NDArray[np.int32], temperature: float, uniforms: NDArray[np.float64]
    ) -> NDArray[np.int32]:
        """See `microgpt.engine.interface.Engine`."""
        rows = zip(self.next_probabilities(cache, tokens, temperature), uniforms)
        return np.array([reference.draw_token(row.tolist(), uniform) for row, uniform in rows], np.int32)

    def draw_in_turn(
        self,
        cache: Cache,
        tokens: NDArray[np.int32],
        n: int,
        temperature: float,
        random: Callable[[], float],
        end: int,
        limit: int,
    ) -> list[list[int]]:
        """See `microgpt.engine.interface.Engine`."""
        return [self._draw_alone(cache, tokens.tolist(), temperature, random, end, limit) for _ in range(n)]

    def _draw_alone(
        self, cache: Cache, tokens: list[int], temperature: float, random: Callable[[], float], end: int, limit: int
    ) -> list[int]:
        cache.lengths[0] = 0
        *before, token = tokens
        for each in before:
            self._next(cache, 0, each)
        drawn: list[int] = []
        while len(drawn) < limit and cache.lengths[0] < self.config.block_size and end not in drawn[-1:]:
            uniforms = np.array([random()])
            token = int(self.draw_tokens(cache, np.array([token], np.int32), temperature, uniforms)[0])
            drawn.append(token)
        return drawn

    def draw_documents(
        self, seed: int, n: int, bos: int, temperature: float
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """See `microgpt.engine.interface.Engine`."""
        tokens, lengths = np.zeros((n, self.config.block_size), np.int32), np.zeros(n, np.int64)
        for document in range(n):
            cache, token = self.new_cache(1), bos
            for position in range(self.config.block_size):
                uniforms = np.array([uniform_of(seed, document, position)])
                token = int(self.draw_tokens(cache, np.array([token], np.int32), temperature, uniforms)[0])
                tokens[document, position] = token
                if token == bos:
                    break
                lengths[document] += 1
        return tokens, lengths

    def _next(
        self, cache: Cache, sample: int, token: int, numbers: Iterator[float] | None = None
    ) -> list[reference.Value]:
        if cache.lengths[sample] == 0:
            cache.clear(sample)
        position = int(cache.lengths[sample])
        if position >= self.config.block_size:
            raise ValueError(f"document {sample} already has block_size={self.config.block_size} tokens")
        cache.lengths[sample] += 1
        keys, values = cache.keys[sample], cache.values[sample]
        return reference.gpt(token, position, keys, values, cache.state_dict, self.config, numbers)
