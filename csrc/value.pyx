# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, c_api_binop_methods=True
# cython: freethreading_compatible=True
"""`Value`, `linear`, `softmax`, `rmsnorm`: the compiled twin of the first half of `microgpt.reference`.

The nodes are on the tape of `scalar_tape.h`, and a Value is a place there.

Threads: a value may be computed from values of any thread, and `backward` may cross threads. tape_room.h says how.
Forks: the tape is plain memory without a thread of its own, so a forked process continues with its copy.
"""
cimport cython
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_AsDouble, PyFloat_Check
from cpython.long cimport PyLong_AsDouble
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_FromObject
from libc.math cimport exp, isfinite, log, pow, tanh
from libc.stdint cimport int32_t, int64_t, uint8_t

import math

import numpy

from microgpt.engine.arrays import aligned_zeros

cdef extern from "Python.h":
    object PySequence_Fast(object, const char *message)
    PyObject **PySequence_Fast_ITEMS(object)
    Py_ssize_t PySequence_Fast_GET_SIZE(object)
    int PyObject_GenericSetAttr(object, object, object) except -1
    ctypedef struct PyTypeObject:
        Py_ssize_t tp_basicsize
        PyObject *(*tp_alloc)(PyTypeObject *, Py_ssize_t) except NULL
        void (*tp_dealloc)(PyObject *) noexcept
    void PyErr_Fetch(PyObject **, PyObject **, PyObject **)
    void PyErr_Restore(PyObject *, PyObject *, PyObject *)

cdef extern from "scalar_tape.h":
    """
    #define owned(handle) ((void *)(handle))  /* Cython takes what a function gives for a new reference */
    #ifdef Py_GIL_DISABLED
    #define GIL_DISABLED 1
    #else
    #define GIL_DISABLED 0
    #endif
    """
    enum: GIL_DISABLED
    enum: NONE, MAXIMUM, DONE, NO_MEMORY, TOO_MANY_NODES
    enum: OP_LEAF, OP_ADD, OP_MULTIPLY, OP_POWER, OP_EXP, OP_LOG, OP_RELU, OP_TANH, OP_DOT, OP_CUSTOM
    ctypedef int32_t Node
    ctypedef struct Handle:
        PyObject head
        bint named
    ctypedef struct Edges:
        int32_t count
        Node *nodes
        double *numbers
    ctypedef union Operands:
        Node children[2]
        Edges *edges
    ctypedef union Details:
        double local_grads[2]
    ctypedef struct Tape:
        uint8_t *operation
        Operands *operands
        Details *details
        double *data
        double *grad
    Tape tape
    int begin_tape(PyTypeObject *type, void (*forget)(Node) noexcept)
    int reserve_nodes(int64_t count)
    Handle *handle_of(Node)
    ctypedef struct Writer:
        pass
    Writer *owner_of(Node)
    void hold(Writer *owner)
    void let_go(Writer *owner)
    Node incref(object value)
    Node new_leaf(double data)
    Node new_sum(Node a, Node b)
    Node new_product(Node a, Node b)
    Node new_unary(int operation, Node a, double data, double local_grad)
    Node new_power(Node base, double exponent, double data, double local_grad)
    Node new_dot(Edges *edges, Edges *factors)
    int new_edges(int64_t count, Edges **result)
    int edges_to(PyObject **values, int64_t count, Edges **result)
    void drop_edges(Edges *edges)
    void free_value(PyObject *value)
    void initialise(Node node, double data, Edges *edges)
    int expand(Node node)
    int sweep(Node root)
    int sweep_alone(Node node)
    Value owned(Handle *)


cdef int check(int status) except -1:
    """Raise the error of a function of the tape, if there is one."""
    if status == DONE:
        return 0
    if status == NO_MEMORY:
        raise MemoryError("no memory for more values")
    raise OverflowError(f"at most {MAXIMUM} {'values' if status == TOO_MANY_NODES else 'edges'} can be alive at once")


