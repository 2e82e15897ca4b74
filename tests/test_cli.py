"""The command line as users run it, in a process of its own."""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import microgpt
from microgpt import load
from microgpt.commands.cli import COMMANDS, build_parser, hyphenated
from microgpt.engine import backend as backends
from microgpt.training.recipe import Recipe, defaults_of
from microgpt.training.train import prepare
from microgpt.utils.arguments import LARGEST

from conftest import compiled, needs_compiled, needs_processes

pytestmark = needs_processes

SMALL = ["--n-embd=4", "--n-head=2", "--block-size=4"]


def run(
    *arguments: object, folder: Path | None = None, stdin: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "microgpt", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **environment},
        input=stdin,
        check=False,
    )


def test_train_says_what_it_trains_and_samples(backend: str) -> None:
    result = run("train", "--steps=3", "--samples=4", *SMALL, f"--backend={backend}")
    lines = result.stdout.splitlines()
    assert result.returncode == 0
    assert re.fullmatch(r"(step \d/3  loss \d\.\d{4}\n)*", result.stderr)
    assert lines[0] == "data    names.txt: 5,163 documents, 4,937 of them cut to the context, 27 tokens"
    assert lines[1].startswith(
        "model   424 parameters: n_layer 1, n_embd 4, block_size 4, n_head 2; float64, " + backend
    )
    assert lines[2].startswith("trained 3 steps in ")
    assert len(lines) == 3 + 4


def test_alone_it_prints_a_guide_and_every_command_has_examples() -> None:
    guide = run()
    assert (guide.returncode, guide.stderr) == (0, "")
    assert guide.stdout.startswith("microgpt trains and samples tiny GPTs")
    assert run("--version").stdout == f"microgpt {microgpt.__version__}\n"
    for command in COMMANDS:
        assert f"\n  microgpt {command}" in guide.stdout
        shown = run(command, "--help").stdout
        assert re.search(rf"\nexamples?:\n  microgpt {command}", shown)
        assert not re.search(r"\(default:\s+(None|False|\[\])?\)", shown)
    shown = " ".join(run("train", "--help").stdout.split())
    assert "steps in which the learning rate first rises (default: 0)" in shown
    assert "for validation, such as 0.1 (default: 0.0)" in shown


def test_train_takes_every_option_of_a_run_with_its_default() -> None:
    parser = build_parser()
    parsed, recipe, own = vars(parser.parse_args(["train"])), defaults_of(Recipe), defaults_of(prepare)
    assert parsed.keys().isdisjoint(recipe)  # a run from another model asks which of them were given
    given = vars(parser.parse_args(["train", *(f"--{name.replace('_', '-')}=1" for name in recipe)]))
    assert recipe.keys() <= given.keys()
    assert own.keys() - recipe.keys() - {"data"} <= parsed.keys()
    shown = " ".join(run("train", "--help").stdout.split())
    assert all(f"(default: {default})" in shown for default in recipe.values() if default is not None)


def test_a_run_that_the_clock_ends_prints_lines_too() -> None:
    result = run("train", "--time=0.2", "--samples=0", *SMALL)
    assert result.returncode == 0
    assert re.fullmatch(r"(step [\d,]+  \d\.\d s  loss \d\.\d{4}\n)+", result.stderr)


def test_plain_output_has_the_originals_lines(backend: str, tmp_path: Path) -> None:
    (tmp_path / "input.txt").write_text("anna\nbob\n")
    result = run(
        "train", "input.txt", "--steps=2", "--samples=2", "--plain", f"--backend={backend}", *SMALL, folder=tmp_path
    )
    assert result.returncode == 0
    assert re.fullmatch(
        r"num docs: 2\nvocab size: 5\nnum params: 248\n"
        r"step    1 /    2 \| loss \d\.\d{4}\nstep    2 /    2 \| loss \d\.\d{4}\n"  # text mode turns \r into \n
        r"--- inference \(new, hallucinated names\) ---\nsample  1: \w*\nsample  2: \w*\n",
        result.stdout,
    )


