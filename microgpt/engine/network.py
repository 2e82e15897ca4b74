"""The model as a list of fused operations, which the compiled engine runs forward, and in reverse for the gradients.

`network` is the twin of `gpt` in reference.py, call by call. It runs once, when an engine is made. The arithmetic of an
operation is in csrc/kernels, under the same name.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from microgpt.config import GPTConfig

TRANSPOSED_WIDTH = 128  # from this n_embd, backward is faster with transposed copies of the matrices
ACCUMULATES = {"rmsnorm"}  # kernels whose backward can add to an existing gradient of the input


@dataclass(eq=False)
class Array:
    """An array in the engine's arena.

    Attributes:
        width: elements per row; a row is a token position of the batch.
        elements: further elements, whatever the number of rows.
        triangles: whether it has an element for each pair of a position and an earlier one of the same document.
    """

    width: int = 0
    elements: int = 0
    triangles: bool = False


@dataclass(eq=False)
class Gradient:
    """The gradient of an activation, or of several that share it through a residual connection."""

    array: Array | None = None


@dataclass(eq=False)
class Activation:
    """The output of an operation: `width` features per row.

    Attributes:
        rectified: whether it is the output of a ReLU, so that its gradient passes exactly where it is positive.
    """

    width: int
    array: Array
    gradient: Gradient
    rectified: bool = False


@dataclass(eq=False)
class Operation:
    """A record on the engine's tape. Arrays that an operation does not have are None.

    Attributes:
        kernel: the name of its pair of kernels.
        input, output: None if it reads tokens, or writes losses.
        parameters: names of its matrices.
        weight: index of the weights among all parameters, if they are contiguous.
        weight_blocks: otherwise, the index of the weights of each head_dim outputs, int64.
        gathered, gathered_gradient: contiguous copies of such weights and of their gradients.
        transposed: a transposed copy of the weights, for backward.
        residual: the activation that is added to the output.
        epilogue, backward_epilogue: the last operation on each sum, before it is stored as output or as gradient of
            the input: "store", "add" (the residual), "relu", "relu_backward".
        saved: what forward keeps for backward, besides input and output.
        scale: a factor, such as the one of the logits of attention.
        cache: for attention, its number among the layers that have keys and values in the inference cache.
        packed: index of the weights among all that are packed for a single row (csrc/kernels/decode.h).
        first_draw: for an operation of random numbers, the first of its own among those of a position.
        threshold: for dropout, an element is dropped if its random number, of 53 bits, is below.
        in_place: whether backward overwrites the gradient of the output with that of the input.
        accumulate: whether backward adds to the gradient of the input.
    """

    kernel: str
    input: Activation | None = None
    output: Activation | None = None
    parameters: tuple[str, ...] = ()
    weight: int | None = None
    weight_blocks: NDArray[np.int64] | None = None
    gathered: Array | None = None
    gathered_gradient: Array | None = None
    transposed: Array | None = None
    residual: Activation | None = None
    epilogue: str = "store"
    backward_epilogue: str = "store"
    saved: Array | None = None
    scale: float = 1.0
    cache: int | None = None
    packed: int | None = None
    first_draw: int = 0
    threshold: int = 0
    in_place: bool = False
    accumulate: bool = field(default=False, init=False)

    def __str__(self) -> str:
        shape = " -> ".join(str(side.width) for side in (self.input, self.output) if side)
        added = " + residual" if self.residual else ""
        relu = ", relu" if self.epilogue == "relu" else ""
        return f"{self.kernel:<15}{shape:<12}{' '.join(self.parameters)}{added}{relu}".rstrip()


class Network:
    """Operations in the order of forward; each method adds one and returns its output.

    Args:
        config: the architecture of the model.
        line: elements in a cache line.

    Attributes:
        operations: the records.
        arrays: all arrays of the operations, shared or not.
        inference: how many operations compute the logits; the rest computes the loss.
        packed: elements of all weights that are packed for a single row.
        draws: random numbers that a position takes in training.
    """

    def __init__(self, config: GPTConfig, line: int) -> None:
        self.config = config
        self.operations: list[Operation] = []
        self.arrays: list[Array] = []
        self.inference = 0
        self.packed = 0
        self.draws = 0
        self._line = line
        self._shapes = config.parameter_shapes()
        self._starts = dict(
            zip(self._shapes, accumulate([0, *(rows * columns for rows, columns in self._shapes.values())]))
        )
        self._gathered_gradient: Array | None = None  # shared by all layers
        self._transposed: Array | None = None  # also shared
        if config.n_embd >= TRANSPOSED_WIDTH and config.n_embd % line == 0:
            self._transposed = self._array(elements=4 * config.n_embd**2)

    def embedding(self) -> Activation:
        """The sum of the embeddings of token and position."""
        return self._record(Operation("embedding", parameters=("wte", "wpe")), self.config.n_embd)

    def rmsnorm(self, x: Activation) -> Activation:
        """`x` divided by its root mean square."""
        operation = Operation("rmsnorm", x, saved=self._array(width=2), scale=float(x.width) ** -1)
        return self._record(operation, x.width)

    def dropout(self, x: Activation, p: float) -> Activation:
        """`x`, each element of which training drops with probability `p`."""
        if p == 0:
            return x
        operation = Operation("dropout", x, scale=1 / (1 - p), threshold=math.ceil(p * 2**53), first_draw=self.draws)
        self.draws += x.width
        return self._record(operation, x.width)

    def linear(self, x: Activation, *names: str) -> Activation:
        """`x` times a matrix. Several matrices act as one, whose outputs alternate head by head."""
        operation = self._product("linear", x, *names)
        operation.transposed = self._transposed
        if x.rectified:
            operation.backward_epilogue = "relu_backward"
        return self._record(operation, self._outputs(*names))

    def add(self, x: Activation, residual: Activation) -> Activation:
        """`x` plus `residual`: the epilogue of the operation that computes `x`. The two share a gradient."""
        producer = self.operations[-1]
        assert producer.output is x
        assert producer.kernel in ("linear", "dropout")
        producer.epilogue, producer.residual, x.gradient = "add", residual, residual.gradient
        return x

    def relu(self, x: Activation) -> Activation:
        """`x` where it is positive, otherwise 0: the epilogue of the linear layer that computes `x`."""
        producer = self.operations[-1]
        assert producer.output is x
        assert producer.kernel == "linear"
        producer.epilogue, x.rectified = "relu", True
        return x

    def gelu(self, x: Activation) -> Activation:
        """`x` times the probability that a normal variate is below `x`."""
        return self._elementwise("gelu", x)

    def silu(self, x: Activation) -> Activation:
        """`x` times its logistic sigmoid."""
        return self._elementwise("silu", x)

    def attention(self, qkv: Activation) -> Activation:
        """Causal attention; the features of `qkv` are the query, key and value of each head in turn."""
        head_dim = self.config.n_embd // self.config.n_head
        caches = sum(operation.cache is not None for operation in self.operations)
        operation = Operation("attention", qkv, saved=self._array(triangles=True), cache=caches)
        operation.scale = float(head_dim**0.5) ** -1
        return self._record(operation, self.config.n_embd)

    def unembedding(self, x: Activation, name: str) -> Activation:
        """The logits: `x` times a matrix; backward adds the row of the target last."""
        logits = self._record(self._product("unembedding", x, name), self._outputs(name))
        self.inference = len(self.operations)
        return logits

    def cross_entropy(self, logits: Activation) -> None:
        """The loss of each row: -log(probability of its target)."""
        self.operations.append(Operation("cross_entropy", logits, saved=self._array(width=2)))

    def place_gradients(self) -> None:
        """Assign an array to every gradient. Backward needs few at a time, so arrays are reused.

        An operation whose input already has a gradient, from a residual connection around it, adds to that.
        """
        last_reader = {op.output.gradient: op for op in reversed(self.operations) if op.output}
        free: defaultdict[int, list[Array]] = defaultdict(list)
        for operation in reversed(self.operations):
            x, output = operation.input, operation.output
            if x is not None:
                operation.accumulate = x.gradient.array is not None and not operation.in_place
                if operation.accumulate and operation.kernel not in ACCUMULATES:
                    raise ValueError(f"the input of {operation} has a gradient already, which backward would overwrite")
                if x.gradient.array is None:
                    x.gradient.array = free[x.width].pop() if free[x.width] else self._array(width=x.width)
            if output is not None and last_reader[output.gradient] is operation:
                assert output.gradient.array is not None
                free[output.width].append(output.gradient.array)

    def __str__(self) -> str:
        return "\n".join(map(str, self.operations))

    def _elementwise(self, kernel: str, x: Activation) -> Activation:
        """A function of each feature. Forward saves its derivatives; backward multiplies the gradient by them."""
        operation = Operation(kernel, x, saved=self._array(width=x.width), in_place=True)
        return self._record(operation, x.width, x.gradient)

    def _array(self, **sizes: Any) -> Array:
        self.arrays.append(Array(**sizes))
        return self.arrays[-1]

    def _outputs(self, *names: str) -> int:
        return sum(self._shapes[name][0] for name in names)

    def _product(self, kernel: str, x: Activation, *names: str) -> Operation:
        operation = Operation(kernel, x, parameters=names, packed=self.packed)
        self.packed += -(-self._outputs(*names) // self._line) * self._line * x.width
        if len(names) == 1:
            operation.weight = self._starts[names[0]]
            return operation
        heads = np.arange(self.config.n_head, dtype=np.int64) * (x.width // self.config.n_head) * x.width
        operation.weight_blocks = np.add.outer(heads, [self._starts[name] for name in names]).ravel()
        elements = len(names) * x.width**2
        if self._gathered_gradient is None:
            self._gathered_gradient = self._array(elements=elements)
        operation.gathered, operation.gathered_gradient = self._array(elements=elements), self._gathered_gradient
        return operation

    def _record(self, operation: Operation, width: int, gradient: Gradient | None = None) -> Activation:
        operation.output = Activation(width, self._array(width=width), gradient or Gradient())
        self.operations.append(operation)
        return operation.output


def network(config: GPTConfig, line: int) -> Network:
    """`gpt` of reference.py as fused operations, followed by the loss."""
    net = Network(config, line)
    activation = getattr(net, config.activation)
    x = net.embedding()
    x = net.rmsnorm(x)
    x = net.dropout(x, config.dropout)
    for i in range(config.n_layer):
        # 1) Multi-head attention
        normed = net.rmsnorm(x)
        qkv = net.linear(normed, f"layer{i}.attn_wq", f"layer{i}.attn_wk", f"layer{i}.attn_wv")
        attended = net.linear(net.attention(qkv), f"layer{i}.attn_wo")
        x = net.add(net.dropout(attended, config.dropout), x)
        # 2) Multi-layer perceptron
        hidden = activation(net.linear(net.rmsnorm(x), f"layer{i}.mlp_fc1"))
        hidden = net.linear(hidden, f"layer{i}.mlp_fc2")
        x = net.add(net.dropout(hidden, config.dropout), x)
    net.cross_entropy(net.unembedding(x, "lm_head"))
    net.place_gradients()
    return net
