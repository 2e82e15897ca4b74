"""One model on several machines: steps of one and two processes, and a model of their cost that predicts more.

    python benchmarks/distributed.py                     # needs mpi4py and mpiexec, and two free cores
    python benchmarks/distributed.py --sizes 4x128 --repeats 5

First, processes on this machine: the latency and bandwidth of MPI between two of them, the parts of a step, and whole
steps with `shards=2` by one process and by two, which take turns; medians are printed, next to the prediction for two.
Then a table of predictions, with the latency and bandwidth of networks. A step of R processes, each with a shard of a
batch of B windows, for a model of P parameters, takes

    B / R * window                    computing the gradients
    + P * add + P / R * adam          adding the R pieces of P / R gradients, and moving P / R parameters
    + 2 * (R - 1) * latency           sending each other process a piece of the gradients, then the new parameters:
    + 2 * (R - 1) / R * bytes / bandwidth               two times all but its own part of the model
    + log2(R) * latency               exchanging the losses
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import microgpt
from microgpt.engine.packing import pack

VOCAB_SIZE = 65
SIZES: dict[str, tuple[dict[str, int], int]] = {  # and windows in the batch that is measured
    "1x64": ({"n_layer": 1, "n_embd": 64, "n_head": 4, "block_size": 16}, 64),
    "4x128": ({"n_layer": 4, "n_embd": 128, "n_head": 4, "block_size": 64}, 24),
    "6x384": ({"n_layer": 6, "n_embd": 384, "n_head": 6, "block_size": 256}, 8),
}
NETWORKS = {"10 Gbit/s, 20 us": (20e-6, 10e9 / 8), "100 Gbit/s, 2 us": (2e-6, 100e9 / 8)}
RANKS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
BATCH = 1024  # windows in a step of the table
ITEMSIZE = 4  # bytes of a float32


@dataclass(frozen=True)
class Cost:
    """The parts of a step, in seconds: of a window, and of adding and moving a parameter."""

    num_params: int
    window: float
    add: float
    adam: float

    def step(self, ranks: int, batch: int, latency: float, bandwidth: float) -> float:
        """Predicted seconds of a step."""
        computing = batch / ranks * self.window + self.num_params / ranks * self.adam
        if ranks == 1:
            return computing
        others = (ranks - 1) / ranks * self.num_params * ITEMSIZE
        exchange = 2 * (ranks - 1) * latency + 2 * others / bandwidth + math.log2(ranks) * latency
        return computing + self.num_params * self.add + exchange


# --- Measured by processes of their own -------------------------------------------------------------------------------


def timed(function: Callable[[], object], seconds: float = 0.3) -> float:
    """Median time of a call, over calls that take about `seconds` in all."""
    times, end = [], time.perf_counter() + seconds
    function()
    while not times or time.perf_counter() < end:
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return median(times)


def measure_parts(size: str) -> dict[str, float]:
    """The parts of a step on one thread: a window, and adding and moving one parameter."""
    sizes, batch = SIZES[size]
    config = microgpt.GPTConfig(vocab_size=VOCAB_SIZE, init_std="scaled", **sizes)
    model = microgpt.GPT(config, dtype="float32", threads=1)
    draw = np.random.default_rng(0)
    windows = pack(draw.integers(0, VOCAB_SIZE, (batch // 2, config.block_size + 1)).tolist(), VOCAB_SIZE)
    gradient = timed(lambda: model.engine.loss(windows, gradients=True))
    optimizer, pieces = microgpt.Adam(model, 1e-6), np.zeros((2, config.num_params), np.float32)
    adam, add = timed(optimizer.step), timed(lambda: np.add(*pieces, out=pieces[0]))
    return {
        "num_params": config.num_params,
        "window": gradient / (batch // 2),
        "adam": adam / config.num_params,
        "add": add / config.num_params,
    }


def measure_network(size: str) -> dict[str, float]:
    """Latency and bandwidth of an exchange between two processes, for arrays as long as half of the model."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    sizes, _ = SIZES[size]
    half = microgpt.GPTConfig(vocab_size=VOCAB_SIZE, **sizes).num_params // 2

    def exchange(count: int, times: int) -> float:
        sent, received = np.zeros(2 * count, np.float32), np.zeros(2 * count, np.float32)
        took = []
        for _ in range(times):
            world.Barrier()
            begin = time.perf_counter()
            world.Alltoall(sent, received)
            took.append(time.perf_counter() - begin)
        return median(took)

    latency = exchange(1, 300)
    return {"latency": latency, "bandwidth": half * ITEMSIZE / max(1e-9, exchange(half, 30) - latency)}


