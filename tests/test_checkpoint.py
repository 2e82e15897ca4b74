"""Checkpoints: models round-trip, runs resume bit for bit, and bad files are refused in one line."""

from __future__ import annotations

import json
import math
import random
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz.load import ACCIDENTS, NAMES, SMALL, peak_memory, rewritten
from safetensors import safe_open
from safetensors.numpy import load_file

from microgpt import GPT, GPTConfig, load, read_documents, train
from microgpt.checkpoint import VERSION, read
from microgpt.evaluation import mean_loss
from microgpt.training.run import Run
from microgpt.training.signals import ENDINGS
from microgpt.training.train import prepare
from microgpt.utils.arguments import LARGEST

from conftest import needs_compiled, needs_processes

VERSE = ["the rain in spain", "stays mainly in the plain"] * 3
SMALLEST = {"n_embd": 2, "n_head": 1, "block_size": 2}


def dtypes(backend: str) -> list[str]:
    return ["float64", "float32"] if backend == "compiled" else ["float64"]


def test_a_model_comes_back(tmp_path: Path, backend: str) -> None:
    for dtype in dtypes(backend):
        model = train(NAMES, steps=3, val_fraction=0.2, eval_every=2, dtype=dtype, backend=backend, **SMALL).model
        model.save(tmp_path / "model.safetensors")
        again = load(tmp_path / "model.safetensors", backend=backend)
        assert (again.config, again.dtype, again.tokenizer) == (model.config, dtype, model.tokenizer)
        for name, array in model.state_dict().items():
            assert again.state_dict()[name].tolist() == array.tolist()
        assert again.history.losses.tolist() == model.history.losses.tolist()
        assert again.history.validation_losses == model.history.validation_losses
        assert again.history.validation_tokens == model.history.validation_tokens > 0
        assert again.history.held_out_tokens == model.history.held_out_tokens
        assert again.history.options["n_embd"] == 4
        assert again.generate(5) == model.generate(5)


