"""Tokens drawn from a model."""

from __future__ import annotations

import math
import random
from copy import copy
from itertools import accumulate, islice
from typing import Any

import numpy as np
import pytest

from microgpt import GPT, CharTokenizer, GPTConfig
from microgpt.data.detokenize import text_pieces
from microgpt.random.splitmix import uniform_of
from microgpt.reference import draw_token
from microgpt.sampling import Sampler, draw_tokens
from microgpt.utils.arguments import LARGEST

from conftest import needs_compiled

CONFIG = GPTConfig(vocab_size=7, n_layer=2, n_embd=6, block_size=5, n_head=2)
SMALL = GPTConfig(vocab_size=7, n_embd=4, block_size=4, n_head=2)
LETTERS = CharTokenizer("abcdef")  # BOS is token 6
VERSE = CharTokenizer("abcdef\n", bos="\n")  # BOS is token 0, a character of the text

SEEDS = [0, -5, 5, -(2**64) - 7, 2**2047, 1.5, -0.0, "text", "é", b"x", bytearray(b"x"), random.Random(4)]


def compiled_in(dtype: str) -> Any:
    return pytest.param("compiled", dtype, marks=needs_compiled)


TOKENS = np.array([[6, 1, 2, 6], [0, 0, 5, 3], [4, 4, 4, 4], [1, 2, 3, 4], [5, 6, 0, 1]] * 4, np.int32)


def test_probabilities_are_those_of_the_logits(backend) -> None:
    model = GPT(CONFIG, 3, backend=backend)
    cache = model.engine.new_cache(len(TOKENS))
    for position in range(4):
        probabilities = model.engine.next_probabilities(cache, np.ascontiguousarray(TOKENS[:, position]), 0.7)
        for tokens, row in zip(TOKENS, probabilities):
            exps = np.exp(model.logits(tokens[: position + 1])[-1] / 0.7)
            assert np.abs(row - exps / exps.sum()).max() < 1e-12


def test_draws_are_those_of_choices(backend) -> None:
    model, generator = GPT(CONFIG, 3, backend=backend), random.Random(1)
    looked_at, drawn_from = (model.engine.new_cache(len(TOKENS)) for _ in range(2))
    for position in range(4):
        tokens = np.ascontiguousarray(TOKENS[:, position])
        uniforms = np.array([generator.random() for _ in tokens])
        drawn = model.engine.draw_tokens(drawn_from, tokens, 1.5, uniforms).tolist()
        probabilities = model.engine.next_probabilities(looked_at, tokens, 1.5).tolist()
        for row, uniform, token in zip(probabilities, uniforms.tolist(), drawn):
            generator.random = lambda uniform=uniform: uniform
            assert generator.choices(range(7), cum_weights=list(accumulate(row))) == [token]
            del generator.random


def test_draws_of_a_sampler_are_those_of_the_reference() -> None:
    generator = np.random.default_rng(1)
    probabilities = generator.random((1000, 7)) * generator.integers(0, 2, (1000, 7))
    probabilities[:, 3] += 1e-3
    probabilities[0] = np.nan
    for uniforms in (generator.random(1000), np.zeros(1000), np.full(1000, 1 - 2**-53)):
        expected = [draw_token(row.tolist(), uniform) for row, uniform in zip(probabilities, uniforms)]
        assert draw_tokens(probabilities, uniforms).tolist() == expected


def test_a_place_in_a_cache_is_used_again(backend) -> None:
    engine = GPT(CONFIG, 3, backend=backend).engine
    tokens = np.array([1, 2, 3], np.int32)
    cache, fresh = engine.new_cache(3), engine.new_cache(3)
    engine.next_probabilities(cache, tokens, 1.0)
    cache.lengths[1] = 0
    again = engine.next_probabilities(cache, tokens, 1.0)
    first = engine.next_probabilities(fresh, tokens, 1.0)
    assert again[1].tolist() == first[1].tolist()
    assert again[0].tolist() != first[0].tolist()


@needs_compiled
def test_a_cache_serves_its_own_model_and_number_of_documents() -> None:
    engine, other = GPT(CONFIG, 3).engine, GPT(SMALL, 3).engine
    tokens = np.array([1, 2, 3], np.int32)
    for cache in (engine.new_cache(2), other.new_cache(3)):
        with pytest.raises(ValueError, match=r"3 tokens for a cache of \d documents, or of another model"):
            engine.next_probabilities(cache, tokens, 1.0)
    with pytest.raises(ValueError, match="1 random numbers for 3 tokens"):
        engine.draw_tokens(engine.new_cache(3), tokens, 1.0, np.array([0.5]))


