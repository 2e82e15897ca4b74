"""Everything in one call: documents in, a trained model out."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from microgpt import backend as backends
from microgpt.arguments import positive_integer
from microgpt.checkpoint import plain, read, save
from microgpt.config import GPTConfig
from microgpt.data.batches import Batches, DocumentBatches, TextBatches
from microgpt.data.corpus import Corpus, read_corpus
from microgpt.data.documents import Data
from microgpt.evaluation import mean_loss
from microgpt.history import TrainingHistory, lowest_validation_loss
from microgpt.interrupts import ENDINGS, HeldBack, Stopped
from microgpt.model import GPT
from microgpt.optimizer import Adam
from microgpt.recipe import Recipe, with_arguments_of
from microgpt.recording import Recorder
from microgpt.schedule import learning_rates
from microgpt.writing import check_different

if TYPE_CHECKING:
    from numpy.typing import NDArray


# What one call of the engine is given at most: what each step trains on is not laid out for all at once.
STRETCH_STEPS = 10_000
STRETCH_TOKENS = 1 << 22
PAUSE = 0.5  # seconds of work from one look at the clock to the next, where anything depends on the clock

OnProgress = Callable[[int], object]
OnValidation = Callable[[int, float], object]


class DivergedError(ValueError):
    """The loss is no finite number any more."""


@dataclass(frozen=True)
class TrainingResult:
    """What `train` returns.

    Attributes:
        model: the trained model, with its tokenizer and its history.
    """

    model: GPT

    @property
    def history(self) -> TrainingHistory:
        """How the model was trained."""
        assert self.model.history is not None
        return self.model.history

    @property
    def losses(self) -> NDArray[np.float64]:
        """One for each step, in nats: the loss of the step's documents before the step."""
        return self.history.losses

    @property
    def validation_losses(self) -> list[tuple[int, float]]:
        """Pairs of a number of steps made and the loss, in nats, of what was set aside by then."""
        return self.history.validation_losses

    def _repr_html_(self) -> str:
        """What notebooks show: tables of the model and its training, and with matplotlib the curves of its losses."""
        from microgpt.plots import losses_svg
        from microgpt.report.markup import facts_table  # only notebooks pay for its import
        from microgpt.summary import describe_training

        tables = self.model._repr_html_() + facts_table("Training", describe_training(self.model))
        try:
            return tables + losses_svg(self.history)
        except ImportError:
            return tables


