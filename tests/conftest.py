"""What the tests share: the two backends, behind one fixture, and what the original computed."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from microgpt import backend as backends
from microgpt.packing import PackedSequences

SHARED = Path(__file__).resolve().parents[2] / "shared"
COMPILED_IS_THERE = backends.compiled_engine() is not None

needs_compiled = pytest.mark.skipif(not COMPILED_IS_THERE, reason="this installation has no compiled engine")
needs_processes = pytest.mark.skipif(sys.platform == "emscripten", reason="WebAssembly has no processes and no threads")
compiled = pytest.param("compiled", marks=needs_compiled)


@pytest.fixture(params=["reference", compiled])
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend in turn: a test that takes it runs on both, without knowing which."""
    return request.param


def pytest_sessionstart(session: pytest.Session) -> None:
    """Where extensions are required, their absence is an error, not a skip; Ctrl-C works; commands print plain errors.

    A shell starts what runs in the background with SIGINT ignored, and so its children. A free-threaded Python that
    turns its GIL on, as it does for the compiled half, says so in every process that has not asked for it.
    """
    if os.environ.get("MICROGPT_REQUIRE_EXTENSIONS") == "1" and not COMPILED_IS_THERE:
        pytest.exit("MICROGPT_REQUIRE_EXTENSIONS=1, but there is no compiled engine", returncode=1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.setdefault("PYTHON_GIL", "1")
    os.environ["PYTHON_COLORS"] = "0"  # of tracebacks and help, whatever FORCE_COLOR asks for


def shared(path: str) -> Path:
    """A file of ../shared, which strangers who clone the project alone do not have."""
    if not (SHARED / path).exists():
        pytest.skip(f"../shared/{path} is not there")
    return SHARED / path


def sequences(packed: PackedSequences) -> list[list[int]]:
    """Packed sequences one by one."""
    return [packed.tokens[start : start + length].tolist() for start, length in zip(packed.starts, packed.lengths)]


class Golden:
    """What the original computed for one configuration, to the last bit."""

    def __init__(self, name: str) -> None:
        self.content: dict[str, Any] = json.loads(shared(f"golden/{name}.json").read_text("utf-8"))
        self.data = shared("data/" + ("shakespeare.txt" if "shakespeare" in name else "names.txt"))
        self.options = dict(self.content["config"])
        self.temperature = self.options.pop("temperature")
        self.options["steps"] = self.options.pop("num_steps")
        self.losses = [float.fromhex(loss) for loss in self.content["losses"]]
        self.first_gradients = [float.fromhex(gradient) for gradient in self.content["grads_step1"]]
        self.samples: list[str] = self.content["samples"]


GOLDEN_NAMES = [
    "names_default",
    "names_l1_d4_h1_b4",
    "names_l2_d8_h2_b12",
    "names_l3_d24_h3_b16",
    "shakespeare_l1_d32_h4_b32",
]
