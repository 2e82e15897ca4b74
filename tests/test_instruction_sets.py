"""Instruction sets: the engine finds those that the processor has, and none if it is linked wrongly."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import pytest

from microgpt.engine import backend as backends

from conftest import needs_compiled

CPUINFO = Path("/proc/cpuinfo")
FLAGS = {
    "avx512": {"avx2", "fma", "avx512f", "avx512dq", "avx512bw", "avx512vl"},
    "avx2": {"avx2", "fma"},
    "baseline": set(),
}


@needs_compiled
@pytest.mark.skipif(platform.machine() != "x86_64" or not CPUINFO.exists(), reason="not Linux on x86-64")
def test_those_of_the_processor_are_found_best_first() -> None:
    flags = set(re.search(r"^flags\s*:(.*)", CPUINFO.read_text(), re.MULTILINE)[1].split())
    assert backends.instruction_sets() == tuple(name for name, needed in FLAGS.items() if needed <= flags)
