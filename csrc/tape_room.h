/* Room on the tape of Values, and which thread may change what. Included by scalar_tape.h.
 *
 * There is one tape, so a value can be computed from values of any thread. A Writer makes and frees its nodes.
 *
 * With the GIL there is one Writer, the arrays grow by reallocation, and the GIL guards everything: nothing here
 * releases it, or runs Python code while the tape is half changed. Without it (Py_GIL_DISABLED):
 *
 * a) Each thread has a Writer, which owns spans of the tape. Only its thread makes and frees nodes there, and needs no
 *    lock for that: what goes into a new node, the data of others, can be read by anybody. So the arrays must not move:
 *    their addresses are reserved at the beginning, and get memory when a Writer takes a span.
 * b) A node whose last reference another thread drops is posted to its owner, who frees it when it needs room.
 * c) The lock of a Writer guards its Edges, and whatever changes nodes that others may read: marks and gradients of a
 *    backward pass, and the operands of a DOT that is expanded. A pass over values of this thread alone holds its own
 *    lock, so threads do not wait for each other. Any other pass holds all locks, as if there were a GIL.
 * d) The Writer of a thread that has ended is idle until a new thread continues with it.
 */
#pragma once

#define RESIZE(array, count)                                                            \
    do {                                                                                \
        void *resized = PyMem_RawRealloc(array, (size_t)(count) * sizeof(*(array)));    \
        if (resized == NULL) return NO_MEMORY;                                          \
        (array) = resized;                                                              \
    } while (0)

static inline Handle *handle_of(Node node) { return &tape.blocks[(uint32_t)node / BLOCK][(uint32_t)node % BLOCK]; }

static inline Node node_of(PyObject *value) { return ((Handle *)value)->node; }

/* The memory of the Values of a block, or NULL. */
static Handle *new_handles(int64_t first) {
    Handle *handles = PyMem_RawMalloc(BLOCK * sizeof(Handle));
    for (int k = 0; handles != NULL && k < BLOCK; k++) {
        PyObject_Init(&handles[k].head, tape.type);
        handles[k].node = (Node)(first + k);
        handles[k].named = 0;
    }
    return handles;
}

#ifndef Py_GIL_DISABLED /* --- With the GIL ----------------------------------------------------------------------- */

struct Writer {
    int64_t room;     /* nodes that have elements and Values */
    int64_t used;     /* places from here on have never been used */
    int64_t free;     /* how many places before that are free */
    int64_t next;     /* where the search for a free place begins */
    int64_t edges;    /* in all Edges together */
    int64_t searches; /* how many there have been */
    /* For backward. */
    Node *path;       /* the order from the left, the stack from the right */
    int64_t path_capacity;
};

static Writer writer;
#define mine (&writer)

static inline void refer_to(Node node) { (void)node; }
static inline int is_mine(Node node) { (void)node; return 1; }
static inline void hold(Writer *owner) { (void)owner; }
static inline void let_go(Writer *owner) { (void)owner; }
static inline Writer *owner_of(Node node) { (void)node; return mine; }
static inline int hold_below(Node root) { (void)root; return 0; }
static inline void let_go_below(int all) { (void)all; }
static inline void begin_search(void) { mine->searches++; }
static inline int is_free_place(int64_t place) { return place != mine->used && tape.operation[place] == OP_FREE; }
static inline void refer_once(Node node) { Py_SET_REFCNT(&handle_of(node)->head, 1); }

static inline void refer_from(Node node) { (void)node; }
static inline int owns(const Edges *edges, Node node) { (void)edges, (void)node; return 1; }

static int begin_room(void) { return DONE; }

/* Drop one reference. With the last one, the node joins the list of the dead, which is returned: a linked list through
 * their Handles, so that freeing needs no memory and no recursion. */
static inline Node decref(Node node, Node dead) {
    Handle *handle = handle_of(node);
    if (Py_REFCNT(&handle->head) > 1) {
        Py_DECREF(&handle->head);
        return dead;
    }
    handle->node = dead;
    return node;
}

static void free_nodes(Node dead);

/* Free the node of a Value that nothing refers to any more. */
static void free_value(PyObject *value) {
    Node node = node_of(value);
    ((Handle *)value)->node = NONE;
    free_nodes(node);
}

