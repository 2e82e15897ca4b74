#!/usr/bin/env bash
# Build the compiled wheel for Pyodide, CPython in WebAssembly, and run the tests with it in node.
#
#     tools/test_pyodide.sh FOLDER [ARGUMENT OF PYTEST]...
#
# FOLDER keeps what is built. The first time, NumPy is compiled, too, which takes an hour. Its wheels/ then holds all that
# Pyodide needs to run microgpt without a network: unpack each with `pyodide.unpackArchive(buffer, "wheel")`.
#
# Needs on the path: Emscripten and Python, with headers, of the versions that PYODIDE was built with, and node with npm.
# Debian's unstable release has them; in a folder of its own it disturbs no other release:
#
#     debootstrap --variant=minbase --include=ca-certificates sid /opt/sid
#     mkdir /opt/sid/microgpt && mount --bind . /opt/sid/microgpt && mount --bind /proc /opt/sid/proc
#     chroot /opt/sid apt-get install --yes emscripten nodejs npm python3.15-dev python3.15-venv
#     chroot /opt/sid /microgpt/tools/test_pyodide.sh /opt/pyodide
#
# The wheels for users are built by cibuildwheel, for Pyodide's stable release, and tested by test_pyodide.mjs.
set -euo pipefail
PYODIDE=315.0.0-alpha.2 PYTHON=3.15 NUMPY=2.4.6 SAFETENSORS=0.8.0
[ $# -gt 0 ] || { echo "usage: $0 FOLDER [ARGUMENT OF PYTEST]..." >&2; exit 2; }
for command in emcc node npm "python$PYTHON"; do
    command -v "$command" > /dev/null || { echo "$0: no $command on the path" >&2; exit 2; }
done
project=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$1/wheels"
work=$(cd "$1" && pwd)
shift
export EM_CACHE="$work/emscripten"

echo "== Pyodide"
[ -d "$work/node_modules/pyodide" ] || npm install --silent --no-save --prefix "$work" "pyodide@$PYODIDE"
python="$work/venv/bin/python"
"python$PYTHON" -m venv "$work/venv"
# A Python that runs here, and tells those who build with it about the one in Pyodide: `sysconfig` has its variables,
# with which its configuration can be written in the place of this machine's.
mkdir -p "$work/target"
cat > "$work/target/variables.mjs" <<'NODE'
import { loadPyodide } from "pyodide";
const pyodide = await loadPyodide();
console.log(pyodide.runPython("import json, sysconfig; json.dumps([sysconfig.get_platform(), sysconfig.get_config_vars()])"));
NODE
ln -sfn "$work/node_modules" "$work/target/node_modules"
node "$work/target/variables.mjs" > "$work/target/variables.json"
"$python" - "$work/target" <<'PYTHON'
import json
import re
import shutil
import sys
import sysconfig
from pathlib import Path

target = Path(sys.argv[1])
platform, variables = json.loads((target / "variables.json").read_text("utf-8"))
headers = target / "include"
shutil.copytree(sysconfig.get_path("include"), headers, dirs_exist_ok=True)
# It has backtrace(), but modules cannot call it.
defined = {name: value for name, value in variables.items() if isinstance(value, int) and name != "HAVE_BACKTRACE"}
(headers / "pyconfig.h").write_text(
    "".join(f"#define {name} {value}\n" for name, value in defined.items() if value and re.fullmatch(r"_?[A-Z]\w+", name))
    + "#define _Py_STACK_GROWS_DOWN 1\n#define _GNU_SOURCE 1\n"
)
flags = "-fwasm-exceptions -sSUPPORT_LONGJMP=wasm"
variables |= {
    "INCLUDEPY": str(headers),
    "CONFINCLUDEPY": str(headers),
    "CC": "emcc",
    "CXX": "em++",
    "CFLAGS": f"-O2 -DNDEBUG -fPIC -DPY_CALL_TRAMPOLINE {flags}",
    "LDSHARED": f"emcc -shared -sSIDE_MODULE=1 -O2 {flags}",
}
(target / "_sysconfigdata_pyodide.py").write_text(f"build_time_vars = {variables!r}\n")
(target / "python").write_text(
    f"""#!/bin/sh
export _PYTHON_SYSCONFIGDATA_NAME=_sysconfigdata_pyodide _PYTHON_HOST_PLATFORM={platform} PYTHONPATH={target}
exec {sys.executable} "$@"
"""
)
(target / "python").chmod(0o755)
compiler = f"'-fPIC', '-DNDEBUG', '-DPY_CALL_TRAMPOLINE', {', '.join(map(repr, flags.split()))}"
linker = f"'-O2', {', '.join(map(repr, flags.split()))}"
(target / "cross.ini").write_text(
    f"""[binaries]
c = 'emcc'
cpp = 'em++'
ar = 'emar'
strip = 'emstrip'
cython = '{Path(sys.executable).with_name("cython")}'
python = '{target / "python"}'
exe_wrapper = 'node'
[built-in options]
c_args = [{compiler}]
cpp_args = [{compiler}]
c_link_args = [{linker}]
cpp_link_args = [{linker}]
[properties]
needs_exe_wrapper = true
skip_sanity_check = true
longdouble_format = 'IEEE_QUAD_LE'
[host_machine]
system = 'emscripten'
cpu_family = 'wasm32'
cpu = 'wasm32'
endian = 'little'
"""
)
PYTHON
"$python" -m pip install --quiet "Cython>=3.1" "setuptools>=77" meson-python ninja wheel

# Build a wheel for Pyodide with that Python.
wheel() {
    PATH="$work/venv/bin:$PATH" "$work/target/python" -m pip wheel --quiet --no-deps --no-build-isolation \
        --wheel-dir "$work/wheels" "$@"
}

if [ -z "$(find "$work/wheels" -name 'numpy-*.whl')" ]; then
    echo "== NumPy"
    options=()
    for option in "--cross-file=$work/target/cross.ini" -Dallow-noblas=true -Dblas=none -Dlapack=none \
        -Ddisable-optimization=true; do options+=("--config-settings=setup-args=$option"); done
    wheel --no-binary numpy --config-settings=install-args=--tags=runtime,python-runtime "${options[@]}" "numpy==$NUMPY"
fi

echo "== the wheels"
if [ -z "$(find "$work/wheels" -name 'safetensors-*.whl')" ]; then
    "$python" -m pip download --quiet --no-deps --only-binary :all: --python-version 3.12 --dest "$work/sources" \
        --platform manylinux2014_x86_64 "safetensors==$SAFETENSORS"
    "$python" -m zipfile --extract "$work"/sources/safetensors-*.whl "$work/safetensors"
    rm "$work"/safetensors/safetensors/*.so
    cp "$project/tools/_safetensors_rust.py" "$work/safetensors/safetensors"
    sed -i "s/^Tag: .*/Tag: py3-none-any/" "$work"/safetensors/*.dist-info/WHEEL
    "$python" -m wheel pack --dest-dir "$work/wheels" "$work/safetensors" > "$work/output"
fi
"$python" -m pip download --quiet --only-binary :all: --platform any --no-deps --dest "$work/wheels" \
    hypothesis iniconfig packaging pluggy pygments pytest setuptools sortedcontainers tqdm
rm -f "$work"/wheels/microgpt_fast-*.whl
MICROGPT_REQUIRE_EXTENSIONS=1 wheel "$project"

echo "== the tests"
ulimit -s 400000 # KiB: tests of deep data need more than the megabyte of node's stack
cd "$work"
MICROGPT_REQUIRE_EXTENSIONS=1 node --stack-size=300000 "$project/tools/test_pyodide.mjs" "$work/wheels" "$@"
