"""The model: its numbers, which are the same on both backends to the last bit."""

from __future__ import annotations

import copy
import pickle
import random
import sys
from types import FrameType
from typing import Any

import numpy as np
import pytest

from microgpt import GPT, Adam, CharTokenizer, GPTConfig
from microgpt.engine import backend as backends
from microgpt.engine.network import network
from microgpt.reference import draw_state_dict, sample_document

from conftest import needs_compiled

# Sizes that kernels could get wrong: one head or one per channel, widths that fill no vector, two tokens, one position.
CONFIGS = [
    GPTConfig(vocab_size=2, n_layer=1, n_embd=1, block_size=1, n_head=1),
    GPTConfig(vocab_size=2, n_layer=2, n_embd=3, block_size=3, n_head=3),
    GPTConfig(vocab_size=5, n_layer=1, n_embd=4, block_size=9, n_head=4),
    GPTConfig(vocab_size=7, n_layer=2, n_embd=6, block_size=5, n_head=2),
    GPTConfig(vocab_size=9, n_layer=1, n_embd=8, block_size=17, n_head=1),
    GPTConfig(vocab_size=13, n_layer=1, n_embd=12, block_size=8, n_head=2),
    GPTConfig(vocab_size=17, n_layer=3, n_embd=10, block_size=4, n_head=5),
    GPTConfig(vocab_size=33, n_layer=1, n_embd=20, block_size=10, n_head=2),
    GPTConfig(vocab_size=40, n_layer=1, n_embd=32, block_size=7, n_head=2),
    GPTConfig(vocab_size=3, n_layer=2, n_embd=5, block_size=6, n_head=1, activation="gelu", init_std=0.7),
    GPTConfig(vocab_size=4, n_layer=2, n_embd=6, block_size=5, n_head=2, activation="silu", init_std=0.7),
    GPTConfig(vocab_size=6, n_layer=2, n_embd=10, block_size=9, n_head=5, dropout=0.3),
]
ids = [
    f"v{c.vocab_size}-l{c.n_layer}-d{c.n_embd}-b{c.block_size}-h{c.n_head}-{c.activation}{'-dropout' * (c.dropout > 0)}"
    for c in CONFIGS
]

tiny = GPTConfig(vocab_size=5, n_layer=1, n_embd=4, block_size=6, n_head=2)


def batches(config: GPTConfig) -> list[list[list[int]]]:
    """One document of every kind, then several at once: one token, longer than the context, a token repeated."""
    draw = random.Random(config.n_embd * 1000 + config.block_size)
    lengths = [2, 3, config.block_size + 1, config.block_size + 4]
    documents = [[draw.randrange(config.vocab_size) for _ in range(n)] for n in lengths]
    documents.append([1] * (config.block_size + 1))
    return [[document] for document in documents] + [documents[::-1] + documents[1:3]]


def both(config: GPTConfig, seed: int = 1) -> tuple[GPT, GPT]:
    return GPT(config, seed, backend="reference"), GPT(config, seed, backend="compiled")


@needs_compiled
def test_matrices_that_backward_transposes_give_the_same_bits(monkeypatch) -> None:
    config, documents = GPTConfig(vocab_size=3, n_embd=16, block_size=2, n_head=2), [[2, 1], [0, 2, 2]]
    monkeypatch.setattr("microgpt.engine.network.TRANSPOSED_WIDTH", config.n_embd)
    assert any(operation.transposed for operation in network(config, 8).operations)
    (loss, gradients), (expected_loss, expected) = (
        GPT(config, 1, backend=backend).loss_and_gradients(documents) for backend in ("compiled", "reference")
    )
    assert loss == expected_loss
    for name, gradient in gradients.items():
        assert gradient.tolist() == expected[name].tolist(), name


