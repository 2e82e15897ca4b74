"""The twins of `Value` give the same floats, errors and graphs, whatever is done with them."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microgpt import Adam, reference

compiled = pytest.importorskip("microgpt._value", reason="the compiled half is not built")

floats = st.one_of(
    st.floats(-4, 4), st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 1e-300, 1e200, math.inf, -math.inf, math.nan])
)
places = st.integers(0, 1000)  # which value: counted modulo how many there are
many = st.lists(places, min_size=1, max_size=5)


def command(name, *arguments):
    return st.tuples(st.just(name), *arguments)


commands = st.one_of(
    command("leaf", floats),
    *(command(name, places, places) for name in ("add", "multiply", "subtract", "divide", "accumulate")),
    *(command(name, places, floats) for name in ("with number", "of number", "power", "set data", "set grad")),
    *(command(name, places) for name in ("square", "double", "exp", "log", "relu", "tanh", "negate")),
    *(command(name, places) for name in ("backward", "drop", "walk")),
    command("own", many, floats),
    command("linear", many, st.lists(many, min_size=1, max_size=3)),
    command("softmax", many),
    command("rmsnorm", many),
    command("adam", many, st.floats(0.01, 1)),
)


class Machine:
    """Runs commands on the values of one twin."""

    def __init__(self, module):
        self.module = module
        self.values = [module.Value(0.5), module.Value(-1.25)]

    def run(self, name, *arguments):
        """What the command gives, or raises, as a string."""
        try:
            new = getattr(self, name.replace(" ", "_"))(*arguments)
        except (ArithmeticError, ValueError) as error:
            return f"{type(error).__name__}: {error}"
        self.values += new or []
        return repr(new)

    def at(self, place):
        return self.values[place % len(self.values)]

    def all_at(self, places):
        return [self.at(place) for place in places]

    def leaf(self, x):
        return [self.module.Value(x)]

    def add(self, i, j):
        return [self.at(i) + self.at(j)]

    def multiply(self, i, j):
        return [self.at(i) * self.at(j)]

    def subtract(self, i, j):
        return [self.at(i) - self.at(j)]

    def divide(self, i, j):
        return [self.at(i) / self.at(j)]

    def accumulate(self, i, j):
        self.values[i % len(self.values)] += self.at(j)

    def with_number(self, i, x):
        return [self.at(i) + x, self.at(i) - x, self.at(i) * x, self.at(i) / x]

    def of_number(self, i, x):
        return [x + self.at(i), x - self.at(i), x * self.at(i), x / self.at(i)]

    def power(self, i, x):
        return [self.at(i) ** x]

    def set_data(self, i, x):
        self.at(i).data = x

    def set_grad(self, i, x):
        self.at(i).grad = x

    def square(self, i):
        return [self.at(i) * self.at(i), self.at(i) ** 2]

    def double(self, i):
        return [self.at(i) + self.at(i)]

    def exp(self, i):
        return [self.at(i).exp()]

    def log(self, i):
        return [self.at(i).log()]

    def relu(self, i):
        return [self.at(i).relu()]

    def tanh(self, i):
        return [self.at(i).tanh()]

    def negate(self, i):
        return [-self.at(i)]

    def backward(self, i):
        self.at(i).backward()

    def drop(self, i):
        if len(self.values) > 2:
            del self.values[i % len(self.values)]

    def walk(self, i):
        return list(self.at(i)._children)

    def own(self, places, x):
        children = self.all_at(places)
        return [self.module.Value(x, children, [0.5 * child.data for child in children], "own")]

    def linear(self, x, w):
        return self.module.linear(self.all_at(x), [self.all_at(row) for row in w])

    def softmax(self, logits):
        return self.module.softmax(self.all_at(logits))

    def rmsnorm(self, x):
        return self.module.rmsnorm(self.all_at(x))

    def adam(self, places, learning_rate):
        values = [value for value in self.all_at(places) if abs(value.grad) < 1e100]  # its square is a float
        Adam(values, learning_rate).step()

    def state(self):
        """Everything that can be seen; `repr` of a float is exact, and tells -0.0 from 0.0."""
        where = {value: i for i, value in enumerate(self.values)}
        return [
            (repr(value), value._op, repr(value._local_grads), where[value], [where.get(c) for c in value._children])
            for value in self.values
        ]


@settings(max_examples=300, deadline=None)
@given(st.lists(commands, max_size=40))
def test_twins_agree(program):
    twins = Machine(reference), Machine(compiled)
    for line in program:
        assert twins[0].run(*line) == twins[1].run(*line), line
        numbers = [[repr(value) for value in machine.values] for machine in twins]
        assert numbers[0] == numbers[1], line
    assert twins[0].state() == twins[1].state()


@settings(max_examples=30, deadline=None)
@given(st.lists(commands, max_size=25), st.lists(commands, max_size=25), st.randoms(use_true_random=False))
def test_twins_agree_on_slots_that_were_used_before(first, second, random):
    """Values of the first program are dropped in random order, in between those of the second."""
    machine = Machine(compiled)
    for line in first:
        machine.run(*line)
    leftovers = machine.values
    random.shuffle(leftovers)
    twins = Machine(reference), Machine(compiled)
    for line in second:
        if leftovers:
            leftovers.pop()
        assert twins[0].run(*line) == twins[1].run(*line), line
    assert twins[0].state() == twins[1].state()