def test_a_model_without_tokenizer_and_history_comes_back(tmp_path: Path, backend: str) -> None:
    model = GPT(GPTConfig(vocab_size=5, **SMALL), 3, backend=backend)
    model.save(tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors", backend=backend)
    assert (again.tokenizer, again.history) == (None, None)
    assert again.generate_tokens(4) == model.generate_tokens(4)


def test_the_weights_have_the_names_of_microgpt(tmp_path: Path) -> None:
    result = train(NAMES, steps=1, out=tmp_path / "model.safetensors", **SMALL)
    arrays = load_file(tmp_path / "model.safetensors")
    for name, array in result.model.state_dict().items():
        assert arrays[name].tolist() == array.tolist()
    moments = {f"optimizer.{moment}.{name}" for moment in "mv" for name in result.model.state_dict()}
    assert arrays.keys() == result.model.state_dict().keys() | moments | {"history.losses"}


@needs_compiled
def test_models_change_dtype_and_backend_on_the_way(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    train(NAMES, steps=2, dtype="float32", **SMALL).model.save(path)
    assert load(path, dtype="float64").dtype == "float64"
    on_reference = load(path, backend="reference")
    assert on_reference.dtype == "float64"
    assert on_reference.logits([0, 1]) == pytest.approx(load(path).logits([0, 1]), abs=1e-5)


RUNS: list[dict[str, Any]] = [
    {"data": NAMES},
    {
        "data": NAMES,
        "batch_size": 3,
        "schedule": "cosine",
        "warmup_steps": 2,
        "weight_decay": 0.1,
        "max_grad_norm": 0.5,
        "dropout": 0.2,
    },
    {"data": NAMES, "val_fraction": 0.2, "eval_every": 3},
    {"data": VERSE, "format": "text", "batch_size": 2, "val_fraction": 0.2, "eval_every": 4},
]


def end_after(run: Run, stop: int) -> Run:
    """Make a run that writes a checkpoint after each step fail after this step."""
    save_checkpoint = run.recorder.save_checkpoint

    def save_and_end(*arguments: Any) -> None:
        save_checkpoint(*arguments)
        if run.step >= stop:
            raise InterruptedError

    run.recorder.save_checkpoint = save_and_end
    return run


def state(model: GPT, optimizer: Any) -> list[Any]:
    return [model.engine.parameters.tolist(), optimizer.m.tolist(), optimizer.v.tolist(), model.generator.getstate()]


@needs_compiled
@pytest.mark.parametrize("options", RUNS)
def test_runs_are_the_same_on_both_backends(options: dict[str, Any]) -> None:
    runs = [prepare(**options, **SMALL, steps=9, backend=backend) for backend in ("reference", "compiled")]
    results = [run.train() for run in runs]
    assert state(runs[0].model, runs[0].optimizer) == state(runs[1].model, runs[1].optimizer)
    assert results[0].losses.tolist() == results[1].losses.tolist()
    assert results[0].validation_losses == results[1].validation_losses


@pytest.mark.parametrize("options", RUNS)
def test_an_interrupted_run_goes_on_bit_for_bit(tmp_path: Path, backend: str, options: dict[str, Any]) -> None:
    for dtype in dtypes(backend):
        options = {**options, **SMALL, "dtype": dtype, "backend": backend, "steps": 9}
        whole = prepare(**options)
        expected = whole.train()

        out = tmp_path / f"{dtype}.safetensors"
        for stop in (1, 4, 6):
            run = prepare(**options, out=out, resume=True, checkpoint_every=1)
            with pytest.raises(InterruptedError):
                end_after(run, stop).train()
        run = prepare(**options, out=out, resume=True, threads=3 if backend == "compiled" else None)
        assert 0 < run.step < 9
        result = run.train()
        assert state(run.model, run.optimizer) == state(whole.model, whole.optimizer)
        assert result.losses.tolist() == expected.losses.tolist()
        assert result.validation_losses == expected.validation_losses
        assert load(out, backend=backend).generate(3) == expected.model.generate(3)


def broken_pipe() -> None:
    raise BrokenPipeError


@pytest.mark.parametrize(
    ("end", "error"),
    [
        *((partial(signal.raise_signal, number), SystemExit) for number in ENDINGS if number != signal.SIGINT),
        (partial(signal.raise_signal, signal.SIGINT), KeyboardInterrupt),
        (broken_pipe, BrokenPipeError),
    ],
    ids=lambda end: str(end.args[0]) if isinstance(end, partial) else end.__name__,
)
@pytest.mark.parametrize("options", [RUNS[0], RUNS[3]], ids=["lines", "text"])
def test_what_ends_a_run_does_not_cost_what_was_trained(
    tmp_path: Path, backend: str, end: Callable[[], None], error: type[BaseException], options: dict[str, Any]
) -> None:
    options = {**options, **SMALL, "backend": backend, "steps": 400_000 if backend == "compiled" else 40}
    out = tmp_path / "model.safetensors"
    handlers = [signal.getsignal(number) for number in ENDINGS]
    run = prepare(**options, out=out)
    with pytest.raises(error):
        run.train(lambda progress: end() if progress.step > 2 else None)
    assert handlers == [signal.getsignal(number) for number in ENDINGS]
    assert 2 < run.step < run.steps

    resumed = prepare(**options, out=out, resume=True)
    assert resumed.step == run.step
    assert state(resumed.model, resumed.optimizer) == state(run.model, run.optimizer)
    twin = prepare(**options)
    rates = twin.recipe.learning_rate * (1 - np.arange(run.step) / run.steps)
    batch = twin.batches.batch(0, run.step, twin.recipe.batch_size)
    twin.model.engine.train(batch, twin.recipe.batch_size, rates, twin.optimizer, np.zeros(run.step), None)
    assert state(resumed.model, resumed.optimizer) == state(twin.model, twin.optimizer)


def test_a_signal_ends_a_validation(tmp_path: Path, backend: str, monkeypatch) -> None:
    options = {"steps": 4, "val_fraction": 0.2, "eval_every": 2, "backend": backend, **SMALL}
    expected, out, checks = train(NAMES, **options), tmp_path / "model.safetensors", []

    def interrupted(engine: Any, packed: Any, check: Callable[[], object]) -> float:
        checks.append(None)
        if len(checks) in (1, 3):
            signal.raise_signal(signal.SIGTERM)
        check()
        return mean_loss(engine, packed, check)

    monkeypatch.setattr("microgpt.training.run.mean_loss", interrupted)
    for step in (0, 2):
        with pytest.raises(SystemExit):
            train(NAMES, out=out, resume=True, **options)
        assert read(out).progress.step == step
    result = train(NAMES, out=out, resume=True, **options)
    assert result.losses.tolist() == expected.losses.tolist()
    assert result.validation_losses == expected.validation_losses


def test_an_error_before_the_first_step_leaves_the_file_as_it_was(tmp_path: Path, backend: str) -> None:
    out = tmp_path / "model.safetensors"
    out.write_bytes(b"before")
    with pytest.raises(MemoryError, match="a batch_size of"):
        train(NAMES, steps=5, batch_size=LARGEST // 8, out=out, backend=backend, **SMALL)
    assert out.read_bytes() == b"before"


def test_a_model_whose_loss_is_not_finite_is_not_saved(tmp_path: Path, backend: str) -> None:
    out = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match="try a smaller learning_rate"):
        train(NAMES, steps=50, learning_rate=1e300, out=out, backend=backend, **SMALL)
    assert not out.exists()


@pytest.fixture
def on_ctrl_c() -> Iterator[Callable[[Any], None]]:
    """Set a handler for Ctrl-C, and restore the previous one at the end."""
    before = signal.getsignal(signal.SIGINT)
    yield lambda handler: signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGINT, before)


def test_a_signals_own_handler_decides_after_the_checkpoint(tmp_path: Path, backend: str, on_ctrl_c) -> None:
    out, seen = tmp_path / "model.safetensors", []
    options = {"steps": 40, "backend": backend, **SMALL}

    def handler(number: int, frame: object) -> None:
        seen.append((number, read(out).progress.step))

    on_ctrl_c(handler)
    run = prepare(NAMES, **options, out=out, checkpoint_every=10)
    result = run.train(lambda progress: signal.raise_signal(signal.SIGINT) if progress.step in (4, 10, 40) else None)
    steps = [step for _, step in seen]
    assert steps in ([10, 40], [4, 10, 40])  # how soon an engine reports within a block of steps may vary
    assert seen == [(signal.SIGINT, step) for step in steps]
    assert signal.getsignal(signal.SIGINT) is handler
    assert result.losses.tolist() == train(NAMES, **options).losses.tolist()

    on_ctrl_c(signal.SIG_DFL)
    with pytest.raises(SystemExit) as ending:
        prepare(NAMES, **options, out=out).train(lambda progress: signal.raise_signal(signal.SIGINT))
    assert ending.value.code == 128 + signal.SIGINT


@pytest.mark.parametrize("out", [None, "model.safetensors"])
def test_signals_that_are_ignored_stay_so(
    tmp_path: Path, monkeypatch, backend: str, out: str | None, on_ctrl_c
) -> None:
    """A run in the background of a shell must outlive the Ctrl-C that ends another one."""
    monkeypatch.chdir(tmp_path)
    on_ctrl_c(signal.SIG_IGN)
    run = prepare(NAMES, steps=9, backend=backend, out=out, **SMALL)
    assert len(run.train(lambda progress: signal.raise_signal(signal.SIGINT)).losses) == 9


def test_signals_that_others_than_python_handle_are_left_to_them(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    monkeypatch.setattr(signal, "signal", lambda number, handler: pytest.fail("it could not be set again"))
    train(NAMES, steps=2, out=tmp_path / "model.safetensors", **SMALL)


@needs_processes
def test_checkpoints_can_be_written_in_any_thread(tmp_path: Path) -> None:
    thread = threading.Thread(
        target=train, args=[NAMES], kwargs={"steps": 2, "out": tmp_path / "m.safetensors", **SMALL}
    )
    thread.start()
    thread.join()
    assert len(load(tmp_path / "m.safetensors").history.losses) == 2


def test_a_run_can_be_made_longer(tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    train(NAMES, steps=3, schedule="constant", out=out, **SMALL)
    longer = train(NAMES, steps=8, schedule="constant", out=out, resume=True, **SMALL)
    assert longer.losses.tolist() == train(NAMES, steps=8, schedule="constant", **SMALL).losses.tolist()
    again = train(NAMES, steps=8, schedule="constant", out=out, resume=True, **SMALL)
    assert again.losses.tolist() == longer.losses.tolist()


def test_the_best_model_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "model.safetensors"
    options = {"steps": 40, "val_fraction": 0.2, "eval_every": 2, "learning_rate": 0.3, **SMALL}
    result = train(NAMES, out=out, keep_best=True, **options)
    step, loss = min(result.validation_losses, key=lambda pair: pair[1])
    assert step < 40
    best = load(tmp_path / "model.best.safetensors")
    assert best.history.validation_losses[-1] == (step, loss)
    assert mean_loss(best.engine, prepare(NAMES, **options).batches.held_out(LARGEST)) == loss
    with pytest.raises(ValueError, match="holds a model, but no run to resume"):
        train(NAMES, out=tmp_path / "model.best.safetensors", resume=True, **options)


def test_the_best_model_is_that_since_it_is_kept(tmp_path: Path) -> None:
    out, best = tmp_path / "model.safetensors", tmp_path / "model.best.safetensors"
    options = {"val_fraction": 0.2, "eval_every": 2, "learning_rate": 0.3, "schedule": "constant", **SMALL}
    before = train(NAMES, steps=20, out=out, **options)
    after = train(NAMES, steps=40, out=out, resume=True, keep_best=True, **options)
    validations = after.validation_losses[len(before.validation_losses) :]
    assert load(best).history.validation_losses[-1] == min(validations, key=lambda pair: pair[1])


@pytest.fixture
def scripted_losses(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, float]], None]:
    """Replace validation losses by these, given by the number of steps completed."""
    train, made = Run.train, []
    monkeypatch.setattr(Run, "train", lambda run, *arguments: (made.append(run), train(run, *arguments))[1])

    def script(losses: dict[int, float]) -> None:
        monkeypatch.setattr("microgpt.training.run.mean_loss", lambda *arguments: losses[made[-1].step])

    return script


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_patience_ends_a_run_early(patience: int, scripted_losses: Any) -> None:
    scripted_losses({0: 3.0, 2: 2.0, 4: 2.5, 6: 1.5, 8: 1.5, 10: math.nan, 12: 1.6})
    result = train(NAMES, steps=400, val_fraction=0.2, eval_every=2, patience=patience, **SMALL)
    assert len(result.losses) == result.validation_losses[-1][0] == {1: 4, 2: 10, 3: 12}[patience]


@pytest.mark.parametrize("losses", [{4: 3.0, 5: 1.0}, {4: 3.0, 5: 9.0}, {4: 1.0, 5: 3.0}])
def test_patience_does_not_count_where_a_shorter_run_ended(
    tmp_path: Path, losses: dict[int, float], scripted_losses: Any
) -> None:
    """An interruption must not change where a run ends."""
    scripted_losses({0: 3.0, 2: 2.0, **losses, 6: 1.5, 8: 1.6, 10: 1.7, 12: 1.8})
    options = {"data": NAMES, "val_fraction": 0.2, "eval_every": 2, "patience": 2, "schedule": "constant", **SMALL}
    whole = train(**options, steps=20)
    out = tmp_path / "model.safetensors"
    train(**options, steps=5, out=out)
    resumed = train(**options, steps=20, out=out, resume=True)
    assert resumed.losses.tolist() == whole.losses.tolist()
    assert [pair for pair in resumed.validation_losses if pair[0] != 5] == whole.validation_losses
    assert resumed.model.generate(3) == whole.model.generate(3)


def test_a_resumed_run_ends_where_the_uninterrupted_one_does(tmp_path: Path) -> None:
    options = {
        "val_fraction": 0.2,
        "eval_every": 4,
        "patience": 3,
        "learning_rate": 0.1,
        "schedule": "constant",
        **SMALLEST,
    }
    ended = set()
    for seed in range(4):
        out = tmp_path / f"{seed}.safetensors"
        whole = train(NAMES, steps=200, seed=seed, **options)
        for steps in (3, 5, 10):
            train(NAMES, steps=steps, seed=seed, out=out, resume=True, **options)
        resumed = train(NAMES, steps=200, seed=seed, out=out, resume=True, **options)
        assert resumed.losses.tolist() == whole.losses.tolist()
        assert [pair for pair in resumed.validation_losses if pair[0] % 4 == 0] == whole.validation_losses
        ended.add(len(whole.losses))
    assert len(ended) > 2


def test_the_best_model_may_be_that_at_the_end_of_a_shorter_run(tmp_path: Path, scripted_losses: Any) -> None:
    scripted_losses({0: 3.0, 4: 2.0, 6: 1.0, 8: 1.5, 9: 1.2})
    options = {
        "data": NAMES,
        "val_fraction": 0.2,
        "eval_every": 4,
        "keep_best": True,
        "out": tmp_path / "m.safetensors",
    }
    train(**options, steps=6, **SMALL)
    train(**options, steps=9, resume=True, **SMALL)
    assert load(tmp_path / "m.best.safetensors").history.validation_losses[-1] == (6, 1.0)


def test_the_log_has_every_metric(tmp_path: Path, backend: str) -> None:
    log, out = tmp_path / "log.jsonl", tmp_path / "model.safetensors"
    options = {"data": NAMES, "steps": 6, "val_fraction": 0.2, "eval_every": 3, "backend": backend, **SMALL}
    result = train(**options, log=log, log_every=2, out=out, checkpoint_every=4)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6]
    assert [line["loss"] for line in lines if "loss" in line] == result.losses.reshape(3, 2).mean(1).tolist()
    assert [line["learning_rate"] for line in lines if "loss" in line] == [0.01 * (1 - step / 6) for step in (1, 3, 5)]
    validated = [line for line in lines if "validation_loss" in line]
    assert [(line["step"], line["validation_loss"]) for line in validated] == result.validation_losses
    assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)

    with log.open("a") as file:
        file.write('{"step": 7, "loss": 1.0}\n{"step": 6, "lo')  # a killed run might leave this
    train(**{**options, "steps": 8}, log=log, log_every=2, out=out, resume=True)
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == [0, 2, 3, 4, 6, 6, 8, 8]


