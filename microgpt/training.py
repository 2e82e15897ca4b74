"""Everything in one call: documents in, a trained model out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from microgpt import backend as backends
from microgpt.arguments import integer, positive_integer
from microgpt.config import GPTConfig
from microgpt.documents import read_documents
from microgpt.model import GPT
from microgpt.optimizer import Adam
from microgpt.tokenizer import CharTokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray


CHUNK = 10_000  # steps that one call of the engine makes: what each step trains on is not laid out for all at once


@dataclass(frozen=True)
class TrainingResult:
    """What `train` returns.

    Attributes:
        model: the trained model, with its tokenizer.
        losses: float64, one for each step, in nats: the loss of the step's documents before the step.
    """

    model: GPT
    losses: NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """A training run that is ready to start: `train` is `prepare` and then `finish`.

    Attributes:
        model: the model, with freshly drawn parameters.
        documents: the documents, in the order in which they are used.
        losses: float64, one for each step; filled as the run proceeds.
    """

    model: GPT
    documents: list[str]
    losses: NDArray[np.float64]
    optimizer: Adam
    batch_size: int

    def finish(self, progress: Callable[[int], object] | None = None) -> TrainingResult:
        """Train to the end. `progress` is called now and then with the number of steps completed."""
        assert self.model.tokenizer is not None
        steps = len(self.losses)
        packed = self.model.tokenizer.pack_documents(self.documents[: steps * self.batch_size])
        for begin in range(0, steps, CHUNK):
            chunk = np.arange(begin, min(begin + CHUNK, steps))
            documents = chunk[:, None] * self.batch_size + np.arange(self.batch_size)
            completed = begin + self.model.engine.train(
                packed.select(documents.ravel() % len(self.documents)),
                self.batch_size,
                self.optimizer.learning_rate * (1 - chunk / steps),
                self.optimizer,
                self.losses[chunk[0] : chunk[-1] + 1],
                progress and (lambda done, begin=begin: progress(begin + done)),
            )
            if completed <= chunk[-1]:
                raise ValueError(
                    f"the loss is {self.losses[completed]:g} at step {completed + 1}: try a smaller learning_rate"
                )
        return TrainingResult(self.model, self.losses)


def prepare(
    data: str | os.PathLike[str] | Iterable[str] | None = None,
    *,
    steps: int = 1000,
    seed: Any = 42,
    n_layer: int = 1,
    n_embd: int = 16,
    block_size: int = 16,
    n_head: int = 4,
    batch_size: int = 1,
    learning_rate: float = 0.01,
    beta1: float = 0.85,
    beta2: float = 0.99,
    eps: float = 1e-8,
    dtype: str = "float64",
    backend: str | None = None,
    threads: int = 1,
) -> Run:
    """Check every argument of `train`, read the documents, shuffle them and draw the model's parameters."""
    steps = integer("steps", steps, 0)
    batch_size = positive_integer("batch_size", batch_size)
    if data is None or isinstance(data, (str, os.PathLike)):
        documents = read_documents(data)
    else:
        documents = list(data)
        for i, document in enumerate(documents):
            if not isinstance(document, str):
                raise TypeError(f"data[{i}] must be a string, got {document!r:.60}")
        documents = [document for document in documents if document]
        if not documents:
            raise ValueError("data must hold at least one document that is not empty, got none")
    generator = backends.new_generator(backends.choose(backend), seed)
    generator.shuffle(documents)
    tokenizer = CharTokenizer.from_documents(documents)
    config = GPTConfig(
        vocab_size=tokenizer.vocab_size, n_layer=n_layer, n_embd=n_embd, block_size=block_size, n_head=n_head
    )
    model = GPT(config, generator, dtype, backend, threads, tokenizer)
    optimizer = Adam(model, learning_rate, beta1, beta2, eps)
    return Run(model, documents, np.zeros(steps), optimizer, batch_size)


def train(
    data: str | os.PathLike[str] | Iterable[str] | None = None,
    *,
    progress: Callable[[int], object] | None = None,
    **options: Any,
) -> TrainingResult:
    """Train a model on documents, by default exactly as microgpt does.

    Args:
        data: a text file with one document a line, or the documents; by default the US first names in the package.
        steps: number of steps of Adam; the learning rate falls linearly to 0 over them.
        seed: an int, or a `random.Random`: shuffles the documents, draws the parameters, and then what is generated.
        n_layer, n_embd, block_size, n_head: the sizes of the model, see `GPTConfig`.
        batch_size: documents in a step; the loss is the mean of theirs.
        learning_rate, beta1, beta2, eps: see `Adam`; `learning_rate` is that of the first step.
        dtype, backend, threads: see `GPT`.
        progress: called now and then with the number of steps completed.

    `ValueError` or `TypeError` names the argument, file or line that is wrong, and the step where the loss stopped
    being a finite number. Source: the training loop of microgpt.
    """
    return prepare(data, **options).finish(progress)
