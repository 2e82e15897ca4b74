"""Programs that tests/test_shards.py runs under mpiexec; the first argument is the name of a function."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from typing import Any

from mpi4py import MPI

import microgpt
from microgpt.checkpoint import parameters_hash
from microgpt.training import distributed

WORLD = MPI.COMM_WORLD
OTHERS = ["zoë", "ana", "bodo", "chloé", "na-na"]
NAMES = microgpt.read_documents()[:60]
SIZES = {"n_embd": 4, "n_head": 2, "block_size": 4}  # small enough for the reference
OPTIONS: dict[str, Any] = SIZES | {"steps": 6, "batch_size": 8, "shards": 8, "val_fraction": 0.1, "eval_tokens": 16}


def digest(result: microgpt.TrainingResult) -> str:
    """A hash of everything that a run computes."""
    bits = hashlib.sha256(result.losses.tobytes() + repr(result.validation_losses).encode())
    for matrix in result.model.state_dict().values():
        bits.update(matrix.tobytes())
    bits.update(repr(result.model.generate(3)).encode())
    return bits.hexdigest()


def all_sizes() -> None:
    """Train with 1, 2, 3, ... ranks and 1 or 2 threads each, and print a hash for each."""
    variants: list[dict[str, Any]] = [
        {"format": "text", "dropout": 0.2},
        {"max_grad_norm": 0.5, "n_layer": 2, "eval_every": 3},
    ]
    sizes: tuple[int, ...] = (1, 3)  # the reference is slow
    if microgpt.backend_info().backend == "compiled":
        sizes = (1, 2, 3, 4, 8)
        variants = [variant | {"dtype": dtype} for variant in variants for dtype in ("float64", "float32")]
    for variant in variants:
        for size in sizes:
            communicator = WORLD.Split(0 if WORLD.rank < size else MPI.UNDEFINED, WORLD.rank)
            if communicator != MPI.COMM_NULL:
                threads = None if microgpt.backend_info().backend == "reference" else 1 + size % 2
                result = microgpt.train(NAMES, communicator=communicator, threads=threads, **OPTIONS, **variant)
                digests = communicator.gather(digest(result))
                if digests:
                    print(variant, size, *digests)


def other_data() -> None:
    """Train with other documents on rank 1, and print the error of each rank."""
    try:
        microgpt.train(NAMES[WORLD.rank :], communicator=WORLD, **OPTIONS)
    except ValueError as error:
        for message in WORLD.gather(str(error)) or []:
            print(message)


def wrong_communicator() -> None:
    """Train with something else as a communicator."""
    try:
        microgpt.train(NAMES, communicator=42, **OPTIONS)
    except TypeError as error:
        print(error)


def warm_start(path: str) -> None:
    """Train from a model's file, and from the model in memory; then from another model on each rank."""
    options: dict[str, Any] = {"extend_vocabulary": True, "steps": 3, "batch_size": 4, "shards": 2}
    for start in (path, microgpt.load(path)):
        result = microgpt.train(OTHERS, init_from=start, communicator=WORLD, **options)
        for digest in WORLD.gather(parameters_hash(result.model.state_dict())) or []:
            print(digest)
    model = microgpt.load(path)
    model.state_dict()["wte"][0, 0] += WORLD.rank
    try:
        microgpt.train(OTHERS, init_from=model, communicator=WORLD, **options)
    except ValueError as error:
        if WORLD.rank == 1:
            print(error)


def failing_callback() -> None:
    """Train with a progress callback that raises an error, which all ranks get."""

    def fail(progress: microgpt.TrainingProgress) -> None:
        raise RuntimeError(f"enough after {progress.step // 4 * 4} steps")

    try:
        microgpt.train(NAMES, communicator=WORLD, progress=fail, **OPTIONS)
    except RuntimeError as error:
        for message in WORLD.gather(str(error)) or []:
            print(message)


def at_exchange(number: int, action: Any) -> None:
    """Do something on rank 1 instead of one of its exchanges."""
    exchange, count = distributed.Ranks.exchange, 0

    def counted(ranks: distributed.Ranks, total: float, loss: float, shards: int) -> float:
        nonlocal count
        count += 1
        if count == number and WORLD.rank == 1:
            action()
        return exchange(ranks, total, loss, shards)

    distributed.Ranks.exchange = counted  # type: ignore[method-assign]


def checkpointed(out: str, resume: bool = False) -> None:
    """Train with a checkpoint every 4 steps, which are 16 exchanges of two ranks, and print a hash."""
    options = OPTIONS | {"steps": 12, "eval_every": 6}
    result = microgpt.train(NAMES, communicator=WORLD, out=out, resume=resume, checkpoint_every=4, **options)
    if WORLD.rank == 0:
        print(digest(result))


def killed(out: str) -> None:
    """Kill rank 1 in the middle."""
    at_exchange(20, lambda: os.kill(os.getpid(), signal.SIGKILL))
    checkpointed(out)


def out_of_memory(out: str) -> None:
    """Let an allocation fail on rank 1 in the middle."""

    def fail() -> None:
        raise MemoryError("a batch would take 1,000,000 bytes")

    at_exchange(20, fail)
    checkpointed(out)


def interrupted(out: str) -> None:
    """Send Ctrl-C to rank 1 alone."""
    at_exchange(20, lambda: os.kill(os.getpid(), signal.SIGINT))
    try:
        checkpointed(out)
    except KeyboardInterrupt:
        print(f"interrupted on rank {WORLD.rank}")


def resumed(out: str) -> None:
    """Go on from the checkpoint."""
    checkpointed(out, resume=True)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
