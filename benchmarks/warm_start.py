"""Validation losses of a warm start, beside those of training from scratch with the same options.

    python benchmarks/warm_start.py MODEL FILE [--lines N] [--seeds N] [--learning-rate X]

MODEL is a file from `microgpt train --out`, and FILE has a document on each line, of which half are held out. Prints
the mean over several seeds. The table of docs/tutorial.md is of German and Turkish first names, from MODEL of

    microgpt train --steps 5000 --batch-size 16 --schedule cosine --dtype float32 --val-fraction 0.1 --out MODEL
"""

from __future__ import annotations

import argparse
import random
from statistics import mean
from typing import Any

from microgpt import load, read_documents, train

STEPS = (0, 50, 100, 200, 400, 800)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("file")
    parser.add_argument("--lines", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, default=0.005)
    arguments = parser.parse_args()

    documents = sorted(set(read_documents(arguments.file)))
    documents = random.Random(0).sample(documents, min(arguments.lines, len(documents)))
    model = load(arguments.model)
    config = model.config
    sizes = {name: getattr(config, name) for name in ("n_layer", "n_embd", "n_head", "block_size", "activation")}
    starts: dict[str, dict[str, Any]] = {
        "warm": {"init_from": model, "extend_vocabulary": True},
        "from scratch": {**sizes, "init_std": config.init_std, "dtype": model.dtype},
    }
    common: dict[str, Any] = {"steps": STEPS[-1], "eval_every": STEPS[1], "val_fraction": 0.5, "batch_size": 8}
    common |= {"learning_rate": arguments.learning_rate}
    columns: dict[str, list[dict[int, float]]] = {}
    for name, start in starts.items():
        runs = [train(documents, seed=seed, **common, **start) for seed in range(arguments.seeds)]
        columns[name] = [dict(run.validation_losses) for run in runs]
    print(f"{'step':>6}" + "".join(f"{name:>14}" for name in columns))
    for step in STEPS:
        losses = [mean(curve[step] for curve in curves) for curves in columns.values()]
        print(f"{step:>6}" + "".join(f"{loss:>14.3f}" for loss in losses))


if __name__ == "__main__":
    main()
