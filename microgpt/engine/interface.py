"""The interface of engines, which both backends satisfy: `microgpt.engine.reference_engine` and csrc/engine.pyx."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from microgpt.config import GPTConfig
    from microgpt.engine.packing import PackedSequences


class AdamState(Protocol):
    """The options of `microgpt.Adam`, and the state that its steps update: `m`, `v` and `step_count`."""

    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    max_grad_norm: float | None
    m: NDArray[Any]
    v: NDArray[Any]
    step_count: int


class Parameters(Protocol):
    """Parameters that `Adam` updates."""

    def adam_step(self, adam: AdamState, learning_rate: float) -> None:
        """Update every parameter by its gradient."""


class Cache(Protocol):
    """The keys and values of documents in progress."""

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Number of tokens of each document. Setting one to 0 begins a new document there."""


class Ranks(Protocol):
    """The processes that train one model together; every one calls each method, in the same order.

    Attributes:
        rank, size: the number of this process, and how many there are.
        piece: the slice of the parameters whose gradients this process sums, and which its Adam moves.
    """

    rank: int
    size: int
    piece: slice

    def share(self, gradients: NDArray[Any]) -> NDArray[Any]:
        """Register the array whose content each `exchange` sends: the gradients of a shard.

        Returns the flat array that `exchange` fills: this rank's piece of the gradients of `size` shards, one after the
        other.
        """

    def exchange(self, total: float, loss: float, count: int) -> float:
        """Exchange losses and gradients after a round in which the first `count` ranks have computed a shard each.

        Returns `total` plus each loss, in the order of the ranks. If that is not finite, no gradients are exchanged.
        """

    def gather(self, array: NDArray[Any]) -> None:
        """Fill an array as long as the parameters with the `piece` of each rank."""

    def end_step(self, parameters: NDArray[Any]) -> None:
        """Gather the parameters; then raise `Stopped` if a rank has been asked to stop, or there its own reason."""


class Engine(Parameters, Protocol):
    """A model over flat arrays of parameters and gradients, in the order of `config.parameter_shapes()`.

    It accepts only caches from its own `new_cache`.
    """

    @property
    def config(self) -> GPTConfig:
        """The architecture of the model."""

    @property
    def parameters(self) -> NDArray[Any]:
        """All parameters, shared with the model."""

    def loss(self, packed: PackedSequences, gradients: bool = False, stream: int | None = None) -> float:
        """Mean over the documents of `packed` of the mean over their positions, in nats.

        Dropout needs a `stream`, see `random.splitmix`: document i has the random numbers of `stream_of(stream, i)`.
        Without it, nothing is dropped.

        Infinite if a token has probability 0, NaN if any probability is NaN. With `gradients`, the array of that name
        then holds its derivatives: all NaN if the loss is not finite.
        """

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
        """Run one step of Adam for each learning rate, each on the next `batch_size` documents of `packed`.

        The documents of a step are in `shards` groups of equal size. The gradients of each are summed alone, and then
        added in order. With `ranks`, each computes one shard in a round: then `packed` has only the documents of shards
        `rank`, `rank + size` and so on, and `adam` the moments of `piece`. For dropout, document i of the whole batch
        has the random numbers that `loss` gives it with the stream `step_stream(seed, adam.step_count)`; `seed` has 64
        bits.

        Fills `losses` and returns the number of steps completed: all, unless a loss, the last one filled, is not
        finite. `adam.step_count` counts them, also when interrupted. `progress` is called now and then with the number
        of steps completed.
        """

    def logits_of(self, tokens: NDArray[np.int32]) -> NDArray[Any]:
        """Logits of the token after each of up to block_size tokens, shape (len(tokens), vocab_size)."""

    def new_cache(self, samples: int) -> Cache:
        """A cache for `samples` new documents; valid until the parameters change.

        One for a single document has another layout than one for several, in which it is faster.
        """

    def next_probabilities(self, cache: Any, tokens: NDArray[np.int32], temperature: float) -> NDArray[np.float64]:
        """Append a token to each document of `cache` and return the probabilities of the next, (documents, vocab_size).

        At temperature 0, in all methods, the first of the tokens with the largest logit has probability 1.
        """

    def draw_tokens(
        self, cache: Any, tokens: NDArray[np.int32], temperature: float, uniforms: NDArray[np.float64]
    ) -> NDArray[np.int32]:
        """Append a token to each document of `cache` and draw the next as `random.choices` does: int32.

        `uniforms` has a random number in [0, 1) for each document. Probabilities of NaN draw the last token.
        """

    def draw_in_turn(
        self,
        cache: Any,
        tokens: NDArray[np.int32],
        n: int,
        temperature: float,
        random: Callable[[], float],
        end: int,
        limit: int,
    ) -> list[list[int]]:
        """Draw `n` documents that begin with `tokens`, at least one, in a `cache` for one; returns what follows them.

        Each ends with `end`, after `limit` tokens, or when the model has read block_size tokens. They are drawn one
        after the other, with a number in [0, 1) for each token, for which `random` is called.
        """

    def draw_documents(
        self, seed: int, n: int, bos: int, temperature: float
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Draw `n` new documents: tokens after `bos`, int32 (n, block_size), and how many of them count, int64 (n,).

        Token t of document i is drawn with number t of the document's stream of random numbers, see `random.splitmix`.
        """
