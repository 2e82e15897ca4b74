from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from microgpt.config import GPTConfig
from microgpt.engine.interface import AdamState, Ranks
from microgpt.engine.packing import PackedSequences

class ThreadTeam:
    def __new__(cls, size: int) -> ThreadTeam: ...
    def __enter__(self) -> ThreadTeam: ...
    def __exit__(self, *error: object) -> None: ...
    def work(self, thread: int) -> None: ...

class Cache:
    def __init__(
        self, engine: Engine, samples: int, store: NDArray[Any], packed: NDArray[Any] | None = None
    ) -> None: ...
    @property
    def lengths(self) -> NDArray[np.int32]: ...

class Engine:
    def __init__(
        self,
        config: GPTConfig,
        parameters: NDArray[Any],
        gradients: NDArray[Any],
        instruction_set: str | None,
        threads: int,
    ) -> None: ...
    @property
    def config(self) -> GPTConfig: ...
    @property
    def parameters(self) -> NDArray[Any]: ...
    @property
    def gradients(self) -> NDArray[Any]: ...
    @property
    def threads(self) -> int: ...
    @property
    def lock(self) -> AbstractContextManager[None]: ...
    def loss(self, packed: PackedSequences, gradients: bool = False, stream: int | None = None) -> float: ...
    def adam_step(self, adam: AdamState, learning_rate: float) -> None: ...
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
        clocks: NDArray[np.int64] | None = None,
    ) -> int: ...
    def logits_of(self, tokens: NDArray[np.int32]) -> NDArray[Any]: ...
    def new_cache(self, samples: int) -> Cache: ...
    def next_probabilities(
        self, cache: Cache, tokens: NDArray[np.int32], temperature: float
    ) -> NDArray[np.float64]: ...
    def draw_tokens(
        self, cache: Cache, tokens: NDArray[np.int32], temperature: float, uniforms: NDArray[np.float64]
    ) -> NDArray[np.int32]: ...
    def draw_in_turn(
        self,
        cache: Cache,
        tokens: NDArray[np.int32],
        n: int,
        temperature: float,
        random: Callable[[], float],
        end: int,
        limit: int,
    ) -> list[list[int]]: ...
    def draw_documents(
        self, seed: int, n: int, bos: int, temperature: float
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]: ...

def instruction_sets() -> list[str]: ...
def update_with_adam(
    parameters: NDArray[Any],
    gradients: NDArray[Any],
    adam: AdamState,
    learning_rate: float,
    instruction_set: str | None,
) -> None: ...
def multiply_adds(dtype: str, instruction_set: str | None, iterations: int) -> int: ...
def divisions_and_roots(dtype: str, instruction_set: str | None, iterations: int) -> int: ...
