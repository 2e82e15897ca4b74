# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, c_api_binop_methods=True
"""Scalar autograd on a flat tape: the compiled twin of the first half of `microgpt.reference`.

The tape is a structure of arrays, indexed by node. A node lives as long as anything refers to it: Python, or a node
that was computed from it. Then its place is used again.

Each place on the tape has the memory of one Value, whose count of references is the node's: making a Value and dropping
it is counting. And one node is one object, with one `id`, however often Python drops it and comes back to it from what
was computed from it, as if it had been kept.

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
from cpython.unicode cimport PyUnicode_FromObject
from libc.math cimport exp, isfinite, log, pow, tanh
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
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
        Py_ssize_t tp_basicsize
        PyObject *(*tp_alloc)(PyTypeObject *, Py_ssize_t) except NULL
        void (*tp_dealloc)(PyObject *) noexcept
    PyObject *PyObject_Init(PyObject *, PyTypeObject *)
    Py_ssize_t Py_REFCNT(PyObject *)
    void Py_INCREF(PyObject *)
    void Py_DECREF(PyObject *)
    void Py_SET_REFCNT(PyObject *, Py_ssize_t)
    void PyErr_Fetch(PyObject **, PyObject **, PyObject **)
    void PyErr_Restore(PyObject *, PyObject *, PyObject *)

cdef extern from *:
    """
    #define owned(handle) ((void *)(handle))  /* Cython takes what a function gives for a new reference */
    """
    Value owned(PyObject *handle)

# --- The tape ---------------------------------------------------------------------------------------------------------

cdef enum:
    NONE = 0  # the node that is not there; marked as visited, so that no search goes there
    BLOCK = 4096  # Values lie in blocks of so many, which never move
    MAXIMUM_NODES = 1 << 30
    MAXIMUM_EDGES = 1 << 30

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

cdef enum:  # marks
    VISITED = 1  # by the search under way; leaves always are, as there is nothing below them
    NAMED = 2  # has a label, or the name of an operation of its own

cdef struct Handle:  # a Value, as it lies in memory
    PyObject head
    int32_t node  # of one that is about to be freed, the next such

cdef struct Edges:  # to any number of nodes; the two arrays lie behind it, in the same memory
    int32_t count
    int32_t *nodes
    double *numbers  # of a CUSTOM, the local derivatives; of a DOT, the data
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
    uint8_t *marks
    Operands *operands
    Details *details
    double *data
    double *grad
    int64_t capacity
    Handle **blocks
    int64_t room  # for so many nodes there are elements and Values
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


cdef int add_block() except -1:
    """Make Values for the nodes behind those that have one."""
    cdef int64_t block = tape.room // BLOCK, k
    cdef Handle *handles
    tape.blocks = <Handle **>resized(tape.blocks, block + 1, sizeof(Handle *))
    handles = tape.blocks[block] = <Handle *>resized(NULL, BLOCK, sizeof(Handle))
    for k in range(BLOCK):
        PyObject_Init(&handles[k].head, <PyTypeObject *>Value)
        Py_SET_REFCNT(&handles[k].head, 0)
        handles[k].node = <int32_t>(tape.room + k)
    tape.room += BLOCK
    return 0


cdef int grow(int64_t count) except -1:
    cdef int64_t needed = tape.used + count, capacity
    if needed > MAXIMUM_NODES:
        raise OverflowError(f"at most {MAXIMUM_NODES} values can be alive at once")
    if needed > tape.capacity:
        capacity = max((needed + BLOCK - 1) // BLOCK * BLOCK, 2 * tape.capacity)
        tape.operation = <uint8_t *>resized(tape.operation, capacity, sizeof(uint8_t))
        tape.marks = <uint8_t *>resized(tape.marks, capacity, sizeof(uint8_t))
        tape.operands = <Operands *>resized(tape.operands, capacity, sizeof(Operands))
        tape.details = <Details *>resized(tape.details, capacity, sizeof(Details))
        tape.data = <double *>resized(tape.data, capacity, sizeof(double))
        tape.grad = <double *>resized(tape.grad, capacity, sizeof(double))
        tape.capacity = capacity
    while tape.room < needed:
        add_block()
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
    return make_room(count) if tape.room - tape.used < count else 0


# Places are given out in the order of the tape, so that what is made together lies together, however long a program
# has been running. The search starts over when at least half of the tape is free.

cdef void find_place() noexcept:
    """Let `tape.next` be a free place."""
    cdef void *place = memchr(tape.operation + tape.next, FREE, tape.used - tape.next)
    if place == NULL and (2 * tape.free >= tape.used or tape.used == tape.room):
        place = memchr(tape.operation, FREE, tape.used)
    if place != NULL:
        tape.next = <uint8_t *>place - tape.operation
    else:
        tape.next = tape.used
        tape.used += 1
        tape.free += 1


# Making a node. Each function needs room reserved, takes over one reference to each operand, and gives one away.

cdef inline PyObject *handle_of(int32_t node) noexcept:
    """The Value of a node; no reference to it."""
    return &tape.blocks[<uint32_t>node // BLOCK][<uint32_t>node % BLOCK].head


cdef inline int32_t new_node(Operation operation, double data) noexcept:
    cdef int32_t node
    if tape.next == tape.used or tape.operation[tape.next] != FREE:
        find_place()
    node = <int32_t>tape.next
    tape.next += 1
    tape.free -= 1
    tape.operation[node] = operation
    tape.marks[node] = VISITED if operation == LEAF else 0
    Py_SET_REFCNT(handle_of(node), 1)
    tape.data[node] = data
    tape.grad[node] = 0.0
    return node


cdef inline int32_t leaf(double data) noexcept:
    cdef int32_t node = new_node(LEAF, data)
    tape.operands[node].edges = NULL
    return node


cdef void make_custom(int32_t node, double data, Edges *edges) noexcept:
    """Make a node of one's own of a node: with these edges, or a leaf where they are NULL."""
    tape.operation[node] = LEAF if edges == NULL else CUSTOM
    if edges == NULL:
        tape.marks[node] |= VISITED
    else:
        tape.marks[node] &= ~VISITED
    tape.operands[node].edges = edges
    tape.details[node].dot.factors = edges  # as if of a DOT, for the search
    tape.data[node], tape.grad[node] = data, 0.0


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
    edges.users = 1  # who makes them
    edges.searched = 0
    tape.edges += count
    return edges


