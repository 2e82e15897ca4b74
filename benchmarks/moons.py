"""micrograd's demo: a multi-layer perceptron learns to separate two half-moons.

    python benchmarks/moons.py          # and micrograd's own `Value` if it is installed

The network is 2-16-16-1, the data are 100 points, the loss is the mean hinge loss plus L2 regularisation. All start
from the same numbers. The reference `Value` and the compiled one must give the same losses, bit for bit; micrograd's,
which adds gradients in another order, the same to 9 digits. Times are medians over the steps.
"""

from __future__ import annotations

import argparse
import gc
import math
import random
import statistics
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from types import ModuleType
from typing import Any

from tqdm import tqdm

import microgpt
from microgpt import reference


def moons(count: int, noise: float, generator: random.Random) -> list[tuple[list[float], int]]:
    """Points on two interleaving half circles, each with its label, -1 or 1."""
    points = []
    for i in range(count):
        angle = math.pi * generator.random()
        x, y, label = math.cos(angle), math.sin(angle), -1
        if i % 2:
            x, y, label = 1 - x, 0.5 - y, 1
        points.append(([x + generator.gauss(0, noise), y + generator.gauss(0, noise)], label))
    return points


class Perceptron:
    """A multi-layer perceptron of Values: ReLU between layers of these widths."""

    def __init__(self, widths: list[int], scalars: ModuleType, generator: random.Random) -> None:
        self.layers = [
            [([scalars.Value(generator.uniform(-1, 1)) for _ in range(n_in)], scalars.Value(0)) for _ in range(n_out)]
            for n_in, n_out in pairwise(widths)
        ]
        self.parameters = [p for layer in self.layers for w, b in layer for p in (*w, b)]

    def __call__(self, x: list[Any]) -> Any:
        for layer in self.layers:
            x = [sum((wi * xi for wi, xi in zip(w, x)), b) for w, b in layer]
            if layer is not self.layers[-1]:
                x = [xi.relu() for xi in x]
        return x[0]


def train(scalars: ModuleType, steps: int) -> Iterator[tuple[float, float, float]]:
    """Loss, accuracy and seconds of each step of gradient descent."""
    generator = random.Random(1337)
    points = moons(100, 0.1, generator)
    model = Perceptron([2, 16, 16, 1], scalars, generator)
    for step in range(steps):
        begin = time.perf_counter()
        scores = [model([scalars.Value(xi) for xi in x]) for x, _ in points]
        hinge = sum((1 - label * score).relu() for score, (_, label) in zip(scores, points)) * (1 / len(points))
        loss = hinge + 1e-4 * sum(p * p for p in model.parameters)
        for p in model.parameters:
            p.grad = 0
        loss.backward()
        for p in model.parameters:
            p.data -= (1 - 0.9 * step / 100) * p.grad
        seconds = time.perf_counter() - begin
        accuracy = sum((score.data > 0) == (label > 0) for score, (_, label) in zip(scores, points)) / len(points)
        yield loss.data, accuracy, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=20, help="steps of gradient descent (default: 20)")
    steps = parser.parse_args().steps
    scalars = {"reference": reference, "compiled": microgpt}
    if find_spec("micrograd"):
        scalars["micrograd"] = import_module("micrograd.engine")
    rows = {}
    for name, module in scalars.items():
        gc.collect()  # micrograd's graphs are cycles, which would slow down the next
        rows[name] = list(tqdm(train(module, steps), total=steps, desc=name, file=sys.stderr, leave=False))
    losses = {name: [loss for loss, _, _ in rows[name]] for name in rows}
    if losses["reference"] != losses["compiled"]:
        sys.exit("the reference and the compiled Value give different losses")
    if not all(map(math.isclose, losses.get("micrograd", losses["reference"]), losses["reference"])):
        sys.exit("micrograd gives other losses")
    loss, accuracy, _ = rows["compiled"][-1]
    print(f"step {steps}: loss {loss:.6f}, accuracy {accuracy:.0%}, the same with all")
    times = {name: statistics.median(seconds for _, _, seconds in rows[name]) for name in rows}
    print(f"compiled  {times['compiled'] * 1e3:8.2f} ms/step")
    for name in sorted(times.keys() - {"compiled"}):
        print(f"{name:9} {times[name] * 1e3:8.2f} ms/step: {times[name] / times['compiled']:.1f} times as long")


if __name__ == "__main__":
    main()