class Run:
    """A training run that is ready to start, or to go on: `train` is `prepare` and then `finish`.

    Attributes:
        recipe: what it was told.
        model: the model, with freshly drawn parameters, or those of the checkpoint.
        corpus: the documents, or as a single one, the text, as token ids.
        steps: how many there are to be; None where the clock decides.
        step: how many have been made.
        losses: float64, one for each step made, and room for more; grows as the run proceeds.
        rates: the learning rates of the steps that were made last.
        validation_losses: pairs of a number of steps made and a loss; appended to as the run proceeds.
        seconds: how long the steps have taken so far, interruptions not counted; up to date when progress is reported.
        tokens_per_step: how many positions a step computes, on average.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: GPT,
        corpus: Corpus,
        batches: Batches,
        optimizer: Adam,
        recorder: Recorder,
        eval_every: int,
        patience: int | None,
    ) -> None:
        self.recipe, self.model, self.corpus = recipe, model, corpus
        self.batches, self.optimizer, self.recorder = batches, optimizer, recorder
        self.eval_every, self.patience = eval_every, patience
        self.validation = batches.validation()
        self.steps = recipe.step_count(len(batches))
        self.losses = np.zeros(0)
        self.rates = np.zeros(0)
        self.validation_losses: list[tuple[int, float]] = []
        self.seconds = 0.0
        self.tokens_per_step = recipe.batch_size * batches.mean_positions()
        self._most_seconds = math.inf if recipe.time is None else recipe.time
        self._pace = PAUSE  # seconds a step
        self._reported = 0  # to whoever wants to know about progress

    @cached_property
    def fingerprint(self) -> str:
        """Of the data: what a run that goes on is compared by."""
        return self.corpus.fingerprint()

    @property
    def files(self) -> list[tuple[str, str | os.PathLike[str]]]:
        """Those that are read and written, each after the argument that names it."""
        return [*self.corpus.files, *self.recorder.files.items()]

    @property
    def step(self) -> int:
        """How many steps have been made."""
        return self.optimizer.step_count

    def is_over(self) -> bool:
        """Whether there is nothing left to do."""
        if self.patience is not None and self.validation_losses:
            lowest = self.validation_losses.index(lowest_validation_loss(self.validation_losses))
            if len(self.validation_losses) - 1 - lowest >= self.patience:
                return True
        if self.steps is None:
            return self.seconds >= self._most_seconds
        return self.step >= self.steps

    def finish(self, progress: OnProgress | None = None, validated: OnValidation | None = None) -> TrainingResult:
        """Train to the end.

        `progress` is called now and then with the number of steps completed, `validated` with the same and the loss of
        what is set aside, each time that it is looked at. With a checkpoint, Ctrl-C, SIGTERM and SIGHUP let the step
        end and save it before they do what they always do; where their handler returns, the run goes on. It is saved,
        too, before an error of these two functions, or of the log, goes on.
        """
        first = self.step
        with HeldBack(*(ENDINGS if self.recorder.out is not None else ())) as signals:
            self.recorder.start(self)
            try:
                self._run(signals, progress, validated)
            except DivergedError:
                raise
            except Exception:
                if self.step > first:  # or a model that is there would give way to an untrained one
                    self.recorder.save(self)
                raise
        self.model.history = self.history()
        return TrainingResult(self.model)

    def _run(self, signals: HeldBack, progress: OnProgress | None, validated: OnValidation | None) -> None:
        while True:
            self._validate_if_due(signals, validated)
            if signals.number is not None:
                self.recorder.save(self)
                signals.let_go()
                continue
            self.recorder.save_if_due(self)
            if self.is_over():
                return
            self._advance(signals, progress)

    def _advance(self, signals: HeldBack, progress: OnProgress | None) -> None:
        """Make some steps, none of which anything has to be done after but the last."""
        first, count, seconds, begin = self.step, self._stretch(), self.seconds, time.perf_counter()
        self.rates = self._rates(first, count)
        if len(self.losses) < first + count:
            self.losses = np.concatenate([self.losses, np.zeros(max(count, len(self.losses)))])

        def report(completed: int) -> None:
            if first + completed > self._reported:
                self._reported = first + completed
                self.seconds = seconds + time.perf_counter() - begin
                if progress:
                    progress(self._reported)
            signals.check()

        state = self.model.generator.getstate()
        try:
            completed = self.model.engine.train(
                self.batches.batch(first, count, self.recipe.batch_size),
                self.recipe.batch_size,
                self.rates,
                self.optimizer,
                self.losses[first : first + count],
                report,
            )
            report(completed)
        except BaseException as error:  # draw what the steps that were made have used, and no more
            self.model.generator.setstate(state)
            self.batches.batch(first, self.step - first, self.recipe.batch_size)
            if not isinstance(error, Stopped):
                raise
            return
        finally:
            self.recorder.steps_made(self, first)  # however they ended
        if completed < count:
            raise DivergedError(
                f"the loss is {self.losses[first + completed]:g} at step {first + completed + 1}:"
                " try a smaller learning_rate"
            )
        self._pace = (self.seconds - seconds) / count

    def _stretch(self) -> int:
        """How many steps to make before looking up."""
        count: float = min(STRETCH_STEPS, STRETCH_TOKENS // (self.recipe.batch_size * (self.recipe.block_size + 1)))
        if self.steps is None or self.recorder.out is not None or self.recorder.log is not None:
            count = min(count, PAUSE / self._pace)
        if self.steps is None:
            count = min(count, (self._most_seconds - self.seconds) / self._pace)
        if self.validation:
            count = min(count, self.eval_every - self.step % self.eval_every)
        if self.recorder.checkpoint_every is not None:
            count = min(count, self.recorder.checkpoint_every - self.step % self.recorder.checkpoint_every)
        if self.steps is not None:
            count = min(count, self.steps - self.step)
        return max(1, int(count))

    def _rates(self, first: int, count: int) -> NDArray[np.float64]:
        recipe, steps = self.recipe, np.arange(first, first + count)
        if self.steps is None:
            done = np.full(count, min(1.0, self.seconds / self._most_seconds))
        else:
            done = np.maximum(0, steps - recipe.warmup_steps) / max(1, self.steps - recipe.warmup_steps)
        return learning_rates(recipe.schedule, recipe.learning_rate, recipe.warmup_steps, steps, done)

    def _validate_if_due(self, signals: HeldBack, validated: OnValidation | None) -> None:
        if not self.validation or not (self.step % self.eval_every == 0 or self.is_over()):
            return
        if self.validation_losses and self.validation_losses[-1][0] == self.step:  # by the run that this one continues
            return
        try:
            loss = mean_loss(self.model.engine, self.validation, signals.check)
        except Stopped:  # a run that goes on will look again
            return
        self.validation_losses.append((self.step, loss))
        self.model.history = self.history()
        self.recorder.validated(self)
        if validated:
            validated(*self.validation_losses[-1])

    def resume(self, path: str | os.PathLike[str]) -> None:
        """Go on from a checkpoint as if nothing had happened.

        `ValueError` where it was begun with other data or another recipe; only `steps`, `epochs` and `time` may differ,
        and where the same tokenizer comes from.
        """
        checkpoint = read(path)
        progress, history = checkpoint.progress, checkpoint.history
        if progress is None or history is None:
            raise ValueError(f"{path} holds a model, but no run that could go on")
        if not isinstance(self.recipe.seed, (int, float, str)):
            raise ValueError(f"seed must be a number or a text for a run that is resumed, got {self.recipe.seed!r:.60}")
        for name, value in plain(self.recipe.options()).items():
            if name not in ("steps", "epochs", "time", "tokenizer") and history.options.get(name) != value:
                raise ValueError(f"{name} is {value!r}, but {path} was begun with {history.options.get(name)!r}")
        if checkpoint.tokenizer != self.corpus.tokenizer:
            raise ValueError(f"the tokenizer, or the characters of the data, are not those that {path} was begun with")
        if progress.fingerprint != self.fingerprint:
            raise ValueError(f"the data are not those that {path} was begun with")
        self.model.load_state_dict(checkpoint.parameters)
        self.model.generator.setstate(checkpoint.generator)
        for moments, by_name in ((self.optimizer.m, progress.m), (self.optimizer.v, progress.v)):
            for name, array in self.model.by_name(moments).items():
                array[...] = by_name[name]
        self.optimizer.step_count = self.recorder.saved_step = progress.step
        self.losses = history.losses
        self.validation_losses = list(history.validation_losses)
        self.seconds = history.seconds

    def history(self) -> TrainingHistory:
        """What has happened so far."""
        return TrainingHistory(
            self.losses[: self.step].copy(), list(self.validation_losses), self.recipe.options(), self.seconds
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint from which `prepare(..., resume=True)` goes on as if nothing had happened."""
        self.model.history = self.history()
        save(path, self.model, self.optimizer, self.fingerprint)