def json_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def every_third_and_the_last(steps: int) -> list[int]:
    return [*range(3, steps, 3), steps]


def test_the_last_steps_are_in_the_log_however_few_they_are(tmp_path: Path, backend: str) -> None:
    log, out = tmp_path / "log.jsonl", tmp_path / "model.safetensors"
    options = {"data": NAMES, "schedule": "constant", "log": log, "log_every": 3, "backend": backend, **SMALL}
    losses = train(**options, steps=7, out=out).losses
    lines, before = json_lines(log), log.read_bytes()
    assert [line["step"] for line in lines] == [3, 6, 7]
    assert [line["loss"] for line in lines] == [losses[:3].mean(), losses[3:6].mean(), losses[6]]
    assert [line["learning_rate"] for line in lines] == [0.01] * 3

    train(**options, steps=7, out=out, resume=True)
    assert log.read_bytes() == before
    train(**options, steps=11, out=out, resume=True)
    assert [line["step"] for line in json_lines(log)] == [3, 6, 9, 11]


def test_a_validation_that_a_signal_ended_is_made_up_for_and_saved(tmp_path: Path, backend: str, monkeypatch) -> None:
    options = {"steps": 3, "val_fraction": 0.2, "eval_every": 2, "backend": backend, **SMALL}
    out = tmp_path / "model.safetensors"

    def interrupted(engine: Any, pieces: Any, check: Callable[[], object]) -> float:
        if read_steps() == 3:
            signal.raise_signal(signal.SIGTERM)
        check()
        return mean_loss(engine, pieces, check)

    run = prepare(NAMES, out=out, **options)
    monkeypatch.setattr("microgpt.training.run.mean_loss", interrupted)
    read_steps = lambda: run.step  # noqa: E731
    with pytest.raises(SystemExit):
        run.train()
    monkeypatch.undo()
    assert [step for step, _ in load(out).history.validation_losses] == [0, 2]
    result = train(NAMES, out=out, resume=True, **options)
    assert load(out).history.validation_losses == result.validation_losses
    assert result.validation_losses == train(NAMES, **options).validation_losses


