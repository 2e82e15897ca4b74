"""Tokens drawn from a model."""

from __future__ import annotations

import random
from itertools import accumulate

import numpy as np
import pytest

from microgpt import GPT, GPTConfig

from conftest import needs_compiled

CONFIG = GPTConfig(vocab_size=7, n_layer=2, n_embd=6, block_size=5, n_head=2)
TOKENS = np.array([[6, 1, 2, 6], [0, 0, 5, 3], [4, 4, 4, 4], [1, 2, 3, 4], [5, 6, 0, 1]] * 4, np.int32)


def test_probabilities_are_those_of_the_logits(backend) -> None:
    model = GPT(CONFIG, 3, backend=backend)
    cache = model.engine.new_cache(len(TOKENS))
    for position in range(4):
        probabilities = model.engine.next_probabilities(cache, np.ascontiguousarray(TOKENS[:, position]), 0.7)
        for tokens, row in zip(TOKENS, probabilities):
            exps = np.exp(model.logits(tokens[: position + 1])[-1] / 0.7)
            assert np.abs(row - exps / exps.sum()).max() < 1e-12


def test_draws_are_those_of_choices(backend) -> None:
    model, generator = GPT(CONFIG, 3, backend=backend), random.Random(1)
    looked_at, drawn_from = (model.engine.new_cache(len(TOKENS)) for _ in range(2))
    for position in range(4):
        tokens = np.ascontiguousarray(TOKENS[:, position])
        uniforms = np.array([generator.random() for _ in tokens])
        drawn = model.engine.draw_tokens(drawn_from, tokens, 1.5, uniforms).tolist()
        probabilities = model.engine.next_probabilities(looked_at, tokens, 1.5).tolist()
        for row, uniform, token in zip(probabilities, uniforms.tolist(), drawn):
            generator.random = lambda uniform=uniform: uniform
            assert generator.choices(range(7), cum_weights=list(accumulate(row))) == [token]
            del generator.random


def test_a_place_in_a_cache_is_used_again(backend) -> None:
    engine = GPT(CONFIG, 3, backend=backend).engine
    tokens = np.array([1, 2, 3], np.int32)
    cache, fresh = engine.new_cache(3), engine.new_cache(3)
    engine.next_probabilities(cache, tokens, 1.0)
    cache.lengths[1] = 0
    again = engine.next_probabilities(cache, tokens, 1.0)
    first = engine.next_probabilities(fresh, tokens, 1.0)
    assert again[1].tolist() == first[1].tolist()
    assert again[0].tolist() != first[0].tolist()


def test_a_cache_holds_block_size_tokens(backend) -> None:
    engine = GPT(CONFIG, 3, backend=backend).engine
    cache = engine.new_cache(1)
    for _ in range(CONFIG.block_size):
        engine.next_probabilities(cache, np.array([1], np.int32), 1.0)
    with pytest.raises(ValueError, match="document 0 already has block_size=5 tokens"):
        engine.next_probabilities(cache, np.array([1], np.int32), 1.0)


def test_documents_with_a_seed_are_their_own(backend) -> None:
    model = GPT(CONFIG, 3, backend=backend)
    before = model.generator.getstate()
    five = model.generate_tokens(5, 0.9, seed=11)
    assert model.generate_tokens(2, 0.9, seed=11) == five[:2]
    assert model.generate_tokens(5, 0.9, seed=12) != five
    assert model.generate_tokens(0, 0.9, seed=11) == []
    assert model.generator.getstate() == before
    assert all(len(tokens) <= CONFIG.block_size and CONFIG.vocab_size - 1 not in tokens for tokens in five)


@needs_compiled
def test_documents_with_a_seed_are_those_of_the_reference() -> None:
    ours, theirs = (GPT(CONFIG, 3, backend=backend).generate_tokens(40, 0.9, seed=5) for backend in ("compiled", "reference"))
    assert ours == theirs


@needs_compiled
def test_more_documents_than_places() -> None:
    model = GPT(CONFIG, 3)
    many = model.generate_tokens(1000, 0.9, seed=5)
    assert len(many) == 1000
    assert many[:40] == model.generate_tokens(40, 0.9, seed=5)
    assert len({tuple(tokens) for tokens in many}) > 500
