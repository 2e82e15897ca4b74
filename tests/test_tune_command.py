"""Arguments, results and plots of `tune`, and its command."""

from __future__ import annotations

import os
import pickle
import re
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from microgpt import Trial, TuningProgress, load, tune
from microgpt.commands._trials import differences, live_table, row
from microgpt.commands.cli import main
from microgpt.tuning.plots import best_models, plot_trials
from microgpt.tuning.space import Choices, Range, Share, parse_space

from conftest import needs_compiled, needs_processes
from searches import NAMES, OPTIONS, Forbidden, bits, lines


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"trials": 0}, ValueError, "trials must be at least 1, got 0"),
        ({"flops": 0.5}, ValueError, r"flops must be at least 1 and at most 1e\+30, got 0.5"),
        ({"time": 0}, ValueError, "time must be more than 0, got 0"),
        ({"steps": 5, "time": 3}, ValueError, "only one of steps, epochs, flops and time can be given, got steps and"),
        ({"max_params": 0}, ValueError, "max_params must be at least 1, got 0"),
        ({"max_bytes": 1.5}, TypeError, "max_bytes must be a whole number, got 1.5"),
        ({"val_fraction": 0}, ValueError, "val_fraction must be more than 0: trials are compared by their validation"),
        ({"seed": b"x"}, TypeError, "seed must be a number or a text for trials that go on, got b'x'"),
        ({"n_embd": 6}, ValueError, "n_embd must be a multiple of n_head, got n_embd=6 and n_head=4"),
        ({"colour": 1}, TypeError, r"tune\(\) got an unexpected option 'colour'"),
        ({"search": {"colour": [1]}}, ValueError, "search must name one of n_layer, .*, got 'colour'"),
        ({"search": {"n_embd": "a,b"}}, ValueError, "search of n_embd must be values such as 1,2,4 or a range such as"),
        ({"search": {"n_embd": []}}, ValueError, r"search of n_embd must be values such as .*, got \[\]"),
        ({"search": {"n_embd": 3}}, TypeError, "search of n_embd must be values such as .*, got 3"),
        ({"search": {"n_embd": [4, 0]}}, ValueError, "search of n_embd: n_embd must be at least 1, got 0"),
        ({"search": {"schedule": "linear,steep"}}, ValueError, "search of schedule: schedule must be 'linear' or"),
        ({"search": {"learning_rate": "0.1..0.01"}}, ValueError, "search of learning_rate must be values such as"),
        ({"search": {"schedule": "a..b"}}, ValueError, "search of schedule must be values such as"),
        ({"search": ["n_embd"]}, TypeError, "search must be a dict of values by option, got"),
        ({"search": {"n_embd": [4]}, "n_embd": 4}, ValueError, "n_embd can be given or searched, but not both"),
        ({"resume": True}, ValueError, "resume needs log, the file to continue from"),
        ({"executor": 3}, TypeError, "executor must be a concurrent.futures.Executor, got 3"),
        (
            {"executor": Forbidden(), "time": 1},
            ValueError,
            "time needs workers, the number of trials that the executor",
        ),
        ({"workers": 0}, ValueError, "workers must be at least 1, got 0"),
        ({"log": "nowhere/log"}, ValueError, "cannot write nowhere/log: No such file or directory"),
        ({"out": "nowhere/out"}, ValueError, "cannot write nowhere/out: No such file or directory"),
        ({"data": "nowhere.txt"}, ValueError, "cannot read nowhere.txt: No such file or directory"),
        ({"data": {"a", "b"}}, TypeError, "data must have an order"),
        ({"out": "same", "log": "same"}, ValueError, "out and log must be different files, got same for both"),
    ],
)
def test_bad_arguments_are_named(tmp_path: Path, monkeypatch, options: dict[str, Any], error, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=f"^{message}"):
        tune(**{"data": NAMES, "trials": 2, **options})
    assert os.listdir(tmp_path) == []


