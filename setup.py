"""Builds the compiled half of microgpt; everything else about the package is in pyproject.toml.

Without a working C compiler, on PyPy, or with MICROGPT_NO_EXTENSIONS=1, there is no compiled half, and the package does
everything, slower, with its reference engine. MICROGPT_REQUIRE_EXTENSIONS=1 makes anything short of it an error.
MICROGPT_INSTRUMENT=1 builds one that is watched while it is tested, see INSTRUMENTS.
"""

import os
import platform
import re
import shutil
import sys
import sysconfig
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, PlatformError
from setuptools.modified import newer_group

from distutils.ccompiler import new_compiler  # isort: skip (setuptools provides it)
from distutils.sysconfig import customize_compiler  # isort: skip

if sys.platform == "darwin":  # a universal Python would compile for two processors at once, and kernels are for one
    os.environ.setdefault("ARCHFLAGS", f"-arch {platform.machine()}")
built_with = (sysconfig.get_config_var("CC") or "").split()
if built_with and not shutil.which(built_with[0]) and shutil.which("cc"):  # Python was built with another compiler
    os.environ.setdefault("CC", "cc")
REQUIRED = os.environ.get("MICROGPT_REQUIRE_EXTENSIONS") == "1"

# For the gates of .ci/run that watch tests: the first access out of bounds or undefined operation ends the process, and
# each line counts how often it runs. -O1 compiles in a quarter of the time, and -g1 knows lines.
if os.environ.get("MICROGPT_INSTRUMENT", "") not in ("", "1"):
    sys.exit(f"microgpt: MICROGPT_INSTRUMENT must be 1, got {os.environ['MICROGPT_INSTRUMENT']!r}")
INSTRUMENTED = os.environ.get("MICROGPT_INSTRUMENT") == "1"
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
INSTRUMENTS = ["-O1", "-g1", "--coverage", *SANITIZERS] if INSTRUMENTED else []

# pow, exp, log and erf have to stay calls of the C library: the compiler would make x * x of pow(x, 2), whose last bit
# differs. -fno-math-errno lets square roots be single instructions.
CALLED = [f"-fno-builtin-{function}" for function in ("pow", "exp", "log", "erf")]
COMMON = ["-O3", "-fno-math-errno", *CALLED, *INSTRUMENTS]
POLICIES = {
    "float64": [*COMMON, "-ffp-contract=off", "-DMICROGPT_EXACT=1"],
    "float32": [*COMMON, "-ffp-contract=fast", "-DMICROGPT_EXACT=0"],
}
EXACT = POLICIES["float64"]

# The instruction sets of kernels/levels.h and the flags that ask for them.
INSTRUCTION_SETS = {
    "x86_64": {
        "baseline": [],
        "avx2": ["-mavx2", "-mfma"],
        "avx512": ["-mavx2", "-mfma", "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl"],
    },
    "aarch64": {"neon": []},
}


def instruction_sets():
    """Those of the machine to compile for, which may be another than this one: sysconfig.get_platform() tells."""
    machine = sysconfig.get_platform().rpartition("-")[2]
    machine = platform.machine().lower() if machine == "universal2" else machine
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)
    return INSTRUCTION_SETS.get(machine, {"baseline": []})


class Build(build_ext):
    """Compiles the kernels once for each element type and instruction set, beside what Cython generates.

    Whatever does not wait for another is compiled at the same time, and kernels only if they have changed.
    """

    def finalize_options(self):
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def build_extension(self, ext):
        if ext.name == "microgpt.engine._engine":
            variants = [(dtype, name) for dtype in POLICIES for name in instruction_sets()]
            with ThreadPoolExecutor(self.parallel) as pool:
                ext.extra_objects += pool.map(lambda variant: self.kernels(ext, *variant), variants)
        super().build_extension(ext)

    def kernels(self, ext, dtype, instruction_set):
        """The object file of the kernels for this element type and instruction set."""
        sources, folder = ["csrc/kernels/kernels.c"], os.path.join(self.build_temp, dtype, instruction_set)
        (compiled,) = self.compiler.object_filenames(sources, output_dir=folder)
        if self.force or newer_group(ext.depends, compiled, "newer"):
            flags = [*POLICIES[dtype], *instruction_sets()[instruction_set]]
            flags.append(f"-DMICROGPT_INSTRUCTION_SET={instruction_set}")
            self.compiler.compile(sources, folder, extra_postargs=flags, depends=ext.depends)
        return compiled


def why_pure():
    """Why there can be no compiled half here, or None."""
    if os.environ.get("MICROGPT_NO_EXTENSIONS") == "1":
        return "MICROGPT_NO_EXTENSIONS=1"
    if platform.python_implementation() != "CPython":
        return f"{platform.python_implementation()} runs the reference engine"
    compiler = new_compiler()
    customize_compiler(compiler)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text("#include <Python.h>\ntypedef double pair __attribute__((vector_size(16)));\n")
        try:  # where there is no compiler at all, Windows has another error for it
            compiler.compile([str(source)], folder, include_dirs=[sysconfig.get_path("include")], extra_postargs=EXACT)
        except (CompileError, PlatformError) as error:
            return f"no C compiler with vector extensions and the Python headers ({error})"
    return None


def extensions():
    from Cython.Build import cythonize

    headers = sorted(map(str, Path("csrc").rglob("*.h")))
    settings = {
        "extra_compile_args": EXACT,
        "extra_link_args": INSTRUMENTS,
        "libraries": ["m"] if os.name == "posix" else [],  # or pow and exp were of whatever version is loaded already
        "depends": ["setup.py", "csrc/kernels/kernels.c", *headers],
    }
    return cythonize(
        [
            Extension("microgpt.engine._engine", ["csrc/engine.pyx"], **settings),
            Extension("microgpt.random._mersenne", ["csrc/mersenne.pyx"], **settings),
            Extension("microgpt._value", ["csrc/value.pyx"], **settings),
        ],
        # The report of coverage looks for the C code beside its source, and in it for what would trace lines.
        build_dir=None if INSTRUMENTED else "build/cython",
        compiler_directives={"linetrace": INSTRUMENTED},
    )


def readme():
    """README.md as the package index shows it: with links to this version's files at the project's address."""
    source = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"]["urls"]["Source"]
    version = re.search('^__version__ = "(.*)"$', Path("microgpt/__init__.py").read_text("utf-8"), re.MULTILINE)[1]
    return re.sub(r"\]\((?!https://|#)", f"]({source}/blob/v{version}/", Path("README.md").read_text("utf-8"))


reason = why_pure()
if reason and REQUIRED:
    sys.exit(f"microgpt: MICROGPT_REQUIRE_EXTENSIONS=1, but {reason}")
if reason:
    print(f"microgpt: building the pure package, without the compiled engine: {reason}", file=sys.stderr)
setup(
    long_description=readme(),
    long_description_content_type="text/markdown",
    ext_modules=[] if reason else extensions(),
    cmdclass={"build_ext": Build},
    options={"build": {"build_base": "build/instrumented" if INSTRUMENTED else "build"}},
)
