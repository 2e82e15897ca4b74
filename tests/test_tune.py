"""`tune`: many runs, of which the best go on."""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import pickle
import queue
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import microgpt
from microgpt import GPTConfig, Trial, TuneResult, TuningProgress, load, train, tune
from microgpt.commands import tune as command
from microgpt.commands._trials import differences, live_table, row
from microgpt.commands.cli import main
from microgpt.data.corpus import read_corpus
from microgpt.engine.backend import choose
from microgpt.training.recipe import Recipe
from microgpt.tuning.compute import ADAM, StepCounter, count_multiply_adds
from microgpt.tuning.drawing import Drawing
from microgpt.tuning.plots import best_models, plot_trials
from microgpt.tuning.search import count_rungs, steps_at
from microgpt.tuning.space import Choices, Range, Share, default_space, parse_space
from microgpt.tuning.trial import SharedData, Task, WorkerError, train_trial
from microgpt.tuning.tune import shared_data
from microgpt.tuning.workers import Workers

from conftest import MpiExec, needs_compiled, needs_processes

NAMES = microgpt.read_documents()[:40]
SEARCH = {"n_embd": [2, 4], "n_head": [1, 2], "batch_size": [1, 2, 3], "learning_rate": "0.001..0.3"}
SMALL: dict[str, Any] = {"n_layer": 1, "block_size": 4, "val_fraction": 0.2}
FEW: dict[str, Any] = {"trials": 9, "flops": 100_000, "search": SEARCH, **SMALL}
OPTIONS = shlex.split(
    "--trials 9 --flops 100000 --search n-embd=2,4 --search n_head=1,2 --search batch_size=1,2,3"
    " --search learning_rate=0.001..0.3 --n-layer 1 --block-size 4 --val-fraction 0.2"
)
HANGS = 120  # seconds after which a test has failed

needs_fork = pytest.mark.skipif(
    sys.platform == "emscripten" or multiprocessing.get_start_method() != "fork",
    reason="workers do not inherit what a test has replaced",
)


class LastFirst(ThreadPoolExecutor):
    """An executor that takes the latest task first."""

    def __init__(self) -> None:
        super().__init__(1)
        self._work_queue = queue.LifoQueue()  # type: ignore[assignment]


class Forbidden(Executor):
    """An executor for a search that has nothing left to train."""

    def submit(self, *arguments: Any, **options: Any) -> Any:
        raise AssertionError


class EndedError(Exception):
    """The end of a search in the middle."""


def bits(result: TuneResult) -> tuple[int, bytes]:
    return result.best.number, result.model.engine.parameters.tobytes()


def lines(log: Path) -> list[str]:
    """The lines of a log, sorted and without seconds."""
    entries = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    return sorted(json.dumps({name: value for name, value in entry.items() if name != "seconds"}) for entry in entries)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[TuneResult, list[str]]:
    """A search that trains one trial after the other, and its log."""
    log = tmp_path_factory.mktemp("whole") / "log"
    with ThreadPoolExecutor(1) as executor:
        result = tune(NAMES, executor=executor, log=log, **FEW)
    return result, lines(log)


def new_drawing(**given: Any) -> Drawing:
    corpus = read_corpus(NAMES)
    space = {name: values for name, values in default_space(corpus).items() if name not in given}
    return Drawing(given, space, corpus.tokenizer.vocab_size, StepCounter(corpus, "cut"), math.inf)


# What is found


def test_the_model_of_the_best_trial_is_that_of_train_with_its_options(tmp_path: Path, backend: str) -> None:
    out = tmp_path / "model"
    with ThreadPoolExecutor(1) as executor:
        options = {"executor": executor, "backend": backend, "out": out, "n_embd": 4, "n_head": 1, **SMALL}
        result = tune(NAMES, trials=3, steps=5, search={"batch_size": [1, 2]}, **options)
    again = train(NAMES, backend=backend, **result.options)
    assert result.model.engine.parameters.tolist() == again.model.engine.parameters.tolist()
    assert result.model.backend == backend
    assert result.model.dtype == ("float32" if backend == "compiled" else "float64")
    assert result.best.validation_loss == again.validation_losses[-1][1]
    assert load(out, backend=backend).engine.parameters.tolist() == again.model.engine.parameters.tolist()
    assert result.model.generate(3) == again.model.generate(3)
    resumed = train(NAMES, backend=backend, out=out, resume=True, **result.options)  # `out` is a run that is over
    assert resumed.losses.tolist() == again.losses.tolist()


def test_the_best_trial_has_the_lowest_validation_loss_of_those_that_finish(whole) -> None:
    result, _ = whole
    finished = [trial for trial in result.trials if trial.state == "finished"]
    assert result.best is min(finished, key=lambda trial: trial.validation_loss)
    assert result.best.completed == result.best.steps == result.options["steps"]


