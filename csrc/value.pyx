# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, c_api_binop_methods=True
"""Scalar autograd on a flat tape: the compiled twin of the first half of `microgpt.reference`.

The tape is a structure of arrays, indexed by node. A `Value` is a handle that holds the index of its node, and a node
lives as long as anything refers to it: a handle, or a node that was computed from it. Then its place is used again.

Threads: there is one tape for the process, and the GIL guards it. Nothing here releases the GIL, or runs Python code
while the tape is half changed. With a tape for each thread, a Value could not leave the thread that made it.
So this module does not declare that it can do without the GIL, and a free-threaded Python turns it on to import it.
Forks: the tape is plain memory, with no lock and no thread of its own, so a forked process goes on with its copy.
"""
cimport cython
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_AsDouble, PyFloat_Check
from cpython.long cimport PyLong_AsDouble
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_RawRealloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from libc.math cimport exp, isfinite, log, pow, tanh
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uintptr_t
from libc.string cimport memchr, memmove

import math

import numpy

from microgpt._engine import update_with_adam
from microgpt.arrays import aligned_zeros

cdef extern from "Python.h":
    object PySequence_Fast(object, const char *message)
    PyObject **PySequence_Fast_ITEMS(object)
    Py_ssize_t PySequence_Fast_GET_SIZE(object)
    int PyObject_GenericSetAttr(object, object, object) except -1
    ctypedef struct PyTypeObject:
        void (*tp_dealloc)(PyObject *) noexcept
        void (*tp_free)(void *) noexcept
    void Py_SET_REFCNT(PyObject *, Py_ssize_t)

# --- The tape ---------------------------------------------------------------------------------------------------------

cdef enum:
    NONE = 0  # the node that is not there; marked as visited, so that no search goes there
    MAXIMUM_NODES = 1 << 30  # two references from each of these nodes, and one from each of these edges, ...
    MAXIMUM_EDGES = 1 << 30  # ... cannot wrap around a count of references

cdef enum Operation:
    FREE  # no node is here
    LEAF
    ADD
    MULTIPLY
    POWER
    EXP
    LOG
    RELU
    TANH
    DOT  # 0 + a1 * b1 + a2 * b2 + ..., standing for a node for each + and *; see `expand`
    CUSTOM  # made by the constructor, from any number of children

cdef struct Edges:  # to any number of nodes; the two arrays lie behind it, in the same memory
    int32_t count
    int32_t *nodes
    double *numbers  # of a CUSTOM, the local derivatives; of a DOT, the data
    PyObject *label  # of a CUSTOM, what `_op` gives
    int64_t users
    # Of a DOT:
    int32_t lowest, highest  # among the nodes
    bint consecutive  # whether each node has the place after that of the one before
    int64_t searched  # the last search that has been at all of them

cdef union Operands:
    int32_t children[2]
    Edges *edges  # of a CUSTOM; of a DOT, those to a1, a2, ...; of a LEAF, the last that began with it, or NULL

cdef struct Dot:
    Edges *factors  # those to b1, b2, ..., perhaps more than the operation has terms
    double grad  # of each of its hidden nodes

cdef union Details:
    double local_grads[2]
    Dot dot

cdef struct Tape:
    # One element for each node.
    uint8_t *operation
    uint8_t *visited  # by the search under way; leaves always are, as there is nothing below them
    uint32_t *references  # handles and parents
    Operands *operands
    Details *details
    double *data
    double *grad
    int64_t capacity
    int64_t used  # places from here on have never been used
    int64_t free  # places before that are free
    int64_t next  # where to look for one first
    int64_t edges  # in all Edges together
    int64_t searches  # how many there have been
    # Of backward.
    int32_t *path  # the order from the left, the stack from the right
    int64_t path_capacity

cdef Tape tape


cdef void *resized(void *array, int64_t count, size_t itemsize) except NULL:
    cdef void *result = PyMem_RawRealloc(array, count * itemsize)
    if result == NULL:
        raise MemoryError(f"no memory for an array of {count} elements on the tape")
    return result


cdef int grow(int64_t count) except -1:
    cdef int64_t capacity = min(max(tape.used + count, 2 * tape.capacity), <int64_t>MAXIMUM_NODES)
    if tape.used + count > capacity:
        raise OverflowError(f"at most {MAXIMUM_NODES} values can be alive at once")
    tape.operation = <uint8_t *>resized(tape.operation, capacity, sizeof(uint8_t))
    tape.visited = <uint8_t *>resized(tape.visited, capacity, sizeof(uint8_t))
    tape.references = <uint32_t *>resized(tape.references, capacity, sizeof(uint32_t))
    tape.operands = <Operands *>resized(tape.operands, capacity, sizeof(Operands))
    tape.details = <Details *>resized(tape.details, capacity, sizeof(Details))
    tape.data = <double *>resized(tape.data, capacity, sizeof(double))
    tape.grad = <double *>resized(tape.grad, capacity, sizeof(double))
    tape.capacity = capacity
    return 0


