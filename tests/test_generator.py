"""Random numbers: those of `random.Random`, number for number."""

from __future__ import annotations

import pickle
import random
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from microgpt import GPT, GPTConfig, Recipe, load, train
from microgpt.engine.backend import new_generator
from microgpt.training.train import prepare

from conftest import needs_compiled, needs_processes

SMALL = {"steps": 1, "n_embd": 4, "n_head": 2, "block_size": 4}


def test_seeds_are_those_of_random_or_refused(backend) -> None:
    assert new_generator(backend, np.int64(7)).random() == random.Random(7).random()
    assert new_generator(backend, np.array(-3)).random() == random.Random(-3).random()
    wanted = "seed must be a number, a string or a random.Random"
    for seed, error, message in (
        ([1, 2], TypeError, f"{wanted}, got [1, 2]"),
        (True, TypeError, f"{wanted}, got True"),
        (np.array([3]), TypeError, f"{wanted}, got array([3])"),
        (random.SystemRandom(), TypeError, f"{wanted} that has a state, got <random.SystemRandom"),
        (float("nan"), ValueError, "seed must be finite, got nan"),  # random.Random would use its address
        (np.float32("inf"), ValueError, "seed must be finite, got inf"),
        ("\ud800", ValueError, r"seed must be a string that UTF-8 can encode, got '\ud800'"),
        (-(10**5000), ValueError, "seed must have at most 2048 bits, got 16610"),
    ):
        for taken in (
            lambda seed: new_generator(backend, seed),
            lambda seed: GPT(GPTConfig(vocab_size=2), seed, backend=backend),
            lambda seed: GPT(GPTConfig(vocab_size=2), backend=backend).generate_tokens(seed=seed),
            lambda seed: Recipe(seed=seed),
        ):
            with pytest.raises(error) as raised:
                taken(seed)
            assert str(raised.value).startswith(message)


@pytest.mark.parametrize("seed", [2**2048 - 1, -(2**2047)])
def test_the_largest_seeds_are_kept_in_files(tmp_path, seed) -> None:
    train(["anna"], seed=seed, out=tmp_path / "model", **SMALL)
    assert load(tmp_path / "model").history.options["seed"] == seed
    assert prepare(["anna"], seed=seed, out=tmp_path / "model", resume=True, **SMALL).step == 1


@pytest.mark.parametrize("seed", [0, 1, 42, -7, 2**70, "text", 1.5])
def test_seeds_give_the_numbers_of_random(backend, seed) -> None:
    generator, original = new_generator(backend, seed), random.Random(seed)
    for _ in range(1500):
        assert generator.random() == original.random()
        assert generator.gauss(0.5, 2.0) == original.gauss(0.5, 2.0)
        for n in (1000, 2**32, 2**40 + 1):
            assert generator.randrange(n) == original.randrange(n)


def test_shuffle_is_that_of_random(backend) -> None:
    for n in (0, 1, 2, 3, 1000):
        ours, theirs = list(range(n)), list(range(n))
        new_generator(backend, n).shuffle(ours)
        random.Random(n).shuffle(theirs)
        assert ours == theirs


def test_a_permutation_is_what_shuffle_gives(backend) -> None:
    for n in (0, 1, 2, 3, 1000):
        generator, original, shuffled = new_generator(backend, n), random.Random(n), list(range(n))
        original.shuffle(shuffled)
        permutation = generator.permutation(n)
        assert (permutation.dtype, permutation.tolist()) == (np.int64, shuffled)
        assert generator.getstate() == original.getstate()


def test_filling_an_array_draws_gauss_in_order(backend) -> None:
    generator, original = new_generator(backend, 3), random.Random(3)
    array = np.zeros(1001)
    generator.fill_gauss(array, 0.08)
    assert array.tolist() == [original.gauss(0, 0.08) for _ in range(1001)]
    assert generator.gauss(0, 1) == original.gauss(0, 1)  # the second of a pair is kept


def test_states_travel_to_random_and_back(backend) -> None:
    generator, original = new_generator(backend, 9), random.Random()
    generator.gauss(0, 1)
    original.setstate(generator.getstate())
    assert [generator.gauss(0, 1), generator.random()] == [original.gauss(0, 1), original.random()]
    copy = new_generator(backend, original)
    assert copy.random() == original.random() == pickle.loads(pickle.dumps(generator)).random()
    generator.setstate(original.getstate())
    assert generator.getstate() == original.getstate()


@pytest.mark.parametrize("state", [(3, (1,) * 624, None), (3, (1,) * 624 + (625,), None)])
def test_states_that_are_not_states_are_refused(backend, state) -> None:
    with pytest.raises(ValueError, match="state"):
        new_generator(backend, 0).setstate(state)


@needs_compiled
@needs_processes
def test_threads_that_share_a_generator_are_given_each_number_once() -> None:
    generator, original = new_generator("compiled", 5), random.Random(5)
    arrays = [np.zeros(5000 + 37 * i) for i in range(8)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            filled = [pool.submit(generator.fill_gauss, array, 0.5) for array in arrays]
            drawn = [generator.gauss(0, 0.5) for _ in range(2000)]
            for future in filled:
                future.result()
    finally:
        sys.setswitchinterval(interval)
    drawn += [number for array in arrays for number in array.tolist()]
    assert sorted(drawn) == sorted(original.gauss(0, 0.5) for _ in drawn)
    assert generator.random() == original.random()