static int grow(int64_t count) {
    int64_t needed = mine->used + count;
    if (needed > MAXIMUM) return TOO_MANY_NODES;
    if (needed > tape.capacity) {
        int64_t capacity = (needed + BLOCK - 1) / BLOCK * BLOCK;
        if (capacity < 2 * tape.capacity) capacity = 2 * tape.capacity;
        RESIZE(tape.operation, capacity);
        RESIZE(tape.visited, capacity);
        RESIZE(tape.operands, capacity);
        RESIZE(tape.details, capacity);
        RESIZE(tape.data, capacity);
        RESIZE(tape.grad, capacity);
        tape.capacity = capacity;
    }
    while (mine->room < needed) {
        int64_t block = mine->room / BLOCK;
        RESIZE(tape.blocks, block + 1);
        if ((tape.blocks[block] = new_handles(mine->room)) == NULL) return NO_MEMORY;
        mine->room += BLOCK;
    }
    return DONE;
}

static int make_room(int64_t count) {
    if (2 * mine->free >= mine->used && mine->free >= count) return DONE;
    int status = grow(count);
    return mine->free >= count ? DONE : status;
}

/* Make room for this many nodes: making them then cannot fail. */
static inline int reserve_nodes(int64_t count) {
    return mine->room - mine->used >= count ? DONE : make_room(count);
}

/* Point `next` at a free place. Places are given out in the order of the tape, so that nodes made together lie
 * together, however long a program has been running. The search starts over when at least half of the tape is free. */
static void find_place(void) {
    uint8_t *place = memchr(tape.operation + mine->next, OP_FREE, (size_t)(mine->used - mine->next));
    if (place == NULL && (2 * mine->free >= mine->used || mine->used == mine->room)) {
        place = memchr(tape.operation, OP_FREE, (size_t)mine->used);
    }
    if (place != NULL) {
        mine->next = place - tape.operation;
    } else {
        mine->next = mine->used++;
        mine->free++;
    }
}

#else /* --- Without the GIL ---------------------------------------------------------------------------------------- */

#include <stdatomic.h>
#if defined(_WIN32)
#include <windows.h>
#else
#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>
#endif

typedef struct {
    int64_t begin, end;
} Span;

struct Writer {
    /* The same two for the last of the spans that this Writer owns. */
    int64_t room;
    int64_t used;
    /* For all of them. */
    Span *spans;           /* the end of the last one is `room` */
    int64_t span_count;
    int64_t places;        /* that have been used, in all spans */
    int64_t free;
    int64_t next;
    int64_t turn, turn_end; /* the span that `next` is in, and where the places end that have been used there */
    _Atomic int64_t edges;
    int64_t searches;      /* the number of the last search */
    Node *path;
    int64_t path_capacity;
    Node dead;             /* own nodes to be freed, linked as in `decref` */
    int freeing;           /* whether that is being done */
    _Atomic Node posted;   /* own nodes that died in other threads */
    _Atomic int mixed;     /* whether a node has ever referred to a node of another Writer */
    PyMutex lock;
    Writer *previous;      /* the Writer that was made before this one */
    Writer *next_idle;
};

static struct {
    PyMutex lock;                 /* taken before those of Writers, for what follows and to hold all of them */
    Writer *last;
    _Atomic(Writer *) idle;
    _Atomic int64_t claimed;      /* places that have an owner */
    _Atomic int64_t searches;
    Writer **owners;              /* of each block */
} writers;

static _Thread_local Writer *mine; /* NULL until this thread makes its first node */
static _Thread_local int holding;  /* how many locks this thread has */

static void free_node(Node node);

static inline Writer *owner_of(Node node) { return writers.owners[(uint32_t)node / BLOCK]; }

static inline int is_mine(Node node) { return owner_of(node) == mine; }

static inline int owns(const Edges *edges, Node node) { return edges->owner == owner_of(node); }

/* A node that this thread makes is going to refer to `node`. */
static inline void refer_to(Node node) {
    if (!is_mine(node)) atomic_store_explicit(&mine->mixed, 1, memory_order_relaxed);
}

/* `node` is going to refer to nodes that this thread has made. */
static inline void refer_from(Node node) {
    if (!is_mine(node)) atomic_store_explicit(&owner_of(node)->mixed, 1, memory_order_relaxed);
}

