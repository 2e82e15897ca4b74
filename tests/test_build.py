"""setup.py: user flags change no number, fallbacks give their reasons, and a used clone builds like a fresh one.

Nothing here compiles for long: the compiler is a script that compiles csrc/probe.c, or nothing, in the place of every
other source, and Cython is one that translates nothing.
"""

from __future__ import annotations

import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from microgpt.engine import backend as backends

from conftest import needs_processes

pytest.importorskip("setuptools", "77")
from setuptools import Distribution
from setuptools.errors import PlatformError

pytestmark = [needs_processes, pytest.mark.long]

ROOT = Path(__file__).resolve().parents[1]
needs_compiler = pytest.mark.skipif(os.name != "posix" or not shutil.which("cc"), reason="there is no C compiler")

# Modules that are compiled are found as PyInit_ and the name of its object file.
COMPILER = """\
import os, re, subprocess, sys

command = ["cc", *sys.argv[1:]]
output = command[command.index("-o") + 1]
link = "-c" not in command
if os.environ.get("HIDE_PYTHON_H"):
    command = [part for part in command if not (part.startswith("-I") and "python" in part)]
if os.environ.get("SOURCE") and not link and "csrc/probe.c" not in command:
    name = re.sub(r"\\W", "_", output)
    command = [os.environ["SOURCE"] if part.endswith(".c") else part for part in command]
    command += ["-x", "c", f"-DPyInit_probe=PyInit_{name}"]
command += os.environ.get("LINK_WITH" if link else "COMPILE_WITH", "").split()
with open("compiled.txt", "a") as file:
    print(output, file=file)
sys.exit(subprocess.run(command).returncode)
"""
CYTHON = """\
from pathlib import Path

def cythonize(extensions, **options):
    for extension in extensions:
        extension.sources = [str(Path(source).with_suffix(".c").name) for source in extension.sources]
        Path(extension.sources[0]).exists() or Path(extension.sources[0]).touch()
    return extensions
"""