cdef inline int reserve(int64_t count) except -1:
    """Make room for this many nodes: making them then cannot fail."""
    cdef int status = reserve_nodes(count)
    return 0 if status == DONE else check(status)


# --- Numbers ----------------------------------------------------------------------------------------------------------

cdef inline int as_number(object x, double *number) except -1:
    """Whether `x` is a number; if so, `number` is set to it."""
    if PyFloat_Check(x):
        number[0] = PyFloat_AS_DOUBLE(x)
    elif type(x) is int:
        number[0] = PyLong_AsDouble(x)
    else:
        try:
            number[0] = PyFloat_AsDouble(x)
        except TypeError:
            return False
    return True


cdef tuple items_of(str name, str what, object x):
    if type(x) is tuple:
        return x
    if isinstance(x, str) or not hasattr(x, "__iter__"):
        raise TypeError(f"{name} must be a sequence of {what}, got {x!r}")
    return tuple(x)


cdef int check_string(str name, object x) except -1:
    if not isinstance(x, str):
        raise TypeError(f"{name} must be a string, got {x!r}")
    return 0


cdef double number_of(str name, object x) except? -1:
    cdef double number = 0.0
    if not as_number(x, &number):
        raise TypeError(f"{name} must be a number, got {x!r}")
    return number


# The C library's functions, where they agree with Python's. Elsewhere Python's own, which raise Python's errors.

cdef inline double power(double x, double exponent) except? -1:
    cdef double result = pow(x, exponent)
    if isfinite(result) and result != 0.0:
        return result
    return python_power(x, exponent)


cdef double python_power(object x, object exponent) except? -1:
    result = x**exponent
    if type(result) is complex:
        raise ValueError(f"a negative value to a fractional power is not a real number: {x}**{exponent}")
    return result


cdef inline double exponential(double x) except? -1:
    cdef double result = exp(x)
    return result if isfinite(result) else math.exp(x)


cdef inline double logarithm(double x) except? -1:
    return log(x) if x > 0.0 and isfinite(x) else math.log(x)


# --- Value ------------------------------------------------------------------------------------------------------------

cdef dict NAMES = {
    OP_LEAF: "", OP_ADD: "+", OP_MULTIPLY: "*", OP_DOT: "+",
    OP_EXP: "exp", OP_LOG: "log", OP_RELU: "ReLU", OP_TANH: "tanh",
}

cdef dict ops = {}  # by node: names of custom operations
cdef dict labels = {}  # by node


cdef int set_name(dict names, Node node, str name) except -1:
    """Give a node this name, until it gets another one or is freed."""
    names[node] = PyUnicode_FromObject(name)  # a subclass may have a destructor, to run while nodes are freed
    handle_of(node).named = True
    return 0


cdef str name_of(dict names, Node node):
    return names.get(node, "") if handle_of(node).named else ""


cdef void forget_names(Node node) noexcept:
    cdef PyObject *error[3]  # an exception may be propagating while nodes are freed
    PyErr_Fetch(&error[0], &error[1], &error[2])
    ops.pop(node, None)
    labels.pop(node, None)
    PyErr_Restore(error[0], error[1], error[2])


cdef inline Value new_value(Node node):
    """The Value of a node, whose reference it takes over. Cannot fail."""
    return owned(handle_of(node))


cdef inline Value value_of(Node node):
    """The Value of a node, with a new reference."""
    return <Value>&handle_of(node).head


cdef PyObject *allocate(PyTypeObject *type, Py_ssize_t items) except NULL:
    """A new leaf for `__init__` to fill: the memory of Values is on the tape."""
    reserve(1)
    return &handle_of(new_leaf(0.0)).head


cdef inline Node operand(object x) except -1:
    """A new reference to the node of a Value or to a leaf for a number, NONE for anything else; room for one more."""
    cdef double number = 0.0
    if type(x) is Value:
        reserve(1)
        return incref(x)
    if not as_number(x, &number):
        return NONE
    reserve(2)
    return new_leaf(number)


