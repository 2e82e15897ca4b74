"""`tune`: find good options for data, and train a model with them."""

from __future__ import annotations

import math
import os
import pickle
import time
from collections.abc import Iterable, Mapping, Set
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Unpack

from microgpt import __version__
from microgpt.data.corpus import Corpus, read_corpus
from microgpt.data.datasets import Dataset, packaged_name
from microgpt.data.documents import Data
from microgpt.engine import backend as backends
from microgpt.training.recipe import Recipe, RecipeOptions, with_arguments_of
from microgpt.training.train import prepare
from microgpt.tuning.compute import StepCounter
from microgpt.tuning.drawing import Drawing
from microgpt.tuning.journal import Journal, check_same_search
from microgpt.tuning.result import TuneResult, is_checkpoint_of, read_model
from microgpt.tuning.search import ETA, OnTuningProgress, Search, Trial, count_rungs
from microgpt.tuning.space import default_space, parse_space
from microgpt.tuning.trial import SharedData, Task, train_trial
from microgpt.tuning.workers import Workers
from microgpt.utils.arguments import number, positive_integer, shown_path
from microgpt.utils.files import check_different, check_writable, write_atomically

VAL_FRACTION = 0.1  # default of a search, which has to validate
MOST_FLOPS = 1e30
ITEM_SIZES = {"float32": 4, "float64": 8}
MEASURED = 8  # trials from which the rate of training is measured, or one for each worker
MEASURED_SECONDS = 0.25  # for each of them
GUESSED_RATE = {"float32": 2e10, "float64": 2e9}  # multiply-adds a second, before it is measured


