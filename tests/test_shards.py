"""Shards of a batch, and the processes that share them: the same bits, however many there are."""

from __future__ import annotations

import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import microgpt
from microgpt.engine.packing import pack
from microgpt.training.distributed import SLICE_UNIT
from microgpt.training.signals import DeferredSignals
from microgpt.utils.mpi import launched

from conftest import MpiExec, needs_compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

NAMES = microgpt.read_documents()[:300]
CONFIG = microgpt.GPTConfig(vocab_size=5, n_layer=1, n_embd=8, block_size=4, n_head=2)
DRAW = np.random.default_rng(1)
DOCUMENTS = [DRAW.integers(0, 5, DRAW.integers(2, 8)).tolist() for _ in range(24)]
STEPS, BATCH, SHARDS = 3, 6, 6
RATES = np.linspace(0.02, 0.01, STEPS)

dtypes = pytest.mark.parametrize("dtype", ["float64", pytest.param("float32", marks=needs_compiled)])


class Threads:
    """Ranks that are threads of one process, and share memory: `microgpt.engine.interface.Ranks` without MPI."""

    def __init__(self, rank: int, group: list[Threads], barrier: threading.Barrier, num_params: int) -> None:
        self.rank, self.size = rank, barrier.parties
        self._group, self._barrier, bounds = group, barrier, np.linspace(0, num_params // 16, self.size + 1).astype(int)
        self._bounds = [*(bounds[:-1] * 16).tolist(), num_params]
        self.piece = slice(self._bounds[rank], self._bounds[rank + 1])
        self.gradients, self.whole, self.loss = np.zeros(0), np.zeros(0), 0.0
        group.append(self)

    def share(self, gradients: NDArray[Any]) -> NDArray[Any]:
        self.gradients = gradients
        self._pieces = np.zeros(self.size * (self.piece.stop - self.piece.start), gradients.dtype)
        return self._pieces

    def exchange(self, total: float, loss: float, count: int) -> float:
        self.loss = loss
        self._barrier.wait()
        for i, other in enumerate(self._group[:count]):
            total += other.loss
            self._pieces.reshape(self.size, -1)[i] = other.gradients[self.piece]
        self._barrier.wait()
        return total

    def gather(self, array: NDArray[Any]) -> None:
        self.whole = array
        self._barrier.wait()
        for other in self._group:
            array[other.piece] = other.whole[other.piece]
        self._barrier.wait()

    def end_step(self, parameters: NDArray[Any]) -> None:
        self.gather(parameters)


def trained(
    backend: str,
    dtype: str,
    shards: int = SHARDS,
    ranks: Threads | None = None,
    clip: float | None = 0.1,
    dropout: float = 0.0,
) -> tuple[list[float], NDArray[Any], NDArray[Any]]:
    """Losses, parameters and gradients after three steps on these documents, or on those of a rank."""
    model = microgpt.GPT(replace(CONFIG, dropout=dropout), seed=3, dtype=dtype, backend=backend)
    adam = microgpt.Adam(model, weight_decay=0.1, max_grad_norm=clip)
    numbers = np.arange(STEPS * BATCH).reshape(STEPS, shards, BATCH // shards)
    if ranks is not None:
        adam.m, adam.v = adam.m[ranks.piece].copy(), adam.v[ranks.piece].copy()
        numbers = numbers[:, ranks.rank :: ranks.size]
    losses = np.zeros(STEPS)
    packed = pack(DOCUMENTS, CONFIG.vocab_size).select(numbers.ravel())
    assert model.engine.train(packed, BATCH, RATES, adam, losses, None, shards, ranks, seed=9) == STEPS
    return losses.tolist(), model.engine.parameters, model._gradients


@dtypes
@pytest.mark.parametrize(("size", "clip", "dropout"), [(2, None, 0.0), (3, 0.1, 0.0), (4, 0.1, 0.3), (6, None, 0.0)])
def test_any_number_of_ranks_gives_the_bits_of_one(
    backend: str, dtype: str, size: int, clip: float | None, dropout: float
) -> None:
    if backend == "reference" and dtype == "float32":
        pytest.skip("the reference has no float32")
    losses, parameters, _ = trained(backend, dtype, clip=clip, dropout=dropout)
    results: list[Any] = [None] * size
    group: list[Threads] = []
    barrier = threading.Barrier(size)
    ranks = [Threads(rank, group, barrier, CONFIG.num_params) for rank in range(size)]

    def run(rank: int) -> None:
        results[rank] = trained(backend, dtype, ranks=ranks[rank], clip=clip, dropout=dropout)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        assert result[0] == losses
        assert np.array_equal(result[1], parameters)


@needs_compiled
@pytest.mark.parametrize(("shards", "dropout"), [(1, 0.0), (2, 0.3), (3, 0.0), (6, 0.3)])
def test_both_backends_add_shards_alike(shards: int, dropout: float) -> None:
    reference, compiled = (
        trained(backend, "float64", shards, dropout=dropout) for backend in ("reference", "compiled")
    )
    assert reference[0] == compiled[0]
    assert np.array_equal(reference[1], compiled[1])


@dtypes
def test_the_gradient_is_the_sum_of_those_of_the_shards_in_order(backend: str, dtype: str) -> None:
    if backend == "reference" and dtype == "float32":
        pytest.skip("the reference has no float32")
    model = microgpt.GPT(CONFIG, seed=3, dtype=dtype, backend=backend)
    shards = [DOCUMENTS[:2], DOCUMENTS[2:4], DOCUMENTS[4:6], DOCUMENTS[6:8]]
    parts = [model.loss_and_gradients(shard) for shard in shards]
    expected = {name: np.zeros_like(matrix) for name, matrix in parts[0][1].items()}
    for _, gradients in parts:
        for name, matrix in gradients.items():
            expected[name] = expected[name] + matrix / 4  # exact: each document has an eighth, not half, of the weight
    losses = np.zeros(1)
    adam = microgpt.Adam(model)
    model.engine.train(pack(DOCUMENTS[:8], CONFIG.vocab_size), 8, np.zeros(1), adam, losses, None, 4)
    total = 0.0  # sum() compensates for rounding from Python 3.12 on
    for loss, _ in parts:
        total += loss / 4
    assert losses[0] == total
    for name, matrix in model.by_name(model._gradients).items():
        assert np.array_equal(matrix, expected[name])


def test_one_shard_changes_nothing_and_more_change_the_last_digits(backend: str) -> None:
    options: dict[str, Any] = {"steps": 3, "batch_size": 4, "n_embd": 4, "backend": backend}
    plain, one, four = (microgpt.train(NAMES, **options, **more) for more in ({}, {"shards": 1}, {"shards": 4}))
    assert one.losses.tolist() == plain.losses.tolist()
    wte, other = (result.model.state_dict()["wte"] for result in (plain, four))
    assert not np.array_equal(other, wte)
    assert np.allclose(other, wte, rtol=1e-9)


def test_after_training_gradients_are_those_of_the_next_batch(backend: str) -> None:
    """Wherever the engine has written the gradients of shards."""
    model = microgpt.GPT(CONFIG, seed=3, backend=backend)
    model.engine.train(pack(DOCUMENTS[:6], 5), 6, RATES[:1], microgpt.Adam(model), np.zeros(1), None, 3)
    copy = microgpt.GPT(CONFIG, backend=backend)
    copy.load_state_dict(model.state_dict())
    own, others = (each.loss_and_gradients(DOCUMENTS[:2])[1] for each in (model, copy))
    assert all(np.array_equal(own[name], matrix) for name, matrix in others.items())


def test_slices_begin_where_tasks_of_adam_do() -> None:
    """Or the last numbers of a slice would be in other vectors than those of the whole model."""
    header = Path(__file__).resolve().parents[1] / "csrc" / "adam_step.h"
    assert f"ADAM_TASK = {SLICE_UNIT} " in header.read_text("utf-8")


def test_a_signal_can_be_forgotten_and_the_next_is_deferred_too() -> None:
    with DeferredSignals(signal.SIGINT) as signals:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
            assert signals.number == signal.SIGINT
            signals.forget()
            assert signals.number is None
        signals.forget()


@pytest.mark.parametrize("options", [{"shards": 2}, {"shards": 3, "batch_size": 4}])
def test_a_batch_is_a_multiple_of_shards(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"batch_size must be a multiple of shards, got batch_size=\d and shards=\d"):
        microgpt.train(NAMES, steps=1, **options)


def test_shards_are_part_of_the_recipe(tmp_path: Path) -> None:
    out = tmp_path / "names.safetensors"
    options: dict[str, Any] = {"batch_size": 4, "n_embd": 4, "out": out, "resume": True}
    microgpt.train(NAMES, steps=2, shards=2, **options)
    with pytest.raises(ValueError, match=r"shards is 4, but .* was begun with 2"):
        microgpt.train(NAMES, steps=4, shards=4, **options)
    resumed = microgpt.train(NAMES, steps=4, shards=2, **options)
    assert resumed.history.options["shards"] == 2
    assert len(resumed.losses) == 4


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, (0, 1)),
        ({"PMI_RANK": "2", "PMI_SIZE": "4"}, (2, 4)),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}, (0, 2)),
        ({"PMI_RANK": "many", "PMI_SIZE": "?"}, (0, 1)),
    ],
)
def test_mpiexec_tells_each_process_which_one_it_is(
    environment: dict[str, str], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert launched() == expected


# --- Processes --------------------------------------------------------------------------------------------------------


@pytest.fixture
def program(mpiexec: MpiExec) -> MpiExec:
    """A function that runs a program of mpi_programs.py in several processes."""
    return lambda size, *arguments: mpiexec(size, Path(__file__).with_name("mpi_programs.py"), *arguments)


@pytest.fixture
def cli(mpiexec: MpiExec) -> MpiExec:
    """A function that runs a command line in several processes."""
    return lambda size, *arguments: mpiexec(size, "-m", "microgpt", *arguments)


def test_processes_give_the_bits_of_one(program: MpiExec) -> None:
    result = program(8, "all_sizes")
    assert result.returncode == 0, result.stderr
    digests: dict[str, set[str]] = {}
    for line in result.stdout.splitlines():
        variant, _, rest = line.partition("} ")
        size, *own = rest.split()
        assert len(own) == int(size)  # every rank has the result
        digests.setdefault(variant, set()).update(own)
    assert [len(each) for each in digests.values()] == [1] * len(digests)
    assert len(digests) in {2, 4}


def test_ranks_must_agree(program: MpiExec) -> None:
    result = program(2, "other_data")
    first, second = result.stdout.splitlines()
    assert first == second
    assert first.startswith("data must be the same on all ranks, got ")
    assert program(1, "wrong_communicator").stdout.startswith("communicator must be one of mpi4py, such as MPI.COMM_")


def test_an_error_of_a_callback_is_raised_on_every_rank(program: MpiExec) -> None:
    assert program(2, "failing_callback").stdout.splitlines() == ["enough after 0 steps"] * 2


@pytest.mark.long
def test_a_run_resumes_with_another_number_of_ranks(program: MpiExec, tmp_path: Path) -> None:
    whole = program(2, "checkpointed", tmp_path / "whole.safetensors").stdout
    assert len(whole) == 65
    for how, size, status in (("killed", 3, None), ("out_of_memory", 1, None), ("interrupted", 4, 0)):
        out = tmp_path / f"{how}.safetensors"
        result = program(2, how, out)
        assert status is None or result.returncode == status
        assert microgpt.load(out, backend="reference").num_params > 0  # the checkpoint is whole
        if how == "out_of_memory":
            assert "microgpt: error: rank 1: a batch would take 1,000,000 bytes\n" in result.stderr
        if how == "interrupted":
            assert all(f"interrupted on rank {rank}" in result.stdout for rank in (0, 1))  # lines may be mixed
        assert program(size, "resumed", out).stdout == whole, how


def test_the_command_line(cli: MpiExec, tmp_path: Path) -> None:
    data, small = tmp_path / "names.txt", {"steps": 3, "batch_size": 4, "n_embd": 4, "n_head": 2, "block_size": 4}
    data.write_text("\n".join(NAMES))
    short = [f"--{name}={value}".replace("_", "-") for name, value in small.items()]
    alone = tmp_path / "alone.safetensors"
    microgpt.train(data, shards=2, out=alone, **small)
    out = tmp_path / "names.safetensors"
    result = cli(2, "train", data, *short, "--shards", "2", "--mpi", "--out", out)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("model   ") == 1
    one, two = microgpt.load(alone), microgpt.load(out)
    assert all(np.array_equal(matrix, two.state_dict()[name]) for name, matrix in one.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--shards", "2"], "mpiexec has started 2 processes, which would train the same model: add --mpi"),
        (["--mpi"], "shards must be at least the number of ranks, got shards=1 for 2 ranks"),
        (["--shards", "3", "--mpi"], "batch_size must be a multiple of shards, got batch_size=4 and shards=3"),
        (
            ["--shards", "2", "--mpi", "--learning-rate", "1e300"],
            "the loss is nan at step 3: try a smaller learning_rate",
        ),
    ],
)
def test_errors_are_one_line_of_rank_0(cli: MpiExec, arguments: list[str], error: str) -> None:
    result = cli(2, "train", "--steps", "4", "--batch-size", "4", *arguments)
    assert result.returncode == 2
    assert [line for line in result.stderr.splitlines() if not line.startswith("step ")] == [
        f"microgpt: error: {error}"
    ]


def test_mpi_needs_mpi4py(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from microgpt.commands.cli import main

    monkeypatch.setitem(sys.modules, "mpi4py", None)
    assert main(["train", "--mpi", "--steps", "1"]) == 2
    assert capsys.readouterr().err == 'microgpt: error: mpi4py is not installed: pip install "microgpt-fast[mpi]"\n'