cdef inline object plus(Value a, object other):
    cdef Node b = operand(other)
    return NotImplemented if b == NONE else new_value(new_sum(incref(a), b))


cdef inline object times(Value a, object other):
    cdef Node b = operand(other)
    return NotImplemented if b == NONE else new_value(new_product(incref(a), b))


cdef inline Node new_power_of(Value base, double exponent) except -1:
    """The node base**exponent, with room for two more."""
    cdef double x = tape.data[base.node]
    cdef double data = power(x, exponent), local_grad = exponent * power(x, exponent - 1.0)
    reserve(3)
    return new_power(incref(base), exponent, data, local_grad)


cdef tuple children_of(Node node):
    """The children of a node whose owner is held."""
    cdef list children = []  # first: a new list can start the garbage collector, which can run any code
    cdef int operation = tape.operation[node]
    cdef Edges *edges
    cdef Node a, b
    if operation == OP_LEAF:
        return ()
    if operation == OP_CUSTOM:
        edges = tape.operands[node].edges
        for k in range(edges.count):
            children.append(value_of(edges.nodes[k]))
        return tuple(children)
    if operation == OP_DOT:
        check(expand(node))
    a, b = tape.operands[node].children[0], tape.operands[node].children[1]
    return (value_of(a),) if b == NONE else (value_of(a), value_of(b))


cdef tuple local_grads_of(Node node):
    """The derivatives with respect to them."""
    cdef list numbers = []  # as above
    cdef int operation = tape.operation[node]
    cdef double *local_grads = tape.details[node].local_grads
    cdef Edges *edges
    if operation == OP_LEAF:
        return ()
    if operation == OP_ADD or operation == OP_DOT:
        return (1.0, 1.0)
    if operation == OP_MULTIPLY:
        return (local_grads[0], local_grads[1])
    if operation == OP_CUSTOM:
        edges = tape.operands[node].edges
        for k in range(edges.count):
            numbers.append(edges.numbers[k])
        return tuple(numbers)
    return (local_grads[0],)


