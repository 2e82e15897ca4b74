"""Texts that end what is drawn, and prompts that are typed."""

from __future__ import annotations

import io
import json
import os
import random
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_tokenizer import hugging_face

from microgpt import GPT, ByteTokenizer, CharTokenizer, GPTConfig, HuggingFaceTokenizer, Tokenizer
from microgpt.commands.cli import main
from microgpt.stop import Stop

from conftest import HANGS, needs_processes

LETTERS = CharTokenizer("abcdef")
VERSE = CharTokenizer("abcdef\n", bos="\n")


def model_of(tokenizer: Tokenizer, backend: str | None = None) -> GPT:
    config = GPTConfig(vocab_size=tokenizer.vocab_size, n_embd=4, block_size=4, n_head=2)
    return GPT(config, 3, backend=backend, tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("stop", "text", "cut"),
    [
        (None, "abc", "abc"),
        ("c", "abcabc", "ab"),
        ("abc", "abc", ""),
        (["d", "bc"], "abcd", "a"),
        (["abcd", "bc"], "abcd", "a"),  # "bc" is complete first
        (["cd", "bcd"], "abcd", "a"),  # both at once: the longer
        (["aab"], "aaab", "a"),
        (["abd"], "ab", "ab"),
        (["\n\n"], "a\nb\n\nc", "a\nb"),
    ],
)
def test_a_text_ends_before_the_first_stop_to_be_complete(stop, text: str, cut: str) -> None:
    assert Stop.of(stop).cut(text) == cut
    assert "".join(Stop.of(stop).cut_pieces(text)) == cut


def test_pieces_of_any_size_are_cut_like_the_whole_and_none_is_asked_for_afterwards() -> None:
    draw = random.Random(1)
    for _ in range(500):
        text = "".join(draw.choices("ab", k=draw.randrange(20)))
        stop = Stop.of(["".join(draw.choices("ab", k=draw.randrange(2, 6))) for _ in range(draw.randrange(1, 4))])
        cuts = sorted(draw.choices(range(len(text) + 1), k=4))
        pieces = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)])]
        left = iter(pieces)
        shown = list(stop.cut_pieces(left))
        assert "".join(shown) == stop.cut(text)
        assert all(shown)
        read = text[: len(text) - len("".join(left))]
        assert stop.begin(read) == stop.begin(text)
        if stop.begin(text) is not None:
            assert any(stop.begin(text[:end]) is None for end in [0, *cuts] if end < len(read) or read == "")


def test_what_may_begin_a_stop_is_held_back_and_nothing_else() -> None:
    assert list(Stop.of("bad").cut_pieces("abbaca")) == ["a", "b", "bac", "a"]
    assert list(Stop.of("bad").cut_pieces("aba")) == ["a", "ba"]


def test_a_stop_completes_what_is_drawn_and_not_the_prompt() -> None:
    assert Stop.of(None).completes(LETTERS.decode, []) is None
    is_complete = Stop.of(["bad", "fe"]).completes(LETTERS.decode, LETTERS.encode("babad"))
    assert is_complete is not None
    drawn = {text: is_complete(LETTERS.encode(text)) for text in ("", "d", "ba", "bad", "cfe", "fefaced" + 9 * "abc")}
    assert drawn == {"": False, "d": False, "ba": False, "bad": True, "cfe": True, "fefaced" + 9 * "abc": False}
    content = "a€".encode()
    is_complete = Stop.of(["\ufffd", "€"]).completes(ByteTokenizer().decode, [])
    assert is_complete is not None
    assert [is_complete(list(content[:length])) for length in (1, 2, 3, 4)] == [False, False, False, True]


