"""What `microgpt bench` measures: the recipe of microgpt on each backend, beside what this machine could do at most.

Absolute times mean nothing on a shared machine; the ratios, from one run, do.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import numpy as np

from microgpt import backend as backends
from microgpt.arguments import positive_integer
from microgpt.config import GPTConfig
from microgpt.model import DTYPES
from microgpt.packing import PackedSequences
from microgpt.training import Run, prepare

STEPS = 1000
REFERENCE_STEPS = 3  # it is four orders of magnitude slower


@dataclass(frozen=True)
class Ceiling:
    """What one thread of this machine does at most, in registers, with the arithmetic of a dtype.

    In float64 a multiply-add is a multiply and an add, each rounded; in float32 it is fused.
    """

    multiply_adds_per_second: float
    divisions_and_roots_per_second: float


def measure_ceiling(dtype: str, seconds: float = 0.02) -> Ceiling:
    """Run the kernels' two loops, each for about `seconds`."""
    engine, instruction_set = backends.compiled_engine(), backends.instruction_set()

    def rate(loop: Callable[[str, str | None, int], int]) -> float:
        iterations = 1000
        while True:
            begin = time.perf_counter()
            elements = loop(dtype, instruction_set, iterations)
            took = time.perf_counter() - begin
            if took >= seconds:
                return elements / took
            iterations *= 2

    return Ceiling(rate(engine.multiply_adds), rate(engine.divisions_and_roots))


def multiply_adds(config: GPTConfig, lengths: np.ndarray) -> int:
    """Multiply-adds of training on sequences of these numbers of positions: forward, and twice that backward."""
    shapes = config.parameter_shapes()
    products = sum(rows * columns for name, (rows, columns) in shapes.items() if name not in ("wte", "wpe"))
    pairs = int((lengths * (lengths + 1) // 2).sum())  # of a position and one that it attends to
    return 3 * (int(lengths.sum()) * products + 2 * pairs * config.n_embd * config.n_layer)


def floor(run: Run, packed: PackedSequences, ceiling: Ceiling) -> float:
    """Seconds a step would take at the ceiling: all multiply-adds, and one division and root for each parameter."""
    lengths = np.minimum(packed.lengths - 1, run.model.config.block_size)
    steps = len(packed) / run.batch_size
    return (
        multiply_adds(run.model.config, lengths) / steps / ceiling.multiply_adds_per_second
        + run.model.num_params / ceiling.divisions_and_roots_per_second
    )


def time_steps(run: Run, packed: PackedSequences) -> float:
    """Seconds a step of training takes, on these sequences in order."""
    steps = len(packed) // run.batch_size
    schedule = run.optimizer.learning_rate * (1 - np.arange(steps) / steps)
    begin = time.perf_counter()
    run.model.engine.train(packed, run.batch_size, schedule, run.optimizer, np.zeros(steps), None)
    return (time.perf_counter() - begin) / steps


def sequences_of(run: Run, steps: int) -> PackedSequences:
    """The token sequences of the first `steps` steps of a run."""
    assert run.model.tokenizer is not None
    indices = np.arange(steps * run.batch_size) % len(run.documents)
    return run.model.tokenizer.pack_documents(run.documents).select(indices)


def typical(packed: PackedSequences, n: int) -> PackedSequences:
    """`n` of these sequences, evenly spread over their lengths: they cost what all cost on average."""
    by_length = np.argsort(packed.lengths, kind="stable")
    return packed.select(by_length[(np.arange(n) * len(packed) + len(packed) // 2) // n])


@dataclass(frozen=True)
class Timing:
    """Seconds a step, and the floor measured beside it."""

    seconds: float
    floor: float


def time_recipe(file: str | os.PathLike[str] | None, backend: str, dtype: str) -> Timing:
    """Train on the recipe's first documents: all of them in order, or on the reference a typical few."""
    run = prepare(file, steps=0, backend=backend, dtype=dtype)
    packed = sequences_of(run, STEPS)
    if backend == "reference":
        packed = typical(packed, REFERENCE_STEPS)
    least = floor(run, packed, measure_ceiling(dtype)) if backends.compiled_engine() else math.nan
    return Timing(time_steps(run, packed), least)


def report(file: str | os.PathLike[str] | None = None, repeats: int = 7) -> Iterator[str]:
    """The lines of `microgpt bench`: us/step of the recipe of microgpt, against the reference and the floor.

    The engines take turns, so that what else the machine does hits all of them; ratios are those of neighbours.
    """
    repeats = positive_integer("repeats", repeats)
    yield f"the recipe of microgpt, {STEPS} steps, training only, one thread; medians of {repeats}"
    engines = [("reference", "float64")]
    if backends.compiled_engine():
        for dtype in DTYPES:
            engines.append(("compiled", dtype))
            ceiling = measure_ceiling(dtype)
            yield (
                f"{dtype} ceiling: {2e-9 * ceiling.multiply_adds_per_second:.1f} GFLOP/s of multiply-adds, "
                f"{1e-6 * ceiling.divisions_and_roots_per_second:,.0f} million divisions and roots a second "
                f"({backends.instruction_set()})"
            )
    turns = [[time_recipe(file, *engine) for engine in engines] for _ in range(repeats)]
    yield f"{'engine':<20}{'us/step':>12}{'x reference':>14}{'x floor':>12}"
    for i, engine in enumerate(engines):
        microseconds = 1e6 * median(turn[i].seconds for turn in turns)
        against_reference = median(turn[0].seconds / turn[i].seconds for turn in turns)
        against_floor = median(turn[i].seconds / turn[i].floor for turn in turns)
        yield f"{' '.join(engine):<20}{microseconds:>12,.1f}{against_reference:>14,.0f}{against_floor:>12,.1f}"
