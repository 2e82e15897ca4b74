"""One document at a time: the same numbers as among many, and as the reference's."""

from __future__ import annotations

import random
import signal
import threading
from typing import Any

import numpy as np
import pytest

from microgpt import GPT, CharTokenizer, GPTConfig, TrainingProgress, train
from microgpt.engine import backend as backends
from microgpt.training.train import prepare

from conftest import CONFIGS as SMALL_CONFIGS
from conftest import needs_compiled, needs_fusing, needs_processes

CONFIGS = [
    *SMALL_CONFIGS,
    GPTConfig(vocab_size=131, n_embd=150, n_head=2, block_size=19, activation="gelu"),
    GPTConfig(vocab_size=17, n_embd=256, n_head=2, block_size=5, activation="silu"),
]
SMALL = GPTConfig(vocab_size=7, n_embd=4, block_size=4, n_head=2)
NAMES = ["carlotta", "bob", "emma"]
LETTERS = CharTokenizer("abcdef")
VERSE = CharTokenizer("abcdef\n", bos="\n")


@pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=needs_fusing)])
@pytest.mark.parametrize("instruction_set", backends.instruction_sets())
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"d{config.n_embd}")
def test_a_document_alone_has_the_bits_that_it_has_among_others(config, instruction_set, dtype, monkeypatch) -> None:
    monkeypatch.setenv("MICROGPT_ISA", instruction_set)
    draw, engine = random.Random(0), GPT(config, 1, dtype).engine
    alone, together = engine.new_cache(1), engine.new_cache(2)
    for _ in range(2):  # the second document finds what the first has left
        alone.lengths[:] = together.lengths[:] = 0
        for position in range(config.block_size):
            tokens = np.array([draw.randrange(config.vocab_size) for _ in range(2)], np.int32)
            temperature = (1.0, 0.4, 0.0)[position % 3]
            probabilities = engine.next_probabilities(alone, tokens[:1], temperature)
            assert probabilities[0].tobytes() == engine.next_probabilities(together, tokens, temperature)[0].tobytes()


@needs_compiled
@pytest.mark.parametrize("config", [config for config in CONFIGS if config.n_embd < 50], ids=lambda c: f"d{c.n_embd}")
def test_a_document_has_the_references_bits(config: GPTConfig) -> None:
    draw, engines = random.Random(0), [GPT(config, 1, backend=backend).engine for backend in ("compiled", "reference")]
    caches = [engine.new_cache(1) for engine in engines]
    for position in range(min(config.block_size, 9)):
        token = np.array([draw.randrange(config.vocab_size)], np.int32)
        ours, theirs = (
            engine.next_probabilities(cache, token, (1.0, 0.4, 0.0)[position % 3])
            for engine, cache in zip(engines, caches)
        )
        assert ours.tolist() == theirs.tolist()


@pytest.mark.parametrize("instruction_set", backends.instruction_sets())
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_single_sample_is_the_first_of_many(dtype: str, instruction_set: str, monkeypatch) -> None:
    monkeypatch.setenv("MICROGPT_ISA", instruction_set)
    for config in CONFIGS[:5]:
        model = GPT(config, 1, dtype)
        for seed in range(5):
            assert model.generate_tokens(1, seed=seed) == model.generate_tokens(3, seed=seed)[:1]


def drawn_one_by_one(model: GPT, tokens: list[int], end: int, limit: int, uniforms: random.Random) -> list[int]:
    """The tokens of `draw_in_turn`, drawn in a call for each."""
    cache, drawn = model.engine.new_cache(1), []
    for token in tokens[:-1]:
        model.engine.next_probabilities(cache, np.array([token], np.int32), 0.7)
    token = tokens[-1]
    while len(drawn) < limit and cache.lengths[0] < model.config.block_size and end not in drawn[-1:]:
        uniform = np.array([uniforms.random()])
        (token,) = model.engine.draw_tokens(cache, np.array([token], np.int32), 0.7, uniform).tolist()
        drawn.append(token)
    return drawn


def test_many_tokens_in_one_call_are_those_of_many_calls(backend: str) -> None:
    model = GPT(GPTConfig(vocab_size=7, n_embd=6, n_head=2, block_size=7), 3, backend=backend)
    cache = model.engine.new_cache(1)
    for tokens in ([6], [1, 2, 3], [5] * 7):
        for end in (-1, 0, 4):
            for limit in (0, 1, 99):
                one, many = random.Random(limit), random.Random(limit)
                arguments = np.array(tokens, np.int32), 2, 0.7, many.random, end, limit
                drawn = model.engine.draw_in_turn(cache, *arguments)
                assert drawn == [drawn_one_by_one(model, tokens, end, limit, one) for _ in range(2)]
                assert one.random() == many.random()  # as many numbers were used
                assert cache.lengths[0] == len(tokens) - 1 + len(drawn[-1])


@pytest.mark.parametrize("format", ["lines", "text"])
def test_documents_drawn_in_turn_are_those_of_streams(backend: str, format: str) -> None:
    """`generate` draws documents in a call, and `stream` a token; the generator goes on from where either has ended."""
    generating, streaming = (GPT(SMALL, 3, backend=backend, tokenizer=LETTERS, format=format) for _ in range(2))
    for prompt in ("", "fade", "facade"):
        for max_tokens in (0, 2, 23):
            options = {"prompt": prompt, "max_tokens": max_tokens, "temperature": 0.8}
            streamed = [prompt + "".join(streaming.stream(**options)) for _ in range(3)]
            assert generating.generate(3, **options) == streamed
    assert generating.generator.getstate() == streaming.generator.getstate()


