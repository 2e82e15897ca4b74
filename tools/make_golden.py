"""Run the original, and write its numbers into a golden file, which the tests compare this package with.

    python tools/make_golden.py microgpt.py tests/golden/default.json
    python tools/make_golden.py microgpt.py tests/golden/small.json --n_embd 4 --n_head 1 --block_size 4 --num_steps 200

microgpt.py is Karpathy's script (https://gist.github.com/karpathy/8627fe009c40f57531cb18360106ce95), which is not part
of this repository. It runs unchanged, except for the sizes that the options replace, and a line that records each
step. By default it trains on the names that come with this package.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import io
import json
import platform
import re
import struct
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

NAMES = Path(__file__).resolve().parents[1] / "microgpt" / "data" / "names.txt"
NUMBERS = {  # numbers that options replace, and the patterns that find them in the original
    "seed": r"(random\.seed\()\d+",
    "n_layer": r"(^n_layer = )\d+",
    "n_embd": r"(^n_embd = )\d+",
    "block_size": r"(^block_size = )\d+",
    "n_head": r"(^n_head = )\d+",
    "num_steps": r"(^num_steps = )\d+",
    "temperature": r"(^temperature = )[\d.]+",
}
BACKWARD = "    loss.backward()\n"


def doubles(numbers: list[float]) -> bytes:
    """Little-endian float64."""
    return struct.pack(f"<{len(numbers)}d", *numbers)


def digest(numbers: list[float]) -> str:
    return hashlib.sha256(doubles(numbers)).hexdigest()


def run(script: str, data: bytes, config: dict[str, Any]) -> dict[str, Any]:
    """The content of the golden file: the script's numbers with this configuration, as far as the tests need them."""
    for name, value in config.items():
        script, count = re.subn(NUMBERS[name], rf"\g<1>{value}", script, flags=re.MULTILINE)
        assert count == 1, name
    assert script.count(BACKWARD) == 1
    losses: list[float] = []
    digests: list[str] = []

    def record(loss: Any, params: list[Any]) -> None:
        if not losses:
            digests.extend([digest([p.data for p in params]), digest([p.grad for p in params])])
        losses.append(loss.data)

    script = script.replace(BACKWARD, BACKWARD + "    record(loss, params)\n")
    printed = io.StringIO(newline="")
    namespace: dict[str, Any] = {"record": record, "__name__": "__main__"}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        Path("input.txt").write_bytes(data)
        exec(compile(script, "microgpt.py", "exec"), namespace)
    output = printed.getvalue()
    return {
        "config": config,
        "data_sha256": hashlib.sha256(data).hexdigest(),
        "python": platform.python_version(),
        "init_sha256": digests[0],
        "grads_step1_sha256": digests[1],
        "losses": base64.b64encode(doubles(losses)).decode(),
        "final_sha256": digest([p.data for p in namespace["params"]]),
        "samples": re.findall(r"^sample .\d: (.*)$", output, re.MULTILINE),
        "stdout_sha256": hashlib.sha256(output.encode()).hexdigest(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("original", type=Path, help="microgpt.py")
    parser.add_argument("golden", type=Path, help="the file to write")
    parser.add_argument("--data", type=Path, default=NAMES, help="its input.txt")
    defaults = {"seed": 42, "n_layer": 1, "n_embd": 16, "block_size": 16, "n_head": 4, "num_steps": 1000}
    for name, default in (defaults | {"temperature": 0.5}).items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    options = parser.parse_args()
    config = {name: getattr(options, name) for name in NUMBERS}
    sys.setrecursionlimit(1_000_000)  # the original recurses through its graphs
    threading.stack_size(1 << 29)
    content: dict[str, Any] = {}
    thread = threading.Thread(
        target=lambda: content.update(run(options.original.read_text("utf-8"), options.data.read_bytes(), config))
    )
    thread.start()
    thread.join()
    if not content:
        sys.exit(1)
    options.golden.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
