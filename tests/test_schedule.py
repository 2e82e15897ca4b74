"""The learning rate from step to step, and its options in the recipe."""

from __future__ import annotations

import math

import numpy as np
import pytest

from microgpt import Recipe, train
from microgpt.training.schedule import learning_rates
from microgpt.training.train import prepare
from microgpt.utils.arguments import LARGEST

SMALL = {"n_embd": 4, "n_head": 2, "block_size": 4}
names = ["anna", "bob", "carlotta", "di", "emma"]


def rates(schedule: str, warmup_steps: int = 0, steps: int = 10) -> list[float]:
    run = prepare(names, steps=steps, schedule=schedule, warmup_steps=warmup_steps, learning_rate=0.5, **SMALL)
    run.train()
    return run.learning_rates.tolist()


def test_linear_is_microgpts() -> None:
    assert rates("linear") == [0.5 * (1 - step / 10) for step in range(10)]


def test_cosine_and_constant() -> None:
    assert rates("cosine") == pytest.approx([0.25 * (1 + math.cos(math.pi * step / 10)) for step in range(10)])
    assert rates("constant") == [0.5] * 10


def test_the_schedule_begins_after_the_warmup() -> None:
    assert rates("linear", 3, 8) == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.4, 0.3, 0.2, 0.1])
    assert rates("constant", 3, 5) == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5])
    assert rates("cosine", 9, 3) == pytest.approx([0.05, 0.1, 0.15])


def test_schedules_never_leave_their_range() -> None:
    steps, done = np.arange(101), np.arange(101) / 100
    for schedule in ("linear", "cosine", "constant"):
        given = learning_rates(schedule, 1.0, 10, steps, done)
        assert given.min() >= 0
        assert given.max() <= 1


def test_epochs_are_steps_over_all_documents(backend: str) -> None:
    assert len(train(names, epochs=3, batch_size=2, backend=backend, **SMALL).losses) == 8
    assert len(train(names, epochs=0.5, backend=backend, **SMALL).losses) == 3
    assert len(train(names, epochs=1, val_fraction=0.4, backend=backend, **SMALL).losses) == 3


def test_a_run_ends_when_its_time_is_over(backend: str) -> None:
    result = train(names, time=0.05, backend=backend, **SMALL)
    assert len(result.losses) >= 1
    assert np.isfinite(result.losses).all()
    assert result.history.seconds >= 0.05


@pytest.mark.parametrize(
    "options",
    [{"time": 1e308}, {"time": 5e-324}, {"steps": LARGEST}, {"epochs": LARGEST / 8}, {"warmup_steps": LARGEST}],
)
def test_runs_may_be_as_long_or_short_as_can_be_told(options, backend: str) -> None:
    class EnoughError(Exception):
        pass

    def progress(progress: object) -> None:
        raise EnoughError

    run = prepare(names, **options, learning_rate=1e-3, backend=backend, **SMALL)
    with pytest.raises(EnoughError):
        run.train(progress)
    assert np.isfinite(run.losses[: run.step]).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 5, "epochs": 1}, ValueError, "only one of steps, epochs and time can be given"),
        ({"epochs": 0}, ValueError, "epochs must be more than 0, got 0"),
        ({"time": -1}, ValueError, "time must be more than 0, got -1"),
        ({"schedule": "step"}, ValueError, "schedule must be 'linear' or 'cosine' or 'constant', got 'step'"),
        ({"time": 10**400}, ValueError, "time must be more than 0 and finite, got inf"),
        ({"learning_rate": -(10**400)}, ValueError, "learning_rate must be at least 0 and finite, got -inf"),
        ({"learning_rate": float("nan")}, ValueError, "learning_rate must be at least 0, got nan"),
        ({"steps": 10**5000}, ValueError, f"steps must be at most {LARGEST}, got more"),
        ({"steps": -(10**5000)}, ValueError, "steps must be at least 0, got less"),
        ({"warmup_steps": 10**30}, ValueError, f"warmup_steps must be at most {LARGEST}, got more"),
        ({"warmup_steps": -1}, ValueError, "warmup_steps must be at least 0, got -1"),
        ({"long_documents": "drop"}, ValueError, "long_documents must be 'cut' or 'split', got 'drop'"),
        ({"schedule": "x" * 1000}, ValueError, r"schedule must be .*, got 'x{56}\.\.\.$"),
        ({"steps": "x" * 1000}, TypeError, r"steps must be a whole number, got 'x{56}\.\.\.$"),
        ({"time": "x" * 1000}, TypeError, r"time must be a number, got 'x{56}\.\.\.$"),
        ({"colour": 1}, TypeError, "colour"),
    ],
)
def test_bad_recipes_are_named(options, error, message) -> None:
    with pytest.raises(error, match=message):
        Recipe(**options)