def test_a_run_that_is_over_is_not_written_again(tmp_path: Path, backend: str) -> None:
    options = {"steps": 3, "val_fraction": 0.2, "eval_every": 2, "backend": backend, **SMALL}
    out = tmp_path / "model.safetensors"
    expected = train(NAMES, out=out, **options)
    before = out.stat().st_mtime_ns
    run = prepare(NAMES, out=out, resume=True, **options)
    assert run.train().losses.tolist() == expected.losses.tolist()
    assert (run.has_saved, out.stat().st_mtime_ns) == (False, before)


def test_the_log_has_no_hole_where_a_run_was_stopped(tmp_path: Path, backend: str) -> None:
    log, options = tmp_path / "log.jsonl", {**SMALL, "backend": backend, "out": tmp_path / "model.safetensors"}
    options |= {"n_embd": 32} if backend == "compiled" else {}  # so that a block of steps takes a while
    run = prepare(NAMES, **options, steps=100_000, log=log, log_every=3)
    with pytest.raises(KeyboardInterrupt):
        run.train(lambda progress: signal.raise_signal(signal.SIGINT) if progress.step > 6 else None)
    assert [line["step"] for line in json_lines(log)] == every_third_and_the_last(run.step)

    steps = run.step + 4
    train(NAMES, **options, steps=steps, log=log, log_every=3, resume=True)
    lines = json_lines(log)
    assert [line["step"] for line in lines] == every_third_and_the_last(steps)
    assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)


