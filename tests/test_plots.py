"""Curves of losses, and what notebooks show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microgpt import train
from microgpt.commands import cli
from microgpt.display.curves import comparison_svg, losses_svg, round_numbers
from microgpt.display.plots import check_plot_path, plot_losses
from microgpt.history import TrainingHistory

from conftest import needs_processes

TINY = {"steps": 5, "n_embd": 4, "n_head": 2, "block_size": 4}
TINY_OPTIONS = ["--steps=5", "--n-embd=4", "--n-head=2", "--block-size=4", "--samples=0"]
SIGNATURES = {"png": b"\x89PNG\r\n", "svg": b"<?xml", "pdf": b"%PDF-"}


def history(steps: int, validations: int = 3) -> TrainingHistory:
    losses = 2 + np.random.default_rng(1).random(steps)
    return TrainingHistory(losses, [(10 * i, 3 - i / 10) for i in range(validations)], {"steps": steps}, 1.5)


@pytest.fixture
def without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)


@pytest.fixture
def matplotlib():
    return pytest.importorskip("matplotlib")


@pytest.mark.parametrize("ending", SIGNATURES)
@pytest.mark.parametrize(("steps", "validations"), [(0, 0), (0, 1), (1, 0), (7, 1), (100_000, 3)])
def test_every_history_is_drawn_in_every_format(matplotlib, tmp_path, ending, steps, validations) -> None:
    before = dict(matplotlib.rcParams)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("one", "two"):
            plot_losses(history(steps, validations), tmp_path / f"{name}.{ending}")
    content = (tmp_path / f"one.{ending}").read_bytes()
    assert content.startswith(SIGNATURES[ending])
    assert content == (tmp_path / f"two.{ending}").read_bytes()
    assert len(content) < 200_000
    assert dict(matplotlib.rcParams) == before


def numbers(svg: str, anchor: str) -> list[float]:
    """The numbers at an axis: those whose text ends at it, or is in the middle below."""
    return [float(number.replace(",", "")) for number in re.findall(rf'{anchor}">([\d.,]+)</text>', svg)]


def test_the_svg_has_the_curves_their_names_and_the_words(without_matplotlib) -> None:
    run = history(100)
    svg = losses_svg(run, guessing=3.3)
    ElementTree.fromstring(svg)
    assert re.findall(r"tspan[^>]*>([a-z][^<]*)<", svg) == ["training", "mean of 5", "validation"]
    assert svg.count("<path ") == 3
    assert svg.endswith("</svg>\n")
    assert f"mean of 5 from {run.losses[:5].mean():.2f} at step 5 to {run.losses[95:].mean():.2f} at step 100" in svg
    assert "validation from 3.00 at step 0 to 2.80 at step 20; guessing blindly costs 3.30" in svg
    assert losses_svg(run).count("guessing") == 0
    assert numbers(svg, "middle") == [0, 25, 50, 75, 100]
    assert numbers(losses_svg(run, steps=1000), "middle")[-1] == 1000


@pytest.mark.parametrize(("steps", "validations"), [(0, 0), (0, 1), (1, 0), (7, 1), (100_000, 3)])
def test_every_history_has_an_svg(steps, validations) -> None:
    run = history(steps, validations)
    if validations:
        run.validation_losses.append((steps, np.nan))  # a run that has diverged
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = losses_svg(run)
    ElementTree.fromstring(svg)
    assert len(svg) < 50_000
    assert "nan" not in svg
    assert len(numbers(svg, "end")) >= 2
    assert svg.count("<path ") == 2 * (steps > 0) + (validations > 0)


def test_lines_of_training_are_behind_those_of_validation_where_there_are_any() -> None:
    def widths(svg: str) -> list[str]:
        return re.findall(r'<path [^>]*stroke-width="([\d.]+)"', svg)

    assert widths(losses_svg(history(100))) == ["1", "2.25", "2.25"]
    run, unvalidated = history(100), history(100, 0)
    assert widths(comparison_svg({"one": run, "two": unvalidated})) == ["1.25", "1.25", "2.25"]
    assert widths(comparison_svg({"one": unvalidated, "two": unvalidated})) == ["2.25", "2.25"]


def test_the_peak_of_a_long_run_is_drawn() -> None:
    run = history(100_000, 0)
    run.losses[54_321] = 9.0
    levels = numbers(losses_svg(run), "end")
    assert min(levels) <= 2
    assert max(levels) >= 9  # the axis reaches from the others, all between 2 and 3, to it


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.integers(3, 9))
def test_round_numbers_enclose_what_is_drawn(low, span, most) -> None:
    levels = round_numbers(low, low + span, most)
    slack = 1e-6 * max(1.0, abs(low), span)
    assert 2 <= len(levels) <= most + 1
    assert levels == sorted(set(levels))
    assert levels[0] <= low + slack
    assert levels[-1] >= low + span - slack


def test_the_command_draws_what_it_trained(matplotlib, tmp_path, capsys, backend) -> None:
    file = tmp_path / "losses.PNG"
    assert cli.main(["train", *TINY_OPTIONS, f"--backend={backend}", f"--plot={file}"]) == 0
    assert file.read_bytes().startswith(SIGNATURES["png"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("losses.gif", "a plot must end in .png, .svg or .pdf, got losses.gif"),
        ("losses", "a plot must end in .png, .svg or .pdf, got losses"),
        ("", "a plot must end in .png, .svg or .pdf, got "),
        ("nowhere/losses.png", "cannot write nowhere/losses.png: No such file or directory"),
    ],
)
def test_a_plot_that_cannot_be_is_refused_before_training(tmp_path, monkeypatch, capsys, name, message) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", *TINY_OPTIONS, "--plot", name]) == 2
    assert capsys.readouterr() == ("", f"microgpt: error: {message}\n")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("other", ["--out", "--log"])
def test_a_plot_is_a_file_of_its_own(matplotlib, tmp_path, monkeypatch, capsys, other) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", *TINY_OPTIONS, "--plot=a.svg", f"{other}=a.svg"]) == 2
    message = f"{other[2:]} and plot must be different files, got a.svg for both"
    assert capsys.readouterr() == ("", f"microgpt: error: {message}\n")
    assert os.listdir(tmp_path) == []


def test_without_matplotlib_the_plot_says_what_to_install(without_matplotlib, tmp_path) -> None:
    for draw in (lambda: check_plot_path(tmp_path / "a.png"), lambda: plot_losses(history(3), tmp_path / "a.png")):
        with pytest.raises(ImportError, match=r'matplotlib is not installed: pip install "microgpt-fast\[plot\]"'):
            draw()
    assert os.listdir(tmp_path) == []


def test_notebooks_show_a_model_and_its_training(without_matplotlib, backend) -> None:
    result = train(**TINY, backend=backend)
    shown = result._repr_html_()
    assert shown.startswith(result.model._repr_html_())
    assert shown.count("<table>") == 2
    assert shown.endswith("</svg>\n")
    for name, fact in {"parameters": "424", "n_embd": "4", "backend": backend, "tokenizer": "CharTokenizer"}.items():
        assert re.search(f">{name}</th><td[^>]*>{fact}<", shown)
    assert f"{result.losses.mean():.4f} nats, mean of the last 5 steps" in shown


@needs_processes
def test_drawing_and_showing_are_imported_when_used() -> None:
    heavy = {"matplotlib", "microgpt.display.html", "microgpt.report"}
    code = f"import sys, microgpt.commands.cli; print({heavy} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
