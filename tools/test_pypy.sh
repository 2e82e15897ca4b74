#!/usr/bin/env bash
# Run the tests with the pure package under PyPy.
#
#     apt-get install cargo pypy3 pypy3-venv
#     tools/test_pypy.sh [PYPY [ARGUMENT OF PYTEST]...]    # default: pypy3, tests that are not long, five minutes
#
# For PyPy 7.3 with Python 3.11, as in Debian 13, for which NumPy and Matplotlib have wheels. safetensors has none, and
# is compiled unless PIP_FIND_LINKS names a folder with a wheel; tokenizers is left out.
set -euo pipefail
project=$(cd "$(dirname "$0")/.." && pwd)
pypy=${1:-pypy3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$pypy" -m venv "$work/venv"
# Later releases of hypothesis are compiled, and do not support the PyPy of Debian 13.
"$work/venv/bin/pip" install --quiet --prefer-binary "$project" pytest "hypothesis<6.150" matplotlib

cd "$project/tests"
[ $# -gt 1 ] || set -- "$pypy" -m "not long"
"$work/venv/bin/microgpt" info | grep "no compiled engine"
"$work/venv/bin/python" -m pytest -q -p no:cacheprovider "${@:2}"