@cython.final
cdef class Value:
    # The first lines are where `inspect.signature` finds what the constructor takes.
    """Value(data, children=(), local_grads=(), op="", label="")\n--\n
    A scalar that remembers how it was computed, so that `backward` can differentiate through it.

    Args:
        data: the number.
        children, local_grads, op: for an operation of your own: the values that it was computed from, the derivative
            with respect to each, and a name. `Value(math.sin(x.data), (x,), (math.cos(x.data),), "sin")`
        label: a name for this value, for drawings of the graph.

    Attributes:
        data: the number, a float.
        grad: the derivative of whatever `backward` was called on with respect to this number, a float. It accumulates
            over calls of `backward` until it is set to 0.
        label: the name, a string, at first empty.

    These can be set at any time; derivatives are those at the numbers that went into an operation when it was made.
    Operands and exponents may be numbers of any type; `TypeError` for anything else. Division by zero, overflow and
    the logarithm of 0 raise what they raise for floats. Copies and pickles keep `data`, `grad` and `label`, and forget
    what the value was computed from. It cannot be subclassed.

    Source: `class Value` of microgpt, with the names of micrograd's beside them. The graph can be read by either's:
    `_children` and `_local_grads` (tuples), `_prev` (a set), `_op`. A value is one object, however it is reached, as
    long as a value computed from it exists; only identical values are equal. `_backward` is a method: unlike in
    micrograd, an operation of your own is defined by its `local_grads`.
    """

    # The fields of a Handle.
    cdef Node node
    cdef bint named

    def __init__(self, data, children=(), local_grads=(), op="", label=""):
        cdef double number = number_of("data", data)
        cdef tuple values = items_of("children", "Values", children)
        cdef list slopes = [number_of("local_grads", x) for x in items_of("local_grads", "numbers", local_grads)]
        cdef Edges *edges = NULL
        cdef int32_t k
        for child in values:
            if type(child) is not Value:
                raise TypeError(f"children must be Values, got {child!r}")
        if len(values) != len(slopes):
            raise ValueError(
                f"local_grads must have one number for each of {len(values)} children, got {len(slopes)}"
            )
        check_string("op", op)
        check_string("label", label)
        if op or self.named:
            set_name(ops, self.node, op)
        if label or self.named:
            set_name(labels, self.node, label)
        if values or op:
            reserve(0)
            check(new_edges(len(values), &edges))
            for k in range(edges.count):
                edges.nodes[k] = incref(values[k])
                edges.numbers[k] = slopes[k]
        initialise(self.node, number, edges)

    @property
    def data(self):
        return tape.data[self.node]

    @property
    def grad(self):
        return tape.grad[self.node]

    @property
    def label(self):
        return name_of(labels, self.node)

    def __setattr__(self, name, value):  # faster than property setters
        if name == "grad":
            tape.grad[self.node] = number_of("grad", value)
        elif name == "data":
            tape.data[self.node] = number_of("data", value)
        elif name == "label":
            check_string("label", value)
            set_name(labels, self.node, value)
        else:
            PyObject_GenericSetAttr(self, name, value)

    # In the binary operators, either side may be the Value.
    def __add__(left, right):
        return plus(<Value>left, right) if type(left) is Value else plus(<Value>right, left)

    def __mul__(left, right):
        return times(<Value>left, right) if type(left) is Value else times(<Value>right, left)

    def __neg__(self):
        reserve(2)
        return new_value(new_product(incref(self), new_leaf(-1.0)))

    def __sub__(left, right):
        """left + right * -1, and left + -right for a number on the right."""
        cdef double number = 0.0
        if type(right) is not Value:
            if not as_number(right, &number):
                return NotImplemented
            reserve(2)
            return new_value(new_sum(incref(left), new_leaf(-number)))
        if type(left) is not Value:
            if not as_number(left, &number):
                return NotImplemented
            reserve(4)
            return new_value(new_sum(new_product(incref(right), new_leaf(-1.0)), new_leaf(number)))
        reserve(3)
        return new_value(new_sum(incref(left), new_product(incref(right), new_leaf(-1.0))))

    def __truediv__(left, right):
        """left * right**-1."""
        cdef double number = 0.0
        if type(right) is not Value:
            if not as_number(right, &number):
                return NotImplemented
            number = power(number, -1.0)
            reserve(2)
            return new_value(new_product(incref(left), new_leaf(number)))
        if type(left) is not Value:
            if not as_number(left, &number):
                return NotImplemented
            return new_value(new_product(new_power_of(<Value>right, -1.0), new_leaf(number)))
        return new_value(new_product(incref(left), new_power_of(<Value>right, -1.0)))

    def __pow__(left, right, modulo):
        cdef double exponent = 0.0
        if modulo is not None or type(left) is not Value:
            return NotImplemented
        if type(right) is Value:
            raise TypeError("the exponent of ** must be an int or a float, not a Value")
        if not as_number(right, &exponent):
            return NotImplemented
        return new_value(new_power_of(<Value>left, exponent))

    def exp(self):
        """e to the power of this value."""
        cdef double data = exponential(tape.data[self.node])
        reserve(1)
        return new_value(new_unary(OP_EXP, incref(self), data, data))

    def log(self):
        """The natural logarithm; `ValueError` where this value is not positive."""
        cdef double data = logarithm(tape.data[self.node])
        reserve(1)
        return new_value(new_unary(OP_LOG, incref(self), data, 1.0 / tape.data[self.node]))

    def relu(self):
        """This value where it is positive, otherwise 0."""
        cdef bint positive = tape.data[self.node] > 0.0
        reserve(1)
        return new_value(new_unary(OP_RELU, incref(self), tape.data[self.node] if positive else 0.0, positive))

    def tanh(self):
        """The hyperbolic tangent."""
        cdef double data = tanh(tape.data[self.node])
        reserve(1)
        return new_value(new_unary(OP_TANH, incref(self), data, 1.0 - data * data))

    def backward(self):
        """Add to the `grad` of every value below this one the derivative of this value with respect to it.

        The order is depth-first, children left to right, then reversed: the original's, which decides the last bits.
        There is no recursion, and no limit to the depth.
        """
        check(sweep(self.node))

    def _backward(self):
        """Add to the `grad` of each child its share of this value's: one step of `backward`."""
        check(sweep_alone(self.node))

    @property
    def _children(self):
        """The values that this one was computed from, as a tuple."""
        reserve(0)
        hold(owner_of(self.node))
        try:
            return children_of(self.node)
        finally:
            let_go(owner_of(self.node))

    @property
    def _local_grads(self):
        """The derivative of this value with respect to each of its children."""
        hold(owner_of(self.node))
        try:
            return local_grads_of(self.node)
        finally:
            let_go(owner_of(self.node))

    @property
    def _prev(self):
        """The values that this one was computed from, as a set."""
        return set(self._children)

    @property
    def _op(self):
        """Name of the operation that computed this value; empty for a leaf."""
        cdef int operation
        hold(owner_of(self.node))
        operation = tape.operation[self.node]
        let_go(owner_of(self.node))
        if operation == OP_CUSTOM:
            return name_of(ops, self.node)
        if operation == OP_POWER:
            return f"**{<object>tape.details[self.node].local_grads[1]:g}"
        return NAMES[operation]

    def __repr__(self):
        return f"Value(data={self.data}, grad={self.grad})"

    def __reduce__(self):
        return (restored, (self.data, self.grad, self.label))


