"""Nodes of a graph of scalars: everything about `Value` of reference.py except its arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import wraps
from operator import attrgetter
from typing import Any, Self, TypeVar

V = TypeVar("V", bound="Node")


def number(name: str, x: Any) -> float:
    """`x` as a float; `TypeError`, which names it `name`, if it is not a number."""
    if isinstance(x, (str, bytes, bytearray)):
        raise TypeError(f"{name} must be a number, got {x!r}")
    try:
        return float(x)
    except TypeError:
        raise TypeError(f"{name} must be a number, got {x!r}") from None


def string(name: str, x: Any) -> str:
    """`x` if it is a string; `TypeError` otherwise."""
    if not isinstance(x, str):
        raise TypeError(f"{name} must be a string, got {x!r}")
    return x


def sequence(name: str, items: str, x: Any) -> tuple[Any, ...]:
    """`x` as a tuple; `TypeError` if it is a string or not iterable."""
    if isinstance(x, str) or not hasattr(x, "__iter__"):
        raise TypeError(f"{name} must be a sequence of {items}, got {x!r}")
    return tuple(x)


def checked(name: str, check: Callable[[str, Any], Any]) -> Any:
    """An attribute that is checked whenever it is set, kept in the slot `_name`."""
    return property(attrgetter(f"_{name}"), lambda self, x: setattr(self, f"_{name}", check(name, x)))


def power(x: float, exponent: Any) -> float:
    """`x**exponent`; `TypeError` if the exponent is a node, `ValueError` if the power is not a real number."""
    if isinstance(exponent, Node):
        raise TypeError(f"the exponent of ** must be an int or a float, not a {type(exponent).__name__}")
    result = x**exponent
    if isinstance(result, complex):
        raise ValueError(f"a negative value to a fractional power is not a real number: {x}**{exponent}")
    return float(result)


def square(x: float) -> float:
    """`x**2`, but infinity on overflow, where `**`, unlike the other operators, would raise an error."""
    try:
        return x**2
    except OverflowError:
        return math.inf


def as_nodes(kind: type[V], items: Iterable[Any], some: str = "") -> list[V]:
    """`items`, each number as a leaf. If `some` names them, `ValueError` for an empty iterable."""
    nodes = [x if isinstance(x, Node) else kind(x) for x in items]
    if some and not nodes:
        raise ValueError(f"{some} must have at least one element")
    return nodes  # type: ignore[return-value]


def takes_numbers(operator: Callable[[V, Any], V]) -> Callable[[V, Any], V]:
    """Make an operator accept numbers, as floats, besides nodes. Other types get `NotImplemented`."""

    @wraps(operator)
    def wrapped(self: V, other: Any) -> Any:
        if not isinstance(other, Node):
            try:
                other = number("operand", other)
            except TypeError:
                return NotImplemented
        return operator(self, other)

    return wrapped


def takes_values(operator: Callable[[V, Any], V]) -> Callable[[V, Any], V]:
    """Make an operator accept numbers, as leaves, besides nodes. Other types get `NotImplemented`."""

    @wraps(operator)
    def wrapped(self: V, other: Any) -> Any:
        if not isinstance(other, Node):
            try:
                other = type(self)(number("operand", other))
            except TypeError:
                return NotImplemented
        return operator(self, other)

    return wrapped


class Node:
    """A scalar in a graph of scalars.

    Args:
        data: the number.
        children: the operands of an operation of your own.
        local_grads: its derivative with respect to each of them.
        op: its name. `Value(math.sin(x.data), (x,), (math.cos(x.data),), "sin")`
        label: a name for this value, for drawings of the graph.

    Attributes:
        data: the number, a float.
        grad: the derivative of the value on which `backward` was called with respect to this one, a float. Calls of
            `backward` accumulate into it until it is set to 0.
        label: the name, a string, empty by default.

    All three can be set at any time; a new `data` does not change values computed before, nor their derivatives.
    Operands and exponents may be numbers of any type; `TypeError` for anything else. Division by zero, overflow and
    the logarithm of 0 raise what they raise for floats. Copies and pickles keep `data`, `grad` and `label`, but not
    the graph. It cannot be subclassed.

    Source: `class Value` of microgpt and, for further names, micrograd. The graph has the names of both: `_children`
    and `_local_grads` (tuples), `_prev` (a set), `_op`. A value is one object, however it is reached, for as long as
    anything was computed from it; values are equal only if they are the same object. `_backward` is a method: unlike
    in micrograd, an operation of your own is defined by its `local_grads`.
    """

    __slots__ = ("_data", "_grad", "_children", "_local_grads", "_op", "_label")

    data = checked("data", number)
    grad = checked("grad", number)
    label = checked("label", string)

    def __init_subclass__(cls) -> None:
        if cls.__base__ is not Node:
            raise TypeError(f"type {cls.__base__.__name__!r} is not an acceptable base type")  # type: ignore[union-attr]

    def __init__(
        self,
        data: float,
        children: Iterable[Self] = (),
        local_grads: Iterable[float] = (),
        op: str = "",
        label: str = "",
    ) -> None:
        data = data if type(data) is float else number("data", data)
        children = children if type(children) is tuple else sequence("children", "Values", children)
        local_grads = local_grads if type(local_grads) is tuple else sequence("local_grads", "numbers", local_grads)
        local_grads = tuple([x if type(x) is float else number("local_grads", x) for x in local_grads])
        for child in children:
            if not isinstance(child, Node):
                raise TypeError(f"children must be Values, got {child!r}")
        if len(children) != len(local_grads):
            raise ValueError(
                f"local_grads must have one number for each of {len(children)} children, got {len(local_grads)}"
            )
        self._op, self._label = string("op", op), string("label", label)
        self._data = data
        self._grad = 0.0
        self._children = children  # the operands that this value was computed from
        self._local_grads = local_grads  # the derivative of this value with respect to each child

    @property
    def _prev(self) -> set[Self]:
        return set(self._children)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(data={self.data}, grad={self.grad})"

    def __reduce__(self) -> tuple[Any, ...]:
        return (_leaf, (type(self), self.data, self.grad, self.label))


def _leaf(kind: type[V], data: float, grad: float, label: str) -> V:
    """A node restored from a pickle or a copy, as a leaf."""
    value = kind(data, label=label)
    value.grad = grad
    return value
