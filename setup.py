"""Builds the compiled half of microgpt; everything else about the package is in pyproject.toml.

Without a C compiler that can build it, on PyPy, or with MICROGPT_NO_EXTENSIONS=1, there is no compiled half, and the
package does everything, slower, with its reference engine. MICROGPT_REQUIRE_EXTENSIONS=1 makes anything short of it an
error. MICROGPT_INSTRUMENT=1, or thread, builds one that is watched while it is tested, see SANITIZERS.

On Windows, clang-cl compiles, or what CC names in its place: Visual Studio's own compiler has no vector extensions.
"""

import contextlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Distribution, Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError, LinkError, PlatformError
from setuptools.modified import newer_group

from distutils.command.build import build  # isort: skip (setuptools provides it)

if sys.platform == "darwin":  # a universal Python would compile for two processors at once, and kernels are for one
    os.environ.setdefault("ARCHFLAGS", f"-arch {platform.machine()}")
built_with = (sysconfig.get_config_var("CC") or "").split()
if built_with and not shutil.which(built_with[0]) and shutil.which("cc"):  # Python was built with another compiler
    os.environ.setdefault("CC", "cc")
os.environ["LC_ALL"] = "C"  # in which compilers say what went wrong
REQUIRED = os.environ.get("MICROGPT_REQUIRE_EXTENSIONS") == "1"