@needs_compiled
@pytest.mark.parametrize("config", CONFIGS, ids=ids)
def test_losses_and_gradients_are_the_references(config: GPTConfig) -> None:
    reference, compiled = both(config)
    for seed, documents in enumerate(batches(config)):
        loss, gradients = reference.loss_and_gradients(documents, dropout_seed=seed)
        assert compiled.loss(documents) == (reference.loss(documents) if config.dropout else loss)
        compiled_loss, compiled_gradients = compiled.loss_and_gradients(documents, dropout_seed=seed)
        assert compiled_loss == loss
        assert list(compiled_gradients) == list(gradients)
        for name, gradient in gradients.items():
            assert compiled_gradients[name].tolist() == gradient.tolist(), name


@needs_compiled
@pytest.mark.parametrize("config", CONFIGS, ids=ids)
@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.3, "max_grad_norm": 0.7}], ids=["Adam", "AdamW, clipped"])
def test_training_steps_are_the_references(config: GPTConfig, options: dict[str, float]) -> None:
    models = both(config)
    optimizers = [Adam(model, learning_rate=0.02, beta1=0.8, beta2=0.95, **options) for model in models]
    for documents in batches(config)[1::2]:  # one alone, another, and seven
        for model, optimizer in zip(models, optimizers):
            model.loss_and_gradients(documents, dropout_seed=optimizer.step_count)
            optimizer.step()
        for name, parameters in models[0].state_dict().items():
            assert models[1].state_dict()[name].tolist() == parameters.tolist(), name
    assert optimizers[0].m.tolist() == optimizers[1].m.tolist()
    assert optimizers[0].v.tolist() == optimizers[1].v.tolist()


@needs_compiled
@pytest.mark.parametrize("config", CONFIGS, ids=ids)
def test_logits_and_samples_are_the_references(config: GPTConfig) -> None:
    reference, compiled = both(config)
    tokens = [i % config.vocab_size for i in range(config.block_size)]
    assert compiled.logits(tokens).tolist() == reference.logits(tokens).tolist()
    assert compiled.generate_tokens(3, 0.7) == reference.generate_tokens(3, 0.7)
    assert compiled.generator.getstate() == reference.generator.getstate()


@needs_compiled
@pytest.mark.parametrize("config", CONFIGS, ids=ids)
def test_every_instruction_set_gives_the_same_bits(config: GPTConfig, monkeypatch) -> None:
    """The tests above compare the best one with the reference, so that all of them give its bits."""
    results = []
    for instruction_set in backends.instruction_sets():
        monkeypatch.setenv("MICROGPT_ISA", instruction_set)
        model = GPT(config, 1, backend="compiled")
        optimizer = Adam(model)
        losses = []
        for documents in batches(config):
            losses.append(model.loss_and_gradients(documents, dropout_seed=1)[0])
            optimizer.step()
        samples = model.generate_tokens(3, 0.7)
        results.append((losses, model.engine.gradients.tolist(), model.engine.parameters.tolist(), samples))
    assert all(result == results[0] for result in results)


@needs_compiled
def test_numbers_of_every_size_have_the_same_bits_on_both_backends() -> None:
    """Gradients from far below the smallest normal number upwards, where no fast path applies."""
    config = GPTConfig(vocab_size=3, n_layer=1, n_embd=4, block_size=2, n_head=2)
    models = both(config)
    draw = random.Random(0)
    optimizers = [Adam(model) for model in models]
    for step in range(40):
        sizes = [10.0 ** draw.uniform(-320, 100 if step % 2 else -1) for _ in range(config.num_params)]
        gradients = [draw.choice([size, -size, 0.0, 1.0, 0.5]) for size in sizes]
        for model, optimizer in zip(models, optimizers):
            model.engine.gradients[:] = gradients
            optimizer.step(10.0 ** (-step / 4))
        assert optimizers[0].m.tolist() == optimizers[1].m.tolist()
        assert optimizers[0].v.tolist() == optimizers[1].v.tolist()
        assert models[0].engine.parameters.tolist() == models[1].engine.parameters.tolist()


