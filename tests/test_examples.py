"""The scripts and the notebook in examples/: each runs, and shows what it promises."""

from __future__ import annotations

import ast
import contextlib
import inspect
import json
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import needs_compiled

pytestmark = [needs_compiled, pytest.mark.long]  # the reference would take hours

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def output(name: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def numbers(pattern: str, text: str) -> list[float]:
    """The groups of `pattern`, as numbers."""
    found = re.search(pattern, text, re.DOTALL)
    assert found, text
    return [float(number) for number in found.groups()]


def test_names_are_new_and_the_model_knows_which_way_to_read_them() -> None:
    text = output("names.py")
    before, after = numbers(r"step +0: validation loss ([\d.]+).*step 5,000: validation loss ([\d.]+)", text)
    assert after < before - 1
    assert len(re.search("^new: (.*)", text, re.MULTILINE)[1].split(", ")) == 12
    for name, forwards, reverse, backwards in re.findall(r"  (\w+) +([\d.]+)   (\w+) +([\d.]+)", text):
        assert reverse == name[::-1]
        assert float(forwards) < float(backwards)


def test_a_text_is_learnt(tmp_path: Path) -> None:
    text = output("shakespeare.py")
    first, last = numbers(r"first ten steps ([\d.]+) nats, of the last ten ([\d.]+)", text)
    assert last < 0.5 < first
    assert numbers(r"(\d+)% of these words", text)[0] > 80
    file = tmp_path / "file.txt"
    file.write_text("the rain in Spain stays mainly in the plain\nShall I\n" * 20)
    assert output("shakespeare.py", file).startswith("1,040 characters")


def test_the_motif_is_found() -> None:
    shares = r"(\d+)% of the sequences from the chain.* (\d+)% of the training.* (\d+)% of the sequences from the model"
    alone, trained_on, written = numbers(shares, output("dna.py"))
    assert alone < 5
    assert trained_on == 100
    assert written > 40


def test_the_rules_of_a_game_are_learnt() -> None:
    text = output("moves.py")
    before, after = numbers(r"before training: ([\d.]+)%.*after training: +([\d.]+)%", text)
    assert before < 5
    assert after > 85
    assert len(re.findall(r"^  ( [XO.]){3}$", text, re.MULTILINE)) == 3


def test_odd_ones_are_found_and_languages_told_apart() -> None:
    text = output("classes.py")
    strangers = re.search(r"^5 strangers among 200 names: (.*)$", text, re.MULTILINE)[1].split(", ")
    assert re.search(r"^the oddest: (.*)$", text, re.MULTILINE)[1].split(", ")[:5] == sorted(
        (f"{stranger} *" for stranger in strangers), key=text.index
    )
    right = [float(share) for share in re.findall(r"(\d+)% are right", text)]
    assert right == sorted(right)
    assert right[0] > 60
    assert right[-1] > 95


CELLS = [
    "".join(cell["source"])
    for cell in json.loads((EXAMPLES / "microgpt.ipynb").read_text("utf-8"))["cells"]
    if cell["cell_type"] == "code"
]


def run_cell(source: str, namespace: dict[str, Any]) -> Any:
    """The value of a cell's last line, if it is an expression, as Jupyter has it."""
    *rest, last = ast.parse(source).body
    shown = isinstance(last, ast.Expr)
    for nodes, mode in ((rest if shown else [*rest, last], "exec"), ([last] if shown else [], "eval")):
        if nodes:
            tree = ast.Expression(last.value) if mode == "eval" else ast.Module(nodes, [])
            code = compile(tree, "cell", mode, ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            value = eval(code, namespace)
            if inspect.iscoroutine(value):
                with contextlib.suppress(StopIteration):
                    value.send(None)
    return value if shown else None


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The packages that a cell installs, as in a browser."""
    names: list[str] = []

    async def install(name: str) -> None:
        names.append(name)

    monkeypatch.setitem(sys.modules, "micropip", types.SimpleNamespace(install=install))
    return names


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch, capsys, installed) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    values = [run_cell(cell, namespace) for cell in CELLS]
    text = capsys.readouterr().out
    assert 8 <= len(CELLS) <= 13
    assert "<svg " in values[1]._repr_html_()
    assert numbers(r"guessing: ([\d.]+).*trained: +([\d.]+)", text)[1] < 2.4
    assert len(re.findall(r"^(?:0\.2|0\.5|1\.0|1\.5)(?: [a-z]+){8}$", text, re.MULTILINE)) == 4
    assert values[4].shape == (7, 7)
    assert len(re.findall(r"^ *[\d,]+(?: [a-z]+){6}$", text, re.MULTILINE)) == 8
    assert set(text.splitlines()[-1].split()) <= set(namespace["planets"])
    assert values[-3] is True
    assert values[-2] == (4.0, 0.0, 2.0)
    assert ">data 4.0000<" in values[-1]._repr_svg_()


def test_the_notebook_installs_the_package_in_a_browser(monkeypatch, installed) -> None:
    monkeypatch.setattr(sys, "platform", "emscripten")
    run_cell(CELLS[0], {})
    assert installed == ["microgpt-fast"]


def test_no_name_is_assigned_in_two_cells_of_the_notebook() -> None:
    """marimo refuses such notebooks. In any other, cells that run again in another order would mix them up."""

    def assigned(cell: str) -> Iterator[str]:
        for node in ast.walk(ast.parse(cell)):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id
            elif isinstance(node, ast.Import):
                yield from (alias.asname or alias.name for alias in node.names)

    names = [name for cell in CELLS for name in set(assigned(cell))]
    assert len(names) > 10
    assert len(names) == len(set(names))