def test_the_best_third_goes_on_after_each_rung() -> None:
    with ThreadPoolExecutor(1) as executor:
        result = tune(NAMES, executor=executor, **FEW | {"trials": 12})
    for rung, count in enumerate((12, 4, 1)):
        there = [trial for trial in result.trials if len(trial.validation_losses) > rung]
        assert len(there) == count
        for trial in there:
            assert trial.validation_losses[rung][0] == max(1, trial.steps // 3 ** (2 - rung))
        losses = sorted((trial.validation_losses[rung][1], trial.number) for trial in there)
        going_on = {trial.number for trial in result.trials if len(trial.validation_losses) > rung + 1}
        assert going_on == {number for _, number in losses[: len(going_on)]}
    assert [trial.state for trial in result.trials].count("out") == 11


@pytest.mark.parametrize(("trials", "rungs"), [(1, 1), (2, 1), (3, 2), (8, 2), (9, 3), (26, 3), (27, 3), (500, 3)])
def test_there_are_as_many_rungs_as_leave_a_trial_to_the_last(trials: int, rungs: int) -> None:
    assert count_rungs(trials) == rungs
    assert [steps_at(rung, rungs, 90) for rung in range(rungs)] == [90 // 3 ** (rungs - 1 - i) for i in range(rungs)]
    assert steps_at(0, rungs, 1) == 1


def test_one_trial_is_train() -> None:
    with ThreadPoolExecutor(1) as executor:
        result = tune(NAMES, trials=1, steps=5, n_embd=4, n_head=2, executor=executor, dtype="float64")
    again = train(NAMES, steps=5, n_embd=4, n_head=2, val_fraction=0.1)
    assert result.model.engine.parameters.tolist() == again.model.engine.parameters.tolist()
    assert result.options["steps"] == 5


# The same, whoever trains


@pytest.mark.parametrize("new_executor", [lambda: ThreadPoolExecutor(3), LastFirst])
def test_any_executor_finds_the_same(whole, tmp_path: Path, new_executor) -> None:
    log = tmp_path / "log"
    with new_executor() as executor:
        result = tune(NAMES, executor=executor, log=log, **FEW)
    assert bits(result) == bits(whole[0])
    assert lines(log) == whole[1]


@needs_processes
@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_processes_finds_the_same(whole, tmp_path: Path, workers: int) -> None:
    file, log = tmp_path / "names.txt", tmp_path / "log"
    file.write_text("\n".join(NAMES))
    result = tune(file, workers=workers, log=log, **FEW)
    assert bits(result) == bits(whole[0])
    assert lines(log) == whole[1]
    assert multiprocessing.active_children() == []
    assert os.listdir(tmp_path) == ["names.txt", "log"] or sorted(os.listdir(tmp_path)) == ["log", "names.txt"]


def test_a_trial_depends_on_the_seed_and_its_number_only() -> None:
    few, many = new_drawing(seed=1).trials(5, 10**8), new_drawing(seed=1).trials(9, 10**8)
    assert many[:5] == few
    others = new_drawing(seed=2).trials(5, 10**8)
    assert all(one.options | {"seed": 2} != other.options for one, other in zip(few[1:], others[1:]))
    assert few[0].options == {"seed": 1, "steps": others[0].steps}


def test_what_is_given_stays_as_it_is() -> None:
    for trial in new_drawing(n_embd=12, n_head=3, schedule="constant", seed="s").trials(20, 10**8):
        assert trial.state == "waiting"
        assert {"n_embd": 12, "n_head": 3, "schedule": "constant", "seed": "s"}.items() <= trial.options.items()


def test_all_that_is_searched_is_drawn() -> None:
    space = default_space(read_corpus(NAMES))
    drawn = [trial.options for trial in new_drawing().trials(400, 10**12)[1:]]
    searched = "n_layer n_embd n_head block_size batch_size learning_rate schedule warmup_steps weight_decay init_std"
    assert list(space) == [*searched.split(), "activation"]
    for name, values in space.items():
        found = {options[name] for options in drawn}
        if name == "warmup_steps":
            assert {0, 2, 5} == {round(100 * options[name] / options["steps"]) for options in drawn}
        elif isinstance(values, Choices):
            assert found == set(values.values)
        else:
            assert values.low <= min(found) < 1.1 * values.low
            assert values.high >= max(found) > values.high / 1.1
            low = [options for options in drawn if options[name] < math.sqrt(values.low * values.high)]
            assert len(low) == pytest.approx(200, abs=40)


@pytest.mark.parametrize(
    ("lengths", "contexts"),
    [([3] * 9, (8,)), ([7, 8] * 9, (16,)), ([5] * 30 + [40], (8, 64)), ([9, 9000], (256,))],
)
def test_contexts_hold_all_documents_and_nine_of_ten(lengths: list[int], contexts: tuple[int, ...]) -> None:
    assert default_space(read_corpus(["a" * length for length in lengths]))["block_size"].values == contexts
    assert default_space(read_corpus(["ab"], "text"))["block_size"].values == (32, 64, 128)


# The same compute for each


@pytest.mark.parametrize("long_documents", ["cut", "split"])
@pytest.mark.parametrize("block_size", [3, 5, 50])
def test_a_step_is_counted_as_the_mean_over_all_documents(long_documents: str, block_size: int) -> None:
    config = GPTConfig(vocab_size=27, n_layer=2, n_embd=6, n_head=2, block_size=block_size)
    lengths = []
    for name in NAMES:
        positions = len(name) + 1
        pieces = [block_size] * (positions // block_size) + [positions % block_size] * (positions % block_size > 0)
        lengths += pieces if long_documents == "split" else pieces[:1]
    exact = 10 * count_multiply_adds(config, np.array(lengths)) / len(lengths) + ADAM * config.num_params
    counted = StepCounter(read_corpus(NAMES), long_documents).multiply_adds(config, 10)
    assert abs(counted - exact) <= 0.5


def test_multiply_adds_are_those_of_products_and_attention() -> None:
    config = GPTConfig(vocab_size=7, n_layer=2, n_embd=6, n_head=3, block_size=5)
    weights = 2 * 12 * 6 * 6 + 7 * 6
    pairs = sum(t + 1 for t in range(4)) + 1
    assert count_multiply_adds(config, np.array([4, 1])) == 3 * (5 * weights + 2 * pairs * 2 * 6)
    window = StepCounter(read_corpus(["abcdefghij"], "text"), "cut").multiply_adds(config, 2)
    assert window == 2 * count_multiply_adds(config, np.array([5])) + ADAM * config.num_params


def test_trials_take_as_many_steps_as_the_compute_allows() -> None:
    for trial in new_drawing().trials(30, 10**9):
        assert 0 <= 10**9 - trial.steps * trial.flops_per_step < trial.flops_per_step
    small, large = (
        new_drawing(n_embd=n_embd, batch_size=64, n_layer=4).trials(1, 10**10)[0].steps for n_embd in (64, 128)
    )
    assert small / large == pytest.approx(4, rel=0.1)  # four times as large, a quarter of the steps
    one, four = (new_drawing(n_embd=64, batch_size=batch_size).trials(1, 10**10)[0] for batch_size in (16, 64))
    assert one.steps / four.steps == pytest.approx(4, rel=0.2)


def test_the_compute_is_by_default_that_of_train(monkeypatch) -> None:
    monkeypatch.setattr("microgpt.training.recipe.DEFAULT_STEPS", 7)  # 1000 would take long
    with ThreadPoolExecutor(1) as executor:
        options = SMALL | {"n_embd": 4, "n_head": 1, "executor": executor, "trials": 2}
        by_steps = tune(NAMES, steps=12, **options)
        by_epochs = tune(NAMES, epochs=0.5, batch_size=4, **options)
        by_default = tune(NAMES, **options)
    assert by_steps.trials[0].steps == 12
    assert by_steps.flops == 12 * by_steps.trials[0].flops_per_step
    assert by_epochs.trials[0].steps == 4
    assert by_default.trials[0].steps == 7


def test_no_trial_is_larger_than_allowed() -> None:
    with ThreadPoolExecutor(1) as executor:
        result = tune(NAMES, executor=executor, max_params=1000, **FEW | {"search": SEARCH | {"n_embd": [2, 4, 64]}})
        assert all(trial.params <= 1000 for trial in result.trials[1:])
        assert 64 not in [trial.options["n_embd"] for trial in result.trials[1:]]
        first = result.trials[0]
        assert (first.state, first.error) == ("too large", f"{first.params:,} parameters, and at most 1,000")
        assert first.params > 1000
        dtypes = [("float64", 8), ("float32", 4)] if choose() == "compiled" else [("float64", 8)]
        for dtype, size in dtypes:
            bound = tune(NAMES, executor=executor, max_bytes=1000 * size, dtype=dtype, **FEW)
            assert max(trial.params for trial in bound.trials[1:]) <= 1000
            assert bound.trials[0].state == "too large"


def test_trials_with_few_steps_are_avoided() -> None:
    assert all(trial.steps >= 1000 for trial in new_drawing().trials(50, 10**10))
    large = {"n_layer": 3, "n_embd": 64, "n_head": 2, "block_size": 8, "batch_size": 16}
    _, only = new_drawing(**large).trials(2, 10**9)
    assert 0 < only.steps < 1000  # nothing that is searched could change it


# Trials that fail


def test_a_trial_that_diverges_is_a_line_in_the_log(tmp_path: Path, backend: str) -> None:
    log = tmp_path / "log"
    search = {"learning_rate": [0.01, 1e300 if backend == "reference" else 1e30]}
    options = SMALL | {"n_embd": 4, "n_head": 1, "activation": "relu", "batch_size": 1, "seed": 5}
    with ThreadPoolExecutor(1) as executor:
        result = tune(NAMES, trials=6, steps=9, search=search, executor=executor, log=log, backend=backend, **options)
        diverged = [trial for trial in result.trials if trial.state == "diverged"]
        assert diverged
        assert all(trial.options["learning_rate"] > 1 for trial in diverged)
        entries = [json.loads(line) for line in log.read_text().splitlines()[1:]]
        for trial in diverged:
            (entry,) = [entry for entry in entries if entry["trial"] == trial.number]
            assert (entry["state"], entry["validation_loss"], entry["error"]) == ("diverged", None, trial.error)
            assert trial.error.endswith("try a smaller learning_rate")
        wild = options | {"learning_rate": search["learning_rate"][1], "backend": backend}
        with pytest.raises(ValueError, match=r"^no trial has finished; . of 6, such as trial .: the .* learning_rate$"):
            tune(NAMES, trials=6, steps=9, executor=executor, **wild)


def test_when_all_that_go_on_fail_the_next_best_do(tmp_path: Path, monkeypatch) -> None:
    with ThreadPoolExecutor(1) as executor:
        usual = tune(NAMES, executor=executor, **FEW)
        after_first = sorted(usual.trials, key=lambda trial: (trial.validation_losses[0][1], trial.number))
        doomed = {json.dumps(trial.options) for trial in after_first[:3]}

        def fail(self, progress=None, until=None):
            if until > self.steps // 9 and any(
                all(self.recipe.options()[name] == value for name, value in json.loads(options).items())
                for options in doomed
            ):
                raise microgpt.training.run.DivergedError("as planned")
            return original(self, progress, until)

        original = microgpt.training.run.Run.train
        monkeypatch.setattr(microgpt.training.run.Run, "train", fail)
        result = tune(NAMES, executor=executor, **FEW)
    assert [trial.error for trial in result.trials].count("as planned") >= 3
    survivor = next(trial for trial in after_first if trial.number == result.best.number)
    assert json.dumps(survivor.options) not in doomed
    assert result.best.state == "finished"


@needs_processes
def test_a_worker_that_dies_costs_nothing_but_time(whole, tmp_path: Path) -> None:
    log, killed = tmp_path / "log", []

    def kill(progress: TuningProgress) -> None:
        children = multiprocessing.active_children()
        if children and len(killed) < 2 and sum(trial.state == "training" for trial in progress.trials) == 2:
            os.kill(children[-1].pid, signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
            killed.append(children[-1].pid)

    result = tune(NAMES, workers=2, log=log, progress=kill, **FEW)
    assert killed
    assert bits(result) == bits(whole[0])
    assert lines(log) == whole[1]


@needs_fork
def test_a_trial_that_kills_its_worker_twice_is_out(whole, tmp_path: Path, monkeypatch) -> None:
    log, guilty = tmp_path / "log", whole[0].trials[4]
    prepare = microgpt.tuning.trial.prepare

    def prepare_or_die(corpus, **options):
        if all(options.get(name) == value for name, value in guilty.options.items()):
            os._exit(1)
        return prepare(corpus, **options)

    monkeypatch.setattr("microgpt.tuning.trial.prepare", prepare_or_die)
    result = tune(NAMES, workers=2, log=log, **FEW)
    assert [trial.number for trial in result.trials if trial.state == "failed"] == [4]
    assert result.trials[4].error == "its worker died, 2 times"
    found = {(entry["trial"], entry["rung"], entry["state"]) for entry in map(json.loads, lines(log)[1:])}
    assert {(trial, "failed" if trial == 4 else "trained") for trial in range(9)} == {
        (trial, state) for trial, rung, state in found if rung == 0
    }
    assert multiprocessing.active_children() == []


def test_a_trial_whose_call_fails_is_tried_again(whole) -> None:
    class Unreliable(ThreadPoolExecutor):
        """Loses the first attempt at each trial, as a cluster may."""

        def submit(self, function, task, attempt):
            if attempt == 1:
                return super().submit(lambda: 1 / 0)
            return super().submit(function, task, attempt)

    with Unreliable(2) as executor:
        assert bits(tune(NAMES, executor=executor, **FEW)) == bits(whole[0])

    class Broken(ThreadPoolExecutor):
        def submit(self, function, task, attempt):
            return super().submit(lambda: 1 / 0)

    why = "no trial has finished; 9 of 9, such as trial 0: ZeroDivisionError: division by zero, 2 times"
    with Broken(2) as executor, pytest.raises(ValueError, match=f"^{re.escape(why)}$"):
        tune(NAMES, executor=executor, **FEW)


# Workers and their data


def task_of(data: SharedData, **changes: Any) -> Task:
    options = {"steps": 4, "val_fraction": 0.2, "n_embd": 4, "n_head": 1}
    return Task(data, options, **{"backend": choose(), "begin": 0, "until": 4, "checkpoint": None, **changes})


@pytest.fixture
def other_process(monkeypatch):
    """Make this process forget the data, as if it were another."""
    return lambda: monkeypatch.setattr("microgpt.tuning.trial._corpora", {})


def test_workers_read_files_and_get_other_data(tmp_path: Path, monkeypatch, other_process) -> None:
    monkeypatch.chdir(tmp_path)
    Path("names.txt").write_text("\n".join(NAMES))
    outcomes = []
    for data, travels in ((NAMES, True), ("names.txt", False), ([Path("names.txt")], False)):
        corpus = read_corpus(data)
        shared = shared_data(data, corpus, Recipe())
        assert (shared.corpus is not None) == travels
        other_process()
        if not travels:
            monkeypatch.chdir("/")  # a worker may be elsewhere
        outcomes.append(train_trial(pickle.loads(pickle.dumps(task_of(shared)))))
        monkeypatch.chdir(tmp_path)
        assert outcomes[-1].state == "trained"
    assert len({outcome.validation_loss for outcome in outcomes}) == 1
    assert shared_data(None, read_corpus(), Recipe()).files is None
    assert shared_data(None, read_corpus(), Recipe()).corpus is None


def test_workers_that_cannot_take_part_say_why(tmp_path: Path, other_process, monkeypatch) -> None:
    file = tmp_path / "names.txt"
    file.write_text("\n".join(NAMES))
    shared = shared_data(file, read_corpus(file), Recipe())
    file.write_text("\n".join(NAMES[::-1]))
    assert train_trial(task_of(shared)).state == "trained"  # it has read the data before
    other_process()
    with pytest.raises(WorkerError, match=r"^data must be the same for all workers, but .*names.txt on .* differs$"):
        train_trial(task_of(shared))
    file.unlink()
    with pytest.raises(WorkerError, match=r"^a worker on .* cannot read .*names.txt: No such file or directory$"):
        train_trial(task_of(shared))
    with pytest.raises(WorkerError, match=r"^workers must have microgpt 9, but .* has version "):
        train_trial(task_of(shared, version="9"))
    monkeypatch.setattr("microgpt.engine.backend._engine", None)
    with pytest.raises(WorkerError, match=r"^a worker on .* lacks the backend of the search: backend='compiled', but"):
        train_trial(task_of(shared, backend="compiled"))


def test_an_error_of_a_worker_ends_the_search(tmp_path: Path, monkeypatch) -> None:
    def fail(*arguments: Any) -> None:
        raise WorkerError("a worker on mars cannot read names.txt: No such file or directory")

    monkeypatch.setattr("microgpt.tuning.workers.train_trial", fail)
    with ThreadPoolExecutor(2) as executor, pytest.raises(WorkerError, match=r"^a worker on mars cannot read"):
        tune(NAMES, executor=executor, **FEW)


def test_a_continuous_text_is_searched_as_well(tmp_path: Path) -> None:
    text = "\n".join(NAMES)
    file = tmp_path / "text.txt"
    file.write_text(text)
    options = {"format": "text", "n_layer": 1, "n_embd": 4, "n_head": 1, "val_fraction": 0.2}
    search = {"block_size": [60], "batch_size": [1, 2]}
    with ThreadPoolExecutor(1) as executor:
        result = tune(file, trials=4, steps=20, search=search, executor=executor, **options)
    again = train(file, **result.options)
    assert result.model.engine.parameters.tolist() == again.model.engine.parameters.tolist()
    too_long = [trial for trial in result.trials if trial.options.get("block_size") == 60]
    assert len(too_long) == 3
    assert all(trial.error.startswith("val_fraction must hold out at least") for trial in too_long)


# Interrupted and resumed


def interrupted(after: int, error: BaseException):
    """A progress callback that ends the search once so many trials have come to the end of a rung."""
    count = 0

    def progress(progress: TuningProgress) -> None:
        nonlocal count
        count += progress.trial is not None
        if count == after:
            raise error

    return progress


@pytest.mark.parametrize("after", [1, 8, 9, 10, 12, 13])
def test_a_search_resumes_wherever_it_was_interrupted(whole, tmp_path: Path, after: int) -> None:
    log, out = tmp_path / "log", tmp_path / "model"
    with ThreadPoolExecutor(1) as executor:
        with pytest.raises(EndedError):
            tune(NAMES, executor=executor, log=log, out=out, progress=interrupted(after, EndedError()), **FEW)
        assert not out.exists()
        with log.open("a") as file:
            file.write('{"trial": 3, "ru')  # killed while it wrote
        result = tune(NAMES, executor=executor, log=log, out=out, resume=True, **FEW)
    assert bits(result) == bits(whole[0])
    assert lines(log) == whole[1]
    assert sorted(os.listdir(tmp_path)) == ["log", "model"]
    assert load(out).engine.parameters.tobytes() == bits(result)[1]


@pytest.mark.parametrize("after", [9, 13])
def test_a_search_resumes_without_its_checkpoints(whole, tmp_path: Path, after: int) -> None:
    log = tmp_path / "log"
    with ThreadPoolExecutor(1) as executor:
        with pytest.raises(EndedError):
            tune(NAMES, executor=executor, log=log, progress=interrupted(after, EndedError()), **FEW)
        shutil.rmtree(f"{log}.checkpoints")
        assert bits(tune(NAMES, executor=executor, log=log, resume=True, **FEW)) == bits(whole[0])
    assert lines(log) == whole[1]


def test_a_search_that_is_over_trains_nothing_when_it_is_resumed(whole, tmp_path: Path) -> None:
    log, out = tmp_path / "log", tmp_path / "model"
    with ThreadPoolExecutor(1) as executor:
        tune(NAMES, executor=executor, log=log, out=out, **FEW)
    result = tune(NAMES, executor=Forbidden(), log=log, out=out, resume=True, **FEW)
    assert bits(result) == bits(whole[0])
    out.write_bytes(b"something else")
    assert bits(tune(NAMES, executor=Forbidden(), log=log, out=out, resume=True, **FEW)) == bits(whole[0])
    assert load(out).engine.parameters.tobytes() == bits(whole[0])[1]


def test_only_the_same_search_is_resumed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with ThreadPoolExecutor(1) as executor:
        options = FEW | {"executor": executor, "log": log, "resume": True}
        tune(NAMES, **options)
        for changes, message in (
            ({"trials": 8}, "trials is 8, but .*log was begun with 9"),
            ({"flops": 110_000}, "flops is 110000, but .*log was begun with 100000"),
            ({"data": NAMES[1:]}, "data is '[0-9a-f]{32}', but .*log was begun with '"),
            ({"max_params": 9999}, "max_params is 9999, but .*log was begun with None"),
            ({"seed": 1}, "seed is '1', but .*log was begun with None"),
            ({"search": SEARCH | {"n_embd": [2]}}, "search of n_embd is '2', but .*log was begun with '2, 4"),
        ):
            with pytest.raises(ValueError, match=message):
                tune(**{"data": NAMES, **options, **changes})
        log.write_text('{"step": 1, "loss": 2.0}\n')
        with pytest.raises(ValueError, match=r"log, line 1, is not of a log of microgpt tune$"):
            tune(NAMES, **options)
        log.write_text("")
        tune(NAMES, **options)  # killed before its first line


@needs_processes
def test_ctrl_c_keeps_the_best_so_far(tmp_path: Path, capsys) -> None:
    log, out, found = tmp_path / "log", tmp_path / "model", []
    stop = interrupted(10, KeyboardInterrupt())

    def progress(progress: TuningProgress) -> None:
        found[:] = [trial for trial in progress.trials if trial.validation_losses]
        stop(progress)

    says = rf"^{re.escape(str(out))} is the best so far, trial \d+ after \d+ of \d+ steps; resume continues the search$"
    with pytest.raises(KeyboardInterrupt, match=says):
        tune(NAMES, workers=2, log=log, out=out, progress=progress, **FEW)
    assert multiprocessing.active_children() == []
    best = min(found, key=lambda trial: (trial.validation_loss, trial.number))
    model = load(out)
    assert len(model.history.losses) == best.completed
    assert Recipe(**best.options).options().items() >= {"n_embd": model.config.n_embd}.items()
    with pytest.raises(KeyboardInterrupt) as error:
        tune(NAMES, workers=2, progress=interrupted(10, KeyboardInterrupt()), **FEW)
    assert error.value.args == ()


@needs_processes
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no signals")
@pytest.mark.parametrize("number", ["SIGKILL", "SIGINT"])
def test_a_killed_search_resumes_and_leaves_no_workers(whole, tmp_path: Path, number: str) -> None:
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    arguments = [
        sys.executable,
        "-m",
        "microgpt",
        "tune",
        "names.txt",
        *OPTIONS,
        "--workers=2",
        "--log=log",
        "--out=out",
    ]
    process = subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "log").exists() or len((tmp_path / "log").read_text().splitlines()) < 4:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(getattr(signal, number))
    _, said = process.communicate(timeout=HANGS)  # workers hold the pipes until they end
    if number == "SIGINT":
        assert process.returncode == 130
        assert re.fullmatch(r"stopped: out is the best so far, .* steps; resume continues the search\n", said)
        assert load(tmp_path / "out").history is not None
    done = subprocess.run([*arguments, "--resume"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert lines(tmp_path / "log") == whole[1]
    assert load(tmp_path / "out").engine.parameters.tobytes() == bits(whole[0])[1]
    assert sorted(os.listdir(tmp_path)) == ["log", "names.txt", "out"]


# Arguments


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"trials": 0}, ValueError, "trials must be at least 1, got 0"),
        ({"flops": 0.5}, ValueError, r"flops must be at least 1 and at most 1e\+30, got 0.5"),
        ({"time": 0}, ValueError, "time must be more than 0, got 0"),
        ({"steps": 5, "time": 3}, ValueError, "only one of steps, epochs, flops and time can be given, got steps and"),
        ({"max_params": 0}, ValueError, "max_params must be at least 1, got 0"),
        ({"max_bytes": 1.5}, TypeError, "max_bytes must be a whole number, got 1.5"),
        ({"val_fraction": 0}, ValueError, "val_fraction must be more than 0: trials are compared by their validation"),
        ({"seed": b"x"}, TypeError, "seed must be a number or a text for trials that go on, got b'x'"),
        ({"n_embd": 6}, ValueError, "n_embd must be a multiple of n_head, got n_embd=6 and n_head=4"),
        ({"colour": 1}, TypeError, r"tune\(\) got an unexpected option 'colour'"),
        ({"search": {"colour": [1]}}, ValueError, "search must name one of n_layer, .*, got 'colour'"),
        ({"search": {"n_embd": "a,b"}}, ValueError, "search of n_embd must be values such as 1,2,4 or a range such as"),
        ({"search": {"n_embd": []}}, ValueError, r"search of n_embd must be values such as .*, got \[\]"),
        ({"search": {"n_embd": 3}}, TypeError, "search of n_embd must be values such as .*, got 3"),
        ({"search": {"n_embd": [4, 0]}}, ValueError, "search of n_embd: n_embd must be at least 1, got 0"),
        ({"search": {"schedule": "linear,steep"}}, ValueError, "search of schedule: schedule must be 'linear' or"),
        ({"search": {"learning_rate": "0.1..0.01"}}, ValueError, "search of learning_rate must be values such as"),
        ({"search": {"schedule": "a..b"}}, ValueError, "search of schedule must be values such as"),
        ({"search": ["n_embd"]}, TypeError, "search must be a dict of values by option, got"),
        ({"search": {"n_embd": [4]}, "n_embd": 4}, ValueError, "n_embd can be given or searched, but not both"),
        ({"resume": True}, ValueError, "resume needs log, the file to continue from"),
        ({"executor": 3}, TypeError, "executor must be a concurrent.futures.Executor, got 3"),
        (
            {"executor": Forbidden(), "time": 1},
            ValueError,
            "time needs workers, the number of trials that the executor",
        ),
        ({"workers": 0}, ValueError, "workers must be at least 1, got 0"),
        ({"log": "nowhere/log"}, ValueError, "cannot write nowhere/log: No such file or directory"),
        ({"out": "nowhere/out"}, ValueError, "cannot write nowhere/out: No such file or directory"),
        ({"data": "nowhere.txt"}, ValueError, "cannot read nowhere.txt: No such file or directory"),
        ({"data": {"a", "b"}}, TypeError, "data must have an order"),
        ({"out": "same", "log": "same"}, ValueError, "out and log must be different files, got same for both"),
    ],
)
def test_bad_arguments_are_named(tmp_path: Path, monkeypatch, options: dict[str, Any], error, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=f"^{message}"):
        tune(**{"data": NAMES, "trials": 2, **options})
    assert os.listdir(tmp_path) == []


