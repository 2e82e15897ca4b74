"""`Value`, `linear`, `softmax`, `rmsnorm`, and `Adam` over Values; each test runs on both twins."""

import copy
import gc
import inspect
import math
import os
import pickle
import platform
import random
import subprocess
import sys
import sysconfig
import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial

import numpy as np
import pytest

import microgpt
from microgpt import reference
from microgpt.training.recipe import defaults_of

from conftest import needs_processes

not_on_pypy = pytest.mark.skipif(platform.python_implementation() == "PyPy", reason="where it gives infinity")


@pytest.fixture(params=["reference", "compiled"])
def scalars(request):
    """The module with `Value` and the functions on lists of them, once for each twin."""
    if request.param == "reference":
        return reference
    return pytest.importorskip("microgpt._value", reason="the compiled half is not built")


def numbers(values):
    return [(value.data, value.grad) for value in values]


# --- Operations and their derivatives ---------------------------------------------------------------------------------

A, B = 1.7, -0.3
UNARY = {
    "neg": (lambda a: -a, -A, [-1.0]),
    "pow": (lambda a: a**3, A**3.0, [3.0 * A**2.0]),
    "fractional pow": (lambda a: a**-0.5, A**-0.5, [-0.5 * A**-1.5]),
    "exp": (lambda a: a.exp(), math.exp(A), [math.exp(A)]),
    "log": (lambda a: a.log(), math.log(A), [1 / A]),
    "relu": (lambda a: a.relu(), A, [1.0]),
    "tanh": (lambda a: a.tanh(), math.tanh(A), [1 - math.tanh(A) * math.tanh(A)]),
    "a + a": (lambda a: a + a, A + A, [2.0]),
    "a * a": (lambda a: a * a, A * A, [A + A]),
    "a + number": (lambda a: a + 2, A + 2.0, [1.0]),
    "number + a": (lambda a: 2 + a, A + 2.0, [1.0]),
    "a - number": (lambda a: a - 2, A - 2.0, [1.0]),
    "number - a": (lambda a: 2 - a, -A + 2.0, [-1.0]),
    "a * number": (lambda a: a * 3, A * 3.0, [3.0]),
    "number * a": (lambda a: 3 * a, A * 3.0, [3.0]),
    "a / number": (lambda a: a / 3, A * 3.0**-1.0, [3.0**-1.0]),
    "number / a": (lambda a: 3 / a, A**-1.0 * 3.0, [-1.0 * A**-2.0 * 3.0]),
}
BINARY = {
    "+": (lambda a, b: a + b, A + B, [1.0, 1.0]),
    "-": (lambda a, b: a - b, A + B * -1.0, [1.0, -1.0]),
    "*": (lambda a, b: a * b, A * B, [B, A]),
    "/": (lambda a, b: a / b, A * B**-1.0, [B**-1.0, -1.0 * B**-2.0 * A]),
}
OPERATIONS = [pytest.param(*case, id=name) for name, case in (UNARY | BINARY).items()]


@pytest.mark.parametrize(("operation", "data", "grads"), OPERATIONS)
def test_operation(scalars, operation, data, grads):
    operands = [scalars.Value(x) for x in (A, B)[: len(grads)]]
    result = operation(*operands)
    result.backward()
    assert result.data == data
    assert [operand.grad for operand in operands] == grads
    assert result.grad == 1.0


@pytest.mark.parametrize("data", [-2.0, 0.0, -0.0, math.nan])
def test_relu_of_what_is_not_positive(scalars, data):
    a = scalars.Value(data)
    result = a.relu()
    result.backward()
    assert (result.data, math.copysign(1.0, result.data), a.grad) == (0.0, 1.0, 0.0)


def test_augmented_assignment_makes_a_new_value(scalars):
    a = b = scalars.Value(3.0)
    a += 1
    a *= 2
    a -= 4
    a /= 8
    assert (a.data, b.data) == (0.5, 3.0)
    a.backward()
    assert b.grad == 0.25


def test_sum_and_max(scalars):
    values = [scalars.Value(x) for x in (0.1, 0.7, 0.2)]
    assert sum(values).data == 0.1 + 0.7 + 0.2
    assert max(values, key=lambda value: value.data) == values[1]


def test_micrograd_expression(scalars):
    """The example in micrograd's README."""
    a, b = scalars.Value(-4.0), scalars.Value(2.0)
    c = a + b
    d = a * b + b**3
    c += c + 1
    c += 1 + c + (-a)
    d += d * 2 + (b + a).relu()
    d += 3 * d + (b - a).relu()
    e = c - d
    f = e**2
    g = f / 2.0
    g += 10.0 / f
    g.backward()
    assert f"{g.data:.4f} {a.grad:.4f} {b.grad:.4f}" == "24.7041 138.8338 645.5773"


def test_micrograd_neuron(scalars):
    """Sums that start with a Value, as in micrograd's `Neuron`."""
    w, x, b = [scalars.Value(0.5), scalars.Value(-1.5)], [2.0, 3.0], scalars.Value(4.0)
    activation = sum((wi * xi for wi, xi in zip(w, x)), b).relu()
    activation.backward()
    assert activation.data == 0.5
    assert [p.grad for p in [*w, b]] == [2.0, 3.0, 1.0]