cdef int make_room(int64_t count) except -1:
    if 2 * tape.free >= tape.used and tape.free >= count:
        return 0
    try:
        grow(count)
    except (MemoryError, OverflowError):
        if tape.free < count:
            raise
    return 0


cdef inline int reserve(int64_t count) except -1:
    """Room for this many nodes: making them then cannot fail."""
    return make_room(count) if tape.capacity - tape.used < count else 0


# Places are given out in the order of the tape, so that what is made together lies together, however long a program
# has been running. The search starts over when at least half of the tape is free.

cdef void find_place() noexcept:
    """Let `tape.next` be a free place."""
    cdef void *place = memchr(tape.operation + tape.next, FREE, tape.used - tape.next)
    if place == NULL and (2 * tape.free >= tape.used or tape.used == tape.capacity):
        place = memchr(tape.operation, FREE, tape.used)
    if place != NULL:
        tape.next = <uint8_t *>place - tape.operation
    else:
        tape.next = tape.used
        tape.used += 1
        tape.free += 1


# Making a node. Each function needs room reserved, takes over one reference to each operand, and gives one away.

cdef inline int32_t new_node(Operation operation, double data) noexcept:
    cdef int32_t node
    if tape.next == tape.used or tape.operation[tape.next] != FREE:
        find_place()
    node = <int32_t>tape.next
    tape.next += 1
    tape.free -= 1
    tape.operation[node] = operation
    tape.visited[node] = operation == LEAF
    tape.references[node] = 1
    tape.data[node] = data
    tape.grad[node] = 0.0
    return node


cdef inline int32_t leaf(double data) noexcept:
    cdef int32_t node = new_node(LEAF, data)
    tape.operands[node].edges = NULL
    return node


cdef inline int32_t add(int32_t a, int32_t b) noexcept:
    cdef int32_t node = new_node(ADD, tape.data[a] + tape.data[b])
    tape.operands[node].children[0] = a
    tape.operands[node].children[1] = b
    return node


cdef inline int32_t multiply(int32_t a, int32_t b) noexcept:
    cdef int32_t node = new_node(MULTIPLY, tape.data[a] * tape.data[b])
    tape.operands[node].children[0] = a
    tape.operands[node].children[1] = b
    tape.details[node].local_grads[0] = tape.data[b]
    tape.details[node].local_grads[1] = tape.data[a]
    return node


cdef inline int32_t unary(Operation operation, int32_t a, double data, double local_grad) noexcept:
    cdef int32_t node = new_node(operation, data)
    tape.operands[node].children[0] = a
    tape.operands[node].children[1] = NONE
    tape.details[node].local_grads[0] = local_grad
    return node


cdef inline int32_t raised_node(int32_t base, double exponent, double data, double local_grad) noexcept:
    cdef int32_t node = unary(POWER, base, data, local_grad)
    tape.details[node].local_grads[1] = exponent  # what `_op` gives
    return node


cdef Edges *new_edges(int64_t count) except NULL:
    cdef Edges *edges = NULL
    if tape.edges + count > MAXIMUM_EDGES:
        raise OverflowError(f"at most {MAXIMUM_EDGES} edges can be alive at once")
    edges = <Edges *>PyMem_Malloc(sizeof(Edges) + count * (sizeof(double) + sizeof(int32_t)))
    if edges == NULL:
        raise MemoryError(f"no memory for {count} edges")
    edges.count = <int32_t>count
    edges.numbers = <double *>(edges + 1)
    edges.nodes = <int32_t *>(edges.numbers + count)
    edges.label = NULL
    edges.users = 1  # who makes them
    edges.searched = 0
    tape.edges += count
    return edges


cdef void free_edges(Edges *edges) noexcept:
    tape.edges -= edges.count
    Py_XDECREF(edges.label)
    PyMem_Free(edges)


cdef Edges *edges_to(PyObject **values, int64_t count) except NULL:
    """Edges to the nodes of these handles, with a reference to each: the last there were, if they are the same."""
    cdef int32_t first = (<Value>values[0]).node if count > 0 else NONE
    cdef bint remembers = first != NONE and tape.operation[first] == LEAF
    cdef Edges *edges = tape.operands[first].edges if remembers else NULL
    if edges != NULL and lead_to(edges, values, count):
        edges.users += 1
        return edges
    edges = new_edges(count)
    fill(edges, values)
    if remembers:
        tape.operands[first].edges = edges
    return edges


cdef bint lead_to(Edges *edges, PyObject **values, int64_t count) noexcept:
    """Whether they lead to the nodes of these handles, and the data there is, bit for bit, what it was."""
    cdef int64_t *numbers = <int64_t *>edges.numbers
    cdef int64_t *data = <int64_t *>tape.data
    cdef int32_t node
    cdef int64_t k
    if edges.count != count:
        return False
    for k in range(count):
        node = (<Value>values[k]).node
        if edges.nodes[k] != node or numbers[k] != data[node]:
            return False
    return True


