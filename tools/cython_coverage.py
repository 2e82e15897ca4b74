"""Report lines of Cython to coverage.py, from the counts of gcov in the generated C code.

    MICROGPT_INSTRUMENT=1 pip install .            # then run the tests
    python tools/cython_coverage.py build/instrumented

writes .coverage.cython, for `coverage combine`. Cython's own line tracing calls Python for each line: it would take the
GIL in nogil code, and thirty times as long.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from coverage import CoverageData

# Cython's comments above the code of a source line, and at the exit of a function.
SOURCE_LINE = re.compile(r'\s*/\* "(csrc/\w+\.pyx)":(\d+)$')
FUNCTION_EXIT = "/* function exit code */"


def times_run(counts: Path) -> dict[Path, dict[int, int]]:
    """Execution counts of each line of each C file, from a .gcda file."""
    command = ["gcov", "--json-format", "--stdout", counts.resolve()]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    files: dict[Path, dict[int, int]] = {}
    for file in answer["files"]:
        lines = files.setdefault(Path(answer["current_working_directory"], file["file"]), {})
        for line in file["lines"]:
            lines[line["line_number"]] = max(line["count"], lines.get(line["line_number"], 0))
    return files


def cython_lines(generated: Path, counts: dict[int, int]) -> dict[str, set[int]]:
    """The lines of Cython files whose C code was executed."""
    ran: dict[str, set[int]] = {}
    source = None
    for number, line in enumerate(generated.read_text(encoding="utf-8").splitlines(), 1):
        if at := SOURCE_LINE.match(line):
            source = at[1], int(at[2])
        elif FUNCTION_EXIT in line:
            source = None
        elif source and counts.get(number):
            ran.setdefault(source[0], set()).add(source[1])
    return ran


def main() -> None:
    arcs: dict[str, set[tuple[int, int]]] = {}
    for counts in Path(sys.argv[1]).rglob("*.gcda"):
        for file, lines in times_run(counts).items():
            if file.with_suffix(".pyx").exists():
                for name, ran in cython_lines(file, lines).items():
                    path = str(Path(name).resolve())
                    arcs.setdefault(path, set()).update((-1, line) for line in ran)
    if not arcs:
        sys.exit(f"tools/cython_coverage.py: there are no counts of Cython's C code in {sys.argv[1]}")
    data = CoverageData(".coverage.cython")
    data.erase()
    data.add_arcs(arcs)
    data.add_file_tracers(dict.fromkeys(arcs, "Cython.Coverage.Plugin"))
    data.write()


if __name__ == "__main__":
    main()
