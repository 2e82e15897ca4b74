/* The tape of `Value`: nodes and edges, the search for their order, and the sweep that applies the chain rule.
 *
 * The tape is a structure of arrays, indexed by node. A node lives as long as Python, or a node computed from it,
 * refers to it. Then its place is used again.
 *
 * Design:
 * a) One object per node. Each place on the tape has the memory of one Value, whose reference count is the node's. So a
 *    node is one object with one `id`, even if Python drops it and reaches it again through a node computed from it,
 *    and making or dropping a Value only counts. The price is 20 bytes per node, which freeing a graph has to touch; a
 *    step of the original takes as long as with Values that are allocated one by one.
 * b) A dot product, in `linear` or `rmsnorm`, is one node, DOT. It stands for the nodes of its + and *, which are made
 *    only when Python reads them, or when their gradients have to accumulate. Order and rounding are those of the
 *    nodes that it stands for. With the original's model, a step with `linear` and `rmsnorm` is 3.0 times as fast.
 * c) The operands of a DOT are Edges: two plain arrays, so that forward and backward run over memory in order. The rows
 *    of a matrix meet the same vector, and one row meets many vectors: Edges are counted and shared, and a leaf keeps
 *    the last Edges that began with it, so that the next call finds them again. The same step is 1.17 times as fast.
 *
 * tape_room.h says how threads share the tape. Functions that can fail return a Status; none of them runs Python code.
 */
#pragma once

#include <Python.h>
#include <stdint.h>
#include <string.h>

typedef int32_t Node; /* an index into the arrays of the tape */
typedef struct Writer Writer; /* a thread that makes nodes, see tape_room.h */

enum {
    NONE = 0,          /* stands for no node; a leaf, so that searches stop there */
    BLOCK = 4096,      /* Values per block of memory; blocks never move */
    MAXIMUM = 1 << 30, /* nodes, and edges, that can be alive at once */
};

enum Status { DONE = 0, NO_MEMORY = -1, TOO_MANY_NODES = -2, TOO_MANY_EDGES = -3 };

enum Operation {
    OP_FREE,   /* a place without a node */
    OP_LEAF,
    OP_ADD,
    OP_MULTIPLY,
    OP_POWER,
    OP_EXP,
    OP_LOG,
    OP_RELU,
    OP_TANH,
    OP_DOT,    /* 0 + a1 * b1 + a2 * b2 + ..., see `expand` */
    OP_CUSTOM, /* made by the constructor, with any number of children */
};

/* The memory of a Value. */
typedef struct {
    PyObject head;
    Node node;     /* while it is dead: the next dead one */
    int32_t named; /* whether it has a label or an `_op`, to be forgotten when it is freed */
} Handle;

/* Edges to any number of nodes. The two arrays follow it in the same memory. */
typedef struct {
    int32_t count;
    Node *nodes;
    double *numbers;      /* of a CUSTOM, the local derivatives; of a DOT, the data */
    int64_t users;
    Writer *owner;        /* whoever made them */
    /* In a DOT only: */
    Node lowest, highest; /* among the nodes */
    int consecutive;      /* whether each node follows the one before it on the tape */
    int64_t visited;      /* the last search that found them all visited */
} Edges;

typedef union {
    Node children[2];
    Edges *edges; /* of a CUSTOM; of a DOT, to a1, a2, ...; of a LEAF, the last Edges that began with it, or NULL */
} Operands;

typedef union {
    double local_grads[2];
    struct {
        Edges *factors; /* to b1, b2, ..., perhaps more of them than terms */
        double grad;    /* of each of its hidden nodes */
    } dot;
} Details;

typedef struct {
    /* One element for each node. */
    uint8_t *operation;
    uint8_t *visited; /* by the current search; leaves always are, as there is nothing below them */
    Operands *operands;
    Details *details;
    double *data;
    double *grad;
    int64_t capacity;
    Handle **blocks;
    /* For Python. */
    PyTypeObject *type;
    void (*forget)(Node node); /* its names */
} Tape;

static Tape tape;

#include "tape_room.h" /* it needs the types above */

/* --- References ------------------------------------------------------------------------------------------------- */

/* The node of a Value, with a new reference, for a node that this thread makes. */
static inline Node incref(PyObject *value) {
    const Node node = node_of(value);
    Py_INCREF(value);
    refer_to(node);
    return node;
}