def test_the_log_has_the_steps_before_a_loss_that_is_not_finite(tmp_path: Path, backend: str) -> None:
    log = tmp_path / "log.jsonl"
    run = prepare(NAMES, steps=50, learning_rate=1e300, log=log, log_every=1, backend=backend, **SMALL)
    with pytest.raises(ValueError, match="try a smaller learning_rate"):
        run.train()
    assert run.step > 0
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [*range(1, run.step + 1)]


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    out, options = tmp_path / "model.safetensors", {**SMALL, "seed": 3, "learning_rate": 0.125}
    train(NAMES, steps=2, out=out, **{name: np.array(value)[()] for name, value in options.items()})
    resumed = train(NAMES, steps=4, out=out, resume=True, **options)
    assert resumed.history.options == {**prepare(NAMES, steps=4, **options).recipe.options()}


@pytest.mark.parametrize("seed", [1.5, "text", -7])
def test_any_seed_that_a_file_can_hold_goes_on(tmp_path: Path, seed: Any) -> None:
    out = tmp_path / "model.safetensors"
    train(NAMES, steps=2, seed=seed, out=out, **SMALL)
    assert prepare(NAMES, steps=4, seed=seed, out=out, resume=True, **SMALL).step == 2


def test_log_and_checkpoint_are_json_for_every_reader(tmp_path: Path, monkeypatch) -> None:
    log, out = tmp_path / "log.jsonl", tmp_path / "model.safetensors"
    validation_losses = iter([math.nan, 3.0, math.inf, 2.0])
    monkeypatch.setattr("microgpt.training.run.mean_loss", lambda *arguments: next(validation_losses))
    train(NAMES, steps=6, val_fraction=0.2, eval_every=2, log=log, log_every=9, out=out, keep_best=True, **SMALL)

    def refused(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    *lines, _ = [json.loads(line, parse_constant=refused) for line in log.read_text().splitlines()]
    assert [line["validation_loss"] for line in lines] == [None, 3.0, None, 2.0]
    with safe_open(out, framework="numpy") as file:
        json.loads(file.metadata()["history"], parse_constant=refused)
    assert [loss for _, loss in load(out).history.validation_losses] == pytest.approx(
        [math.nan, 3.0, math.nan, 2.0], nan_ok=True
    )
    assert len(load(tmp_path / "model.best.safetensors").history.losses) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": 0.5}, "learning_rate is 0.5, but .* was begun with 0.01"),
        ({"n_embd": 8}, "n_embd is 8, but .* was begun with 4"),
        ({"data": NAMES[1:]}, "the data are not those that .* was begun with"),
        ({"seed": random.Random(1)}, "seed must be a number or a text for a run that is resumed"),
        ({"out": None}, "resume needs out, the file of the checkpoint"),
    ],
)
def test_a_run_goes_on_only_as_it_began(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    shared = {"data": NAMES, "steps": 4, "out": tmp_path / "model.safetensors", **SMALL}
    train(**shared)
    with pytest.raises(ValueError, match=message):
        train(**{**shared, **options, "resume": True})


def test_a_run_goes_on_only_with_the_characters_it_began_with(tmp_path: Path) -> None:
    options = {"steps": 4, "out": tmp_path / "model.safetensors", **SMALL}
    train(NAMES, **options)
    with pytest.raises(
        ValueError, match=r"the tokenizer, or the characters of the data, are not those that .* was begun"
    ):
        train([name.upper() for name in NAMES], **options, resume=True)


def test_a_run_goes_on_wherever_its_tokenizer_comes_from(tmp_path: Path) -> None:
    options = {"data": NAMES, "steps": 4, "out": tmp_path / "model.safetensors", **SMALL}
    losses = train(**options).losses.tolist()
    tokenizer = load(options["out"]).tokenizer
    assert train(**options, tokenizer=tokenizer, resume=True).losses.tolist() == losses

    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"anna": 0, "bob": 1}, unk_token="bob"))
    words.save(str(tmp_path / "words.json"))
    options["out"] = tmp_path / "words.safetensors"
    losses = train(**options, tokenizer=tmp_path / "words.json").losses.tolist()
    (tmp_path / "words.json").rename(tmp_path / "moved.json")
    assert train(**options, tokenizer=str(tmp_path / "moved.json"), resume=True).losses.tolist() == losses


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint_every": 5}, "checkpoint_every needs out, the file of the checkpoint"),
        ({"keep_best": True, "val_fraction": 0.1}, "keep_best needs out, the file to write to"),
        ({"keep_best": True, "out": "m"}, "keep_best needs validation losses: val_fraction must be more than 0"),
        ({"patience": 2}, "patience needs validation losses: val_fraction must be more than 0"),
        ({"patience": 0, "val_fraction": 0.1}, "patience must be at least 1, got 0"),
        ({"log_every": 0, "log": "l"}, "log_every must be at least 1, got 0"),
        ({"log_every": 5}, "log_every needs log, the file to write to"),
        ({"checkpoint_every": 0, "out": "m"}, "checkpoint_every must be at least 1, got 0"),
        ({"out": "nowhere/m.safetensors"}, "cannot write nowhere/m.safetensors: No such file or directory"),
        ({"out": "."}, r"cannot write \.: Is a directory"),
        ({"log": "nowhere/log"}, "cannot write nowhere/log: No such file or directory"),
    ],
)
def test_bad_arguments_of_files_are_named(tmp_path: Path, monkeypatch, options: dict[str, Any], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        train(NAMES, **SMALL, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "names.txt"}, "data and out must be different files, got names.txt for both"),
        ({"log": "link"}, "data and log must be different files, got link for both"),
        ({"data": [Path("other.txt"), Path("names.txt")], "out": "names.txt"}, "data and out must be different files"),
        ({"out": "m", "log": "./m"}, "out and log must be different files, got ./m for both"),
        ({"out": "m.s", "keep_best": True, "val_fraction": 0.5, "log": "m.best.s"}, "keep_best and log must be"),
        ({"out": "m.s", "keep_best": True, "val_fraction": 0.5, "data": "m.best.s"}, "data and keep_best must be"),
        ({"out": "words.json", "tokenizer": "words.json"}, "tokenizer and out must be different files, got words.json"),
    ],
)
def test_no_file_is_written_over_another(tmp_path: Path, monkeypatch, options: dict[str, Any], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("names.txt", "other.txt", "m.best.s"):
        Path(name).write_text("anna\nbob\n")
    if "tokenizer" in options:
        tokenizers = pytest.importorskip("tokenizers")
        tokenizers.Tokenizer(tokenizers.models.WordLevel({"anna": 0, "bob": 1}, unk_token="bob")).save("words.json")
    Path("link").symlink_to("names.txt")
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=message):
        train(**{"data": "names.txt", "steps": 1, **SMALL, **options})
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_failing_write_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch) -> None:
    model, path = GPT(GPTConfig(vocab_size=5, **SMALL), 3), tmp_path / "model.safetensors"
    model.save(path)
    before = path.read_bytes()
    model.state_dict()["wte"][...] = 0

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ValueError, match=r"cannot write .*: No space left on device"):
        model.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# --- Killed -----------------------------------------------------------------------------------------------------------