def restored(data, grad, label):
    """A leaf: what a pickle or a copy of a Value becomes."""
    value = Value(data, label=label)
    value.grad = grad
    return value


# --- Functions of many values -----------------------------------------------------------------------------------------

cdef object values(object sequence):
    """A list or tuple of Value: `sequence` itself if it is one, otherwise with a leaf for each number in it."""
    cdef object fast = PySequence_Fast(sequence, "expected a sequence of Value")
    cdef PyObject **items = PySequence_Fast_ITEMS(fast)
    cdef Py_ssize_t i
    if GIL_DISABLED and type(fast) is list:  # another thread could change it
        fast = tuple(fast)
        items = PySequence_Fast_ITEMS(fast)
    for i in range(PySequence_Fast_GET_SIZE(fast)):
        if type(<object>items[i]) is not Value:
            return [item if type(item) is Value else Value(item) for item in fast]
    return fast


def linear(x, w):
    """The matrix-vector product `w x`: `x` of length n_in, `w` of n_out rows of n_in, the result of length n_out.

    Where a row of `w` and `x` differ in length, the rest of the longer one is ignored, as in microgpt.
    """
    cdef tuple inputs = tuple(values(x))  # a copy: converting a number in w could run code that changes x
    cdef list result = []
    cdef Py_ssize_t terms
    cdef Node node
    cdef Edges *edges = NULL
    cdef Edges *factors = NULL
    reserve(0)
    check(edges_to(PySequence_Fast_ITEMS(inputs), len(inputs), &factors))
    try:
        for row in w:
            row = values(row)
            terms = min(PySequence_Fast_GET_SIZE(row), len(inputs))
            if terms == 0:
                result.append(0)  # an empty sum()
                continue
            reserve(1)
            check(edges_to(PySequence_Fast_ITEMS(row), terms, &edges))
            node = new_dot(edges, factors)
            drop_edges(edges)
            result.append(new_value(node))
    finally:
        drop_edges(factors)
    return result


