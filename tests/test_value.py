"""`Value`: operations, backward, errors, and the graph; each test runs on both twins."""

import copy
import gc
import inspect
import math
import pickle
import platform
import sysconfig
from fractions import Fraction

import numpy as np
import pytest

from microgpt import reference
from microgpt.training.recipe import defaults_of

from conftest import numbers

not_on_pypy = pytest.mark.skipif(platform.python_implementation() == "PyPy", reason="where it gives infinity")


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
