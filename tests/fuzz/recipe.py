"""Random recipes, sensible and not, on both backends: the same runs to the last bit, or the same error.

What comes of a run is compared: its losses, parameters and moments, and what its model evaluates and generates.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from fuzz.extremes import bits, number, some_instruction_set
from microgpt.training.train import prepare

TEST_CASES = 60


def documents(random: random.Random) -> list[str]:
    """A few documents, of few characters, some of them empty or longer than any context."""
    alphabet = random.choice(["a", "ab", "abc", "ab \n", "aé😀"])
    lengths = [random.choice([0, 1, 2, 3, 3, 5, random.randint(1, 30)]) for _ in range(random.randint(1, 7))]
    return ["".join(random.choices(alphabet, k=length)) for length in lengths]


def options(random: random.Random) -> dict[str, Any]:
    """Options of `train`, of which about one in a hundred is refused."""

    def some(usual: list[Any], *refused: Any) -> Any:
        return random.choice(refused) if refused and random.random() < 0.01 else random.choice(usual)

    def any_size() -> float:
        return abs(number(random))

    n_head, head_dim = random.choice([(1, 1), (1, 2), (2, 1), (3, 1), (1, 3)])
    every_option = {
        "format": some(["lines", "lines", "text"], "words"),
        "tokenizer": some(["characters"] * 12 + ["bytes"], "no/such/file.json", 3),
        "long_documents": some(["cut", "split"], "fold"),
        "val_fraction": some([0.0, 0.1, 0.3, 0.7], 1.0, -0.1),
        "seed": some([0, 1, 42, -3, "text", 1.5], [1]),
        "n_layer": some([1, 1, 1, 1, 2], 0),
        "activation": some(["relu", "gelu", "silu"], "sine"),
        "init_std": some([0.08, 1.0, "scaled", 1e-200, any_size() or 1.0], 0.0),
        "dropout": some([0.0, 0.1, 0.9], 1.0),
        "batch_size": some([1, 1, 2, 3, 5], 0, 1.5),
        "schedule": some(["linear", "cosine", "constant"], "square"),
        "warmup_steps": some([0, 1, 2, 7], -1),
        "beta1": some([0.85, 0.9, 0.0], 1.0),
        "beta2": some([0.99, 0.999, 0.0], -1.0),
        "eps": some([1e-8, 1e-3, 1e-100], 0.0),
        "weight_decay": some([0.0, 0.1, any_size()], -1.0),
        "max_grad_norm": some([None, 1.0, 1e-3, any_size() or 1.0], 0.0),
        "eval_tokens": some([1, 3, 10, 1000], 0),
        "dtype": some(["float64"], "float16"),
    }
    chosen = {name: value for name, value in every_option.items() if random.random() < 0.5}
    chosen["learning_rate"] = some([0.01, 0.1, 1.0, 1e3, any_size()], -1.0)
    chosen["n_embd"], chosen["n_head"] = n_head * head_dim, some([n_head], n_head + 1)
    chosen["block_size"] = some([1, 2, 3, 4, 9], 0)
    if random.random() < 0.8:
        chosen["steps"] = random.choice([0, 1, 2, 3, 5])
    else:
        chosen["epochs"] = random.choice([0.3, 1.0])
    for name, values in (("eval_every", [1, 2, 3]), ("patience", [1, 2])):
        if random.random() < (0.5 if chosen.get("val_fraction") else 0.01):
            chosen[name] = some(values, 0)
    return chosen


def outcome(function: Callable[[], Any]) -> Any:
    """The result of a function, or its error."""
    try:
        return function()
    except (ValueError, TypeError, OverflowError, OSError) as error:
        assert "\n" not in str(error), f"an error of several lines: {error}"
        return f"{type(error).__name__}: {error}"


def results(seed: int, backend: str) -> dict[str, Any]:
    """Everything that a run produces, by name."""
    draw = random.Random(seed)
    data = documents(draw)
    chosen = options(draw)
    run = outcome(lambda: prepare(data, backend=backend, **chosen))
    if isinstance(run, str):
        return {"options": chosen, "refused": run}
    model = run.model
    ended = outcome(run.train)
    found = {
        "options": chosen,
        "ended": ended if isinstance(ended, str) else "well",
        "steps": run.step,
        "losses": bits(run.losses[: run.step]),
        "validation losses": [(step, bits(loss)) for step, loss in run.validation_losses],
        "parameters": bits(model.engine.parameters),
        "m": bits(run.optimizer.m),
        "v": bits(run.optimizer.v),
        "generator": outcome(model.generator.getstate),
    }
    temperature, n, prompt = draw.choice([1.0, 0.5, 1e-30]), draw.choice([1, 3]), draw.choice(["", data[0][:3]])
    limits = draw.choice([{}, {"top_k": 2}, {"top_p": 0.5}, {"max_tokens": 6}])
    what = draw.randrange(4)
    if what == 0:
        evaluation = outcome(lambda: model.evaluate(data))
        found["evaluation"] = evaluation if isinstance(evaluation, str) else bits(list(vars(evaluation).values()))
    elif what == 1:
        probabilities = outcome(lambda: model.next_token_probabilities(prompt))
        found["next"] = probabilities
        if not isinstance(probabilities, str):
            found["next"] = sorted(zip(probabilities, bits(list(probabilities.values()))))
    else:
        seed = draw.choice([None, 5])
        found["generated"] = outcome(lambda: model.generate(n, temperature, seed, prompt=prompt, **limits))
    return found


def case(random: random.Random) -> None:
    seed = random.randrange(2**32)
    with some_instruction_set(random):
        expected, found = results(seed, "reference"), results(seed, "compiled")
    for name, value in expected.items():
        assert found[name] == value, f"{name}: {found[name]}, not {value}, with {expected['options']}"
