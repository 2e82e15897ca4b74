"""The options of a training run that determine its result, with their defaults."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypedDict, TypeVar

import numpy as np

from microgpt.config import GPTConfig
from microgpt.data.batches import LONG_DOCUMENTS
from microgpt.data.documents import FORMATS
from microgpt.model import GPT
from microgpt.optimizer import Adam
from microgpt.training.schedule import SCHEDULES
from microgpt.utils.arguments import LARGEST, choice, integer, number, positive_integer, random_seed

DEFAULT_STEPS = 1000
DEFAULT_EVAL_TOKENS = 32_768  # more would hardly improve the estimate

F = TypeVar("F", bound=Callable[..., Any])


def defaults_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The default of each argument of a function or class."""
    return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}


def with_arguments_of(other: Callable[..., Any]) -> Callable[[F], F]:
    """Make `help` show the arguments of another function or class in place of a function's `**options`."""

    def described(function: F) -> F:
        signature = inspect.signature(function)
        own = {name: parameter for name, parameter in signature.parameters.items() if name != "options"}
        parameters = own | dict(inspect.signature(other).parameters)
        function.__signature__ = signature.replace(parameters=list(parameters.values()))  # type: ignore[attr-defined]
        return function

    return described


class RecipeOptions(TypedDict, total=False):
    """The attributes of `Recipe`, for type checkers and editors: the `**options` of a function."""

    format: str
    tokenizer: Any
    long_documents: str
    val_fraction: float
    eval_tokens: int | None
    steps: int | None
    epochs: float | None
    time: float | None
    seed: Any
    n_layer: int
    n_embd: int
    block_size: int
    n_head: int
    activation: str
    init_std: float | str
    dropout: float
    batch_size: int
    shards: int
    learning_rate: float
    schedule: str
    warmup_steps: int
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    max_grad_norm: float | None
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The options of `train`. The same recipe and data give the same bits. Defaults are microgpt's.

    Attributes:
        format: "lines": each line of a file is a document; "text": the file is one text, and each step trains on
            random windows of it.
        tokenizer: "characters", "bytes", the path of a JSON file of Hugging Face's `tokenizers`, or a `Tokenizer`.
        long_documents: what to do with tokens beyond the context: "cut" drops them, "split" makes further documents.
        val_fraction: fraction of the shuffled documents, or of the text, at the end, that is held out for validation.
        eval_tokens: most tokens of it that each validation predicts, by default 32,768. If there are more, the
            validation loss is an estimate, always on the same part.
        steps: number of optimizer steps, by default 1000.
        epochs: instead of `steps`: number of passes over the data.
        time: instead of `steps`: seconds to train. The number of steps then depends on the machine.
        seed: shuffles the documents, draws the parameters, and then the samples, and decides what dropout drops. A
            number, a string or anything else that `random.Random` takes, or a `random.Random`, whose state is copied.
        n_layer, n_embd, block_size, n_head, activation, init_std: the architecture of the model, see `GPTConfig`.
        dropout: the probability with which an element is dropped in training, against overfitting, see `GPTConfig`.
            Validation, and everything else that is done with the model, drops nothing.
        batch_size: number of documents, or windows, per step; the loss is the mean of their losses.
        shards: number of equal groups (micro-batches) that a batch is divided into. Gradients are summed within each,
            and then over the shards in order, so that several processes can share a step, with the same bits however
            many they are.
        learning_rate: the highest learning rate of the run.
        schedule: the learning rate after warmup: "linear" or "cosine", falling to 0, or "constant".
        warmup_steps: number of steps in which the learning rate first rises.
        beta1, beta2, eps, weight_decay, max_grad_norm: see `Adam`.
        dtype: "float64": the numbers of the original, bit for bit; "float32": faster.
    """

    format: str = "lines"
    tokenizer: Any = "characters"
    long_documents: str = "cut"
    val_fraction: float = 0.0
    eval_tokens: int | None = None
    steps: int | None = None
    epochs: float | None = None
    time: float | None = None
    seed: Any = 42
    n_layer: int = 1
    n_embd: int = 16
    block_size: int = 16
    n_head: int = 4
    activation: str = "relu"
    init_std: float | str = 0.08
    dropout: float = 0.0
    batch_size: int = 1
    shards: int = 1
    learning_rate: float = 0.01
    schedule: str = "linear"
    warmup_steps: int = 0
    beta1: float = 0.85
    beta2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float | None = None
    dtype: str = "float64"

    def __post_init__(self) -> None:
        """Check the recipe's own options; `GPTConfig` and `Adam` check theirs."""
        for field in fields(self):
            if isinstance(value := getattr(self, field.name), np.generic):  # JSON takes only Python's numbers
                object.__setattr__(self, field.name, value.item())
        lengths = {name: getattr(self, name) for name in ("steps", "epochs", "time")}
        if sum(value is not None for value in lengths.values()) > 1:
            raise ValueError("only one of steps, epochs and time can be given")
        checked = {
            "format": choice("format", self.format, FORMATS),
            "long_documents": choice("long_documents", self.long_documents, LONG_DOCUMENTS),
            "val_fraction": number("val_fraction", self.val_fraction, minimum=0, below=1),
            "eval_tokens": None if self.eval_tokens is None else positive_integer("eval_tokens", self.eval_tokens),
            "steps": None if self.steps is None else integer("steps", self.steps, 0),
            "epochs": None if self.epochs is None else number("epochs", self.epochs, above=0),
            "time": None if self.time is None else number("time", self.time, above=0),
            "batch_size": positive_integer("batch_size", self.batch_size),
            "shards": positive_integer("shards", self.shards),
            "learning_rate": number("learning_rate", self.learning_rate, minimum=0),
            "schedule": choice("schedule", self.schedule, tuple(SCHEDULES)),
            "warmup_steps": integer("warmup_steps", self.warmup_steps, 0),
            "seed": random_seed("seed", self.seed),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        if self.batch_size % self.shards:
            raise ValueError(
                f"batch_size must be a multiple of shards, got batch_size={self.batch_size} and shards={self.shards}"
            )
        if self.eval_tokens is not None and not self.val_fraction:
            raise ValueError("eval_tokens needs validation losses: val_fraction must be more than 0")
        if self.long_documents == "split" and self.format == "text":
            raise ValueError("long_documents is for documents, but format is 'text', which is trained on as a whole")

    def step_count(self, sequences: int) -> int | None:
        """Number of steps over this many sequences; None if `time` ends the run."""
        if self.time is not None:
            return None
        if self.epochs is not None:
            steps = self.epochs * sequences / self.batch_size
            if steps > LARGEST:
                raise ValueError(f"epochs must make at most {LARGEST} steps, got {self.epochs:g} and {steps:g}")
            return math.ceil(steps)
        return DEFAULT_STEPS if self.steps is None else self.steps

    def most_eval_tokens(self) -> int:
        """Most held-out tokens that a validation predicts."""
        return DEFAULT_EVAL_TOKENS if self.eval_tokens is None else self.eval_tokens

    def config(self, vocab_size: int) -> GPTConfig:
        """The configuration of the model for a vocabulary of this size."""
        return GPTConfig(
            vocab_size=vocab_size,
            n_layer=self.n_layer,
            n_embd=self.n_embd,
            block_size=self.block_size,
            n_head=self.n_head,
            activation=self.activation,
            init_std=self.init_std,
            dropout=self.dropout,
        )

    def optimizer(self, model: GPT) -> Adam:
        """The optimizer of a model."""
        return Adam(
            model,
            learning_rate=self.learning_rate,
            beta1=self.beta1,
            beta2=self.beta2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            max_grad_norm=self.max_grad_norm,
        )

    def options(self) -> dict[str, Any]:
        """All options by name."""
        return dict(vars(self))
