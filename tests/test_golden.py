"""The original's numbers, to the last bit."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

import microgpt
from microgpt.training import prepare

from conftest import GOLDEN_NAMES, Golden, compiled

pytestmark = pytest.mark.skipif(sys.platform == "emscripten", reason="another C library has another exp, log and pow")


def digest(model: microgpt.GPT) -> str:
    """SHA-256 of all parameters as little-endian doubles, in the original's order."""
    flat = np.concatenate([matrix.ravel() for matrix in model.state_dict().values()])
    return hashlib.sha256(flat.astype("<f8").tobytes()).hexdigest()


@pytest.mark.parametrize("backend", [compiled])
@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_training_and_sampling_give_the_originals_numbers(name: str, backend: str) -> None:
    golden = Golden(name)
    result = microgpt.train(golden.data, backend=backend, **golden.options)
    assert result.losses.tolist() == golden.losses
    assert digest(result.model) == golden.content["final_sha256"]
    assert result.model.generate(20, golden.temperature) == golden.samples


@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_the_first_step_gives_the_originals_numbers(name: str, backend: str) -> None:
    golden = Golden(name)
    run = prepare(golden.data, backend=backend, **golden.options)
    assert digest(run.model) == golden.content["init_sha256"]
    loss, gradients = run.model.loss_and_gradients([run.batches.batch(0, 1, 1).tokens])
    assert loss == golden.losses[0]
    assert np.concatenate([matrix.ravel() for matrix in gradients.values()]).tolist() == golden.first_gradients


@pytest.mark.parametrize("name", ["names_l1_d4_h1_b4"])
def test_the_reference_trains_and_samples_as_the_original(name: str) -> None:
    golden = Golden(name)
    result = microgpt.train(golden.data, backend="reference", **golden.options)
    assert result.losses.tolist() == golden.losses
    assert digest(result.model) == golden.content["final_sha256"]
    assert result.model.generate(20, golden.temperature) == golden.samples


@pytest.mark.parametrize("backend", [compiled])
@pytest.mark.parametrize("name", GOLDEN_NAMES)
def test_plain_output_is_the_originals_byte_for_byte(name: str, backend: str) -> None:
    golden = Golden(name)
    options = [f"--{key.replace('_', '-')}={value}" for key, value in golden.options.items()]
    output = subprocess.run(
        [
            *(sys.executable, "-m", "microgpt", "train", golden.data, "--plain"),
            *(f"--temperature={golden.temperature}", *options),
        ],
        capture_output=True,
        check=True,
        env={**os.environ, "MICROGPT_BACKEND": backend, "PYTHONIOENCODING": "utf-8"},
    ).stdout
    assert hashlib.sha256(output).hexdigest() == golden.content["stdout_sha256"]