def softmax(logits):
    """Probabilities proportional to the exponentials of `logits`, of the same length, at least 1.

    The maximum is subtracted as a plain number: it keeps `exp` from overflowing and has no gradient.
    """
    cdef tuple inputs = tuple(values(logits))
    cdef list exponentials = [], result = []
    cdef Value value, total
    cdef double largest, data, inverse, inverse_grad
    cdef Node node = NONE
    if not inputs:
        raise ValueError("logits must have at least one element")
    largest = tape.data[(<Value>inputs[0]).node]
    for value in inputs:
        if tape.data[value.node] > largest:
            largest = tape.data[value.node]
    reserve(6 * len(inputs) + 1)  # all that follow
    for value in inputs:
        node = new_sum(incref(value), new_leaf(-largest))
        data = exp(tape.data[node])
        exponentials.append(new_value(new_unary(OP_EXP, node, data, data)))
    node = NONE
    for value in exponentials:  # sum() starts with e + 0, where e is the first
        node = new_sum(incref(value), new_leaf(0.0)) if node == NONE else new_sum(node, incref(value))
    total = new_value(node)
    inverse, inverse_grad = power(tape.data[node], -1.0), -1.0 * power(tape.data[node], -2.0)
    for value in exponentials:
        node = new_power(incref(total), -1.0, inverse, inverse_grad)
        result.append(new_value(new_product(incref(value), node)))
    return result


compute_softmax = softmax  # the original's name for it


def rmsnorm(x):
    """`x` divided by its root mean square (Zhang and Sennrich, 2019), without a gain; the same length, at least 1."""
    cdef tuple inputs = tuple(values(x))
    cdef list result = []
    cdef Value value, scale
    cdef double share
    cdef Node node
    cdef Edges *edges = NULL
    if not inputs:
        raise ValueError("x must have at least one element")
    share = power(<double>len(inputs), -1.0)
    reserve(len(inputs) + 6)  # all that follow
    check(edges_to(PySequence_Fast_ITEMS(inputs), len(inputs), &edges))
    node = new_dot(edges, edges)
    drop_edges(edges)
    scale = new_value(new_sum(new_product(node, new_leaf(share)), new_leaf(1e-5)))
    scale = new_value(new_power_of(scale, -0.5))
    for value in inputs:
        result.append(new_value(new_product(incref(value), incref(scale))))
    return result


# --- Adam -------------------------------------------------------------------------------------------------------------

cdef class Parameters:
    """A list of Value behind the interface that `Adam` talks to; the twin of `reference_engine.Parameters`.

    Numbers and gradients are gathered from the tape, updated as one array by `update_with_adam(parameters, gradients,
    adam, learning_rate)`, and scattered back.
    """

    cdef list values
    cdef int32_t[::1] nodes
    cdef object data, grads, update_with_adam

    def __init__(self, list values, update_with_adam):
        self.values = values  # keeps the nodes alive
        self.update_with_adam = update_with_adam
        self.nodes = numpy.array([(<Value>value).node for value in values], numpy.int32)
        self.data, self.grads = (aligned_zeros(len(values), "float64", "Adam") for _ in range(2))

    def adam_step(self, adam, double learning_rate):
        """Move every value against its gradient. `adam` is a `microgpt.Adam`, whose step_count it counts."""
        cdef double[::1] data = self.data, grads = self.grads
        cdef Py_ssize_t i, n = self.nodes.shape[0]
        for i in range(n):
            data[i], grads[i] = tape.data[self.nodes[i]], tape.grad[self.nodes[i]]
            tape.grad[self.nodes[i]] = 0.0
        self.update_with_adam(self.data, self.grads, adam, learning_rate)
        for i in range(n):
            tape.data[self.nodes[i]] = data[i]


if (<PyTypeObject *>Value).tp_basicsize != sizeof(Handle):
    raise SystemError("Cython makes something else of a Value than a Handle")
(<PyTypeObject *>Value).tp_alloc = allocate
(<PyTypeObject *>Value).tp_dealloc = free_value
check(begin_tape(<PyTypeObject *>Value, forget_names))