/* A new node has one reference, the caller's. */
static inline void refer_once(Node node) { _Py_NewReference(&handle_of(node)->head); }

static inline void begin_search(void) { mine->searches = atomic_fetch_add(&writers.searches, 1) + 1; }

/* --- The dead --------------------------------------------------------------------------------------------------- */

/* Free the nodes that are waiting for it, unless this is being done or locks are held: freeing Edges takes one. */
static void free_dead(void) {
    if (mine == NULL || mine->freeing || holding) return;
    mine->freeing = 1;
    while (mine->dead != NONE) {
        Node node = mine->dead;
        mine->dead = handle_of(node)->node;
        handle_of(node)->node = node;
        free_node(node);
    }
    mine->freeing = 0;
}

/* Free the node of a Value that nothing refers to any more. */
static void free_value(PyObject *value) {
    const Node node = node_of(value);
    Writer *owner = owner_of(node);
    if (owner == mine) {
        ((Handle *)value)->node = mine->dead;
        mine->dead = node;
        free_dead();
        return;
    }
    Node first = atomic_load(&owner->posted);
    do ((Handle *)value)->node = first;
    while (!atomic_compare_exchange_weak(&owner->posted, &first, node));
}

/* Drop one reference. `free_value` is called with the last one; no list of the dead comes of it here. */
static inline Node decref(Node node, Node dead) {
    Py_DECREF(&handle_of(node)->head);
    return dead;
}

/* Free the own nodes that died in other threads. */
static void free_posted(void) {
    if (atomic_load_explicit(&mine->posted, memory_order_relaxed) == NONE) return;
    Node node = atomic_exchange(&mine->posted, NONE);
    while (node != NONE) {
        const Node following = handle_of(node)->node;
        handle_of(node)->node = mine->dead;
        mine->dead = node;
        node = following;
    }
    free_dead();
}

/* The same for Writers whose threads have ended: their nodes may refer to others. */
static void free_posted_to_idle(void) {
    if (atomic_load_explicit(&writers.idle, memory_order_relaxed) == NULL) return;
    Writer *own = mine;
    PyMutex_Lock(&writers.lock);
    for (mine = atomic_load(&writers.idle); mine != NULL; mine = mine->next_idle) free_posted();
    PyMutex_Unlock(&writers.lock);
    mine = own;
}

/* --- Locks ------------------------------------------------------------------------------------------------------ */
/* A thread that holds the lock of a Writer takes no other, except all of them in their order. */

static void hold(Writer *owner) {
    PyMutex_Lock(&owner->lock);
    holding++;
}

static void let_go(Writer *owner) {
    holding--;
    PyMutex_Unlock(&owner->lock);
    free_dead();
}

/* Hold the locks that a backward pass from here needs. Returns whether these are all. Needs a Writer. */
static int hold_below(Node root) {
    free_posted();
    if (is_mine(root)) {
        hold(mine);
        if (!atomic_load_explicit(&mine->mixed, memory_order_relaxed)) return 0;
        let_go(mine);
    }
    PyMutex_Lock(&writers.lock);
    for (Writer *each = writers.last; each != NULL; each = each->previous) hold(each);
    return 1;
}

static void let_go_below(int all) {
    if (all) {
        for (Writer *each = writers.last; each != NULL; each = each->previous) {
            holding--;
            PyMutex_Unlock(&each->lock);
        }
        PyMutex_Unlock(&writers.lock);
        free_dead();
    } else {
        let_go(mine);
    }
}

/* Forget, in a forked process, the locks of other threads. They were waiting for more: all threads stop for a fork, and
 * none stops while it changes the tape. */
static void forget_locks(void) {
    writers.lock = (PyMutex){0};
    for (Writer *each = writers.last; each != NULL; each = each->previous) each->lock = (PyMutex){0};
}

/* --- Writers ---------------------------------------------------------------------------------------------------- */

static void make_idle(Writer *ended) {
    PyMutex_Lock(&writers.lock);
    ended->next_idle = atomic_load(&writers.idle);
    atomic_store(&writers.idle, ended);
    PyMutex_Unlock(&writers.lock);
}

