"""Inspection of a model: its forward pass in NumPy, with the attention weights that engines do not return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from microgpt.engine.packing import context_array
from microgpt.reference import ACTIVATIONS, Value

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from microgpt.model import GPT

MATRICES = ("attn_wq", "attn_wk", "attn_wv", "attn_wo", "mlp_fc1", "mlp_fc2")  # of a layer


@dataclass(frozen=True)
class Activations:
    """The result of `forward`.

    Attributes:
        attention: float64 (n_layer, n_head, tokens, tokens): the weights with which each position, a row, attends to
            each position, a column. Rows sum to 1, and are 0 above the diagonal.
        logits: float64 (tokens, vocab_size): as from `GPT.logits`, up to rounding.
    """

    attention: NDArray[np.float64]
    logits: NDArray[np.float64]


def forward(model: GPT, tokens: Sequence[int]) -> Activations:
    """The activations of `model` on 1 to block_size tokens, in float64 whatever its dtype.

    Source: `gpt` in microgpt/reference.py, all positions at once.
    """
    config = model.config
    array = context_array(tokens, config.vocab_size, config.block_size)
    state_dict = {name: matrix.astype(np.float64) for name, matrix in model.state_dict().items()}
    future = np.triu(np.ones((len(array), len(array)), bool), 1)
    heads = (len(array), config.n_head, config.n_embd // config.n_head)
    attention = np.zeros((config.n_layer, config.n_head, len(array), len(array)))
    activation = np.frompyfunc(lambda x: ACTIVATIONS[config.activation](Value(x)).data, 1, 1)
    x = _rmsnorm(state_dict["wte"][array] + state_dict["wpe"][: len(array)])
    for layer in range(config.n_layer):
        matrices = {name: state_dict[f"layer{layer}.{name}"].T for name in MATRICES}
        normed = _rmsnorm(x)
        q, k, v = ((normed @ matrices[name]).reshape(heads) for name in MATRICES[:3])
        scores = np.einsum("qhd,khd->hqk", q, k) / heads[-1] ** 0.5
        attention[layer] = softmax(np.where(future, -np.inf, scores))
        x = x + np.einsum("hqk,khd->qhd", attention[layer], v).reshape(x.shape) @ matrices["attn_wo"]
        x = x + activation(_rmsnorm(x) @ matrices["mlp_fc1"]).astype(np.float64) @ matrices["mlp_fc2"]
    return Activations(attention, x @ state_dict["lm_head"].T)


def softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities proportional to the exponentials of `logits`, along the last axis."""
    exps = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: NDArray[np.float64] = exps / exps.sum(axis=-1, keepdims=True)
    return probabilities


def _rmsnorm(x: NDArray[np.float64]) -> NDArray[np.float64]:
    scale: NDArray[np.float64] = ((x * x).mean(axis=-1, keepdims=True) + 1e-5) ** -0.5
    return x * scale