cdef void fill(Edges *edges, PyObject **values) noexcept:
    cdef int32_t node = NONE, k
    edges.lowest, edges.highest = MAXIMUM_NODES, NONE
    edges.consecutive = True
    for k in range(edges.count):
        edges.consecutive &= k == 0 or (<Value>values[k]).node == node + 1
        node = (<Value>values[k]).node
        tape.references[node] += 1
        edges.nodes[k] = node
        edges.numbers[k] = tape.data[node]
        edges.lowest, edges.highest = min(edges.lowest, node), max(edges.highest, node)


cdef int32_t dot(Edges *edges, Edges *factors) noexcept:
    """0 + a1 * b1 + a2 * b2 + ..., of what these edges lead to; a user of both. It needs room for one node."""
    cdef double total = 0.0
    cdef int32_t node
    cdef int64_t k
    for k in range(edges.count):
        total += edges.numbers[k] * factors.numbers[k]
    edges.users += 1
    factors.users += 1
    node = new_node(DOT, total)
    tape.operands[node].edges = edges
    tape.details[node].dot = Dot(factors, 0.0)
    return node


cdef int expand(int32_t node) except -1:
    """Turn a DOT into the nodes that it stands for, as they would be by now."""
    cdef Edges *edges = tape.operands[node].edges
    cdef Edges *factors = tape.details[node].dot.factors
    cdef int32_t product = NONE, total, k
    cdef double grad = tape.details[node].dot.grad
    reserve(2 * <int64_t>edges.count)
    total = leaf(0.0)
    for k in range(edges.count):
        product = new_node(MULTIPLY, edges.numbers[k] * factors.numbers[k])
        tape.references[edges.nodes[k]] += 1
        tape.references[factors.nodes[k]] += 1
        tape.operands[product].children[0] = edges.nodes[k]
        tape.operands[product].children[1] = factors.nodes[k]
        tape.details[product].local_grads[0] = factors.numbers[k]
        tape.details[product].local_grads[1] = edges.numbers[k]
        tape.grad[product] = tape.grad[total] = grad
        if k == 0:
            product, total = total, product  # sum() starts with p + 0, where p is the first product
        if k < edges.count - 1:
            total = add(total, product)
    tape.operation[node] = ADD
    tape.operands[node].children[0] = total
    tape.operands[node].children[1] = product
    free_all(leave(factors, leave(edges, NONE)))
    return 0


# Keeping and freeing. What is about to be freed is a linked list through `references`: freeing needs no memory and no
# recursion.

cdef inline int32_t hold(Value value) noexcept:
    """The node of a handle, with a new reference."""
    tape.references[value.node] += 1
    return value.node


cdef inline int32_t give_up(int32_t node, int32_t doomed) noexcept:
    """Give up one reference; with the last one, the node joins the list of what is doomed. Returns that list."""
    tape.references[node] -= 1
    if tape.references[node] != 0:
        return doomed
    tape.references[node] = <uint32_t>doomed
    return node


cdef int32_t leave(Edges *edges, int32_t doomed) noexcept:
    """Use edges no more, which are freed with the last user; the list, as above."""
    cdef int32_t k
    edges.users -= 1
    if edges.users != 0:
        return doomed
    if edges.count > 0 and tape.operation[edges.nodes[0]] == LEAF and tape.operands[edges.nodes[0]].edges == edges:
        tape.operands[edges.nodes[0]].edges = NULL
    for k in range(edges.count):
        doomed = give_up(edges.nodes[k], doomed)
    free_edges(edges)
    return doomed


cdef void free_all(int32_t doomed) noexcept:
    """Free the nodes of this list, and then whatever lived only through them."""
    cdef int32_t node
    cdef int32_t *children
    cdef Operation operation
    while doomed != NONE:
        node = doomed
        doomed = <int32_t>tape.references[node]
        operation = <Operation>tape.operation[node]
        if operation == DOT or operation == CUSTOM:
            doomed = leave(tape.operands[node].edges, doomed)
            if operation == DOT:
                doomed = leave(tape.details[node].dot.factors, doomed)
        elif operation != LEAF:
            children = tape.operands[node].children
            doomed = give_up(children[0], doomed)
            if children[1] != NONE:
                doomed = give_up(children[1], doomed)
        tape.operation[node] = FREE
        tape.free += 1


cdef inline void release(int32_t node) noexcept:
    """Give up one reference, and free what now has none."""
    free_all(give_up(node, NONE))


