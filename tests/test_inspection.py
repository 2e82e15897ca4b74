"""The forward pass in NumPy, and the plane in which the report shows embeddings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microgpt import GPT, GPTConfig
from microgpt.inspection import forward
from microgpt.report.projection import principal_components

CONFIG = GPTConfig(vocab_size=7, n_layer=3, n_embd=12, block_size=6, n_head=3)


def test_the_logits_are_the_models(backend) -> None:
    model = GPT(CONFIG, 3, backend=backend)
    for matrix in model.state_dict().values():
        matrix *= 6  # attention that is not nearly uniform
    for tokens in ([2], [6, 1, 5], [0, 1, 2, 3, 4, 5]):
        assert np.abs(forward(model, tokens).logits - model.logits(tokens)).max() < 1e-9


def test_attention_looks_back_and_adds_up_to_one(backend) -> None:
    weights = GPT(CONFIG, 3, backend=backend).attention([6, 1, 5, 5])
    assert weights.shape == (3, 3, 4, 4)
    assert np.abs(weights.sum(axis=-1) - 1).max() < 1e-12
    assert not np.triu(weights, 1).any()
    assert (weights[..., 0, 0] == 1).all()


def test_tokens_that_do_not_fit_are_refused() -> None:
    model = GPT(CONFIG)
    for tokens, message in (([], "got 0"), ([1] * 7, "tokens must be 1 to block_size=6 tokens, got 7")):
        with pytest.raises(ValueError, match=message):
            forward(model, tokens)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 10**6))
def test_the_plane_is_that_of_the_covariances_first_eigenvectors(rows, columns, seed) -> None:
    matrix = np.random.default_rng(seed).normal(size=(rows, columns))
    points, shares = principal_components(matrix)
    centred = matrix - matrix.mean(axis=0)
    variances = np.pad(np.linalg.eigvalsh(centred.T @ centred), (2, 0))[:-3:-1]
    assert points.shape == (rows, 2)
    assert np.allclose(points.T @ points, np.diag(variances), atol=1e-9)
    if rows > 1:
        assert np.allclose(shares, variances / (centred**2).sum())


def test_the_plane_does_not_turn_over() -> None:
    rows = np.array([[0.0, 0.0], [4.0, 1.0], [8.0, 0.0]])
    for signs in ((1, 1), (-1, 1), (1, -1)):
        points, _ = principal_components(rows * signs)
        directions = (rows * signs - (rows * signs).mean(axis=0)).T @ points  # of the axes, but for their lengths
        assert (directions[[0, 1], [0, 1]] > 0).all()


def test_rows_that_are_all_the_same_lie_in_one_point() -> None:
    points, shares = principal_components(np.full((5, 3), 2.0))
    assert not points.any()
    assert not shares.any()