def test_values_to_search_are_lists_or_ranges() -> None:
    space = parse_space(
        {
            "n_embd": "8, 16",
            "n_layer": "1..4",
            "learning_rate": "1e-3..0.1",
            "weight_decay": "0..0.1",
            "warmup_steps": "0,10,5%",
            "init_std": "scaled,0.02",
            "batch_size": np.array([1, 2]),
            "activation": ("relu",),
        }
    )
    assert space["n_embd"] == Choices((8, 16))
    assert space["n_layer"] == Range(1, 4, whole=True)
    assert space["warmup_steps"] == Choices((0, 10, Share(5)))
    assert space["init_std"] == Choices(("scaled", 0.02))
    assert space["batch_size"] == Choices((1, 2))
    places = np.linspace(0, 1, 200, endpoint=False).tolist()
    assert [space["n_layer"].at(place) for place in (0, 0.9999)] == [1, 4]
    assert {space["n_layer"].at(place) for place in places} == {1, 2, 3, 4}
    assert space["learning_rate"].at(0.5) == 0.01
    assert space["weight_decay"].at(0.5) == 0.05
    assert space["weight_decay"].at(0) == 0


def test_help_shows_every_option() -> None:
    import pydoc

    text = pydoc.render_doc(tune, renderer=pydoc.plaintext)
    for option in ("trials", "executor", "flops", "search", "max_params", "n_embd", "learning_rate", "seed"):
        assert f"{option}: " in text


# Shown


def test_the_result_shows_itself_and_can_be_pickled(whole) -> None:
    result, _ = whole
    html = result._repr_html_()
    assert f"Options of trial {result.best.number}" in html
    assert f"{result.best.validation_loss:.4f} nats after {result.best.steps:,} of" in html
    assert html.count("trial ") >= len(result.trials)
    assert bits(pickle.loads(pickle.dumps(result))) == bits(result)
    assert result.command.startswith("microgpt train FILE --val-fraction 0.2 --steps ")