@with_arguments_of(Recipe)
def tune(
    data: Data = None,
    *,
    trials: int = 32,
    executor: Executor | None = None,
    workers: int | None = None,
    flops: float | None = None,
    search: Mapping[str, Any] | None = None,
    max_params: int | None = None,
    max_bytes: int | None = None,
    out: str | os.PathLike[str] | None = None,
    log: str | os.PathLike[str] | None = None,
    resume: bool = False,
    progress: OnTuningProgress | None = None,
    backend: str | None = None,
    **options: Unpack[RecipeOptions],
) -> TuneResult:
    """Search for the options that give the lowest validation loss, all with the same compute, and train with them.

    Trial 0 has the options as given, and the defaults of `train` elsewhere. Every other trial draws, from the seed and
    its number, those that are not given. By successive halving, all trials train for a ninth of their steps; the third
    of them with the lowest validation loss goes on to a third, and of these the best third to the end. The best is the
    result. It is the same, bit for bit, for any number of workers, whatever the order in which they finish.

    Args:
        data: see `train`. Workers read files themselves; other data travel with each task.
        trials: number of trials.
        executor: where to train: any `concurrent.futures.Executor`, such as `mpi4py.futures.MPIPoolExecutor()` or
            `get_executor()` of a Dask client. By default processes on this machine. A trial whose worker dies is
            trained a second time.
        workers: number of trials that train at once, each on one thread; by default the number of physical cores, or
            of the executor's workers. An executor decides by itself; `workers` then only serves `time`.
        flops: the compute of a trial that trains to its end, in multiply-adds: see `microgpt.tuning.compute`. A larger
            model, or a larger batch, takes fewer steps. By default that of trial 0, for the `steps` or `epochs` given.
        search: values to try, by option: a list, or a text such as "16,32,64" or "0.001..0.03", which is a range.
            Numbers of a range are drawn log-uniformly. By default n_layer, n_embd, n_head, block_size, batch_size,
            learning_rate, schedule, warmup_steps, weight_decay, init_std and activation are searched; dropout, beta1,
            beta2, eps and max_grad_norm may be. `warmup_steps` may be a part of the steps, such as "5%".
        max_params: the largest number of parameters.
        max_bytes: the most bytes of all parameters: 4 each in float32, 8 in float64.
        out: the checkpoint of the best trial, as `train` would write it with the same options.
        log: a file with one JSON object per line: what is searched, then each trial after each rung.
        resume: continue the search that `log` was begun with, if it exists.
        progress: called with a `TuningProgress` whenever a trial begins, or comes to the end of a rung.
        backend: see `GPT`.
        options: options of `train` that stay as they are, see `Recipe`. `val_fraction` is by default 0.1, and `dtype`
            "float32" where the compiled engine runs. `time` is the duration of the whole search: the rate of training
            is measured first, and `TuneResult.flops` then repeats the search.

    Ctrl-C writes the best trial so far to `out` before `KeyboardInterrupt`. A trial that diverges, or is too large, is
    only a line of the log. `ValueError` or `TypeError` names the argument or file that is wrong, or says why no trial
    has finished. Source: successive halving (Jamieson and Talwalkar, 2016), as in Hyperband.
    """
    for name in options:
        if name not in Recipe.__dataclass_fields__:
            raise TypeError(f"tune() got an unexpected option {name!r}")
    backend = backends.choose(backend)
    given: dict[str, Any] = {
        "val_fraction": VAL_FRACTION,
        "dtype": "float32" if backend == "compiled" else "float64",
        **{name: value for name, value in options.items() if value is not None},
    }
    duration = given.pop("time", None)
    recipe = Recipe(**given)
    given = {name: value for name, value in recipe.options().items() if name in given}  # NumPy's numbers are Python's
    if not recipe.val_fraction:
        raise ValueError("val_fraction must be more than 0: trials are compared by their validation losses")
    if not isinstance(recipe.seed, (int, float, str)):
        raise TypeError(f"seed must be a number or a text for trials that go on, got {recipe.seed!r:.60}")
    budgets = {"steps": recipe.steps, "epochs": recipe.epochs, "flops": flops, "time": duration}
    named = [name for name, value in budgets.items() if value is not None]
    if len(named) > 1:
        raise ValueError(f"only one of steps, epochs, flops and time can be given, got {' and '.join(named)}")
    trials = positive_integer("trials", trials)
    flops = None if flops is None else int(number("flops", flops, minimum=1, maximum=MOST_FLOPS))
    duration = None if duration is None else number("time", duration, above=0)
    most = math.inf if max_params is None else positive_integer("max_params", max_params)
    if max_bytes is not None:
        most = min(most, positive_integer("max_bytes", max_bytes) // ITEM_SIZES[recipe.dtype])
    searched = parse_space({} if search is None else search)
    for name in searched:
        if name in given:
            raise ValueError(f"{name} can be given or searched, but not both")
    if resume and log is None:
        raise ValueError("resume needs log, the file to continue from")
    crew = Workers(executor, workers)
    if duration is not None and crew.count is None:
        raise ValueError("time needs workers, the number of trials that the executor trains at once")
    if out is not None:
        check_writable(out)
    journal = Journal(log)
    if not resume:
        journal.check_ended()
    data = data if data is None or isinstance(data, (str, os.PathLike, Dataset)) else _listed(data)
    corpus = read_corpus(data, recipe.format, recipe.tokenizer)
    check_different({name: path for name, path in (("out", out), ("log", log)) if path is not None}, corpus.files)
    shared = shared_data(data, corpus, recipe)
    space = {name: values for name, values in default_space(corpus).items() if name not in given} | searched
    drawing = Drawing(given, space, corpus.tokenizer.vocab_size, StepCounter(corpus, recipe.long_documents), most)

    earlier = journal.earlier() if resume else None
    with crew:
        if duration is not None and earlier is not None:  # as it was measured when the search began
            flops = int(number("flops of the log", earlier.get("flops"), minimum=1, maximum=MOST_FLOPS))
        elif duration is not None:
            flops = _measured(duration, trials, drawing, crew, shared, backend)
        elif flops is None:
            run = prepare(corpus, backend=backend, **given)
            assert run.steps is not None
            flops = max(1, run.steps) * drawing.counter.multiply_adds(run.model.config, recipe.batch_size)
        header: dict[str, Any] = {
            "version": __version__,
            "data": shared.fingerprint,
            "trials": trials,
            "flops": flops,
            "max_params": None if most == math.inf else most,
            "options": {name: str(value) for name, value in drawing.given.items()},
            "search": {name: str(values) for name, values in space.items()},
        }
        if earlier is not None:
            check_same_search(earlier, header, os.fspath(log))  # type: ignore[arg-type]
        halving = Search(drawing.trials(trials, flops), shared, backend, journal, flops, progress)
        journal.begin(header)
        try:
            best = halving.run(crew)
            content = _content(halving, best, out)
            if out is not None:
                write_atomically(out, content)
            journal.close()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(*_kept(halving, out)) from None
        finally:
            if log is None:
                journal.close()
    model = read_model(content, backend)
    return TuneResult(model, halving.trials, best, flops, _named(data), packaged_name(data))


def _listed(data: Any) -> Any:
    """The data as a list, if they are iterable, since they are read twice; else as they are, to be refused later."""
    return list(data) if isinstance(data, Iterable) and not isinstance(data, (Mapping, Set)) else data


def shared_data(data: Any, corpus: Corpus, recipe: Recipe) -> SharedData:
    """The data for workers: files that they can read by themselves, or all of them."""
    named = _named(data)
    by_name = named is not None and all(map(os.path.isfile, named))
    files = None if data is None else tuple(map(os.path.abspath, named or ()))
    content = None if by_name else pickle.dumps(corpus)
    shared = SharedData(corpus.fingerprint(), files, content, recipe.format, corpus.tokenizer)
    shared.keep(corpus)
    return shared


def _named(data: Any) -> tuple[str, ...] | None:
    """The files of the data as the user named them; None for data in memory."""
    if data is None:
        return ()
    if isinstance(data, (str, os.PathLike)):
        return (os.fspath(data),)
    return tuple(map(os.fspath, data)) if all(isinstance(item, os.PathLike) for item in data) else None


def _measured(duration: float, trials: int, drawing: Drawing, crew: Workers, shared: SharedData, backend: str) -> int:
    """Multiply-adds of a trial, so that a search takes about this long, by the rate of its first trials."""
    assert crew.count is not None
    begin, rungs = time.monotonic(), count_rungs(trials)
    turns = [-(-max(1, trials // ETA**rung) // crew.count) for rung in range(rungs)]  # one trial after the other
    shares = [ETA ** (rung + 1 - rungs) for rung in range(rungs)]  # of a whole trial, up to each rung
    whole = sum(turn * (share - before) for turn, share, before in zip(turns, shares, [0.0, *shares]))
    guess = max(1, int(duration / whole * GUESSED_RATE[drawing.given["dtype"]]))
    drawn = drawing.trials(min(trials, max(MEASURED, crew.count)), guess)
    measured = [trial for trial in drawn if trial.state == "waiting"]
    tasks = [Task(shared, trial.options, backend, 0, trial.steps, None) for trial in measured]
    timings = crew.measure(tasks, min(MEASURED_SECONDS, duration / 10))
    costs = [seconds / (steps * trial.flops_per_step) for trial, (steps, seconds) in zip(measured, timings) if steps]
    if not costs:
        raise ValueError("time cannot be converted to flops: none of the first trials can be trained")
    left = duration - (time.monotonic() - begin)
    flops = left / whole / (sum(costs) / len(costs))
    if flops < 1:
        raise ValueError(f"time must be longer than it takes to measure the rate of training, got {duration:g} s")
    return int(float(f"{flops:.2e}"))  # short enough to be typed


def _content(halving: Search, best: Trial, out: str | os.PathLike[str] | None) -> bytes:
    """The checkpoint of the best trial at its end.

    If a search that was already over is resumed, it may be in `out`; else the trial is trained again.
    """
    content = halving.journal.checkpoint(best.number, halving.rungs - 1)
    if content is not None:
        return content
    if out is not None and os.path.exists(out) and is_checkpoint_of(best, out, halving.data.fingerprint):
        return Path(out).read_bytes()
    outcome = train_trial(Task(halving.data, best.options, halving.backend, 0, best.steps, None))
    assert outcome.checkpoint is not None
    return outcome.checkpoint


def _kept(halving: Search, out: str | os.PathLike[str] | None) -> list[str]:
    """Write the best trial so far to `out`, and say what an interrupted search leaves behind."""
    kept = []
    best = halving.best_so_far()
    if out is not None and best is not None:
        trial, content = best
        write_atomically(out, content)
        steps = f"{trial.completed:,} of {trial.steps:,} steps"
        kept.append(f"{shown_path(out)} is the best so far, trial {trial.number} after {steps}")
    if halving.journal.log is not None:
        kept.append("resume continues the search")
    return ["; ".join(kept)] if kept else []
