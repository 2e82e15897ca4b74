"""Dropout: the same elements are dropped on both backends and however work is divided, and only in training.

tests/test_model.py and others compare a model with dropout, among the others, to the last bit.
"""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microgpt import GPT, Adam, CharTokenizer, GPTConfig, load, train
from microgpt.engine import reference_engine
from microgpt.engine.packing import pack
from microgpt.random.splitmix import step_stream, stream_of, uniform_of, uniforms
from microgpt.reference import Value, dropout
from microgpt.training.train import prepare

from conftest import needs_compiled

CONFIG = GPTConfig(vocab_size=5, n_layer=1, n_embd=4, block_size=4, n_head=2, dropout=0.3)
WHOLE = replace(CONFIG, dropout=0.0)
DRAW = random.Random(1)
DOCUMENTS = [[DRAW.randrange(5) for _ in range(DRAW.randint(2, 5))] for _ in range(6)]
NAMES = ["anna", "bob", "carla", "dan", "eva", "finn", "gina", "hal"]
SMALL: dict[str, Any] = {"n_embd": 4, "n_head": 2, "block_size": 4}

both_dtypes = pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        ("reference", "float64"),
        *(pytest.param("compiled", each, marks=needs_compiled) for each in ("float64", "float32")),
    ],
)


def test_random_numbers_are_those_of_splitmix64() -> None:
    """Source: the first numbers of Vigna's splitmix64.c from 1234567."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert list(islice(uniforms(1234567), 4)) == [(number >> 11) / 2**53 for number in expected]
    stream = stream_of(stream_of(7, 0), 3)
    assert list(islice(uniforms(stream), 5)) == [uniform_of(7, 3, number) for number in range(5)]
    streams = {stream_of(step_stream(seed, step), i) for seed in range(20) for step in range(20) for i in range(20)}
    assert len(streams) == 20**3
    assert not streams & {stream_of(stream_of(seed, 0), document) for seed in range(50) for document in range(50)}


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_a_fraction_p_is_dropped_and_the_mean_stays(p: float) -> None:
    x = [Value(1.0)] * 10_000
    dropped = np.array([[y.data for y in dropout(x, p, uniforms(stream_of(5, row)))] for row in range(4)])
    assert set(dropped.ravel()) == {0.0, 1 / (1 - p)}
    spread = (p * (1 - p) / 10_000) ** 0.5  # of the fraction that is dropped
    assert abs((dropped == 0).mean(axis=1) - p).max() < 4 * spread
    alike = (dropped[0] == 0) == (dropped[1] == 0)  # independent of each other
    assert abs(alike.mean() - (p * p + (1 - p) * (1 - p))) < 4 * (0.25 / 10_000) ** 0.5
    assert dropout(x, p, None) is x


def test_an_element_and_its_gradient_are_dropped_together() -> None:
    x = [Value(-2.0), Value(3.0), Value(float("inf"))]
    y = dropout(x, 0.5, iter([0.7, 0.2, 0.49]))
    assert [each.data for each in y[:2]] == [-4.0, 0.0]
    assert np.isnan(y[2].data)
    for each in y:
        each.backward()
    assert [each.grad for each in x] == [2.0, 0.0, 0.0]


@both_dtypes
def test_outside_of_training_nothing_is_dropped(backend: str, dtype: str) -> None:
    tokenizer = CharTokenizer("abcd")
    models = [GPT(config, 3, dtype, backend, tokenizer=tokenizer) for config in (CONFIG, WHOLE)]
    results: list[list[Any]] = []
    for model in models:
        if model.config.dropout:
            model.loss_and_gradients(DOCUMENTS, dropout_seed=1)  # which leaves nothing behind
        cache = model.engine.new_cache(2)
        results.append(
            [
                model.loss(DOCUMENTS),
                model.loss_and_gradients(DOCUMENTS, dropout_seed=None)[0],
                model.engine.gradients.tolist(),
                model.logits([4, 1, 2]).tolist(),
                model.engine.next_probabilities(cache, np.array([4, 1], np.int32), 1.0).tolist(),
                model.next_token_probabilities("ab"),
                model.evaluate(["abc", "d"]),
                model.generate(3),
                model.generate(5, seed=2),
                model.attention([4, 1]).tolist(),
            ]
        )
    assert results[0] == results[1]


@both_dtypes
def test_a_step_of_train_drops_what_its_number_says(backend: str, dtype: str) -> None:
    """Step by step, each with the stream of its number, the numbers are those of one call of `train`."""
    packed, rates, losses, seed = pack(DOCUMENTS, 5), np.array([0.1, 0.1, 0.05]), np.zeros(3), 2**64 - 5
    model = GPT(CONFIG, 3, dtype, backend)
    model.engine.train(packed, 2, rates, Adam(model), losses, None, seed=seed)
    twin = GPT(CONFIG, 3, dtype, backend)
    adam, found = Adam(twin), []
    for step, rate in enumerate(rates):
        batch = packed.select(np.arange(2 * step, 2 * step + 2))
        found.append(twin.engine.loss(batch, gradients=True, stream=step_stream(seed, step)))
        adam.step(rate)
    assert found == losses.tolist()
    assert twin.engine.parameters.tolist() == model.engine.parameters.tolist()
    other = GPT(CONFIG, 3, dtype, backend)
    losses_of_other = np.zeros(1)
    other.engine.train(packed.select(np.arange(2)), 2, rates[:1], Adam(other), losses_of_other, None, seed=1)
    assert losses_of_other[0] != losses[0]


@both_dtypes
def test_a_document_drops_the_same_in_any_division_of_the_batch(backend: str, dtype: str) -> None:
    """Its random numbers depend on its index in the whole batch, neither on its shard nor on what it is packed with."""
    packed, first = pack(DOCUMENTS, 5), []
    for shards in (1, 2, 3, 6):
        model, losses = GPT(CONFIG, 3, dtype, backend), np.zeros(1)
        model.engine.train(packed, 6, np.zeros(1), Adam(model), losses, None, shards, seed=4)
        first.append((losses[0], model.engine.gradients.copy()))
    for loss, gradients in first[1:]:
        assert loss == pytest.approx(first[0][0], rel=1e-14 if dtype == "float64" else 1e-6)
        np.testing.assert_allclose(gradients, first[0][1], rtol=1e-4, atol=1e-14 if dtype == "float64" else 1e-7)


def test_a_model_with_dropout_is_not_trained_without_by_mistake(backend: str) -> None:
    model = GPT(CONFIG, 3, backend=backend)
    with pytest.raises(
        ValueError, match=r"^dropout_seed must be given for a model with dropout=0\.3: another seed for"
    ):
        model.loss_and_gradients(DOCUMENTS)
    losses = [model.loss_and_gradients(DOCUMENTS, dropout_seed=seed)[0] for seed in (1, 1, 2, "1", None)]
    assert losses[0] == losses[1]
    assert len(set(losses)) == 4
    assert losses[-1] == model.loss(DOCUMENTS)
    with pytest.raises(TypeError, match=r"^dropout_seed must be a number, a string or a random\.Random, got \["):
        model.loss_and_gradients(DOCUMENTS, dropout_seed=[1])
    whole = GPT(WHOLE, 3, backend=backend)
    assert whole.loss_and_gradients(DOCUMENTS, dropout_seed=1)[0] == whole.loss_and_gradients(DOCUMENTS)[0]


@needs_compiled
def test_gradients_are_the_derivatives_of_what_was_not_dropped() -> None:
    model, index, step = GPT(CONFIG, 3, backend="compiled"), (1, 2), 1e-6
    _, gradients = model.loss_and_gradients(DOCUMENTS, dropout_seed=1)
    for name, parameters in model.state_dict().items():
        before, losses = parameters[index], []
        for moved in (before + step, before - step):
            parameters[index] = moved
            losses.append(model.loss_and_gradients(DOCUMENTS, dropout_seed=1)[0])
        parameters[index] = before
        assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(gradients[name][index], abs=1e-8), name


@pytest.mark.parametrize("seed", [-1, 2**70, 1.5, "text"])
def test_a_seed_of_any_kind_decides_what_is_dropped(seed: Any, backend: str) -> None:
    options = {"steps": 3, "batch_size": 2, "seed": seed, "backend": backend, **SMALL}
    losses = [train(NAMES, dropout=p, **options).losses.tolist() for p in (0.5, 0.5, 0.0)]
    assert losses[0] == losses[1] != losses[2]


def test_the_next_loss_is_checked_with_what_the_next_step_drops(monkeypatch, tmp_path: Path) -> None:
    checked: list[float] = []
    loss = reference_engine.Engine.loss
    monkeypatch.setattr(
        reference_engine.Engine,
        "loss",
        lambda *arguments, **options: checked.append(loss(*arguments, **options)) or checked[-1],
    )
    options = {"dropout": 0.5, "steps": 6, "batch_size": 2, "backend": "reference", **SMALL}
    run = prepare(NAMES, out=tmp_path / "model.safetensors", **options)
    run.train(until=3)
    run.train()
    assert run.losses[3] in checked


def test_a_file_and_a_warm_start_keep_the_dropout_unless_another_is_given(tmp_path: Path, backend: str) -> None:
    path, out = tmp_path / "names.safetensors", tmp_path / "more.safetensors"
    options: dict[str, Any] = {"steps": 2, "backend": backend}
    train(NAMES, dropout=0.2, out=path, **options, **SMALL)
    assert load(path, backend=backend).config.dropout == 0.2
    with pytest.raises(ValueError, match=r"dropout is 0\.1, but .*names.safetensors was begun with 0\.2"):
        train(NAMES, dropout=0.1, out=path, resume=True, **{**options, "steps": 3}, **SMALL)
    assert train(NAMES, init_from=path, **options).model.config.dropout == 0.2
    result = train(NAMES, init_from=path, dropout=0, out=out, **options)
    assert (result.model.config.dropout, result.history.options["dropout"]) == (0.0, 0.0)
    for given in ({}, {"dropout": 0.0}):
        resumed = train(NAMES, init_from=path, out=out, resume=True, **{**options, "steps": 3}, **given)
        assert resumed.model.config.dropout == 0.0
    with pytest.raises(ValueError, match="dropout must be at least 0 and less than 1, got 1"):
        train(NAMES, init_from=path, dropout=1, **options)


def test_dropout_of_no_elements_changes_no_bit(backend: str) -> None:
    """All elements are divided by 1 - p, which is 1, if no random number is below p."""
    losses = [train(NAMES, dropout=p, steps=5, backend=backend, **SMALL).losses.tolist() for p in (0.0, 1e-17)]
    assert losses[0] == losses[1]