def measure_steps(size: str) -> dict[str, float]:
    """Seconds of a step with two shards, by as many processes as mpiexec has started."""
    from mpi4py import MPI

    sizes, batch = SIZES[size]
    draw = np.random.default_rng(0)
    text = "".join(map(chr, draw.integers(48, 48 + VOCAB_SIZE, 50_000)))
    options: dict[str, Any] = {"dtype": "float32", "threads": 1, "init_std": "scaled", "learning_rate": 1e-4, **sizes}
    steps = {"1x64": 400, "4x128": 40, "6x384": 6}[size]

    def train(steps: int) -> microgpt.TrainingResult:
        return microgpt.train(
            [text], format="text", steps=steps, batch_size=batch, shards=2, communicator=MPI.COMM_WORLD, **options
        )

    first, result = train(2), train(2 + steps)  # the first steps touch new memory
    seconds = result.history.seconds - first.history.seconds
    return {"step": seconds / steps, "last_loss": float(result.losses[-1])}


MEASUREMENTS = {"parts": measure_parts, "network": measure_network, "steps": measure_steps}


def measure(what: str, size: str, processes: int) -> dict[str, float]:
    """Run a measurement under mpiexec; the result is that of rank 0."""
    mpiexec = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or "mpiexec"
    command = [mpiexec, "-n", str(processes), sys.executable, __file__, "--measure", what, "--sizes", size]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    result: dict[str, float] = json.loads(output)
    return result


# --- The report -------------------------------------------------------------------------------------------------------


def report(size: str, repeats: int) -> Cost:
    """Measure a model, and print the measurements next to the prediction."""
    parts = measure("parts", size, 1)
    cost = Cost(int(parts["num_params"]), parts["window"], parts["add"], parts["adam"])
    network = measure("network", size, 2)
    one, two = [], []
    for _ in range(repeats):
        for times, processes in ((one, 1), (two, 2)):
            times.append(measure("steps", size, processes))
    assert len({each["last_loss"] for each in one + two}) == 1  # one or two processes: the same bits
    ratios = [first["step"] / second["step"] for first, second in zip(one, two)]
    predicted = cost.step(2, SIZES[size][1], network["latency"], network["bandwidth"])
    alone, together = (median(each["step"] for each in times) for times in (one, two))
    print(
        f"{size:<6} {cost.num_params:>10,} parameters, batch {SIZES[size][1]}: one process {1e3 * alone:.1f} ms, "
        f"two {1e3 * together:.1f} ms (predicted {1e3 * predicted:.1f}), {median(ratios):.2f}x as fast "
        f"(predicted {alone / predicted:.2f}x); MPI {1e6 * network['latency']:.0f} us, "
        f"{network['bandwidth'] / 1e9:.1f} GB/s"
    )
    return cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--repeats", type=int, default=3, help="processes of each kind")
    parser.add_argument("--measure", choices=MEASUREMENTS, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.measure:
        result = MEASUREMENTS[parsed.measure](parsed.sizes[0])
        if parsed.measure == "parts" or is_rank_0():
            print(json.dumps(result))
        return
    costs = {size: report(size, parsed.repeats) for size in parsed.sizes}
    for network, (latency, bandwidth) in NETWORKS.items():
        print(f"\nPredicted ms per step of {BATCH} windows, {network} (times as fast as one process)\n")
        print("| processes |" + "".join(f" {size} |" for size in costs) + "\n|---|" + "---|" * len(costs))
        for ranks in RANKS:
            cells = []
            for cost in costs.values():
                seconds = cost.step(ranks, BATCH, latency, bandwidth)
                faster = cost.step(1, BATCH, latency, bandwidth) / seconds
                cells.append(f" {1e3 * seconds:,.3g} ({faster:.3g}x) |")
            print(f"| {ranks} |" + "".join(cells))


def is_rank_0() -> bool:
    from mpi4py import MPI

    return MPI.COMM_WORLD.rank == 0


if __name__ == "__main__":
    main()