/* Drop one use of Edges, whose owner is held; the last user frees them. Returns the list of the dead. */
static Node release_edges(Edges *edges, Node dead) {
    if (--edges->users > 0) return dead;
    if (edges->count > 0) {
        Node first = edges->nodes[0];
        if (owns(edges, first) && tape.operation[first] == OP_LEAF && tape.operands[first].edges == edges) {
            tape.operands[first].edges = NULL;
        }
    }
    for (int32_t k = 0; k < edges->count; k++) dead = decref(edges->nodes[k], dead);
    edges->owner->edges -= edges->count;
    PyMem_Free(edges);
    return dead;
}

/* Drop the operands of a node. Returns the list of the dead. */
static inline Node release_operands(Node node, Node dead) {
    int operation = tape.operation[node];
    if (operation == OP_LEAF) return dead;
    if (operation == OP_DOT) dead = release_edges(tape.details[node].dot.factors, dead);
    if (operation >= OP_DOT) return release_edges(tape.operands[node].edges, dead);
    Node a = tape.operands[node].children[0], b = tape.operands[node].children[1];
    dead = decref(a, dead);
    return b == NONE ? dead : decref(b, dead);
}

/* Free a node. Returns the list of the dead. */
static inline Node free_operands_and_place(Node node, Node dead) {
    dead = release_operands(node, dead);
    if (handle_of(node)->named) {
        tape.forget(node);
        handle_of(node)->named = 0;
    }
    tape.operation[node] = OP_FREE;
    mine->free++;
    return dead;
}

#ifdef Py_GIL_DISABLED
static void free_node(Node node) {
    const int has_edges = tape.operation[node] == OP_DOT || tape.operation[node] == OP_CUSTOM;
    if (has_edges) hold(mine);
    free_operands_and_place(node, NONE);
    if (has_edges) let_go(mine);
}
#endif

/* Free the nodes of this list, and then all nodes that lived only through them. */
static void free_nodes(Node dead) {
    while (dead != NONE) {
        Node node = dead;
        dead = handle_of(node)->node;
        handle_of(node)->node = node;
        dead = free_operands_and_place(node, dead);
    }
}

/* Drop a use of Edges that this thread has made. */
static void drop_edges(Edges *edges) {
    hold(edges->owner);
    free_nodes(release_edges(edges, NONE));
    let_go(mine);
}

/* --- Nodes ------------------------------------------------------------------------------------------------------ */
/* Each function needs room reserved, takes over one reference to each operand, and gives one away. */

static inline Node new_node(int operation, double data) {
    if (!is_free_place(mine->next)) find_place();
    Node node = (Node)mine->next++;
    mine->free--;
    tape.operation[node] = (uint8_t)operation;
    tape.visited[node] = operation == OP_LEAF;
    tape.data[node] = data;
    tape.grad[node] = 0.0;
    refer_once(node);
    return node;
}

static inline Node new_leaf(double data) {
    Node node = new_node(OP_LEAF, data);
    tape.operands[node].edges = NULL;
    return node;
}

static inline Node new_sum(Node a, Node b) {
    Node node = new_node(OP_ADD, tape.data[a] + tape.data[b]);
    tape.operands[node] = (Operands){.children = {a, b}};
    return node;
}

static inline Node new_product(Node a, Node b) {
    Node node = new_node(OP_MULTIPLY, tape.data[a] * tape.data[b]);
    tape.operands[node] = (Operands){.children = {a, b}};
    tape.details[node] = (Details){.local_grads = {tape.data[b], tape.data[a]}};
    return node;
}

static inline Node new_unary(int operation, Node a, double data, double local_grad) {
    Node node = new_node(operation, data);
    tape.operands[node] = (Operands){.children = {a, NONE}};
    tape.details[node].local_grads[0] = local_grad;
    return node;
}

static inline Node new_power(Node base, double exponent, double data, double local_grad) {
    Node node = new_unary(OP_POWER, base, data, local_grad);
    tape.details[node].local_grads[1] = exponent; /* for `_op` */
    return node;
}

/* Turn a node into a CUSTOM with these Edges, or into a leaf if they are NULL. */
static void initialise(Node node, double data, Edges *edges) {
    int is_new_leaf = is_mine(node) && tape.operation[node] == OP_LEAF && tape.operands[node].edges == NULL;
    if (edges != NULL || !is_new_leaf) {
        hold(owner_of(node));
        refer_from(node);
        free_nodes(release_operands(node, NONE));
        tape.operation[node] = edges == NULL ? OP_LEAF : OP_CUSTOM;
        tape.visited[node] = edges == NULL;
        tape.operands[node].edges = edges;
        tape.details[node].dot.factors = edges; /* as in a DOT, for the search */
        let_go(owner_of(node));
    }
    tape.data[node] = data;
    tape.grad[node] = 0.0;
}