cdef void free_edges(Edges *edges) noexcept:
    tape.edges -= edges.count
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
        Py_INCREF(values[k])
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
        Py_INCREF(handle_of(edges.nodes[k]))
        Py_INCREF(handle_of(factors.nodes[k]))
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


# Keeping and freeing. What is about to be freed is a linked list through `Handle.node`: freeing needs no memory and no
# recursion.

cdef inline int32_t hold(Value value) noexcept:
    """The node of a Value, with a new reference."""
    Py_INCREF(<PyObject *>value)
    return value.node


cdef inline int32_t give_up(int32_t node, int32_t doomed) noexcept:
    """Give up one reference; with the last one, the node joins the list of what is doomed. Returns that list."""
    cdef PyObject *handle = handle_of(node)
    if Py_REFCNT(handle) > 1:
        Py_DECREF(handle)
        return doomed
    (<Handle *>handle).node = doomed
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


cdef inline int32_t leave_operands(int32_t node, int32_t doomed) noexcept:
    """Give up what this node was computed from; the list, as above."""
    cdef Operation operation = <Operation>tape.operation[node]
    cdef int32_t *children
    if operation == DOT or operation == CUSTOM:
        doomed = leave(tape.operands[node].edges, doomed)
        if operation == DOT:
            doomed = leave(tape.details[node].dot.factors, doomed)
    elif operation != LEAF:
        children = tape.operands[node].children
        doomed = give_up(children[0], doomed)
        if children[1] != NONE:
            doomed = give_up(children[1], doomed)
    return doomed


cdef void free_all(int32_t doomed) noexcept:
    """Free the nodes of this list, and then whatever lived only through them."""
    cdef Handle *handle
    cdef int32_t node
    while doomed != NONE:
        node = doomed
        handle = <Handle *>handle_of(node)
        doomed = leave_operands(node, handle.node)
        handle.node = node
        if tape.marks[node] & NAMED:
            forget_names(node)
        tape.operation[node] = FREE
        tape.free += 1


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
            if not tape.marks[edges.nodes[k]] & VISITED:
                return False
        edges.searched = tape.searches
    return True


cdef int32_t reached(int32_t node, int32_t k) noexcept:
    """The first term of this DOT or child of this CUSTOM, from k on, that the search has not been at."""
    cdef Edges *edges = tape.operands[node].edges
    cdef Edges *factors = tape.details[node].dot.factors
    if k == 0 and all_visited(edges) and all_visited(factors):
        return edges.count
    while k < edges.count and tape.marks[edges.nodes[k]] & tape.marks[factors.nodes[k]] & VISITED:
        k += 1
    return k


