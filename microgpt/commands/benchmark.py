"""The measurements of `microgpt bench`: training times on each backend, next to the peak of this machine.

On a shared machine absolute times mean little; ratios within one run do.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from microgpt.config import DTYPES, GPTConfig
from microgpt.engine import backend as backends
from microgpt.engine.arrays import LINE_BYTES
from microgpt.engine.network import Operation, network
from microgpt.engine.packing import PackedSequences
from microgpt.sampling import TEMPERATURE
from microgpt.training.run import Run
from microgpt.training.train import prepare
from microgpt.tuning.compute import count_multiply_adds
from microgpt.utils.arguments import positive_integer

if TYPE_CHECKING:
    from numpy.typing import NDArray

REFERENCE_STEPS = 3  # the reference is four orders of magnitude slower
SAMPLED = 10_000  # documents
LAYER = re.compile(r"layer\d+\.")  # in names of parameters
TEXT_CHARACTERS = 65  # of the random text: as many as Shakespeare's


@dataclass(frozen=True)
class Case:
    """A model and its data: names, or with `text` windows of a random text as long as its context.

    `steps` is the number of steps in one measurement, which takes a few hundredths of a second or more.
    """

    name: str
    steps: int
    batch_size: int = 1
    sizes: Mapping[str, float] = field(default_factory=dict)
    text: bool = False
    dtype: str = "float32"
    backend: str = "compiled"
    threads: int = 1


RECIPE = [
    Case("reference, float64", REFERENCE_STEPS, dtype="float64", backend="reference"),
    Case("compiled, float64", 1000, dtype="float64"),
    Case("compiled, float32", 1000),
]
SHAKESPEARE = {"n_layer": 4, "n_embd": 128, "n_head": 4, "block_size": 64}
LARGE = {"n_layer": 6, "n_embd": 384, "n_head": 6, "block_size": 256}
CASES = [
    Case("n_embd 16, batch 1", 1000),
    Case("n_embd 16, batch 16", 200, 16),
    Case("n_embd 64, batch 16", 50, 16, {"n_embd": 64}),
    Case("n_embd 128, batch 16", 20, 16, {"n_embd": 128}),
    Case("4 layers of 128, context 64, batch 12", 4, 12, SHAKESPEARE, text=True),
    Case("the same", 4, 12, SHAKESPEARE, text=True, threads=2),
    Case("6 layers of 384, context 256, batch 8", 1, 8, LARGE, text=True),
    Case("the same", 1, 8, LARGE, text=True, threads=2),
]


@dataclass(frozen=True)
class Peak:
    """The peak rates of this machine with some threads, in registers, with the arithmetic of a dtype.

    In float64 a multiply-add is a multiplication and an addition, each rounded; in float32 it is fused.
    """

    multiply_adds_per_second: float
    divisions_and_roots_per_second: float


def measure_peak(dtype: str, threads: int = 1, seconds: float = 0.02) -> Peak:
    """Run the kernels' two loops, each for about `seconds`, in all threads at once."""
    from microgpt.engine import _engine as engine

    instruction_set = backends.instruction_set()

    def rate(loop: Callable[[str, str | None, int], int]) -> float:
        iterations = 1000
        while True:
            begin = time.perf_counter()
            elements = loop(dtype, instruction_set, iterations)
            took = time.perf_counter() - begin
            if took >= seconds:
                return elements / took
            iterations *= 2

    def rates(loop: Callable[[str, str | None, int], int]) -> float:
        if threads == 1:
            return rate(loop)  # in this thread: WebAssembly has no other
        with ThreadPoolExecutor(threads) as pool:
            try:
                return sum(pool.map(rate, [loop] * threads))
            except RuntimeError as error:  # a process limit
                raise ValueError(f"cannot measure the peak of threads={threads}: {error}") from error

    return Peak(rates(engine.multiply_adds), rates(engine.divisions_and_roots))


def floor(run: Run, packed: PackedSequences, peak: Peak) -> float:
    """Seconds of a step at the peak rates: its multiply-adds, and one division and root for each parameter."""
    lengths = np.minimum(packed.lengths - 1, run.model.config.block_size)
    steps = len(packed) / run.recipe.batch_size
    return (
        count_multiply_adds(run.model.config, lengths) / steps / peak.multiply_adds_per_second
        + run.model.num_params / peak.divisions_and_roots_per_second
    )


@dataclass(frozen=True)
class Timing:
    """Seconds per step, and the floor measured next to it, or None without a compiled engine."""

    seconds: float
    floor: float | None