def test_several_files_and_standard_input_are_trained_on(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("anna")
    (tmp_path / "two.txt.gz").write_bytes(gzip.compress(b"bob\n"))
    options = ["--tokenizer=bytes", "--long-documents=split", "--steps=2", "--samples=1", *SMALL]
    result = run("train", "one.txt", "-", "two.txt.gz", *options, folder=tmp_path, stdin="carl\ndi")
    assert result.returncode == 0
    assert result.stdout.startswith("data    one.txt, standard input, two.txt.gz: 4 documents, 257 tokens\n")
    result = run("train", "-", "--steps=2", folder=tmp_path, stdin="")
    assert (result.returncode, result.stderr[:48]) == (2, "microgpt: error: standard input has no documents")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--tokenizer=words"], "microgpt: error: tokenizer must be 'characters', 'bytes', a tokenizers file"),
        (["train", "--long-documents=wrap"], "microgpt: error: long_documents must be 'cut' or 'split', got 'wrap'"),
        (["train", "nowhere.txt"], "microgpt: error: cannot read nowhere.txt: No such file or directory"),
        (["train", "."], "microgpt: error: cannot read .: Is a directory"),
        (
            ["train", "empty.txt"],
            "microgpt: error: empty.txt has no documents: it must have at least one line that is not blank",
        ),
        (["train", "latin.txt"], "microgpt: error: latin.txt, line 2: not UTF-8 (invalid continuation byte)"),
        (["train", "--n-embd=6"], "microgpt: error: n_embd must be a multiple of n_head, got n_embd=6 and n_head=4"),
        (["train", "--n-layer=0"], "microgpt: error: n_layer must be at least 1, got 0"),
        (["train", "--steps=-1"], "microgpt: error: steps must be at least 0, got -1"),
        (["train", f"--steps={10**30}"], f"microgpt: error: steps must be at most {LARGEST}, got more"),
        (["train", "--epochs=1e308"], f"microgpt: error: epochs must make at most {LARGEST} steps, got 1e+308"),
        (["train", "--temperature=-1"], "microgpt: error: temperature must be at least 0, got -1"),
        (["train", "--samples=-1"], "microgpt: error: samples must be at least 0, got -1"),
        (["train", "--dtype=int8"], "microgpt: error: dtype must be 'float64' or 'float32', got 'int8'"),
        (
            ["train", "--steps=many"],
            "microgpt train: error: argument --steps: invalid int value: 'many' (see microgpt train --help)",
        ),
        (
            ["train", "--learning-rate=1e300", "--steps=50", *SMALL],
            "microgpt: error: the loss is nan at step",
        ),
        (["train", "--n_embd=6"], "microgpt: error: n_embd must be a multiple of n_head, got n_embd=6 and n_head=4"),
        (["train", "--stps=6"], "microgpt train: error: unrecognized arguments: --stps=6 (see microgpt train --help)"),
        (["train", "--\x1b[2J\n\u202e"], r"microgpt train: error: unrecognized arguments: --\x1b[2J\n\u202e (see"),
        (["train", "\x1b[2J\n"], r"microgpt: error: cannot read '\x1b[2J\n': No such file or directory"),
        (["train", "--plot=\x1b[2J"], r"microgpt: error: a plot must end in .png, .svg or .pdf, got '\x1b[2J'"),
        (["report", "model", "--out=page.pdf"], "microgpt: error: a report must end in .html or .htm, got page.pdf"),
        (
            ["train", "one.txt", "--steps=0", "two.txt"],
            "microgpt train: error: unrecognized arguments: two.txt; files must stand together (see",
        ),
        (["trian"], "microgpt: error: argument COMMAND: invalid choice: 'trian'"),
        (
            ["train", "--time=soon"],
            "microgpt train: error: argument --time: must be a time such as 60s, 5m or 1.5h, got 'soon'",
        ),
    ],
)
def test_bad_input_is_one_line_and_status_2(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes(b"anna\nren\xe9\n")
    result = run(*arguments, folder=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1
    assert "inference" not in result.stdout


def test_only_names_of_options_may_have_underscores() -> None:
    arguments = ["train", "--n_embd", "8", "--log=a_b=c_d", "--plot", "-a_b", "a_b", "--", "--n_embd"]
    assert hyphenated(arguments) == ["train", "--n-embd", *arguments[2:]]


def test_what_standard_output_cannot_encode_is_escaped(tmp_path: Path) -> None:
    (tmp_path / "sun.txt").write_text("日\n", encoding="utf-8")
    options = ["--steps=50", "--samples=1", "--temperature=0.01", "--learning-rate=0.1", *SMALL]
    result = run("train", "sun.txt", *options, folder=tmp_path, PYTHONIOENCODING="cp1252")
    assert result.returncode == 0
    assert result.stdout.splitlines()[-1].strip() == r"\u65e5"


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_stream_that_is_closed_is_printed_to_in_vain(closed: str, tmp_path: Path) -> None:
    command = ["microgpt", "train", "--steps=1", f"--out={tmp_path / 'model'}", *SMALL]
    script = f"import sys; sys.{closed} = None; from microgpt.commands.cli import main; sys.exit(main({command[1:]}))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert (tmp_path / "model").exists()
    assert "Traceback" not in result.stderr


def test_a_terminal_shows_one_live_line_which_disappears_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("anna\nbob\n")
    terminal, stderr = pytest.importorskip("pty").openpty()
    every_update = {"TQDM_MININTERVAL": "0", "TQDM_NCOLS": "100", "TQDM_NROWS": "24"}  # the run itself takes no time
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "microgpt",
            "train",
            "names.txt",
            "--steps=3",
            "--samples=0",
            "--val-fraction=0.5",
            *SMALL,
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env={**os.environ, **every_update},
        check=False,
    )
    os.write(stderr, b"\rEND")
    written = b""
    while not written.endswith(b"END"):
        written += os.read(terminal, 1000)
    os.close(stderr)
    os.close(terminal)
    *drawn, _ = written.decode().split("\r")
    assert result.returncode == 0
    pattern = r"step 3/3, loss \d\.\d{4}  validation loss \d\.\d{4} \| [\d,]+ tokens/s \| 00:00 left"
    assert any(re.fullmatch(pattern, line) for line in drawn)
    seen = ""
    for line in drawn:  # each over the one before
        seen = line + seen[len(line) :]
    assert seen.strip() == ""
    assert "tokens/s |" not in result.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("samples", [1, 5000], ids=["at the end", "before"])
def test_output_that_has_no_room_is_one_line_and_status_2(samples: int) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "microgpt", "train", "--steps=0", f"--samples={samples}", *SMALL]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (result.returncode, result.stderr) == (
        2,
        "microgpt: error: cannot write to standard output: No space left on device\n",
    )


