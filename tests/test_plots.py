"""Curves of losses, and what notebooks show."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest

from microgpt import train
from microgpt.commands import cli
from microgpt.display.plots import check_plot_path, losses_svg, plot_losses
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


def test_the_svg_has_the_curves_and_their_names(matplotlib) -> None:
    svg = losses_svg(history(100))
    names = {"step", "loss (nats)", "training", "training, mean of 5", "validation"}
    assert set(re.findall(r"<text[^>]*>([a-z][^<]*)<", svg)) == names
    assert svg.startswith("<svg ")
    assert svg.endswith("</svg>\n")
    assert "currentColor" in svg


def test_the_peak_of_a_long_run_is_drawn(matplotlib) -> None:
    run = history(100_000, 0)
    run.losses[54_321] = 9.0
    ticks = re.findall(r"<text[^>]*>([\d.]+)<", losses_svg(run))
    assert {"3", "8"} <= set(ticks)  # the axis reaches from the others, all between 2 and 3, to it


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


def test_notebooks_show_a_model_and_its_training(matplotlib, backend) -> None:
    result = train(**TINY, backend=backend)
    shown = result._repr_html_()
    assert shown.startswith(result.model._repr_html_())
    assert shown.count("<table>") == 2
    assert shown.endswith("</svg>\n")
    for name, fact in {"parameters": "424", "n_embd": "4", "backend": backend, "tokenizer": "CharTokenizer"}.items():
        assert re.search(f">{name}</th><td[^>]*>{fact}<", shown)
    assert f"{result.losses.mean():.4f} nats, mean of the last 5 steps" in shown


def test_notebooks_show_tables_without_matplotlib(without_matplotlib) -> None:
    shown = train(**TINY)._repr_html_()
    assert shown.count("<table>") == 2
    assert "<svg" not in shown


@needs_processes
def test_drawing_and_showing_are_imported_when_used() -> None:
    heavy = {"matplotlib", "microgpt.display.html", "microgpt.report"}
    code = f"import sys, microgpt.commands.cli; print({heavy} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
