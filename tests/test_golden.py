"""The original's numbers, to the last bit."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import microgpt
from microgpt.training.train import prepare

from conftest import GOLDEN_FILES, Golden, compiled, digest

pytestmark = pytest.mark.skipif(sys.platform == "emscripten", reason="another C library has another exp, log and pow")
each_file = pytest.mark.parametrize("file", GOLDEN_FILES, ids=lambda file: file.stem)
smallest = Path(__file__).parent / "golden" / "l1_d4_h1_b4.json"


def check_training_and_sampling(file: Path, backend: str) -> None:
    golden = Golden(file)
    result = microgpt.train(golden.data, backend=backend, **golden.options)
    assert result.losses.tolist() == golden.losses
    assert digest(result.model.state_dict().values()) == golden.content["final_sha256"]
    assert result.model.generate(20, golden.temperature) == golden.samples


@pytest.mark.parametrize("backend", [compiled])
@each_file
def test_training_and_sampling_give_the_originals_numbers(file: Path, backend: str) -> None:
    check_training_and_sampling(file, backend)


def test_the_reference_trains_and_samples_as_the_original() -> None:
    check_training_and_sampling(smallest, "reference")


@each_file
def test_the_first_step_gives_the_originals_numbers(file: Path, backend: str) -> None:
    golden = Golden(file)
    run = prepare(golden.data, backend=backend, **golden.options)
    assert digest(run.model.state_dict().values()) == golden.content["init_sha256"]
    loss, gradients = run.model.loss_and_gradients([run.batches.batch(0, 1, 1).tokens])
    assert loss == golden.losses[0]
    assert digest(gradients.values()) == golden.first_gradients_sha256


@pytest.mark.parametrize("backend", [compiled])
@each_file
def test_plain_output_is_the_originals_byte_for_byte(file: Path, backend: str) -> None:
    golden = Golden(file)
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
