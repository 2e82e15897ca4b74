"""The README and docs/: everything they show works as printed.

A page's Python blocks run in one namespace, and its `microgpt` command lines as a user would type them, in the order of
the page and in one folder, which has the files that the pages mention. No run has more than MOST_STEPS steps.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import io
import random
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import microgpt
from microgpt.commands.cli import build_parser, main
from microgpt.training.recipe import Recipe
from microgpt.tuning.drawing import Drawing

from conftest import needs_compiled

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MOST_STEPS = 20
TESTED_ELSEWHERE = {"bench"}  # slow: here only its arguments are checked

BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
C_BLOCK = re.compile(r"^```c\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OTHERS = re.compile(r"^```py\n(.*?)^```$", re.MULTILINE | re.DOTALL)  # Python that needs other packages
COMMAND = re.compile(r"^((?:.* \| )?microgpt (?:.*\\\n)*.*)$", re.MULTILINE)  # and what is piped into it


def examples(page: Path) -> Iterator[tuple[int, str, str]]:
    """Line, kind ("python" or "command") and source of everything that a page shows, in its order."""
    text = page.read_text(encoding="utf-8")
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start(2))
        if block[1] == "python":
            yield line, "python", block[2]
        else:
            for command in COMMAND.findall(block[2]):
                yield line, "command", command


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the pages mention, and short runs."""
    names, draw = microgpt.read_documents()[:1000], random.Random(0)
    (tmp_path / "names.txt").write_text("\n".join(names))
    (tmp_path / "more-names.txt.gz").write_bytes(gzip.compress("\n".join(names).encode()))
    speeches = [f"{draw.choice(['ROMEO', 'JULIET'])}:\n{' '.join(draw.choices(names, k=9))}\n" for _ in range(500)]
    for name in ("shakespeare.txt", "text.txt"):
        (tmp_path / name).write_text("\n".join(speeches))

    step_count = Recipe.step_count
    monkeypatch.setattr(Recipe, "step_count", lambda *arguments: min(step_count(*arguments) or MOST_STEPS, MOST_STEPS))

    trials = Drawing.trials

    def short_trials(drawing: Drawing, count: int, flops: int) -> list[microgpt.Trial]:
        drawn = trials(drawing, count, flops)
        for trial in drawn:
            trial.options["steps"] = min(trial.steps, MOST_STEPS)
        return drawn

    monkeypatch.setattr(Drawing, "trials", short_trials)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_command(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command line, and the command that is piped into it."""
    *piped, line = line.replace("\\\n", "").split(" | ")
    if piped:
        *command, file = shlex.split(piped[0])
        assert command == ["gunzip", "-c"]  # not every system has gunzip
        content = gzip.decompress(Path(file).read_bytes())
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    _, *arguments = shlex.split(line, comments=True)
    if arguments and arguments[0] in TESTED_ELSEWHERE:
        build_parser().parse_args(arguments)
    else:
        assert main(arguments) == 0, line


@needs_compiled
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_shows_works(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    if page.name == "file-format.md":  # it starts from an existing model
        microgpt.train("names.txt", out="names.safetensors")
    namespace: dict[str, Any] = {}
    for line, kind, source in examples(page):
        if kind == "python":
            exec(compile("\n" * line + source, str(page), "exec"), namespace)
        else:
            run_command(source, monkeypatch)
    if page.name == "tutorial.md":  # its picture is the one that it makes; the last digits are the C library's
        shown, made = ((place / "graph.svg").read_text("utf-8") for place in (ROOT / "docs", folder))
        assert re.sub(r"(\.\d{4})\d+", r"\1", shown) == re.sub(r"(\.\d{4})\d+", r"\1", made)


def test_the_search_of_another_package_works(folder: Path) -> None:
    """The block of docs/scale.md that needs Optuna."""
    pytest.importorskip("optuna")
    (block,) = (each for each in OTHERS.findall((ROOT / "docs" / "scale.md").read_text("utf-8")) if "optuna" in each)
    namespace: dict[str, Any] = {}
    exec(block, namespace)
    assert len(namespace["study"].trials) == 10
    assert namespace["study"].best_value < 4


def test_examples_are_found() -> None:
    """Each page has examples of each kind, in a form that `examples` finds."""
    shown = {page.name: [kind for _, kind, _ in examples(page)] for page in PAGES}
    assert shown["README.md"].count("python") == 2
    assert shown["README.md"].count("command") == 14
    for name, kinds in shown.items():
        assert len(kinds) >= {"numerics.md": 1, "architecture.md": 0, "platforms.md": 0}.get(name, 2), name


def test_every_option_that_a_page_names_is_there() -> None:
    parser = build_parser()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    known = {option for each in (parser, *commands.choices.values()) for option in each._option_string_actions}
    for page in (*PAGES, ROOT / "CONTRIBUTING.md"):
        named = re.findall(r"`(?:[^`\n]* )?(--[a-z-]+)[^`\n]*`", page.read_text(encoding="utf-8"))
        assert set(named) <= known, page


def test_c_on_a_page_is_that_of_the_kernels() -> None:
    kernels = "\n".join(file.read_text("utf-8") for file in (ROOT / "csrc" / "kernels").glob("*.h"))
    shown = [block for page in PAGES for block in C_BLOCK.findall(page.read_text("utf-8"))]
    assert shown
    assert all(block in kernels for block in shown)


def test_links_lead_somewhere() -> None:
    for page in (*PAGES, ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page}: {target}"


# From top to bottom: no file imports from a row above its own, not even inside a function.
LAYERS = [
    ["__init__", "__main__"],
    ["commands"],
    ["report"],
    ["tuning"],
    ["training"],
    ["model", "optimizer"],
    ["checkpoint", "evaluation", "inspection", "sampling", "stop"],
    ["data", "display", "history"],
    ["engine"],
    ["random", "reference"],
    ["config", "node"],
    ["utils"],
]


def imported(file: Path) -> set[str]:
    """The modules of the package that a file imports, anywhere in it, except only for annotations."""
    modules: set[str] = set()
    pending: list[ast.AST] = [ast.parse(file.read_text("utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            pending += node.orelse
        elif isinstance(node, ast.ImportFrom):
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        else:
            pending += ast.iter_child_nodes(node)
    return {module for module in modules if module.startswith("microgpt.")}


def test_imports_lead_down() -> None:
    package = Path(microgpt.__file__).parent
    ranks = {name: rank for rank, row in enumerate(LAYERS) for name in row}
    for file in package.rglob("*.py"):
        own = file.relative_to(package).with_suffix("").parts[0]
        for module in imported(file):
            name = module.split(".")[1]
            if not name.startswith("_"):  # a compiled module, or the version
                assert ranks[name] >= ranks[own], f"{file} imports {module}"


def test_the_architecture_page_says_what_every_file_holds() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    sources = {".py", ".pyi", ".pyx", ".h", ".c", ".txt", ".html", ".css", ".js"}
    files = [
        path.relative_to(ROOT / top).as_posix()
        for top in ("microgpt", "csrc")
        for path in (ROOT / top).rglob("*")
        if path.suffix in sources and not path.name.startswith("__") and path.parent.name not in ("commands", "presets")
        if path.suffix != ".c" or not path.with_suffix(".pyx").exists()  # otherwise Cython has made it
    ]
    assert len(files) > 40
    assert [file for file in files if f"`{file}`" not in text] == []