def test_values_to_search_are_lists_or_ranges() -> None:
    space = parse_space(
        {
            "n_embd": "8, 16",
            "n_layer": "1..4",
            "learning_rate": "1e-3..0.1",
            "weight_decay": "0..0.1",
            "warmup_steps": "0,10,5%",
            "init_std": "scaled,0.02",
            "batch_size": np.array([1, 2]),
            "activation": ("relu",),
        }
    )
    assert space["n_embd"] == Choices((8, 16))
    assert space["n_layer"] == Range(1, 4, whole=True)
    assert space["warmup_steps"] == Choices((0, 10, Share(5)))
    assert space["init_std"] == Choices(("scaled", 0.02))
    assert space["batch_size"] == Choices((1, 2))
    places = np.linspace(0, 1, 200, endpoint=False).tolist()
    assert [space["n_layer"].at(place) for place in (0, 0.9999)] == [1, 4]
    assert {space["n_layer"].at(place) for place in places} == {1, 2, 3, 4}
    assert space["learning_rate"].at(0.5) == 0.01
    assert space["weight_decay"].at(0.5) == 0.05
    assert space["weight_decay"].at(0) == 0


def test_help_shows_every_option() -> None:
    import pydoc

    text = pydoc.render_doc(tune, renderer=pydoc.plaintext)
    for option in ("trials", "executor", "flops", "search", "max_params", "n_embd", "learning_rate", "seed"):
        assert f"{option}: " in text