cdef int64_t search(int32_t root) except -1:
    """Fill the order and return its length. What is in it is then marked as VISITED."""
    cdef int64_t top = extend(tape.path_capacity) if tape.path_capacity == 0 else tape.path_capacity
    cdef int64_t length = 0
    cdef int32_t node = root, first, last
    cdef int32_t *children
    cdef int32_t *path = tape.path
    cdef uint8_t *marks = tape.marks
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
        elif marks[node] & VISITED:
            continue
        else:
            marks[node] |= VISITED
            if tape.operation[node] == DOT and tape.details[node].dot.grad != 0.0:
                expand(node)  # the gradients of its hidden nodes are to accumulate
                marks = tape.marks
        operands = &tape.operands[node]
        if tape.operation[node] < DOT:
            children = operands.children
            if marks[children[0]] & marks[children[1]] & VISITED:
                path[length] = node
                length += 1
                continue
            top -= 1
            path[top] = ~node
            if not marks[children[1]] & VISITED:
                top -= 1
                path[top] = children[1]
            if not marks[children[0]] & VISITED:
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


cdef inline void sweep_node(int32_t node) noexcept:
    """Apply the chain rule to a node other than a DOT: add to the gradients of its children."""
    cdef double grad = tape.grad[node]
    cdef double *grads = tape.grad
    cdef double *local_grads = tape.details[node].local_grads
    cdef int32_t *children = tape.operands[node].children
    cdef Edges *edges
    cdef int32_t k
    if tape.operation[node] == ADD:
        grads[children[0]] += grad
        grads[children[1]] += grad
    elif tape.operation[node] == MULTIPLY:
        grads[children[0]] += local_grads[0] * grad
        grads[children[1]] += local_grads[1] * grad
    elif tape.operation[node] == CUSTOM:
        edges = tape.operands[node].edges
        for k in range(edges.count):
            grads[edges.nodes[k]] += edges.numbers[k] * tape.grad[node]
    elif tape.operation[node] != LEAF:
        grads[children[0]] += local_grads[0] * grad


cdef void sweep(int64_t length) noexcept:
    """Apply the chain rule along the order, from its end, and take the marks of the search back."""
    cdef int32_t node
    cdef int32_t *order = tape.path
    while length > 0:
        length -= 1
        node = order[length]
        if node < 0:
            node = ~node
            length -= 2
            sweep_dot(node, order[length], order[length + 1])
        else:
            sweep_node(node)
        tape.marks[node] &= ~VISITED


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


cdef tuple items_of(str name, str what, object x):
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

cdef dict ops = {}  # the names of operations of one's own, by node
cdef dict labels = {}


cdef int set_name(dict names, int32_t node, str name) except -1:
    """Let a node have this name among these, until it has another one or is freed."""
    names[node] = PyUnicode_FromObject(name)  # a subclass could have a destructor, which ran while nodes are freed
    tape.marks[node] |= NAMED
    return 0


cdef str name_of(dict names, int32_t node):
    return names.get(node, "") if tape.marks[node] & NAMED else ""


cdef void forget_names(int32_t node) noexcept:
    cdef PyObject *error[3]  # one may be on its way while nodes are freed
    PyErr_Fetch(&error[0], &error[1], &error[2])
    ops.pop(node, None)
    labels.pop(node, None)
    PyErr_Restore(error[0], error[1], error[2])


cdef inline Value new_value(int32_t node):
    """The Value of a node, whose first reference it takes over. Cannot fail."""
    return owned(handle_of(node))


cdef inline Value value_of(int32_t node):
    """The Value of a node, with a new reference."""
    return <Value>handle_of(node)


# These take the place of what Cython makes: a Value is not allocated, but has its place.

cdef PyObject *allocate(PyTypeObject *type, Py_ssize_t items) except NULL:
    """A new leaf, to be initialised."""
    reserve(1)
    return handle_of(leaf(0.0))


cdef void deallocate(PyObject *value) noexcept:
    """Free the node that neither Python nor the tape refers to any more."""
    cdef int32_t node = (<Handle *>value).node
    (<Handle *>value).node = NONE
    free_all(node)


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
    cdef int32_t b = operand(other)
    return NotImplemented if b == NONE else new_value(add(hold(a), b))


cdef inline object times(Value a, object other):
    cdef int32_t b = operand(other)
    return NotImplemented if b == NONE else new_value(multiply(hold(a), b))


cdef inline int32_t raised(Value base, double exponent) except -1:
    """The node base**exponent, with room for two more."""
    cdef double x = tape.data[base.node]
    cdef double data = power(x, exponent), local_grad = exponent * power(x, exponent - 1.0)
    reserve(3)
    return raised_node(hold(base), exponent, data, local_grad)


