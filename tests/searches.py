"""A small search that the tests of `tune` share."""

from __future__ import annotations

import json
import multiprocessing
import shlex
import sys
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pytest

import microgpt
from microgpt import TuneResult

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


class Forbidden(Executor):
    """An executor for a search that has nothing left to train."""

    def submit(self, *arguments: Any, **options: Any) -> Any:
        raise AssertionError


def bits(result: TuneResult) -> tuple[int, bytes]:
    return result.best.number, result.model.engine.parameters.tobytes()


def lines(log: Path) -> list[str]:
    """The lines of a log, sorted and without seconds."""
    entries = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    return sorted(json.dumps({name: value for name, value in entry.items() if name != "seconds"}) for entry in entries)
