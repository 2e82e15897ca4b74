"""Checks of arguments. Each raises an error of one line that names the argument and what is expected of it."""

from __future__ import annotations

import math
import operator
import os
import sys
from collections.abc import Reversible, Set
from typing import Any

import numpy as np

LONGEST_SHOWN = 60  # characters of a value in an error
LONGEST_SHOWN_PATH = 300
LARGEST = min(sys.maxsize, 1 << 53)  # the largest index, and the largest number to which floats count exactly
SEED_BITS = 2048  # Python writes whole numbers up to this size as text under any limit on digits


def integer(name: str, value: object, minimum: int, maximum: float = LARGEST) -> int:
    """`value` as an int; `TypeError` if it is not a whole number, `ValueError` beyond `minimum` or `maximum`."""
    try:
        if isinstance(value, bool):
            raise TypeError
        result = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {shown(value)}") from None
    if result < minimum:  # it may have any number of digits: do not print it
        raise ValueError(f"{name} must be at least {minimum}, got {'less' if result < -LARGEST else result}")
    if result > maximum:
        raise ValueError(f"{name} must be at most {maximum}, got more")
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
        raise TypeError(f"{name} must be a number, got {shown(value)}")
    try:
        result = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # ValueError is from an array of text
        raise TypeError(f"{name} must be a number, got {shown(value)}") from None
    except OverflowError:  # a whole number beyond the largest float
        result = math.inf if value > 0 else -math.inf  # type: ignore[operator]
    if not (above < result < below and minimum <= result <= maximum and math.isfinite(result)):
        wanted = [f"more than {above:g}"] if above > -math.inf else []
        wanted += [f"at least {minimum:g}"] if minimum > -math.inf else []
        wanted += [f"less than {below:g}"] if below < math.inf else []
        wanted += [f"at most {maximum:g}"] if maximum < math.inf else []
        wanted += ["finite"] if math.isinf(result) or not wanted else []
        raise ValueError(f"{name} must be {' and '.join(wanted)}, got {result:g}")
    return result


def random_seed(name: str, value: Any) -> Any:
    """`value` as a seed: a number, a string, bytes, None, or a `random.Random`, whose state counts.

    `TypeError` for anything else; `ValueError` if it could not be written to a file and give the same numbers again.
    """
    value = value.item() if isinstance(value, (np.generic, np.ndarray)) and value.ndim == 0 else value
    wanted = f"{name} must be a number, a string or a random.Random"
    try:
        if hasattr(value, "getstate"):
            value.getstate()
            return value
    except NotImplementedError:  # raised by random.SystemRandom
        raise TypeError(f"{wanted} that has a state, got {shown(value)}") from None
    if isinstance(value, bool) or not isinstance(value, (int, float, str, bytes, bytearray, type(None))):
        raise TypeError(f"{wanted}, got {shown(value)}")
    if isinstance(value, int) and value.bit_length() > SEED_BITS:
        raise ValueError(f"{name} must have at most {SEED_BITS} bits, got {value.bit_length()}")
    if isinstance(value, float):
        number(name, value)
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name} must be a string that UTF-8 can encode, got {shown(value)}") from None
    return value


def check_order(name: str, items: object) -> None:
    """Raise `TypeError` for a set: its order, and every result that depends on it, differs between processes."""
    if isinstance(items, Set) and not isinstance(items, Reversible):
        kind = type(items).__name__
        raise TypeError(f"{name} must have an order that stays the same, as a list has, got a {kind}")


def string(name: str, value: object) -> str:
    """`value` if it is a string; `TypeError` otherwise."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {shown(value)}")
    return value


def file_name(name: str, value: object) -> str:
    """`value` as the name of a file; `TypeError` if it is not one, `ValueError` if no file can have it."""
    try:
        result = os.fspath(value)  # type: ignore[call-overload]
        if not isinstance(result, str):
            raise TypeError
        os.fsencode(result)
    except TypeError:
        raise TypeError(f"{name} must be the name of a file, got {shown(value)}") from None
    except UnicodeEncodeError:
        raise ValueError(f"{name} must be a name that this system can encode, got {shown(value)}") from None
    if "\0" in result:
        raise ValueError(f"{name} must be a name without null characters, got {shown(value)}")
    return result


def ending(name: str, path: object, endings: tuple[str, ...]) -> str:
    """The one of `endings` that the name of a file has, in upper or lower case; `ValueError` if it has none."""
    result = os.path.splitext(file_name("path", path))[1][1:].lower()
    if result not in endings:
        *others, last = [f".{each}" for each in endings]
        raise ValueError(f"{name} must end in {', '.join(others)} or {last}, got {shown_path(file_name('path', path))}")
    return result


def shown(value: object) -> str:
    """The representation of a value as errors show it: on one line, with "..." for the end of a long one."""
    line = " ".join(map(str.strip, repr(value).splitlines()))
    return line if len(line) <= LONGEST_SHOWN else f"{line[: LONGEST_SHOWN - 3]}..."


def shown_path(path: str | os.PathLike[str]) -> str:
    """A path as errors show it: on one line, and cut if it is too long for any file."""
    name = os.fspath(path)
    return f"{name if name.isprintable() else repr(name):.{LONGEST_SHOWN_PATH}}"


def choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    """`value` if it is one of `choices`; `ValueError` otherwise."""
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, got {shown(value)}")
    return str(value)
