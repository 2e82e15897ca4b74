"""The values of each option that a search tries, and how a trial draws among them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from microgpt.config import ACTIVATIONS, SCALED, SIZES, GPTConfig
from microgpt.data.corpus import Corpus
from microgpt.training.recipe import Recipe
from microgpt.utils.arguments import shown

LONGEST_CONTEXT = 256  # that is tried by default


@dataclass(frozen=True)
class Choices:
    """Values that are drawn alike."""

    values: tuple[Any, ...]

    def at(self, place: float) -> Any:
        """The value at a place in [0, 1)."""
        return self.values[int(place * len(self.values))]

    def __str__(self) -> str:
        return ", ".join(map(str, self.values))


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`: drawn log-uniformly, so that each decade is as likely, unless `low` is 0."""

    low: float
    high: float
    whole: bool = False

    def at(self, place: float) -> float:
        """The number at a place in [0, 1): whole, or with three digits, which is easier to read and to repeat."""
        low, high = (self.low - 0.5, self.high + 0.5) if self.whole else (self.low, self.high)
        value = low * (high / low) ** place if low > 0 else low + (high - low) * place
        value = round(value) if self.whole else float(f"{value:.3g}")
        return min(max(value, self.low), self.high)

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"


Values = Choices | Range
Space = dict[str, Values]


@dataclass(frozen=True)
class Share:
    """A part of a trial's steps, such as the first 5%."""

    percent: float

    def of(self, steps: int) -> int:
        """The number of steps."""
        return round(steps * self.percent / 100)

    def __str__(self) -> str:
        return f"{self.percent:g}%"


def _number_or_scaled(text: str) -> float | str:
    return SCALED if text == SCALED else float(text)


def _steps(text: str) -> int | Share:
    return Share(float(text[:-1])) if text.endswith("%") else int(text)


# The options that can be searched, in the order in which they are drawn, and how their values are read.
SEARCHABLE: dict[str, Callable[[str], Any]] = {
    "n_layer": int,
    "n_embd": int,
    "n_head": int,
    "block_size": int,
    "batch_size": int,
    "learning_rate": float,
    "schedule": str,
    "warmup_steps": _steps,
    "weight_decay": float,
    "init_std": _number_or_scaled,
    "activation": str,
    "beta1": float,
    "beta2": float,
    "eps": float,
    "max_grad_norm": float,
    "dropout": float,
}


def default_space(corpus: Corpus) -> Space:
    """The values that are tried unless an option is given, or searched otherwise."""
    return {
        "n_layer": Choices((1, 2, 3)),
        "n_embd": Choices((16, 24, 32, 48, 64, 96, 128)),
        "n_head": Choices((2, 4, 8)),
        "block_size": Choices(_contexts(corpus)),
        "batch_size": Choices((4, 8, 16, 32, 64)),
        "learning_rate": Range(0.001, 0.02),
        "schedule": Choices(("linear", "cosine")),
        "warmup_steps": Choices((0, Share(2), Share(5))),
        "weight_decay": Choices((0.0, 0.001, 0.01, 0.1)),
        "init_std": Choices((SCALED, 0.08)),
        "activation": Choices(ACTIVATIONS),
    }


def _contexts(corpus: Corpus) -> tuple[int, ...]:
    """Contexts for a text; or the powers of two that hold all documents, and nine of ten.

    A context that cuts off most documents saves little and loses much, since batches are packed without padding.
    """
    if corpus.is_text:
        return 32, 64, 128
    predicted = np.sort(np.diff(corpus.offsets))
    lengths = (int(predicted[len(predicted) * 9 // 10]), int(predicted[-1]))
    return tuple(sorted({min(max(8, 1 << (length - 1).bit_length()), LONGEST_CONTEXT) for length in lengths}))


def parse_space(search: Mapping[str, Any]) -> Space:
    """The values of `search` as the user gave them: a list, or a text such as "16,32,64" or "0.001..0.03"."""
    space: Space = {}
    if not isinstance(search, Mapping):
        raise TypeError(f"search must be a dict of values by option, got {shown(search)}")
    for name, given in search.items():
        if name not in SEARCHABLE:
            raise ValueError(f"search must name one of {', '.join(SEARCHABLE)}, got {shown(name)}")
        space[name] = values = _parse_values(name, given)
        for value in values.values if isinstance(values, Choices) else (values.low, values.high):
            _check(name, value)
    return space


def _parse_values(name: str, given: Any) -> Values:
    read = SEARCHABLE[name]
    wanted = f"search of {name} must be values such as 1,2,4 or a range such as 0.001..0.1, got {shown(given)}"
    try:
        if not isinstance(given, str):
            if not isinstance(given, Iterable):
                raise TypeError(wanted)
            items = [item.item() if isinstance(item, np.generic) else item for item in given]
            values = tuple(read(item) if isinstance(item, str) else item for item in items)
        elif ".." in given:
            low, high = map(read, given.split(".."))
            if not (isinstance(low, (int, float)) and isinstance(high, (int, float)) and 0 <= low < high < math.inf):
                raise ValueError(wanted)
            return Range(low, high, whole=read in (int, _steps))
        else:
            values = tuple(read(item.strip()) for item in given.split(","))
    except ValueError:
        raise ValueError(wanted) from None
    if not values:
        raise ValueError(wanted)
    return Choices(values)


def _check(name: str, value: Any) -> None:
    """Raise the error of a value that no trial can have."""
    if isinstance(value, Share):
        return
    try:
        if name in SIZES:
            GPTConfig(**{"vocab_size": 1, "n_embd": value, "n_head": value if name == "n_head" else 1, name: value})
        Recipe(**{name: value})
    except (ValueError, TypeError) as error:
        raise type(error)(f"search of {name}: {error}") from None


def draws(space: Space, seed: Any, number: int, attempts: int) -> Iterable[dict[str, Any]]:
    """The options of trial `number`, and what it draws instead if they do not fit: always the same for a seed."""
    generator = random.Random(f"{seed}/{number}")
    for _ in range(attempts):
        places = {name: generator.random() for name in SEARCHABLE}  # an option's draw does not depend on the others
        yield {name: space[name].at(places[name]) for name in SEARCHABLE if name in space}
