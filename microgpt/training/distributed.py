"""One model trained by several processes, the ranks of an MPI communicator, with the bits of a single one.

Rank 0 runs the loop of `Run`: it reads the data, validates, writes and reports. The others `follow`: they train on
documents that rank 0 sends them, a block of steps at a time. In each step, MPI moves bytes and never adds:

    1. each rank computes the gradients of one shard of the batch           `Engine.train`
    2. each rank gets the pieces of all shards for its slice of the model   Alltoallv
    3. it adds them in the order of the shards; 1 to 3 repeat while shards are left
    4. it makes the step of Adam for its slice, whose moments only it has
    5. all get the new parameters                                           Allgatherv

Source: ZeRO, stage 1 (Rajbhandari et al., 2020), with a fixed order of every sum.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import pickle
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from microgpt import __version__
from microgpt.checkpoint import parameters_hash
from microgpt.config import GPTConfig
from microgpt.data.documents import Data, open_source
from microgpt.data.tokenizer import Tokenizer
from microgpt.engine import backend as backends
from microgpt.engine.arrays import aligned_copy, aligned_zeros
from microgpt.engine.cores import physical_cores
from microgpt.engine.packing import PackedSequences
from microgpt.history import TrainingHistory
from microgpt.model import GPT
from microgpt.optimizer import Adam
from microgpt.training.recipe import Recipe
from microgpt.training.run import Run, TrainingResult
from microgpt.training.signals import ENDINGS, DeferredSignals, Stopped
from microgpt.utils.arguments import shown
from microgpt.utils.mpi import mpi

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from microgpt.engine.interface import Engine

SLICE_UNIT = 1024  # parameters: slices begin at multiples of it, see ADAM_TASK in csrc/adam_step.h
OWN_TO_EACH_RANK = ("threads",)  # options that change no bit
DATA = "data"


@dataclass(frozen=True)
class Setup:
    """Everything that rank 0 tells the others before the first step, but for the numbers of the model."""

    recipe: Recipe
    config: GPTConfig
    tokenizer: Tokenizer
    format: str
    step: int
    dropout_seed: int


@dataclass(frozen=True)
class Block:
    """The work of one rank in consecutive steps: its documents, and the learning rate of each step."""

    documents: PackedSequences
    learning_rates: NDArray[np.float64]


class SendMoments:
    """The request for the moments of Adam, for a checkpoint."""


@dataclass(frozen=True)
class End:
    """The end of training: what rank 0 knows of the model beyond its parameters."""

    history: TrainingHistory | None
    generator: tuple[Any, ...]


@dataclass(frozen=True)
class Failure:
    """The end of training by an error of rank 0."""

    error: BaseException


class Ranks:
    """The ranks of an MPI communicator, see `microgpt.engine.interface.Ranks`.

    Args:
        communicator: a communicator of mpi4py, with at most as many ranks as there are shards.

    Attributes:
        piece: the slice of the parameters whose gradients this rank sums, and which its Adam moves.
    """

    def __init__(self, communicator: Any) -> None:
        self.communicator = communicator.Dup()  # messages of the caller must not mix with these
        self.rank: int = communicator.rank
        self.size: int = communicator.size
        self.piece = slice(0, 0)
        self.signals = DeferredSignals()
        self.dropout_seed = 0  # of the run, see `Run`
        self._error: BaseException | None = None  # of the progress callback: all ranks have to stop first
        self._agreed: BaseException | None = None  # an error at which all ranks have stopped
        self._asked_to_stop = False
        self._counts: list[int] = []  # parameters in the slice of each rank
        self._starts: list[int] = []
        self._gradients, self._pieces = np.zeros(0), np.zeros(0)

    def divide(self, num_params: int) -> None:
        """Give each rank a slice of the parameters."""
        units = -(-num_params // SLICE_UNIT)
        bounds = [min(units * rank // self.size * SLICE_UNIT, num_params) for rank in range(self.size + 1)]
        self._starts, self._counts = bounds[:-1], np.diff(bounds).tolist()
        self.piece = slice(bounds[self.rank], bounds[self.rank + 1])

    def threads(self, options: Mapping[str, Any]) -> int | None:
        """The threads that `options` ask for, by default this rank's share of the cores that it may use."""
        same_node = self.communicator.Split_type(mpi().COMM_TYPE_SHARED)
        cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None  # mpiexec may divide them
        share = max(1, physical_cores() // same_node.allgather(cores).count(cores))
        same_node.Free()
        threads: int | None = options.get("threads")
        return share if threads is None and backends.choose(options.get("backend")) == "compiled" else threads

    # --- Called by an engine in each step -----------------------------------------------------------------------------

    def share(self, gradients: NDArray[Any]) -> NDArray[Any]:
        """See `microgpt.engine.interface.Ranks`."""
        self._gradients = gradients
        size = self.size * self._counts[self.rank]
        if len(self._pieces) != size or self._pieces.dtype != gradients.dtype:
            self._pieces = aligned_zeros(size, gradients.dtype, "the gradients of all shards")
        return self._pieces

    def exchange(self, total: float, loss: float, count: int) -> float:
        """See `microgpt.engine.interface.Ranks`."""
        asked = -1 if self._error is not None else self.signals.number or 0
        answers = np.zeros((self.size, 2))
        self.communicator.Allgather(np.array([loss, asked]), answers)
        if answers[:, 1].any():
            self._asked_to_stop = True
            if self.signals.number is None and answers[:, 1].max() > 0:
                self.signals.number = int(answers[:, 1].max())  # a signal to one rank is a signal to all
        for each in answers[:count, 0].tolist():
            total += each
        if math.isfinite(total):
            own = self._counts[self.rank]
            sent = self._counts if self.rank < count else [0] * self.size
            received = [own if rank < count else 0 for rank in range(self.size)]
            self.communicator.Alltoallv(
                [self._gradients, (sent, self._starts)],
                [self._pieces, (received, [rank * own for rank in range(self.size)])],
            )
        return total

    def gather(self, array: NDArray[Any]) -> None:
        """See `microgpt.engine.interface.Ranks`."""
        self.communicator.Allgatherv(mpi().IN_PLACE, [array, (self._counts, self._starts)])

    def end_step(self, parameters: NDArray[Any]) -> None:
        """See `microgpt.engine.interface.Ranks`."""
        self.gather(parameters)
        if self._asked_to_stop:
            self._asked_to_stop = False
            self._agreed, self._error = self._error or Stopped(), None
            raise self._agreed

    # --- Called by rank 0 ---------------------------------------------------------------------------------------------

    def _begin(self, run: Run) -> None:
        """Hand the model and its optimizer to all ranks; each keeps the moments of its slice."""
        model, optimizer, self.dropout_seed = run.model, run.optimizer, run.dropout_seed
        tokenizer = run.corpus.tokenizer
        setup = Setup(run.recipe, model.config, tokenizer, model.format, run.step, run.dropout_seed)
        self._send([setup] * self.size)
        with self._aborting():
            self._share_state(model, optimizer)
        run.ranks = self

    def train(
        self,
        engine: Engine,
        documents: PackedSequences,
        recipe: Recipe,
        learning_rates: NDArray[np.float64],
        adam: Adam,
        losses: NDArray[np.float64],
        progress: Callable[[int], object],
    ) -> int:
        """`Engine.train` on all ranks: this one has the documents of all.

        An error of `progress` ends the step on all ranks before it propagates.
        """

        def report(completed: int) -> None:
            try:
                progress(completed)
            except BaseException as error:  # noqa: BLE001 (raised again after the step)
                self._error = error

        blocks = [Block(part, learning_rates) for part in self._divided(documents, recipe)]
        self._send(blocks)
        completed = self._train(engine, blocks[0], recipe, adam, losses, report)
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return completed

    def whole(self, optimizer: Adam) -> Adam:
        """A copy of the optimizer with the moments of all ranks."""
        self._send([SendMoments()] * self.size)
        whole = copy.copy(optimizer)
        with self._aborting():
            whole.m, whole.v = self._gathered_moments(optimizer)
        return whole

    @contextlib.contextmanager
    def leading(self, prepare: Callable[[], Run]) -> Iterator[Run]:
        """Prepare a run that the others follow, up to the end of `with`; an error there becomes theirs."""
        if self.size == 1:
            self.communicator.Free()
            yield prepare()
            return
        try:
            run = prepare()
            self._begin(run)
            yield run
        except BaseException as error:
            self._end(Failure(_sendable(error)))
            raise
        self._end(End(run.model.history, run.model.generator.getstate()))

    def _end(self, message: End | Failure) -> None:
        self._send([message] * self.size)
        self.communicator.Free()

    # --- Called by the other ranks ------------------------------------------------------------------------------------

    def follow(self, backend: str | None, threads: int | None) -> TrainingResult:
        """Train on what rank 0 sends, to the end. An error of rank 0 is raised here, too."""
        with DeferredSignals(*ENDINGS) as self.signals, self._aborting():
            setup = self._receive()
            recipe, self.dropout_seed = setup.recipe, setup.dropout_seed
            model = GPT(setup.config, 0, recipe.dtype, backend, threads, setup.tokenizer, setup.format)
            optimizer = recipe.optimizer(model)
            optimizer.step_count = setup.step
            self._share_state(model, optimizer)
            while not isinstance(message := self._receive(), End):
                if isinstance(message, SendMoments):
                    self._gathered_moments(optimizer)
                else:
                    self.signals.forget()  # rank 0 has passed it to its handler, which has returned
                    losses = np.zeros(len(message.learning_rates))
                    with contextlib.suppress(Stopped):
                        self._train(model.engine, message, recipe, optimizer, losses, None)
        self.communicator.Free()
        model.history = message.history
        model.generator.setstate(message.generator)
        return TrainingResult(model)

    # --- Shared by all ------------------------------------------------------------------------------------------------

    def _train(
        self,
        engine: Engine,
        block: Block,
        recipe: Recipe,
        adam: Adam,
        losses: NDArray[np.float64],
        progress: Callable[[int], object] | None,
    ) -> int:
        with self._aborting():
            return engine.train(
                block.documents,
                recipe.batch_size,
                block.learning_rates,
                adam,
                losses,
                progress,
                recipe.shards,
                self,
                self.dropout_seed,
            )

    @contextlib.contextmanager
    def _aborting(self) -> Iterator[None]:
        """End all ranks at an error that they do not share: in the middle of a step, they would wait for ever."""
        try:
            yield
        except BaseException as error:
            if error is not self._agreed:
                what = " ".join(str(error).split()) or type(error).__name__
                sys.stderr.write(f"microgpt: error: rank {self.rank}: {what}\n")
                sys.stderr.flush()
                self.communicator.Abort(2)
            raise

    def _send(self, messages: list[Any]) -> None:
        self.communicator.scatter(messages)

    def _receive(self) -> Any:
        message = self.communicator.scatter(None)
        if isinstance(message, Failure):
            self._agreed = message.error
            self.communicator.Free()
            raise message.error
        return message

    def _divided(self, documents: PackedSequences, recipe: Recipe) -> list[PackedSequences]:
        """The documents of each rank: those of shards `rank`, `rank + size` and so on of each step."""
        numbers = np.arange(len(documents)).reshape(-1, recipe.shards, recipe.batch_size // recipe.shards)
        return [documents.select(numbers[:, rank :: self.size].ravel()).compact() for rank in range(self.size)]

    def _share_state(self, model: GPT, optimizer: Adam) -> None:
        """Give every rank the parameters of rank 0, and its slice of the moments."""
        self.divide(model.num_params)
        self.communicator.Bcast(model.engine.parameters)
        for name in ("m", "v"):
            moments = getattr(optimizer, name)
            own = aligned_copy(moments[self.piece], model.dtype, "Adam")
            self.communicator.Scatterv([moments, (self._counts, self._starts)], own)
            setattr(optimizer, name, own)

    def _gathered_moments(self, optimizer: Adam) -> tuple[NDArray[Any], NDArray[Any]]:
        """The moments of all ranks, on rank 0."""
        m, v = (np.zeros(sum(self._counts) if self.rank == 0 else 0, optimizer.m.dtype) for _ in range(2))
        for own, whole in ((optimizer.m, m), (optimizer.v, v)):
            self.communicator.Gatherv(own, [whole, (self._counts, self._starts)])
        return m, v


def join(communicator: Any, data: Data, options: Mapping[str, Any]) -> Ranks:
    """Ranks of a communicator, after checking that all have made the same call.

    `TypeError` if it is not a communicator of mpi4py. On every rank, `ValueError` if there are more of them than
    shards, or if their versions, data or options differ; and the error of the first rank that cannot take part.
    """
    if not isinstance(communicator, mpi().Intracomm):
        raise TypeError(f"communicator must be one of mpi4py, such as MPI.COMM_WORLD, got {shown(communicator)}")
    ranks = Ranks(communicator)
    own: dict[str, str] | BaseException
    try:
        own = _description(data, options)
    except Exception as error:  # noqa: BLE001 (raised below, when the others know of it)
        own = _sendable(error)
    descriptions = communicator.gather(own)
    problem = communicator.bcast(descriptions and _problem(descriptions, options))
    if problem is not None:
        ranks.communicator.Free()
        raise problem
    return ranks


def _problem(descriptions: list[Any], options: Mapping[str, Any]) -> BaseException | None:
    """The error of the first rank that has one, or a `ValueError` that says why they cannot train together."""
    for description in descriptions:
        if isinstance(description, BaseException):
            return description
    shards = options.get("shards", Recipe.shards)
    text = _difference(descriptions)
    if text is None and isinstance(shards, (int, np.integer)) and len(descriptions) > shards:
        text = f"shards must be at least the number of ranks, got shards={shards} for {len(descriptions)} ranks"
    return None if text is None else ValueError(text)


def _description(data: Data, options: Mapping[str, Any]) -> dict[str, str]:
    """Everything in which ranks must agree, by name, as text."""
    described = {"microgpt's version": __version__, "the backend": backends.choose(options.get("backend"))}
    if fingerprint := _fingerprint(data):
        described[DATA] = fingerprint
    if options.get("dtype") == "float32":  # whose bits depend on it
        described["the instruction set"] = str(backends.instruction_set())
    for name, value in options.items():
        if isinstance(value, GPT):
            value = parameters_hash(value.state_dict())
        if name not in OWN_TO_EACH_RANK:
            described[name] = repr(value) if isinstance(value, (int, float, str, type(None))) else _hash(value)
    return described


def _difference(descriptions: list[dict[str, str]]) -> str | None:
    """A line that names the first difference between rank 0 and another, or None."""
    first = descriptions[0]
    for rank, other in enumerate(descriptions[1:], 1):
        for name in {**first, **other}:
            if name == DATA and not (name in first and name in other):
                continue
            ours, theirs = first.get(name, "left out"), other.get(name, "left out")
            if ours != theirs:
                return f"{name} must be the same on all ranks, got {ours:.60} on rank 0 and {theirs:.60} on rank {rank}"
    return None


def _fingerprint(data: Data) -> str:
    """Names and sizes of the files that this rank sees, for only rank 0 reads them; or a hash of the documents."""
    if data is None:
        return "the names in the package"
    files = open_source(data).files
    if not files:
        return _hash(data)
    sizes = [f"{file} ({os.path.getsize(file):,} bytes)" for file in files if os.path.isfile(file)]
    return ", ".join(sizes)


def _hash(value: object) -> str:
    import hashlib  # slow to import

    return hashlib.blake2b(pickle.dumps(value), digest_size=8).hexdigest()


def _sendable(error: BaseException) -> BaseException:
    """The error, or if it cannot be pickled one with its message."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 (whatever an error's own methods raise)
        return RuntimeError(f"rank 0 has failed: {error}")
    return error
