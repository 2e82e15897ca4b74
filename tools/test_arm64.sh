#!/usr/bin/env bash
# Cross-compile the wheel for arm64 and run the tests of the compiled engine there, under qemu's emulation.
#
#     apt-get install gcc-aarch64-linux-gnu qemu-user
#     tools/test_arm64.sh [ARGUMENT OF PYTEST]...    # default: the tests of the compiled engine, ten minutes
#
# For Debian on another processor, of the release with python3.11: Python and the C library for arm64 are the release's
# own packages, unpacked into a temporary folder. The golden files were made on x86-64, so their tests compare float64
# bit for bit between the two. What float32 gives is compared with float64, as everywhere.
set -euo pipefail
project=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

echo "== Python for arm64"
mkdir -p "$work"/apt/{state/lists,cache/archives}/partial "$work/root"
: > "$work/apt/status"
cat > "$work/apt/conf" <<CONF
APT::Architecture "arm64";
APT::Architectures "arm64";
APT::Sandbox::User "root";
Dir::State "$work/apt/state";
Dir::State::status "$work/apt/status";
Dir::Cache "$work/apt/cache";
CONF
export APT_CONFIG="$work/apt/conf"
apt-get --quiet=2 update
apt-get --quiet=2 install --yes --download-only --no-install-recommends libpython3.11-dev libstdc++6 python3.11
unset APT_CONFIG
for package in "$work"/apt/cache/archives/*.deb; do dpkg-deb --extract "$package" "$work/root"; done
cat > "$work/python" <<PYTHON
#!/bin/sh
export PYTHONHOME=$work/root/usr PYTHONPATH=$work/site
exec qemu-aarch64 -0 "\$0" -L "$work/root" "$work/root/usr/bin/python3.11" "\$@" # -0: for sys.executable
PYTHON
chmod +x "$work/python"

echo "== the wheel"
python3.11 -m venv "$work/venv"
export CC=aarch64-linux-gnu-gcc
if command -v ccache > /dev/null; then export CC="ccache $CC" CCACHE_NOHASHDIR=1; fi
CFLAGS="-I$work/root/usr/include/python3.11 -I$work/root/usr/include" LDSHARED="aarch64-linux-gnu-gcc -shared" \
    _PYTHON_HOST_PLATFORM=linux-aarch64 SETUPTOOLS_EXT_SUFFIX=.cpython-311-aarch64-linux-gnu.so \
    MICROGPT_REQUIRE_EXTENSIONS=1 "$work/venv/bin/pip" wheel --quiet --no-deps --wheel-dir "$work" "$project"
platforms=(--platform linux_aarch64 --platform manylinux_2_17_aarch64 --platform manylinux_2_28_aarch64)
"$work/venv/bin/pip" install --quiet --target "$work/site" --only-binary :all: --python-version 3.11 "${platforms[@]}" \
    "$work"/*.whl pytest hypothesis

echo "== the tests"
cd "$project/tests"
[ $# -gt 0 ] || set -- -k compiled
"$work/python" -m microgpt info | grep "instruction set *neon"
MICROGPT_REQUIRE_EXTENSIONS=1 "$work/python" -m pytest -q -p no:cacheprovider "$@"
