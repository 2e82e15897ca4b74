"""The model as a list of fused operations, which the compiled engine runs: forward, and in reverse for the gradients.

`network` is the twin of `gpt` in reference.py, call by call. It runs when an engine is made, never in a step. The
arithmetic of an operation is in csrc/kernels, under the name that its record has here.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from microgpt.config import GPTConfig

TRANSPOSED_WIDTH = 128  # n_embd from which backward is faster with transposed copies of the matrices
ACCUMULATES = {"rmsnorm"}  # operations whose backward can add to the gradient that their input already has


@dataclass(eq=False)
class Array:
    """Memory that an engine gives a place in its arena.

    Attributes:
        width: elements for each row, a token position of the batch.
        elements: elements that it has however many rows there are.
        triangles: whether it holds what each position of the batch has for each earlier one of its document.
    """

    width: int = 0
    elements: int = 0
    triangles: bool = False


@dataclass(eq=False)
class Gradient:
    """The derivatives of the loss with respect to an activation, or to several that share them through a residual."""

    array: Array | None = None


@dataclass(eq=False)
class Activation:
    """The output of an operation: for each row, `width` features.

    Attributes:
        rectified: whether a ReLU made it, so that it is positive exactly where its gradient passes.
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
        input, output: None where it reads tokens, or writes losses.
        parameters: names of the matrices that it multiplies with.
        weight: where these start among all parameters, if they are in one piece.
        weight_rows: otherwise, where the weights of each output start, int64.
        gathered, gathered_gradient: for these, copies in one piece of the weights and of their gradients.
        transposed: a transposed copy of the weights, for backward.
        residual: the activation that is added to the output.
        epilogue, backward_epilogue: what happens to each sum before it is stored as output, as input gradient:
            "store", "add" (the residual), "relu", "relu_backward".
        saved: what forward keeps for backward besides input and output.
        scale: the factor that the operation has.
        cache: how many operations before it have keys and values in a cache of inference.
        in_place: whether backward turns the gradient of the output into that of the input where it is.
        accumulate: whether backward adds to the gradient of the input.
    """

    kernel: str
    input: Activation | None = None
    output: Activation | None = None
    parameters: tuple[str, ...] = ()
    weight: int | None = None
    weight_rows: NDArray[np.int64] | None = None
    gathered: Array | None = None
    gathered_gradient: Array | None = None
    transposed: Array | None = None
    residual: Activation | None = None
    epilogue: str = "store"
    backward_epilogue: str = "store"
    saved: Array | None = None
    scale: float = 1.0
    cache: int | None = None
    in_place: bool = False
    accumulate: bool = field(default=False, init=False)

    def __str__(self) -> str:
        shape = " -> ".join(str(side.width) for side in (self.input, self.output) if side)
        added = " + residual" if self.residual else ""
        relu = ", relu" if self.epilogue == "relu" else ""
        return f"{self.kernel:<15}{shape:<12}{' '.join(self.parameters)}{added}{relu}".rstrip()


class Network:
    """Operations in the order of forward; each method adds one, and returns its output.

    Args:
        config: the sizes of the model.
        line: elements in a cache line.

    Attributes:
        operations: the records.
        arrays: all memory that they share or have for themselves.
        inference: how many operations give the logits; the rest is the loss.
    """

    def __init__(self, config: GPTConfig, line: int) -> None:
        self.config = config
        self.operations: list[Operation] = []
        self.arrays: list[Array] = []
        self.inference = 0
        self._shapes = config.parameter_shapes()
        self._starts = dict(
            zip(self._shapes, accumulate([0, *(rows * columns for rows, columns in self._shapes.values())]))
        )
        self._gathered_gradient: Array | None = None  # layers share it, ...
        self._transposed: Array | None = None  # ... and this
        if config.n_embd >= TRANSPOSED_WIDTH and config.n_embd % line == 0:
            self._transposed = self._array(elements=4 * config.n_embd**2)

    def embedding(self) -> Activation:
        """The sum of the embeddings of token and position."""
        return self._record(Operation("embedding", parameters=("wte", "wpe")), self.config.n_embd)

    def rmsnorm(self, x: Activation) -> Activation:
        """`x` divided by its root mean square."""
        operation = Operation("rmsnorm", x, saved=self._array(width=2), scale=float(x.width) ** -1)
        return self._record(operation, x.width)

    def linear(self, x: Activation, *names: str, add: Activation | None = None) -> Activation:
        """`x` times a matrix, plus `add`. Several matrices are one, whose outputs take turns head by head."""
        operation = self._product("linear", x, *names)
        operation.transposed = self._transposed
        if add is not None:
            operation.residual, operation.epilogue = add, "add"
        if x.rectified:
            operation.backward_epilogue = "relu_backward"
        return self._record(operation, self._outputs(*names), add.gradient if add else None)

    def relu(self, x: Activation) -> Activation:
        """`x` where it is positive, otherwise 0: done where the linear layer before it stores `x`."""
        producer = self.operations[-1]
        assert producer.output is x
        assert producer.kernel == "linear"
        producer.epilogue, x.rectified = "relu", True
        return x

    def gelu(self, x: Activation) -> Activation:
        """`x` times the probability that a normal variate is below it."""
        return self._elementwise("gelu", x)

    def silu(self, x: Activation) -> Activation:
        """`x` times its logistic sigmoid."""
        return self._elementwise("silu", x)

    def attention(self, qkv: Activation) -> Activation:
        """Causal attention; the features of `qkv` are, head after head, its query, key and value."""
        head_dim = self.config.n_embd // self.config.n_head
        caches = sum(operation.cache is not None for operation in self.operations)
        operation = Operation("attention", qkv, saved=self._array(triangles=True), cache=caches)
        operation.scale = float(head_dim**0.5) ** -1
        return self._record(operation, self.config.n_embd)

    def unembedding(self, x: Activation, name: str) -> Activation:
        """The logits: `x` times a matrix, of which backward takes the row of the target last."""
        logits = self._record(self._product("unembedding", x, name), self._outputs(name))
        self.inference = len(self.operations)
        return logits

    def cross_entropy(self, logits: Activation) -> None:
        """The loss of each row: -log(probability of its target)."""
        self.operations.append(Operation("cross_entropy", logits, saved=self._array(width=2)))

    def place_gradients(self) -> None:
        """Give every gradient its array. Backward needs few at a time, so arrays are used again.

        An operation that finds its input with a gradient, from a residual connection around it, adds to that.
        """
        last_reader = {op.output.gradient: op for op in reversed(self.operations) if op.output}
        free: defaultdict[int, list[Array]] = defaultdict(list)
        for operation in reversed(self.operations):
            x, output = operation.input, operation.output
            if x is not None:
                operation.accumulate = x.gradient.array is not None and not operation.in_place
                if operation.accumulate and operation.kernel not in ACCUMULATES:
                    raise ValueError(f"the input of {operation} has a gradient already, and backward would replace it")
                if x.gradient.array is None:
                    x.gradient.array = free[x.width].pop() if free[x.width] else self._array(width=x.width)
            if output is not None and last_reader[output.gradient] is operation:
                assert output.gradient.array is not None
                free[output.width].append(output.gradient.array)

    def __str__(self) -> str:
        return "\n".join(map(str, self.operations))

    def _elementwise(self, kernel: str, x: Activation) -> Activation:
        """A function of each feature; its derivatives are saved, and backward multiplies the gradient by them."""
        operation = Operation(kernel, x, saved=self._array(width=x.width), in_place=True)
        return self._record(operation, x.width, x.gradient)

    def _array(self, **sizes: Any) -> Array:
        self.arrays.append(Array(**sizes))
        return self.arrays[-1]

    def _outputs(self, *names: str) -> int:
        return sum(self._shapes[name][0] for name in names)

    def _product(self, kernel: str, x: Activation, *names: str) -> Operation:
        operation = Operation(kernel, x, parameters=names)
        if len(names) == 1:
            operation.weight = self._starts[names[0]]
            return operation
        rows = x.width * np.arange(x.width, dtype=np.int64).reshape(self.config.n_head, 1, -1)
        operation.weight_rows = np.concatenate([self._starts[name] + rows for name in names], axis=1).ravel()
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
    """`gpt` of reference.py as fused operations, and the loss."""
    net = Network(config, line)
    activation = getattr(net, config.activation)
    x = net.embedding()
    x = net.rmsnorm(x)
    for i in range(config.n_layer):
        # 1) Multi-head attention
        normed = net.rmsnorm(x)
        qkv = net.linear(normed, f"layer{i}.attn_wq", f"layer{i}.attn_wk", f"layer{i}.attn_wv")
        x = net.linear(net.attention(qkv), f"layer{i}.attn_wo", add=x)
        # 2) Multi-layer perceptron
        hidden = activation(net.linear(net.rmsnorm(x), f"layer{i}.mlp_fc1"))
        x = net.linear(hidden, f"layer{i}.mlp_fc2", add=x)
    net.cross_entropy(net.unembedding(x, "lm_head"))
    net.place_gradients()
    return net
