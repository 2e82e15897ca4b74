"""Completion by shells."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from microgpt import GPTConfig, dataset_names
from microgpt.commands.cli import COMMANDS, build_parser, main
from microgpt.commands.completion import actions_of, known_values
from microgpt.training.recipe import Recipe

from conftest import needs_processes

COMPLETE = """
source "$1"
COMP_LINE=$2 COMP_POINT=${#2} COMP_CWORD=$(($# - 2))
COMP_WORDS=("${@:2}")
_shtab_microgpt microgpt "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@needs_processes
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ([""], [*COMMANDS]),
        (["tr"], ["train"]),
        (["train", "--sch"], ["--schedule"]),
        (["train", "--schedule", ""], ["linear", "cosine", "constant"]),
        (["train", "--data", "c"], [name for name in dataset_names() if name.startswith("c")]),
        (["data", "el"], ["elements"]),
        (["eval", "names.safetensors", "--data", "el"], ["elements"]),
        (["tune", "--dtype", "float6"], ["float64"]),
        (["sample", "na"], ["names.safetensors"]),
        (["eval", "names.safetensors", "na"], ["names.safetensors", "names.txt"]),
        (["train", "--out", "names.t"], ["names.txt"]),
    ],
)
def test_bash_completes(words: list[str], offered: list[str], capsys, tmp_path: Path) -> None:
    bash = shutil.which("bash") or pytest.skip("bash is not there")
    (tmp_path / "completion").write_text(script("bash", capsys), encoding="utf-8")
    for name in ("names.txt", "names.safetensors"):
        (tmp_path / name).write_text("")
    command = [bash, "-c", COMPLETE, "bash", "completion", "microgpt", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert set(done.stdout.split()) == set(offered)


@needs_processes
@pytest.mark.parametrize(("shell", "check"), [("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")])
def test_scripts_are_sound(shell: str, check: str, capsys, tmp_path: Path) -> None:
    (tmp_path / "completion").write_text(content := script(shell, capsys), encoding="utf-8")
    assert "molecules" in content
    program = shutil.which(shell) or pytest.skip(f"{shell} is not there")
    done = subprocess.run([program, check, tmp_path / "completion"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_named_value_is_known_and_valid() -> None:
    values = known_values()
    for action in actions_of(build_parser()):
        if action.metavar == "NAME":
            assert action.dest in values
    for name, allowed in values.items():
        if name in Recipe.__dataclass_fields__:
            for value in allowed:
                recipe = Recipe(**{name: value})
                assert isinstance(recipe.config(5), GPTConfig)


def test_what_cannot_be_completed_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", "ksh"]) == 2
    assert capsys.readouterr().err.startswith("microgpt: error: shell must be 'bash' or 'zsh' or ")
    monkeypatch.setattr("importlib.import_module", lambda name: (_ for _ in ()).throw(ModuleNotFoundError(name=name)))
    assert main(["completion", "bash"]) == 2
    message = 'shtab is not installed: pip install "microgpt-fast[completion]"'
    assert capsys.readouterr() == ("", f"microgpt: error: {message}\n")
