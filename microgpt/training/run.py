"""A training run: its loop, what is due when, and how it is resumed."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from microgpt.checkpoint import plain, read
from microgpt.data.batches import Batches
from microgpt.data.corpus import Corpus
from microgpt.evaluation import count_tokens, mean_loss
from microgpt.history import Origin, TrainingHistory, TrainingProgress, falls_below
from microgpt.model import GPT
from microgpt.optimizer import Adam
from microgpt.random.splitmix import step_stream, stream_seed
from microgpt.training.recipe import Recipe, defaults_of
from microgpt.training.recorder import Recorder
from microgpt.training.schedule import learning_rates
from microgpt.training.signals import ENDINGS, DeferredSignals, Stopped

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from microgpt.training.distributed import Ranks


# The engine runs a block of steps in one call. A block is limited, so that its batches fit into memory.
BLOCK_STEPS = 10_000
BLOCK_TOKENS = 1 << 22
PAUSE = 0.5  # seconds between checks of the clock, in runs where anything depends on it

MINUTE = 60.0  # default interval between checkpoints, in seconds
VALIDATIONS = 40  # default number of validations in a run, about
RECENT = 100  # number of steps over which progress averages the loss

OnProgress = Callable[[TrainingProgress], object]


class DivergedError(ValueError):
    """The loss or a parameter is no longer finite, so training cannot continue."""


@dataclass(frozen=True)
class TrainingResult:
    """The result of `train`.

    Attributes:
        model: the trained model, with its tokenizer and its history.
    """

    model: GPT

    @property
    def history(self) -> TrainingHistory:
        """The history of the model's training."""
        assert self.model.history is not None
        return self.model.history

    @property
    def losses(self) -> NDArray[np.float64]:
        """The loss of each step's batch before the update, in nats."""
        return self.history.losses

    @property
    def validation_losses(self) -> list[tuple[int, float]]:
        """Pairs (steps completed, loss of the held-out data in nats), see `TrainingHistory`."""
        return self.history.validation_losses

    def _repr_html_(self) -> str:
        """HTML for notebooks: tables of the model and its training, and its loss curves."""
        from microgpt.display.curves import losses_svg  # imported here because only notebooks need it
        from microgpt.display.html import facts_table
        from microgpt.display.summary import describe_training

        tables = self.model._repr_html_() + facts_table("Training", describe_training(self.model))
        return tables + losses_svg(self.history, guessing=math.log(self.model.config.vocab_size))


def round_interval(steps: int, times: int) -> int:
    """A round interval, 1, 2, 5, 10, 20, 25, 50, 100, ..., that fits about `times` times into `steps`."""
    wanted = max(1.0, steps / times)
    magnitude = 10 ** (len(str(int(wanted))) - 1)
    factors = (1, 2, 2.5, 5, 10) if magnitude > 1 else (1, 2, 5, 10)
    return int(min((factor * magnitude for factor in factors), key=lambda each: max(each / wanted, wanted / each)))


