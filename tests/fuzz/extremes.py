"""Tiny models with numbers of every size, from 0 and the smallest subnormal to the largest: both backends, bit for bit.

Losses, gradients, steps of Adam, logits and drawn tokens are compared, those that are infinite or NaN included.
"""

from __future__ import annotations

import os
import random
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from microgpt import GPT, Adam, GPTConfig
from microgpt.engine import backend as backends

TEST_CASES = 240

# n_embd, n_head and positions of a batch, small enough for the reference. Documents longer than a cache line have
# kernels of their own: a line holds 8 numbers.
SIZES = [
    *((1, 1, positions) for positions in (1, 2, 3, 4, 9, 11)),
    *((2, 1, 2), (2, 2, 2), (2, 2, 3), (3, 1, 1), (3, 3, 2), (5, 1, 1)),
]

SPECIAL = [0.0, -0.0, 5e-324, -5e-324, 2.3e-308, 1e-160, 1.0, -1.0, 30.0, -1000.0, 1e150, 1e160, -1e300, 1.7e308]


def number(random: random.Random) -> float:
    """A number of any size."""
    if random.random() < 0.3:
        return random.choice(SPECIAL)
    return random.choice([1.0, -1.0]) * 10.0 ** random.uniform(-323, 308)


def fill(random: random.Random, array: np.ndarray[Any, Any]) -> None:
    """Numbers of the usual size, or all of one random size, or each of its own."""
    kind = random.random()
    scale = 10.0 ** random.uniform(-2, 2) if kind < 0.7 else abs(number(random))
    for index in np.ndindex(array.shape):
        array[index] = number(random) if kind > 0.9 else min(1.7e308, max(-1.7e308, random.gauss(0, 1) * scale))
        if random.random() < 0.02:
            array[index] = number(random)


def bits(array: Any) -> list[int]:
    """The bits of every number, with one pattern for every NaN."""
    numbers = np.array(array, np.float64)
    numbers[np.isnan(numbers)] = np.nan
    return numbers.view(np.int64).ravel().tolist()


def some_instruction_set(random: random.Random) -> AbstractContextManager[object]:
    """Make the compiled engine use one of the instruction sets that this processor has."""
    if not backends.instruction_sets():
        pytest.skip("this installation has no compiled engine")
    return patch.dict(os.environ, MICROGPT_ISA=random.choice(backends.instruction_sets()))


def case(random: random.Random) -> None:
    n_embd, n_head, positions = random.choice(SIZES)
    config = GPTConfig(
        vocab_size=random.randint(1, 3),
        n_layer=2 if n_embd * positions <= 4 and random.random() < 0.3 else 1,
        n_embd=n_embd,
        n_head=n_head,
        block_size=random.choice([positions, positions, 17]),
        activation=random.choice(["relu", "relu", "gelu", "silu"]),
        dropout=random.choice([0.0, 0.0, 0.3, 0.9, 1e-300, 1 - 2**-53]),
    )
    with some_instruction_set(random):
        models = [GPT(config, 1, backend=backend) for backend in ("reference", "compiled")]
    for matrix in models[0].state_dict().values():
        fill(random, matrix)
    models[1].load_state_dict(models[0].state_dict())
    options = {
        "beta1": random.choice([0.85, 0.0, 0.999, 1e-300, 1 - 2**-53]),
        "beta2": random.choice([0.99, 0.0, 0.5, 1e-300, 1 - 2**-53]),
        "eps": random.choice([1e-8, 1e-8, 1e-100, 1e300]),
        "weight_decay": random.choice([0.0, 0.0, 0.1, abs(number(random))]),
        "max_grad_norm": random.choice([None, None, 1.0, abs(number(random)) or 1.0]),
    }
    optimizers = [Adam(model, **options) for model in models]
    same_state(models, optimizers)
    for step in range(random.randint(1, 3)):
        left, documents = positions, []
        while left > 0:
            length = random.randint(1, left)
            documents.append([random.randrange(config.vocab_size) for _ in range(length + 1)])
            left -= length
        (expected_loss, expected), (loss, gradients) = (
            model.loss_and_gradients(documents, dropout_seed=step) for model in models
        )
        assert bits(loss) == bits(expected_loss), f"loss: {loss}, not {expected_loss}"
        for name, gradient in expected.items():
            assert bits(gradients[name]) == bits(gradient), f"gradients of {name}"
        if random.random() < 0.3:  # gradients that no loss has
            fill(random, models[0].engine.gradients)
            models[1].engine.gradients[:] = models[0].engine.gradients
        learning_rate = random.choice([0.01, 1.0, abs(number(random))])
        for optimizer in optimizers:
            optimizer.step(learning_rate)
        same_state(models, optimizers)
    what = random.randrange(4)
    if what == 0:
        assert bits(models[1].loss(documents)) == bits(models[0].loss(documents)), "loss without gradients"
    elif what == 1:
        assert bits(models[1].logits(documents[0][1:])) == bits(models[0].logits(documents[0][1:])), "logits"
    elif models[0].is_finite():
        temperature, n = random.choice([1.0, 1e-30, 1e300]), min(4, 1 + 8 // config.block_size)
        seed = random.choice([None, 7])
        limit = random.choice([None, None, config.block_size + 2]) if config.block_size <= 4 else None
        drawn = [model.generate_tokens(n, temperature, seed, max_tokens=limit) for model in models]
        assert drawn[1] == drawn[0], "drawn"


def same_state(models: list[GPT], optimizers: list[Adam]) -> None:
    for name, matrix in models[0].state_dict().items():
        assert bits(models[1].state_dict()[name]) == bits(matrix), f"parameters of {name}"
    assert bits(optimizers[1].m) == bits(optimizers[0].m), "m"
    assert bits(optimizers[1].v) == bits(optimizers[0].v), "v"
