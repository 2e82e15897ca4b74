"""`train`: everything in one call."""

from __future__ import annotations

import math
import pickle
import pydoc
import random
import re
import signal
import threading
import weakref
from typing import Unpack, get_type_hints

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import microgpt
from microgpt import GPT, Adam, GPTConfig, TrainingProgress, load, read_documents, train
from microgpt.engine.backend import new_generator
from microgpt.evaluation import mean_loss
from microgpt.training.recipe import Recipe, RecipeOptions, defaults_of
from microgpt.training.run import VALIDATIONS, Run, round_interval
from microgpt.training.train import TrainOptions, prepare
from microgpt.utils.arguments import LARGEST

from conftest import needs_compiled, sequences

SMALL = {"n_embd": 4, "n_head": 2, "block_size": 4}
names = ["anna", "bob", "carlotta", "di", "emma"]


def shuffled(run: Run) -> list[list[int]]:
    """The tokens of all documents in the order in which a run uses them."""
    order = new_generator("reference", 5).permutation(len(run.corpus))
    return [run.corpus.tokens[run.corpus.offsets[i] : run.corpus.offsets[i + 1] + 1].tolist() for i in order]


def test_train_is_the_loop_written_out(backend: str) -> None:
    result = train(names, steps=7, seed=5, batch_size=2, backend=backend, **SMALL)

    run = prepare(names, steps=0, seed=5, backend=backend, **SMALL)
    model, documents = run.model, shuffled(run)
    optimizer, losses = Adam(model), []
    for step in range(7):
        loss, _ = model.loss_and_gradients([documents[(2 * step + i) % 5] for i in range(2)])
        losses.append(loss)
        optimizer.step(0.01 * (1 - step / 7))
    assert result.losses.tolist() == losses
    assert result.model.engine.parameters.tolist() == model.engine.parameters.tolist()
    assert result.model.generate(3) == model.generate(3)


