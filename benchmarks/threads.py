"""Programs of `Value`s on one thread and on several at once: what each thread loses to the others.

    python benchmarks/threads.py [--threads N] [--repeats N]

Each thread runs the same program on values of its own. Without the GIL, several threads take about as long as one, if
there are as many free cores; with it, as many times as long as there are threads. Prints medians over repeats in turns.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from collections.abc import Callable
from statistics import median

from microgpt import Value, compute_softmax, linear, rmsnorm


def scalars() -> None:
    """Arithmetic on single values, as in the original."""
    w = [Value(0.01 * i) for i in range(64)]
    for _ in range(200):
        total = Value(0.0)
        for value in w:
            total = total + value * value.exp() / 3
        total.backward()
        for value in w:
            value.grad = 0


def functions() -> None:
    """A layer of the original: `rmsnorm`, `linear`, `compute_softmax`."""
    draw = random.Random(1)
    w = [[Value(draw.gauss(0, 0.1)) for _ in range(16)] for _ in range(27)]
    for step in range(200):
        x = [Value(0.1 * i + step) for i in range(16)]
        (-compute_softmax(linear(rmsnorm(x), w))[0].log()).backward()
        for row in w:
            for value in row:
                value.grad = 0


def seconds(program: Callable[[], None], threads: int) -> float:
    """Time that the slowest of these threads takes from the moment when all are ready."""
    barrier, ends = threading.Barrier(threads + 1), []

    def run() -> None:
        barrier.wait()
        program()
        ends.append(time.perf_counter())

    running = [threading.Thread(target=run) for _ in range(threads)]
    for thread in running:
        thread.start()
    begin = time.perf_counter()
    barrier.wait()
    for thread in running:
        thread.join()
    return max(ends) - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=21)
    arguments = parser.parse_args()

    has_gil = getattr(sys, "_is_gil_enabled", lambda: True)()
    print(f"Python {sys.version.split()[0]}, {'with' if has_gil else 'without'} the GIL")
    for program in (scalars, functions):
        turns = [(seconds(program, 1), seconds(program, arguments.threads)) for _ in range(arguments.repeats)]
        one, several = (1e3 * median(turn[i] for turn in turns) for i in range(2))
        print(
            f"{program.__name__:<10} 1 thread {one:7.1f} ms   {arguments.threads} threads {several:7.1f} ms   "
            f"{several / one:.2f} times as long"
        )


if __name__ == "__main__":
    main()
