"""One document at a time: the time of a token, against NumPy's bare matrix-vector products of the same weights.

    python benchmarks/decoding.py
    python benchmarks/decoding.py --cases "6x384, float32" --repeats 9

NumPy's products are what a token cannot do without, in the same precision and on one thread (OpenBLAS, with the kernels
that it chooses); the rest of the model is left out. The original's model is so small that calls would decide: it draws
documents one after the other, against 16 at once. All are measured in turns; ratios are medians over the turns.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from statistics import median

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

import microgpt

ALPHABET = "".join(map(chr, range(32, 96)))  # 64 characters and BOS
SIZES = {
    "4x128": {"n_layer": 4, "n_embd": 128, "n_head": 4, "block_size": 64},
    "6x384": {"n_layer": 6, "n_embd": 384, "n_head": 6, "block_size": 256},
}
CASES = {
    "4x128, float32": ("4x128", "float32", (1,)),
    "6x384, float32": ("6x384", "float32", (1, 2)),
    "6x384, float64": ("6x384", "float64", (1, 2)),
}
SECONDS = 0.3  # of a measurement, at least
DOCUMENTS = 2000


def new_model(size: str, dtype: str, threads: int) -> microgpt.GPT:
    """A model of continuous text, so that no document ends before its context is full."""
    tokenizer = microgpt.CharTokenizer(ALPHABET)
    config = microgpt.GPTConfig(vocab_size=tokenizer.vocab_size, **SIZES[size])
    model = microgpt.GPT(config, 1, dtype, threads=threads, tokenizer=tokenizer, format="text")
    for parameters in model.state_dict().values():
        parameters *= 0.25
    return model


def numpy_products(model: microgpt.GPT) -> Callable[[], None]:
    """The products of a token with every matrix but the embeddings."""
    matrices = [matrix for name, matrix in model.state_dict().items() if name not in ("wte", "wpe")]
    inputs = {n: np.ones(n, model.dtype) for n in {matrix.shape[1] for matrix in matrices}}
    pairs = [(matrix, inputs[matrix.shape[1]]) for matrix in matrices]

    def products() -> None:
        for matrix, x in pairs:
            matrix @ x

    return products


def seconds_per(work: Callable[[], object], units: int) -> float:
    """The time of one of the units that `work` has, over as many calls as take long enough."""
    calls, begin = 0, time.perf_counter()
    while (seconds := time.perf_counter() - begin) < SECONDS or not calls:
        work()
        calls += 1
    return seconds / (calls * units)


def compare(case: str, repeats: int) -> None:
    size, dtype, threads = CASES[case]
    models = [new_model(size, dtype, n) for n in threads]
    tokens, products = models[0].config.block_size, numpy_products(models[0])
    draws = [partial(model.generate, prompt=" ", max_tokens=tokens) for model in models]
    turns = [[seconds_per(products, 1), *(seconds_per(draw, tokens) for draw in draws)] for _ in range(repeats)]
    print(f"{case}, context {tokens}: NumPy's products {1e6 * median(turn[0] for turn in turns):,.0f} us")
    for i, n in enumerate(threads, 1):
        seconds = median(turn[i] for turn in turns)
        ratio, alone = (median(turn[i] / turn[other] for turn in turns) for other in (0, 1))
        print(
            f"    threads {n}: {1e6 * seconds:8,.0f} us/token {1 / seconds:10,.0f} tokens/s"
            f"   {ratio:.2f} of NumPy's time, {1 / alone:.2f}x as fast as one thread",
            flush=True,
        )


def compare_original(repeats: int) -> None:
    """Documents of the original's model: in turn, and 16 at once."""
    for dtype in ("float32", "float64"):
        model = microgpt.train(seed=1, steps=500, dtype=dtype, threads=1).model
        counts = [sum(map(len, model.generate_tokens(DOCUMENTS, seed=seed))) + DOCUMENTS for seed in (None, 1)]
        sixteen = model.generate_tokens(16, seed=1)
        ways = (
            (partial(model.generate_tokens, DOCUMENTS), counts[0]),
            (partial(model.generate_tokens, 16, seed=1), sum(map(len, sixteen)) + 16),
            (partial(model.generate_tokens, DOCUMENTS, seed=1), counts[1]),
        )
        turns = [[seconds_per(*way) for way in ways] for _ in range(repeats)]
        in_turn, at_once, many = (median(1 / turn[i] for turn in turns) for i in range(3))
        print(
            f"the original's model, {dtype}: {in_turn:,.0f} tokens/s one document after the other,"
            f" {at_once:,.0f} 16 at once, {many:,.0f} many at once",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    cases = ["original", *CASES]
    parser.add_argument("--cases", nargs="+", choices=cases, default=cases, metavar="CASE", help="; ".join(cases))
    parser.add_argument("--repeats", type=int, default=5, help="turns (default: 5)")
    options = parser.parse_args()
    for case in options.cases:
        if case == "original":
            compare_original(options.repeats)
        else:
            compare(case, options.repeats)


if __name__ == "__main__":
    main()
