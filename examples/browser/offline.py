"""Copy the playground, and all that it loads, into a folder for any web server: no network is needed then.

    python examples/browser/offline.py FOLDER --pyodide RELEASE
    python -m http.server --directory FOLDER

RELEASE is an unpacked release of Pyodide (https://github.com/pyodide/pyodide/releases), which has NumPy and
safetensors, with the wheel of microgpt-fast beside them, from the package index:

    pip download --dest RELEASE --no-deps --only-binary :all: --python-version 3.14 \\
        --platform pyemscripten_2026_0_wasm32 microgpt-fast
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[1] / "microgpt" / "display"  # what the report has, too: page.css and letters.js
PAGE = ("style.css", "settings.js", "worker.js", "playground.py")
PYODIDE = ("pyodide.mjs", "pyodide.asm.mjs", "pyodide.asm.wasm", "python_stdlib.zip", "pyodide-lock.json")
WHEELS = ("numpy", "safetensors", "microgpt_fast")


def newest_wheel(release: Path, name: str) -> Path:
    """The wheel of a package; if there are several, the one that was written last."""
    wheels = [file for file in release.glob("*.whl") if file.name.split("-")[0].lower() == name]
    if not wheels:
        sys.exit(f"{release} has no wheel of {name}")
    return max(wheels, key=lambda file: file.stat().st_mtime)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder to write")
    parser.add_argument("--pyodide", type=Path, required=True, help="the release of Pyodide, with the wheels")
    arguments = parser.parse_args()
    folder, release = arguments.folder, arguments.pyodide
    wheels = [newest_wheel(release, name) for name in WHEELS]
    for name in PYODIDE:
        if not (release / name).is_file():
            sys.exit(f"{release} has no {name}")

    (folder / "pyodide").mkdir(parents=True, exist_ok=True)
    for file in [HERE / name for name in PAGE] + [SHARED / "page.css", SHARED / "letters.js"]:
        shutil.copy(file, folder)
    for file in [release / name for name in PYODIDE] + wheels:
        shutil.copy(file, folder / "pyodide")
    for name in ("index.html", "playground.js"):
        content = (HERE / name).read_text("utf-8")
        (folder / name).write_text(content.replace("../../microgpt/display/", "./"), "utf-8")
    sources = {"pyodide": "./pyodide/", "wheels": [file.name for file in wheels]}
    (folder / "sources.json").write_text(json.dumps(sources, indent=2) + "\n", "utf-8")
    print(f"python -m http.server --directory {folder}")


if __name__ == "__main__":
    main()
