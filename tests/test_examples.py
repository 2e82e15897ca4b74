"""The scripts in examples/: each runs, and shows what it promises."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

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