/* --- Edges ------------------------------------------------------------------------------------------------------ */

static int new_edges(int64_t count, Edges **result) {
    if (mine->edges + count > MAXIMUM) return TOO_MANY_EDGES;
    Edges *edges = PyMem_Malloc(sizeof(Edges) + (size_t)count * (sizeof(double) + sizeof(Node)));
    if (edges == NULL) return NO_MEMORY;
    edges->count = (int32_t)count;
    edges->numbers = (double *)(edges + 1);
    edges->nodes = (Node *)(edges->numbers + count);
    edges->users = 1;
    edges->owner = mine;
    edges->visited = 0;
    mine->edges += count;
    *result = edges;
    return DONE;
}

/* Whether Edges lead to the nodes of these Values, and the data there is unchanged, bit for bit. */
static int edges_match(const Edges *edges, PyObject **values, int64_t count) {
    if (edges->count != count) return 0;
    for (int64_t k = 0; k < count; k++) {
        Node node = node_of(values[k]);
        if (edges->nodes[k] != node || memcmp(&edges->numbers[k], &tape.data[node], sizeof(double)) != 0) return 0;
    }
    return 1;
}

static int find_edges(PyObject **values, int64_t count, Edges **result) {
    Node first = count > 0 ? node_of(values[0]) : NONE;
    int has_last = first != NONE && is_mine(first) && tape.operation[first] == OP_LEAF;
    Edges **last = has_last ? &tape.operands[first].edges : NULL;
    if (last != NULL && *last != NULL && edges_match(*last, values, count)) {
        *result = *last;
        (*last)->users++;
        return DONE;
    }
    int status = new_edges(count, result);
    if (status != DONE) return status;
    Edges *edges = *result;
    edges->lowest = MAXIMUM;
    edges->highest = NONE;
    edges->consecutive = 1;
    for (int64_t k = 0; k < count; k++) {
        Node node = incref(values[k]);
        edges->nodes[k] = node;
        edges->numbers[k] = tape.data[node];
        if (k > 0 && node != edges->nodes[k - 1] + 1) edges->consecutive = 0;
        if (node < edges->lowest) edges->lowest = node;
        if (node > edges->highest) edges->highest = node;
    }
    if (last != NULL) *last = edges;
    return DONE;
}

/* Edges to the nodes of these Values, for one more user: the previous Edges of the first leaf, if they still match. */
static int edges_to(PyObject **values, int64_t count, Edges **result) {
    hold(mine);
    int status = find_edges(values, count, result);
    let_go(mine);
    return status;
}

/* 0 + a1 * b1 + a2 * b2 + ... over the nodes these Edges lead to; a new user of both. It needs room for one node. */
static Node new_dot(Edges *edges, Edges *factors) {
    double total = 0.0;
    for (int32_t k = 0; k < edges->count; k++) total += edges->numbers[k] * factors->numbers[k];
    hold(mine);
    edges->users++;
    factors->users++;
    let_go(mine);
    Node node = new_node(OP_DOT, total);
    tape.operands[node].edges = edges;
    tape.details[node].dot.factors = factors;
    tape.details[node].dot.grad = 0.0;
    return node;
}

/* Replace a DOT, whose owner is held, by the nodes that it stands for, with the gradients they would have by now. */
static int expand(Node node) {
    Edges *edges = tape.operands[node].edges, *factors = tape.details[node].dot.factors;
    double grad = tape.details[node].dot.grad;
    int status = reserve_nodes(2 * (int64_t)edges->count);
    if (status != DONE) return status;
    Node total = new_leaf(0.0), product = NONE;
    for (int32_t k = 0; k < edges->count; k++) {
        Node a = incref(&handle_of(edges->nodes[k])->head), b = incref(&handle_of(factors->nodes[k])->head);
        product = new_node(OP_MULTIPLY, edges->numbers[k] * factors->numbers[k]);
        tape.operands[product] = (Operands){.children = {a, b}};
        tape.details[product] = (Details){.local_grads = {factors->numbers[k], edges->numbers[k]}};
        tape.grad[product] = tape.grad[total] = grad;
        if (k == 0) { /* sum() starts with p + 0, where p is the first product */
            Node zero = total;
            total = product;
            product = zero;
        }
        if (k < edges->count - 1) total = new_sum(total, product);
    }
    refer_from(node);
    tape.operation[node] = OP_ADD;
    tape.operands[node] = (Operands){.children = {total, product}};
    free_nodes(release_edges(factors, release_edges(edges, NONE)));
    return DONE;
}