def test_loss_is_the_mean_over_documents_of_the_mean_over_positions(backend: str) -> None:
    model = GPT(tiny, 3, backend=backend)
    documents = [[4, 0, 1, 4], [4, 2, 4]]
    by_hand = []
    for document in documents:
        logits = model.logits(document[:-1])
        log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        by_hand.append(-log_probabilities[range(len(document) - 1), document[1:]].mean())
    assert abs(model.loss(documents) - np.mean(by_hand)) < 1e-14


def test_gradients_are_the_derivatives_of_the_loss(backend: str) -> None:
    model = GPT(tiny, 3, backend=backend)
    documents = [[4, 0, 1, 4], [4, 2, 4]]
    _, gradients = model.loss_and_gradients(documents)
    for name, parameters in model.state_dict().items():
        index, step = (1, 2), 1e-6
        before = parameters[index]
        parameters[index] = before + step
        above = model.loss(documents)
        parameters[index] = before - step
        below = model.loss(documents)
        parameters[index] = before
        assert abs((above - below) / (2 * step) - gradients[name][index]) < 1e-8, name


def test_state_dict_is_the_model_not_a_copy(backend: str) -> None:
    model = GPT(tiny, backend=backend)
    before = model.loss([[0, 1, 2]])
    model.state_dict()["lm_head"][...] *= 2
    assert model.loss([[0, 1, 2]]) != before
    assert [matrix.shape for matrix in model.state_dict().values()] == list(tiny.parameter_shapes().values())


@pytest.mark.parametrize("config", CONFIGS, ids=ids)
def test_parameters_are_counted(config: GPTConfig) -> None:
    assert config.num_params == sum(rows * columns for rows, columns in config.parameter_shapes().values())


@pytest.mark.parametrize("config", [tiny, CONFIGS[3]], ids=["tiny", ids[3]])
def test_parameters_and_documents_are_drawn_as_by_the_reference(config: GPTConfig, backend: str) -> None:
    model, generator = GPT(config, 5, backend=backend), random.Random(5)
    state_dict = draw_state_dict(config, generator)
    assert {name: matrix.tolist() for name, matrix in model.state_dict().items()} == {
        name: [[p.data for p in row] for row in matrix] for name, matrix in state_dict.items()
    }
    for _ in range(5):
        document = sample_document(state_dict, config, model.bos, 0.7, generator)
        assert model.generate_tokens(1, 0.7) == [document]


def test_load_state_dict_copies_what_state_dict_gave(backend: str) -> None:
    source, target = GPT(tiny, 1, backend=backend), GPT(tiny, 2, backend=backend)
    target.load_state_dict(source.state_dict())
    assert target.loss([[0, 1, 2]]) == source.loss([[0, 1, 2]])
    source.state_dict()["wte"][...] = 0
    assert target.loss([[0, 1, 2]]) != source.loss([[0, 1, 2]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("wte"), "arrays lacks wte"),
        (lambda arrays: arrays.update(bias=np.zeros(3)), "the model does not know bias"),
        (lambda arrays: arrays.update(wte=np.zeros((4, 5))), r"arrays\['wte'\] must be numbers of shape \(5, 4\)"),
        (
            lambda arrays: arrays.update(wte=[[1], [2, 3]]),
            r"arrays\['wte'\] must be numbers of shape \(5, 4\), got rows",
        ),
        (lambda arrays: arrays.update(wte=np.full((5, 4), "x")), r"arrays\['wte'\] must be numbers of shape \(5, 4\)"),
    ],
)
def test_load_state_dict_refuses_what_does_not_fit_and_changes_nothing(backend, change, message) -> None:
    model = GPT(tiny, backend=backend)
    before = model.loss([[0, 1, 2]])
    arrays = {name: np.zeros_like(array) for name, array in model.state_dict().items()}
    change(arrays)
    with pytest.raises(ValueError, match=message):
        model.load_state_dict(arrays)
    assert model.loss([[0, 1, 2]]) == before


