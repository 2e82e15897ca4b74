"""Models of documents and of continuous text: the format of the training decides, not the tokenizer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz.load import rewritten

from microgpt import GPT, ByteTokenizer, CharTokenizer, GPTConfig, HuggingFaceTokenizer, Tokenizer, load, train
from microgpt.commands.cli import main
from microgpt.report.page import report_page

from conftest import needs_compiled

SMALL = {"n_embd": 4, "n_head": 2, "block_size": 4}
TEXT = "a b\n" * 10

WORDS: dict[str, Any] = {"[UNK]": 0, "a": 1, "b": 2}
MODELS: dict[str, dict[str, Any]] = {
    "WordLevel": {"type": "WordLevel", "vocab": WORDS, "unk_token": "[UNK]"},
    "WordPiece": {
        "type": "WordPiece",
        "vocab": WORDS,
        "unk_token": "[UNK]",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
    },
    "BPE": {"type": "BPE", "vocab": WORDS, "merges": [], "unk_token": "[UNK]"},
    "Unigram": {"type": "Unigram", "vocab": [["[UNK]", 0.0], ["a", -1.0], ["b", -1.0]], "unk_id": 0},
}


def words(model: str = "WordLevel") -> HuggingFaceTokenizer:
    """A tokenizer whose pre-tokenizer drops all white space, line feeds included."""
    pytest.importorskip("tokenizers")
    file = {"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "model": MODELS[model]}
    return HuggingFaceTokenizer(json.dumps(file), bos="\n")


def trained(tokenizer: Any, backend: str, text: str = TEXT) -> GPT:
    """A model that knows the text by heart, trained on the fastest backend, whichever will run it."""
    options = {"steps": 60, "batch_size": 4, "learning_rate": 0.1, "format": "text", **SMALL}
    known = train([text], tokenizer=tokenizer, **options).model
    gpt = GPT(known.config, 1, backend=backend, tokenizer=known.tokenizer, format=known.format)
    gpt.load_state_dict(known.state_dict())
    return gpt


@pytest.mark.parametrize("model", MODELS)
def test_a_text_without_line_feed_tokens_is_read_as_it_was_trained(backend: str, model: str) -> None:
    gpt = trained(words(model), backend)
    assert (gpt.format, gpt.reads_bos, gpt.bos) == ("text", False, 3)
    assert gpt.perplexity([TEXT]) < 1.05
    assert gpt.evaluate([TEXT]).tokens == 19
    drawn = "".join(gpt.stream(seed=1, max_tokens=20, top_k=1)).replace(" ", "")
    assert drawn in ("ab" * 10, "ba" * 10)
    assert gpt.generate(1, seed=1, top_k=1, max_tokens=20)[0].replace(" ", "") == drawn
    assert gpt.generate(1, seed=1, prompt="a", top_k=1)[0].replace(" ", "") == "ababa"
    assert max(gpt.next_token_probabilities("b").items(), key=lambda item: item[1])[0] == "a"
    assert len(gpt.generate_tokens(1, seed=1)[0]) == len(gpt.generate_tokens(1)[0]) == SMALL["block_size"]


@pytest.mark.parametrize(
    ("tokenizer", "reads_bos"),
    [
        ("characters", False),
        (CharTokenizer("ab \n"), False),
        (CharTokenizer("ab \n", bos="\n"), True),
        # With 257 tokens, training takes minutes where only the reference is there.
        pytest.param(ByteTokenizer(), False, marks=needs_compiled),
        pytest.param("bytes", False, marks=needs_compiled),
        pytest.param("bytes", True, marks=needs_compiled),
    ],
)
def test_any_tokenizer_can_be_that_of_a_text(backend: str, tokenizer: Any, reads_bos: bool) -> None:
    text = "ab" * 20 if isinstance(tokenizer, str) and not reads_bos else TEXT
    gpt = trained(tokenizer, backend, text)
    assert (gpt.format, gpt.reads_bos) == ("text", reads_bos)
    assert gpt.perplexity([text]) < 1.1
    unit = re.escape(text[:4])
    assert re.fullmatch(f"(?s).{{0,3}}({unit})*.{{0,3}}", "".join(gpt.stream(seed=3, max_tokens=20, top_k=1)))


@pytest.mark.parametrize(
    ("tokenizer", "text"), [("characters", "abcab" * 30), ("characters", "ab\ncab" * 30), (None, TEXT * 5)]
)
def test_the_held_out_end_of_a_text_is_evaluated_as_in_training(backend: str, tokenizer: str | None, text: str) -> None:
    options = {"steps": 5, "format": "text", "val_fraction": 0.1, "backend": backend, **SMALL}
    result = train([text], tokenizer=tokenizer or words(), **options)
    tokenizer = result.model.tokenizer
    tokens = tokenizer.encode(text)
    held_out = tokenizer.decode(tokens[len(tokens) - round(0.1 * len(tokens)) :])
    assert result.validation_losses[-1][1] == result.model.evaluate([held_out]).nats


def test_a_text_begins_after_bos_which_is_then_forgotten(backend: str) -> None:
    gpt = GPT(GPTConfig(vocab_size=5, **SMALL), 3, backend=backend, tokenizer=CharTokenizer("abcd"), format="text")
    (first, *others), *_ = gpt.generate_tokens(1, seed=1, top_k=1, max_tokens=9)
    assert first == int(np.argmax(gpt.logits([gpt.bos])[0]))
    assert others == gpt.generate_tokens(1, seed=1, top_k=1, prompt=[first], max_tokens=8)[0][1:]
    for seed in (None, 1):  # no token ends it
        assert [len(each) for each in gpt.generate_tokens(20, seed=seed, max_tokens=7)] == [7] * 20
    together = gpt.generate_tokens(3, seed=1, max_tokens=9)
    assert gpt.generate_tokens(1, seed=1, max_tokens=9) == together[:1]
    probabilities = np.exp(gpt.logits([gpt.bos])[0])
    assert gpt.next_token_probabilities()["a"] == pytest.approx(probabilities[0] / probabilities.sum())


def test_documents_are_documents_whatever_their_bos_is(backend: str) -> None:
    tokenizer = CharTokenizer("abc\n", bos="\n")
    options = {"tokenizer": tokenizer, "backend": backend, "steps": 0, **SMALL}
    as_lines, as_text = train(["abc"], **options).model, train(["abc" * 9], format="text", **options).model
    assert (as_lines.format, as_text.format) == ("lines", "text")
    assert as_lines.evaluate(["ab", ""]).tokens == 4
    assert as_text.evaluate(["ab", ""]).tokens == 1 + as_text.reads_bos
    assert "".join(as_lines.stream(seed=1)) == as_lines.generate(1, seed=1)[0]


def test_a_model_made_by_hand_has_its_tokenizers_format_by_default() -> None:
    config = GPTConfig(vocab_size=4, **SMALL)
    for tokenizer, expected in (
        (None, "lines"),
        (CharTokenizer("abc"), "lines"),
        (CharTokenizer("abc\n", bos="\n"), "text"),
    ):
        assert GPT(config, tokenizer=tokenizer).format == expected
        for format in ("lines", "text"):
            assert GPT(config, tokenizer=tokenizer, format=format).format == format
    with pytest.raises(ValueError, match=r"^format must be 'lines' or 'text', got 'poem'$"):
        GPT(config, format="poem")


def test_a_file_keeps_the_format(tmp_path: Path, backend: str) -> None:
    path, tokenizer = tmp_path / "model.safetensors", CharTokenizer("abc")
    for format in ("lines", "text"):
        gpt = GPT(GPTConfig(vocab_size=4, **SMALL), 3, backend=backend, tokenizer=tokenizer, format=format)
        gpt.save(path)
        assert load(path, backend=backend).format == format
        assert load(path, backend=backend).generate(3, seed=1) == gpt.generate(3, seed=1)


def test_an_older_file_has_the_format_of_its_training(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"

    def forget(arrays: Any, texts: dict[str, str]) -> None:
        del texts["text_format"]

    for format in ("lines", "text"):
        train(["abc" * 9], tokenizer=CharTokenizer("abc"), format=format, steps=1, **SMALL).model.save(path)
        path.write_bytes(rewritten(path.read_bytes(), forget))
        assert load(path).format == format
    GPT(GPTConfig(vocab_size=4, **SMALL), tokenizer=CharTokenizer("abc\n", bos="\n")).save(path)
    path.write_bytes(rewritten(path.read_bytes(), forget))
    assert load(path).format == "text"
    path.write_bytes(rewritten(path.read_bytes(), lambda arrays, texts: texts.update(text_format='"poem"')))
    with pytest.raises(ValueError, match="text_format must be 'lines' or 'text', got 'poem'"):
        load(path)


def test_commands_read_and_draw_a_text_without_line_feeds(tmp_path: Path, monkeypatch, capsys, backend: str) -> None:
    monkeypatch.chdir(tmp_path)
    gpt = trained(words(), backend)
    gpt.save("model.safetensors")
    Path("text.txt").write_text(TEXT)
    expected = gpt.evaluate([TEXT])
    assert main(["eval", "model.safetensors", "text.txt", "--json", f"--backend={backend}"]) == 0
    assert json.loads(capsys.readouterr().out) == vars(expected)
    assert main(["sample", "model.safetensors", "--seed=1", "--max-tokens=9", f"--backend={backend}"]) == 0
    assert capsys.readouterr().out == "".join(gpt.stream(temperature=0.5, seed=1, max_tokens=9)) + "\n"


def test_eval_names_a_line_feed_that_the_text_had_not(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    train(["ab" * 60], format="text", steps=1, **SMALL).model.save("model.safetensors")
    Path("text.txt").write_text("abab\nabab\n")
    assert main(["eval", "model.safetensors", "text.txt"]) == 2
    expected = "microgpt: error: text.txt, line 1: character '\\n' at position 4 is not one the tokenizer knows\n"
    assert capsys.readouterr().err == expected
    Path("text.txt").write_text("a")
    assert main(["eval", "model.safetensors", "text.txt"]) == 2
    assert capsys.readouterr().err == (
        "microgpt: error: text.txt must have at least 2 tokens, so that one can be predicted\n"
    )


def test_a_report_shows_a_text_without_bos() -> None:
    pytest.importorskip("matplotlib")
    gpt = GPT(GPTConfig(vocab_size=5, **SMALL), 3, tokenizer=CharTokenizer("abcd"), format="text")
    page = report_page(gpt, text="abcdabcd", samples=1)
    assert "The text has 8 tokens; the first 4 are shown." in page
    assert '<span class="position">0</span><bdi>a</bdi>' in page
    for text in (None, ""):
        assert '<p class="text">' in report_page(gpt, text=text, samples=1)


def test_a_line_feed_without_a_token_of_its_own_is_not_bos() -> None:
    pytest.importorskip("tokenizers")
    file = {"version": "1.0", "added_tokens": [], "model": MODELS["WordLevel"]}
    tokenizer = HuggingFaceTokenizer(json.dumps(file), bos="\n")
    assert tokenizer.encode("\n") == [0]
    assert (tokenizer.bos, tokenizer.bos_is_text, tokenizer.vocab_size) == (3, False, 4)
    assert Tokenizer.from_json(tokenizer.to_json()) == tokenizer
