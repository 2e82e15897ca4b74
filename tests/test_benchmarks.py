"""`microgpt bench`, with small models, and the scripts in benchmarks/, whose imports are checked."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from microgpt.commands import benchmark
from microgpt.commands.cli import main
from microgpt.engine import backend as backends

from conftest import needs_compiled, needs_processes

SCRIPTS = sorted((Path(__file__).resolve().parents[1] / "benchmarks").glob("*.py"))


@needs_processes
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_scripts_say_how_to_use_them(script: Path) -> None:
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")


@needs_processes
def test_the_ladder_says_what_it_needs(tmp_path: Path) -> None:
    script = next(script for script in SCRIPTS if script.stem == "ladder")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "original.py")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert re.search(r"error: there is no .*original\.py$", done.stderr.strip())


@needs_processes
@pytest.mark.parametrize("has_engine", [False, pytest.param(True, marks=needs_compiled)])
def test_bench_prints_each_backend_beside_the_floor(capsys, monkeypatch, has_engine: bool) -> None:
    for cases in ("RECIPE", "CASES"):
        small = [replace(case, steps=1, sizes={}) for case in getattr(benchmark, cases)]
        monkeypatch.setattr(benchmark, cases, small)
    monkeypatch.setattr(benchmark, "SAMPLED", 10)
    monkeypatch.setenv("MICROGPT_BACKEND", "reference")  # it has no effect here
    if not has_engine:
        monkeypatch.setattr(backends, "compiled_engine", lambda: None)
    assert main(["bench", "--repeats=1"]) == 0
    printed = capsys.readouterr().out
    floor = r"[\d,]+\.\d\d" if has_engine else ""
    assert re.search(rf"^reference, float64 +[\d,.]+ +1 +{floor}$", printed, re.MULTILINE)
    assert main(["bench", "nowhere.txt"]) == 2
    assert capsys.readouterr() == ("", "microgpt: error: cannot read nowhere.txt: No such file or directory\n")
    if has_engine:
        assert re.search(r"^compiled, float32 +[\d,.]+ +[\d,]+ +[\d,.]+$", printed, re.MULTILINE)
        assert re.search(r"^the same +2( +[\d,.]+){4}$", printed, re.MULTILINE)
        assert re.search(r"^sampling .* million tokens per second$", printed, re.MULTILINE)


@needs_compiled
def test_bench_needs_threads_to_measure_what_they_do_at_most(capsys, monkeypatch) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    assert main(["bench", "--repeats=1"]) == 2
    expected = "microgpt: error: cannot measure the peak of threads=2: can't start new thread\n"
    assert capsys.readouterr().err == expected


@needs_processes
@needs_compiled
def test_a_profile_says_where_the_time_of_a_step_goes(capsys, monkeypatch) -> None:
    monkeypatch.setattr(
        benchmark, "CASES", [replace(case, steps=2, sizes={"n_layer": 2}) for case in benchmark.CASES[:6]]
    )
    assert main(["bench", "--profile", "--repeats=1"]) == 0
    printed = capsys.readouterr().out
    assert len(re.findall(r"^n_embd 16, batch 1, threads 1: .* us/step", printed, re.MULTILINE)) == 1
    first = printed.split("us/step")[1]
    for name in ("rmsnorm", "linear .* mlp_fc1,", "attention", "cross_entropy", "Adam", "packing, losses"):
        assert len(re.findall(rf"^  {name} .*%", first, re.MULTILINE)) == 1, name  # one line for both layers
    shares = [float(share) for share in re.findall(r"([-\d.]+)%", first)]
    assert abs(sum(shares) - 100) < 1
    assert "waiting for other threads" in printed


def test_a_profile_needs_the_compiled_engine(capsys, monkeypatch) -> None:
    monkeypatch.setattr(backends, "compiled_engine", lambda: None)
    assert main(["bench", "--profile"]) == 2
    assert capsys.readouterr().err.startswith("microgpt: error: profile needs the compiled engine")