@pytest.mark.parametrize(
    ("sequences", "error", "message"),
    [
        ([], ValueError, "sequences must hold at least one token sequence, got none"),
        ([[1]], ValueError, r"sequences\[0\] must have at least 2 tokens"),
        ([[1, 2], []], ValueError, r"sequences\[1\] must have at least 2 tokens"),
        ([[1, 2], [0, 5]], ValueError, r"sequences\[1\]\[1\] is 5, out of range for vocab_size=5"),
        ([[-1, 2]], ValueError, r"sequences\[0\]\[0\] is -1, out of range"),
        ([[1, 2**70]], TypeError, r"sequences\[0\] must be a sequence of whole numbers"),
        ([[1.5, 2]], TypeError, r"sequences\[0\] must be a sequence of whole numbers"),
        ([[[1, 2], [3]]], TypeError, r"sequences\[0\] must be a sequence of whole numbers"),
        ([np.ones((2, 1))], TypeError, r"whole numbers, got array\(\[\[1\.\], \[1\.\]\]\)$"),  # on one line
        (["ab" * 40], TypeError, r"whole numbers, got 'abab.*ab\.\.\.$"),
        (["ab"], TypeError, r"sequences\[0\] must be a sequence of whole numbers, got 'ab'"),
        ([1, 2, 3], TypeError, r"sequences\[0\] must be a sequence of whole numbers, got 1"),
        ("ab", TypeError, "sequences must be a list of token sequences"),
        (7, TypeError, "sequences must be a list of token sequences"),
        ({(1, 2), (3, 4)}, TypeError, "sequences must have an order that stays the same, as a list has, got a set"),
    ],
)
def test_bad_sequences_are_named(backend, sequences, error, message) -> None:
    with pytest.raises(error, match=message):
        GPT(tiny, backend=backend).loss(sequences)


@pytest.mark.parametrize("tokens", [[], [0] * 7])
def test_logits_take_one_to_block_size_tokens(backend, tokens) -> None:
    with pytest.raises(ValueError, match="tokens must be 1 to block_size=6 tokens"):
        GPT(tiny, backend=backend).logits(tokens)


def test_samples_end_at_bos_or_with_the_context(backend: str) -> None:
    model = GPT(tiny, backend=backend)
    samples = model.generate_tokens(20)
    assert len(samples) == 20
    assert all(len(sample) <= tiny.block_size and tiny.vocab_size - 1 not in sample for sample in samples)
    assert {len(sample) for sample in samples} > {tiny.block_size}


def test_low_temperature_samples_the_likeliest(backend: str) -> None:
    model = GPT(tiny, backend=backend)
    for sample in model.generate_tokens(5, temperature=1e-3):
        tokens = [tiny.vocab_size - 1, *sample]
        likeliest = model.logits(tokens[: tiny.block_size]).argmax(1)
        assert sample == likeliest[: len(sample)].tolist()


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("instruction_set", backends.instruction_sets() or [None])
def test_the_lowest_temperatures_always_sample_the_likeliest(dtype, instruction_set, monkeypatch) -> None:
    if instruction_set:
        monkeypatch.setenv("MICROGPT_ISA", instruction_set)
    elif dtype == "float32":
        pytest.skip("the reference computes in float64 only")
    model = GPT(GPTConfig(vocab_size=27), 3, dtype)
    for parameters in model.state_dict().values():
        parameters *= 5  # logits too large for float32 to distinguish at such a temperature
    tokens = [26, 3, 5, 8, 13, 21]
    likeliest = model.logits(tokens).argmax(1)
    for temperature in (0.0, 1e-30):
        cache = model.engine.new_cache(1)
        for token, expected in zip(tokens, likeliest):
            (probabilities,) = model.engine.next_probabilities(cache, np.array([token], np.int32), temperature)
            assert probabilities.tolist() == (np.arange(27) == expected).tolist()