class Stopwatch:
    """Trains the model of a case repeatedly on the same sequences."""

    def __init__(self, case: Case, file: str | os.PathLike[str] | None) -> None:
        options: dict[str, Any] = {**case.sizes, "batch_size": case.batch_size, "dtype": case.dtype, "steps": 0}
        options |= {"backend": case.backend, "threads": None if case.backend == "reference" else case.threads}
        self.case = case
        if case.text:
            self.run = prepare([random_text()], format="text", learning_rate=1e-3, **options)
        else:
            self.run = prepare(file, **options)
        self.packed = self.run.batches.batch(0, case.steps, case.batch_size)
        if case.backend == "reference":
            self.packed = typical(self.run.batches.batch(0, 1000, 1), case.steps)

    def seconds(self, **options: Any) -> float:
        """Seconds per step, in one measurement; `options` are those of the engine's `train`."""
        run, steps = self.run, self.case.steps
        schedule = run.optimizer.learning_rate * (1 - np.arange(steps) / steps)
        engine, losses = run.model.engine, np.zeros(steps)
        begin = time.perf_counter()
        engine.train(self.packed, run.recipe.batch_size, schedule, run.optimizer, losses, None, **options)
        return (time.perf_counter() - begin) / steps

    def time(self) -> Timing:
        """Seconds per step, and the floor."""
        if not backends.compiled_engine():
            return Timing(self.seconds(), None)
        peak = measure_peak(self.case.dtype, self.case.threads)
        return Timing(self.seconds(), floor(self.run, self.packed, peak))


def random_text() -> str:
    """A text of TEXT_CHARACTERS different characters in random order."""
    draw = random.Random(0)
    return "".join(chr(ord("0") + draw.randrange(TEXT_CHARACTERS)) for _ in range(100_000))


