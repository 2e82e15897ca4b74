"""Adam, over the parameters of a model."""

from __future__ import annotations

from microgpt.arguments import number
from microgpt.arrays import aligned_zeros
from microgpt.model import GPT


class Adam:
    """Adam (Kingma and Ba, 2015) with the defaults of microgpt.

    Args:
        model: the model to train.
        learning_rate: step size; at least 0.
        beta1, beta2: decay of the running means of the gradients and of their squares; in [0, 1).
        eps: added to the root of the mean square; at least 1e-100.

    Attributes:
        m, v: the running means, flat, in the order of the model's parameters.
        step_count: how many steps have been made.
    """

    def __init__(
        self,
        model: GPT,
        learning_rate: float = 0.01,
        beta1: float = 0.85,
        beta2: float = 0.99,
        eps: float = 1e-8,
    ) -> None:
        if not isinstance(model, GPT):
            raise TypeError(f"model must be a GPT, got {type(model).__name__}")
        self.model = model
        self.learning_rate = number("learning_rate", learning_rate, minimum=0)
        self.beta1 = number("beta1", beta1, minimum=0, below=1)
        self.beta2 = number("beta2", beta2, minimum=0, below=1)
        self.eps = number("eps", eps, minimum=1e-100)
        self.m = aligned_zeros(model.num_params, model.dtype)
        self.v = aligned_zeros(model.num_params, model.dtype)
        self.step_count = 0

    def step(self, learning_rate: float | None = None) -> None:
        """Move the parameters against the gradients of the last `model.loss_and_gradients`.

        `learning_rate` holds for this step; without it, the optimizer's own.
        """
        if learning_rate is not None:
            learning_rate = number("learning_rate", learning_rate, minimum=0)
        self.model.engine.adam_step(self, self.learning_rate if learning_rate is None else learning_rate)
