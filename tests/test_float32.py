"""float32: the same model, to its own precision."""

from __future__ import annotations

import math
import platform
import random

import numpy as np
import pytest

from microgpt import GPT, Adam, GPTConfig, train
from microgpt.engine import backend as backends
from microgpt.training.train import prepare

from conftest import CONFIGS, needs_compiled, needs_fusing


@pytest.mark.parametrize("instruction_set", backends.instruction_sets())
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"d{config.n_embd}")
def test_gradients_are_those_of_float64(config: GPTConfig, instruction_set: str, monkeypatch) -> None:
    monkeypatch.setenv("MICROGPT_ISA", instruction_set)
    draw = random.Random(0)
    documents = [[draw.randrange(config.vocab_size) for _ in range(n)] for n in (2, 5, 17, 41)]
    exact_loss, exact = GPT(config, 1, "float64").loss_and_gradients(documents, dropout_seed=1)
    loss, gradients = GPT(config, 1, "float32").loss_and_gradients(documents, dropout_seed=1)
    assert abs(loss - exact_loss) < 1e-6
    for name, gradient in gradients.items():
        assert gradient.dtype == np.float32
        assert np.linalg.norm(gradient - exact[name]) <= 1e-6 * np.linalg.norm(exact[name]), name


@needs_fusing
@pytest.mark.parametrize("instruction_set", backends.instruction_sets())
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"d{config.n_embd}")
def test_neighbours_change_no_bit_of_a_document(config: GPTConfig, instruction_set: str, monkeypatch) -> None:
    monkeypatch.setenv("MICROGPT_ISA", instruction_set)
    draw, model = random.Random(0), GPT(config, 1, "float32")
    documents = [[draw.randrange(config.vocab_size) for _ in range(2 + draw.randrange(45))] for _ in range(40)]
    total = 0.0
    for document in documents:
        total += model.loss([document])
    assert model.loss(documents) == total * (1 / 40)

    tokens = np.array([[draw.randrange(config.vocab_size) for _ in range(40)] for _ in range(20)], np.int32)
    together, alone = model.engine.new_cache(40), [model.engine.new_cache(1) for _ in range(40)]
    for column in tokens:
        for i, cache in enumerate(alone):
            if cache.lengths[0] == min(3 + i, config.block_size):  # so that their lengths differ
                cache.lengths[0] = together.lengths[i] = 0
        expected = [model.engine.next_probabilities(cache, column[i : i + 1], 1.0)[0] for i, cache in enumerate(alone)]
        assert model.engine.next_probabilities(together, column, 1.0).tolist() == np.array(expected).tolist()


@needs_compiled
def test_training_ends_where_float64_ends() -> None:
    exact, fast = (train(seed=1, steps=1000, dtype=dtype) for dtype in ("float64", "float32"))
    assert abs(exact.losses[-100:].mean() - fast.losses[-100:].mean()) < 0.005
    assert fast.model.generate(3, 0.5) != fast.model.generate(3, 0.5)


@needs_compiled
@pytest.mark.parametrize("instruction_set", backends.instruction_sets())
def test_the_smallest_eps_divides_no_zero_by_zero(instruction_set: str, monkeypatch) -> None:
    monkeypatch.setenv("MICROGPT_ISA", instruction_set)
    model = GPT(CONFIGS[0], 1, "float32")
    optimizer = Adam(model, eps=1e-30)
    model.loss_and_gradients([[26, 0, 26]])  # most gradients of embeddings are 0
    optimizer.step()
    assert np.isfinite(model.engine.parameters).all()
    with pytest.raises(ValueError, match="eps must be at least 1e-30, got 1e-50"):
        Adam(model, eps=1e-50)


@needs_compiled
def test_improbable_targets_have_a_finite_loss() -> None:
    """A target's probability may be smaller than any float32, but its logarithm is not."""
    exact, fast = (GPT(CONFIGS[0], 1, dtype) for dtype in ("float64", "float32"))
    for parameters in exact.state_dict().values():
        parameters *= 12
    fast.load_state_dict(exact.state_dict())
    documents = [[0, 1, 2, 3, 4, 5], [26, 25, 24]]
    expected, _ = exact.loss_and_gradients(documents)
    loss, gradients = fast.loss_and_gradients(documents)
    assert expected > 100
    assert abs(loss - expected) < 1e-4 * expected
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


def test_the_reference_computes_in_float64_only() -> None:
    with pytest.raises(ValueError, match="dtype must be 'float64' on the reference backend, got 'float32'"):
        GPT(CONFIGS[0], dtype="float32", backend="reference")


@needs_compiled
def test_subnormal_numbers_are_zero_in_float32_and_nowhere_else() -> None:
    """Subnormal numbers take a hundred times as long, and nothing depends on them."""
    kept: list[float] = []
    run = prepare(None, steps=1500, learning_rate=0.05, schedule="constant", dtype="float32")
    model = run.train(lambda progress: kept.append(math.ulp(0) * 0.75)).model
    assert {*kept, math.ulp(0) * 0.75} == {math.ulp(0)}
    assert np.float32(1e-45) * np.float32(0.75) > 0
    if platform.machine().lower() in ("x86_64", "amd64", "aarch64", "arm64"):
        for array in (run.optimizer.m, run.optimizer.v, model.engine.gradients):
            assert not np.any((array != 0) & (abs(array) < np.finfo(np.float32).tiny))