@needs_compiled
@settings(max_examples=25, deadline=None)
@given(
    documents=st.lists(st.text("abcdé", min_size=1, max_size=9), min_size=1, max_size=4),
    n_layer=st.integers(1, 2),
    n_head=st.integers(1, 3),
    head_dim=st.integers(1, 5),
    block_size=st.integers(1, 9),
    batch_size=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_random_models_train_to_the_same_bits_on_both_backends(documents, n_head, head_dim, **options) -> None:
    options |= {"n_head": n_head, "n_embd": n_head * head_dim, "steps": 2, "learning_rate": 0.1}
    results = [train(documents, backend=backend, **options) for backend in ("reference", "compiled")]
    assert results[0].losses.tolist() == results[1].losses.tolist()
    assert results[0].model.engine.parameters.tolist() == results[1].model.engine.parameters.tolist()
    assert results[0].model.generate(2) == results[1].model.generate(2)


def test_the_seed_decides_everything(backend: str) -> None:
    first, again, other = (train(names, steps=3, seed=seed, backend=backend, **SMALL) for seed in (1, 1, 2))
    assert first.losses.tolist() == again.losses.tolist() != other.losses.tolist()
    assert first.model.generate(4) == again.model.generate(4)
    continued = train(names, steps=3, seed=random.Random(1), backend=backend, **SMALL)
    assert continued.losses.tolist() == first.losses.tolist()


def test_no_steps_leave_the_model_as_drawn(backend: str) -> None:
    result = train(names, steps=0, backend=backend, **SMALL)
    assert len(result.losses) == 0
    assert len(result.model.generate(2)) == 2


def test_the_callers_documents_are_not_shuffled(backend: str) -> None:
    documents = list(names)
    train(documents, steps=1, backend=backend, **SMALL)
    assert documents == names


def test_progress_counts_completed_steps(backend: str) -> None:
    seen: list[int] = []
    steps = 60_000 if backend == "compiled" else 5
    train(names, steps=steps, backend=backend, progress=lambda progress: seen.append(progress.step), **SMALL)
    assert seen == sorted(set(seen))
    assert 1 <= seen[0] <= seen[-1] <= steps


def test_progress_knows_how_long_training_has_taken(backend: str) -> None:
    run = prepare(names, time=0.05, backend=backend, **SMALL)
    seen: list[float] = []
    run.train(lambda progress: seen.append(progress.seconds))
    assert seen[-1] == run.seconds >= 0.05
    assert seen[0] > 0
    assert seen == sorted(seen)


@needs_compiled
def test_progress_may_replace_the_optimizers_arrays_during_a_step() -> None:
    run = prepare(names, steps=10_000, backend="compiled")
    in_use, alive = weakref.ref(run.optimizer.m.base), []

    def replace(progress: TrainingProgress) -> None:
        run.optimizer.m = run.optimizer.m.copy()
        alive.append(in_use() is not None or progress.step == 10_000)

    run.train(replace)
    assert all(alive)


def test_exceptions_of_progress_end_training(backend: str) -> None:
    def progress(progress: TrainingProgress) -> None:
        raise RuntimeError("enough")

    steps = 200_000 if backend == "compiled" else 5
    run = prepare(names, steps=steps, backend=backend, **SMALL)
    with pytest.raises(RuntimeError, match="enough"):
        run.train(progress)
    assert 0 < run.optimizer.step_count < steps


@needs_compiled
def test_interrupts_end_training_between_steps() -> None:
    """The reference can be interrupted at any line; test_cli.py interrupts both backends."""
    run = prepare(names, steps=10_000_000, **SMALL)
    threading.Timer(0.3, signal.raise_signal, [signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        run.train()
    steps = run.optimizer.step_count
    assert 0 < steps < 10_000_000

    twin = prepare(names, steps=steps, **SMALL)
    packed = twin.batches.batch(0, steps, 1)
    schedule = 0.01 * (1 - np.arange(steps) / 10_000_000)
    twin.model.engine.train(packed, 1, schedule, twin.optimizer, np.zeros(steps), None)
    assert twin.model.engine.parameters.tolist() == run.model.engine.parameters.tolist()


@needs_compiled
def test_two_models_train_at_once_without_disturbing_each_other() -> None:
    alone = [train(names, steps=3000, seed=seed, **SMALL).losses.tolist() for seed in range(4)]
    together: dict[int, list[float]] = {}

    def run(seed: int) -> None:
        together[seed] = train(names, steps=3000, seed=seed, **SMALL).losses.tolist()

    threads = [threading.Thread(target=run, args=[seed]) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[seed] for seed in range(4)] == alone


@pytest.mark.parametrize("format", ["lines", "text"])
def test_a_run_that_ends_at_a_step_goes_on_as_if_it_had_not(tmp_path, backend: str, format: str) -> None:
    options = {"steps": 7, "seed": 5, "val_fraction": 0.4, "eval_every": 7, "backend": backend, **SMALL}
    data = names if format == "lines" else names * 3
    whole = train(data, format=format, **options)
    out = tmp_path / "model"
    for until, validated in ((2, [0, 2]), (5, [0, 2, 5]), (9, [0, 2, 5, 7])):
        run = prepare(data, out=out, resume=True, format=format, **options)
        result = run.train(until=until)
        assert run.saved_step == run.step == min(until, 7)
        assert run.is_over()
        assert [step for step, _ in result.validation_losses] == validated
    assert result.losses.tolist() == whole.losses.tolist()
    assert result.model.engine.parameters.tolist() == whole.model.engine.parameters.tolist()
    assert result.validation_losses[-1] == whole.validation_losses[-1]


def test_a_loss_that_is_not_finite_stops_training_and_names_the_step(backend: str) -> None:
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) at step \d+: try a smaller learning_rate"):
        train(names, steps=50, learning_rate=1e300, backend=backend, **SMALL)
    model = train(names, steps=0, backend=backend, **SMALL).model
    model.state_dict()["wte"][...] = np.nan
    assert not np.isfinite(model.loss([[0, 1, 2]]))


DIVERGING = {"learning_rate": 1e150, "schedule": "constant", "n_embd": 1, "n_head": 1, "block_size": 2}


@pytest.mark.parametrize("format", ["lines", "text"])
def test_a_run_whose_last_step_breaks_the_model_does_not_succeed(tmp_path, backend: str, format: str) -> None:
    """A loss is computed before its step: the last one says nothing about the parameters after it."""
    out, messages = tmp_path / "model.safetensors", set()
    for dtype, learning_rate in [("float64", 1e150), ("float64", 1e300), ("float32", 1e30), ("float32", 1e300)]:
        if backend == "reference" and dtype == "float32":
            continue
        options = {**DIVERGING, "dtype": dtype, "learning_rate": learning_rate, "format": format, "backend": backend}
        succeeded = False
        for steps in range(1, 6):
            try:
                model = train(["ab", "ba", "aab"], steps=steps, out=out, **options).model
            except ValueError as error:
                assert not out.exists()
                # the run with one step less should have failed
                assert not (succeeded and f"at step {steps}:" in str(error))
                succeeded = False
                messages.add(re.sub(r"step \d+", "step", str(error)))
            else:
                assert model.is_finite()
                succeeded = True
                out.unlink()
    assert messages >= {"the loss is nan after step: try a smaller learning_rate"}
    assert len(messages) > 1 or format == "text" or backend == "reference"


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("options", [{}, {"checkpoint_every": 1}, {"val_fraction": 0.4, "keep_best": True}])
def test_parameters_that_are_not_finite_are_never_written(tmp_path, backend: str, number: float, options: dict) -> None:
    """Not even parameters that no loss depends on, such as those of a position that no document reaches."""
    out = tmp_path / "model.safetensors"
    options = {"backend": backend, "out": out, "resume": True, **SMALL, "block_size": 20, **options}
    train(names, steps=2, schedule="constant", **options)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    run = prepare(names, steps=9, schedule="constant", **options)
    run.model.state_dict()["wpe"][-1] = number
    with pytest.raises(
        ValueError, match=r"^the parameters are not finite numbers after step \d: try a smaller learning_"
    ):
        run.train()
    assert math.isfinite(run.losses[: run.step].mean())
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("end", [KeyboardInterrupt, BrokenPipeError])
def test_no_end_of_a_run_writes_parameters_that_are_not_finite(tmp_path, backend: str, end: type) -> None:
    out = tmp_path / "model.safetensors"
    run = prepare(names, steps=1_000_000, backend=backend, out=out, **{**SMALL, "block_size": 20})

    def progress(progress: TrainingProgress) -> None:
        run.model.state_dict()["wpe"][-1] = np.nan
        if end is KeyboardInterrupt:
            signal.raise_signal(signal.SIGINT)
        else:
            raise end

    expected = ValueError if end is KeyboardInterrupt else end
    with pytest.raises(expected):
        run.train(progress)
    assert not out.exists()


def test_a_model_with_nan_validation_loss_is_not_the_best(tmp_path, monkeypatch) -> None:
    losses = iter([math.inf, math.nan, 3.0, math.nan, math.inf])
    monkeypatch.setattr("microgpt.training.run.mean_loss", lambda *arguments: next(losses))
    seen = []
    out, best = tmp_path / "m.safetensors", tmp_path / "m.best.safetensors"
    options = {"val_fraction": 0.4, "eval_every": 1, "out": out, "keep_best": True, **SMALL}
    train(names, steps=4, progress=lambda progress: seen.append((progress.step, best.exists())), **options)
    assert (1, True) not in seen
    assert load(best).history.validation_losses[-1] == (2, 3.0)


def test_looking_at_the_next_loss_draws_nothing(tmp_path, backend: str) -> None:
    options = {"format": "text", "steps": 6, "batch_size": 2, "backend": backend, **SMALL}
    whole = train(names, **options)
    saving = train(names, **options, out=tmp_path / "model.safetensors", checkpoint_every=1)
    assert saving.losses.tolist() == whole.losses.tolist()
    assert saving.model.generator.getstate() == whole.model.generator.getstate()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": -1}, ValueError, "steps must be at least 0, got -1"),
        ({"steps": 1.5}, TypeError, "steps must be a whole number, got 1.5"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"n_embd": LARGEST // 32 * 4}, MemoryError, r"a model of this size would take [\d,]+ bytes"),
        ({"n_embd": 6, "n_head": 4}, ValueError, "n_embd must be a multiple of n_head"),
        ({"learning_rate": -0.1}, ValueError, "learning_rate must be at least 0, got -0.1"),
        ({"dtype": "int8"}, ValueError, "dtype must be"),
        ({"data": []}, ValueError, "data must hold at least one document that is not empty, got none"),
        ({"data": [""]}, ValueError, "data must hold at least one document that is not empty, got none"),
        ({"data": ["a", 3]}, TypeError, r"data\[1\] must be a string, got 3"),
        ({"data": 3}, TypeError, "data must be the name of a file, or a list of documents or of pathlib.Paths, got 3"),
        ({"tokenizer": "words"}, ValueError, "tokenizer must be 'characters', 'bytes', a tokenizers file that ends in"),
        ({"long_documents": "wrap"}, ValueError, "long_documents must be 'cut' or 'split', got 'wrap'"),
        ({"data": "nowhere.txt"}, ValueError, "cannot read nowhere.txt: No such file or directory"),
        ({"colour": 1}, TypeError, r"^train\(\) got an unexpected option 'colour'$"),
    ],
)
def test_bad_arguments_are_named(backend, options, error, message) -> None:
    with pytest.raises(error, match=message):
        train(**{"data": names, "backend": backend, **SMALL, **options})


def test_help_shows_every_option_with_its_default() -> None:
    assert defaults_of(train) == {"progress": None, "communicator": None, **defaults_of(prepare)}
    assert defaults_of(prepare).items() >= {"data": None, "eval_every": None, **defaults_of(Recipe)}.items()
    assert all(name in pydoc.plaintext.document(train) for name in defaults_of(train))


def test_editors_and_type_checkers_know_every_option() -> None:
    recipe, prepared = get_type_hints(Recipe), get_type_hints(prepare)
    assert get_type_hints(RecipeOptions) == recipe
    assert get_type_hints(TrainOptions) == recipe | {
        name: prepared[name] for name in prepared if name not in ("data", "options", "return")
    }
    assert get_type_hints(train)["options"] == Unpack[TrainOptions]
    assert prepared["options"] == Unpack[RecipeOptions]


def test_the_defaults_of_a_recipe_are_those_of_the_model_and_of_adam() -> None:
    recipe = defaults_of(Recipe)
    for place in (GPTConfig, GPT, Adam):
        own = defaults_of(place)
        shared = (recipe.keys() & own.keys()) - {"tokenizer", "format"}  # a model need not have these
        assert len(shared) >= 2
        assert {name: recipe[name] for name in shared} == {name: own[name] for name in shared}


def test_progress_tells_where_a_run_is(tmp_path, backend: str) -> None:
    seen: list[TrainingProgress] = []
    options = {"steps": 6, "batch_size": 2, "val_fraction": 0.4, "eval_every": 3, "backend": backend, **SMALL}
    result = train(names, progress=seen.append, **options)
    first, last = seen[0], seen[-1]
    assert (first.step, first.steps, first.validation) == (0, 6, result.validation_losses[0])
    assert all(math.isnan(number) for number in (first.loss, first.learning_rate, first.tokens_per_second))
    assert [progress.step for progress in seen] == sorted(progress.step for progress in seen)
    for progress in seen[1:]:
        assert progress.loss == result.losses[: progress.step].mean() or progress.step == 0
        assert progress.learning_rate == 0.01 * (1 - (progress.step - 1) / 6)
    assert (last.step, last.seconds, last.validation) == (6, result.history.seconds, result.validation_losses[-1])
    positions = prepare(names, **options).tokens_per_step * 6
    assert last.tokens_per_second == pytest.approx(positions / last.seconds)


@pytest.mark.parametrize("format", ["lines", "text"])
def test_a_batch_beyond_memory_is_refused_at_once(backend, format) -> None:
    with pytest.raises(MemoryError, match=r"a batch_size of [\d,]+ would take [\d,]+ bytes"):
        train(names, format=format, batch_size=LARGEST // 8, backend=backend, **SMALL)


def test_data_may_be_a_file_or_a_list(tmp_path, backend: str) -> None:
    file = tmp_path / "names.txt"
    file.write_text("\n".join(names))
    from_file = train(file, steps=2, backend=backend, **SMALL)
    from_list = train(iter(names), steps=2, backend=backend, **SMALL)
    assert from_file.losses.tolist() == from_list.losses.tolist()
    assert read_documents(file) == names


def test_a_result_can_be_pickled(backend: str) -> None:
    """Another process returns a result as a pickle."""
    result = train(names, steps=3, backend=backend, val_fraction=0.2, **SMALL)
    twin = pickle.loads(pickle.dumps(result))
    assert twin.losses.tolist() == result.losses.tolist()
    assert twin.history.options == result.history.options
    assert twin.validation_losses == result.validation_losses
    assert twin.model.generate(5) == result.model.generate(5)


def test_the_result_knows_its_model(backend: str) -> None:
    result = train(names, steps=1, backend=backend, **SMALL)
    assert isinstance(result, microgpt.TrainingResult)
    assert result.model.backend == backend
    assert result.model.tokenizer.characters == "".join(sorted(set("".join(names))))


def test_threads_are_refused_where_they_would_do_nothing(backend: str) -> None:
    message = "at least 1, got 0" if backend == "compiled" else "left out on the reference backend, got 0"
    with pytest.raises(ValueError, match=f"threads must be {message}"):
        train(names, threads=0, backend=backend, **SMALL)
    if backend == "reference":
        assert train(names, steps=1, backend=backend, **SMALL).model.threads == 1


@needs_compiled
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no such clock")
def test_signal_handlers_run_within_a_step_but_cannot_use_its_model() -> None:
    """A step of a large model is too long a wait for Ctrl-C, but during it the arena is in use."""
    model, documents = GPT(GPTConfig(vocab_size=3, n_layer=2, n_embd=128, block_size=128)), [[0, 1] * 64] * 100
    expected = model.loss(documents)

    def use_the_model(*_: object) -> None:
        model.loss([[0, 1]])  # fails within a step
        signal.setitimer(signal.ITIMER_REAL, 0.01)

    def compute() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        while True:
            model.loss(documents)

    handler = signal.signal(signal.SIGALRM, use_the_model)
    try:
        with pytest.raises(RuntimeError, match="a signal handler cannot use a model that is in the middle of a step"):
            compute()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
    assert model.loss(documents) == expected


# --- Continuous text, validation --------------------------------------------------------------------------------------

VERSE = "the rain in spain\nstays mainly in the plain\n" * 3
TEXT = {**SMALL, "format": "text", "learning_rate": 0.02}


@needs_compiled
def test_a_text_trains_to_the_same_bits_on_both_backends() -> None:
    options = {**TEXT, "steps": 4, "batch_size": 3, "val_fraction": 0.2, "eval_every": 3}
    reference, compiled = (train([VERSE], backend=backend, **options) for backend in ("reference", "compiled"))
    assert compiled.losses.tolist() == reference.losses.tolist()
    assert compiled.validation_losses == reference.validation_losses
    assert compiled.model.generate(3) == reference.model.generate(3)


def test_windows_come_from_all_of_the_text_that_is_not_held_out(backend: str) -> None:
    run = prepare([VERSE], val_fraction=0.25, backend=backend, **TEXT)
    windows = [run.model.tokenizer.decode(tokens) for tokens in sequences(run.batches.batch(0, 500, 2))]
    end = round(0.75 * len(VERSE))
    assert set(windows) == {VERSE[start : start + 5] for start in range(end - 4)}
    assert run.held_out_tokens == run.validation_tokens == len(VERSE) - end


def test_what_is_drawn_from_a_model_of_a_text_is_a_line(backend: str) -> None:
    model = train([VERSE], steps=1, backend=backend, **TEXT).model
    assert model.config.vocab_size == len(set(VERSE))
    assert model.tokenizer.bos == model.tokenizer.encode("\n")[0]
    assert all("\n" not in line for line in model.generate(5, seed=1))


def held_out_documents(documents: list[str], count: int) -> list[str]:
    """The documents that a run with seed 5 holds out, in the order in which it validates on them."""
    return [documents[i] for i in new_generator("reference", 5).permutation(len(documents))[-count:]]


def test_validation_does_not_change_training(backend: str) -> None:
    seen: dict[tuple[int, float], None] = {}  # in order
    run = prepare(names, steps=5, val_fraction=0.4, eval_every=2, seed=5, backend=backend, **SMALL)
    result = run.train(lambda progress: seen.update({progress.validation: None}))
    assert [steps for steps, _ in result.validation_losses] == [0, 2, 4, 5]
    assert list(seen) == result.validation_losses

    documents = shuffled(run)
    alone = prepare(names, steps=0, seed=5, backend=backend, **SMALL)
    for step in range(5):
        loss, _ = alone.model.loss_and_gradients([documents[step % 3]])
        assert loss == result.losses[step]
        alone.optimizer.step(0.01 * (1 - step / 5))


def test_any_run_has_about_forty_validations_at_round_steps() -> None:
    for steps in [*range(5000), 12_345, 200_000, 999_999, 10**6, 3 * 10**6, LARGEST]:
        every = round_interval(steps, VALIDATIONS)
        assert re.fullmatch("[125]0*|250*", str(every))
        if steps < 40:
            assert every == 1
        else:
            assert 25 <= steps / every <= 64
    assert [round_interval(steps, VALIDATIONS) for steps in (1000, 2000, 10_000, 200_000)] == [25, 50, 250, 5000]


def test_validations_are_where_the_steps_say(backend: str) -> None:
    result = train(names, steps=95, val_fraction=0.4, backend=backend, **SMALL)
    assert [steps for steps, _ in result.validation_losses] == [*range(0, 95, 2), 95]


def test_a_run_that_the_clock_ends_has_no_more_validations(backend: str) -> None:
    result = train(names, time=0.05, val_fraction=0.4, backend=backend, **SMALL)
    steps = [steps for steps, _ in result.validation_losses]
    assert 2 <= len(steps) <= 42
    assert (steps[0], steps[-1]) == (0, len(result.losses))
    assert steps == sorted(set(steps))


LONG = ["abcde" * 4, "a", "abc", "edcba" * 3, "ab" * 9, "cd", "e" * 4, "abcd"] * 2


@pytest.mark.parametrize("long_documents", ["cut", "split"])
def test_the_validation_loss_is_what_evaluate_gives(backend: str, long_documents: str) -> None:
    options = {"long_documents": long_documents, "val_fraction": 0.5, "backend": backend, "seed": 5, **SMALL}
    result = train(LONG, steps=20, learning_rate=0.1, **options)
    held_out = held_out_documents(LONG, 8)
    expected = result.model.evaluate(held_out)
    assert result.validation_losses[-1] == (20, expected.nats)  # same documents, same order, same bits
    assert result.history.validation_tokens == result.history.held_out_tokens == expected.tokens
    assert result.validation_losses[-1][1] == pytest.approx(result.model.evaluate(held_out[::-1]).nats, rel=1e-12)


@pytest.mark.parametrize("val_fraction", [0.2, 0.25, 0.3])
@pytest.mark.parametrize("text", [VERSE, VERSE.replace("\n", " ")], ids=["lines", "without line feeds"])
def test_the_validation_loss_of_a_text_is_what_evaluate_gives(backend: str, text: str, val_fraction: float) -> None:
    result = train([text], steps=20, val_fraction=val_fraction, backend=backend, **TEXT)
    expected = result.model.evaluate([text[-round(val_fraction * len(text)) :]])
    assert result.validation_losses[-1] == (20, expected.nats)
    assert result.history.validation_tokens == result.history.held_out_tokens == expected.tokens


def test_validation_predicts_as_many_tokens_as_it_is_told(backend: str) -> None:
    options = {"val_fraction": 0.5, "backend": backend, "seed": 5, "steps": 3, **SMALL}
    whole, part = (train(LONG, **options, eval_tokens=tokens) for tokens in (None, 9))
    assert 0 < part.history.validation_tokens <= 9 < part.history.held_out_tokens == whole.history.held_out_tokens
    assert part.validation_losses != whole.validation_losses
    assert part.losses.tolist() == whole.losses.tolist()


def test_large_data_are_validated_on_a_part() -> None:
    run = prepare(["abc\n" * 10_000], format="text", val_fraction=0.9, steps=0)
    assert (run.held_out_tokens, run.validation_tokens) == (36_000, 32_768)
    run = prepare(["abcdefghijk"] * 10_000, val_fraction=0.9, steps=0)
    assert (run.held_out_tokens, run.validation_tokens) == (9000 * 12, 32_768 // 12 * 12)


def test_a_mean_loss_weighs_every_token_alike(backend: str) -> None:
    run = prepare(names * 300, steps=0, seed=5, backend=backend, n_embd=1, n_head=1, block_size=2)
    packed = run.batches.batch(0, 1500 if backend == "compiled" else 700, 1).split(2)
    losses = [run.model.engine.loss(packed.select(np.array([i]))) for i in range(len(packed))]
    checked: list[None] = []
    assert mean_loss(run.model.engine, packed, lambda: checked.append(None)) == pytest.approx(
        np.average(losses, weights=packed.lengths - 1), rel=1e-12
    )
    assert 1 < len(checked) < len(packed)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"format": "csv"}, ValueError, "format must be 'lines' or 'text', got 'csv'"),
        ({"val_fraction": 1}, ValueError, "val_fraction must be at least 0 and less than 1, got 1"),
        ({"eval_every": 0, "val_fraction": 0.2}, ValueError, "eval_every must be at least 1, got 0"),
        ({"data": ["abcd"]}, ValueError, r"data must have at least block_size \+ 1 = 5 tokens to train on, got 4"),
        (
            {"data": ["abcd" * 10], "val_fraction": 0.1},
            ValueError,
            r"val_fraction must hold out at least block_size \+ 1 = 5 tokens, got 4 of a text of 40",
        ),
        (
            {"data": ["abcd"], "format": "lines", "val_fraction": 0.1},
            ValueError,
            "val_fraction needs at least 2 documents, one of them to train on, got 1",
        ),
        (
            {"val_fraction": 0, "eval_every": 5},
            ValueError,
            "eval_every needs validation losses: val_fraction must be mo",
        ),
    ],
)
def test_bad_arguments_of_texts_are_named(backend, options, error, message) -> None:
    with pytest.raises(error, match=message):
        train(**{"data": [VERSE], "backend": backend, **TEXT, **options})
