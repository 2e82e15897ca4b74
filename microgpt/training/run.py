"""Everything in one call: documents in, a trained model out."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Unpack

import numpy as np

from microgpt.checkpoint import plain, read
from microgpt.data.batches import Batches, DocumentBatches, TextBatches
from microgpt.data.corpus import Corpus, read_corpus
from microgpt.data.documents import Data
from microgpt.engine import backend as backends
from microgpt.evaluation import count_tokens, mean_loss
from microgpt.history import TrainingHistory, TrainingProgress, falls_below
from microgpt.model import GPT
from microgpt.optimizer import Adam
from microgpt.training.recipe import Recipe, RecipeOptions, with_arguments_of
from microgpt.training.recorder import Recorder
from microgpt.training.schedule import learning_rates
from microgpt.training.signals import ENDINGS, HeldBack, Stopped
from microgpt.utils.arguments import positive_integer
from microgpt.utils.files import check_different

if TYPE_CHECKING:
    from numpy.typing import NDArray


# One call of the engine gets a block of at most so many steps: the sequences of all steps are not laid out at once.
BLOCK_STEPS = 10_000
BLOCK_TOKENS = 1 << 22
PAUSE = 0.5  # seconds of work from one look at the clock to the next, where anything depends on the clock

MINUTE = 60.0  # from one checkpoint to the next, unless told otherwise
VALIDATIONS = 40  # in a run, about, unless told otherwise
RECENT = 100  # steps, over whose losses progress gives the mean

OnProgress = Callable[[TrainingProgress], object]


class DivergedError(ValueError):
    """The loss, or a parameter, is no finite number any more: no further step could be made."""


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
        """Pairs of a number of steps made and the loss of the held-out data by then, in nats: see `TrainingHistory`."""
        return self.history.validation_losses

    def _repr_html_(self) -> str:
        """What notebooks show: tables of the model and its training, and with matplotlib the curves of its losses."""
        from microgpt.display.html import facts_table  # only notebooks pay for its import
        from microgpt.display.plots import losses_svg
        from microgpt.display.summary import describe_training

        tables = self.model._repr_html_() + facts_table("Training", describe_training(self.model))
        try:
            return tables + losses_svg(self.history)
        except ImportError:
            return tables


def round_interval(steps: int, times: int) -> int:
    """The interval at which something happens about so many `times` in `steps`: 1, 2, 5, 10, 20, 25, 50, 100, ..."""
    wanted = max(1.0, steps / times)
    magnitude = 10 ** (len(str(int(wanted))) - 1)
    factors = (1, 2, 2.5, 5, 10) if magnitude > 1 else (1, 2, 5, 10)
    return int(min((factor * magnitude for factor in factors), key=lambda each: max(each / wanted, wanted / each)))


class Run:
    """A training run that is ready to start, or to go on: the function `train` is `prepare` and then `Run.train`.

    Attributes:
        recipe: the options that decide what comes out.
        model: the model, with freshly drawn parameters, or those of the checkpoint.
        corpus: the documents, or as a single one, the text, as token ids.
        steps: number of steps of the whole run; None where the clock decides.
        losses: float64, one for each step made, and room for more; grows as the run proceeds.
        learning_rates: those of the last steps.
        validation_losses: pairs of a number of steps made and a loss; appended to as the run proceeds.
        seconds: duration of all steps so far, interruptions not counted; up to date when progress is reported.
        eval_every: steps from one validation to the next; None where the clock decides.
        tokens_per_step: how many positions a step computes, on average.
        held_out_tokens: number of tokens to predict in the held-out data.
        validation_tokens: how many of them each validation predicts.
        saved_step: the step of the latest checkpoint, or None.
        has_saved: whether `train` has written a checkpoint, and not only found the run to be over.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: GPT,
        corpus: Corpus,
        batches: Batches,
        optimizer: Adam,
        recorder: Recorder,
        *,
        eval_every: int | None,
        patience: int | None,
        checkpoint_every: int | None,
    ) -> None:
        self.recipe, self.model, self.corpus = recipe, model, corpus
        self.batches, self.optimizer, self.recorder = batches, optimizer, recorder
        self.patience, self.checkpoint_every = patience, checkpoint_every
        self.steps = recipe.step_count(len(batches))
        if eval_every is None and self.steps is not None:
            eval_every = round_interval(self.steps, VALIDATIONS)
        self.eval_every = eval_every
        self.losses = np.zeros(0)
        self.learning_rates = np.zeros(0)
        self.validation_losses: list[tuple[int, float]] = []
        self.seconds = 0.0
        self.tokens_per_step = recipe.batch_size * batches.mean_positions()
        self.held_out_tokens = batches.held_out_tokens()
        self._held_out = batches.held_out(recipe.most_eval_tokens()) if self.held_out_tokens else None
        self.validation_tokens = 0 if self._held_out is None else count_tokens(self._held_out)
        self.saved_step: int | None = None
        self.has_saved = False
        self._saved_validations = 0  # how many of them are in the latest checkpoint
        self._saved_at = time.monotonic()
        self._validated_at = -math.inf  # seconds of training
        self._most_seconds = math.inf if recipe.time is None else recipe.time
        self._pace = PAUSE  # seconds a step
        self._begin, self._begin_seconds = 0, 0.0  # where this call of `train` has begun
        self._lowest = math.nan  # validation loss, of those that patience counts
        self._waited = 0  # how many of them there have been since
        self._best = math.nan  # validation loss of the best model that is kept
        self._checked = 0  # the last step after which the model is known to be finite, or to come from a file
        self._reported = 0  # the last step that progress has been reported of

    @cached_property
    def fingerprint(self) -> str:
        """The data's: what a run that goes on is compared by."""
        return self.corpus.fingerprint()

    @property
    def files(self) -> list[tuple[str, str | os.PathLike[str]]]:
        """Those that are read and written, each after the argument that names it."""
        return [*self.corpus.files, *self.recorder.files.items()]

    @property
    def step(self) -> int:
        """Number of steps made."""
        return self.optimizer.step_count

    @property
    def history(self) -> TrainingHistory:
        """Everything that has happened so far."""
        return TrainingHistory(
            losses=self.losses[: self.step].copy(),
            validation_losses=list(self.validation_losses),
            options=self.recipe.options(),
            seconds=self.seconds,
            validation_tokens=self.validation_tokens,
            held_out_tokens=self.held_out_tokens,
        )

    def is_over(self) -> bool:
        """Whether there is nothing left to do."""
        if self.patience is not None and self._waited >= self.patience:
            return True
        if self.steps is None:
            return self.seconds >= self._most_seconds
        return self.step >= self.steps

    def train(self, progress: OnProgress | None = None) -> TrainingResult:
        """Train to the end.

        `progress` is called now and then, and after each validation. With a checkpoint, Ctrl-C, SIGTERM and SIGHUP let
        the step end and save it before they do what they always do; where their handler returns, the run goes on. It is
        saved, too, before an error of `progress`, or of the log, goes on. It is not saved, and `DivergedError` says so,
        where the parameters, or the loss that the next step would have, are not finite numbers.
        """
        self._begin, self._begin_seconds = self.step, self.seconds
        if self.recorder.best is not None and not os.path.exists(self.recorder.best):
            self._best = math.nan
        with HeldBack(*(ENDINGS if self.recorder.out is not None else ())) as signals:
            self.recorder.start_log(self.step, self.is_over())
            try:
                self._loop(signals, progress)
            except DivergedError:
                raise
            except Exception:
                if self.step > self._begin:  # or a model that is there would give way to an untrained one
                    with contextlib.suppress(DivergedError):
                        self._save()
                raise
            finally:
                if self.step > self._begin:
                    self.recorder.log_rest(self.losses[: self.step], float(self.learning_rates[-1]), self.seconds)
        self._remember()
        return TrainingResult(self.model)

    def _loop(self, signals: HeldBack, progress: OnProgress | None) -> None:
        while True:
            if self._validation_is_due():
                self._validate(signals, progress)
            if signals.number is not None:
                self._save()
                signals.let_go()
                continue
            if self._checkpoint_is_due():
                self._save()
            if self.is_over():
                self._check_finite()
                return
            self._advance(signals, progress)

    def _advance(self, signals: HeldBack, progress: OnProgress | None) -> None:
        """Run a block of steps; nothing is due until after the last."""
        first, count, seconds, begin = self.step, self._block_steps(), self.seconds, time.perf_counter()
        batch_size = self.recipe.batch_size
        rates = self._learning_rates(first, count)
        if len(self.losses) < first + count:
            self.losses = np.concatenate([self.losses, np.zeros(max(count, len(self.losses)))])

        def look_up(completed: int) -> None:
            if first + completed > self._reported:
                self._reported = first + completed
                self.seconds = seconds + time.perf_counter() - begin
                if progress:
                    progress(self._progress(self._reported, float(rates[completed - 1])))
            signals.check()

        try:
            completed = self.model.engine.train(
                self.batches.batch(first, count, batch_size),
                batch_size,
                rates,
                self.optimizer,
                self.losses[first : first + count],
                look_up,
            )
            look_up(completed)
        except BaseException as error:
            self.batches.rewind(self.step, batch_size)
            if not isinstance(error, Stopped):
                raise
            return
        finally:  # however they ended
            if self.step > first:
                self.learning_rates = rates[: self.step - first]
                self.recorder.log_steps(first, self.losses[: self.step], self.learning_rates, self.seconds)
        if completed < count:
            raise DivergedError(
                f"the loss is {self.losses[first + completed]:g} at step {first + completed + 1}:"
                " try a smaller learning_rate"
            )
        if not self.model.is_finite():
            raise self._diverged("the parameters are not finite numbers")
        self._pace = (self.seconds - seconds) / count

    def _block_steps(self) -> int:
        """How many steps to make before anything else is due."""
        count: float = min(BLOCK_STEPS, BLOCK_TOKENS // (self.recipe.batch_size * (self.recipe.block_size + 1)))
        if self.steps is None or self.recorder.out is not None or self.recorder.log is not None:
            count = min(count, PAUSE / self._pace)
        if self.steps is None:
            count = min(count, (self._most_seconds - self.seconds) / self._pace)
        if self._held_out:
            if self.eval_every is not None:
                count = min(count, self.eval_every - self.step % self.eval_every)
            else:
                count = min(count, (self._most_seconds / VALIDATIONS - self._since_validation()) / self._pace)
        if self.checkpoint_every is not None:
            count = min(count, self.checkpoint_every - self.step % self.checkpoint_every)
        if self.steps is not None:
            count = min(count, self.steps - self.step)
        return max(1, int(count))

    def _learning_rates(self, first: int, count: int) -> NDArray[np.float64]:
        recipe, steps = self.recipe, np.arange(first, first + count)
        if self.steps is None:
            done = np.full(count, min(1.0, self.seconds / self._most_seconds))
        else:
            done = np.maximum(0, steps - recipe.warmup_steps) / max(1, self.steps - recipe.warmup_steps)
        return learning_rates(recipe.schedule, recipe.learning_rate, recipe.warmup_steps, steps, done)

    def _progress(self, step: int, learning_rate: float) -> TrainingProgress:
        steps, seconds = step - self._begin, self.seconds - self._begin_seconds
        return TrainingProgress(
            step=step,
            steps=self.steps,
            loss=float(self.losses[max(0, step - RECENT) : step].mean()) if step else math.nan,
            learning_rate=learning_rate,
            tokens_per_second=steps * self.tokens_per_step / seconds if steps else math.nan,
            seconds=self.seconds,
            validation=self.validation_losses[-1] if self.validation_losses else None,
        )

    def _validation_is_due(self) -> bool:
        if not self._held_out:
            return False
        if self.validation_losses and self.validation_losses[-1][0] == self.step:  # by the run that this one resumes
            return False
        if self.is_over():
            return True
        if self.eval_every is not None:
            return self.step % self.eval_every == 0
        return self._since_validation() >= self._most_seconds / VALIDATIONS

    def _since_validation(self) -> float:
        """Seconds of training since the latest validation."""
        return self.seconds - self._validated_at

    def _validate(self, signals: HeldBack, progress: OnProgress | None) -> None:
        assert self._held_out is not None
        try:
            loss = mean_loss(self.model.engine, self._held_out, signals.check)
        except Stopped:  # a run that goes on will look again
            return
        is_best = math.isfinite(loss) and falls_below(loss, self._best)
        self._add_validation(self.step, loss)
        self.recorder.log_validation(self.step, loss, self.seconds)
        if is_best and self.recorder.best is not None:
            self._remember()
            self.recorder.save_best(self.model)
        if progress:
            rates = self.learning_rates
            progress(self._progress(self.step, float(rates[-1]) if len(rates) else math.nan))

    def _add_validation(self, step: int, loss: float) -> None:
        self.validation_losses.append((step, loss))
        self._validated_at = self.seconds
        if falls_below(loss, self._best):
            self._best = loss
        if self.eval_every is not None and step % self.eval_every:  # the end of a shorter run, or of this one
            return
        self._waited += 1
        if falls_below(loss, self._lowest):
            self._lowest, self._waited = loss, 0

    def _checkpoint_is_due(self) -> bool:
        if self.recorder.out is None:
            return False
        if self.step == self.saved_step and len(self.validation_losses) == self._saved_validations:
            return False
        if self.is_over():
            return True
        if self.checkpoint_every is not None:
            return self.step > 0 and self.step % self.checkpoint_every == 0
        return time.monotonic() - self._saved_at > MINUTE

    def _check_finite(self) -> None:
        """`DivergedError` where the next step could not be made. It need not come: a model must not be useless."""
        if self.step == self._checked:
            return
        if not self.model.is_finite():
            raise self._diverged("the parameters are not finite numbers")
        loss = self.model.engine.loss(self.batches.batch(self.step, 1, self.recipe.batch_size))
        self.batches.rewind(self.step, self.recipe.batch_size)
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {loss:g}")
        self._checked = self.step

    def _diverged(self, how: str) -> DivergedError:
        return DivergedError(f"{how} after step {self.step}: try a smaller learning_rate")

    def _save(self) -> None:
        self._check_finite()
        if self.recorder.out is not None:
            self._remember()
            self.recorder.save_checkpoint(self.model, self.optimizer, self.fingerprint)
            self.saved_step, self._saved_validations = self.step, len(self.validation_losses)
            self.has_saved, self._saved_at = True, time.monotonic()

    def _remember(self) -> None:
        self.model.history = self.history

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
        self.optimizer.step_count = self.saved_step = self._checked = progress.step
        self.losses = history.losses
        self.seconds = history.seconds
        for step, loss in history.validation_losses:
            self._add_validation(step, loss)
        self._saved_validations = len(self.validation_losses)


@with_arguments_of(Recipe)
def prepare(
    data: Data = None,
    *,
    eval_every: int | None = None,
    patience: int | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    checkpoint_every: int | None = None,
    keep_best: bool = False,
    log: str | os.PathLike[str] | None = None,
    log_every: int | None = None,
    backend: str | None = None,
    threads: int | None = None,
    **options: Unpack[RecipeOptions],
) -> Run:
    """Check every argument of `train`, read the data, shuffle documents and draw the model's parameters."""
    for name in options:
        if name not in Recipe.__dataclass_fields__:
            raise TypeError(f"train() got an unexpected option {name!r}")
    recipe = Recipe(**options)
    for name, given in (("eval_every", eval_every), ("patience", patience), ("keep_best", keep_best or None)):
        if given is not None and not recipe.val_fraction:
            raise ValueError(f"{name} needs validation losses: val_fraction must be more than 0")
    for name, given in (("resume", resume or None), ("checkpoint_every", checkpoint_every)):
        if given is not None and out is None:
            raise ValueError(f"{name} needs out, the file of the checkpoint")
    eval_every = None if eval_every is None else positive_integer("eval_every", eval_every)
    patience = None if patience is None else positive_integer("patience", patience)
    checkpoint_every = None if checkpoint_every is None else positive_integer("checkpoint_every", checkpoint_every)
    recorder = Recorder(out, keep_best, log, log_every)
    generator = backends.new_generator(backends.choose(backend), recipe.seed)
    corpus = read_corpus(data, recipe.format, recipe.tokenizer)
    check_different(recorder.files, corpus.files)
    order = generator.permutation(len(corpus)) if recipe.format == "lines" else None
    config = recipe.config(corpus.tokenizer.vocab_size)
    model = GPT(config, generator, recipe.dtype, backend, threads, corpus.tokenizer, recipe.format)
    batches: Batches
    if order is not None:
        batches = DocumentBatches(corpus, order, config.block_size + 1, recipe.val_fraction, recipe.long_documents)
    else:
        batches = TextBatches(corpus, config.block_size + 1, model.generator, recipe.val_fraction)
    run = Run(
        recipe,
        model,
        corpus,
        batches,
        recipe.optimizer(model),
        recorder,
        eval_every=eval_every,
        patience=patience,
        checkpoint_every=checkpoint_every,
    )
    if resume and out is not None and os.path.exists(out):
        run.resume(out)
    return run


class TrainOptions(RecipeOptions, total=False):
    """The arguments of `prepare` as type checkers and editors want the `**options` of `train` told."""

    eval_every: int | None
    patience: int | None
    out: str | os.PathLike[str] | None
    resume: bool
    checkpoint_every: int | None
    keep_best: bool
    log: str | os.PathLike[str] | None
    log_every: int | None
    backend: str | None
    threads: int | None


@with_arguments_of(prepare)
def train(
    data: Data = None,
    *,
    progress: OnProgress | None = None,
    **options: Unpack[TrainOptions],
) -> TrainingResult:
    """Train a model on documents, by default exactly as microgpt does.

    Args:
        data: a text file, several as `pathlib.Path`s, or the documents as strings; "-" is standard input, and what ends
            in .gz is decompressed. By default the US first names in the package. Strings that each end with their only
            line feed, as those of `readlines`, are lines of a file, and give the same as the file.
        progress: called now and then, and after each validation, with a `TrainingProgress`.
        eval_every: steps from one validation, which gives the loss of the held-out data, to the next. By default, there
            are about 40 in a run, whatever its length: at round numbers of steps, or with `time`, when the clock says.
        patience: end after so many validations in which that loss has not fallen below its lowest; None to never do so.
            Only those at multiples of `eval_every` count, and not the one at the end of a run that this one resumes.
        out: a checkpoint to write while training and at its end.
        resume: go on from `out`, bit for bit as if never interrupted; where it does not exist, begin.
        checkpoint_every: steps from one checkpoint to the next; by default there is one a minute.
        keep_best: also keep the model with the lowest validation loss, beside `out` under a name with ".best" in it.
        log: a file of metrics, one JSON object a line, every `log_every` steps, by default 10, and for those that are
            left at the end, and with each validation.
        backend, threads: see `GPT`.
        options: everything that decides what comes out, see `Recipe`.

    `ValueError` or `TypeError` names the argument, file or line that is wrong, and the step where the loss or the
    parameters stopped being finite numbers. Source: the training loop of microgpt.
    """
    return prepare(data, **options).train(progress)
