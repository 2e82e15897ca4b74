"""Time per token as the model grows: is it proportional to the work?

    python benchmarks/scaling.py [FILE] [--repeats N]

Prints, for widths from 16 to 128 and for 1 to 4 layers, the time per token and parameter relative to the smallest
model, in float64. 1.00 is exactly proportional; below 1, larger models are more efficient.
"""

from __future__ import annotations

import argparse
from statistics import median

import numpy as np

from microgpt.commands.benchmark import Case, Stopwatch

STEPS = 200


def seconds_per_token(file: str | None, **sizes: int) -> tuple[float, int]:
    """One timing, and the number of parameters."""
    watch = Stopwatch(Case("", STEPS, sizes=sizes, dtype="float64"), file)
    config = watch.run.model.config
    tokens = np.minimum(watch.packed.lengths - 1, config.block_size).mean()
    watch.seconds()  # warm up: allocate memory, load the weights into the cache
    return watch.seconds() / tokens, config.num_params


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()

    tables = {
        "n_embd": [{"n_embd": n_embd} for n_embd in (16, 32, 64, 128)],
        "n_layer": [{"n_layer": n_layer} for n_layer in (1, 2, 4)],
    }
    for name, rows in tables.items():
        turns = [[seconds_per_token(arguments.file, **sizes) for sizes in rows] for _ in range(arguments.repeats)]
        print(f"{name:>8}{'parameters':>12}{'us/token':>10}{'per parameter':>15}")
        for i, sizes in enumerate(rows):
            num_params = turns[0][i][1]
            ratio = median(turn[i][0] / num_params / (turn[0][0] / turn[0][1]) for turn in turns)
            print(f"{sizes[name]:>8}{num_params:>12,}{1e6 * median(turn[i][0] for turn in turns):>10.2f}{ratio:>15.2f}")


if __name__ == "__main__":
    main()