def test_where_a_loss_is_not_finite_every_gradient_is_nan(backend: str) -> None:
    model = GPT(tiny, backend=backend)
    for name, number, expected in (("layer0.mlp_fc1", 1e20, np.inf), ("lm_head", np.nan, np.nan)):
        model.state_dict()[name][...] = number
        loss, gradients = model.loss_and_gradients([[4, 0, 1, 4]])
        assert np.array_equal(loss, expected, equal_nan=True)
        assert all(np.isnan(gradient).all() for gradient in gradients.values())


def without_finite_logits(model: GPT) -> GPT:
    """A model with finite parameters all of whose logits are infinite, and so all probabilities NaN."""
    for name, matrix in model.state_dict().items():
        matrix[...] = 1.7e308 if name == "lm_head" else name in ("wte", "wpe")
    return model


def test_where_probabilities_are_nan_the_last_token_is_drawn(backend: str) -> None:
    """The other tokens' probabilities never add up to the number drawn, so the last is what remains."""
    model = without_finite_logits(GPT(tiny, backend=backend, tokenizer=CharTokenizer("abcde", bos="a")))
    for options in ({}, {"seed": 1}, {"seed": 1, "top_k": 2}):
        assert model.generate_tokens(2, **options) == [[4] * tiny.block_size] * 2


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_model_that_is_not_finite_says_so(tmp_path, backend: str, number: float) -> None:
    model = GPT(tiny, backend=backend, tokenizer=CharTokenizer("abcd"))
    assert model.is_finite()
    model.save(path := tmp_path / "model.safetensors")
    before = path.read_bytes()
    model.state_dict()["wpe"][-1, -1] = number
    assert not model.is_finite()
    methods = {
        "evaluate": lambda: model.evaluate(["abc"]),
        "generate": model.generate,
        "next_token_probabilities": model.next_token_probabilities,
        "stream": model.stream,
        "save": lambda: model.save(path),
    }
    for name, method in methods.items():
        with pytest.raises(
            ValueError, match=f"^{name} needs finite parameters, but not all of wpe are: training has div"
        ):
            method()
    model.state_dict()["lm_head"][0, 0] = model.state_dict()["layer0.mlp_fc1"][0, 0] = number
    with pytest.raises(ValueError, match=r"^generate needs finite parameters, but not all of wpe and 2 more are: "):
        model.generate_tokens()
    assert path.read_bytes() == before


def test_probabilities_that_are_not_numbers_are_not_evaluated(backend: str) -> None:
    model = without_finite_logits(GPT(tiny, backend=backend, tokenizer=CharTokenizer("abcd")))
    with pytest.raises(ValueError, match="the model's probabilities are not numbers: its parameters are too large"):
        model.evaluate(["abc"])


def duplicates() -> list[Any]:
    def pickled(model: Any) -> Any:
        return pickle.loads(pickle.dumps(model))

    return [copy.copy, copy.deepcopy, pickled]


@pytest.mark.parametrize("duplicate", duplicates())
def test_a_copy_is_the_same_model_with_memory_of_its_own(duplicate, backend: str) -> None:
    threads = 2 if backend == "compiled" else None
    model = GPT(tiny, 3, backend=backend, threads=threads, tokenizer=CharTokenizer("abcd"))
    model.generator.fill_gauss(np.zeros(1), 1.0)  # from here on it holds a spare number
    loss, _ = model.loss_and_gradients([[4, 0, 1, 4]])
    twin = duplicate(model)
    assert repr(twin) == repr(model)
    assert (twin.threads, twin.tokenizer, twin.history) == (threads or 1, model.tokenizer, None)
    assert twin.generator.getstate() == model.generator.getstate()
    assert twin.generate(9) == model.generate(9)
    Adam(twin).step()
    assert model.loss([[4, 0, 1, 4]]) == loss
    Adam(model).step()  # with the same gradients
    assert model.loss([[4, 0, 1, 4]]) == twin.loss([[4, 0, 1, 4]]) != loss