class Run:
    """A training run, ready to start or to resume: the function `train` is `prepare` and then `Run.train`.

    Attributes:
        recipe: the options that determine the result.
        model: the model, with the parameters with which the run begins, or those of the checkpoint.
        corpus: the documents as token ids; a text is a single document.
        steps: number of steps of the whole run; None if a time limit ends it.
        losses: float64, one for each completed step, then room for more; grows during the run.
        learning_rates: of the latest block of steps.
        validation_losses: pairs (steps completed, loss); grows during the run.
        seconds: duration of all steps so far, without interruptions; up to date when progress is reported.
        eval_every: steps from one validation to the next; None if the clock decides.
        tokens_per_step: positions computed in a step, on average.
        held_out_tokens: number of tokens to predict in the held-out data.
        validation_tokens: how many of them each validation predicts.
        dropout_seed: 64 bits, from which the random numbers of each step derive.
        saved_step: the step of the latest checkpoint, or None.
        has_saved: whether `train` has written a checkpoint; false if the run was already over.
        ranks: the processes that share each step, or None.
        origin: the model whose parameters the run began with, or None if they were drawn.
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
        origin: Origin | None,
    ) -> None:
        self.recipe, self.model, self.corpus = recipe, model, corpus
        self.batches, self.optimizer, self.recorder = batches, optimizer, recorder
        self.patience, self.checkpoint_every, self.origin = patience, checkpoint_every, origin
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
        self.dropout_seed = stream_seed(recipe.seed)
        self.saved_step: int | None = None
        self.has_saved = False
        self.ranks: Ranks | None = None
        self._saved_validations = 0  # number of validations in the latest checkpoint
        self._saved_at = time.monotonic()
        self._validated_at = -math.inf  # in seconds of training
        self._most_seconds = math.inf if recipe.time is None else recipe.time
        self._until = math.inf  # step at which this call of `train` ends
        self._pace = PAUSE  # seconds per step
        self._begin, self._begin_seconds = 0, 0.0  # step and seconds at the beginning of this call of `train`
        self._lowest = math.nan  # lowest validation loss, among those that patience counts
        self._waited = 0  # number of validations since then
        self._best = math.nan  # validation loss of the best model, which `keep_best` writes
        self._checked = 0  # last step after which the model is known to be finite
        self._reported = 0  # last step reported to `progress`

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the data, which a resumed run must match."""
        return self.corpus.fingerprint()

    @property
    def files(self) -> list[tuple[str, str | os.PathLike[str]]]:
        """(argument, path) of every file that the run reads or writes."""
        return [*self.corpus.files, *self.recorder.files.items()]

    @property
    def step(self) -> int:
        """Number of steps completed."""
        return self.optimizer.step_count

    @property
    def history(self) -> TrainingHistory:
        """The history so far, as a copy."""
        return TrainingHistory(
            losses=self.losses[: self.step].copy(),
            validation_losses=list(self.validation_losses),
            options=self.recipe.options(),
            seconds=self.seconds,
            validation_tokens=self.validation_tokens,
            held_out_tokens=self.held_out_tokens,
            init_from=self.origin,
            fingerprint=self.fingerprint,
        )

    def is_over(self) -> bool:
        """Whether the run has reached its end: its steps, its time, the end of its patience, or `until` of `train`."""
        if self.step >= self._until or (self.patience is not None and self._waited >= self.patience):
            return True
        if self.steps is None:
            return self.seconds >= self._most_seconds
        return self.step >= self.steps

    def train(self, progress: OnProgress | None = None, until: int | None = None) -> TrainingResult:
        """Train to the end, or to the step `until`, at which the run is validated and saved as at its end.

        A run that ended at `until` can go on, bit for bit as if it had not. `progress` is called now and then, and
        after each validation. If there is a checkpoint to write, Ctrl-C, SIGTERM and SIGHUP wait for the step to end
        and the checkpoint to be written; if their handler returns, training continues. An error in `progress`, or in
        writing the log, also saves the run before it propagates. A run whose parameters, or whose next loss, are not
        finite is not saved: `DivergedError`.
        """
        self._until = math.inf if until is None else until
        self._begin, self._begin_seconds = self.step, self.seconds
        if self.recorder.best is not None and not os.path.exists(self.recorder.best):
            self._best = math.nan
        is_deferred = self.recorder.out is not None or self.ranks is not None
        with DeferredSignals(*(ENDINGS if is_deferred else ())) as signals:
            if self.ranks is not None:
                self.ranks.signals = signals
            self.recorder.start_log(self.step, self.is_over())
            try:
                self._loop(signals, progress)
            except DivergedError:
                raise
            except Exception:
                if self.step > self._begin:  # never replace a file with an untrained model
                    with contextlib.suppress(DivergedError):
                        self._save()
                raise
            finally:
                if self.step > self._begin:
                    self.recorder.log_rest(self.losses[: self.step], float(self.learning_rates[-1]), self.seconds)
        self._remember()
        return TrainingResult(self.model)

    def advance(self, until: int) -> None:
        """Train to the step `until`, or to the end, without a validation or a checkpoint.

        `DivergedError` if the loss or a parameter is not finite.
        """
        self._until = until
        with DeferredSignals() as signals:
            while not self.is_over():
                self._advance(signals, None)

    def held_out_loss(self, check: Callable[[], object] = lambda: None) -> float:
        """The validation loss of the model as it is now; for `check` see `mean_loss`."""
        assert self._held_out is not None
        return mean_loss(self.model.engine, self._held_out, check)

    def _loop(self, signals: DeferredSignals, progress: OnProgress | None) -> None:
        """Validate, save, and run blocks of steps, until the run is over or a signal ends it."""
        while True:
            if self._validation_is_due():
                self._validate(signals, progress)
            if signals.number is not None:
                self._save()
                signals.deliver()
                continue
            if self._checkpoint_is_due():
                self._save()
            if self.is_over():
                self._check_finite()
                return
            self._advance(signals, progress)

    def _advance(self, signals: DeferredSignals, progress: OnProgress | None) -> None:
        """Run a block of steps; nothing else is due until after the last."""
        begin, count = self.step, self._block_steps()
        seconds, started = self.seconds, time.perf_counter()
        batch_size = self.recipe.batch_size
        rates = self._learning_rates(begin, count)
        if len(self.losses) < begin + count:
            self.losses = np.concatenate([self.losses, np.zeros(max(count, len(self.losses)))])

        def report(completed: int) -> None:
            if begin + completed > self._reported:
                self._reported = begin + completed
                self.seconds = seconds + time.perf_counter() - started
                if progress:
                    progress(self._progress(self._reported, float(rates[completed - 1])))
            signals.check()

        try:
            documents = self.batches.batch(begin, count, batch_size)
            losses = self.losses[begin : begin + count]
            if self.ranks is not None:
                completed = self.ranks.train(
                    self.model.engine, documents, self.recipe, rates, self.optimizer, losses, report
                )
            else:
                completed = self.model.engine.train(
                    documents,
                    batch_size,
                    rates,
                    self.optimizer,
                    losses,
                    report,
                    self.recipe.shards,
                    seed=self.dropout_seed,
                )
            report(completed)
        except BaseException as error:
            self.batches.rewind(self.step, batch_size)
            if not isinstance(error, Stopped):
                raise
            return
        finally:  # after an interruption, too
            if self.step > begin:
                self.learning_rates = rates[: self.step - begin]
                self.recorder.log_steps(begin, self.losses[: self.step], self.learning_rates, self.seconds)
        if completed < count:
            raise DivergedError(
                f"the loss is {self.losses[begin + completed]:g} at step {begin + completed + 1}:"
                " try a smaller learning_rate"
            )
        if not self.model.is_finite():
            raise self._diverged("the parameters are not finite numbers")
        self._pace = (self.seconds - seconds) / count

    def _block_steps(self) -> int:
        """Number of steps to run before anything else is due."""
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
        count = min(count, self._until - self.step)
        return max(1, int(count))

    def _learning_rates(self, begin: int, count: int) -> NDArray[np.float64]:
        recipe, steps = self.recipe, np.arange(begin, begin + count)
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
        if self.validation_losses and self.validation_losses[-1][0] == self.step:  # already done
            return False
        if self.is_over():
            return True
        if self.eval_every is not None:
            return self.step % self.eval_every == 0
        return self._since_validation() >= self._most_seconds / VALIDATIONS

    def _since_validation(self) -> float:
        """Seconds of training since the latest validation."""
        return self.seconds - self._validated_at

    def _validate(self, signals: DeferredSignals, progress: OnProgress | None) -> None:
        try:
            loss = self.held_out_loss(signals.check)
        except Stopped:  # a resumed run will validate again
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
        if self.eval_every is not None and step % self.eval_every:  # at the end of a run, not counted
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
        """`DivergedError` if the next step would fail: even the last step must leave a model that works."""
        if self.step == self._checked:
            return
        if not self.model.is_finite():
            raise self._diverged("the parameters are not finite numbers")
        batch = self.batches.batch(self.step, 1, self.recipe.batch_size)
        loss = self.model.engine.loss(batch, stream=step_stream(self.dropout_seed, self.step))
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
            optimizer = self.optimizer if self.ranks is None else self.ranks.whole(self.optimizer)
            self.recorder.save_checkpoint(self.model, optimizer)
            self.saved_step, self._saved_validations = self.step, len(self.validation_losses)
            self.has_saved, self._saved_at = True, time.monotonic()

    def _remember(self) -> None:
        self.model.history = self.history

    def resume(self, path: str | os.PathLike[str]) -> None:
        """Continue from a checkpoint as if the run had never stopped.

        `ValueError` if the checkpoint has other data or another recipe; only `steps`, `epochs`, `time` and the source
        of the same tokenizer may differ.
        """
        checkpoint = read(path)
        progress, history = checkpoint.progress, checkpoint.history
        if progress is None or history is None:
            raise ValueError(f"{path} holds a model, but no run to resume")
        if self.origin != history.init_from:
            raise ValueError(f"init_from is {self.origin}, but {path} was begun with {history.init_from}")
        self.origin = history.init_from  # whose file may have another name by now
        if not isinstance(self.recipe.seed, (int, float, str)):
            raise ValueError(f"seed must be a number or a text for a run that is resumed, got {self.recipe.seed!r:.60}")
        begun = defaults_of(Recipe) | history.options  # a file may be older than an option
        for name, value in plain(self.recipe.options()).items():
            if name not in ("steps", "epochs", "time", "tokenizer") and begun[name] != value:
                raise ValueError(f"{name} is {value!r}, but {path} was begun with {begun[name]!r}")
        if checkpoint.tokenizer != self.corpus.tokenizer:
            raise ValueError(f"the tokenizer, or the characters of the data, are not those that {path} was begun with")
        if history.fingerprint != self.fingerprint:
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