# Shown


def test_the_result_shows_itself_and_can_be_pickled(whole) -> None:
    result, _ = whole
    html = result._repr_html_()
    assert f"Options of trial {result.best.number}" in html
    assert f"{result.best.validation_loss:.4f} nats after {result.best.steps:,} of" in html
    assert html.count("trial ") >= len(result.trials)
    assert bits(pickle.loads(pickle.dumps(result))) == bits(result)
    assert result.command.startswith("microgpt train FILE --val-fraction 0.2 --steps ")


def test_the_command_line_finds_the_same_and_prints_how_to_repeat_it(whole, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("all names.txt").write_text("\n".join(NAMES))
    workers = [] if sys.platform == "emscripten" else ["--workers=2"]
    assert main(["tune", "all names.txt", *OPTIONS, *workers, "--out=tuned", "--log=log"]) == 0
    shown, errors = capsys.readouterr()
    assert errors == ""
    assert lines(Path("log")) == whole[1]
    printed = shown.splitlines()
    assert re.fullmatch(r"search  9 trials, 2 at a time, 1e\+05 multiply-adds each, in 3 rungs", printed[0])
    assert len(printed) == 2 + 9 + 3 + 1 + 3
    assert printed[-2] == "saved   tuned"
    how, command_line = printed[-1].split("  ", 1)
    assert how == "repeat"
    _, *arguments = shlex.split(command_line)
    assert arguments[:2] == ["train", "all names.txt"]
    assert main([*arguments, "--out=trained"]) == 0
    assert load("tuned").engine.parameters.tobytes() == load("trained").engine.parameters.tobytes()
    assert bits(whole[0])[1] == load("tuned").engine.parameters.tobytes()


@needs_processes
@needs_compiled
def test_time_becomes_flops_that_repeat_the_search(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    # However long it takes here to measure the rate, time is left to search.
    monkeypatch.setattr(sys.modules["microgpt.tuning.tune"], "time", SimpleNamespace(monotonic=lambda: 0.0))
    options = ["--trials=3", "--n-layer=1", "--search=n_embd=4,8", "--workers=2"]
    assert main(["tune", *options, "--time=1s", "--log=timed"]) == 0
    printed = capsys.readouterr().out.splitlines()
    flops = re.fullmatch(r"        --flops (\S+) in place of --time repeats it exactly", printed[1])[1]
    assert main(["tune", *options, f"--flops={flops}", "--log=counted"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == printed[-1]
    assert lines(Path("timed")) == lines(Path("counted"))
    assert main(["tune", *options, "--time=2s", "--log=timed", "--resume"]) == 0  # as it was measured before
    assert capsys.readouterr().out.splitlines()[-1] == printed[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--search=n_embd"], "search must be NAME=VALUES, such as n_embd=16,32,64, got 'n_embd'"),
        (["--search=n_embd=1", "--search=n-embd=2"], "search of n_embd must be given once, got '1' and '2'"),
        (["--plot=trials.gif"], "a plot must end in .png, .svg or .pdf, got trials.gif"),
        (["--plot=log.svg", "--log=log.svg"], "log and plot must be different files, got log.svg for both"),
        (["--dask=tcp://x:1", "--workers=2"], "workers is for processes on this machine: a Dask cluster, or mpiexec,"),
        (["--trials=0"], "trials must be at least 1, got 0"),
    ],
)
def test_a_wrong_command_line_is_one_line(tmp_path, monkeypatch, capsys, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["tune", *arguments]) == 2
    shown, errors = capsys.readouterr()
    assert shown == ""
    assert errors.startswith(f"microgpt: error: {message}")
    assert errors.count("\n") == 1


def test_without_an_extra_the_error_names_it(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(["tune", "--dask=tcp://x:1"]) == 2
    assert 'distributed is not installed: pip install "microgpt-fast[dask]"' in capsys.readouterr().err


def new_trials() -> list[Trial]:
    trials = [Trial(i, {"steps": 90, "n_embd": 8 * (i + 1)}, 100 * (i + 1), 1000) for i in range(4)]
    trials[0].validation_losses = [(10, 2.5)]
    trials[1].validation_losses = [(10, 2.4), (30, 2.3), (90, 2.2)]
    trials[2].state, trials[2].error = "diverged", "the loss is nan at step 3"
    trials[3].validation_losses = [(10, 2.6)]
    return trials


def test_a_row_has_what_differs_from_trial_0() -> None:
    trials = new_trials()
    assert differences(trials[0], trials[0]) == "(as given)"
    assert differences(trials[1], trials[0]) == "n_embd 16"
    assert differences(Trial(5, {"steps": 9, "n_layer": 1, "n_head": 2}, 1, 1), trials[0]) == "n_head 2"
    assert re.fullmatch(r" +1 +2\.2000 +200 +90/90 +waiting +n_embd 16", row(trials[1], trials[0]))
    assert re.fullmatch(r" +2 +300 +0/90 +diverged +the loss is nan at step 3", row(trials[2], trials[0]))


def test_a_terminal_shows_a_table_that_vanishes(monkeypatch) -> None:
    class Terminal:
        text = ""

        def write(self, text: str) -> None:
            self.text += text

        def flush(self) -> None:
            pass

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((60, 7)))
    with live_table() as watch:
        watch(TuningProgress(new_trials(), 1, 3, 90_000, 2))
        table = terminal.text.split("\n")
        assert all(len(line) < 60 for line in table)
        assert [line.split()[0] for line in table[:4]] == ["trial", "1", "0", "3"]  # best first; three fit
        assert table[4].startswith("rung 1 of 3: 0 training, 3 waiting, ")
        watch(TuningProgress(new_trials(), 1, 3, 90_000, 2, new_trials()[0]))  # too soon to be seen
        assert terminal.text.count("\n") == 5
    assert terminal.text.endswith("\x1b[5F\x1b[J")


def test_plots_show_every_trial_and_the_front(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    trials = new_trials()
    assert best_models(trials[:2] + trials[3:]) == [trials[0], trials[1]]
    for name in ("one.svg", "two.svg", "one.png"):
        plot_trials(trials, tmp_path / name)
    svg = (tmp_path / "one.svg").read_text()
    assert svg == (tmp_path / "two.svg").read_text()
    assert {"multiply-adds", "parameters", "trial 1", "front of best models"} <= set(
        re.findall(r"<text[^>]*>([^<]*)<", svg)
    )
    plot_trials([], tmp_path / "none.svg")
    with pytest.raises(ValueError, match="must end in"):
        plot_trials(trials, tmp_path / "one.gif")


@needs_processes
def test_the_command_plots_its_trials(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    Path("names.txt").write_text("\n".join(NAMES))
    assert main(["tune", "names.txt", *OPTIONS, "--plot=trials.svg"]) == 0
    assert "multiply-adds" in Path("trials.svg").read_text()


# Several machines, as processes on this one


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONWARNINGS": "ignore", "OMPI_MCA_rmaps_base_oversubscribe": "1"}


@pytest.mark.skipif(sys.platform == "emscripten", reason="WebAssembly has no processes")
def test_mpi_finds_the_same(whole, mpiexec: MpiExec, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    arguments = ["-m", "mpi4py.futures", "-m", "microgpt", "tune", "names.txt", *OPTIONS, "--log=log", "--out=out"]
    done = mpiexec(3, *arguments, cwd=tmp_path, env=environment())
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("search  9 trials, 2 at a time")
    assert lines(tmp_path / "log") == whole[1]
    assert load(tmp_path / "out").engine.parameters.tobytes() == bits(whole[0])[1]


@contextlib.contextmanager
def dask_cluster(folder: Path, workers: int):
    """A scheduler and workers, as processes of their own; (address, workers)."""
    file = folder / "scheduler.json"
    dask = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--scheduler-file", str(file), "--no-dashboard"]
    worker += ["--nthreads=1", "--no-nanny", f"--local-directory={folder}"]
    local = ["--host=127.0.0.1", "--port=0", "--no-dashboard", "--scheduler-file", str(file)]
    options: dict[str, Any] = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    processes = [subprocess.Popen([*dask, *local], **options)]
    try:
        begin = time.monotonic()
        while not file.exists():
            assert processes[0].poll() is None
            assert time.monotonic() - begin < HANGS
            time.sleep(0.05)
        processes += [subprocess.Popen(worker, **options) for _ in range(workers)]
        yield json.loads(file.read_text())["address"], processes[1:]
    finally:
        for process in processes:
            process.kill()
            process.wait()


@needs_processes
def test_dask_finds_the_same_though_a_worker_is_killed(whole, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    with dask_cluster(tmp_path, 2) as (address, workers):
        with distributed.Client(address, timeout=HANGS, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=HANGS)
            ends = 0

            def kill(progress: TuningProgress) -> None:
                nonlocal ends
                ends += progress.trial is not None
                if ends == 4:
                    workers[0].kill()

            log = tmp_path / "log"
            result = tune(tmp_path / "names.txt", executor=client.get_executor(), log=log, progress=kill, **FEW)
            assert ends == 13
            assert workers[0].wait(HANGS)
        assert bits(result) == bits(whole[0])
        assert lines(log) == whole[1]
        arguments = [sys.executable, "-m", "microgpt", "tune", "names.txt", *OPTIONS, f"--dask={address}", "--log=log2"]
        done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=HANGS)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("search  9 trials, 1 at a time")
        assert lines(tmp_path / "log2") == whole[1]


def test_a_dask_client_is_no_executor() -> None:
    class Client:
        def submit(self) -> None: ...

        def get_executor(self) -> None: ...

    with pytest.raises(TypeError, match=r"^executor must be .*; of a Dask client, take client.get_executor\(\)$"):
        Workers(Client(), None)  # type: ignore[arg-type]


def test_mpi_is_used_only_through_its_executor(monkeypatch, capsys) -> None:
    monkeypatch.delitem(sys.modules, "mpi4py.futures", raising=False)
    assert command.mpi_size() == 1
    monkeypatch.setenv("PMI_RANK", "1")
    monkeypatch.setenv("PMI_SIZE", "3")
    assert main(["tune"]) == 2
    assert capsys.readouterr().err == (
        "microgpt: error: mpiexec has started 3 processes, which would search for the same:"
        " run python -m mpi4py.futures -m microgpt tune\n"
    )


def test_a_search_that_has_not_ended_is_not_deleted_by_another(tmp_path: Path) -> None:
    log = tmp_path / "log"
    (tmp_path / "log.checkpoints").mkdir()
    (tmp_path / "log.checkpoints" / "trial-0.rung-0.safetensors").touch()
    with pytest.raises(ValueError, match=r"log is of a search that has not ended: use resume, or delete .*checkpoints"):
        tune(NAMES, log=log, **FEW)
    assert (tmp_path / "log.checkpoints" / "trial-0.rung-0.safetensors").exists()
