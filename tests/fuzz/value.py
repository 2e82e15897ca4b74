"""Random programs of Values: both backends always show the same, and neither crashes.

A program is a list of commands, each run on both twins. What a command gives or raises is compared, then all numbers
and labels; and now and then the graphs, object by object, because looking at a graph changes what the compiled twin
keeps of it.
"""

from __future__ import annotations

import copy
import gc
import math
import operator
import pickle
import random
from collections.abc import Callable, Iterator
from fractions import Fraction
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from microgpt import Adam, reference

compiled = pytest.importorskip("microgpt._value", reason="the compiled half is not built")

TEST_CASES = 100
COMMANDS = 50  # in a program, at most
VALUES = 60  # held at once, at most

SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.5, 1e-300, -1e300, 5e-324, 709.0, 710.0, -745.2, math.inf, -math.inf, math.nan]
OPERATORS = [operator.add, operator.sub, operator.mul, operator.truediv]
IN_PLACE = [operator.iadd, operator.isub, operator.imul, operator.itruediv]
METHODS = ["exp", "log", "relu", "tanh", "__neg__"]
NOT_NUMBERS = [None, "1", b"1", 1j, [], {}, object, bytearray(b"1"), 10**400, np.zeros(2), Fraction(10**400)]


def any_float(random: random.Random) -> float:
    kind = random.random()
    if kind < 0.75:
        return random.gauss(0, 1.5)
    if kind < 0.85:
        return float(random.randint(-4, 4))
    if kind < 0.93:
        return random.choice(SPECIAL)
    return random.choice([-1, 1]) * 10 ** random.uniform(-300, 300)


def any_number(random: random.Random) -> Any:
    """A number of any type."""
    x = any_float(random)
    kind = random.random()
    if kind < 0.6:
        return x
    if kind < 0.8:
        return random.randint(-3, 3)
    kinds: list[Callable[[], Any]] = [
        lambda: np.float64(x),
        lambda: np.float32(random.gauss(0, 1)),
        lambda: np.int64(random.randint(-3, 3)),
        lambda: random.random() < 0.5,
        lambda: Fraction(random.randint(-9, 9), random.randint(1, 9)),
        lambda: random.choice([-1, 1]) * 2 ** random.randint(50, 1030),
    ]
    return random.choice(kinds)()


def any_exponent(random: random.Random) -> Any:
    kind = random.random()
    if kind < 0.4:
        return random.randint(-4, 5)
    if kind < 0.6:
        return random.choice([0.5, -0.5, 1 / 3, -1.5, 2.0, 1e-5, 1000, -1000, 1e300, -0.0])
    return any_number(random)


class Meddler:
    """A number with a side effect while it is converted."""

    def __init__(self, x: float, action: Callable[[], Any]) -> None:
        self.x, self.action = x, action

    def __float__(self) -> float:
        self.action()
        return self.x

    def __repr__(self) -> str:
        return f"Meddler({self.x})"


class Reflected:
    """An operand that knows what to do with a Value."""

    def __radd__(self, other: Any) -> Any:
        return other.data

    __rsub__ = __rmul__ = __rtruediv__ = __rpow__ = __radd__


class Twin:
    """The Values of one backend, and the commands that make, change and drop them."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.values: list[Any] = [module.Value(0.5), module.Value(-1.25, label="second")]

    def run(self, command: Callable[[Twin], Any]) -> Any:
        """The result of a command, in a form that can be compared; new Values are kept."""
        try:
            result = command(self)
        except Exception as error:  # noqa: BLE001 (both twins must raise the same)
            return type(error), str(error).replace("microgpt._value.Value", "Value")
        finally:
            del self.values[VALUES:]
        return self.shown(result)

    def shown(self, result: Any) -> Any:
        if isinstance(result, self.module.Value):
            places = [i for i, value in enumerate(self.values) if value is result]
            if not places:
                self.values.append(result)
            return ("Value", places, *self.looks(result))
        if isinstance(result, set):  # its order differs between twins: keep nothing
            return set, sorted(self.looks(value) for value in result)
        if isinstance(result, (list, tuple)):
            return type(result), [self.shown(x) for x in result]
        return type(result), repr(result)

    def looks(self, value: Any) -> tuple[str, ...]:
        """Everything about a Value but its graph; `hex` tells 0.0 from -0.0, and NaN is NaN."""
        return value.data.hex(), value.grad.hex(), value.label

    def at(self, place: int) -> Any:
        return self.values[place % len(self.values)]

    def operand(self, x: Any) -> Any:
        """The Value at a place; anything else as it is, except actions, which become this twin's."""
        if isinstance(x, Place):
            return self.at(x.place)
        if isinstance(x, list):
            return [self.operand(item) for item in x]
        if isinstance(x, Action):
            return Meddler(x.number, lambda: x.command(self))
        return x


class Place:
    """A Value of either twin, by its place among those that are held, modulo their number."""

    def __init__(self, place: int) -> None:
        self.place = place