# --- Backward ---------------------------------------------------------------------------------------------------------
# The order is the depth-first post-order of what lies below the root, children left to right, without leaves. A DOT is
# in it once for every stretch of terms that no other node comes between, as (first term, last term + 1, ~node).
# On the stack, `node` is still to be visited. `~node` has been, and goes into the order when the search is back.
# `~NONE` stands for a DOT or CUSTOM that has been, but not to its end: beside it are where to go on and the node.

cdef int64_t extend(int64_t top) except -1:
    """Make room between the order and the stack. Returns where the top of the stack then is."""
    cdef int64_t size = tape.path_capacity - top, capacity = 2 * tape.path_capacity + 64
    tape.path = <int32_t *>resized(tape.path, capacity, sizeof(int32_t))
    memmove(tape.path + capacity - size, tape.path + top, size * sizeof(int32_t))
    tape.path_capacity = capacity
    return capacity - size


cdef bint all_visited(Edges *edges) noexcept:
    """Whether this search has been at all of these nodes; of those that many a DOT shares, it finds out once."""
    cdef int32_t k
    if edges.searched != tape.searches:
        for k in range(edges.count):
            if not tape.visited[edges.nodes[k]]:
                return False
        edges.searched = tape.searches
    return True


cdef int32_t reached(int32_t node, int32_t k) noexcept:
    """The first term of this DOT or child of this CUSTOM, from k on, that the search has not been at."""
    cdef Edges *edges = tape.operands[node].edges
    cdef Edges *factors = tape.details[node].dot.factors
    if k == 0 and all_visited(edges) and all_visited(factors):
        return edges.count
    while k < edges.count and tape.visited[edges.nodes[k]] and tape.visited[factors.nodes[k]]:
        k += 1
    return k


cdef int64_t search(int32_t root) except -1:
    """Fill the order and return its length. `visited` then marks what is in it."""
    cdef int64_t top = extend(tape.path_capacity) if tape.path_capacity == 0 else tape.path_capacity
    cdef int64_t length = 0
    cdef int32_t node = root, first, last
    cdef int32_t *children
    cdef int32_t *path = tape.path
    cdef uint8_t *visited = tape.visited
    cdef Operands *operands
    top -= 1
    path[top] = root
    tape.searches += 1
    while top < tape.path_capacity:
        node = path[top]
        top += 1
        if node < ~NONE:
            path[length] = ~node
            length += 1
            continue
        if top - length < 8:
            top = extend(top)
            path = tape.path
        first = 0
        if node == ~NONE:
            first, node = path[top], path[top + 1]
            top += 2
        elif visited[node]:
            continue
        else:
            visited[node] = True
            if tape.operation[node] == DOT and tape.details[node].dot.grad != 0.0:
                expand(node)  # the gradients of its hidden nodes are to accumulate
                visited = tape.visited
        operands = &tape.operands[node]
        if tape.operation[node] < DOT:
            children = operands.children
            if visited[children[0]] and visited[children[1]]:
                path[length] = node
                length += 1
                continue
            top -= 1
            path[top] = ~node
            if not visited[children[1]]:
                top -= 1
                path[top] = children[1]
            if not visited[children[0]]:
                top -= 1
                path[top] = children[0]
            continue
        last = reached(node, first)
        if tape.operation[node] == DOT and last > first:
            path[length], path[length + 1], path[length + 2] = first, last, ~node
            length += 3
        if last < operands.edges.count:
            top -= 5
            path[top], path[top + 1] = operands.edges.nodes[last], tape.details[node].dot.factors.nodes[last]
            path[top + 2], path[top + 3], path[top + 4] = ~NONE, last, node
        elif tape.operation[node] == CUSTOM:
            path[length] = node
            length += 1
    return length


cdef inline void pass_on(double grad, double *numbers, Edges *edges, int32_t first, int32_t last) noexcept:
    """Add the products of `grad` and these numbers to the gradients of what these edges lead to, last to first."""
    cdef double *grads = tape.grad
    cdef int32_t k
    if edges.consecutive:  # no two gradients are the same: in any order
        grads += edges.nodes[0]
        for k in range(first, last):
            grads[k] += numbers[k] * grad
    else:
        for k in range(last - 1, first - 1, -1):
            grads[edges.nodes[k]] += numbers[k] * grad


cdef void sweep_dot(int32_t node, int32_t first, int32_t last) noexcept:
    """Apply the chain rule to these terms of a DOT."""
    cdef Edges *edges = tape.operands[node].edges
    cdef Edges *factors = tape.details[node].dot.factors
    cdef double *grads = tape.grad
    cdef double grad = 0.0 + grads[node]
    cdef int32_t k
    tape.details[node].dot.grad = grad
    if edges.highest < factors.lowest or factors.highest < edges.lowest:  # no node is in both
        pass_on(grad, factors.numbers, edges, first, last)
        pass_on(grad, edges.numbers, factors, first, last)
        return
    for k in range(last - 1, first - 1, -1):
        grads[edges.nodes[k]] += factors.numbers[k] * grad
        grads[factors.nodes[k]] += edges.numbers[k] * grad