@needs_compiled
@needs_processes
@pytest.mark.long
def test_a_run_that_is_killed_ten_times_ends_with_the_same_bits(tmp_path: Path) -> None:
    names = read_documents()
    (tmp_path / "names.txt").write_text("\n".join(names))
    steps, generator, out = 100_000, random.Random(7), tmp_path / "killed.safetensors"
    command = [sys.executable, "-m", "microgpt", "train", "names.txt", f"--steps={steps}", "--samples=0"]
    command += [f"--out={out}", "--resume"]
    for _ in range(10):
        before = out.stat().st_mtime_ns if out.exists() else 0
        process = subprocess.Popen([*command, "--checkpoint-every=250"], cwd=tmp_path, stdout=subprocess.DEVNULL)
        while not out.exists() or out.stat().st_mtime_ns == before:
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 0.1))  # it has written a file: from here on, kill it at any moment
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert read(out).progress.step < steps
    subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)

    whole = train(names, steps=steps)
    killed = load(out)
    assert killed.engine.parameters.tolist() == whole.model.engine.parameters.tolist()
    assert killed.history.losses.tolist() == whole.losses.tolist()
    assert killed.generate(20, 0.5) == whole.model.generate(20, 0.5)


# --- Damaged and hostile files ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "model.safetensors"
    train(NAMES, steps=3, val_fraction=0.2, eval_every=2, out=path, **SMALL)
    return path.read_bytes()