FLAGS = (
    "-Ofast -ffast-math -funsafe-math-optimizations -fassociative-math -freciprocal-math -ffinite-math-only "
    "-fno-signed-zeros -fno-trapping-math -frounding-math -ffp-contract=fast -flto -std=c99 -march=native "
    "-D_GNU_SOURCE -w"
) + (" -mfpmath=387 -mavx512f" if platform.machine() == "x86_64" else "")
# Variables that are unset in these tests.
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if not re.match(r"CC$|.*FLAGS$|LDSHARED$|COV|MICROGPT_", name)
}
FUSED = "the compiler's flags fuse multiply and add"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of the files that setup.py needs, in which it may build."""
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "why_pure.txt", "[!kp]*.c")  # kernels.c, probe.c
    for name in ("csrc", "microgpt"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    (tmp_path / "cc.py").write_text(COMPILER)
    (tmp_path / "fake/Cython").mkdir(parents=True)
    (tmp_path / "fake/Cython/__init__.py").write_text("__version__ = '0'")
    (tmp_path / "fake/Cython/Build.py").write_text(CYTHON)
    return tmp_path


def build(clone: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run setup.py with these environment variables."""
    compiler = {"CC": f"{sys.executable} {clone / 'cc.py'}", "PYTHONPATH": str(clone / "fake")}
    return subprocess.run(
        [sys.executable, "setup.py", "--quiet", *arguments],
        cwd=clone,
        env={**ENVIRONMENT, **compiler, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def compiled(clone: Path) -> list[str]:
    """The files compiled and linked since the last call, except those of the probe."""
    file = clone / "compiled.txt"
    paths = [path for path in file.read_text().splitlines() if path.startswith("build/")] if file.exists() else []
    file.unlink(missing_ok=True)
    return paths


def why_not(clone: Path, module: Path, name: str) -> str:
    """The fault that the probe, compiled in place of this module, finds with its flags, or an empty string."""
    loading = (
        "import importlib.machinery as m, importlib.util as u, sys; l = m.ExtensionFileLoader(*sys.argv[1:]); "
        "u.module_from_spec(u.spec_from_loader(sys.argv[1], l)); assert float('1e-310') * 0.5 > 0"
    )
    command = [sys.executable, "-c", loading, name, str(module)]
    answer = subprocess.run(command, cwd=clone, capture_output=True, text=True, check=False)
    return answer.stderr.strip().rpartition("\n")[2].removeprefix("ImportError: ")


@needs_compiler
@pytest.mark.parametrize("compiler", ["cc", "clang"])
def test_no_flags_of_a_user_change_a_number(clone: Path, compiler: str) -> None:
    if not shutil.which(compiler):
        pytest.skip(f"{compiler} is not there")
    (clone / "cc.py").write_text(COMPILER.replace('"cc"', f'"{compiler}"'))
    command = f"{sys.executable} {clone / 'cc.py'} {FLAGS}"
    variables = dict.fromkeys(("CFLAGS", "CPPFLAGS", "LDFLAGS"), FLAGS)
    options = {"SOURCE": "csrc/probe.c", "MICROGPT_REQUIRE_EXTENSIONS": "1"}
    done = build(clone, "build_ext", "-blib", CC=command, **variables, **options)
    assert done.returncode == 0, done.stderr
    instruction_sets = backends.instruction_sets() or ("baseline",)
    tested = 0
    for path in compiled(clone):
        kernels = re.search(r"/(float\d\d)/(\w+)/.*\.o$", path)
        if path.endswith(".o") and (kernels is None or kernels[2] in instruction_sets):  # else it may not run here
            (module,) = clone.glob(f"lib/microgpt/**/_{'engine' if kernels else Path(path).stem}.*")
            fault = why_not(clone, module, re.sub(r"\W", "_", path))
            assert fault == "" or (fault == FUSED and kernels and kernels[1] == "float32"), path
            tested += 1
    assert tested >= 3 + 2


@needs_compiler
@pytest.mark.parametrize(
    ("variable", "flags", "reason"),
    [
        ("COMPILE_WITH", "-ffast-math", "the compiler's flags change numbers"),
        ("COMPILE_WITH", "-ffp-contract=fast", FUSED),
        ("COMPILE_WITH", "--no-such-flag", "the C compiler says: "),
        ("LINK_WITH", "-Ofast", "the compiler's flags make subnormal numbers 0"),
        ("LINK_WITH", "-lno_such_library", "the C compiler says: "),
        ("HIDE_PYTHON_H", "1", "no Python.h, which Debian and Ubuntu have in python3-dev"),
        ("CC", "no-such-compiler", r"no C compiler \(.*no-such-compiler"),
        ("MICROGPT_NO_EXTENSIONS", "1", "MICROGPT_NO_EXTENSIONS=1"),
    ],
)
def test_what_cannot_be_built_right_is_refused_in_a_line(clone: Path, variable: str, flags: str, reason: str) -> None:
    """Flags that a compiler adds on its own account come last."""
    if reason == FUSED and platform.machine() == "x86_64" and "avx2" not in backends.instruction_sets():
        pytest.skip("the processor cannot fuse multiply and add")
    done = build(clone, "build_ext", MICROGPT_REQUIRE_EXTENSIONS="1", **{variable: flags})
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(f"microgpt: MICROGPT_REQUIRE_EXTENSIONS=1, but: {reason}.*\n", done.stderr)


def setup_for(target: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that setup.py defines when it compiles for this platform."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("setuptools.setup", lambda **options: None)
    for name, value in {"_PYTHON_HOST_PLATFORM": target, "MICROGPT_NO_EXTENSIONS": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MICROGPT_REQUIRE_EXTENSIONS", raising=False)
    return runpy.run_path("setup.py")


@pytest.mark.skipif(os.name != "posix", reason="elsewhere, the platform is that of the machine")
@pytest.mark.parametrize(
    ("target", "instruction_sets"),
    [
        ("linux-x86_64", ["baseline", "avx2", "avx512"]),
        ("win-amd64", ["baseline", "avx2", "avx512"]),
        ("win-arm64", ["neon"]),
        ("emscripten_5_0_3_wasm32", ["simd128"]),
        ("emscripten-6.0.5-wasm32", ["simd128"]),
        ("linux-riscv64", ["baseline"]),
    ],
)
def test_the_instruction_sets_are_those_of_the_target(
    target: str, instruction_sets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert list(setup_for(target, monkeypatch)["INSTRUCTION_SETS"]) == instruction_sets


@needs_compiler
def test_clang_cl_takes_the_place_of_visual_studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = setup_for("win-amd64", monkeypatch)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    build = setup["Build"](Distribution({"ext_modules": [setup["extension"]("probe", "csrc/probe.c", "-mno-sse3")]}))
    build.extensions = build.distribution.ext_modules
    build.compiler = SimpleNamespace(
        compiler_type="msvc", initialized=True, compile_options=["/MD"], _paths=str(tmp_path)
    )
    with pytest.raises(PlatformError, match="there is no clang-cl, and Visual Studio's own has no vectors"):
        build.use_clang_cl()
    (tmp_path / "clang-cl").touch(0o755)
    build.use_clang_cl()
    assert build.compiler.cc == str(tmp_path / "clang-cl")
    assert build.compiler.compile_options == ["/MD", "--target=x86_64-pc-windows-msvc"]
    assert build.extensions[0].extra_link_args == []
    assert build.extensions[0].extra_compile_args[-1] == "/clang:-mno-sse3"
    assert "/clang:-ffp-contract=off" in build.extensions[0].extra_compile_args


def test_a_pure_package_knows_why_it_is_one(clone: Path) -> None:
    done = build(clone, "build", CC="no-such-compiler")
    assert done.returncode == 0
    reason = re.search("^microgpt: building the pure package.*: (no C compiler .*)$", done.stderr, re.MULTILINE)[1]
    # The modules of an editable installation are found from everywhere.
    modules = [f"microgpt.{name}" for name in ("engine._engine", "random._mersenne", "_value")]
    show = (
        f"import sys; sys.modules |= dict.fromkeys({modules}); from microgpt.commands.cli import main; main(['info'])"
    )
    command = [sys.executable, "-c", show]
    folder = clone / "build/lib"
    info = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout
    assert f"reference: this installation has no compiled engine; when it was built: {reason}\n" in info


def test_a_module_that_is_gone_is_not_in_the_next_wheel(clone: Path) -> None:
    for name in ("lib/microgpt/gone.py", "lib/microgpt/gone/__init__.py", "mine.txt"):
        (clone / "build" / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / "build" / name).touch()
    done = build(clone, "build", MICROGPT_NO_EXTENSIONS="1")
    assert done.returncode == 0, done.stderr
    built = {str(path.relative_to(clone / "build/lib")) for path in clone.glob("build/lib/**/*") if path.is_file()}
    there = {str(path.relative_to(clone)) for path in clone.glob("microgpt/**/*") if path.is_file()}
    assert built == there | {"microgpt/why_pure.txt"}
    assert (clone / "build/mine.txt").exists()


@needs_compiler
def test_a_change_of_compiler_or_sources_recompiles(clone: Path) -> None:
    (clone / "nothing.c").touch()

    def build_again(**environment: str) -> list[str]:
        done = build(clone, "build", SOURCE="nothing.c", MICROGPT_REQUIRE_EXTENSIONS="1", **environment)
        assert done.returncode == 0, done.stderr
        return sorted(compiled(clone))

    everything = build_again()
    assert len(everything) >= 3 + 3 + 2  # modules, what is linked, kernels
    assert build_again() == []
    assert build_again(CFLAGS="-g") == everything
    assert build_again(CFLAGS="-g", CC=f"{sys.executable} -B {clone / 'cc.py'}") == everything


def test_a_source_distribution_has_sources_alone(clone: Path) -> None:
    """It leaves out files that tests, experiments and MICROGPT_INSTRUMENT=1 leave in a clone."""
    sources = {str(path.relative_to(clone)) for path in clone.glob("[cm]*/**/*") if path.is_file()}
    leftovers = ("csrc/engine.c", "csrc/kernels/kernels.gcno", "microgpt/engine/_engine.so", "microgpt/why_pure.txt")
    leftovers += (
        "tests/.hypothesis/unicode_data",
        "docs/report.html",
        "examples/names.safetensors",
        "examples/new.py~",
    )
    for name in leftovers:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / name).touch()
    done = build(clone, "sdist", MICROGPT_NO_EXTENSIONS="1")
    assert done.returncode == 0, done.stderr
    with tarfile.open(*clone.glob("dist/*.tar.gz")) as archive:
        packed = {member.name.partition("/")[2] for member in archive.getmembers()}
    assert sources - packed == set()
    assert packed & set(leftovers) == set()