@pytest.mark.parametrize("duplicate", duplicates()[1:])
def test_a_model_and_its_optimizer_stay_together(duplicate, backend: str) -> None:
    model = GPT(tiny, backend=backend)
    optimizer = Adam(model, 0.1, weight_decay=0.5)

    def step(model: GPT, optimizer: Adam) -> float:
        model.loss_and_gradients([[4, 0, 1, 4]])
        optimizer.step()
        return model.loss([[4, 0, 1, 4]])

    before = step(model, optimizer)
    twin, optimizer_of_twin = duplicate((model, optimizer))
    assert step(twin, optimizer_of_twin) < before == model.loss([[4, 0, 1, 4]])
    assert step(twin, optimizer_of_twin) < step(model, optimizer) < before  # the model is a step behind its twin


@needs_compiled
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_pickle_opens_where_there_is_no_compiled_engine(dtype: str, monkeypatch) -> None:
    model = GPT(tiny, dtype=dtype, backend="compiled")
    expected = model.generate_tokens(3, 0.5)
    content = pickle.dumps((GPT(tiny, dtype=dtype, backend="compiled"), Adam(model)))
    assert b"_engine" not in content
    assert b"_mersenne" not in content
    monkeypatch.setattr(backends, "compiled_engine", lambda: None)
    twin, optimizer = pickle.loads(content)
    assert (twin.backend, twin.dtype, optimizer.m.dtype) == ("reference", "float64", "float64")
    assert twin.generate_tokens(3, 0.5) == expected


def test_logits_are_the_callers(backend: str) -> None:
    model = GPT(GPTConfig(vocab_size=1, n_embd=4, block_size=6), backend=backend)
    logits = model.logits([0, 0])
    expected = logits.tolist()
    model.state_dict()["lm_head"][:] *= 3
    model.logits([0])
    assert logits.tolist() == expected


@needs_compiled
def test_a_model_survives_a_batch_that_memory_is_too_small_for(monkeypatch) -> None:
    def refuse(*_: object) -> None:  # how much memory a system has, or promises, varies
        raise MemoryError

    model = GPT(tiny)
    expected = model.loss([[0, 1, 2]])
    with monkeypatch.context() as patched:
        patched.setattr(np, "zeros", refuse)
        with pytest.raises(MemoryError, match=r"^a batch of 400 positions would take [\d,]+ bytes$"):
            model.loss([[0, 1, 2]] * 200)
    assert model.loss([[0, 1, 2]]) == expected
    assert len(model.generate_tokens(1, 0.5)) == 1


