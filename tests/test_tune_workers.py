"""Workers of `tune`: what they read, and searches on several machines, as processes on this one."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from microgpt import TuningProgress, load, train, tune
from microgpt.commands import tune as command
from microgpt.commands.cli import main
from microgpt.data.corpus import read_corpus
from microgpt.engine.backend import choose
from microgpt.training.recipe import Recipe
from microgpt.tuning.trial import SharedData, Task, WorkerError, train_trial
from microgpt.tuning.tune import shared_data
from microgpt.tuning.workers import Workers

from conftest import MpiExec, needs_processes
from searches import FEW, HANGS, NAMES, OPTIONS, bits, lines


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
