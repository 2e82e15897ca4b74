#!/usr/bin/env bash
# Cross-compile the package for another processor and run the tests of the compiled engine there, under qemu's emulation.
#
#     apt-get install gcc-s390x-linux-gnu qemu-user
#     tools/test_emulated.sh s390x [ARGUMENT OF PYTEST]...    # default: the tests of the compiled engine, half an hour
#
# Runs on any release of Debian. The processor is one of Debian's unstable release, by Debian's name: s390x (big-endian),
# armhf (32 bits), arm64, ppc64el or riscv64. Python, NumPy and other imports of the tests are packages of that release,
# unpacked into a temporary folder. The golden files were made on x86-64, so their tests compare float64 bit for bit
# between the two processors; float32 is compared with float64.
set -euo pipefail
case "${1:-}" in
    arm64) triple=aarch64-linux-gnu emulator=qemu-aarch64 machine=aarch64 ;;
    armhf) triple=arm-linux-gnueabihf emulator=qemu-arm machine=armv7l ;;
    ppc64el) triple=powerpc64le-linux-gnu emulator=qemu-ppc64le machine=ppc64le ;;
    riscv64) triple=riscv64-linux-gnu emulator=qemu-riscv64 machine=riscv64 ;;
    s390x) triple=s390x-linux-gnu emulator=qemu-s390x machine=s390x ;;
    *) echo "usage: $0 arm64|armhf|ppc64el|riscv64|s390x [ARGUMENT OF PYTEST]..." >&2; exit 2 ;;
esac
architecture=$1
shift
project=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

echo "== Python for $architecture"
mkdir -p "$work"/apt/{state/lists,cache/archives}/partial "$work/root/usr/lib"
ln -s usr/lib "$work/root/lib"
: > "$work/apt/status"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian unstable main" \
    > "$work/apt/sources.list"
cat > "$work/apt/conf" <<CONF
APT::Architecture "$architecture";
APT::Architectures "$architecture";
APT::Sandbox::User "root";
Dir::Etc::sourcelist "$work/apt/sources.list";
Dir::Etc::sourceparts "-";
Dir::State "$work/apt/state";
Dir::State::status "$work/apt/status";
Dir::Cache "$work/apt/cache";
CONF
export APT_CONFIG="$work/apt/conf"
apt-get --quiet=2 update
apt-get --quiet=2 install --yes --download-only --no-install-recommends libpython3-dev libstdc++6 python3 \
    python3-hypothesis python3-numpy python3-pytest python3-safetensors python3-tqdm
unset APT_CONFIG
for package in "$work"/apt/cache/archives/*.deb; do dpkg-deb --extract "$package" "$work/root"; done
for library in blas/libblas lapack/liblapack; do ln -s "$library.so.3" "$work/root/usr/lib/$triple/"; done
version=$(basename "$(readlink "$work/root/usr/bin/python3")") # as in python3.14
cat > "$work/python" <<PYTHON
#!/bin/sh
export PYTHONHOME=$work/root/usr PYTHONPATH=$work/site:$work/root/usr/lib/python3/dist-packages
exec $emulator -0 "\$0" -L "$work/root" "$work/root/usr/bin/$version" "\$@" # -0: for sys.executable
PYTHON
chmod +x "$work/python"

echo "== the wheel"
python3 -m venv "$work/venv"
export CC="$triple-gcc"
if command -v ccache > /dev/null; then export CC="ccache $CC" CCACHE_NOHASHDIR=1; fi
CFLAGS="--sysroot=$work/root -I$work/root/usr/include/$version" LDSHARED="$triple-gcc -shared" \
    _PYTHON_HOST_PLATFORM=linux-$machine SETUPTOOLS_EXT_SUFFIX=.$("$work/python" -c "import sysconfig as s; \
    print(s.get_config_var('SOABI'))").so MICROGPT_REQUIRE_EXTENSIONS=1 \
    "$work/venv/bin/pip" wheel --quiet --no-deps --wheel-dir "$work" "$project"
python3 -m zipfile --extract "$work"/*.whl "$work/site"

echo "== the tests"
cd "$project/tests"
[ $# -gt 0 ] || set -- -k compiled
"$work/python" -m microgpt info | grep "^instruction set"
MICROGPT_REQUIRE_EXTENSIONS=1 "$work/python" -m pytest -q -p no:cacheprovider "$@"
