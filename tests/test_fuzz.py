"""A few cases of each fuzzer; `python -m fuzz` runs them for hours."""

from __future__ import annotations

import importlib
import pkgutil
import random

import fuzz
import pytest

TARGETS = sorted({module.name for module in pkgutil.iter_modules(fuzz.__path__)} - {"__main__"})


@pytest.mark.parametrize("block", range(4))
@pytest.mark.parametrize("target", TARGETS)
def test_random_input_shows_no_fault(target: str, block: int) -> None:
    module = importlib.import_module(f"fuzz.{target}")
    pytest.importorskip(getattr(module, "NEEDS", "microgpt"))
    for i in range(block * module.TEST_CASES // 4, (block + 1) * module.TEST_CASES // 4):
        module.case(random.Random(i))
