"""What measures: `microgpt bench`, with small models; and the scripts in benchmarks/, which find what they import."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from microgpt import benchmark
from microgpt.cli import main

from conftest import COMPILED_IS_THERE, needs_processes

SCRIPTS = sorted((Path(__file__).resolve().parents[1] / "benchmarks").glob("*.py"))


@needs_processes
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_scripts_say_how_to_use_them(script: Path) -> None:
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")


def test_bench_prints_each_backend_beside_the_floor(capsys, monkeypatch) -> None:
    for cases in ("RECIPE", "CASES"):
        small = [replace(case, steps=1, sizes={}) for case in getattr(benchmark, cases)]
        monkeypatch.setattr(benchmark, cases, small)
    monkeypatch.setattr(benchmark, "SAMPLED", 10)
    main(["bench", "--repeats=1"])
    printed = capsys.readouterr().out
    assert re.search(r"^reference, float64 +[\d,.]+ +1 ", printed, re.MULTILINE)
    if COMPILED_IS_THERE:
        assert re.search(r"^compiled, float32 +[\d,.]+ +[\d,]+ +[\d.]+$", printed, re.MULTILINE)
        assert re.search(r"^the same +2( +[\d,.]+){4}$", printed, re.MULTILINE)
        assert re.search(r"^sampling .* million tokens a second$", printed, re.MULTILINE)
