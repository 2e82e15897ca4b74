"""`linear`, `softmax`, `rmsnorm`, and `Adam` over Values; each test runs on both twins."""

import copy
import math
import pickle
import sys

import numpy as np
import pytest

import microgpt
from microgpt import reference
from microgpt.training.recipe import defaults_of

from conftest import numbers

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


def test_compute_softmax_is_the_originals_name(scalars):
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


def test_adam_is_the_originals_loop(scalars):
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
