"""A search that is interrupted, killed or over, and resumed."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from microgpt import TuningProgress, load, tune
from microgpt.training.recipe import Recipe

from conftest import needs_processes
from searches import FEW, HANGS, NAMES, OPTIONS, SEARCH, Forbidden, bits, lines


class EndedError(Exception):
    """The end of a search in the middle."""


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


def test_a_search_that_has_not_ended_is_not_deleted_by_another(tmp_path: Path) -> None:
    log = tmp_path / "log"
    (tmp_path / "log.checkpoints").mkdir()
    (tmp_path / "log.checkpoints" / "trial-0.rung-0.safetensors").touch()
    with pytest.raises(ValueError, match=r"log is of a search that has not ended: use resume, or delete .*checkpoints"):
        tune(NAMES, log=log, **FEW)
    assert (tmp_path / "log.checkpoints" / "trial-0.rung-0.safetensors").exists()
