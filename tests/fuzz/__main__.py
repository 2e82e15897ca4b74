"""Run a fuzzer for some time, and print the number of cases and which of them failed.

    cd tests && python -m fuzz value --seconds 3600

Case i draws from `random.Random(i)` alone, so `--begin i --cases 1` repeats it. Cases run in a process of their own:
one that crashes or hangs is a fault like any other, and the next process starts after it.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import pkgutil
import random
import sys
import time
import traceback
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

HANGS = 120.0  # seconds; no case takes as long
TARGETS = sorted({module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])} - {"__main__"})


def work(
    target: str, begin: int, end: int, until: float, current: Synchronized[int], faults: Synchronized[int]
) -> None:
    """Run cases from `begin` to `end`, or until the time is over."""
    case = importlib.import_module(f"fuzz.{target}").case
    for i in range(begin, end):
        if time.time() > until:
            break
        current.value = i
        try:
            case(random.Random(i))
        except Exception:  # noqa: BLE001 (any exception is a fault)
            faults.value += 1
            print(f"fault in case {i} of {target}:\n{traceback.format_exc()}", flush=True)
    else:
        i = end
    current.value = i


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=float, default=3600.0, help="how long to run")
    parser.add_argument("--cases", type=int, default=sys.maxsize, help="how many cases at most")
    parser.add_argument("--begin", type=int, default=0, help="the first case")
    options = parser.parse_args()
    os.environ["RUST_BACKTRACE"] = "0"  # or every panic of the tokenizers library writes dozens of lines
    until, end = time.time() + options.seconds, options.begin + options.cases
    current, faults = multiprocessing.Value("q", options.begin), multiprocessing.Value("q", 0)
    i = options.begin
    while i < end and time.time() < until:
        process = multiprocessing.Process(target=work, args=(options.target, i, end, until, current, faults))
        process.start()
        at, since = current.value, time.time()
        while process.is_alive():
            process.join(1.0)
            if current.value != at:
                at, since = current.value, time.time()
            elif time.time() - since > HANGS:
                process.kill()
        i = current.value
        if process.exitcode != 0:
            faults.value += 1
            print(f"fault in case {i} of {options.target}: the process ended with {process.exitcode}", flush=True)
            i += 1
    print(f"{options.target}: {i - options.begin} cases, {faults.value} faults")
    return min(1, faults.value)


if __name__ == "__main__":
    sys.exit(main())