@needs_compiled
def test_a_model_survives_an_interruption_while_its_memory_grows() -> None:
    config, documents = GPTConfig(vocab_size=2, n_embd=32, block_size=8), [[0, 1] * 4] * 20
    sampled, loss = GPT(config).generate_tokens(20, seed=4), GPT(config).loss(documents)
    moment, calls, interrupted = 0, 0, True

    def interrupt(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call" and "numpy" in frame.f_code.co_filename  # the engine asks NumPy where its arrays start
        if calls > moment:
            raise KeyboardInterrupt

    while interrupted:
        model, calls = GPT(config), 0
        sys.setprofile(interrupt)
        try:
            model.loss(documents)
            interrupted = False
        except KeyboardInterrupt:
            moment += 1
        finally:
            sys.setprofile(None)
        assert model.generate_tokens(20, seed=4) == sampled
        assert model.loss(documents) == loss
    assert moment > 20


def test_generate_gives_text(backend: str) -> None:
    tokenizer = CharTokenizer("abcd")
    model = GPT(tiny, 5, backend=backend, tokenizer=tokenizer)
    twin = GPT(tiny, 5, backend=backend, tokenizer=tokenizer)
    assert model.generate(4) == [tokenizer.decode(tokens) for tokens in twin.generate_tokens(4)]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.generate(2), ValueError, "generate needs a tokenizer"),
        (lambda m: m.generate_tokens(-1), ValueError, "n must be at least 0, got -1"),
        (lambda m: m.generate_tokens(1.5), TypeError, "n must be a whole number, got 1.5"),
        (lambda m: m.generate_tokens(1, -1), ValueError, "temperature must be at least 0, got -1"),
        (lambda m: m.generate_tokens(1, float("nan")), ValueError, "temperature must be at least 0, got nan"),
        (lambda m: m.generate_tokens(1, "hot"), TypeError, "temperature must be a number, got 'hot'"),
    ],
)
def test_bad_sampling_arguments_are_named(backend, call, error, message) -> None:
    with pytest.raises(error, match=message):
        call(GPT(tiny, backend=backend))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"vocab_size": 0}, ValueError, "vocab_size must be at least 1, got 0"),
        ({"n_layer": 0}, ValueError, "n_layer must be at least 1, got 0"),
        ({"block_size": -3}, ValueError, "block_size must be at least 1, got -3"),
        ({"n_head": 3}, ValueError, "n_embd must be a multiple of n_head, got n_embd=16 and n_head=3"),
        ({"activation": "tanh"}, ValueError, "activation must be 'relu' or "),
        ({"init_std": 0}, ValueError, "init_std must be more than 0, got 0"),
        ({"init_std": "small"}, ValueError, "init_std must be a number or 'scaled', got 'small'"),
        ({"dropout": 1}, ValueError, "dropout must be at least 0 and less than 1, got 1"),
        ({"dropout": -0.1}, ValueError, "dropout must be at least 0 and less than 1, got -0.1"),
        ({"dropout": "0.1"}, TypeError, "dropout must be a number, got '0.1'"),
        ({"n_embd": 16.0}, TypeError, "n_embd must be a whole number, got 16.0"),
        ({"n_embd": True}, TypeError, "n_embd must be a whole number, got True"),
    ],
)
def test_bad_sizes_are_named(options, error, message) -> None:
    with pytest.raises(error, match=message):
        GPTConfig(**{"vocab_size": 5, **options})


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"config": {"n_embd": 4}}, TypeError, "config must be a GPTConfig, got dict"),
        ({"dtype": "float16"}, ValueError, "dtype must be 'float64' or 'float32', got 'float16'"),
        pytest.param({"threads": 0}, ValueError, "threads must be at least 1, got 0", marks=needs_compiled),
        ({"backend": "gpu"}, ValueError, "backend must be 'compiled' or 'reference', got 'gpu'"),
        ({"tokenizer": CharTokenizer("ab")}, ValueError, "vocab_size must be the tokenizer's 3, got a config with 5"),
    ],
)
def test_bad_model_arguments_are_named(options, error, message) -> None:
    with pytest.raises(error, match=message):
        GPT(**{"config": tiny, **options})


@pytest.mark.skipif(sys.maxsize < 2**32, reason="there is no such number in 32 bits")
def test_more_layers_than_any_memory_holds_are_refused_at_once(backend: str) -> None:
    with pytest.raises(MemoryError):
        GPT(GPTConfig(vocab_size=5, n_layer=10**12), backend=backend)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"learning_rate": -1}, ValueError, "learning_rate must be at least 0, got -1"),
        ({"beta1": 1}, ValueError, "beta1 must be at least 0 and less than 1, got 1"),
        ({"beta2": float("nan")}, ValueError, "beta2 must be at least 0 and less than 1, got nan"),
        ({"eps": 0}, ValueError, "eps must be at least 1e-100, got 0"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay must be at least 0, got -0.1"),
        ({"max_grad_norm": 0}, ValueError, "max_grad_norm must be more than 0, got 0"),
        ({"eps": "x"}, TypeError, "eps must be a number, got 'x'"),
        ({"model": 3}, TypeError, "model must be a GPT or Values, got int"),
        ({"model": {1.0}}, TypeError, "model must have an order that stays the same, as a list has, got a set"),
    ],
)
def test_bad_optimizer_arguments_are_named(backend, options, error, message) -> None:
    with pytest.raises(error, match=message):
        Adam(**{"model": GPT(tiny, backend=backend), **options})
