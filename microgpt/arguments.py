"""What a user passes in, checked: each check raises one line that names the argument and what would be right."""

from __future__ import annotations

import math
import operator


def integer(name: str, value: object, minimum: int) -> int:
    """`value` as an int; `TypeError` where it is not a whole number, `ValueError` below `minimum`."""
    try:
        if isinstance(value, bool):
            raise TypeError
        result = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {value!r}") from None
    if result < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {result}")
    return result


def positive_integer(name: str, value: object) -> int:
    """`value` as an int of at least 1."""
    return integer(name, value, 1)


def number(
    name: str,
    value: object,
    *,
    above: float = -math.inf,
    minimum: float = -math.inf,
    below: float = math.inf,
    maximum: float = math.inf,
) -> float:
    """`value` as a finite float, more than `above`, at least `minimum`, less than `below` and at most `maximum`."""
    if isinstance(value, (str, bytes, bool)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    try:
        result = float(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be a number, got {value!r}") from None
    if not (above < result < below and minimum <= result <= maximum and math.isfinite(result)):
        wanted = [f"more than {above:g}"] if above > -math.inf else []
        wanted += [f"at least {minimum:g}"] if minimum > -math.inf else []
        wanted += [f"less than {below:g}"] if below < math.inf else []
        wanted += [f"at most {maximum:g}"] if maximum < math.inf else []
        raise ValueError(f"{name} must be {' and '.join(wanted) or 'finite'}, got {result:g}")
    return result


def choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    """`value` where it is one of `choices`; `ValueError` otherwise."""
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, got {value!r}")
    return str(value)
