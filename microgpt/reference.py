"""The whole algorithm in pure Python, to be read from top to bottom.

This is Andrej Karpathy's microgpt, idea by idea and in its order: autograd on scalars, the parameters, the model, the
loss, Adam, sampling. Data and tokenizer are in data/, the loop over steps in training/run.py, checks of arguments in
node.py. The compiled engine is tested against this file float by float, so it is also a specification: the order of a
sum decides its last bit.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, final

from microgpt.node import Node, as_nodes, power, square, takes_numbers, takes_values

if TYPE_CHECKING:
    import random

    from microgpt.config import GPTConfig

# --- Autograd: the chain rule, applied through a graph of scalars -----------------------------------------------------


@final
class Value(Node):
    """A scalar that remembers how it was computed, so that `backward` can differentiate through it.

    `Value(data, children, local_grads, op)` stores the values that it was computed from, and its derivative with
    respect to each of them. `Node` has the rest.
    """

    __slots__ = ()

    @takes_values
    def __add__(self, other: Value) -> Value:
        return Value(self.data + other.data, (self, other), (1.0, 1.0), "+")

    @takes_values
    def __mul__(self, other: Value) -> Value:
        return Value(self.data * other.data, (self, other), (other.data, self.data), "*")

    @takes_numbers
    def __pow__(self, exponent: float) -> Value:
        data = power(self.data, exponent)
        return Value(data, (self,), (exponent * self.data ** (exponent - 1),), f"**{exponent:g}")

    def exp(self) -> Value:
        """e to the power of this value."""
        return Value(math.exp(self.data), (self,), (math.exp(self.data),), "exp")

    def log(self) -> Value:
        """The natural logarithm; `ValueError` if this value is not positive."""
        return Value(math.log(self.data), (self,), (1 / self.data,), "log")

    def relu(self) -> Value:
        """This value if it is positive, otherwise 0."""
        return Value(max(0.0, self.data), (self,), (float(self.data > 0),), "ReLU")

    def tanh(self) -> Value:
        """The hyperbolic tangent."""
        t = math.tanh(self.data)
        return Value(t, (self,), (1 - t * t,), "tanh")

    # The others are written in terms of + * and **, so they need no derivative of their own.
    # fmt: off
    def __neg__(self) -> Value: return self * -1
    @takes_numbers
    def __radd__(self, other: Value | float) -> Value: return self + other
    @takes_numbers
    def __sub__(self, other: Value | float) -> Value: return self + (-other)
    @takes_numbers
    def __rsub__(self, other: Value | float) -> Value: return other + (-self)
    @takes_numbers
    def __rmul__(self, other: Value | float) -> Value: return self * other
    @takes_numbers
    def __truediv__(self, other: Value | float) -> Value: return self * other**-1
    @takes_numbers
    def __rtruediv__(self, other: Value | float) -> Value: return other * self**-1
    # fmt: on

    def backward(self) -> None:
        """For every value that this one depends on, add to its `grad` the derivative of this one with respect to it.

        The order is the original's, which decides the last bits: depth-first, children left to right, then reversed.
        The original recurses; an explicit stack has no depth limit.
        """
        order: list[Value] = []
        visited: set[Value] = set()
        stack: list[Value | None] = [self]
        while stack:
            value = stack.pop()
            if value is None:  # all children of the value below this mark are in `order`
                order.append(stack.pop())  # type: ignore[arg-type]
            elif value not in visited:
                visited.add(value)
                stack += (value, None, *reversed(value._children))
        self._grad = 1.0
        for value in reversed(order):
            value._backward()

    def _backward(self) -> None:
        """Pass this value's gradient on to its children: one step of `backward`."""
        for child, local_grad in zip(self._children, self._local_grads):
            child._grad += local_grad * self._grad


# --- The parameters: what the model knows -----------------------------------------------------------------------------

StateDict = dict[str, list[list[Value]]]
Cache = list[list[list[Value]]]  # the keys, or the values, of each layer at all positions so far


def draw_state_dict(config: GPTConfig, generator: random.Random) -> StateDict:
    """Initial parameters, drawn from normal distributions with mean 0 and the standard deviations of `config`."""
    stds = config.init_stds()
    return {
        name: [[Value(generator.gauss(0, stds[name])) for _ in range(n_in)] for _ in range(n_out)]
        for name, (n_out, n_in) in config.parameter_shapes().items()
    }


# --- The model: from tokens and parameters to logits of the next token ------------------------------------------------
# GPT-2 with minor differences: rmsnorm instead of layernorm, no biases, ReLU unless `activation` says otherwise.


def linear(x: Sequence[Value | float], w: Sequence[Sequence[Value | float]]) -> list[Value]:
    """The matrix-vector product `w x`: `x` of length n_in, `w` of n_out rows of n_in, the result of length n_out.

    If a row of `w` and `x` differ in length, the rest of the longer one is ignored, as in the original.
    """
    x = as_nodes(Value, x)
    return [sum(wi * xi for wi, xi in zip(as_nodes(Value, wo), x)) for wo in w]  # type: ignore[misc]  # an empty sum is 0


