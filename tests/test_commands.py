"""The commands that take a trained model."""

from __future__ import annotations

import io
import json
import math
import re
import signal
import string
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from microgpt import GPT, CharTokenizer, Evaluation, GPTConfig, TrainingProgress, load, load_dataset, train
from microgpt.commands._progress import live_line
from microgpt.commands.cli import main
from microgpt.display.summary import describe_training
from microgpt.engine.backend import new_generator
from microgpt.training.run import Run
from microgpt.training.train import prepare
from microgpt.utils.arguments import LARGEST

from conftest import COMPILED_IS_THERE, needs_compiled, needs_processes

CONFIG = GPTConfig(vocab_size=7, n_embd=6, block_size=5, n_head=2)
LETTERS, VERSE = CharTokenizer("abcdef"), CharTokenizer("abcdef\n", bos="\n")


@pytest.fixture(params=[LETTERS, VERSE], ids=["documents", "text"])
def tokenizer(request: pytest.FixtureRequest) -> CharTokenizer:
    return request.param


def new_model(tokenizer: CharTokenizer | None, backend: str | None = None, threads: int | None = None) -> GPT:
    return GPT(CONFIG, 3, backend=backend, threads=threads, tokenizer=tokenizer)


@pytest.fixture
def stored(tokenizer: CharTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every file load as a new model with that tokenizer."""

    def load(path: str, *, backend: str | None = None, threads: int | None = None) -> GPT:
        return new_model(None if path == "dumb" else tokenizer, backend, threads)

    monkeypatch.setattr("microgpt.commands._options.load", load)


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The output of a command that succeeds."""
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return printed.out


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize("tokenizer", [LETTERS], ids=["documents"])
def test_documents_are_printed_one_on_a_line(capsys: pytest.CaptureFixture[str], backend: str) -> None:
    lines = output(capsys, "sample", "model", f"--backend={backend}").splitlines()
    assert lines == new_model(LETTERS).generate(20, 0.5)
    options = ["-n3", "--prompt=ba", "--temperature=2", "--top-k=4", "--top-p=0.8", "--seed=9", "--max-tokens=8"]
    threads = ["--threads=1"] if COMPILED_IS_THERE else []  # the reference takes none
    lines = output(capsys, "sample", "model", *options, *threads).splitlines()
    assert lines == new_model(LETTERS).generate(3, 2, 9, prompt="ba", top_k=4, top_p=0.8, max_tokens=8)
    objects = [json.loads(line) for line in output(capsys, "sample", "model", *options, "--json").splitlines()]
    assert objects == [{"text": text, "seed": 9, "prompt": "ba"} for text in lines]
    assert output(capsys, "sample", "model", "--seed=-5").splitlines() == new_model(LETTERS).generate(20, 0.5, -5)


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize("tokenizer", [VERSE], ids=["text"])
def test_texts_are_printed_as_they_come(capsys: pytest.CaptureFixture[str]) -> None:
    model = new_model(VERSE)
    assert output(capsys, "sample", "model") == "".join(model.stream(temperature=0.5, max_tokens=500)) + "\n"
    options = ["--prompt=ba", "--temperature=2", "--top-k=4", "--top-p=0.8", "--seed=9", "--max-tokens=30"]
    first, second = ("ba" + "".join(model.stream("ba", 2, seed, top_k=4, top_p=0.8, max_tokens=30)) for seed in (9, 10))
    assert output(capsys, "sample", "model", *options, "-n2") == f"{first}\n---------------\n{second}\n"
    lines = output(capsys, "sample", "model", *options, "-n2", "--json").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"text": first, "seed": 9, "prompt": "ba"},
        {"text": second, "seed": 10, "prompt": "ba"},
    ]