@cython.final
cdef class Value:
    # The first lines are where `inspect.signature` finds what the constructor takes.
    """Value(data, children=(), local_grads=(), op="", label="")\n--\n
    A scalar that remembers how it was computed, so that `backward` can differentiate through it.

    Args:
        data: the number.
        children, local_grads, op: for an operation of your own: the values that it was computed from, the derivative
            with respect to each, and a name. `Value(math.sin(x.data), (x,), (math.cos(x.data),), "sin")`
        label: a name for this value, for whoever draws the graph.

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
    `_children` and `_local_grads` (tuples), `_prev` (a set), `_op`. One value is one object, however it is reached, for
    as long as anything was computed from it; values are equal if they are the same. `_backward` is a method: other than
    in micrograd, an operation of your own is told by its `local_grads`.
    """

    cdef int32_t node

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
        if op or tape.marks[self.node] & NAMED:
            set_name(ops, self.node, op)
        if label or tape.marks[self.node] & NAMED:
            set_name(labels, self.node, label)
        if values or op:
            edges = new_edges(len(values))
            for k in range(edges.count):
                edges.nodes[k] = hold(<Value>values[k])
                edges.numbers[k] = slopes[k]
        free_all(leave_operands(self.node, NONE))  # where it was initialised before
        make_custom(self.node, number, edges)

    @property
    def data(self):
        return tape.data[self.node]

    @property
    def grad(self):
        return tape.grad[self.node]

    @property
    def label(self):
        return name_of(labels, self.node)

    def __setattr__(self, name, value):  # sooner here than found among the attributes of the type
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
        return new_value(multiply(hold(self), leaf(-1.0)))

    def __sub__(left, right):
        """left + right * -1, and left + -right for a number on the right."""
        cdef double number = 0.0
        if type(right) is not Value:
            if not as_number(right, &number):
                return NotImplemented
            reserve(2)
            return new_value(add(hold(<Value>left), leaf(-number)))
        if type(left) is not Value:
            if not as_number(left, &number):
                return NotImplemented
            reserve(4)
            return new_value(add(multiply(hold(<Value>right), leaf(-1.0)), leaf(number)))
        reserve(3)
        return new_value(add(hold(<Value>left), multiply(hold(<Value>right), leaf(-1.0))))

    def __truediv__(left, right):
        """left * right**-1."""
        cdef double number = 0.0
        if type(right) is not Value:
            if not as_number(right, &number):
                return NotImplemented
            number = power(number, -1.0)
            reserve(2)
            return new_value(multiply(hold(<Value>left), leaf(number)))
        if type(left) is not Value:
            if not as_number(left, &number):
                return NotImplemented
            return new_value(multiply(raised(<Value>right, -1.0), leaf(number)))
        return new_value(multiply(hold(<Value>left), raised(<Value>right, -1.0)))

    def __pow__(left, right, modulo):
        cdef double exponent = 0.0
        if modulo is not None or type(left) is not Value:
            return NotImplemented
        if type(right) is Value:
            raise TypeError("the exponent of ** must be an int or a float, not a Value")
        if not as_number(right, &exponent):
            return NotImplemented
        return new_value(raised(<Value>left, exponent))

    def exp(self):
        """e to the power of this value."""
        cdef double data = exponential(tape.data[self.node])
        reserve(1)
        return new_value(unary(EXP, hold(self), data, data))

    def log(self):
        """The natural logarithm; `ValueError` where this value is not positive."""
        cdef double data = logarithm(tape.data[self.node])
        reserve(1)
        return new_value(unary(LOG, hold(self), data, 1.0 / tape.data[self.node]))

    def relu(self):
        """This value where it is positive, otherwise 0."""
        cdef bint positive = tape.data[self.node] > 0.0
        reserve(1)
        return new_value(unary(RELU, hold(self), tape.data[self.node] if positive else 0.0, positive))

    def tanh(self):
        """The hyperbolic tangent."""
        cdef double data = tanh(tape.data[self.node])
        reserve(1)
        return new_value(unary(TANH, hold(self), data, 1.0 - data * data))

    def backward(self):
        """Add to the `grad` of every value below this one the derivative of this value with respect to it.

        The order is depth-first, children left to right, then reversed: the original's, which decides the last bits.
        There is no recursion, and no limit to the depth.
        """
        cdef int64_t length
        try:
            length = search(self.node)
        except (MemoryError, OverflowError):
            for node in range(tape.used):
                if tape.operation[node] != LEAF:
                    tape.marks[node] &= ~VISITED
            raise
        tape.grad[self.node] = 1.0
        sweep(length)

    def _backward(self):
        """Add to the `grad` of each child what it gets from this value's: one step of `backward`."""
        if tape.operation[self.node] == DOT:
            expand(self.node)
        sweep_node(self.node)

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
            return tuple([value_of(edges.nodes[k]) for k in range(edges.count)])
        if operation == DOT:
            expand(self.node)
        a, b = tape.operands[self.node].children[0], tape.operands[self.node].children[1]
        return (value_of(a),) if b == NONE else (value_of(a), value_of(b))

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
            return name_of(ops, self.node)
        if operation == POWER:
            return f"**{<object>tape.details[self.node].local_grads[1]:g}"
        return LABELS[operation]

    def __repr__(self):
        return f"Value(data={self.data}, grad={self.grad})"

    def __reduce__(self):
        return (restored, (self.data, self.grad, self.label))