# For runs of the tests that are watched. With 1, the first access out of bounds or undefined operation ends the
# process, and each line counts how often it runs. With thread, two threads that access the same memory are reported.
# -O1 compiles in a quarter of the time, and -g1 knows lines. Without _Pragma, loops of the matrix product are not
# unrolled: with all the checks, that would take minutes.
SANITIZERS = {
    "": [],
    "1": ["--coverage", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"],
    "thread": ["-fsanitize=thread"],
}
INSTRUMENT = os.environ.get("MICROGPT_INSTRUMENT", "")
if INSTRUMENT not in SANITIZERS:
    sys.exit(f"microgpt: MICROGPT_INSTRUMENT must be 1 or thread, got {INSTRUMENT!r}")
COUNTED = INSTRUMENT == "1"
INSTRUMENTS = ["-O1", "-g1", "-D_Pragma(text)=", *SANITIZERS[INSTRUMENT]] if INSTRUMENT else []

# This processor, and the one to compile for: sysconfig.get_platform() is linux-x86_64, or emscripten_5_0_3_wasm32.
here = platform.machine().lower()
target = re.sub("^.*-|^emscripten_.*_", "", sysconfig.get_platform()).replace("universal2", here)
HERE, TARGET = ({"amd64": "x86_64", "arm64": "aarch64"}.get(name, name) for name in (here, target))
CROSS = TARGET != HERE
if sys.maxsize < 2**32 and not CROSS:
    TARGET = "32 bits"  # under a system of 64, which names its own processor


def is_clang():
    if os.name == "nt":
        return True  # see arithmetic.h
    command = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    try:
        return "clang" in subprocess.run([*command, "--version"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return False


# Flags that change numbers may stand in CFLAGS, CPPFLAGS and LDFLAGS, in CC behind the compiler's name, and in the
# flags that Python was built with. All of those come first on the command line, and these, behind them, take them back;
# for the linker, too, which -Ofast makes add code that turns subnormal numbers into 0 in the whole process.
STRICT = [
    *("-O3", "-fno-fast-math", "-fno-unsafe-math-optimizations", "-fno-finite-math-only", "-fno-associative-math"),
    *("-fno-reciprocal-math", "-fsigned-zeros", "-fno-rounding-math", "-fno-lto"),
    *(["-mfpmath=sse"] if TARGET == "x86_64" else []),
    # Some versions of clang take -fno-unsafe-math-optimizations for a wish for traps, which are slow.
    *(["-fno-trapping-math"] if is_clang() else []),
]
# pow, exp, log and erf have to stay calls of the C library: the compiler would make x * x of pow(x, 2), whose last bit
# differs. -fno-math-errno lets square roots be single instructions.
CALLED = [f"-fno-builtin-{function}" for function in ("pow", "exp", "log", "erf")]
COMMON = ["-std=gnu11", *STRICT, "-fno-math-errno", *CALLED]
POLICIES = {
    "float64": [*COMMON, "-ffp-contract=off", "-DMICROGPT_EXACT=1"],
    "float32": [*COMMON, "-ffp-contract=fast", "-DMICROGPT_EXACT=0"],
}
EXACT = POLICIES["float64"]

# The instruction sets of kernels/isa.h and the flags that ask for them, and for no more, whatever others ask for.
INSTRUCTION_SETS = {
    "x86_64": {
        "baseline": ["-mno-sse3"],
        "avx2": ["-mavx2", "-mfma", "-mno-avx512f"],
        "avx512": ["-mavx2", "-mfma", "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl"],
    },
    "aarch64": {"neon": []},
    # No "relaxed" instructions, whose results are the browser's choice, and which not every browser has.
    "wasm32": {"simd128": ["-msimd128", "-mno-relaxed-simd"]},
}.get(TARGET, {"baseline": []})

FIRST = next(iter(INSTRUCTION_SETS))

HEADERS = sorted(map(str, Path("csrc").rglob("*.h")))


def extension(name, source, *flags):
    return Extension(
        name,
        [source],
        extra_compile_args=[*EXACT, *flags],
        extra_link_args=[*STRICT, *flags],
        libraries=["m"] if os.name == "posix" else [],  # or pow and exp were of whatever version is loaded already
        depends=["setup.py", "csrc/kernels/kernels.c", *HEADERS],
    )


class Build(build_ext):
    """Compiles the kernels once for each element type and instruction set, beside what Cython generates.

    Whatever does not wait for another is compiled at the same time, and kernels only if they have changed.
    """

    def finalize_options(self):
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def build_extensions(self):
        import Cython
        from Cython.Build import cythonize

        self.use_clang_cl()
        translated = cythonize(
            self.extensions,
            # The report of coverage looks for the C code beside its source, and in it for what would trace lines.
            build_dir=None if COUNTED else f"build/cython-{Cython.__version__}",
            compiler_directives={"linetrace": COUNTED},
        )
        commands = self.commands()
        for ext, in_c in zip(self.extensions, translated):
            ext.sources = in_c.sources
            ext.depends.append(commands)
        super().build_extensions()

    def use_clang_cl(self):
        """Put clang-cl in the place of Visual Studio's compiler, and spell the flags as it takes them."""
        if self.compiler.compiler_type != "msvc":
            return
        if not self.compiler.initialized:
            self.compiler.initialize(self.plat_name)
        # Where LLVM's installer puts it, and that of Visual Studio, if it is to install it.
        folders = [os.environ["PATH"], r"C:\Program Files\LLVM\bin", getattr(self.compiler, "_paths", "")]
        found = shutil.which(os.environ.get("CC") or "clang-cl", path=os.pathsep.join(folders))
        if not found:
            raise PlatformError("there is no clang-cl, and Visual Studio's own has no vectors")
        self.compiler.cc = found
        self.compiler.compile_options.append(f"--target={TARGET}-pc-windows-msvc")
        for ext in self.extensions:
            ext.extra_compile_args, ext.extra_link_args = self.spelled(ext.extra_compile_args), []

    def spelled(self, flags):
        return [f"/clang:{flag}" for flag in flags] if self.compiler.compiler_type == "msvc" else flags

    def commands(self):
        """A file with what compiles and links, written when that has changed: what is compiled depends on it."""
        commands = [getattr(self.compiler, name, None) for name in ("compiler_so", "linker_so", "cc", "linker")]
        searched = {name: os.environ.get(name) for name in ("CPATH", "C_INCLUDE_PATH", "LIBRARY_PATH")}
        path, text = Path(self.build_temp, "commands.txt"), f"{commands}\n{searched}\n"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return str(path)

    def build_extension(self, ext):
        if ext.name == "microgpt.engine._engine":
            variants = [(dtype, name) for dtype in POLICIES for name in INSTRUCTION_SETS]
            with ThreadPoolExecutor(self.parallel) as pool:
                ext.extra_objects += pool.map(lambda variant: self.kernels(ext, *variant, *INSTRUMENTS), variants)
        super().build_extension(ext)

    def kernels(self, ext, dtype, instruction_set, *flags):
        """The object file of the kernels for this element type and instruction set."""
        sources, folder = ["csrc/kernels/kernels.c"], os.path.join(self.build_temp, dtype, instruction_set)
        (compiled,) = self.compiler.object_filenames(sources, output_dir=folder)
        if self.force or newer_group(ext.depends, compiled, "newer"):
            flags = [*POLICIES[dtype], *INSTRUCTION_SETS[instruction_set], *flags]
            flags.append(f"-DMICROGPT_INSTRUCTION_SET={instruction_set}")
            self.compiler.compile(sources, folder, extra_postargs=self.spelled(flags), depends=ext.depends)
        return compiled


class Probe(Build):
    """Builds the module of csrc/probe.c and, in a moment because unoptimized, kernels; all of it is thrown away."""

    def build_extensions(self):
        self.use_clang_cl()
        super(Build, self).build_extensions()

    def build_extension(self, ext):
        ext.extra_objects = [self.kernels(ext, "float64", FIRST, "-O0", "-fno-sanitize=undefined")]  # as Zig would
        super().build_extension(ext)


@contextlib.contextmanager
def output_to(file):
    """Let what this process and its children print go into a file."""
    kept = [os.dup(descriptor) for descriptor in (1, 2)]
    for descriptor in (1, 2):
        os.dup2(file.fileno(), descriptor)
    try:
        yield
    finally:
        for descriptor in (1, 2):
            os.dup2(kept[descriptor - 1], descriptor)
            os.close(kept[descriptor - 1])


def what_failed(error, output):
    """The first error that the compiler printed."""
    for line in output.splitlines():
        if re.search(r"Python\.h.*(No such file|not found)", line):
            return "no Python.h, which Debian and Ubuntu have in python3-dev, Fedora in python3-devel"
        if match := re.search(r'error: (?:#error )?"(.*)"$', line):  # one of kernels/arithmetic.h
            return match[1]
        if match := re.search(r"\berror(?: C\d+)?: (.*)|(undefined reference.*)", line):
            return f"the C compiler says: {match[1] or match[2]}"
    return f"the C compiler says: {output.splitlines()[0]}" if output else f"no C compiler ({error!s:.80})"


def why_not_built(probe):
    """Why the probe cannot be built, or None."""
    with tempfile.TemporaryFile() as output:
        try:
            with output_to(output):
                probe.run()
        except (CompileError, LinkError, PlatformError) as error:
            output.seek(0)
            return what_failed(error, output.read().decode(errors="replace"))
    return None


def why_not_imported(folder):
    """Why the module in this folder cannot be imported, or None."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {folder!r}); import probe"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode == 0:
        return None
    lines = answer.stderr.splitlines() or [f"what the C compiler builds ends with status {answer.returncode}"]
    return lines[-1].removeprefix("ImportError: ")


def why_pure():
    """Why there can be no compiled half here, or None."""
    if os.environ.get("MICROGPT_NO_EXTENSIONS") == "1":
        return "MICROGPT_NO_EXTENSIONS=1"
    if platform.python_implementation() != "CPython":
        return f"{platform.python_implementation()}, for which there is none"
    if 1e16 + 2.99999 != 1e16 + 2:  # rounded twice, to 64 bits and to 53
        return "a Python that computes with the x87, whose last bits are others"
    with tempfile.TemporaryDirectory() as folder:
        module = extension("probe", "csrc/probe.c", *INSTRUCTION_SETS[FIRST])
        probe = Probe(Distribution({"ext_modules": [module]}))
        probe.build_lib = probe.build_temp = folder
        probe.ensure_finalized()
        return why_not_built(probe) or (None if CROSS else why_not_imported(folder))


class BuildPackage(build_py):
    """Leaves word beside a pure package of why it is one, for `microgpt info`."""

    def run(self):
        super().run()
        if reason:
            Path(self.word()).write_text(reason, encoding="utf-8")

    def word(self):
        return os.path.join("" if self.editable_mode else self.build_lib, "microgpt", "why_pure.txt")

    def get_outputs(self, include_bytecode=True):
        return [*super().get_outputs(include_bytecode), *([self.word()] if reason else [])]


class BuildAll(build):
    """Leaves nothing in its folder but what it has built, or modules that are gone would be in the next wheel."""

    def run(self):
        super().run()
        commands = [self.get_finalized_command(name) for name in self.get_sub_commands()]
        built = {os.path.abspath(path) for command in commands for path in command.get_outputs()}
        for path in Path(self.build_base).glob(f"{Path(self.build_lib).name}/microgpt/**/*"):
            if path.is_file() and os.path.abspath(path) not in built:
                path.unlink()


def readme():
    """README.md as the package index shows it: with links to this version's files at the project's address."""
    source = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"]["urls"]["Source"]
    version = re.search('^__version__ = "(.*)"$', Path("microgpt/__init__.py").read_text("utf-8"), re.MULTILINE)[1]
    return re.sub(r"\]\((?!https://|#)", f"]({source}/blob/v{version}/", Path("README.md").read_text("utf-8"))


reason = why_pure()
if reason and REQUIRED:
    sys.exit(f"microgpt: MICROGPT_REQUIRE_EXTENSIONS=1, but: {reason}")
if reason:
    print(f"microgpt: building the pure package, without the compiled engine: {reason}", file=sys.stderr)
modules = {"engine._engine": "engine", "random._mersenne": "mersenne", "_value": "value"}
setup(
    long_description=readme(),
    long_description_content_type="text/markdown",
    ext_modules=[
        extension(f"microgpt.{name}", f"csrc/{source}.pyx", *INSTRUMENTS)
        for name, source in ({} if reason else modules).items()
    ],
    cmdclass={"build": BuildAll, "build_ext": Build, "build_py": BuildPackage},
    options={"build": {"build_base": {"": "build", "1": "build/instrumented"}.get(INSTRUMENT, f"build/{INSTRUMENT}")}},
)