def typical(packed: PackedSequences, n: int) -> PackedSequences:
    """`n` of these sequences, spread evenly over their lengths: they cost as much as all on average."""
    by_length = np.argsort(packed.lengths, kind="stable")
    return packed.select(by_length[(np.arange(n) * len(packed) + len(packed) // 2) // n])


def take_turns(watches: list[Stopwatch], repeats: int) -> list[list[Timing]]:
    """`repeats` timings with each, interleaved, so that other load on the machine affects all of them."""
    turns = [[watch.time() for watch in watches] for _ in range(repeats)]
    return [list(timings) for timings in zip(*turns)]


def sampling_rate(file: str | os.PathLike[str] | None) -> float:
    """Tokens per second when many documents are drawn at once, from a model trained by the recipe."""
    model = prepare(file, dtype="float32", backend="compiled", threads=1).train().model
    begin = time.perf_counter()
    documents = model.generate_tokens(SAMPLED, TEMPERATURE, seed=1)
    took = time.perf_counter() - begin
    return sum(min(len(document) + 1, model.config.block_size) for document in documents) / took


def report(file: str | os.PathLike[str] | None = None, repeats: int = 7) -> Iterator[str]:
    """The lines of `microgpt bench`: microgpt's recipe against the reference, and all models against the floor.

    Measurements that are compared are interleaved; ratios are of neighbours, and all figures are medians.
    """
    repeats = positive_integer("repeats", repeats)
    has_engine = backends.compiled_engine() is not None
    recipe = RECIPE if has_engine else RECIPE[:1]
    watches = [Stopwatch(case, file) for case in recipe]  # fails now if the file is missing
    if has_engine:
        for dtype in DTYPES:
            peak = measure_peak(dtype)
            yield (
                f"{dtype} peak of one thread: {2e-9 * peak.multiply_adds_per_second:.1f} GFLOP/s of multiply-adds, "
                f"{1e-6 * peak.divisions_and_roots_per_second:,.0f} million divisions and roots per second "
                f"({backends.instruction_set()})"
            )
    yield f"training with microgpt's recipe, medians of {repeats}"
    yield f"{'engine':<40}{'us/step':>12}{'x reference':>14}{'x floor':>12}"
    timings = take_turns(watches, repeats)
    for case, own in zip(recipe, timings):
        seconds = median(timing.seconds for timing in own)
        against_reference = median(reference.seconds / timing.seconds for reference, timing in zip(timings[0], own))
        yield f"{case.name:<40}{1e6 * seconds:>12,.1f}{against_reference:>14,.0f}{times_floor(own):>12}"
    if not has_engine:
        return
    yield f"training in float32, medians of {repeats}"
    yield f"{'model':<40}{'threads':>8}{'us/step':>12}{'us/document':>14}{'x floor':>10}{'x 1 thread':>12}"
    timings = take_turns([Stopwatch(case, file) for case in CASES], repeats)
    for i, (case, own) in enumerate(zip(CASES, timings)):
        seconds = median(timing.seconds for timing in own)
        speedup = ""
        if case.threads > 1:
            speedup = f"{median(one.seconds / two.seconds for one, two in zip(timings[i - 1], own)):.2f}"
        yield (
            f"{case.name:<40}{case.threads:>8}{1e6 * seconds:>12,.1f}{1e6 * seconds / case.batch_size:>14,.2f}"
            f"{times_floor(own):>10}{speedup:>12}"
        )
    rate = median(sampling_rate(file) for _ in range(repeats))
    yield f"sampling {SAMPLED:,} documents at once, one thread: {1e-6 * rate:.2f} million tokens per second"


@dataclass
class Share:
    """Seconds that one kind of work takes in a step, and its floor: 0 if it is neither products nor Adam."""

    forward: float = 0.0
    backward: float = 0.0
    floor: float = 0.0


def profile(watch: Stopwatch) -> tuple[dict[str, Share], float, float]:
    """Seconds of a step by kind of operation, Adam among them; of the whole step; and of waiting for other threads."""
    run, steps, packed = watch.run, watch.case.steps, watch.packed
    config = run.model.config
    peak = measure_peak(watch.case.dtype, watch.case.threads)
    operations = network(config, LINE_BYTES // np.dtype(watch.case.dtype).itemsize).operations
    clocks = np.zeros((len(operations) + 1, 2), np.int64)
    whole = watch.seconds(clocks=clocks)
    seconds = clocks / 1e9 / steps
    lengths = np.minimum(packed.lengths - 1, config.block_size)
    shares: dict[str, Share] = {}
    for operation, (forward, backward) in zip(operations, seconds[:-1].tolist()):
        share = shares.setdefault(LAYER.sub("", str(operation)), Share())
        share.forward += forward
        share.backward += backward
        share.floor += count_operation(operation, config, lengths) / steps / peak.multiply_adds_per_second
    adam = run.model.num_params / peak.divisions_and_roots_per_second
    shares["Adam"] = Share(seconds[-1, 0], 0.0, adam)
    return shares, whole, seconds[-1, 1]


def count_operation(operation: Operation, config: GPTConfig, lengths: NDArray[np.int64]) -> int:
    """Multiply-adds of an operation, forward and backward, on sequences of these lengths."""
    if operation.kernel == "attention":
        return 3 * 2 * int((lengths * (lengths + 1) // 2).sum()) * config.n_embd
    if operation.parameters and operation.input is not None and operation.output is not None:
        return 3 * int(lengths.sum()) * operation.input.width * operation.output.width
    return 0


def report_profile(file: str | os.PathLike[str] | None = None, repeats: int = 7) -> Iterator[str]:
    """The lines of `microgpt bench --profile`: what each kind of operation takes in a step of each model.

    Reading the clock takes about 0.05 us for each operation and direction, which the smallest model feels.
    """
    repeats = positive_integer("repeats", repeats)
    if backends.compiled_engine() is None:
        raise ValueError("profile needs the compiled engine, and this installation has none")
    for case in CASES:
        watch = Stopwatch(case, file)
        watch.seconds()  # the arena is laid out, and the caches are warm
        profiles = [profile(watch) for _ in range(repeats)]
        whole = median(seconds for _, seconds, _ in profiles)
        yield f"{case.name}, threads {case.threads}: {1e6 * whole:,.1f} us/step, medians of {repeats}"
        yield f"  {'operation':<58}{'forward us':>12}{'backward us':>13}{'share':>8}{'x floor':>9}"
        rest = whole
        for name in profiles[0][0]:
            shares = [profile[0][name] for profile in profiles]
            forward, backward = (median(each) for each in zip(*((share.forward, share.backward) for share in shares)))
            against_floor = ""
            if shares[0].floor:
                against_floor = f"{median((share.forward + share.backward) / share.floor for share in shares):,.2f}"
            rest -= forward + backward
            yield profile_line(name, forward, f"{1e6 * backward:,.1f}", (forward + backward) / whole, against_floor)
        yield profile_line("packing, losses and the rest", rest, "", rest / whole)
        if case.threads > 1:
            waiting = median(seconds for _, _, seconds in profiles)
            yield profile_line("of all this, waiting for other threads", waiting, "", waiting / whole)


def profile_line(name: str, forward: float, backward: str, share: float, against_floor: str = "") -> str:
    """A line of the table of a profile."""
    return f"  {name:<58}{1e6 * forward:>12,.1f}{backward:>13}{share:>8.1%}{against_floor:>9}"


def times_floor(timings: list[Timing]) -> str:
    """The time of a step as a multiple of the floor; empty without one."""
    ratios = [timing.seconds / timing.floor for timing in timings if timing.floor is not None]
    return f"{median(ratios):,.2f}" if ratios else ""