@pytest.mark.parametrize("number", [2, 2.0, True, np.float64(2.0), np.float32(2.0), np.int64(2), Fraction(2)], ids=repr)
def test_numbers_of_any_type(scalars, number):
    a, x = scalars.Value(3.0), float(number)
    assert scalars.Value(number).data == x
    results = [a + number, number + a, a - number, number - a, a * number, number * a, a / number, number / a]
    expected = [3.0 + x, 3.0 + x, 3.0 - x, x - 3.0, 3.0 * x, 3.0 * x, 3.0 * x**-1.0, 3.0**-1.0 * x]
    assert [result.data for result in results] == expected
    assert (a**number).data == 3.0**x
    a.data = a.grad = number
    assert repr(a) == f"Value(data={x}, grad={x})"


def test_array_of_values(scalars):
    a = scalars.Value(3.0)
    for product in (a * np.array([1.0, 2.0]), np.array([1.0, 2.0]) * a):
        assert [value.data for value in product] == [3.0, 6.0]


# --- backward ---------------------------------------------------------------------------------------------------------


def test_backward_of_a_leaf(scalars):
    a = scalars.Value(2.0)
    a.backward()
    assert a.grad == 1.0


def test_gradients_accumulate_until_they_are_set_to_zero(scalars):
    a = scalars.Value(3.0)
    for expected in (6.0, 12.0):
        (a * a).backward()
        assert a.grad == expected
    a.grad = 0
    (a * a).backward()
    assert a.grad == 6.0


def test_a_second_backward_passes_on_what_accumulated_between(scalars):
    a = scalars.Value(3.0)
    b = a * 2
    c = b * 5
    c.backward()
    c.backward()
    assert (c.grad, b.grad, a.grad) == (1.0, 10.0, 30.0)


def test_derivatives_are_those_at_the_time_of_the_operation(scalars):
    a, b = scalars.Value(3.0), scalars.Value(5.0)
    product = a * b
    a.data, b.data = 7.0, 11.0
    product.backward()
    assert (product.data, a.grad, b.grad) == (15.0, 5.0, 3.0)
    assert (a * b).data == 77.0


def test_backward_of_a_long_chain(scalars):
    a = scalars.Value(1.0)
    total = a
    for _ in range(100_000):
        total = total + a
    total.backward()
    assert (total.data, a.grad) == (100_001.0, 100_001.0)


def test_order_of_accumulation(scalars):
    """0.1, 0.2 and 0.3 add up to another number in another order: here a first gets 0.3, then 0.2, then 0.1."""
    a, b = scalars.Value(1.0), scalars.Value(1.0)
    (a * 0.1 + a * 0.2 + a * 0.3).backward()
    scalars.linear([b, b, b], [[0.1, 0.2, 0.3]])[0].backward()
    assert a.grad == b.grad == 0.3 + 0.2 + 0.1 != 0.1 + 0.2 + 0.3


# --- Errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("x", ["1", b"1", None, 1j, [1.0], {}], ids=repr)
def test_what_is_not_a_number(scalars, x):
    a = scalars.Value(1.0)
    for operation in (
        lambda: a + x, lambda: x + a, lambda: a - x, lambda: x - a, lambda: a * x, lambda: x * a, lambda: a / x,
        lambda: x / a, lambda: a**x, lambda: x**a,
    ):  # fmt: skip
        with pytest.raises(TypeError):
            operation()
    with pytest.raises(TypeError, match=r"^data must be a number, got "):
        scalars.Value(x)
    for name in ("data", "grad"):
        with pytest.raises(TypeError, match=f"^{name} must be a number, got "):
            setattr(a, name, x)
    assert numbers([a]) == [(1.0, 0.0)]


def test_an_operand_of_another_class_may_know_what_to_do(scalars):
    class Other:
        def __radd__(self, left):
            return ("radd", left)

        def __rpow__(self, left):
            return ("rpow", left)

    a = scalars.Value(1.0)
    assert a + Other() == ("radd", a)
    assert a ** Other() == ("rpow", a)


def test_exponents_are_numbers(scalars):
    with pytest.raises(TypeError, match=r"^the exponent of .* must be an int or a float, not a Value$"):
        scalars.Value(2.0) ** scalars.Value(3.0)
    with pytest.raises(TypeError):
        2 ** scalars.Value(3.0)


@pytest.mark.parametrize(
    ("data", "operation", "error"),
    [
        (0.0, lambda a: a.log(), ValueError),
        (-1.0, lambda a: a.log(), ValueError),
        (710.0, lambda a: a.exp(), OverflowError),
        pytest.param(1e200, lambda a: a**2, OverflowError, marks=not_on_pypy),
        (1e-200, lambda a: a**-2, OverflowError),
        (0.0, lambda a: a**-1, ZeroDivisionError),
        (0.0, lambda a: a**0, ZeroDivisionError),  # the derivative
        (0.0, lambda a: a / a, ZeroDivisionError),
        (0.0, lambda a: 1 / a, ZeroDivisionError),
        (1.0, lambda a: a / 0, ZeroDivisionError),
        (1.0, lambda a: a / 0.0, ZeroDivisionError),
        (-8.0, lambda a: a**0.5, ValueError),
        (1.0, lambda a: a * 10**400, OverflowError),
    ],
)
def test_arithmetic_errors(scalars, data, operation, error):
    a = scalars.Value(data)
    with pytest.raises(error) as caught:
        operation(a)
    with pytest.raises(error) as expected:
        operation(reference.Value(data))
    assert str(caught.value) == str(expected.value)