def test_a_file_with_parameters_that_are_not_finite_is_refused(tmp_path: Path, monkeypatch) -> None:
    """Earlier versions wrote such files."""
    path = tmp_path / "model.safetensors"
    model = GPT(GPTConfig(vocab_size=5, **SMALL), 3)
    for name, number in (("wte", math.nan), ("lm_head", math.inf)):
        model.state_dict()[name][0, 0] = number
    with monkeypatch.context() as patched:
        patched.setattr(GPT, "is_finite", lambda model: True)
        model.save(path)
    with pytest.raises(ValueError, match=r"^.*model\.safetensors: not all parameters in wte and 1 more are finite num"):
        load(path)


@needs_compiled
def test_a_dtype_that_cannot_hold_the_parameters_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    model = GPT(GPTConfig(vocab_size=5, **SMALL), 3)
    model.state_dict()["wte"][0, 0] = 1e39
    model.save(path)
    assert load(path).is_finite()
    with pytest.raises(
        ValueError, match="dtype must be 'float64' for a model with parameters beyond the largest float32"
    ):
        load(path, dtype="float32")


def refused(path: Path, content: bytes) -> str:
    """The error message on reading this, which must not take much memory."""
    path.write_bytes(content)
    memory = peak_memory()
    with pytest.raises(ValueError, match=path.name) as error:
        load(path)
    assert peak_memory() - memory < 50_000
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_damaged_files_are_refused(good: bytes, tmp_path: Path, accident: Any) -> None:
    generator, path = random.Random(1), tmp_path / "damaged.safetensors"
    GPT(GPTConfig(vocab_size=27, **SMALL), 3).save(path)
    other = path.read_bytes()
    for _ in range(30):
        if (content := accident(generator, good, other)) not in (good, other):
            refused(path, content)


def test_what_is_no_model_is_refused(good: bytes, tmp_path: Path) -> None:
    path, header = tmp_path / "damaged.safetensors", 8 + struct.unpack("<Q", good[:8])[0]
    for content in (b"", b"\0" * 8, b"\0" * 1000, good[:8], good[:header], b"{}" * 100, b"PK\x03\x04" + good):
        refused(path, content)


def replaced(key: str, **values: Any) -> Any:
    def change(arrays: dict[str, Any], texts: dict[str, str]) -> None:
        texts[key] = json.dumps({**json.loads(texts[key]), **values})

    return change


def text(key: str, value: str) -> Any:
    return lambda arrays, texts: texts.update({key: value})