def softmax(logits: Sequence[Value | float]) -> list[Value]:
    """Probabilities proportional to the exponentials of `logits`, at least one.

    The maximum is subtracted as a plain number: it keeps `exp` from overflowing and has no gradient.
    """
    logits = as_nodes(Value, logits, some="logits")
    max_val = max(val.data for val in logits)
    exps = [(val - max_val).exp() for val in logits]
    total = sum(exps)
    return [e / total for e in exps]


compute_softmax = softmax  # the original's name for it


def rmsnorm(x: Sequence[Value | float]) -> list[Value]:
    """`x`, of at least one element, divided by its root mean square (Zhang and Sennrich, 2019), without a gain."""
    x = as_nodes(Value, x, some="x")
    ms = sum(xi * xi for xi in x) / len(x)
    scale = (ms + 1e-5) ** -0.5
    return [xi * scale for xi in x]


def gelu(x: Value) -> Value:
    """`x` times the probability that a normal variate is below `x` (Hendrycks and Gimpel, 2016)."""
    cdf = 0.5 * (1 + math.erf(0.5**0.5 * x.data))
    density = (2 * math.pi) ** -0.5 * math.exp(-0.5 * x.data * x.data)
    return Value(x.data * cdf, (x,), (cdf + x.data * density,), "GELU")


def silu(x: Value) -> Value:
    """`x` times its logistic sigmoid (Elfwing et al., 2017)."""
    e = math.exp(-abs(x.data))
    sigmoid = (1.0 if x.data >= 0 else e) / (1 + e)
    return Value(x.data * sigmoid, (x,), (sigmoid * (1 + x.data * (1 - sigmoid)),), "SiLU")


def dropout(x: list[Value], p: float, uniforms: Iterator[float] | None) -> list[Value]:
    """`x`, each element of which is dropped, that is 0, with probability `p` (Srivastava et al., 2014).

    The others are divided by 1 - p, so that the mean stays. Without random numbers, `x` as it is.
    """
    if uniforms is None:
        return x
    return [xi * (0.0 if uniform < p else 1 / (1 - p)) for xi, uniform in zip(x, uniforms)]


ACTIVATIONS: dict[str, Callable[[Value], Value]] = {"relu": Value.relu, "gelu": gelu, "silu": silu}


def gpt(
    token_id: int,
    pos_id: int,
    keys: Cache,
    values: Cache,
    state_dict: StateDict,
    config: GPTConfig,
    uniforms: Iterator[float] | None = None,
) -> list[Value]:
    """Logits (vocab_size) of the token that follows `token_id` at position `pos_id`.

    `keys` and `values` hold those of earlier positions; this position's are appended. In training with dropout,
    `uniforms` has the next random numbers in [0, 1).
    """
    tok_emb = state_dict["wte"][token_id]
    pos_emb = state_dict["wpe"][pos_id]
    x = [t + p for t, p in zip(tok_emb, pos_emb)]
    x = rmsnorm(x)  # not redundant: the backward pass reaches this point through the residual connection too
    x = dropout(x, config.dropout, uniforms)  # not before: rmsnorm would undo the scaling by 1 / (1 - p)
    head_dim = config.n_embd // config.n_head

    for layer in range(config.n_layer):
        # 1) Multi-head attention
        x_residual = x
        x = rmsnorm(x)
        q = linear(x, state_dict[f"layer{layer}.attn_wq"])
        k = linear(x, state_dict[f"layer{layer}.attn_wk"])
        v = linear(x, state_dict[f"layer{layer}.attn_wv"])
        keys[layer].append(k)
        values[layer].append(v)
        x_attn = []
        for start in range(0, len(x), head_dim):
            head = slice(start, start + head_dim)
            q_h = q[head]
            k_h = [ki[head] for ki in keys[layer]]
            v_h = [vi[head] for vi in values[layer]]
            attn_logits = [sum(q_h[j] * k_t[j] for j in range(head_dim)) / head_dim**0.5 for k_t in k_h]
            attn_weights = softmax(attn_logits)
            x_attn += [sum(a * v_t[j] for a, v_t in zip(attn_weights, v_h)) for j in range(head_dim)]
        x = linear(x_attn, state_dict[f"layer{layer}.attn_wo"])
        x = dropout(x, config.dropout, uniforms)
        x = [a + b for a, b in zip(x, x_residual)]
        # 2) Multi-layer perceptron
        x_residual = x
        x = rmsnorm(x)
        x = linear(x, state_dict[f"layer{layer}.mlp_fc1"])
        x = [ACTIVATIONS[config.activation](xi) for xi in x]
        x = linear(x, state_dict[f"layer{layer}.mlp_fc2"])
        x = dropout(x, config.dropout, uniforms)
        x = [a + b for a, b in zip(x, x_residual)]

    return linear(x, state_dict["lm_head"])


# --- The loss: how badly the model predicts the next token, averaged --------------------------------------------------


