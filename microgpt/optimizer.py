"""Adam on the parameters of a model. The arithmetic: `Adam` in reference.py, and csrc/kernels/adam.h."""

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

SMALLEST_EPS = {"float64": 1e-100, "float32": 1e-30}  # dividing by it must not overflow


class Adam:
    """Adam (Kingma and Ba, 2015) with microgpt's defaults, and optionally AdamW (Loshchilov and Hutter, 2019).

    Args:
        model: what to train: a `GPT`, or the `Value`s that are the parameters of a model of your own.
        learning_rate: step size; at least 0.
        beta1: decay of the running mean of the gradients, in [0, 1).
        beta2: decay of the running mean of their squares, in [0, 1).
        eps: added to the root of the mean square; at least 1e-100, in float32 1e-30.
        weight_decay: each step multiplies the parameters by 1 - learning_rate * weight_decay; at least 0.
        max_grad_norm: clip the norm of all gradients together to this (Pascanu et al., 2013); above 0, or None.

    Attributes:
        m, v: the running means, flat, in the order of the model's parameters.
        step_count: number of steps completed.
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
        """The state for copies and pickles: everything but the parameters, which the model brings."""
        return {name: value for name, value in vars(self).items() if name != "_parameters"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore an optimizer of the model in `state`, with memory of its own."""
        vars(self).update(state)
        self._parameters, _, dtype = _parameters_of(self.model)
        self.m, self.v = (aligned_copy(moments, dtype, "Adam") for moments in (self.m, self.v))

    def step(self, learning_rate: float | None = None) -> None:
        """Update the parameters with their gradients.

        A `GPT` keeps the gradients of its last `loss_and_gradients`; a `Value` has its `grad`, which is then set to 0.
        `learning_rate` overrides the optimizer's own for this step.
        """
        if learning_rate is not None:
            learning_rate = number("learning_rate", learning_rate, minimum=0)
        self._parameters.adam_step(self, self.learning_rate if learning_rate is None else learning_rate)


def _parameters_of(model: GPT | list[Value]) -> tuple[Parameters, int, str]:
    """The parameters of a model as `adam_step` takes them, their number and their dtype."""
    if isinstance(model, GPT):
        return model.engine, model.num_params, model.dtype
    return *backend.new_parameters(model), "float64"