/* --- Backward --------------------------------------------------------------------------------------------------- */
/* The order is the depth-first post-order of what lies below the root, children left to right, without leaves. A DOT is
 * in it once for every run of terms that no other node comes between, as (begin, end, ~node). On the stack, `node` is
 * still to be visited. `~node` has been visited, and enters the order when the search returns to it. `~NONE` stands for
 * a DOT or CUSTOM that has been visited in part: beside it are the term to resume at and the node. */

/* Make room between the order and the stack. Returns the new top of the stack, or a Status. */
static int64_t widen_path(int64_t top) {
    int64_t size = mine->path_capacity - top, capacity = 2 * mine->path_capacity + 64;
    RESIZE(mine->path, capacity);
    memmove(mine->path + capacity - size, mine->path + top, (size_t)size * sizeof(Node));
    mine->path_capacity = capacity;
    return capacity - size;
}

/* Whether this search has visited all of these nodes; once true it is remembered, because DOTs share Edges. */
static int all_visited(Edges *edges) {
    if (edges->visited == mine->searches) return 1;
    for (int32_t k = 0; k < edges->count; k++) {
        if (!tape.visited[edges->nodes[k]]) return 0;
    }
    edges->visited = mine->searches;
    return 1;
}

/* The first term of a DOT or child of a CUSTOM, from k on, that the search has not visited; their number if none. */
static int32_t first_unvisited(Node node, int32_t k) {
    Edges *edges = tape.operands[node].edges, *factors = tape.details[node].dot.factors;
    if (k == 0 && all_visited(edges) && all_visited(factors)) return edges->count;
    while (k < edges->count && tape.visited[edges->nodes[k]] && tape.visited[factors->nodes[k]]) k++;
    return k;
}

/* Take back the marks of a search that fails, with the order and the stack as they are. Returns the Status. */
static int64_t give_up(int64_t length, int64_t top, int64_t status) {
    const Node *path = mine->path;
    while (length > 0) {
        Node node = path[--length];
        if (node < 0) length -= 2;
        tape.visited[node < 0 ? ~node : node] = 0;
    }
    while (top < mine->path_capacity) {
        Node node = path[top++];
        if (node == ~NONE) {
            tape.visited[path[top + 1]] = 0;
            top += 2;
        } else if (node < 0) {
            tape.visited[~node] = 0;
        }
    }
    return status;
}

/* Fill the order and return its length, or a Status. All nodes in the order are then `visited`. */
static int64_t fill_order(Node root) {
    int64_t top = mine->path_capacity, length = 0;
    if (top == 0 && (top = widen_path(0)) < 0) return top;
    begin_search();
    Node *path = mine->path;
    uint8_t *visited = tape.visited;
    path[--top] = root;
    while (top < mine->path_capacity) {
        Node node = path[top++];
        if (node < ~NONE) {
            path[length++] = ~node;
            continue;
        }
        if (top - length < 8) {
            int64_t wider = widen_path(top);
            if (wider < 0) return give_up(length, top - 1, wider);
            top = wider;
            path = mine->path;
        }
        int32_t begin = 0;
        if (node == ~NONE) {
            begin = path[top];
            node = path[top + 1];
            top += 2;
        } else if (visited[node]) {
            continue;
        } else {
            visited[node] = 1;
            if (tape.operation[node] == OP_DOT && tape.details[node].dot.grad != 0.0) {
                int status = expand(node); /* the gradients of its hidden nodes are to accumulate */
                if (status != DONE) {
                    visited[node] = 0;
                    return give_up(length, top, status);
                }
                visited = tape.visited;
            }
        }
        Operands *operands = &tape.operands[node];
        if (tape.operation[node] < OP_DOT) {
            Node a = operands->children[0], b = operands->children[1];
            if (visited[a] && visited[b]) {
                path[length++] = node;
                continue;
            }
            path[--top] = ~node;
            if (!visited[b]) path[--top] = b;
            if (!visited[a]) path[--top] = a;
            continue;
        }
        int32_t end = first_unvisited(node, begin);
        if (tape.operation[node] == OP_DOT && end > begin) {
            path[length++] = begin;
            path[length++] = end;
            path[length++] = ~node;
        }
        if (end < operands->edges->count) {
            top -= 5;
            path[top] = operands->edges->nodes[end];
            path[top + 1] = tape.details[node].dot.factors->nodes[end];
            path[top + 2] = ~NONE;
            path[top + 3] = end;
            path[top + 4] = node;
        } else if (tape.operation[node] == OP_CUSTOM) {
            path[length++] = node;
        }
    }
    return length;
}