cdef void sweep(int64_t length) noexcept:
    """Apply the chain rule along the order, from its end, and take the marks in `visited` back."""
    cdef int32_t node, k
    cdef int32_t *order = tape.path
    cdef int32_t *children
    cdef uint8_t *operations = tape.operation
    cdef uint8_t *visited = tape.visited
    cdef Operands *operands = tape.operands
    cdef Details *details = tape.details
    cdef double *grads = tape.grad
    cdef double *local_grads
    cdef double grad
    cdef Edges *edges
    while length > 0:
        length -= 1
        node = order[length]
        if node < 0:
            node = ~node
            length -= 2
            sweep_dot(node, order[length], order[length + 1])
            visited[node] = False
            continue
        visited[node] = False
        grad = grads[node]
        children = operands[node].children
        local_grads = details[node].local_grads
        if operations[node] == ADD:
            grads[children[0]] += grad
            grads[children[1]] += grad
        elif operations[node] == MULTIPLY:
            grads[children[0]] += local_grads[0] * grad
            grads[children[1]] += local_grads[1] * grad
        elif operations[node] == CUSTOM:
            edges = operands[node].edges
            for k in range(edges.count):
                grads[edges.nodes[k]] += edges.numbers[k] * grad
        else:
            grads[children[0]] += local_grads[0] * grad


# --- Numbers ----------------------------------------------------------------------------------------------------------

cdef inline int as_number(object x, double *number) except -1:
    """Whether `x` is a number, and which."""
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


cdef double number_of(str name, object x) except? -1:
    cdef double number = 0.0
    if not as_number(x, &number):
        raise TypeError(f"{name} must be a number, got {x!r}")
    return number


# The C library's functions, where they agree with Python's. Where they may not, Python decides, and raises its errors.

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

cdef dict LABELS = {LEAF: "", ADD: "+", MULTIPLY: "*", EXP: "exp", LOG: "log", RELU: "ReLU", TANH: "tanh", DOT: "+"}

# Handles come and go with every operation, so their memory is kept for the next ones. This does what `freelist` and
# `__dealloc__` do, without what Cython must add to protect Python code, which only those need that were walked to.

cdef enum:
    MAXIMUM_IDLE = 1024

cdef PyObject *idle[MAXIMUM_IDLE]
cdef int idle_count = 0
cdef void (*deallocate_walked)(PyObject *) noexcept  # what Cython makes of `__dealloc__`


cdef inline Value new_value():
    """A handle, still without a node."""
    global idle_count
    if idle_count == 0:
        return Value.__new__(Value)
    idle_count -= 1
    Py_SET_REFCNT(idle[idle_count], 0)
    return <Value>idle[idle_count]


cdef void deallocate(PyObject *value) noexcept:
    cdef int32_t node = (<Value>value).node
    if (<Value>value).walked:
        deallocate_walked(value)
        return
    if tape.references[node] > 1:  # of almost all
        tape.references[node] -= 1
    elif node != NONE:
        release(node)
    keep(value)


cdef inline void keep(PyObject *value) noexcept:
    global idle_count
    (<Value>value).node = NONE
    if idle_count < MAXIMUM_IDLE:
        idle[idle_count] = value
        idle_count += 1
    else:
        (<PyTypeObject *>Value).tp_free(value)


# As those who draw graphs go by `id`, two walks to the same node give the same handle, while the first is alive.

cdef dict walked = {}  # node: address of the handle


cdef Value walk_to(int32_t node):
    cdef Value value
    address = walked.get(node)
    if address is not None:
        return <Value><PyObject *><uintptr_t>address
    value = new_value()
    walked[node] = <uintptr_t><PyObject *>value
    tape.references[node] += 1
    value.node, value.walked = node, True
    return value


cdef inline int32_t operand(object x) except -1:
    """A new reference to the node of a Value or to a leaf for a number, NONE for anything else; room for one more."""
    cdef double number = 0.0
    if type(x) is Value:
        reserve(1)
        return hold(<Value>x)
    if not as_number(x, &number):
        return NONE
    reserve(2)
    return leaf(number)


cdef inline object plus(Value a, object other):
    cdef Value result = new_value()
    cdef int32_t b = operand(other)
    if b == NONE:
        return NotImplemented
    result.node = add(hold(a), b)
    return result


cdef inline object times(Value a, object other):
    cdef Value result = new_value()
    cdef int32_t b = operand(other)
    if b == NONE:
        return NotImplemented
    result.node = multiply(hold(a), b)
    return result


cdef inline int32_t raised(Value base, double exponent) except -1:
    """The node base**exponent, with room for two more."""
    cdef double x = tape.data[base.node]
    cdef double data = power(x, exponent), local_grad = exponent * power(x, exponent - 1.0)
    reserve(3)
    return raised_node(hold(base), exponent, data, local_grad)