/* The end of a thread: its dictionary is the last to refer to this capsule. */
static void end_writer(PyObject *capsule) {
    Writer *ended = PyCapsule_GetPointer(capsule, NULL);
    if (mine == ended) {
        free_posted();
        mine = NULL;
    }
    make_idle(ended);
}

/* Let this thread have a Writer: an idle one, or a new one. */
static int begin_writer(void) {
    PyMutex_Lock(&writers.lock);
    Writer *begun = atomic_load(&writers.idle);
    if (begun != NULL) {
        atomic_store(&writers.idle, begun->next_idle);
    } else if ((begun = PyMem_RawCalloc(1, sizeof(Writer))) != NULL) {
        begun->previous = writers.last;
        writers.last = begun;
    }
    PyMutex_Unlock(&writers.lock);
    if (begun == NULL) return NO_MEMORY;
    if (begun->free == begun->places) atomic_store(&begun->mixed, 0); /* it has no node */
    begun->freeing = 0; /* unless it is that of a thread which a fork has left behind */
    PyObject *kept = PyThreadState_GetDict(), *capsule = PyCapsule_New(begun, NULL, end_writer);
    if (kept == NULL || capsule == NULL || PyDict_SetItemString(kept, "microgpt.Value", capsule) < 0) {
        PyErr_Clear();
        if (capsule == NULL) make_idle(begun);
        Py_XDECREF(capsule);
        return NO_MEMORY;
    }
    Py_DECREF(capsule);
    mine = begun;
    return DONE;
}

/* --- Room ------------------------------------------------------------------------------------------------------- */

enum { PAGE = 1 << 16 }; /* a multiple of any system's */

static size_t in_pages(size_t bytes) { return (bytes + PAGE - 1) / PAGE * PAGE; }

/* Addresses without memory, or NULL. */
static char *reserve_addresses(size_t bytes) {
#if defined(_WIN32)
    return VirtualAlloc(NULL, bytes, MEM_RESERVE, PAGE_NOACCESS);
#else
    void *addresses = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0);
    return addresses == MAP_FAILED ? NULL : addresses;
#endif
}

/* Give memory to elements [begin, end) of a reserved array; it is zero. Returns whether there is enough. */
static int give_memory(void *array, size_t size, int64_t begin, int64_t end) {
    const size_t first = (size_t)begin * size / PAGE * PAGE, bytes = in_pages((size_t)end * size) - first;
#if defined(_WIN32)
    return VirtualAlloc((char *)array + first, bytes, MEM_COMMIT, PAGE_READWRITE) != NULL;
#else
    return mprotect((char *)array + first, bytes, PROT_READ | PROT_WRITE) == 0;
#endif
}

/* The arrays that have an element for each node. */
#define NODE_ARRAYS(DO) DO(operation) DO(visited) DO(operands) DO(details) DO(data) DO(grad)

