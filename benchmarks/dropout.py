"""Losses of training with and without dropout, in several passes over a small file.

    python benchmarks/dropout.py [FILE] [--epochs N] [--seeds N] [--n-layer N] [--n-embd N] [--batch-size N]

FILE has a document on each line, of which a tenth is held out; by default the names in the package. Prints means over
several seeds, and the time of a step as a multiple of that without dropout: the median of turns. Of the tables in
docs/tutorial.md, one is printed without any option, the other with

    --n-layer 1 --n-embd 16 --learning-rate 0.01
"""

from __future__ import annotations

import argparse
from statistics import mean, median
from typing import Any

from microgpt import read_documents, train
from microgpt.commands.benchmark import Case, Stopwatch, take_turns

RECENT = 0.05  # part of the steps, at the end, whose mean is the training loss
STEPS, TURNS = 200, 15  # of a measurement, and measurements


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?")
    parser.add_argument("--dropout", type=float, nargs="+", default=[0.0, 0.1, 0.2, 0.3])
    parser.add_argument("--epochs", type=float, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--n-layer", type=int, default=4)
    parser.add_argument("--n-embd", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=0.003)
    arguments = parser.parse_args()

    documents = read_documents(arguments.file)
    sizes = {name: getattr(arguments, name) for name in ("n_layer", "n_embd")}
    common: dict[str, Any] = {name: getattr(arguments, name) for name in ("epochs", "batch_size", "learning_rate")}
    common |= {**sizes, "val_fraction": 0.1, "dtype": "float32", "schedule": "cosine", "init_std": "scaled"}
    print(f"{'dropout':>8}{'training':>12}{'validation':>12}{'lowest':>12}{'at epoch':>12}", flush=True)
    for dropout in arguments.dropout:
        rows = []
        for seed in range(arguments.seeds):
            result = train(documents, dropout=dropout, seed=seed, **common)
            steps, curve = len(result.losses), result.validation_losses
            step, lowest = min(curve, key=lambda pair: pair[1])
            last = result.losses[-round(RECENT * steps) :].mean()
            rows.append((last, curve[-1][1], lowest, step / steps * arguments.epochs))
        *losses, epoch = map(mean, zip(*rows))
        print(f"{dropout:>8g}{''.join(f'{loss:>12.3f}' for loss in losses)}{epoch:>12.1f}", flush=True)

    cases = [Case("", STEPS, arguments.batch_size, {**sizes, "dropout": p}) for p in (0.0, 0.1)]
    without, dropping = take_turns([Stopwatch(case, arguments.file) for case in cases], TURNS)
    ratio = median(b.seconds / a.seconds for a, b in zip(without, dropping))
    print(f"a step with dropout takes {ratio:.3f} times as long")


if __name__ == "__main__":
    main()