@cython.final
cdef class Value:
    # The first lines are where `inspect.signature` finds what the constructor takes.
    """Value(data, children=(), local_grads=(), op="")\n--\n
    A scalar that remembers how it was computed, so that `backward` can differentiate through it.

    Args:
        data: the number.
        children, local_grads, op: for an operation of your own: the values that it was computed from, the derivative
            with respect to each, and a name. `Value(math.sin(x.data), (x,), (math.cos(x.data),), "sin")`

    Attributes:
        data: the number, a float.
        grad: the derivative of whatever `backward` was called on with respect to this number, a float. It accumulates
            over calls of `backward` until it is set to 0.

    Both attributes can be set at any time; derivatives are those at the numbers that went into an operation when it
    was made. Operands and exponents may be numbers of any type; `TypeError` for anything else. Division by zero,
    overflow and the logarithm of 0 raise what they raise for floats.

    A Value is a handle: handles of the same value are equal and hash alike, wherever they came from. Copies and pickles
    keep `data` and `grad`, and forget what the value was computed from. It cannot be subclassed.

    Source: `class Value` of microgpt, with the names of micrograd's (`_prev`, `_op`, `tanh`) beside them.
    """

    cdef int32_t node
    cdef bint walked

    def __init__(self, data, children=(), local_grads=(), op=""):
        cdef double number = number_of("data", data)
        cdef list slopes = [number_of("local_grads", local_grad) for local_grad in local_grads]
        cdef Edges *edges
        cdef int32_t k
        children = tuple(children)
        if self.node != NONE:
            raise RuntimeError("a Value is initialised once; set its data instead")
        for child in children:
            if type(child) is not Value:
                raise TypeError(f"children must be Values, got {child!r}")
        if len(children) != len(slopes):
            raise ValueError(
                f"local_grads must have one number for each of {len(children)} children, got {len(slopes)}"
            )
        if not isinstance(op, str):
            raise TypeError(f"op must be a string, got {op!r}")
        reserve(1)
        if not children and not op:
            self.node = leaf(number)
            return
        edges = new_edges(len(children))
        edges.label = <PyObject *>op
        Py_INCREF(op)
        for k in range(edges.count):
            edges.nodes[k] = hold(<Value>children[k])
            edges.numbers[k] = slopes[k]
        self.node = new_node(CUSTOM, number)
        tape.operands[self.node].edges = edges
        tape.details[self.node].dot.factors = edges  # as if of a DOT, for the search

    @property
    def data(self):
        return tape.data[self.node]

    @property
    def grad(self):
        return tape.grad[self.node]

    def __setattr__(self, name, value):  # sooner here than found among the attributes of the type
        if name == "grad":
            tape.grad[self.node] = number_of("grad", value)
        elif name == "data":
            tape.data[self.node] = number_of("data", value)
        else:
            PyObject_GenericSetAttr(self, name, value)

    def __dealloc__(self):  # of those that were walked to
        del walked[self.node]
        release(self.node)

    # In the binary operators, either side may be the Value.
    def __add__(left, right):
        return plus(<Value>left, right) if type(left) is Value else plus(<Value>right, left)

    def __mul__(left, right):
        return times(<Value>left, right) if type(left) is Value else times(<Value>right, left)

    def __neg__(self):
        cdef Value result = new_value()
        reserve(2)
        result.node = multiply(hold(self), leaf(-1.0))
        return result

    def __sub__(left, right):
        """left + right * -1, and left + -right for a number on the right."""
        cdef Value result = new_value()
        cdef double number = 0.0
        if type(right) is not Value:
            if not as_number(right, &number):
                return NotImplemented
            reserve(2)
            result.node = add(hold(<Value>left), leaf(-number))
        elif type(left) is not Value:
            if not as_number(left, &number):
                return NotImplemented
            reserve(4)
            result.node = add(multiply(hold(<Value>right), leaf(-1.0)), leaf(number))
        else:
            reserve(3)
            result.node = add(hold(<Value>left), multiply(hold(<Value>right), leaf(-1.0)))
        return result

    def __truediv__(left, right):
        """left * right**-1."""
        cdef Value result = new_value()
        cdef double number = 0.0
        cdef int32_t inverse
        if type(right) is not Value:
            if not as_number(right, &number):
                return NotImplemented
            number = power(number, -1.0)
            reserve(2)
            result.node = multiply(hold(<Value>left), leaf(number))
        elif type(left) is not Value:
            if not as_number(left, &number):
                return NotImplemented
            inverse = raised(<Value>right, -1.0)
            result.node = multiply(inverse, leaf(number))
        else:
            inverse = raised(<Value>right, -1.0)
            result.node = multiply(hold(<Value>left), inverse)
        return result

    def __pow__(left, right, modulo):
        cdef Value result = new_value()
        cdef double exponent = 0.0
        if type(right) is Value:
            raise TypeError("the exponent of ** must be an int or a float, not a Value")
        if modulo is not None or not as_number(right, &exponent):
            return NotImplemented
        result.node = raised(<Value>left, exponent)
        return result

    def exp(self):
        """e to the power of this value."""
        cdef Value result = new_value()
        cdef double data = exponential(tape.data[self.node])
        reserve(1)
        result.node = unary(EXP, hold(self), data, data)
        return result

    def log(self):
        """The natural logarithm; `ValueError` where this value is not positive."""
        cdef Value result = new_value()
        cdef double data = logarithm(tape.data[self.node])
        reserve(1)
        result.node = unary(LOG, hold(self), data, 1.0 / tape.data[self.node])
        return result

    def relu(self):
        """This value where it is positive, otherwise 0."""
        cdef Value result = new_value()
        cdef bint positive = tape.data[self.node] > 0.0
        reserve(1)
        result.node = unary(RELU, hold(self), tape.data[self.node] if positive else 0.0, positive)
        return result

    def tanh(self):
        """The hyperbolic tangent."""
        cdef Value result = new_value()
        cdef double data = tanh(tape.data[self.node])
        reserve(1)
        result.node = unary(TANH, hold(self), data, 1.0 - data * data)
        return result

    def backward(self):
        """Add to the `grad` of every value below this one the derivative of this value with respect to it.

        The order is depth-first, children left to right, then reversed: the seed's, which decides the last bits.
        There is no recursion, and no limit to the depth.
        """
        cdef int64_t length
        try:
            length = search(self.node)
        except (MemoryError, OverflowError):
            for node in range(tape.used):
                tape.visited[node] = tape.operation[node] == LEAF
            raise
        tape.grad[self.node] = 1.0
        sweep(length)

    @property
    def _children(self):
        """What this value was computed from, as a tuple."""
        cdef Operation operation = <Operation>tape.operation[self.node]
        cdef Edges *edges
        cdef int32_t a, b
        if operation == LEAF:
            return ()
        if operation == CUSTOM:
            edges = tape.operands[self.node].edges
            return tuple([walk_to(edges.nodes[k]) for k in range(edges.count)])
        if operation == DOT:
            expand(self.node)
        a, b = tape.operands[self.node].children[0], tape.operands[self.node].children[1]
        return (walk_to(a),) if b == NONE else (walk_to(a), walk_to(b))

    @property
    def _local_grads(self):
        """The derivative of this value with respect to each of its children."""
        cdef Operation operation = <Operation>tape.operation[self.node]
        cdef double *local_grads = tape.details[self.node].local_grads
        cdef Edges *edges
        if operation == LEAF:
            return ()
        if operation == ADD or operation == DOT:
            return (1.0, 1.0)
        if operation == MULTIPLY:
            return (local_grads[0], local_grads[1])
        if operation == CUSTOM:
            edges = tape.operands[self.node].edges
            return tuple([edges.numbers[k] for k in range(edges.count)])
        return (local_grads[0],)

    @property
    def _prev(self):
        """What this value was computed from, as a set."""
        return set(self._children)

    @property
    def _op(self):
        """A name for how this value was computed; of a leaf, the empty string."""
        cdef Operation operation = <Operation>tape.operation[self.node]
        if operation == CUSTOM:
            return <str>tape.operands[self.node].edges.label
        if operation == POWER:
            return f"**{<object>tape.details[self.node].local_grads[1]:g}"
        return LABELS[operation]

    def __eq__(self, other):
        return self.node == (<Value>other).node if type(other) is Value else NotImplemented

    def __hash__(self):
        return self.node

    def __repr__(self):
        return f"Value(data={self.data}, grad={self.grad})"

    def __reduce__(self):
        return (restored, (self.data, self.grad))