class Action:
    """A number that runs a command while it is converted."""

    def __init__(self, number: float, command: Callable[[Twin], Any]) -> None:
        self.number, self.command = number, command


def any_place(random: random.Random) -> Place:
    return Place(random.randrange(1 << 20) if random.random() < 0.7 else -1 - random.randrange(3))


def any_operand(random: random.Random) -> Any:
    kind = random.random()
    if kind < 0.6:
        return any_place(random)
    if kind < 0.95:
        return any_number(random)
    if kind < 0.97:
        return Action(any_float(random), any_interference(random))
    return random.choice([*NOT_NUMBERS, Reflected()])


def any_list(random: random.Random, longest: int = 6) -> list[Any]:
    """Operands: often a run of the Values held, sometimes the same ones repeated, or mixed with others."""
    length, first = random.randint(0, longest) or random.randint(0, 1), random.randrange(1 << 20)
    operands: list[Any] = [Place(first + k) for k in range(length)]
    if random.random() < 0.2:
        operands = [random.choice(operands[:2]) for _ in operands]
    if random.random() < 0.4:
        operands = [x if random.random() < 0.7 else any_operand(random) for x in operands]
    return operands


def any_interference(random: random.Random) -> Callable[[Twin], Any]:
    """A command that changes no number that a function may be reading."""
    place = random.randrange(1 << 20)

    def drop(twin: Twin) -> None:
        if len(twin.values) > 2:
            del twin.values[place % len(twin.values)]

    def fail(twin: Twin) -> None:
        raise LookupError("meddler")

    return random.choice([
        drop,
        fail,
        lambda twin: twin.values.append(twin.module.Value(1.5)),
        lambda twin: twin.values.append(twin.at(place) * twin.at(place + 1)),
        lambda twin: twin.values.extend(twin.at(place)._children),
        lambda twin: twin.at(place).backward(),
        lambda twin: setattr(twin.at(place), "label", "meddled"),
        lambda twin: [twin.at(place) + 1.0 for _ in range(100)] and None,
    ])  # fmt: skip