def test_the_command_line_finds_the_same_and_prints_how_to_repeat_it(whole, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("all names.txt").write_text("\n".join(NAMES))
    workers = [] if sys.platform == "emscripten" else ["--workers=2"]
    assert main(["tune", "all names.txt", *OPTIONS, *workers, "--out=tuned", "--log=log"]) == 0
    shown, errors = capsys.readouterr()
    assert errors == ""
    assert lines(Path("log")) == whole[1]
    printed = shown.splitlines()
    assert re.fullmatch(r"search  9 trials, 2 at a time, 1e\+05 multiply-adds each, in 3 rungs", printed[0])
    assert len(printed) == 2 + 9 + 3 + 1 + 3
    assert printed[-2] == "saved   tuned"
    how, command_line = printed[-1].split("  ", 1)
    assert how == "repeat"
    _, *arguments = shlex.split(command_line)
    assert arguments[:2] == ["train", "all names.txt"]
    assert main([*arguments, "--out=trained"]) == 0
    assert load("tuned").engine.parameters.tobytes() == load("trained").engine.parameters.tobytes()
    assert bits(whole[0])[1] == load("tuned").engine.parameters.tobytes()


@needs_processes
@needs_compiled
def test_time_becomes_flops_that_repeat_the_search(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    # However long it takes here to measure the rate, time is left to search.
    monkeypatch.setattr(sys.modules["microgpt.tuning.tune"], "time", SimpleNamespace(monotonic=lambda: 0.0))
    options = ["--trials=3", "--n-layer=1", "--search=n_embd=4,8", "--workers=2"]
    assert main(["tune", *options, "--time=1s", "--log=timed"]) == 0
    printed = capsys.readouterr().out.splitlines()
    flops = re.fullmatch(r"        --flops (\S+) in place of --time repeats it exactly", printed[1])[1]
    assert main(["tune", *options, f"--flops={flops}", "--log=counted"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == printed[-1]
    assert lines(Path("timed")) == lines(Path("counted"))
    assert main(["tune", *options, "--time=2s", "--log=timed", "--resume"]) == 0  # as it was measured before
    assert capsys.readouterr().out.splitlines()[-1] == printed[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--search=n_embd"], "search must be NAME=VALUES, such as n_embd=16,32,64, got 'n_embd'"),
        (["--search=n_embd=1", "--search=n-embd=2"], "search of n_embd must be given once, got '1' and '2'"),
        (["--plot=trials.gif"], "a plot must end in .png, .svg or .pdf, got trials.gif"),
        (["--plot=log.svg", "--log=log.svg"], "log and plot must be different files, got log.svg for both"),
        (["--dask=tcp://x:1", "--workers=2"], "workers is for processes on this machine: a Dask cluster, or mpiexec,"),
        (["--trials=0"], "trials must be at least 1, got 0"),
    ],
)
def test_a_wrong_command_line_is_one_line(tmp_path, monkeypatch, capsys, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["tune", *arguments]) == 2
    shown, errors = capsys.readouterr()
    assert shown == ""
    assert errors.startswith(f"microgpt: error: {message}")
    assert errors.count("\n") == 1


def test_without_an_extra_the_error_names_it(monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(["tune", "--dask=tcp://x:1"]) == 2
    assert 'distributed is not installed: pip install "microgpt-fast[dask]"' in capsys.readouterr().err


def new_trials() -> list[Trial]:
    trials = [Trial(i, {"steps": 90, "n_embd": 8 * (i + 1)}, 100 * (i + 1), 1000) for i in range(4)]
    trials[0].validation_losses = [(10, 2.5)]
    trials[1].validation_losses = [(10, 2.4), (30, 2.3), (90, 2.2)]
    trials[2].state, trials[2].error = "diverged", "the loss is nan at step 3"
    trials[3].validation_losses = [(10, 2.6)]
    return trials


def test_a_row_has_what_differs_from_trial_0() -> None:
    trials = new_trials()
    assert differences(trials[0], trials[0]) == "(as given)"
    assert differences(trials[1], trials[0]) == "n_embd 16"
    assert differences(Trial(5, {"steps": 9, "n_layer": 1, "n_head": 2}, 1, 1), trials[0]) == "n_head 2"
    assert re.fullmatch(r" +1 +2\.2000 +200 +90/90 +waiting +n_embd 16", row(trials[1], trials[0]))
    assert re.fullmatch(r" +2 +300 +0/90 +diverged +the loss is nan at step 3", row(trials[2], trials[0]))


def test_a_terminal_shows_a_table_that_vanishes(monkeypatch) -> None:
    class Terminal:
        text = ""

        def write(self, text: str) -> None:
            self.text += text

        def flush(self) -> None:
            pass

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((60, 7)))
    with live_table() as watch:
        watch(TuningProgress(new_trials(), 1, 3, 90_000, 2))
        table = terminal.text.split("\n")
        assert all(len(line) < 60 for line in table)
        assert [line.split()[0] for line in table[:4]] == ["trial", "1", "0", "3"]  # best first; three fit
        assert table[4].startswith("rung 1 of 3: 0 training, 3 waiting, ")
        watch(TuningProgress(new_trials(), 1, 3, 90_000, 2, new_trials()[0]))  # too soon to be seen
        assert terminal.text.count("\n") == 5
    assert terminal.text.endswith("\x1b[5F\x1b[J")


def test_plots_show_every_trial_and_the_front(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    trials = new_trials()
    assert best_models(trials[:2] + trials[3:]) == [trials[0], trials[1]]
    for name in ("one.svg", "two.svg", "one.png"):
        plot_trials(trials, tmp_path / name)
    svg = (tmp_path / "one.svg").read_text()
    assert svg == (tmp_path / "two.svg").read_text()
    assert {"multiply-adds", "parameters", "trial 1", "front of best models"} <= set(
        re.findall(r"<text[^>]*>([^<]*)<", svg)
    )
    plot_trials([], tmp_path / "none.svg")
    with pytest.raises(ValueError, match="must end in"):
        plot_trials(trials, tmp_path / "one.gif")


@needs_processes
def test_the_command_plots_its_trials(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    Path("names.txt").write_text("\n".join(NAMES))
    assert main(["tune", "names.txt", *OPTIONS, "--plot=trials.svg"]) == 0
    assert "multiply-adds" in Path("trials.svg").read_text()