def restored(data, grad):
    """The leaf that a pickle or a copy of a Value becomes."""
    value = Value(data)
    value.grad = grad
    return value


# --- Functions of many values -----------------------------------------------------------------------------------------

cdef object values(object sequence):
    """A list or tuple of Value: `sequence` itself if it is one, otherwise with a leaf for each number in it."""
    cdef object fast = PySequence_Fast(sequence, "expected a sequence of Value")
    cdef PyObject **items = PySequence_Fast_ITEMS(fast)
    cdef Py_ssize_t i
    for i in range(PySequence_Fast_GET_SIZE(fast)):
        if type(<object>items[i]) is not Value:
            return [item if type(item) is Value else Value(item) for item in fast]
    return fast


def linear(x, w):
    """The matrix-vector product `w x`: `x` of length n_in, `w` of n_out rows of n_in, the result of length n_out.

    Where a row of `w` and `x` differ in length, the rest of the longer one is ignored, as in microgpt.
    """
    cdef tuple inputs = tuple(values(x))  # a copy: what converts a number in w could change x
    cdef list result = []
    cdef Value output
    cdef Py_ssize_t terms
    cdef Edges *edges
    cdef Edges *factors = edges_to(PySequence_Fast_ITEMS(inputs), len(inputs))
    try:
        for row in w:
            row = values(row)
            terms = min(PySequence_Fast_GET_SIZE(row), len(inputs))
            if terms == 0:
                result.append(0)  # an empty sum()
                continue
            output = new_value()
            reserve(1)
            edges = edges_to(PySequence_Fast_ITEMS(row), terms)
            output.node = dot(edges, factors)
            leave(edges, NONE)
            result.append(output)
    finally:
        free_all(leave(factors, NONE))
    return result