def test_a_cache_holds_block_size_tokens(backend) -> None:
    engine = GPT(CONFIG, 3, backend=backend).engine
    cache = engine.new_cache(1)
    for _ in range(CONFIG.block_size):
        engine.next_probabilities(cache, np.array([1], np.int32), 1.0)
    with pytest.raises(ValueError, match="document 0 already has block_size=5 tokens"):
        engine.next_probabilities(cache, np.array([1], np.int32), 1.0)


def test_documents_with_a_seed_are_their_own(backend) -> None:
    model = GPT(CONFIG, 3, backend=backend)
    before = model.generator.getstate()
    five = model.generate_tokens(5, 0.9, seed=11)
    assert model.generate_tokens(2, 0.9, seed=11) == five[:2]
    assert model.generate_tokens(5, 0.9, seed=12) != five
    assert model.generate_tokens(0, 0.9, seed=11) == []
    assert model.generator.getstate() == before
    assert all(len(tokens) <= CONFIG.block_size and CONFIG.vocab_size - 1 not in tokens for tokens in five)


@needs_compiled
def test_documents_with_a_seed_are_those_of_the_reference() -> None:
    ours, theirs = (
        GPT(CONFIG, 3, backend=backend).generate_tokens(40, 0.9, seed=5) for backend in ("compiled", "reference")
    )
    assert ours == theirs


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: f"{seed!r:.10}")
def test_every_seed_of_a_model_is_one_of_documents(backend: str, seed: Any) -> None:
    """An integer counts modulo 2**64; any other seed gives the first 64 bits that random.Random draws with it."""
    model = GPT(CONFIG, 3, backend=backend, tokenizer=LETTERS)
    if isinstance(seed, int):
        word = seed % 2**64
    else:
        word = (copy(seed) if isinstance(seed, random.Random) else random.Random(seed)).getrandbits(64)
    GPT(CONFIG, seed, backend=backend)
    for _ in range(2):  # no state is used up
        assert model.generate(4, 0.9, seed) == model.generate(4, 0.9, word)
        assert "".join(model.stream(seed=seed)) == model.generate(seed=word)[0]
    assert model.generate(4, 0.9, seed) != model.generate(4, 0.9, word + 1)


@needs_compiled
def test_more_documents_than_places() -> None:
    model = GPT(CONFIG, 3)
    many = model.generate_tokens(1000, 0.9, seed=5)
    assert len(many) == 1000
    assert many[:40] == model.generate_tokens(40, 0.9, seed=5)
    assert len({tuple(tokens) for tokens in many}) > 500


def test_a_sampler_keeps_the_likeliest() -> None:
    probabilities = np.array([[0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25]])
    for sampler, expected in [
        (Sampler(top_k=1), [[0, 0.4, 0, 0], [0.25, 0, 0, 0]]),
        (Sampler(top_k=3), [[0, 0.4, 0.2, 0.3], [0.25, 0.25, 0.25, 0]]),
        (Sampler(top_p=0.01), [[0, 0.4, 0, 0], [0.25, 0, 0, 0]]),
        (Sampler(top_p=0.5), [[0, 0.4, 0, 0.3], [0.25, 0.25, 0, 0]]),
        (Sampler(top_p=0.51), [[0, 0.4, 0, 0.3], [0.25, 0.25, 0.25, 0]]),
        (Sampler(top_k=2, top_p=0.5), [[0, 0.4, 0, 0], [0.25, 0, 0, 0]]),
        (Sampler(top_k=4, top_p=1.0), probabilities.tolist()),
        (Sampler(top_k=99), probabilities.tolist()),
    ]:
        assert sampler.likeliest(probabilities).tolist() == expected, sampler


@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize(
    "options",
    [{"top_k": CONFIG.vocab_size}, {"top_p": 1.0}, {"max_tokens": CONFIG.block_size}, {"prompt": []}],
    ids=lambda options: next(iter(options)),
)
def test_options_that_exclude_nothing_change_nothing(backend: str, seed: int | None, options: dict[str, Any]) -> None:
    plain, model = (GPT(CONFIG, 3, backend=backend) for _ in range(2))
    assert model.generate_tokens(9, 0.9, seed, **options) == plain.generate_tokens(9, 0.9, seed)
    assert model.generator.getstate() == plain.generator.getstate()