@needs_compiled
@pytest.mark.parametrize(("tokenizer", "format"), [(LETTERS, "lines"), (LETTERS, "text"), (VERSE, "text")])
def test_documents_drawn_in_turn_are_those_of_both_backends(tokenizer: CharTokenizer, format: str) -> None:
    models = [GPT(SMALL, 3, backend=name, tokenizer=tokenizer, format=format) for name in ("compiled", "reference")]
    for options in (
        {},
        {"max_tokens": 30},
        {"prompt": "decade", "max_tokens": 21},
        {"temperature": 0, "max_tokens": 9},
    ):
        ours, theirs = (model.generate(4, **options) for model in models)
        assert ours == theirs
    ours, theirs = (model.generator.getstate() for model in models)
    assert ours == theirs


class InterruptedCallError(Exception):
    pass


def test_an_interrupted_document_has_used_the_numbers_of_its_tokens(backend: str) -> None:
    model, untouched = (GPT(SMALL, 3, backend=backend, tokenizer=LETTERS, format="text") for _ in range(2))
    generator, calls = model.generator, []

    class Interrupting:
        def random(self) -> float:
            calls.append(1)
            if len(calls) == 8:
                raise InterruptedCallError
            return generator.random()

    model.generator = Interrupting()  # type: ignore[assignment]
    with pytest.raises(InterruptedCallError):
        model.generate(max_tokens=20)
    model.generator = generator
    for _ in range(7):
        untouched.generator.random()
    assert model.generate(3, max_tokens=9) == untouched.generate(3, max_tokens=9)


LONG = GPTConfig(vocab_size=7, n_embd=4, n_head=2, block_size=50_000)  # one call would draw for a minute


@needs_compiled
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers")
def test_ctrl_c_ends_a_call_and_a_handler_may_use_the_model(monkeypatch) -> None:
    model, asked = GPT(LONG, 1, tokenizer=LETTERS, format="text"), []
    expected = model.loss([[0, 1, 2]])

    def handler(number: int, frame: Any) -> None:
        asked.append(model.loss([[0, 1, 2]]))
        if len(asked) == 2:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
        with pytest.raises(KeyboardInterrupt):
            model.generate(max_tokens=LONG.block_size)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert asked == [expected, expected]
    assert len(model.generate(max_tokens=9)[0]) <= 9  # it still works


@needs_compiled
def test_a_callback_of_training_may_draw() -> None:
    expected = train(NAMES, steps=30)
    run, drawn = prepare(NAMES, steps=30), []
    engine = run.model.engine

    def draw(progress: TrainingProgress) -> None:
        tokens = np.array([run.model.bos], np.int32)
        drawn.append(engine.draw_in_turn(engine.new_cache(1), tokens, 2, 1.0, random.Random(1).random, -1, 99))

    assert run.train(draw).losses.tolist() == expected.losses.tolist()
    final = engine.draw_in_turn(
        engine.new_cache(1), np.array([run.model.bos], np.int32), 2, 1.0, random.Random(1).random, -1, 99
    )
    assert drawn[-1] == final


@needs_compiled
@needs_processes
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_the_same_bits_for_every_number_of_threads(dtype: str, monkeypatch) -> None:
    """In a model large enough for a team."""
    config = GPTConfig(vocab_size=100, n_layer=7, n_embd=264, n_head=6, block_size=20)
    start, started, drawn = threading.Thread.start, [], []
    monkeypatch.setattr(threading.Thread, "start", lambda thread: (started.append(thread), start(thread)))
    parameters = np.random.default_rng(0).normal(0, 0.05, config.num_params)
    for threads in (1, 2, 3):
        model = GPT(config, 1, dtype, threads=threads)
        model.engine.parameters[:] = parameters
        cache = model.engine.new_cache(1)
        numbers = random.Random(1)
        before = len(started)
        drawn.append(model.engine.draw_in_turn(cache, np.array([1, 2], np.int32), 2, 1.0, numbers.random, -1, 8))
        assert len(started) == before + threads - 1
        probabilities = model.engine.next_probabilities(cache, np.array([3], np.int32), 1.0)
        drawn[-1].append(probabilities.tobytes())
    assert drawn[0] == drawn[1] == drawn[2]


def test_the_engine_refuses_what_would_not_fit(backend: str) -> None:
    engine = GPT(SMALL, 1, backend=backend).engine
    cache = engine.new_cache(1)
    with pytest.raises(ValueError, match="document 0 already has block_size=4 tokens"):
        engine.draw_in_turn(cache, np.array([1, 2, 3, 4, 5, 6], np.int32), 1, 1.0, random.random, -1, 9)


@needs_compiled
def test_only_a_cache_of_one_document_is_continued() -> None:
    engine, other = (GPT(SMALL, 1).engine for _ in range(2))
    for cache, tokens in ((engine.new_cache(2), [1]), (engine.new_cache(1), []), (other.new_cache(1), [1])):
        with pytest.raises(ValueError, match=r"for a cache of|a cache of another model"):
            engine.draw_in_turn(cache, np.array(tokens, np.int32), 1, 1.0, random.random, -1, 9)
