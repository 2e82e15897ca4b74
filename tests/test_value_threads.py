"""Memory, threads and processes that `Value`s live in; each test runs on both twins."""

import gc
import math
import os
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from conftest import needs_processes, numbers


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