/* Add `grad` times these numbers to the gradients of the nodes that Edges lead to, last to first. */
static inline void accumulate(double grad, const double *numbers, const Edges *edges, int32_t begin, int32_t end) {
    double *grads = tape.grad;
    if (edges->consecutive) { /* no gradient occurs twice, so any order will do */
        grads += edges->nodes[0];
        for (int32_t k = begin; k < end; k++) grads[k] += numbers[k] * grad;
    } else {
        for (int32_t k = end - 1; k >= begin; k--) grads[edges->nodes[k]] += numbers[k] * grad;
    }
}

/* Apply the chain rule to these terms of a DOT. */
static void sweep_dot(Node node, int32_t begin, int32_t end) {
    Edges *edges = tape.operands[node].edges, *factors = tape.details[node].dot.factors;
    double *grads = tape.grad, grad = 0.0 + grads[node];
    tape.details[node].dot.grad = grad;
    if (edges->highest < factors->lowest || factors->highest < edges->lowest) { /* no node is in both */
        accumulate(grad, factors->numbers, edges, begin, end);
        accumulate(grad, edges->numbers, factors, begin, end);
        return;
    }
    for (int32_t k = end - 1; k >= begin; k--) {
        grads[edges->nodes[k]] += factors->numbers[k] * grad;
        grads[factors->nodes[k]] += edges->numbers[k] * grad;
    }
}

/* Apply the chain rule to a node other than a DOT: add to the gradients of its children. */
static inline void sweep_node(Node node) {
    const double *local_grads = tape.details[node].local_grads;
    const Node *children = tape.operands[node].children;
    double *grads = tape.grad, grad = grads[node];
    int operation = tape.operation[node];
    if (operation == OP_ADD) {
        grads[children[0]] += grad;
        grads[children[1]] += grad;
    } else if (operation == OP_MULTIPLY) {
        grads[children[0]] += local_grads[0] * grad;
        grads[children[1]] += local_grads[1] * grad;
    } else if (operation == OP_CUSTOM) {
        const Edges *edges = tape.operands[node].edges;
        for (int32_t k = 0; k < edges->count; k++) grads[edges->nodes[k]] += edges->numbers[k] * grad;
    } else if (operation != OP_LEAF) {
        grads[children[0]] += local_grads[0] * grad;
    }
}

static int sweep_held(Node root) {
    int64_t length = fill_order(root);
    if (length < 0) return (int)length;
    const Node *order = mine->path;
    tape.grad[root] = 1.0;
    while (length > 0) {
        Node node = order[--length];
        if (node < 0) {
            node = ~node;
            length -= 2;
            sweep_dot(node, order[length], order[length + 1]);
        } else {
            sweep_node(node);
        }
        tape.visited[node] = 0;
    }
    return DONE;
}

/* Set the gradient of the root to 1, and add to the gradient of every node below it the derivative of the root. */
static int sweep(Node root) {
    int status = reserve_nodes(0);
    if (status != DONE) return status;
    int all = hold_below(root);
    status = sweep_held(root);
    let_go_below(all);
    return status;
}

/* Apply the chain rule to a single node. */
static int sweep_alone(Node node) {
    int status = reserve_nodes(0);
    if (status != DONE) return status;
    int all = hold_below(node);
    if (tape.operation[node] == OP_DOT) status = expand(node);
    if (status == DONE) sweep_node(node);
    let_go_below(all);
    return status;
}

/* --- The beginning ---------------------------------------------------------------------------------------------- */

static int begin_tape(PyTypeObject *type, void (*forget)(Node node)) {
    tape.type = type;
    tape.forget = forget;
    int status = begin_room();
    if (status == DONE) status = reserve_nodes(1);
    if (status != DONE) return status;
    new_leaf(0.0); /* NONE */
    return DONE;
}