def softmax(logits):
    """Probabilities proportional to the exponentials of `logits`, of the same length, at least 1.

    The maximum is subtracted as a plain number: it keeps `exp` from overflowing and has no gradient.
    """
    cdef tuple inputs = tuple(values(logits))
    cdef list exponentials = [], result = []
    cdef Value value, output, total = new_value()
    cdef double largest, data, inverse, inverse_grad
    cdef int32_t shifted
    if not inputs:
        raise ValueError("logits must have at least one element")
    largest = tape.data[(<Value>inputs[0]).node]
    for value in inputs:
        if tape.data[value.node] > largest:
            largest = tape.data[value.node]
    reserve(1)
    total.node = leaf(0.0)
    for value in inputs:
        output = new_value()
        reserve(4)
        shifted = add(hold(value), leaf(-largest))
        data = exp(tape.data[shifted])
        output.node = unary(EXP, shifted, data, data)
        # sum() starts with e + 0, where e is the first
        total.node = add(total.node, hold(output)) if exponentials else add(hold(output), total.node)
        exponentials.append(output)
    data = tape.data[total.node]
    inverse, inverse_grad = power(data, -1.0), -1.0 * power(data, -2.0)
    for value in exponentials:
        output = new_value()
        reserve(2)
        output.node = multiply(hold(value), raised_node(hold(total), -1.0, inverse, inverse_grad))
        result.append(output)
    return result


compute_softmax = softmax  # the seed's name for it


def rmsnorm(x):
    """`x` divided by its root mean square (Zhang and Sennrich, 2019), without a gain; the same length, at least 1."""
    cdef tuple inputs = tuple(values(x))
    cdef list result = []
    cdef Value value, output, shifted = new_value(), scale = new_value()
    cdef double share
    cdef Edges *edges
    if not inputs:
        raise ZeroDivisionError("x must have at least one element")
    share = power(<double>len(inputs), -1.0)
    reserve(5)
    edges = edges_to(PySequence_Fast_ITEMS(inputs), len(inputs))
    shifted.node = dot(edges, edges)
    leave(edges, NONE)
    shifted.node = add(multiply(shifted.node, leaf(share)), leaf(1e-5))
    scale.node = raised(shifted, -0.5)
    for value in inputs:
        output = new_value()
        reserve(1)
        output.node = multiply(hold(value), hold(scale))
        result.append(output)
    return result


# --- Adam -------------------------------------------------------------------------------------------------------------

cdef class Parameters:
    """A list of Value behind the interface that `Adam` talks to; the twin of `reference_engine.Parameters`.

    Numbers and gradients are gathered from the tape, updated as one array, and scattered back.
    """

    cdef list values
    cdef int32_t[::1] nodes
    cdef object data, grads
    cdef str instruction_set

    def __init__(self, list values, str instruction_set):
        self.values = values  # keeps the nodes alive
        self.instruction_set = instruction_set
        self.nodes = numpy.array([hash(value) for value in values], numpy.int32)
        self.data, self.grads = (aligned_zeros(len(values), "float64", "Adam") for _ in range(2))

    def adam_step(self, adam, double learning_rate):
        """Move every value against its gradient. `adam` is a `microgpt.Adam`, whose step_count it counts."""
        cdef double[::1] data = self.data, grads = self.grads
        cdef Py_ssize_t i, n = self.nodes.shape[0]
        for i in range(n):
            data[i], grads[i] = tape.data[self.nodes[i]], tape.grad[self.nodes[i]]
            tape.grad[self.nodes[i]] = 0.0
        update_with_adam(self.data, self.grads, adam, learning_rate, self.instruction_set)
        for i in range(n):
            tape.data[self.nodes[i]] = data[i]


deallocate_walked = (<PyTypeObject *>Value).tp_dealloc
(<PyTypeObject *>Value).tp_dealloc = deallocate

# Node NONE stands in for the children that a node does not have, and for a handle that was never initialised.
reserve(1)
tape.used = tape.next = 1
tape.operation[NONE], tape.visited[NONE], tape.references[NONE] = LEAF, True, 1
tape.operands[NONE].edges = NULL
tape.data[NONE] = tape.grad[NONE] = 0.0
