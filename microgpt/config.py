"""The shape of a model."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from microgpt.arguments import positive_integer


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """The sizes of a GPT. All are whole numbers of at least 1; `ValueError` or `TypeError` says which one is not.

    Attributes:
        vocab_size: number of tokens, the one that begins and ends a document included.
        n_layer: number of transformer blocks.
        n_embd: width of the residual stream; a multiple of `n_head`.
        block_size: longest context, in tokens.
        n_head: number of attention heads, each `n_embd / n_head` wide.

    The defaults are microgpt's.
    """

    vocab_size: int
    n_layer: int = 1
    n_embd: int = 16
    block_size: int = 16
    n_head: int = 4

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            object.__setattr__(self, name, positive_integer(name, value))
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd must be a multiple of n_head, got n_embd={self.n_embd} and n_head={self.n_head}")

    def parameter_shapes(self) -> dict[str, tuple[int, int]]:
        """Name and (rows, columns) of every parameter matrix, in the order in which they are drawn and stored."""
        shapes = self._shapes_outside_layers()
        for i in range(self.n_layer):
            shapes |= {f"layer{i}.{name}": shape for name, shape in self._shapes_of_a_layer().items()}
        return shapes

    def _shapes_outside_layers(self) -> dict[str, tuple[int, int]]:
        return {
            "wte": (self.vocab_size, self.n_embd),
            "wpe": (self.block_size, self.n_embd),
            "lm_head": (self.vocab_size, self.n_embd),
        }

    def _shapes_of_a_layer(self) -> dict[str, tuple[int, int]]:
        n_embd = self.n_embd
        return {
            "attn_wq": (n_embd, n_embd),
            "attn_wk": (n_embd, n_embd),
            "attn_wv": (n_embd, n_embd),
            "attn_wo": (n_embd, n_embd),
            "mlp_fc1": (4 * n_embd, n_embd),
            "mlp_fc2": (n_embd, 4 * n_embd),
        }

    @property
    def num_params(self) -> int:
        """Number of parameters; known at once, also of more layers than could be listed."""
        outside, layer = (
            sum(rows * columns for rows, columns in shapes.values())
            for shapes in (self._shapes_outside_layers(), self._shapes_of_a_layer())
        )
        return outside + self.n_layer * layer