class Terminal(io.StringIO):
    """Standard output that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("bos", [None, "\n"])
def test_samples_are_escaped_on_a_terminal_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, bos: str | None
) -> None:
    hostile = "\x1b\x07\x9b\x7f\u202e\t\u3000日\ufe0f\u200d"
    hostile += bos or "\r"
    model = GPT(GPTConfig(vocab_size=11 + (bos is None), n_embd=2, n_head=1), tokenizer=CharTokenizer(hostile, bos))
    monkeypatch.setattr("microgpt.commands._options.load", lambda path, **_: model)
    arguments = ("sample", "model", "--temperature=9", "--seed=1", "--prompt=\x1b日", "-n4", "--max-tokens=60")
    piped, as_json = output(capsys, *arguments), output(capsys, *arguments, "--json")
    assert set(hostile) <= set(piped)
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert main(arguments) == 0
    shown = sys.stdout.getvalue()
    assert set(shown) - {*"\n\t\u3000日\ufe0f\u200d"} <= {*string.printable.strip()}
    spelled = {"\x1b": r"\x1b", "\x07": r"\x07", "\x9b": r"\x9b", "\x7f": r"\x7f", "\u202e": r"\u202e", "\r": r"\r"}
    assert shown == "".join(spelled.get(character, character) for character in piped)
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert main([*arguments, "--json"]) == 0
    assert sys.stdout.getvalue() == as_json


def test_training_shows_a_terminal_its_samples_and_files(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "\x1b.txt").write_text("\x1b[2J\n")
    monkeypatch.chdir(tmp_path)
    learnt = ("train", "\x1b.txt", "--temperature=0", "--steps=30", "--learning-rate=0.1", "--n-embd=4", "--samples=1")
    assert output(capsys, *learnt, "--plain").endswith("sample  1: \x1b[2J\n")
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert main([*learnt, "--out=\x1b"]) == 0
    assert main([*learnt, "--out=\x1b", "--resume", "--steps=31"]) == 0
    lines = sys.stdout.getvalue().splitlines()
    assert [line for line in lines if "\\x1b" in line] == [
        r"data    '\x1b.txt': 1 documents, 5 tokens",
        r"saved   '\x1b'",
        r"        \x1b[2J",
        r"data    '\x1b.txt': 1 documents, 5 tokens",
        r"resumed '\x1b' after step 30",
        r"saved   '\x1b'",
        r"        \x1b[2J",
    ]
    assert "\x1b" not in sys.stdout.getvalue()
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert main([*learnt, "--plain"]) == 0
    assert sys.stdout.getvalue().endswith("sample  1: \x1b[2J\n")


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize("prompt", ["", "bad"])
def test_next_prints_the_likeliest_tokens(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tokenizer: CharTokenizer, prompt: str
) -> None:
    expected = new_model(tokenizer).next_token_probabilities(prompt)
    lines = [f"{text!r:4} {share:.3%}".replace("'", "") for text, share in expected.items()]
    printed = output(capsys, "next", "model", *[prompt] * bool(prompt), "-n3").splitlines()
    assert [" ".join(line.split()) for line in printed] == [" ".join(line.split()) for line in lines[:3]]
    assert len(output(capsys, "next", "model", prompt).splitlines()) == CONFIG.vocab_size
    for options, n in [((), CONFIG.vocab_size), (("-n2",), 2)]:
        answer = json.loads(output(capsys, "next", "model", prompt, "--json", *options))
        assert answer == {"prompt": prompt, "probabilities": dict([*expected.items()][:n])}
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert main(["next", "model", prompt, "-n1"]) == 0
    assert sys.stdout.getvalue().split() == [*printed[0].split(), "█" * round(40 * max(expected.values()))]


@pytest.mark.usefixtures("stored")
def test_eval_prints_what_evaluate_gives(
    capsys: pytest.CaptureFixture[str], tokenizer: CharTokenizer, tmp_path: Path
) -> None:
    files = [tmp_path / "one.txt", tmp_path / "two.txt"]
    files[0].write_text("bad\nface\n")
    files[1].write_text("decade\n\ncab\n")
    texts = ["bad\nface\n", "decade\n\ncab\n"] if tokenizer == VERSE else ["bad", "face", "decade", "cab"]
    expected = new_model(tokenizer).evaluate(texts)
    assert output(capsys, "eval", "model", *map(str, files)).splitlines() == [
        f"nats per token      {expected.nats:.4f}",
        f"bits per character  {expected.bits_per_character:.4f}",
        f"perplexity          {expected.perplexity:.4f}",
        f"tokens              {expected.tokens} ({expected.characters} characters)",
    ]
    assert json.loads(output(capsys, "eval", "model", *map(str, files), "--json")) == vars(expected)


@pytest.mark.usefixtures("stored")
def test_eval_prints_the_losses_of_documents(
    capsys: pytest.CaptureFixture[str], tokenizer: CharTokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("microgpt.commands.eval.DOCUMENTS", 2)
    monkeypatch.chdir(tmp_path)
    Path("one.txt").write_text(" bad \n\nface\n")
    Path("two.txt").write_text("\ndecade\ncab")
    if tokenizer == VERSE:
        Path("one.txt").write_text("bad\n\nface\n")
    texts = ["bad\n\nface\n", "\ndecade\ncab"] if tokenizer == VERSE else ["bad", "face", "decade", "cab"]
    losses = new_model(tokenizer).document_losses(texts)
    numbers = ["nats", "tokens", "nats_per_token"]
    expected = [dict(zip(numbers, row)) for row in zip(losses.nats, losses.tokens, losses.nats_per_token)]
    places = [("one.txt", 1), ("one.txt", 3), ("two.txt", 2), ("two.txt", 3)]
    for i, each in enumerate(expected):
        each |= {"file": ["one.txt", "two.txt"][i]} if tokenizer == VERSE else {}
        each |= {} if tokenizer == VERSE else {"text": texts[i], "file": places[i][0], "line": places[i][1]}
    lines = output(capsys, "eval", "model", "one.txt", "two.txt", "--per-document").splitlines()
    assert [json.loads(line) for line in lines] == expected
    Path("two.txt").write_text("cab\nbad\nfed\ndoe\n")  # nothing is printed, although the batch before is right
    assert main(["eval", "model", "one.txt", "two.txt", "--per-document"]) == 2
    reason = "two.txt, line 4: character 'o' at position 1 is not one the tokenizer knows"
    assert capsys.readouterr() == ("", f"microgpt: error: {reason}\n")


@pytest.mark.usefixtures("stored")
def test_eval_reads_standard_input_once(
    capsys: pytest.CaptureFixture[str], tokenizer: CharTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"bad\n\nface\n")))
    objects = [
        json.loads(line) for line in output(capsys, "eval", "model", "-", "--json", "--per-document").splitlines()
    ]
    assert {each["file"] for each in objects} == {"standard input"}
    lines = [(each["text"], each["line"]) for each in objects if "line" in each]
    assert lines == ([] if tokenizer == VERSE else [("bad", 1), ("face", 3)])


def test_eval_takes_data_by_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    elements = load_dataset("elements")
    model = train(elements, steps=0, n_embd=4, n_head=1).model
    file = str(tmp_path / "model.safetensors")
    model.save(file)
    assert json.loads(output(capsys, "eval", file, "--data=elements", "--json")) == vars(model.evaluate(elements))
    lines = output(capsys, "eval", file, "--data=elements", "--per-document").splitlines()
    losses = model.document_losses(elements)
    assert json.loads(lines[1]) == {
        "text": "helium",
        "nats": losses.nats[1],
        "tokens": 7,
        "nats_per_token": losses.nats_per_token[1],
        "data": "elements",
        "line": 2,
    }
    assert len(lines) == len(elements)


@pytest.mark.usefixtures("stored")
def test_eval_names_the_file_and_line_of_an_unknown_character(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "one.txt").write_text("bad\n\nface\n")
    (tmp_path / "two.txt").write_text("\ncab\n\ndoe\n")
    assert main(["eval", "model", str(tmp_path / "one.txt"), str(tmp_path / "two.txt")]) == 2
    reason = f"{tmp_path}/two.txt, line 4: character 'o' at position 1 is not one the tokenizer knows"
    assert capsys.readouterr().err == f"microgpt: error: {reason}\n"


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize("tokenizer", [LETTERS], ids=["documents"])
def test_json_has_no_infinity(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "one.txt").write_text("bad\n")
    evaluation = Evaluation(800.0, 1154.2, math.inf, 4, 4)
    monkeypatch.setattr(GPT, "evaluate_corpora", lambda model, corpora: evaluation)
    printed = output(capsys, "eval", "model", str(tmp_path / "one.txt"), "--json")
    assert json.loads(printed, parse_constant=pytest.fail)["perplexity"] is None


@pytest.mark.usefixtures("stored")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "model", "--prompt=box"], "prompt: character 'o' at position 1 is not one the tokenizer knows"),
        (["sample", "model", "--temperature=-1"], "temperature must be at least 0, got -1"),
        (["sample", "model", "--top-k=0"], "top_k must be at least 1, got 0"),
        (["sample", "model", "--top-p=2"], "top_p must be more than 0 and at most 1, got 2"),
        (["sample", "model", "-n", "-1"], "n must be at least 0, got -1"),
        (["sample", "model", "-n1" + "0" * 20, "--seed=1"], f"n must be at most {LARGEST}, got more"),
        (["sample", "model", "--max-tokens=1" + "0" * 20], f"max_tokens must be at most {LARGEST}, got more"),
        (["sample", "model", f"--seed=-1{'0' * 700}"], "seed must have at most 2048 bits, got 2326"),
        (["sample", "model", "--max-tokens=-1"], "max_tokens must be at least 0, got -1"),
        pytest.param(["sample", "model", "--threads=0"], "threads must be at least 1, got 0", marks=needs_compiled),
        (["sample", "dumb"], "dumb has no tokenizer: it was saved from a model without one"),
        (["eval", "model"], "data or FILE must be given"),
        (["eval", "model", "nowhere.txt"], "cannot read nowhere.txt: No such file or directory"),
    ],
)
def test_bad_input_is_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", f"microgpt: error: {message}\n")


def test_info_shows_what_a_terminal_would_obey(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = train(["anna"], steps=0, n_embd=4).model
    model.history.options["colour"] = "\x1b[31mred\nparameters  999"
    model.save(tmp_path / "model.safetensors")
    shown = output(capsys, "info", str(tmp_path / "model.safetensors"))
    assert r"\x1b[31mred\nparameters  999" in shown
    assert "\x1b" not in shown


def test_a_run_that_could_save_nothing_does_not_say_that_it_did(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(run: Run, *watchers: object) -> None:  # like a second Ctrl-C, which is not held back
        run.optimizer.step_count = 3
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "train", interrupted)
    assert main(["train", f"--out={tmp_path / 'model.safetensors'}"]) == 130
    assert "is saved" not in capsys.readouterr().err


@pytest.mark.parametrize("is_terminal", [True, False])
def test_validations_in_quick_succession_do_not_flood_a_terminal(
    is_terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("microgpt.commands._progress.time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: is_terminal, raising=False)
    training = prepare(["anna", "bob"], steps=50, n_embd=4, val_fraction=0.5)
    with live_line(training) as watch:
        for step in range(24):
            now = 0.11 * step
            watch(TrainingProgress(step, 50, 3.0, 0.01, 1e5, now, (step, 2.5)))
    shown = [int(step) for step in re.findall(r"step +(\d+) .* validation loss 2\.5", capsys.readouterr().out)]
    assert shown == ([0, 5, 10, 15, 20, 23] if is_terminal else [*range(24)])


@pytest.mark.parametrize("options", [{"format": "text"}, {"long_documents": "cut"}, {"long_documents": "split"}])
def test_eval_info_and_report_show_the_validation_loss_of_training(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, options: dict[str, str]
) -> None:
    lines = ["abcabcab", "ab", "ca", "cabbacabba", "a", "bcb"] * 4
    model, held_out = tmp_path / "model.safetensors", tmp_path / "held_out.txt"
    result = train(lines, steps=9, val_fraction=0.5, n_embd=4, block_size=4, seed=5, out=model, **options)
    step, loss = result.validation_losses[-1]
    if "format" in options:
        text = "\n".join(lines)
        held_out.write_text(text[-round(0.5 * len(text)) :])
    else:
        order = new_generator("reference", 5).permutation(len(lines))
        held_out.write_text("\n".join(lines[i] for i in order[-len(lines) // 2 :]))
    evaluated = json.loads(output(capsys, "eval", str(model), str(held_out), "--json"))
    assert (step, loss) == (9, evaluated["nats"])
    shown = f"{loss:.4f} nats, after 9 steps, on all {evaluated['tokens']} held-out tokens"
    assert shown in output(capsys, "info", str(model))
    assert describe_training(load(model))["validation loss"] == shown  # in the report


@needs_compiled
def test_info_tells_what_a_file_holds(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    options = {"steps": 2, "n_embd": 4, "n_head": 2, "block_size": 4, "dtype": "float32"}
    train(["anna", "bob"], out=first, **options)
    load(first, dtype="float64").save(second)
    shared = {"parameters": "248", "vocab_size": "5", "n_embd": "4", "tokenizer": "CharTokenizer", "steps": "2"}
    for file, facts in (
        (first, {"dtype": "float32", "resumable": "yes"}),
        (second, {"dtype": "float64", "resumable": "no: saved without the state of the optimizer"}),
    ):
        lines = output(capsys, "info", str(file)).splitlines()
        printed = dict(line.split(maxsplit=1) for line in lines)
        assert len(printed) == len(lines)
        assert printed.items() >= (shared | facts).items()
        assert printed["file"].startswith(
            f"{file}: {file.stat().st_size:,} bytes, safetensors, format 'microgpt' version"
        )
    new_model(LETTERS).save(first)
    assert output(capsys, "info", str(first)).splitlines()[-1].split() == ["training", "none"]


@needs_processes
@pytest.mark.parametrize("way_to_end", ["Ctrl-C", "a closed pipe"])
def test_a_stream_that_is_cut_ends_quietly(tmp_path: Path, way_to_end: str) -> None:
    new_model(VERSE).save(tmp_path / "verse.safetensors")
    process = subprocess.Popen(
        [sys.executable, "-m", "microgpt", "sample", "verse.safetensors", "--max-tokens=100000000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(10)
    if way_to_end == "Ctrl-C":
        process.send_signal(signal.SIGINT)
    else:
        process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == (130 if way_to_end == "Ctrl-C" else 1)
