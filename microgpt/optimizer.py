"""Adam, over the parameters of a model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from microgpt.engine import backend
from microgpt.engine.arrays import aligned_copy, aligned_zeros
from microgpt.model import GPT
from microgpt.utils.arguments import check_order, number

if TYPE_CHECKING:
    from microgpt.engine.interface import Parameters
    from microgpt.reference import Value

SMALLEST_EPS = {"float64": 1e-100, "float32": 1e-30}  # with room for what divides by it


class Adam:
    """Adam (Kingma and Ba, 2015) with the defaults of microgpt, and what AdamW (Loshchilov and Hutter, 2019) adds.

    Args:
        model: what to train: a `GPT`, or the `Value`s that are the parameters of a model of your own.
        learning_rate: step size; at least 0.
        beta1, beta2: decay of the running means of the gradients and of their squares; in [0, 1).
        eps: added to the root of the mean square; at least 1e-100, in float32 1e-30.
        weight_decay: how much of each parameter a step takes away, times the learning rate; at least 0.
        max_grad_norm: where the norm of all gradients together is more than this, they are scaled down to it (Pascanu
            et al., 2013); above 0, or None.

    Attributes:
        m, v: the running means, flat, in the order of the model's parameters.
        step_count: how many steps have been made.
    """

    def __init__(
        self,
        model: GPT | Iterable[Value],
        learning_rate: float = 0.01,
        beta1: float = 0.85,
        beta2: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_grad_norm: float | None = None,
    ) -> None:
        if not isinstance(model, (GPT, Iterable)):
            raise TypeError(f"model must be a GPT or Values, got {type(model).__name__}")
        check_order("model", model)
        self.model = model if isinstance(model, GPT) else list(model)
        self._parameters, size, dtype = _parameters_of(self.model)
        self.learning_rate = number("learning_rate", learning_rate, minimum=0)
        self.beta1 = number("beta1", beta1, minimum=0, below=1)
        self.beta2 = number("beta2", beta2, minimum=0, below=1)
        self.eps = number("eps", eps, minimum=SMALLEST_EPS[dtype])
        self.weight_decay = number("weight_decay", weight_decay, minimum=0)
        self.max_grad_norm = None if max_grad_norm is None else number("max_grad_norm", max_grad_norm, above=0)
        self.m = aligned_zeros(size, dtype, "Adam")
        self.v = aligned_zeros(size, dtype, "Adam")
        self.step_count = 0

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles are made from: the model brings its parameters."""
        return {name: value for name, value in vars(self).items() if name != "_parameters"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Become an optimizer of the model in `state`, with memory of its own."""
        vars(self).update(state)
        self._parameters, _, dtype = _parameters_of(self.model)
        self.m, self.v = (aligned_copy(moments, dtype, "Adam") for moments in (self.m, self.v))

    def step(self, learning_rate: float | None = None) -> None:
        """Move the parameters against their gradients.

        Those of a `GPT` are what its last `loss_and_gradients` left; those of `Value`s are their `grad`, which is then
        set to 0. `learning_rate` holds for this step; without it, the optimizer's own.
        """
        if learning_rate is not None:
            learning_rate = number("learning_rate", learning_rate, minimum=0)
        self._parameters.adam_step(self, self.learning_rate if learning_rate is None else learning_rate)


def _parameters_of(model: GPT | list[Value]) -> tuple[Parameters, int, str]:
    """What moves the parameters of a model, how many there are, and their type."""
    if isinstance(model, GPT):
        return model.engine, model.num_params, model.dtype
    return *backend.new_parameters(model), "float64"