def array(key: str, value: Any) -> Any:
    return lambda arrays, texts: arrays.update({key: np.array(value)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (text("format", "other"), "not a model of microgpt"),
        (lambda arrays, texts: texts.clear(), "not a model of microgpt"),
        (
            text("format_version", str(VERSION + 1)),
            f"format version {VERSION + 1} is unknown: this microgpt reads versions 1 to {VERSION}",
        ),
        (text("config", "[]"), "config must be a dict"),
        (text("config", "{"), "Expecting property name|Key name must be"),
        (text("config", "[" * 100_000), "nested too deeply|column 100001"),  # some Pythons read them all
        (replaced("config", n_layer=10**9), "config has n_layer 1000000000, but there are only"),
        (replaced("config", n_layer="1"), "n_layer must be a whole number, got '1'"),
        (replaced("config", vocab_size=10**12), r"shape \(1000000000000, 4\)|at most 2147483647"),  # on 32 bits
        (replaced("config", n_embd=-4), "n_embd must be at least 1, got -4"),
        (replaced("config", colour=1), "config must have vocab_size"),
        (replaced("config", activation="sine"), "activation must be 'relu' or "),
        (replaced("config", init_std=[]), "init_std must be a number"),
        (text("dtype", '"float32"'), "must be float32 of shape"),
        (text("dtype", '"int8"'), "dtype must be 'float64' or 'float32'"),
        (text("generator", "[3, [1, 2], null]"), "state vector"),
        (text("generator", "{}"), "generator must be a list"),
        (text("generator", json.dumps([3, [2**32] * 625, None])), "generator must be at most 4294967295"),
        (text("generator", json.dumps([2, [0] * 624 + [624], None])), "generator must be of version 3, got 2"),
        (text("generator", json.dumps([3, [0] * 624 + [624], "x"])), "generator must be a number, got 'x'"),
        (text("tokenizer", "3"), "tokenizer"),
        (text("tokenizer", "{}"), "tokenizer"),
        (
            text("tokenizer", '{"type": "characters", "characters": "ab", "bos": null}'),
            "vocab_size must be the tokenizer's 3",
        ),
        (replaced("history", seconds="long"), "could not convert"),
        (replaced("history", validation_losses=[[1]]), "not enough values"),
        (replaced("history", options=[]), "options must be a dict"),
        (replaced("history", fingerprint=3), "fingerprint must be a str"),
        (replaced("history", fingerprint="x"), "fingerprint must be a hash of 32 hexadecimal digits, got 'x'"),
        (replaced("progress", step=2), "progress is 2 steps, but the history does not have as many losses"),
        (replaced("progress", step=-1), "step must be at least 0"),
        (array("wte", [[1.0]]), "wte must be float64 of shape"),
        (array("more", [1.0]), "there must be"),
        (array("history.losses", [[1.0]]), "history.losses must be float64 of shape"),
        (lambda arrays, texts: arrays.pop("lm_head"), "there is no 'lm_head'"),
        (lambda arrays, texts: texts.pop("generator"), "there is no 'generator'"),
    ],
)
def test_files_that_lie_are_refused(good: bytes, tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "hostile.safetensors"
    assert re.search(message, refused(path, rewritten(good, change)))


def older(version: str, *lacking: str) -> Callable[[dict[str, Any], dict[str, str]], None]:
    """A change to a file of this version, in which models lack some fields."""

    def change(arrays: dict[str, Any], texts: dict[str, str]) -> None:
        for key in ("config", "history"):
            content = json.loads(texts[key])
            for name in lacking:
                del content.get("options", content)[name]
            texts[key] = json.dumps(content)
        history, progress = json.loads(texts["history"]), json.loads(texts["progress"])
        progress["fingerprint"] = history.pop("fingerprint")
        texts |= {"history": json.dumps(history), "progress": json.dumps(progress), "format_version": version}

    return change


@pytest.mark.parametrize("change", [older("1", "activation", "init_std", "dropout"), older("2", "dropout")])
def test_a_run_that_an_earlier_version_wrote_is_resumed(good: bytes, tmp_path: Path, change: Any) -> None:
    path = tmp_path / "older.safetensors"
    path.write_bytes(rewritten(good, change))
    config = load(path).config
    assert (config.activation, config.init_std, config.dropout) == ("relu", 0.08, 0.0)
    resumed = train(NAMES, steps=4, val_fraction=0.2, eval_every=2, out=path, resume=True, **SMALL)
    path.write_bytes(good)
    expected = train(NAMES, steps=4, val_fraction=0.2, eval_every=2, out=path, resume=True, **SMALL)
    assert resumed.losses.tolist() == expected.losses.tolist()


def test_the_rewriting_of_these_tests_is_right(good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "same.safetensors"
    path.write_bytes(rewritten(good, lambda arrays, texts: None))
    assert load(path).config.n_embd == 4


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=rf"^cannot read {re.escape(str(tmp_path))}/nowhere: No such file or directory$"
    ):
        load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"cannot read .*: Is a directory"):
        load(tmp_path)


def test_an_unreadable_file_is_distinguished_from_a_missing_one(good: bytes, tmp_path: Path, monkeypatch) -> None:
    def refuse(path: str, mode: str) -> None:  # root may read everything
        raise PermissionError(13, "Permission denied", path)

    (tmp_path / "model").write_bytes(good)
    monkeypatch.setattr("microgpt.checkpoint.open", refuse, raising=False)
    with pytest.raises(ValueError, match=r"^cannot read .*model: Permission denied$"):
        load(tmp_path / "model")
