"""The ladder: the original against versions of it in which imports from microgpt replace more and more of its code.

    python benchmarks/ladder.py microgpt.py            # a few steps of each rung, interleaved; prints the table
    python benchmarks/ladder.py microgpt.py --full     # and all steps of rungs 1 and 2 against the golden output

microgpt.py is the original, which is not part of this repository (see tools/make_golden.py), nor are the scripts made
from it.

Times are medians over the repeats, in which the rungs are interleaved. They are per token, because a faster rung trains
on more names, so that all run for about as long. On the same names, every rung must print, byte for byte, what the
original prints.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tqdm import tqdm

from microgpt.training.train import prepare

ROOT = Path(__file__).resolve().parents[1]
STEPS = {0: 25, 1: 250, 2: 1000, 3: 2000}
WARM_UP_STEPS = 5

# Inserted at the head of each step: prints the time, the number of tokens, and the peak memory so far.
PROBE = """
    import resource, sys, time
    print(time.perf_counter(), len(docs[step % len(docs)]) + 1, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
          file=sys.stderr)
"""


def replaced(script: str, start: str, stop: str, new: str) -> str:
    """`script` with `new` for everything from `start` up to `stop`."""
    begin = script.index(start)
    return script[:begin] + new + script[script.index(stop, begin) :]


def rung_1(original: str) -> str:
    """The original with another `Value`."""
    return replaced(original, "class Value", "# Initialize the parameters", "from microgpt import Value\n\n")


def rung_2(original: str) -> str:
    """The original with another `Value`, the functions on lists of it, and Adam."""
    script = rung_1(original).replace(
        "from microgpt import Value", "from microgpt import Value, linear, compute_softmax, rmsnorm, Adam"
    )
    script = replaced(script, "def linear", "def gpt", "")
    script = replaced(
        script, "m = [", "\n# Repeat", "optimizer = Adam(params, learning_rate, beta1, beta2, eps_adam)\n"
    )
    return replaced(script, "    for i, p in enumerate(params)", "    print(", "    optimizer.step(lr_t)\n\n")


SCRIPTS = {0: str, 1: rung_1, 2: rung_2}
NAMES = {
    0: "the original",
    1: "Value",
    2: "Value, linear, compute_softmax, rmsnorm, Adam",
    3: "train, float64",
    4: "train, float32",
}


class Runner:
    """Runs scripts in a folder that holds their data."""

    def __init__(self, folder: str, data: Path) -> None:
        self.folder = folder
        shutil.copy(data, Path(folder, "input.txt"))
        self.environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}

    def run(self, script: str) -> tuple[bytes, list[list[float]]]:
        """Run a script; return its stdout, and the lines of numbers on its stderr."""
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=self.folder, env=self.environment, capture_output=True, check=False
        )
        if done.returncode:
            sys.exit(done.stderr.decode())
        return done.stdout, [[float(x) for x in line.split()] for line in done.stderr.decode().splitlines()]


def probed(script: str, steps: int | None = None) -> str:
    """`script` with a probe in each step, and with this many steps."""
    head = "for step in range(num_steps):\n"
    assert script.count(head) == 1
    return script.replace(head, (head if steps is None else f"for step in range({steps}):\n") + PROBE)


def engine_time_per_token(data: Path, dtype: str) -> float:
    """Seconds per token: the difference between two runs, so that preparation cancels out."""
    times, tokens = [], 0
    for steps in (STEPS[3], 2 * STEPS[3]):
        run = prepare(data, steps=steps, dtype=dtype)
        begin = time.perf_counter()
        run.train()
        times.append(time.perf_counter() - begin)
        tokens = (run.batches.batch(STEPS[3], steps - STEPS[3], 1).lengths - 1).sum()
    return (times[1] - times[0]) / tokens


def check(original: str, runner: Runner) -> None:
    """Run a few steps of every script, and compare their output with the original's."""
    printed = {rung: runner.run(probed(make(original), STEPS[0]))[0] for rung, make in SCRIPTS.items()}
    for rung, output in printed.items():
        if output != printed[0]:
            sys.exit(f"rung {rung} does not print what the original prints")
    print(f"{STEPS[0]} steps and samples: rungs 1 and 2 print, byte for byte, what the original prints")


def climb(original: str, data: Path, runner: Runner, repeats: int) -> None:
    """Time all rungs, interleaved, and print the table."""
    times: dict[int, list[float]] = {rung: [] for rung in NAMES}
    for _ in tqdm(range(repeats), desc="climbing", file=sys.stderr, leave=False):
        for rung, make in SCRIPTS.items():
            _, lines = runner.run(probed(make(original), STEPS[rung]))
            lines = lines[WARM_UP_STEPS:]
            times[rung].append((lines[-1][0] - lines[0][0]) / sum(line[1] for line in lines[:-1]))
        times[3].append(engine_time_per_token(data, "float64"))
        times[4].append(engine_time_per_token(data, "float32"))
    median = {rung: statistics.median(values) for rung, values in times.items()}
    print(f"Python {sys.version.split()[0]}, {repeats} repeats")
    print(f"{'rung':4}  {'imported':46} {'us/token':>10} {'ratio':>8}")
    for rung, name in NAMES.items():
        print(f"{rung:4}  {name:46} {median[rung] * 1e6:10.1f} {median[0] / median[rung]:8.1f}")


def check_in_full(original: str, golden: Path, runner: Runner) -> None:
    """Run all steps of rungs 1 and 2, and compare the hash of their output with the original's."""
    expected = json.loads(golden.read_text())["stdout_sha256"]
    for rung in (1, 2):
        printed, lines = runner.run(probed(SCRIPTS[rung](original)))
        if hashlib.sha256(printed).hexdigest() != expected:
            sys.exit(f"rung {rung}, all steps: not the original's output")
        seconds, memory = lines[-1][0] - lines[0][0], [lines[i][2] / 1024 for i in (0, 10, -1)]
        print(
            f"rung {rung}, all {len(lines)} steps and samples: the original's output, byte for byte; {seconds:.2f} s;"
        )
        print("    peak memory {:.1f} MB before, {:.1f} MB after 10, {:.1f} MB at the end".format(*memory))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("original", type=Path, help="the original script")
    parser.add_argument("--data", type=Path, default=ROOT / "microgpt" / "data" / "names.txt", help="its input.txt")
    parser.add_argument(
        "--golden",
        type=Path,
        default=ROOT / "tests" / "golden" / "default.json",
        help="golden file of its output",
    )
    parser.add_argument("--repeats", type=int, default=7, help="timings of every rung (default: 7)")
    parser.add_argument("--full", action="store_true", help="also run all steps of rungs 1 and 2")
    options = parser.parse_args()
    for path in (options.original, options.data, *([options.golden] if options.full else [])):
        if not path.is_file():
            parser.error(f"there is no {path}")
    original = options.original.read_text()
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(folder, options.data)
        if options.full:  # first, because Linux counts the memory of the parent, which will grow, in a child's peak
            check_in_full(original, options.golden, runner)
        check(original, runner)
        climb(original, options.data, runner, options.repeats)


if __name__ == "__main__":
    main()