TOKENIZERS = {
    "characters": (LETTERS, ["a", "bc", "ddd"]),
    "bytes": (ByteTokenizer(), ["a", "\ufffd", "\x00\x10"]),
    "huggingface": (None, ["an", "nan", "b"]),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_same_seed_draws_the_same_only_shorter(kind: str) -> None:
    tokenizer, stop = TOKENIZERS[kind]
    tokenizer = HuggingFaceTokenizer(hugging_face()) if tokenizer is None else tokenizer
    model = model_of(tokenizer)
    shorter = 0
    for prompt, options in [("", {}), ("", {"max_tokens": 12}), ("a", {"max_tokens": 9, "top_k": 5})]:
        whole = model.generate(4, seed=5, prompt=prompt, **options)
        cut = model.generate(4, seed=5, prompt=prompt, stop=stop, **options)
        expected = [prompt + Stop.of(stop).cut(text[len(prompt) :]) for text in whole]
        assert cut == expected
        shorter += cut != whole
        assert prompt + "".join(model.stream(prompt, seed=5, stop=stop, **options)) == cut[0]
    assert shorter


def test_drawing_ends_with_the_stop(backend: str) -> None:
    """Documents of a billion tokens, none of which BOS ends."""
    model = model_of(VERSE, backend)
    model.state_dict()["lm_head"][VERSE.bos] = -100.0 * model.state_dict()["lm_head"][1]
    for seed in (None, 1):
        texts = model.generate(3, seed=seed, prompt="ab", stop=["c", "d"], max_tokens=10**9)
        assert all(text.startswith("ab") and not {*"cd"} & {*text} for text in texts)
        assert "".join(model.stream("cd", seed=seed, stop="cd")).count("cd") == 0


@pytest.mark.parametrize(
    ("stop", "error", "message"),
    [
        ("", ValueError, "stop must be texts of at least one character, got an empty one"),
        (["a", ""], ValueError, "stop must be texts of at least one character, got an empty one"),
        (3, TypeError, "stop must be a text or several, got 3"),
        (["a", 3], TypeError, "stop must be a text or several, got 3 among them"),
        ({"a", "b"}, TypeError, "stop must have an order that stays the same, as a list has, got a set"),
    ],
)
@pytest.mark.parametrize("method", ["generate", "stream"])
def test_wrong_stops_are_named(method: str, stop, error, message: str) -> None:
    with pytest.raises(error, match=f"^{message}$"):
        getattr(model_of(LETTERS), method)(stop=stop)


@pytest.fixture(params=[LETTERS, VERSE], ids=["documents", "text"])
def model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> GPT:
    """A model, which every file loads as."""
    model = model_of(request.param)
    monkeypatch.setattr("microgpt.commands._options.load", lambda path, **_: model)
    return model


def samples(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, object]]:
    assert main(["sample", "model", "--json", *arguments]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_command_draws_from_each_prompt_as_from_it_alone(
    model: GPT, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("fa\n\ncab\n")
    options = ["--seed=7", "-n2", "--max-tokens=9", "--stop=d", "--stop=ff"]
    together = samples(capsys, "--prompt=be", f"--prompts={tmp_path / 'prompts.txt'}", *options)
    alone = [sample for prompt in ("be", "fa", "cab") for sample in samples(capsys, f"--prompt={prompt}", *options)]
    assert together == alone
    assert [sample["prompt"] for sample in together] == ["be", "be", "fa", "fa", "cab", "cab"]
    for sample in together:
        drawn = str(sample["text"])[len(str(sample["prompt"])) :]
        assert "d" not in drawn
        assert "ff" not in drawn
    assert main(["sample", "model", "--prompt=be", "--prompt=fa", *options]) == 0
    lines = [str(sample["text"]) for sample in together[:4]]
    separator = "\n" if model.tokenizer == LETTERS else "\n---------------\n"
    assert capsys.readouterr().out == separator.join(lines) + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompts=PROMPTS"], "PROMPTS, line 3: character 'x' at position 1 is not one the tokenizer knows"),
        (["--prompts=EMPTY"], "prompts must have at least one line that is not blank, got none in EMPTY"),
        (["--prompt=a", "--stop="], "stop must be texts of at least one character, got an empty one"),
        (["--interactive", "--prompt=a"], "interactive asks for prompts: prompt and prompts must be left out"),
        (["--interactive", "--top-k=0"], "top_k must be at least 1, got 0"),
        (["--interactive", "-n=-1"], "n must be at least 0, got -1"),
    ],
)
def test_wrong_prompts_are_one_line(
    model: GPT, arguments: list[str], message: str, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("PROMPTS").write_text("a\n\nbx\n")
    Path("EMPTY").write_text(" \n")
    assert main(["sample", "model", *arguments]) == 2
    assert capsys.readouterr() == ("", f"microgpt: error: {message}\n")


def test_piped_prompts_are_answered_line_by_line(
    model: GPT, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def converse(*arguments: str, status: int = 0) -> tuple[str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"fa\nx\r\n\xff\n\ncab")))
        assert main(["sample", "model", "--interactive", "--max-tokens=9", "--seed=4", *arguments]) == status
        printed = capsys.readouterr()
        return printed.out, printed.err

    output, errors = converse(status=2)
    prompts = ["fa", "", "cab"]
    answers = [prompt + "".join(model.stream(prompt, 0.5, 4 + i, max_tokens=9)) for i, prompt in enumerate(prompts)]
    assert output == "".join(f"{answer}\n" for answer in answers)
    assert errors.splitlines() == [
        "microgpt: error: standard input, line 2: character 'x' at position 0 is not one the tokenizer knows",
        "microgpt: error: standard input, line 3: not UTF-8 (invalid start byte)",
        "microgpt: error: 2 of 5 prompts have no answer",
    ]
    output, silent = converse("--json", "-n2")
    assert silent == ""
    objects = [json.loads(line) for line in output.splitlines()]
    wrong = [line.removeprefix("microgpt: error: ") for line in errors.splitlines()[:2]]
    assert objects[2:4] == [{"prompt": "x", "error": wrong[0]}, {"prompt": "\ufffd", "error": wrong[1]}]
    answered = [*objects[:2], *objects[4:]]
    assert [line["seed"] for line in answered] == [4, 5, 6, 7, 8, 9]
    assert [line["prompt"] for line in answered] == ["fa", "fa", "", "", "cab", "cab"]


@needs_processes
def test_a_terminal_asks_until_ctrl_d_and_ctrl_c_ends_only_an_answer(tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    model_of(VERSE).save(tmp_path / "verse.safetensors")
    ours, theirs = pty.openpty()
    command = ["sample", "verse.safetensors", "-i", "--max-tokens=1000000000", "--seed=1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "microgpt", *command], stdin=theirs, stdout=theirs, stderr=theirs, cwd=tmp_path,
        env={**os.environ, "TERM": "dumb"}, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    shown = ""

    def read_until(pattern: str) -> None:
        nonlocal shown
        shown, deadline = "", time.monotonic() + HANGS
        while not re.search(pattern, shown):
            assert select.select([ours], [], [], max(0, deadline - time.monotonic()))[0], (pattern, shown)
            shown += os.read(ours, 1000).decode(errors="replace").replace("\r", "")

    try:
        read_until("> ")
        os.write(ours, b"xyz\n")
        read_until("> ")
        assert "microgpt: error: prompt: character 'x' at position 0 is not one the tokenizer knows\n" in shown
        for _ in range(2):
            os.write(ours, b"bad\n")
            read_until(r"\nbad[a-f\n]")  # it draws
            process.send_signal(signal.SIGINT)
            read_until("\n> ")
        os.write(ours, b"\x04")
        assert process.wait(HANGS) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
