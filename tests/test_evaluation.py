"""How well a model predicts documents."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from microgpt import GPT, CharTokenizer, GPTConfig
from microgpt.engine.packing import pack
from microgpt.engine.reference_engine import batch_loss
from microgpt.reference import Value

CONFIG = GPTConfig(vocab_size=7, n_embd=4, block_size=5, n_head=2)
DOCUMENTS = ["a", "bad", "", "face", "decade", "fade", "facedecade" * 2, "ab", "deaf"]


def log_probabilities(model: GPT, tokens: list[int]) -> list[float]:
    """The losses of all tokens but the first, each predicted once, from at most block_size tokens of its piece."""
    found: list[float] = []
    for start in range(0, len(tokens) - 1, model.config.block_size):
        piece = tokens[start : start + model.config.block_size + 1]
        logits = model.logits(piece[:-1])
        logits = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        found += logits[np.arange(len(piece) - 1), piece[1:]].tolist()
    return found


def evaluated_by_hand(model: GPT, sequences: list[list[int]]) -> list[float]:
    return [-x for tokens in sequences for x in log_probabilities(model, tokens)]


def test_every_token_of_documents_is_predicted_once(backend: str) -> None:
    tokenizer = CharTokenizer("abcdef")
    model = GPT(CONFIG, 3, backend=backend, tokenizer=tokenizer)
    nats = evaluated_by_hand(model, [tokenizer.encode_document(document) for document in DOCUMENTS])
    result = model.evaluate(iter(DOCUMENTS))
    assert result.tokens == result.characters == len(nats) == sum(len(document) + 1 for document in DOCUMENTS)
    assert result.nats == pytest.approx(np.mean(nats), rel=1e-13)
    assert result.bits_per_character == pytest.approx(np.mean(nats) / math.log(2), rel=1e-13)
    assert result.perplexity == model.perplexity(DOCUMENTS) == pytest.approx(math.exp(np.mean(nats)), rel=1e-13)


def test_texts_have_no_end_and_their_first_token_follows_bos(backend: str) -> None:
    tokenizer = CharTokenizer("abcdef\n", bos="\n")
    model = GPT(CONFIG, 3, backend=backend, tokenizer=tokenizer)
    texts = ["bad\nface\ndecade", "", "f", "abcde"]
    nats = evaluated_by_hand(model, [[tokenizer.bos, *tokenizer.encode(text)] for text in texts])
    result = model.evaluate(texts)
    assert result.tokens == result.characters == len(nats) == len("".join(texts))
    assert result.nats == pytest.approx(np.mean(nats), rel=1e-13)


def test_the_first_token_of_a_text_without_line_feeds_is_not_predicted(backend: str) -> None:
    tokenizer = CharTokenizer("abcdef")
    model = GPT(CONFIG, 3, backend=backend, tokenizer=tokenizer, format="text")
    texts = ["badfacedecade", "", "f", "abcde"]
    nats = evaluated_by_hand(model, [tokenizer.encode(text) for text in texts])
    result = model.evaluate(texts)
    assert (result.tokens, result.characters) == (len(nats), 19) == (16, 19)
    assert result.nats == pytest.approx(np.mean(nats), rel=1e-13)
    assert result.bits_per_character == pytest.approx(sum(nats) / math.log(2) / 19, rel=1e-13)


@pytest.mark.parametrize(
    ("tokenizer", "format"),
    [
        (CharTokenizer("abcdef"), "lines"),
        (CharTokenizer("abcdef\n", bos="\n"), "text"),
        (CharTokenizer("abcdef"), "text"),
    ],
    ids=["lines", "text", "text without line feeds"],
)
def test_the_losses_of_documents_add_up_to_that_of_all(backend: str, tokenizer: CharTokenizer, format: str) -> None:
    model = GPT(CONFIG, 3, backend=backend, tokenizer=tokenizer, format=format)
    losses, result = model.document_losses(DOCUMENTS), model.evaluate(DOCUMENTS)
    assert losses.nats.shape == losses.tokens.shape == (len(DOCUMENTS),)
    assert losses.tokens.sum() == result.tokens
    assert losses.nats.sum() / losses.tokens.sum() == pytest.approx(result.nats, rel=1e-12)
    for document, nats, tokens, mean in zip(DOCUMENTS, losses.nats, losses.tokens, losses.nats_per_token):
        if tokens:
            alone = model.evaluate([document])
            assert (alone.tokens, alone.nats * tokens) == (tokens, pytest.approx(nats, rel=1e-12))
            assert mean == nats / tokens
        else:  # an empty text, or one of a single token
            assert format == "text"
            assert (nats, str(mean)) == (0.0, "nan")


def test_what_document_losses_cannot_take_is_named() -> None:
    model = GPT(CONFIG, 3, tokenizer=CharTokenizer("abcdef"))
    assert model.document_losses([]).nats.tolist() == []
    with pytest.raises(ValueError, match=r"^documents\[1\]: character 'x' at position 2"):
        model.document_losses(["a", "bax"])
    with pytest.raises(TypeError, match="documents must be a list of strings, got 'bad'"):
        model.document_losses("bad")
    model.state_dict()["wte"][0] = math.nan
    with pytest.raises(ValueError, match="document_losses needs finite parameters"):
        model.document_losses(["a"])


class PairTokenizer:
    """Two characters in a token."""

    characters, bos, vocab_size, bos_is_text = ["ab", "cd", "ef", "fe", "dc", "ba"], 6, 7, False

    def encode(self, text: str) -> list[int]:
        return [self.characters.index(text[i : i + 2]) for i in range(0, len(text), 2)]


def test_the_reference_builds_the_graph_of_one_document_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def counted(documents: list[list[int]], *arguments: Any) -> Value:
        sizes.append(len(documents))
        return batch_loss(documents, *arguments)

    monkeypatch.setattr("microgpt.engine.reference_engine.batch_loss", counted)
    GPT(CONFIG, 3, backend="reference").loss([[0, 1, 2]] * 5)
    assert sizes == [1] * 5


def test_bits_are_for_each_character_not_each_token() -> None:
    model = GPT(CONFIG, 3, tokenizer=PairTokenizer())
    result = model.evaluate(["abcd", "fe"])
    assert (result.tokens, result.characters) == (5, 8)
    assert result.bits_per_character == pytest.approx(result.nats * 5 / 8 / math.log(2), rel=1e-13)


def test_many_documents_are_evaluated_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    model = GPT(CONFIG, 3, tokenizer=CharTokenizer("abcdef"))
    expected = model.evaluate(DOCUMENTS * 5)
    monkeypatch.setattr("microgpt.evaluation.EVALUATED_ROWS", 7)
    assert model.evaluate(DOCUMENTS * 5).nats == pytest.approx(expected.nats, rel=1e-13)
    assert model.evaluate(DOCUMENTS).nats == pytest.approx(expected.nats, rel=1e-13)


@pytest.mark.parametrize(("logit", "is_finite"), [(370, True), (400, False)])
def test_perplexity_can_be_beyond_the_largest_float(backend: str, logit: float, is_finite: bool) -> None:
    config = GPTConfig(vocab_size=2, n_embd=1, block_size=2, n_head=1)
    model = GPT(config, backend=backend, tokenizer=CharTokenizer("a\n", bos="\n"))
    for name, matrix in model.state_dict().items():
        matrix[...] = name in ("wte", "wpe")
    model.state_dict()["lm_head"][:, 0] = logit, -logit  # certain that a line feed follows
    result = model.evaluate(["aaaaa"])
    assert result.perplexity == math.inf
    assert math.isfinite(result.nats) == math.isfinite(result.bits_per_character) == is_finite


@pytest.mark.parametrize("positions", [1, 2, 3, 5, 100])
def test_pieces_overlap_by_one_token(positions: int) -> None:
    sequences = [list(range(length)) for length in (2, 3, 4, 5, 6, 7, 11)]
    packed = pack(sequences, 11).split(positions)
    pieces = [packed.tokens[start : start + length].tolist() for start, length in zip(packed.starts, packed.lengths)]
    assert [pair for piece in pieces for pair in pairwise(piece)] == [
        pair for tokens in sequences for pair in pairwise(tokens)
    ]
    assert {len(piece) for piece in pieces} <= set(range(2, positions + 2))
    assert len(pieces) == sum(-(-(len(tokens) - 1) // positions) for tokens in sequences)


@pytest.mark.parametrize(
    ("documents", "error", "message"),
    [
        (["bad", "bax"], ValueError, r"documents\[1\]: character 'x' at position 2 is not one the tokenizer knows"),
        (["bad", 3], TypeError, r"documents\[1\] must be a string, got 3"),
        ("bad", TypeError, "documents must be a list of strings, got 'bad'"),
        (7, TypeError, "documents must be a list of strings, got 7"),
        ({"bad"}, TypeError, "documents must have an order that stays the same, as a list has, got a set"),
        ({"bad": 1}, TypeError, "documents must be a list of strings, got {'bad': 1}"),
        (["bad\n", " \n", "bax\n"], ValueError, "documents, line 3: character 'x' at position 2"),
        ([" \n"], ValueError, "documents has no documents: it must have at least one line that is not blank"),
        ([], ValueError, "documents must hold at least one with something to predict, got none"),
    ],
)
def test_bad_documents_are_named(documents: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        GPT(CONFIG, tokenizer=CharTokenizer("abcdef")).evaluate(documents)


@pytest.mark.parametrize("bos", [None, "\n"])
def test_lines_with_their_ends_are_those_of_a_file(bos: str | None) -> None:
    model = GPT(CONFIG, tokenizer=CharTokenizer("abcdef" + (bos or ""), bos))
    lines = ["bad\n", "\n", "dead\r\n", "cab"]
    expected = ["bad\n\ndead\ncab"] if bos else ["bad", "dead", "cab"]
    assert model.evaluate(lines) == model.evaluate(iter(lines)) == model.evaluate(expected)


def test_documents_need_a_tokenizer_and_texts_a_character() -> None:
    with pytest.raises(ValueError, match="evaluate needs a tokenizer: pass one to GPT"):
        GPT(CONFIG).evaluate(["a"])
    with pytest.raises(ValueError, match="at least one with something to predict"):
        GPT(CONFIG, tokenizer=CharTokenizer("abcdef\n", bos="\n")).perplexity([""])
