"""Numbers that are too large or too small: their results on both backends, and what they must not affect.

fuzz/extremes.py compares the backends on thousands of random models of this kind.
"""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from fuzz.extremes import bits

from microgpt import GPT, Adam, GPTConfig, Value
from microgpt.engine import backend as backends

from conftest import needs_compiled

HUGE = 1e300
EVERY_KERNEL = [
    pytest.param(instruction_set, marks=needs_compiled, id=f"compiled-{instruction_set}")
    for instruction_set in backends.instruction_sets()
]


@pytest.fixture(params=["reference", *EVERY_KERNEL])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The reference, then the compiled backend with each instruction set."""
    if request.param == "reference":
        return "reference"
    monkeypatch.setenv("MICROGPT_ISA", request.param)
    return "compiled"


def model_of(backend: str, dtype: str = "float64", /, **sizes: int) -> GPT:
    return GPT(GPTConfig(**{"n_layer": 1, "n_head": 1, "vocab_size": 3, "n_embd": 1, **sizes}), 1, dtype, backend)


def test_padding_has_no_part_in_gradients(kernels: str) -> None:
    """The panel has padding beside these two positions. If it were token 0, with probability 0, all would be NaN."""
    model = model_of(kernels, block_size=4)
    weights = model.state_dict()
    weights["lm_head"][:] = [[-1000.0], [0.0], [0.0]]
    weights["wte"][:] = weights["wpe"][:] = 1.0
    loss, gradients = model.loss_and_gradients([[1, 2, 1]])
    assert loss == math.log(2)
    assert gradients["wte"].tolist() == [[0.0], [0.0], [0.0]]
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


@pytest.mark.parametrize("length", [3, 30])
def test_a_document_leaves_the_gradients_of_another_alone(kernels: str, length: int) -> None:
    """After token 2, the reciprocal of a probability is infinite, so that its document has no gradients."""
    model = model_of(kernels, n_embd=2, block_size=length)
    weights = model.state_dict()
    weights["wte"][:] = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    weights["wpe"][:] = 0.0
    weights["lm_head"][:] = [[0.0, 0.0], [0.0, 0.0], [0.0, -526.0]]
    weights["layer0.mlp_fc2"][:] = weights["layer0.attn_wo"][:] = 0.0
    loss, gradients = model.loss_and_gradients([[0, 1] * length, [2] * (length + 1), [1, 0] * length])
    assert 200 < loss < 300
    assert np.isnan(gradients["wte"][2]).all()
    assert np.isfinite(gradients["wte"][:2]).all()


@pytest.mark.parametrize("length", [4, 30])
def test_what_comes_later_leaves_logits_alone(kernels: str, length: int) -> None:
    model = model_of(kernels, n_embd=2, block_size=length)
    weights = model.state_dict()
    weights["wte"][:] = [[1.0, -1.0], [1.0, -1.0], [1.0, 1.0]]  # the last of which overflows
    weights["wpe"][:] = 0.0
    weights["layer0.attn_wv"][:] = 1.7e308
    logits = model.logits([0, 1] * (length // 2 - 1) + [2, 0])
    assert np.isfinite(logits[:-2]).all()
    assert not np.isfinite(logits[-2:]).any()


def test_a_document_leaves_those_alone_that_take_its_place(kernels: str) -> None:
    model = model_of(kernels, n_embd=2, block_size=4)
    weights = model.state_dict()
    weights["wte"][:] = [[1.0, -1.0], [1.0, -1.0], [1.0, 1.0]]  # the last of which overflows
    weights["wpe"][:] = 0.0
    weights["layer0.attn_wv"][:] = 1.7e308
    cache = model.engine.new_cache(2)

    def probabilities(*tokens: int) -> list[bool]:
        return np.isfinite(model.engine.next_probabilities(cache, np.array(tokens, np.int32), 1.0)).all(1).tolist()

    assert probabilities(0, 0) == [True, True]
    assert probabilities(2, 0) == [False, True]
    cache.lengths[0] = 0
    assert probabilities(0, 1) == [True, True]
    assert probabilities(1, 1) == [True, True]


def test_activations_whose_squares_overflow_are_divided_by_infinity(kernels: str) -> None:
    model = model_of(kernels, block_size=2)
    model.state_dict()["wte"][:] = 1e200
    assert model.logits([1, 2]).tolist() == [[0.0] * 3] * 2
    loss, gradients = model.loss_and_gradients([[1, 2, 0]])
    assert loss == pytest.approx(math.log(3))
    assert all((gradient == 0).all() for gradient in gradients.values())


def test_an_impossible_token_costs_infinity_and_an_unknown_one_nan(kernels: str) -> None:
    model = model_of(kernels, block_size=3)
    weights = model.state_dict()
    weights["wte"][:] = [[1.0], [1.0], [-1.0]]
    weights["wpe"][:] = weights["layer0.mlp_fc2"][:] = weights["layer0.attn_wo"][:] = 0.0
    weights["lm_head"][:] = [[1000.0], [0.0], [0.0]]
    impossible, unknown = [0, 1, 1], [2, 0, 0]
    assert model.loss([impossible]) == math.inf
    weights["wte"][2] = np.nan
    for documents in ([unknown, impossible], [impossible, unknown], [[0, 1, 2, 0]]):
        assert math.isnan(model.loss(documents))
        assert math.isnan(model.loss_and_gradients(documents)[0])


@pytest.mark.parametrize("gradient", [1e155, -1.7e308])
def test_gradients_whose_squares_overflow_move_nothing(kernels: str, gradient: float) -> None:
    """The mean of the squares is infinite from then on. The original raises an `OverflowError`."""
    model = model_of(kernels, block_size=2)
    optimizer = Adam(model)
    before = model.engine.parameters.tolist()
    for size in (gradient, 1.0):
        model.engine.gradients[:] = 1.0
        model.engine.gradients[3] = size
        optimizer.step()
        assert optimizer.v[3] == math.inf
        assert model.engine.parameters[3] == before[3]
        assert np.isfinite(model.engine.parameters).all()
    assert model.engine.parameters[2] != before[2]


def test_the_same_holds_for_values(backend: str) -> None:
    if backend == "compiled":
        values = [Value(0.5), Value(0.5)]
    else:
        from microgpt import reference

        values = [reference.Value(0.5), reference.Value(0.5)]
    optimizer = Adam(values, learning_rate=0.1)
    values[0].grad, values[1].grad = 1e200, 1.0
    optimizer.step()
    assert (values[0].data, values[1].data) == (0.5, 0.5 - 0.1 / (1 + 1e-8))
    assert optimizer.v.tolist() == [math.inf, (1 - 0.99) * 1.0]


@needs_compiled
@pytest.mark.parametrize("instruction_set", backends.instruction_sets())
def test_steps_of_every_size_have_the_same_bits(instruction_set: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients run from so small that only huge learning rates move anything, to so large that they overflow."""
    monkeypatch.setenv("MICROGPT_ISA", instruction_set)
    models = [model_of(backend, n_embd=4, block_size=2) for backend in ("reference", "compiled")]
    draw = random.Random(0)
    for moments in ({}, {"beta1": 1 - 2**-53, "beta2": 1 - 2**-53}, {"beta1": 0.0, "beta2": 0.0, "eps": 1e-100}):
        optimizers = [Adam(model, **moments) for model in models]
        for step in range(30):
            gradients = [10.0 ** draw.uniform(-323, (-260, 0, 308)[step % 3]) for _ in models[0].engine.gradients]
            parameters = [draw.gauss(0, 1) for _ in gradients]
            for model, optimizer in zip(models, optimizers):
                model.engine.parameters[:], model.engine.gradients[:] = parameters, gradients
                optimizer.step(10.0 ** (10 * step + 8))
            for get in ("m", "v"):
                assert bits(getattr(optimizers[1], get)) == bits(getattr(optimizers[0], get)), (get, step)
            assert bits(models[1].engine.parameters) == bits(models[0].engine.parameters), step