@contextlib.contextmanager
def unwritable(kind: str) -> Iterator[int]:
    """A descriptor that can be opened but not written to."""
    if kind == "full":
        descriptor = os.open("/dev/full", os.O_WRONLY)
    else:
        reading, descriptor = os.pipe()
        if kind == "a broken pipe":
            os.close(reading)
        else:
            os.set_blocking(descriptor, False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(descriptor, b"x" * 1024)
    yield descriptor
    os.close(descriptor)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    ("kind", "unbuffered"), [("full", ""), ("full", "1"), ("a broken pipe", ""), ("a pipe to wait for", "")]
)
def test_progress_that_cannot_be_written_ends_nothing(tmp_path: Path, kind: str, unbuffered: str) -> None:
    command = [sys.executable, "-m", "microgpt", "train", "--steps=20", f"--out={tmp_path / 'model'}", *SMALL]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with unwritable(kind) as stderr:
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=stderr, env=environment, check=False)
        assert (result.returncode, result.stdout.count(b"\n")) == (0, 4 + 20)
        for wrong in ([sys.executable, "-m", "microgpt", "train", "nowhere.txt"], [*command[:3], "trian"]):
            result = subprocess.run(wrong, stdout=subprocess.PIPE, stderr=stderr, env=environment, check=False)
            assert (result.returncode, result.stdout) == (2, b"")
    assert load(tmp_path / "model").history.options["steps"] == 20