@with_arguments_of(Recipe)
def prepare(
    data: Data = None,
    *,
    eval_every: int = 250,
    patience: int | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    checkpoint_every: int | None = None,
    keep_best: bool = False,
    log: str | os.PathLike[str] | None = None,
    log_every: int = 10,
    backend: str | None = None,
    threads: int | None = None,
    **options: Any,
) -> Run:
    """Check every argument of `train`, read the data, shuffle documents and draw the model's parameters."""
    for name in options:
        if name not in Recipe.__dataclass_fields__:
            raise TypeError(f"train() got an unexpected option {name!r}")
    recipe = Recipe(**options)
    eval_every = positive_integer("eval_every", eval_every)
    if patience is not None:
        patience = positive_integer("patience", patience)
    for name, asked_for in (("patience", patience is not None), ("keep_best", keep_best)):
        if asked_for and not recipe.val_fraction:
            raise ValueError(f"{name} needs validation losses: val_fraction must be more than 0")
    if resume and out is None:
        raise ValueError("resume needs out, the checkpoint to go on from")
    recorder = Recorder(out, checkpoint_every, keep_best, log, log_every)
    generator = backends.new_generator(backends.choose(backend), recipe.seed)
    corpus = read_corpus(data, recipe.format, recipe.tokenizer)
    check_different(recorder.files, corpus.files)
    order = generator.permutation(len(corpus)) if recipe.format == "lines" else None
    config = GPTConfig(
        vocab_size=corpus.tokenizer.vocab_size,
        n_layer=recipe.n_layer,
        n_embd=recipe.n_embd,
        block_size=recipe.block_size,
        n_head=recipe.n_head,
        activation=recipe.activation,
        init_std=recipe.init_std,
    )
    model = GPT(config, generator, recipe.dtype, backend, threads, corpus.tokenizer, recipe.format)
    optimizer = Adam(
        model,
        recipe.learning_rate,
        recipe.beta1,
        recipe.beta2,
        recipe.eps,
        recipe.weight_decay,
        recipe.max_grad_norm,
    )
    batches: Batches
    if order is not None:
        batches = DocumentBatches(corpus, order, config.block_size + 1, recipe.val_fraction, recipe.long_documents)
    else:
        batches = TextBatches(corpus, config.block_size + 1, model.generator, recipe.val_fraction)
    run = Run(recipe, model, corpus, batches, optimizer, recorder, eval_every, patience)
    if resume and out is not None and os.path.exists(out):
        run.resume(out)
    return run


@with_arguments_of(prepare)
def train(
    data: Data = None,
    *,
    progress: OnProgress | None = None,
    **options: Any,
) -> TrainingResult:
    """Train a model on documents, by default exactly as microgpt does.

    Args:
        data: a text file, several as `pathlib.Path`s, or the documents as strings; "-" is standard input, and what ends
            in .gz is decompressed. By default the US first names in the package.
        progress: called now and then with the number of steps completed.
        eval_every: steps from one look at the loss of what was set aside to the next.
        patience: end after so many looks in which that loss has not fallen below its lowest; None to never do so.
        out: a checkpoint to write while training and at its end.
        resume: go on from `out`, bit for bit as if never interrupted; where it does not exist, begin.
        checkpoint_every: steps from one checkpoint to the next; by default there is one a minute.
        keep_best: also keep the model with the lowest validation loss, beside `out` under a name with ".best" in it.
        log: a file of metrics, one JSON object a line, every `log_every` steps and with each validation.
        backend, threads: see `GPT`.
        options: everything that decides what comes out, see `Recipe`.

    `ValueError` or `TypeError` names the argument, file or line that is wrong, and the step where the loss stopped
    being a finite number. Source: the training loop of microgpt.
    """
    return prepare(data, **options).finish(progress)
