"""The number of processor cores to compute on."""

from __future__ import annotations

import os
import sys
from functools import cache


@cache
def physical_cores() -> int:
    """Cores that this process may use; hardware threads of one core count once, where the system reports them."""
    if sys.platform == "emscripten":
        return 1  # WebAssembly starts no threads, however many cores the browser reports
    try:
        usable = os.sched_getaffinity(0)
    except AttributeError:  # not Linux
        return os.cpu_count() or 1
    siblings = set()
    for cpu in usable:
        try:
            with open(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") as file:
                siblings.add(file.read())
        except OSError:
            return len(usable)
    return len(siblings)