@pytest.mark.parametrize("data", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_passed_on(scalars, data):
    a = scalars.Value(data)
    expected = reference.Value(data)
    for operation in (lambda v: v + 1, lambda v: v * 0, lambda v: v**2, lambda v: v**-1, lambda v: v.tanh()):
        assert repr(operation(a)) == repr(operation(expected))
    assert repr(scalars.Value(1e308) * 10) == "Value(data=inf, grad=0.0)"


def test_the_constructor_tells_what_it_takes(scalars):
    if scalars is not reference and sysconfig.get_config_var("WITH_DOC_STRINGS") == 0:
        pytest.skip("this Python was built without the docstrings of compiled types")
    required = inspect.Parameter.empty
    assert defaults_of(scalars.Value) == {
        "data": required, "children": (), "local_grads": (), "op": "", "label": "",
    }  # fmt: skip
    assert inspect.getdoc(scalars.Value).startswith("A scalar that remembers how it was computed")


def test_constructor_errors(scalars):
    a = scalars.Value(1.0)
    with pytest.raises(TypeError, match=r"^children must be Values, got 2.0$"):
        scalars.Value(1.0, (a, 2.0), (1.0, 1.0))
    with pytest.raises(ValueError, match=r"^local_grads must have one number for each of 2 children, got 1$"):
        scalars.Value(1.0, (a, a), (1.0,))
    with pytest.raises(TypeError, match=r"^local_grads must be a number, got 'a'$"):
        scalars.Value(1.0, (a,), ("a",))
    with pytest.raises(TypeError, match=r"^op must be a string, got 5$"):
        scalars.Value(1.0, (a,), (1.0,), 5)
    with pytest.raises(TypeError, match=r"^children must be a sequence of Values, got Value\(data=1.0, grad=0.0\)$"):
        scalars.Value(1.0, a, (1.0,))
    with pytest.raises(TypeError, match=r"^local_grads must be a sequence of numbers, got 1.0$"):
        scalars.Value(1.0, (a,), 1.0)
    with pytest.raises(TypeError, match=r"^local_grads must be a sequence of numbers, got 'tanh'$"):
        scalars.Value(1.0, (a,), "tanh")  # micrograd's third argument


def test_there_are_no_subclasses(scalars):
    with pytest.raises(TypeError, match=r"Value' is not an acceptable base type$"):
        type("Own", (scalars.Value,), {})


# --- The graph --------------------------------------------------------------------------------------------------------


def test_walking_the_graph(scalars):
    a, b = scalars.Value(2.0), scalars.Value(3.0)
    product = a * b
    result = (product + a).tanh()
    (total,) = result._children
    assert total._children == (product, a)
    assert total._prev == {product, a}
    assert a._children == a._local_grads == ()
    assert a._prev == set()
    assert product._local_grads == (3.0, 2.0)
    assert total._local_grads == (1.0, 1.0)
    assert result._local_grads == (1 - math.tanh(8.0) * math.tanh(8.0),)


@pytest.mark.parametrize(
    ("operation", "op"),
    [
        (lambda a: a, ""),
        (lambda a: a + a, "+"),
        (lambda a: a * a, "*"),
        (lambda a: a**2, "**2"),
        (lambda a: a**0.5, "**0.5"),
        (lambda a: 1 / a, "*"),
        (lambda a: a.exp(), "exp"),
        (lambda a: a.log(), "log"),
        (lambda a: a.relu(), "ReLU"),
        (lambda a: a.tanh(), "tanh"),
    ],
)
def test_op(scalars, operation, op):
    assert operation(scalars.Value(2.0))._op == op


def test_one_value_is_one_object(scalars):
    a, b = scalars.Value(1.0), scalars.Value(1.0)
    assert a != b
    assert a == a
    assert a != 1.0
    c = a + b
    own = scalars.Value(1.0, (c, a), (1.0, 1.0))
    for children, expected in ((c._children, (a, b)), (own._children, (c, a)), ((c * c)._children, (c, c))):
        assert [child is value for child, value in zip(children, expected, strict=True)] == [True, True]
    assert next(iter(c.exp()._prev)) is c
    assert len({a, b, *c._children, *own._children}) == 3
    with pytest.raises(TypeError):
        _ = a < b


def test_functions_refer_to_the_objects_that_they_were_given(scalars):
    x, w = [scalars.Value(0.5), scalars.Value(-1.0)], [scalars.Value(2.0), scalars.Value(3.0)]
    (y,) = scalars.linear(x, [w])
    first, second = y._children
    assert [child is value for child, value in zip(second._children, (w[1], x[1]), strict=True)] == [True, True]
    assert first is y._children[0]
    assert scalars.rmsnorm(x)[1]._children[0] is x[1]
    assert scalars.softmax(x)[1]._children[0]._children[0]._children[0] is x[1]


def test_a_value_nobody_holds_is_the_same_object_when_found_again(scalars):
    a = scalars.Value(3.0)
    names = {id(a): "a"}

    def square_plus_one():
        square = a * a
        names[id(square)] = "square"
        return square + 1

    total = square_plus_one()
    gc.collect()
    others = [scalars.Value(float(i)) for i in range(1000)]
    assert names.keys().isdisjoint(map(id, others))
    assert [names.get(id(child)) for child in total._children] == ["square", None]
    assert [names.get(id(child)) for child in total._children[0]._children] == ["a", "a"]


def draw(root):
    """Nodes by the `id` of a value, and edges between them, as `draw_dot` of the micrograd lecture does it."""
    nodes, edges = set(), set()

    def build(value):
        if value not in nodes:
            nodes.add(value)
            for child in value._prev:
                edges.add((child, value))
                build(child)

    build(root)
    text = {str(id(n)): f"{{ {n.label} | data {n.data:.4f} | grad {n.grad:.4f} }} {n._op}" for n in nodes}
    return text, [(str(id(first)), str(id(second))) for first, second in edges]


def test_drawing_the_graph_of_the_micrograd_lecture(scalars):
    def expression():
        a, b, c = scalars.Value(2.0, label="a"), scalars.Value(-3.0, label="b"), scalars.Value(10.0, label="c")
        e = a * b
        e.label = "e"
        d = e + c
        d.label = "d"
        f = scalars.Value(-2.0, label="f")
        total = d * f
        total.label = "L"
        return total

    total = expression()
    total.backward()
    nodes, edges = draw(total)
    assert sorted(nodes.values()) == [
        "{ L | data -8.0000 | grad 1.0000 } *",
        "{ a | data 2.0000 | grad 6.0000 } ",
        "{ b | data -3.0000 | grad -4.0000 } ",
        "{ c | data 10.0000 | grad -2.0000 } ",
        "{ d | data 4.0000 | grad -2.0000 } +",
        "{ e | data -6.0000 | grad -2.0000 } *",
        "{ f | data -2.0000 | grad 4.0000 } ",
    ]
    assert len(edges) == 6
    assert {place for edge in edges for place in edge} == nodes.keys()


def test_labels(scalars):
    a = scalars.Value(1.0, label="a")
    b = a + 1
    assert (a.label, b.label, b._children[1].label) == ("a", "", "")
    b.label, a.label = "b", ""
    a.data = 5.0
    assert (a.label, b.label) == ("", "b")
    own = scalars.Value(1.0, (a,), (1.0,), "own", "mine")
    assert (own._op, own.label) == ("own", "mine")
    for wrong in (None, 1, b"b", a):
        with pytest.raises(TypeError, match=r"^label must be a string, got "):
            b.label = wrong
        with pytest.raises(TypeError, match=r"^label must be a string, got "):
            scalars.Value(1.0, label=wrong)
    assert b.label == "b"


def test_a_label_goes_with_its_value(scalars):
    """Slots of the tape are reused, and a search through the graph does not change labels."""
    a = scalars.Value(1.0, label="a")
    for _ in range(100):
        own = scalars.Value(1.0, (a,), (1.0,), "own", label="mine")
        labelled = own * 2
        labelled.label = "labelled"
        labelled.backward()
        assert (own._op, own.label, labelled.label, labelled._op) == ("own", "mine", "labelled", "*")
        del own, labelled
        fresh = [scalars.Value(1.0), a + a, a * 2]
        assert [(value.label, value._op) for value in fresh] == [("", ""), ("", "+"), ("", "*")]


def in_order(value, order):
    """Append all values below this one, and this one, in the order of a depth-first search."""
    if not any(other is value for other in order):
        for child in value._children:
            in_order(child, order)
        order.append(value)
    return order


def test_the_chain_rule_by_hand(scalars):
    """`_backward` of one value after the other, as in the micrograd lecture."""
    grads = []
    for by_hand in (False, True):
        x = [scalars.Value(0.5), scalars.Value(-1.25)]
        (y,) = scalars.linear(x, [[0.25, x[0]]])
        sine = scalars.Value(math.sin(y.data), (y, x[1]), (math.cos(y.data), 0.125), "sin")
        root = (sine * y).exp()
        if by_hand:
            root.grad = 1.0
            for value in reversed(in_order(root, [])):
                assert value._backward() is None
        else:
            root.backward()
        grads.append(numbers([*x, y, sine, root, *y._children]))
    assert grads[0] == grads[1]


def test_initialising_again(scalars):
    a = scalars.Value(2.0, label="a")
    b = a * a
    c = b + 1
    b.grad = 5.0
    b.__init__(3.0)
    assert (b.data, b.grad, b._children, b._op, c._children[0] is b) == (3.0, 0.0, (), "", True)
    c.backward()
    assert (b.grad, a.grad) == (1.0, 0.0)
    b.__init__(4.0, (a,), (0.5,), "half", "b")
    c.backward()
    assert (b._children, b._op, b.label, b.grad, a.grad) == ((a,), "half", "b", 1.0, 0.5)
    with pytest.raises(TypeError):
        b.__init__(1.0, (a, 1.0))
    assert (b.data, b._children, b.label) == (4.0, (a,), "b")
    a.__init__(1.0)
    assert (a.label, (a * 2).data) == ("", 2.0)


def test_a_child_outlives_its_parent(scalars):
    child = (scalars.Value(2.0) * 3 + 1)._children[0]
    gc.collect()
    others = [scalars.Value(float(i)) for i in range(100)]
    assert (child.data, child._op, len(others)) == (6.0, "*", 100)
    assert [grandchild.data for grandchild in child._children] == [2.0, 3.0]
    child.data = 7.0
    assert (child + 1).data == 8.0


def test_an_operation_of_ones_own(scalars):
    a, b, c = (scalars.Value(x) for x in (0.5, 2.0, 3.0))
    sine = scalars.Value(math.sin(a.data), (a,), (math.cos(a.data),), "sin")
    product = scalars.Value(sine.data * 6, (sine, b, c, b), (6.0, 0.5, 0.25, 0.125), op="product")
    (product * 2).backward()
    assert (sine._op, product._op, product._children, sine._local_grads) == (
        "sin", "product", (sine, b, c, b), (math.cos(0.5),),
    )  # fmt: skip
    assert [value.grad for value in (sine, b, c, a)] == [12.0, 1.25, 0.5, 12.0 * math.cos(0.5)]
    assert scalars.Value(1.0, op="input")._op == "input"
    with pytest.raises(TypeError, match=r"^op must be a string, got None$"):
        scalars.Value(1.0, (a,), (1.0,), None)
    assert repr(scalars.Value(1.0, (a, b), (2, True))._local_grads) == "(2.0, 1.0)"


def test_repr(scalars):
    a = scalars.Value(2)
    a.grad = -1
    assert repr(a) == "Value(data=2.0, grad=-1.0)"


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copies_are_leaves(scalars, duplicate):
    a = scalars.Value(2.0) * 3
    a.grad = 0.5
    assert duplicate(a).label == ""
    a.label = "a"
    twin = duplicate(a)
    assert numbers([twin]) == numbers([a])
    assert twin.label == "a"
    assert (twin._children, twin == a) == ((), False)
    twin.data = 1.0
    assert a.data == 6.0


# --- linear, softmax, rmsnorm -----------------------------------------------------------------------------------------


def linear(x, w):
    return [sum(wi * xi for wi, xi in zip(wo, x)) for wo in w]


def softmax(logits):
    largest = max(logit.data for logit in logits)
    exponentials = [(logit - largest).exp() for logit in logits]
    total = sum(exponentials)
    return [e / total for e in exponentials]


def rmsnorm(x):
    mean_square = sum(xi * xi for xi in x) / len(x)
    scale = (mean_square + 1e-5) ** -0.5
    return [xi * scale for xi in x]


def graph(value):
    """The graph below a value: data, grad, operation, local derivatives, children, where each is spelled out once."""
    places = {}

    def describe(value):
        if value in places:
            return places[value]
        children = [describe(child) for child in value._children]
        places[value] = len(places)
        return (value.data, value.grad, value._op, value._local_grads, children)

    return describe(value)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_functions_make_the_nodes_that_they_stand_for(scalars, length):
    """In x, each value but the first is computed from the one before, so that any order of the nodes shows."""
    graphs = []
    for functions in ((linear, softmax, rmsnorm), (scalars.linear, scalars.softmax, scalars.rmsnorm)):
        x = [scalars.Value(0.3)]
        for _ in range(length - 1):
            x.append(x[-1] * 1.7 + 0.1)
        w = [[scalars.Value(0.7 * i - 0.37 * j) for j in range(length)] for i in range(3)]
        w += [x[::-1], x[1:] + x[:1]]
        hidden = functions[0](functions[2](x), w)
        loss = -sum(p.log() for p in functions[1](hidden)) + sum(functions[2](hidden))
        loss.backward()
        first = numbers([*x, *(wi for wo in w for wi in wo)])
        loss.backward()
        graphs.append((first, graph(loss)))
    assert graphs[0] == graphs[1]


def test_a_gradient_of_minus_zero(scalars):
    """Gradients start with 0.0, and 0.0 + -0.0 is 0.0, also in the nodes between the result and x."""
    x = scalars.Value(1.0)
    (y,) = scalars.linear([x], [[2.0]])
    x.grad = y.grad = -0.0
    (y * -0.0).backward()
    assert [repr(value.grad) for value in (x, y, *y._children)] == ["0.0", "-0.0", "0.0", "0.0"]


def test_functions_take_numbers(scalars):
    a = scalars.Value(2.0)
    (y,) = scalars.linear((a, 3.0), [(0.5, a)])
    y.backward()
    assert (y.data, a.grad) == (7.0, 3.5)
    (y,) = scalars.linear([1, 2.0], [[3, np.float64(4.0)]])
    assert y.data == 11.0
    assert [p.data for p in scalars.softmax([1, 1.0])] == [0.5, 0.5]
    assert [n.data for n in scalars.rmsnorm(n for n in (0, 0.0))] == [0.0, 0.0]
    for wrong in (["1"], 1.0):
        for function in (
            scalars.softmax, scalars.rmsnorm, lambda x: scalars.linear(x, []), lambda x: scalars.linear([], [x]),
        ):  # fmt: skip
            with pytest.raises(TypeError):
                function(wrong)


def test_functions_of_nothing(scalars):
    assert scalars.linear([scalars.Value(1.0)], []) == []
    assert scalars.linear([], [[scalars.Value(1.0)]]) == [0]
    assert scalars.linear([], []) == []  # not the edges of the call before
    with pytest.raises(ValueError, match=r"^logits must have at least one element$"):
        scalars.softmax([])
    with pytest.raises(ValueError, match=r"^x must have at least one element$"):
        scalars.rmsnorm(())


def test_linear_ignores_the_rest_of_the_longer(scalars):
    x = [scalars.Value(2.0), scalars.Value(3.0)]
    y = scalars.linear(x, [[5.0], [5.0, 7.0, 11.0]])
    assert [yi.data for yi in y] == [10.0, 31.0]
    del x
    assert [child.data for child in y[0]._children] == [10.0, 0.0]
    assert [child.data for child in y[1]._children] == [10.0, 21.0]


def test_linear_sees_what_changed_between_calls(scalars):
    """Calls with the same rows share their edges, as long as the rows are unchanged."""
    results = []
    for function in (linear, scalars.linear):
        x = [scalars.Value(0.1 * i) for i in range(4)]
        w = [scalars.Value(0.7 - 0.3 * i) for i in range(4)]
        y = [*function(x, [w, w[:2]]), *function(x, [w]), *function(x[:3], [w])]
        w[3].data = 5.0
        y += function(x, [w])
        w[3].data, x[0].data = 0.0, -1.0
        y += function(x, [w])
        w[3].data = -0.0
        y += function([-0.0, *x[1:]], [w])
        w[1], w[2] = w[2], w[1]
        y += function(x, [w, w[::-1]])
        sum(y[:-1]).backward()
        y[-1].backward()
        results.append(repr(numbers([*x, *w, *y, *y[-1]._children])))
        del y
        (z,) = function(x, [w])
        z.backward()
        results[-1] += repr(numbers([z, *x, *w]))
    assert results[0] == results[1]


def test_compute_softmax_is_the_seeds_name(scalars):
    assert scalars.compute_softmax is scalars.softmax


def test_the_package_exports_the_twin_that_runs():
    module = reference if microgpt.backend_info().backend == "reference" else sys.modules["microgpt._value"]
    for name in ("Value", "linear", "softmax", "compute_softmax", "rmsnorm"):
        assert getattr(microgpt, name) is getattr(module, name)


def test_the_environment_is_asked_for_a_backend_once(monkeypatch):
    before = microgpt.backend_info()
    monkeypatch.setenv("MICROGPT_BACKEND", "reference" if before.backend == "compiled" else "compiled")
    assert microgpt.backend_info() == before
    assert microgpt.GPT(microgpt.GPTConfig(vocab_size=3)).backend == before.backend


# --- Adam -------------------------------------------------------------------------------------------------------------


def test_adam_is_the_seeds_loop(scalars):
    data, grads = [0.3, -1.7, 1e-9, 4.0], [0.1, -2.3, 1e-12, 0.0]
    params = [scalars.Value(x) for x in data]
    optimizer = microgpt.Adam(params, learning_rate=0.01, beta1=0.85, beta2=0.99, eps=1e-8)
    m, v = [0.0] * 4, [0.0] * 4
    for step in range(5):
        lr_t = 0.01 * (1 - step / 5)
        for i, (p, grad) in enumerate(zip(params, grads)):
            p.grad = grad * (step + 1)
            m[i] = 0.85 * m[i] + (1 - 0.85) * p.grad
            v[i] = 0.99 * v[i] + (1 - 0.99) * p.grad**2
            m_hat = m[i] / (1 - 0.85 ** (step + 1))
            v_hat = v[i] / (1 - 0.99 ** (step + 1))
            data[i] -= lr_t * m_hat / (v_hat**0.5 + 1e-8)
        optimizer.step(lr_t)
        assert numbers(params) == [(x, 0.0) for x in data]
    assert (optimizer.m.tolist(), optimizer.v.tolist(), optimizer.step_count) == (m, v, 5)


def test_adam_has_the_references_defaults():
    (_, *ours), (_, *references) = (defaults_of(adam).items() for adam in (microgpt.Adam, reference.Adam))
    assert ours == references


def test_adam_uses_its_own_learning_rate(scalars):
    a, b = scalars.Value(1.0), scalars.Value(1.0)
    a.grad = b.grad = 0.5
    microgpt.Adam(iter([a]), 0.25).step()
    microgpt.Adam([b], 0.01).step(0.25)
    assert a.data == b.data != 1.0


def test_adam_moves_a_value_that_is_there_twice_once(scalars):
    """Tied weights: the original's loop finds no gradient at the second place."""
    tied, single = scalars.Value(1.0), scalars.Value(1.0)
    twice, once = (microgpt.Adam(params, weight_decay=0.1, max_grad_norm=1.0) for params in ([tied, tied], [single]))
    for grad in (0.5, -2.0, 0.25):
        tied.grad = single.grad = grad
        twice.step()
        once.step()
        assert numbers([tied]) == numbers([single])


def test_adam_decays_weights_and_clips_gradients(scalars):
    data, grads = [0.3, -1.7, 2.0], [0.1, -2.3, 0.5]
    params = [scalars.Value(x) for x in data]
    optimizer = microgpt.Adam(params, 0.01, weight_decay=0.5, max_grad_norm=1.0)
    m, v = [0.0] * 3, [0.0] * 3
    for step in range(4):
        scaled = [g / 10**step for g in grads]
        norm = math.sqrt(scaled[0] * scaled[0] + scaled[1] * scaled[1] + scaled[2] * scaled[2])
        scale = 1.0 / norm if norm > 1.0 else 1.0
        for i, (p, grad) in enumerate(zip(params, scaled)):
            p.grad = grad
            m[i] = 0.85 * m[i] + (1 - 0.85) * (scale * grad)
            v[i] = 0.99 * v[i] + (1 - 0.99) * (scale * grad) ** 2
            root = (v[i] / (1 - 0.99 ** (step + 1))) ** 0.5
            data[i] = (1 - 0.01 * 0.5) * data[i] - 0.01 * (m[i] / (1 - 0.85 ** (step + 1))) / (root + 1e-8)
        optimizer.step()
        assert numbers(params) == [(x, 0.0) for x in data]


def test_adam_of_nothing(scalars):
    microgpt.Adam([]).step()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_adam_is_copied_with_its_values(scalars, duplicate):
    a, b = scalars.Value(1.0), scalars.Value(2.0)
    optimizer = microgpt.Adam(iter([a, b, a]), 0.1)
    for values, adam in (([a, b], optimizer), duplicate(([a, b], optimizer))):
        for value in values:
            value.grad = 0.5
        adam.step()
        assert adam.step_count == 1
        assert numbers(values) == [(pytest.approx(0.9), 0.0), (pytest.approx(1.9), 0.0)]


def test_adam_errors(scalars):
    a = scalars.Value(1.0)
    for values, message in (([a, a, 1.0], "got float at position 2"), ([[a]], "got list at position 0")):
        with pytest.raises(TypeError, match=rf"^model must be a GPT or Values of one backend, {message}$"):
            microgpt.Adam(values)
    with pytest.raises(TypeError, match=r"^model must be a GPT or Values, got Value$"):
        microgpt.Adam(a)
    with pytest.raises(ValueError, match=r"^beta1 must be "):
        microgpt.Adam([a], beta1=1.0)
    with pytest.raises(ValueError, match=r"^learning_rate must be "):
        microgpt.Adam([a]).step(-1.0)


# --- Memory, threads, processes ---------------------------------------------------------------------------------------


def test_memory_is_given_back(scalars):
    tracemalloc = pytest.importorskip("tracemalloc", reason="PyPy does not count its memory so")
    a, x = scalars.Value(0.5), [scalars.Value(0.1 * i) for i in range(10)]
    cycles = 500  # without the GIL, Python itself keeps 2 kB, after however many

    def cycle():
        loss = sum(scalars.softmax(scalars.linear(scalars.rmsnorm(x), [x, x[::-1]]))) * a + (a**2).log() - a / 3
        own = scalars.Value(1.0, (a, loss, a), (1.0, 2.0, 3.0), f"own {loss.data}")
        own.backward()
        return own._children[1]._children

    handles = [scalars.Value(0.0) for _ in range(2000)]  # their memory is kept for the next ones
    del handles
    for _ in range(10):
        cycle()
    gc.collect()
    tracemalloc.start()
    grown = []
    try:
        cycle()
        gc.collect()
        for _ in range(3):  # other threads allocate as well, such as the one that pytest-xdist listens with
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(cycles):
                cycle()
            gc.collect()
            grown.append(tracemalloc.get_traced_memory()[0] - before)
    finally:
        tracemalloc.stop()
    assert min(grown) < 10 * cycles


@needs_processes
def test_two_threads(scalars):
    results = {}

    def work(seed):
        a = scalars.Value(seed)
        for _ in range(300):
            total = a
            for _ in range(20):
                total = total * 0.5 + a
            total.backward()
        results[seed] = (total.data, a.grad)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (1.0, 2.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = dict(results)
    for seed in (1.0, 2.0):
        work(seed)
    assert together == results


def in_threads(*functions):
    """The results of these functions, each called in a thread of its own; all threads start together."""
    barrier = threading.Barrier(len(functions))

    def called(function):
        barrier.wait()
        return function()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(len(functions)) as pool:
            return list(pool.map(called, functions))
    finally:
        sys.setswitchinterval(interval)


def loss_of(scalars, w, seed):
    """A graph from shared parameters, and numbers and functions of its own."""
    x = [scalars.Value(0.1 * seed + 0.01 * i) for i in range(len(w[0]))]
    probabilities = scalars.softmax(scalars.linear(scalars.rmsnorm(x), w))
    own = scalars.Value(math.sin(x[0].data), (x[0],), (math.cos(x[0].data),), f"sin {seed}")
    return -probabilities[0].log() + own * w[0][0] + x[1].tanh() / 3


def parameters(scalars):
    return [[scalars.Value(0.2 * i - 0.3 * j) for i in range(5)] for j in range(4)]


@needs_processes
def test_a_graph_of_values_from_several_threads(scalars):
    together, alone = parameters(scalars), parameters(scalars)
    losses = in_threads(*[partial(loss_of, scalars, together, seed) for seed in range(4)])
    (total,) = in_threads(lambda: sum(losses))
    total.backward()
    expected = sum(loss_of(scalars, alone, seed) for seed in range(4))
    expected.backward()
    assert total.data == expected.data
    for row, expected_row in zip(together, alone):
        assert numbers(row) == numbers(expected_row)
    in_threads(total.backward)  # again, by a thread that has made nothing, so that a dot's gradients accumulate
    expected.backward()
    for row, expected_row in zip(together, alone):
        assert numbers(row) == numbers(expected_row)


@needs_processes
def test_threads_add_to_the_gradients_of_shared_parameters():
    """In the reference, `grad` may change between the reading and the writing of another thread's `+=`."""
    compiled = pytest.importorskip("microgpt._value", reason="the compiled half is not built")
    w, rounds = [[compiled.Value(1.0), compiled.Value(2.0)]], 300

    def train(x):
        for _ in range(rounds):
            (output,) = compiled.linear([x, 1.0], w)
            (output + w[0][0] * 3).backward()

    in_threads(*[partial(train, x) for x in (1.0, 2.0, 4.0)])
    assert [value.grad for value in w[0]] == [rounds * (7.0 + 9.0), rounds * 3.0]


@needs_processes
def test_values_outlive_the_thread_that_made_them(scalars):
    """Their places are used again by later threads, but not while they live."""
    kept = []
    for seed in range(30):
        w = parameters(scalars)
        (loss,) = in_threads(partial(loss_of, scalars, w, seed))
        loss.label = f"loss {seed}"
        kept = [*kept[-3:], (seed, w, loss)]  # the others die here
    for seed, w, loss in kept:
        expected = loss_of(scalars, parameters(scalars), seed)
        assert (loss.data, loss.label) == (expected.data, f"loss {seed}")
        loss.backward()
        assert w[0][0].grad != 0.0


@needs_processes
def test_threads_that_walk_a_graph_find_the_same_objects(scalars):
    """Reading the children of a dot product makes the nodes that it stands for: once."""

    def walk(root):
        found, new = {}, [root]
        while new:
            value = new.pop()
            found[id(value)] = value
            new += [child for child in value._children if id(child) not in found]
        return found

    for seed in range(20):
        loss = loss_of(scalars, parameters(scalars), seed)
        first, *others = in_threads(partial(walk, loss), partial(walk, loss), partial(walk, loss), loss.backward)[:3]
        for other in others:
            assert other.keys() == first.keys()


@needs_processes
def test_threads_use_one_graph_while_it_grows_and_dies(scalars):
    """Every value that is left is what its operation gives for its children."""
    shared = [scalars.Value(0.1 * i) for i in range(20)]

    def work(seed):
        draw = random.Random(seed)
        for step in range(400):
            a, b = draw.choices(shared, k=2)
            new = [a + b, a * b, a.tanh(), scalars.linear([a, b, 2.0], [[b, a, a]])[0]][step % 4]
            if abs(new.data) < 100:
                shared[draw.randrange(len(shared))] = new
            if step % 20 == 0:
                new.backward()
            if step % 20 == 10:
                shared[draw.randrange(len(shared))] = scalars.Value(step / 400, label=f"{seed}")

    in_threads(*[partial(work, seed) for seed in range(4)])
    operations = {"+": math.fsum, "*": math.prod, "tanh": lambda data: math.tanh(*data)}
    found, new = {}, list(shared)
    while new and len(found) < 5000:
        value = new.pop()
        found[id(value)] = value
        new += [child for child in value._children if id(child) not in found]
        if value._children:
            assert value.data == operations[value._op]([child.data for child in value._children])


@needs_processes
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_fork(scalars):
    a = scalars.Value(3.0)
    b = a * a
    child = os.fork()
    if child == 0:
        (b * 2).backward()
        os._exit(int(a.grad))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 12
    assert a.grad == 0.0


OUT_OF_MEMORY = """
import resource
from microgpt._value import Value

a = Value(1.0)
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
total, count = a, 0
try:
    while True:
        total, count = total + a, count + 1
except MemoryError:
    pass
try:
    total.backward()
    assert (a.grad, total.grad) == (count + 1.0, 1.0)
except MemoryError:
    assert (a.grad, total.grad) == (0.0, 0.0)
assert total.data == count + 1.0
del total
a.grad = 0
total = a * a
total.backward()
assert a.grad == 2.0
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_running_out_of_memory_corrupts_nothing():
    pytest.importorskip("microgpt._value", reason="the compiled half is not built")
    if os.environ.get("LD_PRELOAD"):
        pytest.skip("the sanitizers need more address space than the limit leaves")
    subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], check=True)