/* Most bytes of addresses to reserve: all that could be needed, unless they are scarce. */
static size_t most_addresses(void) {
    size_t most = sizeof(void *) > 4 ? SIZE_MAX : (size_t)1 << 30;
#if !defined(_WIN32)
    struct rlimit limit;
    if (getrlimit(RLIMIT_AS, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && limit.rlim_cur / 4 < most) {
        most = (size_t)limit.rlim_cur / 4;
    }
#endif
    return most;
}

static int begin_room(void) {
    char *addresses = NULL;
    const size_t most = most_addresses();
#define ADD_BYTES(array) bytes += in_pages((size_t)tape.capacity * sizeof(*tape.array));
    for (tape.capacity = MAXIMUM; addresses == NULL; tape.capacity /= 2) {
        size_t bytes = 0;
        if (tape.capacity < BLOCK) return NO_MEMORY;
        NODE_ARRAYS(ADD_BYTES)
        if (bytes <= most && (addresses = reserve_addresses(bytes)) != NULL) break;
    }
#define PLACE(array)                                                    \
    tape.array = (void *)addresses;                                     \
    addresses += in_pages((size_t)tape.capacity * sizeof(*tape.array));
    NODE_ARRAYS(PLACE)
    tape.blocks = PyMem_RawCalloc((size_t)(tape.capacity / BLOCK), sizeof(*tape.blocks));
    writers.owners = PyMem_RawCalloc((size_t)(tape.capacity / BLOCK), sizeof(*writers.owners));
#if !defined(_WIN32)
    if (pthread_atfork(NULL, NULL, forget_locks) != 0) return NO_MEMORY;
#endif
    return tape.blocks == NULL || writers.owners == NULL ? NO_MEMORY : DONE;
}

/* Give memory to the places [begin, end), and let this thread own them. */
static int furnish(int64_t begin, int64_t end) {
#define GIVE_MEMORY(array) \
    if (!give_memory(tape.array, sizeof(*tape.array), begin, end)) return NO_MEMORY;
    NODE_ARRAYS(GIVE_MEMORY)
    for (int64_t block = begin / BLOCK; block < end / BLOCK; block++) {
        if (tape.blocks[block] == NULL && (tape.blocks[block] = new_handles(block * BLOCK)) == NULL) return NO_MEMORY;
        writers.owners[block] = mine;
    }
    return DONE;
}

/* Take a span with places for at least this many nodes; if it follows the last one, the two become one. */
static int grow(int64_t count) {
    const int64_t size = (count + BLOCK - 1) / BLOCK * BLOCK;
    int64_t begin = atomic_load(&writers.claimed), end;
    RESIZE(mine->spans, mine->span_count + 1);
    do {
        end = begin + size;
        if (end > tape.capacity) return tape.capacity < MAXIMUM ? NO_MEMORY : TOO_MANY_NODES;
    } while (!atomic_compare_exchange_weak(&writers.claimed, &begin, end));
    if (furnish(begin, end) != DONE) {
        atomic_compare_exchange_strong(&writers.claimed, &end, begin); /* unless others have claimed more since */
        return NO_MEMORY;
    }
    if (mine->span_count == 0 || begin != mine->room) {
        mine->free += mine->room - mine->used;
        mine->places += mine->room - mine->used;
        if (mine->span_count == 0) mine->next = mine->turn_end = begin;
        else if (mine->turn == mine->span_count - 1) mine->turn_end = mine->room;
        mine->spans[mine->span_count++] = (Span){begin, begin};
        mine->used = begin;
    }
    mine->spans[mine->span_count - 1].end = mine->room = end;
    return DONE;
}

static int make_room(int64_t count) {
    if (mine == NULL) {
        int status = begin_writer();
        if (status != DONE) return status;
    }
    if (!holding) {
        free_posted();
        free_posted_to_idle();
    }
    if (mine->room - mine->used >= count || (2 * mine->free >= mine->places && mine->free >= count)) return DONE;
    int status = grow(count);
    return mine->free >= count ? DONE : status;
}

static inline int reserve_nodes(int64_t count) {
    return mine != NULL && mine->room - mine->used >= count ? DONE : make_room(count);
}

/* In these, other threads' backward passes may be changing the marks of living nodes. None becomes OP_FREE by that. */
#if defined(__SANITIZE_THREAD__)
#define MARKS_MAY_CHANGE __attribute__((no_sanitize_thread))
#else
#define MARKS_MAY_CHANGE
#endif

MARKS_MAY_CHANGE static inline int is_free_place(int64_t place) {
    return place != mine->turn_end && tape.operation[place] == OP_FREE;
}

/* The first free place from `place` in this span on, or -1; `turn` is then its span. */
MARKS_MAY_CHANGE static int64_t free_place(int64_t span, int64_t place) {
    while (span < mine->span_count) {
        const int64_t end = span == mine->span_count - 1 ? mine->used : mine->spans[span].end;
        while (place < end && tape.operation[place] != OP_FREE) place++;
        if (place < end) {
            mine->turn = span;
            return place;
        }
        if (++span < mine->span_count) place = mine->spans[span].begin;
    }
    return -1;
}

static void find_place(void) {
    int64_t place = free_place(mine->turn, mine->next);
    if (place < 0 && (2 * mine->free >= mine->places || mine->used == mine->room)) {
        place = free_place(0, mine->spans[0].begin);
    }
    if (place < 0) {
        place = mine->used++;
        mine->places++;
        mine->free++;
        mine->turn = mine->span_count - 1;
    }
    mine->next = place;
    mine->turn_end = mine->turn == mine->span_count - 1 ? mine->used : mine->spans[mine->turn].end;
}

#endif