def restored(data, grad, label):
    """The leaf that a pickle or a copy of a Value becomes."""
    value = Value(data, label=label)
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
    cdef Py_ssize_t terms
    cdef int32_t node
    cdef Edges *edges
    cdef Edges *factors = edges_to(PySequence_Fast_ITEMS(inputs), len(inputs))
    try:
        for row in w:
            row = values(row)
            terms = min(PySequence_Fast_GET_SIZE(row), len(inputs))
            if terms == 0:
                result.append(0)  # an empty sum()
                continue
            reserve(1)
            edges = edges_to(PySequence_Fast_ITEMS(row), terms)
            node = dot(edges, factors)
            leave(edges, NONE)
            result.append(new_value(node))
    finally:
        free_all(leave(factors, NONE))
    return result


def softmax(logits):
    """Probabilities proportional to the exponentials of `logits`, of the same length, at least 1.

    The maximum is subtracted as a plain number: it keeps `exp` from overflowing and has no gradient.
    """
    cdef tuple inputs = tuple(values(logits))
    cdef list exponentials = [], result = []
    cdef Value value, total
    cdef double largest, data, inverse, inverse_grad
    cdef int32_t node = NONE
    if not inputs:
        raise ValueError("logits must have at least one element")
    largest = tape.data[(<Value>inputs[0]).node]
    for value in inputs:
        if tape.data[value.node] > largest:
            largest = tape.data[value.node]
    reserve(6 * len(inputs) + 1)  # all that follow
    for value in inputs:
        node = add(hold(value), leaf(-largest))
        data = exp(tape.data[node])
        exponentials.append(new_value(unary(EXP, node, data, data)))
    node = leaf(0.0)
    for value in exponentials:  # sum() starts with e + 0, where e is the first
        node = add(hold(value), node) if value is exponentials[0] else add(node, hold(value))
    total = new_value(node)
    inverse, inverse_grad = power(tape.data[node], -1.0), -1.0 * power(tape.data[node], -2.0)
    for value in exponentials:
        node = raised_node(hold(total), -1.0, inverse, inverse_grad)
        result.append(new_value(multiply(hold(value), node)))
    return result


compute_softmax = softmax  # the seed's name for it


def rmsnorm(x):
    """`x` divided by its root mean square (Zhang and Sennrich, 2019), without a gain; the same length, at least 1."""
    cdef tuple inputs = tuple(values(x))
    cdef list result = []
    cdef Value value, scale
    cdef double share
    cdef int32_t node
    cdef Edges *edges
    if not inputs:
        raise ValueError("x must have at least one element")
    share = power(<double>len(inputs), -1.0)
    reserve(len(inputs) + 6)  # all that follow
    edges = edges_to(PySequence_Fast_ITEMS(inputs), len(inputs))
    node = dot(edges, edges)
    leave(edges, NONE)
    scale = new_value(add(multiply(node, leaf(share)), leaf(1e-5)))
    scale = new_value(raised(scale, -0.5))
    for value in inputs:
        result.append(new_value(multiply(hold(value), hold(scale))))
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
        self.nodes = numpy.array([(<Value>value).node for value in values], numpy.int32)
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


(<PyTypeObject *>Value).tp_alloc = allocate
(<PyTypeObject *>Value).tp_dealloc = deallocate
if (<PyTypeObject *>Value).tp_basicsize != sizeof(Handle):
    raise SystemError("Cython makes something else of a Value than a Handle")

# Node NONE stands in for the children that a node does not have.
reserve(1)
tape.used = tape.next = 1
tape.operation[NONE], tape.marks[NONE] = LEAF, VISITED
Py_SET_REFCNT(handle_of(NONE), 1)
tape.operands[NONE].edges = NULL
tape.data[NONE] = tape.grad[NONE] = 0.0