def any_command(random: random.Random) -> Callable[[Twin], Any]:
    """A command with all its arguments, to be applied to both twins."""
    draw = random.choice
    i, j = any_place(random), any_operand(random)
    places = [any_place(random) for _ in range(random.randint(1, 5))]
    x, row = any_list(random), any_list(random)

    def binary(twin: Twin) -> Any:
        return function(*[twin.operand(k) for k in operands])

    def accumulate(twin: Twin) -> Any:
        result = function(twin.at(i.place), twin.operand(j))
        if isinstance(result, twin.module.Value):
            twin.values[i.place % len(twin.values)] = result
        return result

    def power(twin: Twin) -> Any:
        return twin.operand(base) ** twin.operand(exponent)

    def assign(twin: Twin) -> None:
        setattr(twin.at(i.place), name, twin.operand(number))

    def drop(twin: Twin) -> None:
        for place in places:
            if len(twin.values) > 2:
                del twin.values[place.place % len(twin.values)]

    def backward(twin: Twin) -> Any:
        return [twin.at(i.place).backward() for _ in range(times)]

    def attribute(twin: Twin) -> Any:
        return getattr(twin.at(i.place), name)

    def method(twin: Twin) -> Any:
        return getattr(twin.at(i.place), name)()

    def again(twin: Twin) -> Any:
        return twin.at(i.place).__init__(number, *arguments)

    def new(twin: Twin) -> Any:
        return twin.module.Value(twin.operand(number), *arguments)

    def own(twin: Twin) -> Any:
        return twin.module.Value(number, sequence(twin.operand(x)), slopes, draw_op, label=label)

    def linear(twin: Twin) -> Any:
        matrix = [twin.operand(wo) for wo in w]
        first = twin.module.linear(sequence(twin.operand(x)), sequence(matrix))
        return first + twin.module.linear(twin.operand(x), matrix)

    def change_between(twin: Twin) -> Any:
        before = twin.module.linear(twin.operand(x), [twin.operand(row)])
        twin.at(i.place).data = number
        return before + twin.module.linear(twin.operand(x), [twin.operand(row)])

    def function_of_list(twin: Twin) -> Any:
        return getattr(twin.module, name)(sequence(twin.operand(x)))

    def total(twin: Twin) -> Any:
        return sum(sequence(twin.operand(x)), *([twin.operand(j)] if random_start else []))

    def found_again(twin: Twin) -> Any:
        """The `id` of a Value that is kept only by the results computed from it."""
        value = twin.at(i.place) * 1.5
        value.label = "kept by id"
        address, parent = id(value), function(value, 2.0)
        del value
        others = [twin.module.Value(0.0) for _ in range(5)]
        found = parent
        while found.label != "kept by id":
            found = found._children[0]
        return parent, id(found) == address, [id(other) == address for other in others]

    def chain(twin: Twin) -> Any:
        value = twin.at(i.place)
        for _ in range(times * 300):
            value = value * 0.99 + twin.at(i.place)
        return value

    def by_hand(twin: Twin) -> None:
        for place in places:
            twin.at(place.place)._backward()

    def duplicate(twin: Twin) -> Any:
        return [how(twin.at(i.place)), *how([twin.at(place.place) for place in places])]

    def adam(twin: Twin) -> None:
        values = [twin.at(place.place) for place in places]
        Adam([v for v in values if abs(v.grad) < 1e100], 0.01).step()  # so that the square of a gradient is finite

    def compare(twin: Twin) -> Any:
        a, b = twin.at(i.place), twin.operand(j)
        return [a == b, a != b, hash(a) == hash(b)] if isinstance(b, twin.module.Value) else a == b

    name, label, draw_op = "", draw(["", "a", "b" * 50]), draw(["", "own", "\udc80"])
    number, times = any_number(random), random.randint(1, 3)
    function, base, exponent = draw(OPERATORS), i, any_exponent(random)
    operands = [i, j] if random.random() < 0.7 else [j, i]
    sequence: Callable[[Any], Any] = draw([list, tuple, iter, lambda x: (item for item in x)])
    how = draw([copy.copy, copy.deepcopy, pickled])
    slopes = [any_number(random) for _ in x] if random.random() < 0.9 else draw([(), "s", 1.0, [None] * len(x), [1.0]])
    arguments: list[Any] = draw([[], [(), (), "input"], [(), (), "", "again"], [[], [], ""]])
    rows: list[Callable[[], Any]] = [lambda: row, lambda: random.sample(x, len(x)), lambda: x, lambda: any_list(random)]
    w = [draw(rows)() for _ in range(random.randint(0, 4))]
    random_start = random.random() < 0.3
    if random.random() < 0.02:
        exponent = draw([i, None, "2", Action(2.0, any_interference(random)), Reflected()])
    if random.random() < 0.02:
        base, exponent = 2, i

    command = draw([
        binary, binary, binary, binary, accumulate, power, power, assign, assign, drop, backward, attribute, again, new,
        new, own, linear, linear, change_between, function_of_list, function_of_list, total, found_again, by_hand,
        duplicate, adam, compare, method, method, chain if random.random() < 0.1 else method,
    ])  # fmt: skip
    if command is accumulate:  # CPython words errors about sequences differently for compiled classes
        function, j = draw(IN_PLACE), None if isinstance(j, (str, bytes, bytearray, list)) else j
    elif command is assign:
        name = draw(["data", "grad", "label"])
        number = draw([number, label]) if random.random() < 0.1 else label if name == "label" else number
    elif command is attribute:
        name = draw(["_children", "_children", "_prev", "_local_grads", "_op", "label", "data", "grad", "__class__.x"])
    elif command is method:
        name = draw(METHODS)
    elif command is function_of_list:
        name = draw(["softmax", "rmsnorm", "compute_softmax"])
        if random.random() < 0.3:
            x = any_list(random, 20)
    elif command is new and random.random() < 0.05:
        number = draw(NOT_NUMBERS)
    elif command is own:
        x = [item for item in x if isinstance(item, Place)] if random.random() < 0.8 else x
        slopes = slopes if isinstance(slopes, (str, float)) else slopes[: len(x)]
    return command


def pickled(x: Any) -> Any:
    return pickle.loads(pickle.dumps(x))


def pairs(twins: list[Twin], roots: list[int]) -> Iterator[tuple[Any, Any]]:
    """Values at the same place in both graphs, each once; `AssertionError` where one is another object in only one."""
    partners: list[dict[int, int]] = [{}, {}]
    stack = [tuple(twin.values[i] for twin in twins) for i in roots]
    while stack:
        a, b = stack.pop()
        known = partners[0].get(id(a)), partners[1].get(id(b))
        assert known in ((None, None), (id(b), id(a))), "the same object at two places in one graph, not in the other"
        if known == (None, None):
            partners[0][id(a)], partners[1][id(b)] = id(b), id(a)
            yield a, b
            stack += zip(a._children, b._children, strict=True)


def compare_graphs(twins: list[Twin], roots: list[int]) -> None:
    for a, b in pairs(twins, roots):
        first, second = (
            [*twin.looks(value), value._op, [x.hex() for x in value._local_grads]] for twin, value in zip(twins, (a, b))
        )
        assert first == second


def case(random: random.Random) -> None:
    twins = [Twin(reference), Twin(compiled)]
    for _ in range(random.randint(1, COMMANDS)):
        command = any_command(random)
        results = [twin.run(command) for twin in twins]
        assert results[0] == results[1], f"{command.__name__}: {results[0]} {results[1]}"
        looks = [[twin.looks(value) for value in twin.values] for twin in twins]
        assert looks[0] == looks[1], command.__name__
        if random.random() < 0.03:
            gc.collect()
        if random.random() < 0.1:
            compare_graphs(twins, [random.randrange(len(looks[0]))])
    compare_graphs(twins, [*range(len(twins[0].values))])
    for i in random.sample(range(len(twins[0].values)), 2):
        for twin in twins:
            twin.values[i].backward()
    compare_graphs(twins, [*range(len(twins[0].values))])
