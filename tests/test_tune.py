"""`tune`: many runs, of which the best go on."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import queue
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import microgpt
from microgpt import GPTConfig, TuningProgress, load, train, tune
from microgpt.data.corpus import read_corpus
from microgpt.engine.backend import choose
from microgpt.tuning.compute import ADAM, StepCounter, count_multiply_adds
from microgpt.tuning.drawing import Drawing
from microgpt.tuning.search import count_rungs, steps_at
from microgpt.tuning.space import Choices, default_space

from conftest import needs_processes
from searches import FEW, NAMES, SEARCH, SMALL, bits, lines, needs_fork


class LastFirst(ThreadPoolExecutor):
    """An executor that takes the latest task first."""

    def __init__(self) -> None:
        super().__init__(1)
        self._work_queue = queue.LifoQueue()  # type: ignore[assignment]


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
