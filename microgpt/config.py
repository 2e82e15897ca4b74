"""The architecture of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from microgpt.utils.arguments import choice, number, positive_integer, shown

if TYPE_CHECKING:
    from microgpt.data.tokenizer import Tokenizer

SIZES = ("vocab_size", "n_layer", "n_embd", "block_size", "n_head")
DTYPES = ("float64", "float32")
ACTIVATIONS = ("relu", "gelu", "silu")
SCALED = "scaled"


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """The architecture of a GPT. `ValueError` or `TypeError` names a wrong field and says what it must be.

    Attributes:
        vocab_size: number of tokens, BOS included.
        n_layer: number of transformer blocks.
        n_embd: width of the residual stream; a multiple of `n_head`.
        block_size: longest context, in tokens.
        n_head: number of attention heads, each `n_embd / n_head` wide.
        activation: the function between the two layers of the MLP: "relu", "gelu" (Hendrycks and Gimpel, 2016;
            the exact form) or "silu" (Elfwing et al., 2017).
        init_std: the standard deviation of initial parameters: a number above 0, or "scaled", see `init_stds`.
        dropout: the probability with which training drops, that is sets to 0, an element of the embedding and of what
            each sub-layer adds to the residual stream (Vaswani et al., 2017); in [0, 1).

    The defaults are the original's.
    """

    vocab_size: int
    n_layer: int = 1
    n_embd: int = 16
    block_size: int = 16
    n_head: int = 4
    activation: str = "relu"
    init_std: float | str = 0.08
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in SIZES:
            object.__setattr__(self, name, positive_integer(name, getattr(self, name)))
        choice("activation", self.activation, ACTIVATIONS)
        if self.init_std != SCALED:
            if isinstance(self.init_std, str):
                raise ValueError(f"init_std must be a number or {SCALED!r}, got {shown(self.init_std)}")
            object.__setattr__(self, "init_std", number("init_std", self.init_std, above=0))
        object.__setattr__(self, "dropout", number("dropout", self.dropout, minimum=0, below=1))
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd must be a multiple of n_head, got n_embd={self.n_embd} and n_head={self.n_head}")

    def parameter_shapes(self) -> dict[str, tuple[int, int]]:
        """Name and (rows, columns) of every parameter matrix, in the order in which they are drawn and stored."""
        n_embd = self.n_embd
        shapes = {
            "wte": (self.vocab_size, n_embd),
            "wpe": (self.block_size, n_embd),
            "lm_head": (self.vocab_size, n_embd),
        }
        for i in range(self.n_layer):
            shapes[f"layer{i}.attn_wq"] = (n_embd, n_embd)
            shapes[f"layer{i}.attn_wk"] = (n_embd, n_embd)
            shapes[f"layer{i}.attn_wv"] = (n_embd, n_embd)
            shapes[f"layer{i}.attn_wo"] = (n_embd, n_embd)
            shapes[f"layer{i}.mlp_fc1"] = (4 * n_embd, n_embd)
            shapes[f"layer{i}.mlp_fc2"] = (n_embd, 4 * n_embd)
        return shapes

    @property
    def num_params(self) -> int:
        """Number of parameters: all elements of `parameter_shapes`, without listing the layers."""
        return (2 * self.vocab_size + self.block_size) * self.n_embd + 12 * self.n_layer * self.n_embd**2

    def init_stds(self) -> dict[str, float]:
        """Standard deviation of the normal distribution of each parameter matrix, by name.

        It is `init_std`; or if that is "scaled", `fan_in ** -0.5`, where fan_in is the number of columns, so that
        activations keep their scale from layer to layer (LeCun et al., 1998). Residual projections, the matrices whose
        outputs are added to the residual stream, are further divided by the square root of their number, `2 * n_layer`
        (GPT-2; Radford et al., 2019).
        """
        if not isinstance(self.init_std, str):
            return dict.fromkeys(self.parameter_shapes(), self.init_std)
        return {
            name: (n_in * (2 * self.n_layer if name.endswith(("attn_wo", "mlp_fc2")) else 1)) ** -0.5
            for name, (_, n_in) in self.parameter_shapes().items()
        }

    def check_tokenizer(self, tokenizer: Tokenizer | None) -> None:
        """Raise `ValueError` if the vocabulary sizes differ, and `TypeError` if it is not a tokenizer."""
        if tokenizer is None:
            return
        if not hasattr(tokenizer, "vocab_size"):
            raise TypeError(f"tokenizer must be a Tokenizer, such as CharTokenizer(...), got {shown(tokenizer)}")
        if tokenizer.vocab_size != self.vocab_size:
            raise ValueError(
                f"vocab_size must be the tokenizer's {tokenizer.vocab_size}, got a config with {self.vocab_size}"
            )