@needs_compiled
@pytest.mark.parametrize("instruction_set", backends.instruction_sets())
def test_squares_whose_residuals_are_lost_have_the_same_bits(instruction_set: str, monkeypatch) -> None:
    """Squares from 0 to 2**-960: the residual of one near the smallest normal number is itself below all numbers."""
    monkeypatch.setenv("MICROGPT_ISA", instruction_set)
    models = [model_of(backend, n_embd=4, block_size=2) for backend in ("reference", "compiled")]
    draw = random.Random(0)
    for beta2 in (0.0, 1e-300, 0.5, 0.99, 1 - 2**-53):
        optimizers = [Adam(model, beta2=beta2, eps=1e-100) for model in models]
        for step in range(40):
            exponents = [draw.choice([-511, draw.randint(-540, -480 - step)]) for _ in models[0].engine.gradients]
            gradients = [draw.uniform(1, 2) * 2.0**exponent for exponent in exponents]
            for model, optimizer in zip(models, optimizers):
                model.engine.gradients[:] = gradients
                optimizer.step(1e150)
            assert bits(optimizers[1].v) == bits(optimizers[0].v), (beta2, step)
            assert bits(models[1].engine.parameters) == bits(models[0].engine.parameters), (beta2, step)


# --- float32 ----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=EVERY_KERNEL)
def kernels32(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MICROGPT_ISA", request.param)
    return "compiled"


def test_float32_gradients_whose_squares_overflow_move_nothing(kernels32: str) -> None:
    model = model_of(kernels32, "float32", n_embd=8, block_size=2)
    optimizer, before = Adam(model), model.engine.parameters.tolist()
    model.engine.gradients[:] = 1e21
    optimizer.step()
    model.engine.gradients[:] = 1.0
    optimizer.step()
    assert model.engine.parameters.tolist() == before


@pytest.mark.parametrize("size", [1e-25, 1e30])
def test_in_float32_gradients_of_any_size_are_clipped(kernels32: str, size: float) -> None:
    model = model_of(kernels32, "float32", n_embd=16, block_size=9)
    n = model.num_params
    optimizer = Adam(model, beta1=0.0, max_grad_norm=size / 100)
    model.engine.gradients[:] = size
    optimizer.step()
    np.testing.assert_allclose(optimizer.m, size / 100 / math.sqrt(n), rtol=1e-4)


@pytest.mark.parametrize("option", ["learning_rate", "eps"])
def test_float32_options_that_overflow_move_nothing_without_gradient(kernels32, option) -> None:
    model = model_of(kernels32, "float32", n_embd=8, block_size=2)
    optimizer, before = Adam(model, **{option: HUGE}), model.engine.parameters.tolist()
    optimizer.step()
    assert model.engine.parameters.tolist() == before


def test_float32_documents_do_not_affect_each_other(kernels32: str) -> None:
    draw, finite = random.Random(1), 0
    for _ in range(300):
        n_embd, block_size = draw.choice([1, 2, 4]), draw.choice([3, 17, 40])
        model = model_of(kernels32, "float32", n_embd=n_embd, block_size=block_size, vocab_size=4)
        for matrix in model.state_dict().values():
            scale = 10.0 ** draw.choice([0, draw.uniform(-3, 3), draw.uniform(-38, 36)])
            matrix[:] = np.reshape([draw.gauss(0, 1) * scale for _ in range(matrix.size)], matrix.shape)
        first = draw.choices((0, 1), k=draw.randint(2, block_size + 1))
        second = draw.choices((2, 3), k=draw.randint(2, block_size + 1))
        losses = [model.loss_and_gradients([each])[0] for each in (second, first)]
        alone = model.engine.gradients[: 2 * n_embd].copy()  # the embeddings of the first document's tokens
        together, gradients = model.loss_and_gradients([first, second])
        assert bits(together) == bits((losses[1] + losses[0]) * 0.5)
        if math.isfinite(together) and np.isfinite(alone).all():
            finite += 1
            assert np.isfinite(gradients["wte"][:2]).all()
    assert finite > 100
