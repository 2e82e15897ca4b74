"""Threads: no bit depends on how many share the work, or on how many use models at once."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import sysconfig
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tqdm import tqdm

from microgpt import GPT, Adam, GPTConfig, train
from microgpt.commands._progress import live_line
from microgpt.training.train import prepare

from conftest import needs_compiled, needs_processes

pytestmark = needs_compiled

# Enough work for a team each: many short documents, a few long ones, sizes with no common divisors.
CASES = [
    (GPTConfig(vocab_size=27, n_embd=32, block_size=16), [2 + i % 15 for i in range(60)]),
    (GPTConfig(vocab_size=65, n_layer=2, n_embd=48, n_head=3, block_size=64, dropout=0.1), [65] * 5),
    (GPTConfig(vocab_size=33, n_layer=2, n_embd=42, n_head=6, block_size=90), [91, 3, 40, 77, 91]),
]


def trained(config: GPTConfig, lengths: list[int], dtype: str, threads: int) -> list[bytes]:
    draw = random.Random(7)
    documents = [[draw.randrange(config.vocab_size) for _ in range(n)] for n in lengths]
    model = GPT(config, 1, dtype, threads=threads)
    optimizer = Adam(model)
    results = []
    for step in range(2):
        loss, gradients = model.loss_and_gradients(documents, dropout_seed=step)
        optimizer.step()
        results += [np.float64(loss).tobytes(), *(gradient.tobytes() for gradient in gradients.values())]
    return [*results, *(parameter.tobytes() for parameter in model.state_dict().values())]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", range(len(CASES)))
def test_the_same_bits_for_every_number_of_threads(case: int, dtype: str) -> None:
    alone = trained(*CASES[case], dtype, 1)
    for threads in (2, 3, 5):
        assert trained(*CASES[case], dtype, threads) == alone


def test_models_with_teams_of_their_own_do_not_disturb_each_other() -> None:
    alone = [trained(*case, dtype, 1) for case in CASES for dtype in ("float64", "float32")]
    with ThreadPoolExecutor(12) as pool:  # two for each model, each with its own team
        work = [pool.submit(trained, *case, dtype, 2) for case in 2 * CASES for dtype in ("float64", "float32")]
        assert [future.result() for future in work] == 2 * alone


def test_threads_may_share_a_model() -> None:
    """Each call needs another amount of memory than the one before, and may find the arena being moved."""
    config, _ = CASES[0]
    batches = [[[1, 2, 3] * (n // 3)] * size for n, size in ((15, 60), (3, 1), (9, 300), (15, 600))]
    alone = [GPT(config, 1).loss(batch) for batch in batches]
    shared = GPT(config, 1)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(shared.loss, batches * 25)) == alone * 25


def test_threads_may_sample_and_train_one_model_at_once() -> None:
    """Losses are those of the parameters before or after a whole step, never of some in between."""
    config, documents = GPTConfig(vocab_size=27), [[26, *range(12), 26]] * 3
    model = GPT(config, 1)
    optimizer = Adam(model)
    alone, expected = GPT(config, 1), []
    alone_optimizer = Adam(alone)
    for _ in range(20):
        expected.append(alone.loss(documents))
        alone.loss_and_gradients(documents)
        alone_optimizer.step()

    def train() -> None:
        for _ in range(20):
            model.loss_and_gradients(documents)
            optimizer.step()

    with ThreadPoolExecutor(3) as pool:
        training = pool.submit(train)
        losses = [pool.submit(model.loss, documents) for _ in range(50)]
        samples = [pool.submit(model.generate_tokens, 5, seed=i) for i in range(10)]
        training.result()
        assert {future.result() for future in losses} <= {*expected, alone.loss(documents)}
        assert all(len(future.result()) == 5 for future in samples)
    assert [array.tobytes() for array in model.state_dict().values()] == [
        array.tobytes() for array in alone.state_dict().values()
    ]


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python always has its GIL")
def test_a_free_threaded_python_stays_without_the_gil() -> None:
    program = (
        "import sys, microgpt._value, microgpt.engine._engine, microgpt.random._mersenne; print(sys._is_gil_enabled())"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON_GIL"}
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_threads_end_with_the_call_that_needed_them() -> None:
    before = threading.active_count()
    trained(*CASES[0], "float32", 4)
    assert threading.active_count() == before


@needs_processes
@pytest.mark.parametrize("method", ["start", "join"])
def test_a_team_interrupted_at_its_start_or_end_starts_again(method: str, monkeypatch) -> None:
    model, documents = GPT(GPTConfig(vocab_size=27, n_embd=64), threads=2), [[1] * 17] * 60
    expected, started = model.loss(documents), []

    def interrupted(thread: threading.Thread, *arguments: object) -> None:
        original(thread, *arguments)
        raise KeyboardInterrupt

    original = getattr(threading.Thread, method)
    with monkeypatch.context() as patches:
        patches.setattr(threading.Thread, method, interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.loss(documents)
    start = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda thread: (started.append(thread), start(thread)))
    assert model.loss(documents) == expected
    assert len(started) == 1
    assert not started[0].is_alive()


@pytest.mark.parametrize("available", [0, 1])
def test_a_team_is_as_large_as_the_system_lets_it_be(available: int, monkeypatch) -> None:
    alone, start, started = trained(*CASES[0], "float64", 1), threading.Thread.start, []

    def limited(thread: threading.Thread) -> None:
        if sum(each.is_alive() for each in started) == available:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    assert trained(*CASES[0], "float64", 3) == alone
    assert bool(started) == bool(available)
    assert not any(thread.is_alive() for thread in started)


@pytest.mark.filterwarnings("error")
def test_a_terminal_shows_progress_where_no_thread_can_be_started(capsys, monkeypatch) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    monkeypatch.setattr(tqdm, "monitor", None)
    run = prepare(["bob", "carlotta"], steps=3)
    with live_line(run) as watch:
        run.train(watch)
    assert "step 0/3 |" in capsys.readouterr().err


@needs_processes
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_trains_on() -> None:
    expected = trained(*CASES[1], "float32", 2)
    child = os.fork()
    if child == 0:
        os._exit(0 if trained(*CASES[1], "float32", 2) == expected else 1)
    assert os.waitpid(child, 0)[1] == 0


FORKED_IN_A_CALL = """
import os, signal, sys, threading, time
from microgpt import GPT, GPTConfig

