"""The choice of a backend, made once at import, and the objects of that backend."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

from microgpt.engine.cores import physical_cores
from microgpt.utils.arguments import choice, random_seed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from microgpt.config import GPTConfig
    from microgpt.engine.interface import Engine, Parameters
    from microgpt.random.interface import Generator

BACKENDS = ("compiled", "reference")


@dataclass(frozen=True)
class BackendInfo:
    """The answer of `backend_info`.

    Attributes:
        backend: "compiled" or "reference".
        instruction_set: the one whose kernels run; None for the reference.
        threads: how many threads a model uses by default, at most.
        reason: why this backend was chosen, in a few words.
    """

    backend: str
    instruction_set: str | None
    threads: int
    reason: str


def _import_compiled(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(f"microgpt.{name}")
    except ModuleNotFoundError as error:  # any other ImportError means a broken build: do not hide it
        if error.name != f"microgpt.{name}":
            raise
        return None


if TYPE_CHECKING:
    from microgpt import _value
    from microgpt.engine import _engine
    from microgpt.random import _mersenne
else:
    _engine, _mersenne, _value = map(_import_compiled, ("engine._engine", "random._mersenne", "_value"))
_ASKED_FOR = os.environ.get("MICROGPT_BACKEND") or None  # read once: `Value` cannot change later


def choose(backend: str | None = None) -> str:
    """`backend`, else what MICROGPT_BACKEND named at import, else the best; `ImportError` if it is not installed."""
    source = "backend"
    if backend is None:
        backend, source = _ASKED_FOR, "MICROGPT_BACKEND"
    if backend is None:
        return "compiled" if _engine else "reference"
    choice(source, backend, BACKENDS)
    if backend == "compiled" and not _engine:
        raise ImportError(f"{source}={backend!r}, but {why_pure()}")
    return backend


def why_pure() -> str | None:
    """The reason why there is no compiled engine, which setup.py has written to a file, or None if there is one."""
    if _engine:
        return None
    from importlib import resources  # slow to import, and not needed by the compiled engine

    file = resources.files("microgpt") / "why_pure.txt"
    why = file.read_text("utf-8") if file.is_file() else "nothing was compiled"
    return f"this installation has no compiled engine; when it was built: {why}"


def _reason() -> str:
    if _ASKED_FOR:
        return "MICROGPT_BACKEND asks for it"
    return why_pure() or "it is installed"


def value_module() -> ModuleType:
    """The module with the backend's `Value` and functions over it."""
    if choose() == "compiled":
        return _value
    from microgpt import reference

    return reference


def is_value(x: object) -> bool:
    """Whether `x` is a `Value`, of either backend."""
    from microgpt.node import Node  # unused while the compiled engine runs

    return isinstance(x, Node) or (_value is not None and isinstance(x, _value.Value))


def compiled_engine() -> ModuleType | None:
    """The module of the compiled engine, or None."""
    return _engine


@cache
def instruction_sets() -> tuple[str, ...]:
    """Instruction sets that have compiled kernels and that this processor supports, best first."""
    return tuple(_engine.instruction_sets()) if _engine else ()


def instruction_set() -> str | None:
    """The instruction set that MICROGPT_ISA names, else the best; None without compiled kernels."""
    asked_for = os.environ.get("MICROGPT_ISA")
    if asked_for and _engine:
        return choice("MICROGPT_ISA", asked_for, instruction_sets())
    return instruction_sets()[0] if _engine else None


def new_engine(
    backend: str, config: GPTConfig, parameters: NDArray[Any], gradients: NDArray[Any], threads: int
) -> Engine:
    """An engine over flat arrays, see `interface.Engine`; `threads` is for the compiled one."""
    if backend == "compiled":
        return _engine.Engine(config, parameters, gradients, instruction_set(), threads)
    from microgpt.engine.reference_engine import Engine  # unused while the compiled engine runs

    return Engine(config, parameters, gradients)


def new_generator(backend: str, seed: Any) -> Generator:
    """A random number generator; both backends give the numbers of `random.Random`."""
    seed = random_seed("seed", seed)
    if backend == "compiled":
        return _mersenne.Generator(seed)
    from microgpt.random.mersenne import Generator

    return Generator(seed)


def new_parameters(values: list[Any]) -> tuple[Parameters, int]:
    """Values of one backend, behind the interface that `Adam` uses, and the number of distinct ones."""
    parameters: Callable[[list[Any]], Parameters]
    if _value and values and isinstance(values[0], _value.Value):
        update_with_adam = partial(_engine.update_with_adam, instruction_set=instruction_set())
        kind, parameters = _value.Value, partial(_value.Parameters, update_with_adam=update_with_adam)
    else:
        from microgpt import reference
        from microgpt.engine import reference_engine

        kind, parameters = reference.Value, reference_engine.Parameters
    for i, value in enumerate(values):
        if not isinstance(value, kind):
            raise TypeError(f"model must be a GPT or Values of one backend, got {type(value).__name__} at position {i}")
    distinct = list(dict.fromkeys(values))  # tied parameters count once
    return parameters(distinct), len(distinct)


def backend_info() -> BackendInfo:
    """The backend that runs models, its instruction set and threads, and why it was chosen."""
    backend = choose()
    if backend == "reference":
        return BackendInfo(backend, None, 1, _reason())
    return BackendInfo(backend, instruction_set(), physical_cores(), _reason())


choose(), instruction_set()  # a wrong environment variable fails at import, not at first use
