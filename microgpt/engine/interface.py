"""What an engine has to offer, and what it may ask for: the interface that both backends satisfy.

The reference is `microgpt.engine.reference_engine` and `microgpt.random.mersenne`, the compiled twin is csrc/*.pyx.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from microgpt.config import GPTConfig
    from microgpt.engine.packing import PackedSequences


class AdamState(Protocol):
    """What a step of Adam reads, and `m`, `v` and `step_count`, which it moves on. A `microgpt.Adam` is one."""

    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    max_grad_norm: float | None
    m: NDArray[Any]
    v: NDArray[Any]
    step_count: int


class Parameters(Protocol):
    """What `Adam` moves."""

    def adam_step(self, adam: AdamState, learning_rate: float) -> None:
        """Move every parameter against its gradient."""


class Cache(Protocol):
    """The keys and values of documents in progress."""

    @property
    def lengths(self) -> NDArray[np.int32]:
        """How many tokens each document has; where one is set to 0, a new document begins."""


class Engine(Parameters, Protocol):
    """A model over flat arrays of parameters and gradients, in the order of `config.parameter_shapes()`.

    Each takes only the caches that its own `new_cache` gave.
    """

    @property
    def config(self) -> GPTConfig:
        """The sizes of the model."""

    def loss(self, packed: PackedSequences, gradients: bool = False) -> float:
        """Mean over the documents of `packed` of the mean over their positions, in nats.

        Infinite where the probability of a token is 0, and NaN where any is NaN.
        With `gradients`, the array of that name then holds its derivatives: NaN where the loss is not finite.
        """

    def train(
        self,
        packed: PackedSequences,
        batch_size: int,
        learning_rates: NDArray[np.float64],
        adam: AdamState,
        losses: NDArray[np.float64],
        progress: Callable[[int], object] | None,
    ) -> int:
        """Run one step of Adam for each learning rate, each on the next `batch_size` documents of `packed`.

        Fills `losses` and returns how many steps were made: fewer than asked for where a loss, then the last one
        filled, was not finite. Counts in `adam.step_count`, also when interrupted. `progress` is called now and then
        with the number of steps completed.
        """

    def logits_of(self, tokens: NDArray[np.int32]) -> NDArray[Any]:
        """Logits over what follows each of up to block_size tokens, shape (len(tokens), vocab_size)."""

    def new_cache(self, samples: int) -> Cache:
        """A cache for `samples` new documents, to be continued with the parameters as they are."""

    def next_probabilities(self, cache: Any, tokens: NDArray[np.int32], temperature: float) -> NDArray[np.float64]:
        """Append a token to each document of `cache`: probabilities of what follows, (documents, vocab_size).

        At temperature 0, the first of the tokens with the largest logit has probability 1, in all methods.
        """

    def draw_tokens(
        self, cache: Any, tokens: NDArray[np.int32], temperature: float, uniforms: NDArray[np.float64]
    ) -> NDArray[np.int32]:
        """Append a token to each document of `cache`: int32, what follows, drawn as `random.choices` draws.

        Where the probabilities are NaN, that is the last token. `uniforms` are what random() gave for each of them.
        """

    def draw_documents(
        self, seed: int, n: int, bos: int, temperature: float
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """`n` documents of their own: int32 (n, block_size) what follows `bos`, and int64 (n,) how much of it counts.

        Token t of document i is drawn with number t of its stream of random numbers.
        """


class Generator(Protocol):
    """Random numbers: those of `random.Random`, in its order."""

    def random(self) -> float:
        """A number in [0, 1)."""

    def randrange(self, n: int, /) -> int:
        """A whole number in [0, n)."""

    def permutation(self, n: int) -> NDArray[np.int64]:
        """The numbers below `n` as `shuffle` orders them: int64."""

    def fill_gauss(self, array: NDArray[Any], sigma: float) -> None:
        """Fill a one-dimensional float array with `gauss(0, sigma)`, in order."""

    def getstate(self) -> tuple[Any, ...]:
        """The state as `random.Random.getstate` gives it."""

    def setstate(self, state: tuple[Any, ...], /) -> None:
        """Continue from a state that `getstate` gave."""