def document_loss(
    tokens: Sequence[int], state_dict: StateDict, config: GPTConfig, uniforms: Iterator[float] | None = None
) -> Value:
    """Mean over the positions of one document of -log(probability of the next token), in nats.

    `tokens` has at least two; those beyond `block_size` positions are cut. With `uniforms`, random numbers in [0, 1),
    it is the loss in training, with dropout.
    """
    n = min(config.block_size, len(tokens) - 1)
    keys: Cache = [[] for _ in range(config.n_layer)]
    values: Cache = [[] for _ in range(config.n_layer)]
    losses = []
    for pos_id in range(n):
        token_id, target_id = tokens[pos_id], tokens[pos_id + 1]
        logits = gpt(token_id, pos_id, keys, values, state_dict, config, uniforms)
        probs = softmax(logits)
        losses.append(-probs[target_id].log())
    return (1 / n) * sum(losses)  # type: ignore[return-value]  # an empty sum is 0


# --- Adam: the optimizer ----------------------------------------------------------------------------------------------


class Adam:
    """Adam (Kingma and Ba, 2015) over a list of `Value`.

    `step` updates each parameter by its gradient and sets the gradient to 0. Options beyond the original: decoupled
    weight decay (AdamW; Loshchilov and Hutter, 2019), and clipping by norm (Pascanu et al., 2013).
    """

    def __init__(
        self,
        params: Iterable[Value],
        learning_rate: float = 0.01,
        beta1: float = 0.85,
        beta2: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float | None = None,
    ) -> None:
        self.params = list(dict.fromkeys(params))  # tied parameters count once
        self.learning_rate, self.beta1, self.beta2, self.eps = learning_rate, beta1, beta2, eps
        self.weight_decay, self.max_grad_norm = weight_decay, max_grad_norm
        self.m = [0.0] * len(self.params)  # exponential moving average of the gradients
        self.v = [0.0] * len(self.params)  # exponential moving average of their squares
        self.step_count = 0

    def step(self, learning_rate: float | None = None) -> None:
        """Update all parameters once, at this `learning_rate` if given, otherwise at the constructor's."""
        learning_rate = self.learning_rate if learning_rate is None else learning_rate
        beta1, beta2, eps, m, v = self.beta1, self.beta2, self.eps, self.m, self.v
        self.step_count += 1
        bias1 = 1 - beta1**self.step_count
        bias2 = 1 - beta2**self.step_count
        scale = 1.0 if self.max_grad_norm is None else clipping_scale(self.params, self.max_grad_norm)
        shrinkage = 1 - learning_rate * self.weight_decay
        for i, p in enumerate(self.params):
            grad = scale * p.grad
            m[i] = beta1 * m[i] + (1 - beta1) * grad
            v[i] = beta2 * v[i] + (1 - beta2) * square(grad)
            m_hat = m[i] / bias1
            v_hat = v[i] / bias2
            p.data = shrinkage * p.data - learning_rate * m_hat / (v_hat**0.5 + eps)
            p.grad = 0.0


def clipping_scale(params: Iterable[Value], max_grad_norm: float) -> float:
    """The factor that scales the norm of the gradients down to `max_grad_norm`; 1 if it is not larger."""
    total = 0.0
    for p in params:  # not `sum`, which adds floats differently from Python 3.12 on
        total += p.grad * p.grad
    norm = math.sqrt(total)
    return max_grad_norm / norm if norm > max_grad_norm else 1.0


# --- Sampling: the model babbles back ---------------------------------------------------------------------------------


def draw_token(probabilities: Sequence[float], uniform: float) -> int:
    """An index drawn with these probabilities, as `random.choices` draws it from `uniform`, a number in [0, 1)."""
    cumulative = list(accumulate(probabilities))
    return bisect(cumulative, uniform * (cumulative[-1] + 0.0), 0, len(cumulative) - 1)


def next_token_probs(logits: Sequence[Value], temperature: float) -> list[float]:
    """The softmax of logits / temperature: 1 samples the model as it is, below 1 favours likely tokens.

    At 0, the first of the tokens with the largest logit has probability 1.
    """
    if temperature == 0:
        likeliest = max(range(len(logits)), key=lambda i: logits[i].data)
        return [float(i == likeliest) for i in range(len(logits))]
    return [p.data for p in softmax([logit / temperature for logit in logits])]


def sample_document(
    state_dict: StateDict, config: GPTConfig, bos: int, temperature: float, generator: random.Random
) -> list[int]:
    """Tokens drawn one by one, starting after `bos`, until `bos` is drawn or the context is full."""
    keys: Cache = [[] for _ in range(config.n_layer)]
    values: Cache = [[] for _ in range(config.n_layer)]
    token_id, sample = bos, []
    for pos_id in range(config.block_size):
        logits = gpt(token_id, pos_id, keys, values, state_dict, config)
        token_id = draw_token(next_token_probs(logits, temperature), generator.random())
        if token_id == bos:
            break
        sample.append(token_id)
    return sample
