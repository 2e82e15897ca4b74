"""Everything in one call: documents in, a trained model out."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from microgpt import backend as backends
from microgpt.arguments import choice, integer, number, positive_integer
from microgpt.batches import LONG_DOCUMENTS, Batches, DocumentBatches, TextBatches
from microgpt.config import GPTConfig
from microgpt.corpus import Corpus, read_corpus
from microgpt.documents import Data
from microgpt.model import GPT
from microgpt.optimizer import Adam
from microgpt.packing import PackedSequences
from microgpt.tokenizer import Tokenizer

if TYPE_CHECKING:
    from numpy.typing import NDArray


# What one call of the engine is given at most: what each step trains on is not laid out for all at once.
CHUNK = 10_000  # steps
CHUNK_TOKENS = 1 << 22


@dataclass(frozen=True)
class TrainingResult:
    """What `train` returns.

    Attributes:
        model: the trained model, with its tokenizer.
        losses: float64, one for each step, in nats: the loss of the step's documents before the step.
        validation_losses: pairs of a number of steps made and the loss, in nats, of what was set aside by then.
    """

    model: GPT
    losses: NDArray[np.float64]
    validation_losses: list[tuple[int, float]]


@dataclass(frozen=True)
class Run:
    """A training run that is ready to start: `train` is `prepare` and then `finish`.

    Attributes:
        model: the model, with freshly drawn parameters.
        corpus: the documents, or as a single one, the text, as token ids.
        losses: float64, one for each step; filled as the run proceeds.
        validation_losses: pairs of a number of steps made and a loss; appended to as the run proceeds.
    """

    model: GPT
    corpus: Corpus
    batches: Batches
    losses: NDArray[np.float64]
    validation_losses: list[tuple[int, float]]
    optimizer: Adam
    batch_size: int
    eval_every: int

    def finish(
        self,
        progress: Callable[[int], object] | None = None,
        validated: Callable[[int, float], object] | None = None,
    ) -> TrainingResult:
        """Train to the end.

        `progress` is called now and then with the number of steps completed, `validated` with the same and the loss of
        what is set aside, each time that it is looked at.
        """
        steps, validation = len(self.losses), self.batches.validation()
        chunk_steps = min(CHUNK, max(1, CHUNK_TOKENS // (self.batch_size * (self.model.config.block_size + 1))))
        completed = 0
        while completed < steps:
            begin = completed
            self._validate(begin, validation, validated)
            next_look = begin - begin % self.eval_every + self.eval_every if validation else steps
            chunk = np.arange(begin, min(begin + chunk_steps, next_look, steps))
            completed = begin + self.model.engine.train(
                self.batches.batch(begin, len(chunk), self.batch_size),
                self.batch_size,
                self.optimizer.learning_rate * (1 - chunk / steps),
                self.optimizer,
                self.losses[begin : begin + len(chunk)],
                progress and (lambda done, begin=begin: progress(begin + done)),
            )
            if completed <= chunk[-1]:
                raise ValueError(
                    f"the loss is {self.losses[completed]:g} at step {completed + 1}: try a smaller learning_rate"
                )
        self._validate(steps, validation, validated)
        return TrainingResult(self.model, self.losses, self.validation_losses)

    def _validate(
        self, steps: int, validation: PackedSequences | None, validated: Callable[[int, float], object] | None
    ) -> None:
        if validation and (steps % self.eval_every == 0 or steps == len(self.losses)):
            self.validation_losses.append((steps, self.model.mean_loss(validation)))
            if validated:
                validated(*self.validation_losses[-1])


def prepare(
    data: Data = None,
    *,
    format: str = "lines",
    tokenizer: str | os.PathLike[str] | Tokenizer = "characters",
    long_documents: str = "cut",
    val_fraction: float = 0.0,
    eval_every: int = 250,
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
    threads: int | None = None,
) -> Run:
    """Check every argument of `train`, read the data, shuffle documents and draw the model's parameters."""
    long_documents = choice("long_documents", long_documents, LONG_DOCUMENTS)
    val_fraction = number("val_fraction", val_fraction, minimum=0, below=1)
    eval_every = positive_integer("eval_every", eval_every)
    steps = integer("steps", steps, 0)
    batch_size = positive_integer("batch_size", batch_size)
    generator = backends.new_generator(backends.choose(backend), seed)
    corpus = read_corpus(data, format, tokenizer)
    order = generator.permutation(len(corpus)) if format == "lines" else None
    config = GPTConfig(
        vocab_size=corpus.tokenizer.vocab_size, n_layer=n_layer, n_embd=n_embd, block_size=block_size, n_head=n_head
    )
    model = GPT(config, generator, dtype, backend, threads, corpus.tokenizer)
    optimizer = Adam(model, learning_rate, beta1, beta2, eps)
    batches: Batches
    if order is not None:
        batches = DocumentBatches(corpus, order, config.block_size + 1, val_fraction, long_documents)
    else:
        batches = TextBatches(corpus, config.block_size + 1, model.generator, val_fraction)
    return Run(model, corpus, batches, np.zeros(steps), [], optimizer, batch_size, eval_every)


def train(
    data: Data = None,
    *,
    progress: Callable[[int], object] | None = None,
    **options: Any,
) -> TrainingResult:
    """Train a model on documents, by default exactly as microgpt does.

    Args:
        data: a text file, several as `pathlib.Path`s, or the documents as strings; "-" is standard input, and what ends
            in .gz is decompressed. By default the US first names in the package.
        format: "lines": each line of a file is a document; "text": the files are one text, and each step trains on
            windows of it, drawn with the model's generator.
        tokenizer: "characters" (those of the data), "bytes", a JSON file of Hugging Face's tokenizers or a `Tokenizer`.
        long_documents: of documents longer than the context, "cut" uses the beginning, "split" all, in pieces.
        val_fraction: the share of the documents, or of the text, at its end, that no step trains on.
        eval_every: steps from one look at the loss of that share to the next.
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