@pytest.mark.parametrize("backend", ["reference", compiled])
def test_ctrl_c_ends_training_with_status_130(backend: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "microgpt", "train", "--plain", "--steps=100000000", f"--backend={backend}", *SMALL],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"num docs: 5163\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == b""


@pytest.mark.parametrize("module", ["microgpt.commands.exit_status", "microgpt.utils.text", "numpy"])
def test_ctrl_c_ends_imports_with_status_130(module: str) -> None:
    program = f"""
import signal, sys
class CtrlC:
    def find_spec(self, name, *_):
        if name == {module!r}:
            signal.raise_signal(signal.SIGINT)
sys.meta_path.insert(0, CtrlC())
from microgpt.__main__ import main
sys.exit(main())
"""
    result = subprocess.run([sys.executable, "-c", program, "info"], capture_output=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (130, b"", b"")


def test_info_tells_the_backend_and_why(backend: str) -> None:
    result = run("info", MICROGPT_BACKEND=backend)
    assert result.returncode == 0
    assert f"backend          {backend}: MICROGPT_BACKEND asks for it" in result.stdout


def test_an_absent_backend_is_an_import_error_when_asked_for() -> None:
    modules = [
        f"microgpt.{name}" for name in ("engine._engine", "random._mersenne", "_value")
    ]  # None: the stream is missing
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.modules |= dict.fromkeys({modules}); from microgpt import Value"],
        capture_output=True,
        text=True,
        env={**os.environ, "MICROGPT_BACKEND": "compiled"},
        check=False,
    )
    assert "ImportError: MICROGPT_BACKEND='compiled', but this installation has no compiled engine" in result.stderr


def test_an_unknown_backend_is_named() -> None:
    result = run("info", MICROGPT_BACKEND="gpu")
    assert "MICROGPT_BACKEND must be 'compiled' or 'reference', got 'gpu'" in result.stderr
    assert result.returncode != 0


@needs_compiled
def test_the_environment_chooses_the_instruction_set() -> None:
    for instruction_set in backends.instruction_sets():
        assert f"instruction set  {instruction_set}\n" in run("info", MICROGPT_ISA=instruction_set).stdout
    assert "MICROGPT_ISA must be" in run("info", MICROGPT_ISA="mmx").stderr


def test_a_text_trains_and_its_validation_is_shown(tmp_path) -> None:
    file = tmp_path / "verse.txt"
    file.write_text("the rain in spain\nstays mainly in the plain\n" * 10)
    options = ["--format=text", "--val-fraction=0.2", "--eval-every=2", "--steps=3", "--n-embd=4", "--n-head=1"]
    options.append("--samples=1")
    result = run("train", str(file), *options)
    assert result.returncode == 0
    assert "verse.txt: 440 characters, 14 tokens" in result.stdout
    assert re.findall(r"step +(\d) .* validation loss \d\.\d{4}\n", result.stdout) == ["0", "2", "3"]


def test_a_run_that_is_over_says_that_it_writes_nothing(tmp_path: Path) -> None:
    command = ["train", "--steps=3", "--samples=0", "--out=model.safetensors", "--resume", *SMALL]
    first, second = (run(*command, folder=tmp_path) for _ in range(2))
    assert "saved   model.safetensors\n" in first.stdout
    assert second.returncode == 0
    assert "saved" not in second.stdout
    assert second.stdout.endswith(
        "nothing to do: the run in model.safetensors is complete, and the file is unchanged\n"
    )