def test_the_ways_to_draw_agree(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole documents in the engine, tokens in the engine, and tokens from probabilities; in parts or at once."""
    model = GPT(CONFIG, 3, backend=backend)
    whole = model.generate_tokens(9, 0.9, seed=5)
    monkeypatch.setattr("microgpt.sampling.DRAWN_TOGETHER", 4)
    assert model.generate_tokens(9, 0.9, seed=5, max_tokens=3) == [tokens[:3] for tokens in whole]
    monkeypatch.setattr(Sampler, "excludes_tokens", lambda sampler, vocab_size: True)
    assert model.generate_tokens(9, 0.9, seed=5) == whole


@pytest.mark.parametrize(
    ("backend", "dtype"), [("reference", "float64"), compiled_in("float64"), compiled_in("float32")]
)
@pytest.mark.parametrize("tied", [False, True])
def test_temperature_0_takes_the_first_of_the_largest_logits(backend: str, dtype: str, tied: bool) -> None:
    """Documents drawn in every way: one after the other, many at once, in the engine or not, as a stream."""
    model = GPT(SMALL, 3, dtype, backend, tokenizer=LETTERS)
    head = model.state_dict()["lm_head"]
    if tied:
        head[3] = head[1] = -head[2]
        head[5] = head[2]
    head[LETTERS.bos] = (head[0] + head[1]) / 2  # never the likeliest token
    context = [LETTERS.bos]
    for _ in range(SMALL.block_size):
        context.append(int(model.logits(context)[-1].argmax()))
    assert not tied or not {3, 5, LETTERS.bos} & {*context[1:]}
    likeliest = LETTERS.decode(context[1:])
    for seed in (None, 0, 5):
        for options in ({}, {"top_k": 3}, {"top_p": 0.1}, {"max_tokens": 9}):
            texts = model.generate(5, 0, seed, **options)
            assert [text[: SMALL.block_size] for text in texts] == 5 * [likeliest]
            assert texts == model.generate(5, -0.0, seed, **options) == model.generate(5, 1e-300, seed, **options)
            assert texts == model.generate(5, 0.7, seed, **{**options, "top_k": 1})
            assert "".join(model.stream("", 0, seed, **options)) == texts[0]
        assert model.generate(3, 0, seed, prompt=likeliest[:2]) == 3 * [likeliest]
    first = next(iter(model.next_token_probabilities()))
    assert first == likeliest[0]


def test_temperature_0_sees_logits_that_exponentials_do_not_tell_apart(backend: str) -> None:
    model = GPT(GPTConfig(vocab_size=3, n_embd=1, n_head=1, block_size=1), backend=backend)
    weights = model.state_dict()
    weights["wte"][...] = weights["wpe"][...] = 1
    for logits, likeliest in (
        ([1e300, 2e300, 1.5e300], 1),
        ([-1e-320, -2e-320, 1e-320], 2),
        ([-3.0, -2000.0, np.nextafter(-3.0, 0)], 2),
        ([0.0, -0.0, 0.0], 0),
        ([-1e308, -1e308, -1.5e308], 0),
    ):
        weights["lm_head"][:, 0] = logits
        for parameters in (weights["layer0.attn_wo"], weights["layer0.mlp_fc2"]):
            parameters[...] = 0
        for temperature in (0, 1e-31):
            cold = [[]] if likeliest == 2 else [[likeliest]]  # token 2 is BOS
            assert model.generate_tokens(1, temperature) == model.generate_tokens(1, temperature, seed=1) == cold


@needs_compiled
def test_any_temperature_draws_the_same_on_both_backends() -> None:
    for scale in (1e-100, 1.0, 30.0, 1e100):
        models = [GPT(SMALL, 3, backend=backend) for backend in ("compiled", "reference")]
        for model in models:
            model.state_dict()["lm_head"][...] *= scale
        for temperature in (0, 1e-300, 1e-30, 1e-20, 1e-3, 1e5, 1e300, 1.7e308):
            ours, theirs = (model.generate_tokens(4, temperature, seed=3) for model in models)
            assert ours == theirs, (scale, temperature)


def one_more(context: list[int], token: int, block_size: int) -> list[int]:
    """The context after one more token, as `generate_tokens` documents it."""
    return [*context, token][-max(1, block_size // 2) :] if len(context) == block_size else [*context, token]


@pytest.mark.parametrize("block_size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("prompt", ["", "b", "bad", "decade", "facedeface"])
def test_draws_are_from_the_logits_of_what_is_in_the_context(backend: str, block_size: int, prompt: str) -> None:
    config = GPTConfig(vocab_size=7, n_embd=4, block_size=block_size, n_head=2)
    model = GPT(config, 3, backend=backend, tokenizer=LETTERS)
    for parameters in model.state_dict().values():
        parameters *= 5  # so that the context matters
    tokens, context = LETTERS.encode(prompt), [LETTERS.bos]
    for token in tokens:
        context = one_more(context, token, block_size)
    room = block_size + 1 - len(context)
    for number in range(12):
        exps = np.exp(model.logits(context)[-1] / 2)
        kept = np.where(exps >= np.sort(exps)[-4], exps, 0)
        token = draw_token(kept.tolist(), uniform_of(8, 0, number))
        if token == LETTERS.bos:
            break
        tokens.append(token)
        context = one_more(context, token, block_size)
    options = {"temperature": 2, "seed": 8, "prompt": prompt, "top_k": 4}
    assert model.generate(**options, max_tokens=12) == [LETTERS.decode(tokens)]
    assert model.generate(**options) == [LETTERS.decode(tokens[: len(prompt) + room])]


def test_a_prompt_continues_as_what_has_been_drawn_would(backend: str) -> None:
    """The context of a model depends on the tokens alone, not on whether prompt or model wrote them."""
    model = GPT(SMALL, 3, backend=backend, tokenizer=LETTERS)
    (text,) = model.generate(prompt="a", top_k=1, max_tokens=14)
    for length in range(1, len(text) + 1):
        assert model.generate(prompt=text[:length], top_k=1, max_tokens=len(text) - length) == [text]


@needs_compiled
@pytest.mark.parametrize("seed", [None, 7])
def test_samples_with_every_option_are_those_of_both_backends(seed: int | None) -> None:
    options = {"temperature": 1.3, "seed": seed, "prompt": "cab", "top_k": 5, "top_p": 0.8, "max_tokens": 11}
    models = [GPT(SMALL, 3, backend=backend, tokenizer=LETTERS) for backend in ("compiled", "reference")]
    ours, theirs = (model.generate(6, **options) for model in models)
    assert ours == theirs
    assert len(set(ours)) > 1
    assert all(text.startswith("cab") for text in ours)


def test_documents_of_a_prompt_with_a_seed_are_their_own(backend: str) -> None:
    model = GPT(SMALL, 3, backend=backend, tokenizer=LETTERS)
    five = model.generate(5, seed=11, prompt="ad", top_p=0.9)
    assert model.generate(2, seed=11, prompt="ad", top_p=0.9) == five[:2]
    assert model.generate(5, seed=12, prompt="ad", top_p=0.9) != five
    assert model.generate(0, seed=11, prompt="ad") == []
    assert model.generate(2, seed=11, prompt="ad", max_tokens=0) == ["ad", "ad"]


@pytest.mark.parametrize("seed", [None, 4])
def test_a_stream_of_a_document_is_what_generate_gives(backend: str, seed: int | None) -> None:
    streaming, generating = (GPT(SMALL, 3, backend=backend, tokenizer=LETTERS) for _ in range(2))
    for options in ({}, {"prompt": "fade"}, {"prompt": "a", "top_k": 3, "max_tokens": 9}):
        pieces = list(streaming.stream(seed=seed, **options))
        assert [options.get("prompt", "") + "".join(pieces)] == generating.generate(seed=seed, **options)
        assert all(len(piece) == 1 for piece in pieces)


def test_a_continuous_text_goes_on(backend: str) -> None:
    model = GPT(SMALL, 3, backend=backend, tokenizer=VERSE)
    text = "".join(islice(model.stream("bad", seed=2), 40))  # far beyond block_size, without an end
    assert len(text) == 40
    assert "\n" in text
    assert "".join(model.stream("bad", seed=2, max_tokens=30)) == text[:30]
    assert model.generate(prompt="bad", seed=2, max_tokens=40) == ["bad" + text[: text.index("\n")]]


def decoded_bytes(tokens: list[int]) -> str:
    return bytes(tokens).decode(errors="replace")


@pytest.mark.parametrize(
    ("content", "pieces"),
    [
        ("aż".encode(), ["a", "ż"]),
        ("€𝄞!".encode(), ["€", "𝄞", "!"]),
        (b"a\xe2\x82", ["a", "\ufffd"]),  # ends inside a character
        (b"\xe2\x82a", ["\ufffda"]),
        (b"\xff\xff\xff\xff\xffa", ["\ufffd", "\ufffd", "\ufffd\ufffd\ufffda"]),
        ("\ufffd.".encode(), ["\ufffd."]),
        (b"", []),
    ],
)
def test_pieces_are_whole_characters(content: bytes, pieces: list[str]) -> None:
    assert list(text_pieces(decoded_bytes, [], content)) == pieces
    assert list(text_pieces(decoded_bytes, list("né".encode()), content)) == pieces


def test_pieces_of_any_bytes_join_to_their_text() -> None:
    draw = random.Random(1)
    for _ in range(300):
        content = draw.choices(b"a\xc3\xa9\xe2\x82\xac\xf0\x9d\x84\x9e\xff", k=draw.randrange(30))
        assert "".join(text_pieces(decoded_bytes, [], content)) == decoded_bytes(content)


def test_pieces_keep_the_spaces_that_a_decoder_drops_in_front() -> None:
    words = [" to", " be", " or"]
    pieces = text_pieces(lambda tokens: "".join(words[i] for i in tokens).lstrip(), [0], [1, 2, 1])
    assert list(pieces) == [" be", " or", " be"]


class TwinTokenizer:
    """Tokens 0 and 1 have the same text."""

    characters, bos, vocab_size, bos_is_text = "aabcde", 6, 7, False

    def encode(self, text: str) -> list[int]:
        return [self.characters.index(character) for character in text]

    def decode(self, tokens: list[int]) -> str:
        return "".join(self.characters[token : token + 1] for token in tokens)


def test_next_token_probabilities_are_those_of_the_logits(backend: str) -> None:
    for tokenizer, texts in ((LETTERS, [*"abcdef", "<BOS>"]), (VERSE, [*"\nabcdef"])):
        model = GPT(SMALL, 3, backend=backend, tokenizer=tokenizer)
        exps = np.exp(model.logits([tokenizer.bos, *tokenizer.encode("ad")])[-1])
        given = model.next_token_probabilities("ad")
        assert given == pytest.approx(dict(zip(texts, exps / exps.sum())), abs=1e-12)
        assert list(given.values()) == sorted(given.values(), reverse=True)
    assert model.next_token_probabilities() == model.next_token_probabilities("")


def test_tokens_of_the_same_text_count_together() -> None:
    model, twin = (GPT(SMALL, 3, tokenizer=tokenizer) for tokenizer in (TwinTokenizer(), LETTERS))
    together, apart = model.next_token_probabilities(), twin.next_token_probabilities()
    assert together["a"] == apart["a"] + apart["b"]
    assert together["<BOS>"] == apart["<BOS>"]
    assert len(together) == SMALL.vocab_size - 1


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("method", ["generate", "stream"])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"prompt": "bax"}, ValueError, "prompt: character 'x' at position 2 is not one the tokenizer knows"),
        ({"prompt": ["b"]}, TypeError, r"prompt must be a string, got \['b'\]"),
        ({"prompt": None}, TypeError, "prompt must be a string, got None"),
        ({"temperature": -0.1}, ValueError, "temperature must be at least 0, got -0.1"),
        ({"temperature": math.inf}, ValueError, "temperature must be at least 0 and finite, got inf"),
        ({"top_k": 0}, ValueError, "top_k must be at least 1, got 0"),
        ({"top_k": 1.5}, TypeError, "top_k must be a whole number, got 1.5"),
        ({"top_p": 0}, ValueError, "top_p must be more than 0 and at most 1, got 0"),
        ({"top_p": 1.01}, ValueError, "top_p must be more than 0 and at most 1, got 1.01"),
        ({"top_p": "x"}, TypeError, "top_p must be a number, got 'x'"),
        ({"max_tokens": -1}, ValueError, "max_tokens must be at least 0, got -1"),
        ({"max_tokens": "x"}, TypeError, "max_tokens must be a whole number, got 'x'"),
    ],
)
def test_bad_options_are_named_at_once(seed, method, options, error, message) -> None:
    with pytest.raises(error, match=message):
        getattr(GPT(SMALL, tokenizer=LETTERS), method)(seed=seed, **options)


def test_more_documents_than_any_memory_holds_are_refused_at_once(backend: str) -> None:
    with pytest.raises(MemoryError, match=r"^an n of [\d,]+ would take [\d,]+ bytes$"):
        GPT(SMALL, backend=backend).generate_tokens(LARGEST // 8, seed=1)


def test_bad_seeds_and_prompts_are_named() -> None:
    model = GPT(SMALL, tokenizer=LETTERS)
    with pytest.raises(TypeError, match=r"seed must be a number, a string or a random\.Random, got True"):
        model.stream(seed=True)
    with pytest.raises(ValueError, match=r"prompt\[1\] is 7, out of range for vocab_size=7"):
        model.generate_tokens(prompt=[0, 7])
    with pytest.raises(ValueError, match="prompt: character 'é' at position 0"):
        model.next_token_probabilities("é")


@pytest.mark.parametrize("method", ["generate", "stream", "next_token_probabilities"])
def test_text_needs_a_tokenizer(method: str) -> None:
    with pytest.raises(ValueError, match=f"{method} needs a tokenizer: pass one to GPT"):
        getattr(GPT(SMALL), method)()