model, batch = GPT(GPTConfig(vocab_size=5, n_embd=4)), [[4, 0, 1, 2]] * 3
expected = model.loss(batch), model.generate_tokens(9, seed=2)
threading.Thread(target=model.generate_tokens, args=(10**6,), kwargs={"seed": 1}, daemon=True).start()
while not model.engine.lock.busy:
    pass
time.sleep(0.05)  # until it is drawing
child = os.fork()
if child == 0:
    signal.alarm(60)  # instead of waiting forever
    sys.exit((model.loss(batch), model.generate_tokens(9, seed=2)) != expected)
os._exit(os.waitpid(child, 0)[1] != 0)
"""


@needs_processes
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_process_forked_during_a_computation_can_use_the_model() -> None:
    subprocess.run([sys.executable, "-c", FORKED_IN_A_CALL], check=True)


@pytest.mark.long
def test_progress_may_ask_for_a_loss_while_threads_train() -> None:
    options = {"steps": 100, "batch_size": 600, "n_embd": 48, "threads": 3, "dtype": "float32"}
    expected = train(["carlotta" * 2, "bob"] * 60, **options)
    run, asked = prepare(["carlotta" * 2, "bob"] * 60, **options), {}
    result = run.train(lambda progress: asked.update({progress.step: run.model.loss([[0, 1, 2]] * 200)}))
    assert result.losses.tolist() == expected.losses.tolist()
    assert min(asked) < 100
    assert np.isfinite(list(asked.values())).all()
