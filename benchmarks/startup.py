"""The cost of a command besides training: the import, the whole process, its memory.

    python benchmarks/startup.py [FILE] [--repeats N]

Prints medians.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from statistics import median


def seconds(*arguments: str) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def peak_megabytes(*arguments: str) -> float:
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    return usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="*")
    parser.add_argument("--repeats", type=int, default=11)
    arguments = parser.parse_args()

    train = ["-m", "microgpt", "train", *arguments.file]
    turns = [
        (
            seconds("-c", "import numpy"),
            seconds("-c", "import numpy, microgpt"),
            seconds("-c", "from microgpt import train"),
            seconds(*train),
        )
        for _ in range(arguments.repeats)
    ]
    for i, statement in enumerate(["import microgpt", "from microgpt import train"], start=1):
        extra = median(turn[i] - turn[0] for turn in turns)
        print(f"{statement:<28}{1e3 * extra:.0f} ms over import numpy")
    print(f"{'microgpt train':<28}{median(turn[3] for turn in turns):.2f} s from process start to last sample")
    print(f"{'its peak memory':<28}{peak_megabytes(*train):.0f} MB")


if __name__ == "__main__":
    main()
