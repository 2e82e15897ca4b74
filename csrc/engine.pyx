# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The compiled engine: a flat tape of fused operations over one arena, run forward, backward, and updated by Adam.

It knows no files, no text and no progress bars. Its callers hand it arrays that have been validated
(`microgpt.packing`), and it trusts them. `microgpt.reference_engine` is its twin.
"""
from cpython.exc cimport PyErr_CheckSignals
from libc.math cimport INFINITY, isfinite, pow
from libc.stdint cimport int32_t, int64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

import numpy


cdef extern from "kernels/interface.h" nogil:
    enum: LINE_BYTES

    ctypedef enum OperationKind:
        EMBEDDING, RMSNORM, LINEAR, ATTENTION, UNEMBEDDING, CROSS_ENTROPY

    ctypedef enum Epilogue:
        STORE, ADD, RELU, RELU_BACKWARD

    ctypedef struct Operation:
        OperationKind kind
        Epilogue epilogue, backward_epilogue
        bint accumulate
        int64_t n_in, n_out
        int64_t input, output, input_gradient, output_gradient
        int64_t residual, saved
        double scale
        const int64_t *weight_rows
        int64_t packed, packed_transposed, cache

    ctypedef struct Workspace:
        void *arena
        const void *parameters
        void *gradients
        int64_t num_wte, num_wpe, vocab_size, n_embd, n_head, block_size
        int64_t rows, documents
        const int32_t *tokens
        const int32_t *targets
        const int32_t *positions
        const int64_t *document_start
        const int64_t *attention_start
        const double *loss_gradient
        double *losses
        void *scratch
        void *const *caches

    ctypedef struct AdamStep:
        double learning_rate, beta1, beta2, eps, bias1, bias2

    ctypedef void (*Kernel)(const Operation *, const Workspace *) noexcept nogil

    ctypedef struct Kernels:
        const char *instruction_set
        size_t itemsize
        Kernel pack
        Kernel *forward
        Kernel *backward
        void (*adam)(int64_t n, void *parameters, const void *gradients, void *m, void *v, const AdamStep *) noexcept nogil
        void (*softmax)(int64_t n, void *logits, double temperature, double *probabilities) noexcept nogil
        double (*multiply_add_loop)(int64_t iterations) noexcept nogil
        double (*divide_root_loop)(int64_t iterations) noexcept nogil
        int64_t multiply_adds_per_iteration, divide_roots_per_iteration

cdef extern from "kernels/levels.h" nogil:
    ctypedef struct Level:
        const Kernels *float64
        const Kernels *float32
        bint supported

    Level microgpt_level(int i)
cdef extern from "<time.h>" nogil:
    ctypedef long time_t
    struct timespec:
        time_t tv_sec
        long tv_nsec
    int TIME_UTC
    int timespec_get(timespec *, int base)


cdef enum:
    INTERVAL_NS = 50_000_000  # how often a long run looks up: for Ctrl-C, to report progress
    HEAVY_STEP = 1_000_000  # rows x parameters from which a single step may take that long


cdef inline int64_t now_ns() noexcept nogil:
    cdef timespec t
    timespec_get(&t, TIME_UTC)
    return <int64_t>t.tv_sec * 1_000_000_000 + t.tv_nsec


def instruction_sets():
    """Names of the instruction sets this processor runs, best first."""
    cdef int i = 0
    names = []
    while microgpt_level(i).float64 != NULL:
        if microgpt_level(i).supported:
            names.append(microgpt_level(i).float64.instruction_set.decode())
        i += 1
    return names


cdef const Kernels *find_kernels(str dtype, str instruction_set) except NULL:
    cdef int i = 0
    cdef Level level = microgpt_level(0)
    while level.float64 != NULL:
        if level.supported and level.float64.instruction_set.decode() == instruction_set:
            return level.float64 if dtype == "float64" else level.float32
        i += 1
        level = microgpt_level(i)
    raise ValueError(f"instruction set {instruction_set!r} is not one of {', '.join(instruction_sets())}")


cdef void *address(array, dtype, size) except NULL:
    """Where a one-dimensional array of this type and size starts. The border: past it, nothing is checked again."""
    if array.dtype != dtype or array.shape != (size,) or not array.flags.c_contiguous or not array.flags.writeable:
        raise ValueError(f"expected a writeable, contiguous array of {size} {dtype}, got {array.shape} {array.dtype}")
    return <void *><uintptr_t>array.ctypes.data


cdef inline void set_biases(AdamStep *step, int64_t step_count) noexcept nogil:
    step.bias1 = 1 - pow(step.beta1, <double>step_count)
    step.bias2 = 1 - pow(step.beta2, <double>step_count)


cdef class Cache:
    """The keys and values of `samples` documents in progress, one row of `store` for each."""

    cdef readonly object store
    cdef readonly object lengths  # positions of each document so far

    def __init__(self, store):
        self.store = store
        self.lengths = numpy.zeros(len(store), numpy.int32)


cdef class Engine:
    """The compiled engine behind `GPT`.

    `parameters` and `gradients` are flat arrays in the order of `config.parameter_shapes()`, shared with the caller.
    Source: the summation order of microgpt's autograd graph, worked out; kernels/*.h says it operation by operation.
    """

    cdef const Kernels *kernels
    cdef Workspace workspace
    cdef Operation *tape
    cdef int64_t tape_length, tape_size
    cdef int64_t row_capacity, document_capacity, attention_capacity
    cdef int64_t logits, cache_size, num_params, line
    cdef int64_t looked_up
    cdef bint heavy
    cdef readonly object config, parameters, gradients
    cdef object dtype, progress
    cdef object arena, weight_rows  # what the addresses above point into
    cdef object tokens, targets, positions, document_start, attention_start, loss_gradient, losses

    def __cinit__(self):
        self.tape = NULL

    def __init__(self, config, parameters, gradients, str instruction_set):
        self.config = config
        self.dtype = parameters.dtype
        self.kernels = find_kernels(self.dtype.name, instruction_set)
        self.num_params = config.num_params
        self.line = LINE_BYTES // self.dtype.itemsize
        self.parameters = parameters
        self.gradients = gradients
        self.workspace.parameters = address(parameters, self.dtype, self.num_params)
        self.workspace.gradients = address(gradients, self.dtype, self.num_params)
        self.workspace.vocab_size = config.vocab_size
        self.workspace.n_embd = config.n_embd
        self.workspace.n_head = config.n_head
        self.workspace.block_size = config.block_size
        self.workspace.num_wte = config.vocab_size * config.n_embd
        self.workspace.num_wpe = config.block_size * config.n_embd
        self.workspace.caches = NULL
        self.tape_size = 5 + 7 * config.n_layer
        self.tape = <Operation *>calloc(self.tape_size, sizeof(Operation))
        if self.tape == NULL:
            raise MemoryError()
        self.weight_rows = self._weight_rows()
        self.lay_out(min(config.block_size, 64), 1, self.attention_elements(min(config.block_size, 64)))

    def __dealloc__(self):
        free(self.tape)

    # --- The tape: which operation reads and writes what ------------------------------------------------------------

    def _weight_rows(self):
        """For each matrix product of a model, where each output's weights start, in the order outputs are stored."""
        starts, start = {}, 0
        for name, (n_out, n_in) in self.config.parameter_shapes().items():
            starts[name] = start + n_in * numpy.arange(n_out, dtype=numpy.int64)
            start += n_out * n_in
        head_dim = self.config.n_embd // self.config.n_head
        products = {"lm_head": starts["lm_head"]}
        for i in range(self.config.n_layer):
            heads = [starts[f"layer{i}.attn_w{part}"].reshape(-1, 1, head_dim) for part in "qkv"]
            products[f"layer{i}.attn_wqkv"] = numpy.concatenate(heads, axis=1).ravel()  # head by head: q, k, v
            for name in ("attn_wo", "mlp_fc1", "mlp_fc2"):
                products[f"layer{i}.{name}"] = starts[f"layer{i}.{name}"]
        return {name: numpy.ascontiguousarray(rows) for name, rows in products.items()}

    cdef int64_t stride(self, int64_t width) noexcept nogil:
        return (width + self.line - 1) // self.line * self.line

    cdef int64_t attention_elements(self, int64_t positions) noexcept nogil:
        """What ATTENTION saves for a document; kernels/attention.h says what it is."""
        return self.workspace.n_head * self.stride(positions) * (positions + 2)

    cdef Operation *record(self, OperationKind kind, n_in, n_out, input, output) except NULL:
        cdef Operation *op = &self.tape[self.tape_length]
        if self.tape_length == self.tape_size:
            raise AssertionError("the tape is full")
        self.tape_length += 1
        op.kind, op.n_in, op.n_out, op.input, op.output = kind, n_in, n_out, input, output
        op.epilogue = op.backward_epilogue = STORE
        op.residual = op.saved = op.input_gradient = op.output_gradient = -1
        op.packed = op.packed_transposed = op.cache = -1
        op.accumulate = False
        op.weight_rows = NULL
        if kind == RMSNORM:
            op.scale = pow(n_in, -1)
        elif kind == ATTENTION:
            op.scale = pow(pow(self.workspace.n_embd // self.workspace.n_head, 0.5), -1)
        return op

    cdef int lay_out(self, int64_t rows, int64_t documents, int64_t attention) except -1:
        """Give every array of the tape its place in one arena, with room for batches up to these sizes."""
        cdef Operation *op
        cdef int64_t n_embd = self.config.n_embd, vocab_size = self.config.vocab_size, layer
        cdef int64_t head_dim = n_embd // self.config.n_head, context = min(self.config.block_size, rows)
        size = 0  # a Python integer: it cannot overflow

        def take(elements):
            nonlocal size
            start, size = size, size + (elements + self.line - 1) // self.line * self.line
            return start

        def take_rows(width):
            return take(rows * int(self.stride(width)))

        def take_pair():
            return take(2 * int(self.stride(rows)))

        packed = {}
        for name, weight_rows in self.weight_rows.items():
            n_out, n_in = len(weight_rows), 4 * n_embd if name.endswith("mlp_fc2") else n_embd
            in_order = n_in % self.line == 0 and not name.endswith("attn_wqkv")
            packed[name] = (-1 if in_order else take(self.stride(n_in) * n_out), take(self.stride(n_out) * n_in))

        # Gradients of activations live from one backward operation to the next, so layers share them.
        d_stream = take_rows(n_embd)  # of the residual stream: the same array before and after each block
        d_inner, d_qkv = take_rows(n_embd), take_rows(3 * n_embd)
        d_hidden, d_logits = take_rows(4 * n_embd), take_rows(vocab_size)

        self.tape_length = 0

        embedded, stream = take_rows(n_embd), take_rows(n_embd)
        op = self.record(EMBEDDING, 0, n_embd, -1, embedded)
        op.output_gradient = d_stream
        op = self.record(RMSNORM, n_embd, n_embd, embedded, stream)
        op.output_gradient, op.input_gradient, op.saved = d_stream, d_stream, take_pair()

        for layer in range(self.config.n_layer):
            # 1) Multi-head attention
            normed, qkv = take_rows(n_embd), take_rows(3 * n_embd)
            attended, attended_stream = take_rows(n_embd), take_rows(n_embd)
            op = self.record(RMSNORM, n_embd, n_embd, stream, normed)
            op.output_gradient, op.input_gradient, op.saved = d_inner, d_stream, take_pair()
            op.accumulate = True
            op = self.record_product(LINEAR, f"layer{layer}.attn_wqkv", packed, n_embd, normed, qkv)
            op.output_gradient, op.input_gradient = d_qkv, d_inner
            op = self.record(ATTENTION, 3 * n_embd, n_embd, qkv, attended)
            op.output_gradient, op.input_gradient, op.saved = d_inner, d_qkv, take(attention)
            op.cache = layer * self.cache_elements()
            op = self.record_product(LINEAR, f"layer{layer}.attn_wo", packed, n_embd, attended, attended_stream)
            op.epilogue, op.residual = ADD, stream
            op.output_gradient, op.input_gradient = d_stream, d_inner
            # 2) Multi-layer perceptron
            normed, hidden, stream = take_rows(n_embd), take_rows(4 * n_embd), take_rows(n_embd)
            op = self.record(RMSNORM, n_embd, n_embd, attended_stream, normed)
            op.output_gradient, op.input_gradient, op.saved = d_inner, d_stream, take_pair()
            op.accumulate = True
            op = self.record_product(LINEAR, f"layer{layer}.mlp_fc1", packed, n_embd, normed, hidden)
            op.epilogue = RELU
            op.output_gradient, op.input_gradient = d_hidden, d_inner
            op = self.record_product(LINEAR, f"layer{layer}.mlp_fc2", packed, 4 * n_embd, hidden, stream)
            op.epilogue, op.residual, op.backward_epilogue = ADD, attended_stream, RELU_BACKWARD
            op.output_gradient, op.input_gradient = d_stream, d_hidden

        self.logits = take_rows(vocab_size)
        op = self.record_product(UNEMBEDDING, "lm_head", packed, n_embd, stream, self.logits)
        op.output_gradient, op.input_gradient = d_logits, d_stream
        op = self.record(CROSS_ENTROPY, vocab_size, 0, self.logits, -1)
        op.input_gradient, op.saved = d_logits, take_pair()

        # Room for one head of the longest document (attention.h), or for two numbers a row.
        scratch = take(max(2 * self.stride(rows), self.stride(context) * head_dim + 2 * context * self.line,
                           self.stride(self.config.block_size)))
        take(self.line)  # a kernel may read, not use, the rest of a line past the end of an array

        itemsize = self.dtype.itemsize
        try:
            self.arena = numpy.zeros(size * itemsize + LINE_BYTES, numpy.uint8)
        except (MemoryError, ValueError, OverflowError):
            raise MemoryError(f"a batch of {rows} positions takes {size * itemsize} bytes of activations") from None
        cdef uintptr_t start = (<uintptr_t>self.arena.ctypes.data + LINE_BYTES - 1) // LINE_BYTES * LINE_BYTES
        self.workspace.arena = <void *>start
        self.workspace.scratch = <void *>(start + <uintptr_t>(scratch * itemsize))

        self.row_capacity, self.document_capacity, self.attention_capacity = rows, documents, attention
        self.tokens, self.targets, self.positions = (numpy.zeros(rows, numpy.int32) for _ in range(3))
        self.loss_gradient, self.losses = numpy.zeros(rows), numpy.zeros(rows)
        self.document_start = numpy.zeros(documents + 1, numpy.int64)
        self.attention_start = numpy.zeros(documents, numpy.int64)
        self.workspace.tokens = <int32_t *>address(self.tokens, numpy.int32, rows)
        self.workspace.targets = <int32_t *>address(self.targets, numpy.int32, rows)
        self.workspace.positions = <int32_t *>address(self.positions, numpy.int32, rows)
        self.workspace.loss_gradient = <double *>address(self.loss_gradient, numpy.float64, rows)
        self.workspace.losses = <double *>address(self.losses, numpy.float64, rows)
        self.workspace.document_start = <int64_t *>address(self.document_start, numpy.int64, documents + 1)
        self.workspace.attention_start = <int64_t *>address(self.attention_start, numpy.int64, documents)
        self.pack()

    cdef Operation *record_product(self, OperationKind kind, name, packed, n_in, input, output) except NULL:
        rows = self.weight_rows[name]
        cdef Operation *op = self.record(kind, n_in, len(rows), input, output)
        op.weight_rows = <const int64_t *>address(rows, numpy.int64, len(rows))
        op.packed, op.packed_transposed = packed[name]
        return op

    cdef int64_t cache_elements(self):
        """Elements of one layer's keys and values in a cache; kernels/attention.h says how they lie."""
        block_size, n_embd = self.workspace.block_size, self.workspace.n_embd
        return self.stride(block_size) * n_embd + block_size * self.stride(n_embd)

    # --- Running it ---------------------------------------------------------------------------------------------------

    cdef int look_up(self, int64_t completed) except -1 nogil:
        """Let Ctrl-C and the progress callback through, if it has been a while."""
        cdef int64_t now = now_ns()
        if 0 <= now - self.looked_up < INTERVAL_NS:
            return 0
        self.looked_up = now
        with gil:
            PyErr_CheckSignals()
            if self.progress is not None and completed >= 0:
                self.progress(completed)
        return 0

    cdef void pack(self) noexcept nogil:
        cdef int64_t i
        for i in range(self.tape_length):
            if self.tape[i].weight_rows != NULL:
                self.kernels.pack(&self.tape[i], &self.workspace)

    cdef int forward(self, OperationKind last) except -1 nogil:
        cdef int64_t i
        for i in range(self.tape_length):
            self.kernels.forward[<int>self.tape[i].kind](&self.tape[i], &self.workspace)
            if self.heavy:
                self.look_up(-1)
            if self.tape[i].kind == last:
                break
        return 0

    cdef int backward(self) except -1 nogil:
        cdef int64_t i
        for i in range(self.tape_length - 1, -1, -1):
            self.kernels.backward[<int>self.tape[i].kind](&self.tape[i], &self.workspace)
            if self.heavy:
                self.look_up(-1)
        return 0

    cdef int64_t positions_of(self, int64_t tokens) noexcept nogil:
        return min(self.workspace.block_size, tokens - 1)

    cdef int reserve(self, const int64_t[::1] lengths, int64_t batch_size) except -1:
        """Room for the largest batch of `batch_size` consecutive documents of these lengths."""
        cdef int64_t d, n, rows = 0, attention = 0, most_rows = 1, most_attention = 1
        for d in range(lengths.shape[0]):
            if d % batch_size == 0:
                rows, attention = 0, 0
            n = self.positions_of(lengths[d])
            rows += n
            attention += self.attention_elements(n)
            most_rows, most_attention = max(most_rows, rows), max(most_attention, attention)
        if (most_rows > self.row_capacity or most_attention > self.attention_capacity
                or batch_size > self.document_capacity):
            self.lay_out(max(most_rows, self.row_capacity), max(batch_size, self.document_capacity),
                         max(most_attention, self.attention_capacity))
        return 0

    cdef double batch(self, const int32_t *tokens, const int64_t *starts, const int64_t *lengths,
                      int64_t documents) except? -1 nogil:
        """Pack these documents end to end, run forward, and return the loss."""
        cdef Workspace *w = &self.workspace
        cdef int64_t d, n, p, r = 0, attention = 0
        cdef double total = 0.0, document_total, share = 1.0 / <double>documents
        for d in range(documents):
            n = self.positions_of(lengths[d])
            (<int64_t *>w.document_start)[d] = r
            (<int64_t *>w.attention_start)[d] = attention
            attention += self.attention_elements(n)
            for p in range(n):
                (<int32_t *>w.tokens)[r] = tokens[starts[d] + p]
                (<int32_t *>w.targets)[r] = tokens[starts[d] + p + 1]
                (<int32_t *>w.positions)[r] = <int32_t>p
                (<double *>w.loss_gradient)[r] = (1.0 / <double>n) * share
                r += 1
        (<int64_t *>w.document_start)[documents] = r
        w.rows, w.documents = r, documents
        self.heavy = r * self.num_params > HEAVY_STEP
        self.pack()
        self.forward(CROSS_ENTROPY)
        for d in range(documents):
            document_total = 0.0
            for r in range(w.document_start[d], w.document_start[d + 1]):
                document_total += w.losses[r]
            total += document_total * (1.0 / <double>(w.document_start[d + 1] - w.document_start[d]))
        return total * share

    def loss(self, packed):
        """Mean over the documents of `packed` of the mean over their positions, in nats."""
        cdef const int32_t[::1] tokens = packed.tokens
        cdef const int64_t[::1] starts = packed.starts, lengths = packed.lengths
        cdef double loss
        self.reserve(lengths, lengths.shape[0])
        with nogil:
            loss = self.batch(&tokens[0], &starts[0], &lengths[0], lengths.shape[0])
        return loss

    def loss_and_gradients(self, packed):
        """The loss, as `loss` gives it; `gradients` then holds its derivatives."""
        loss = self.loss(packed)
        with nogil:
            self.backward()
        return loss

    def adam_step(self, adam, double learning_rate):
        """Move `parameters` against `gradients`, see `update_with_adam`."""
        update_with_adam(self.parameters, self.gradients, adam, learning_rate,
                         self.kernels.instruction_set.decode())

    def train(self, packed, int64_t batch_size, const double[::1] learning_rates, adam, double[::1] losses, progress):
        """Run one step of Adam for each learning rate, each on the next `batch_size` documents of `packed`.

        Fills `losses` and returns how many steps were made: fewer than asked for where a loss, then the last one
        filled, was not finite. Counts in `adam.step_count`, also when interrupted. `progress`, a function of the
        number of steps completed, is called now and then.
        """
        cdef const int32_t[::1] tokens = packed.tokens
        cdef const int64_t[::1] starts = packed.starts, lengths = packed.lengths
        cdef int64_t completed = 0, steps = learning_rates.shape[0], step_count = adam.step_count
        cdef AdamStep step
        cdef void *m = address(adam.m, self.dtype, self.num_params)
        cdef void *v = address(adam.v, self.dtype, self.num_params)
        if starts.shape[0] != steps * batch_size or lengths.shape[0] != starts.shape[0] or losses.shape[0] != steps:
            raise ValueError(f"{starts.shape[0]} documents and {losses.shape[0]} losses for {steps} steps of {batch_size}")
        if steps == 0:
            return 0
        step.beta1, step.beta2, step.eps = adam.beta1, adam.beta2, adam.eps
        self.reserve(lengths, batch_size)
        self.progress = progress
        self.looked_up = now_ns()
        try:
            with nogil:
                while completed < steps:
                    losses[completed] = self.batch(&tokens[0], &starts[completed * batch_size],
                                                   &lengths[completed * batch_size], batch_size)
                    if not isfinite(losses[completed]):
                        break
                    self.backward()
                    step.learning_rate = learning_rates[completed]
                    step_count += 1
                    set_biases(&step, step_count)
                    self.kernels.adam(self.num_params, <void *>self.workspace.parameters, self.workspace.gradients,
                                      m, v, &step)
                    completed += 1
                    self.look_up(completed)
        finally:
            adam.step_count = step_count
            self.progress = None
        return completed

    # --- Inference ----------------------------------------------------------------------------------------------------

    def logits_of(self, const int32_t[::1] tokens):
        """Logits over what follows each of up to block_size tokens, shape (len(tokens), vocab_size)."""
        cdef int64_t[::1] start = numpy.zeros(1, numpy.int64), length = numpy.array([tokens.shape[0] + 1], numpy.int64)
        cdef Workspace *w = &self.workspace
        cdef int64_t r
        self.reserve(length, 1)
        (<int64_t *>w.document_start)[0], (<int64_t *>w.document_start)[1] = 0, tokens.shape[0]
        (<int64_t *>w.attention_start)[0] = 0
        w.rows, w.documents = tokens.shape[0], 1
        for r in range(w.rows):
            (<int32_t *>w.tokens)[r] = tokens[r]
            (<int32_t *>w.positions)[r] = <int32_t>r
        with nogil:
            self.pack()
            self.forward(UNEMBEDDING)
        return self.rows_of_logits().copy()

    cdef rows_of_logits(self):
        cdef int64_t n = self.workspace.rows, width = self.stride(self.workspace.vocab_size)
        cdef int64_t start = <int64_t>(<uintptr_t>self.workspace.arena - <uintptr_t>self.arena.ctypes.data)
        elements = self.arena[start:][:self.arena.size - LINE_BYTES].view(self.dtype)
        return elements[self.logits : self.logits + n * width].reshape(n, width)[:, : self.workspace.vocab_size]

    def new_cache(self, int64_t samples):
        """Caches for `samples` new documents, to be continued with the parameters as they are now."""
        self.pack()
        elements = self.config.n_layer * self.cache_elements() + self.line  # kernels read the rest of a line past the end
        return Cache(numpy.zeros((samples, elements), self.dtype))

    def next_probabilities(self, Cache cache, int64_t[::1] samples, const int32_t[::1] tokens, double temperature):
        """Append one token to each of these samples of `cache`: probabilities of what follows, (samples, vocab_size)."""
        cdef Workspace *w = &self.workspace
        cdef int64_t n = samples.shape[0], r, width = self.stride(w.vocab_size)
        cdef int32_t[::1] lengths = cache.lengths
        cdef char[:, ::1] store = cache.store.view(numpy.int8)
        cdef uintptr_t[::1] caches = numpy.empty(n, numpy.uintp)
        probabilities = numpy.empty((n, w.vocab_size))
        cdef double[:, ::1] out = probabilities
        if n > self.row_capacity:
            self.lay_out(n, self.document_capacity, self.attention_capacity)
        for r in range(n):
            if lengths[samples[r]] >= w.block_size:
                raise ValueError(f"sample {samples[r]} already has block_size={w.block_size} tokens")
            (<int32_t *>w.tokens)[r] = tokens[r]
            (<int32_t *>w.positions)[r] = lengths[samples[r]]
            lengths[samples[r]] += 1
            caches[r] = <uintptr_t>&store[samples[r], 0]
        w.rows, w.documents = n, n
        w.caches = <void *const *>&caches[0]
        try:
            with nogil:
                self.forward(UNEMBEDDING)
                for r in range(n):
                    self.kernels.softmax(w.vocab_size, <char *>w.arena + (self.logits + r * width) * <int64_t>self.kernels.itemsize,
                                         temperature, &out[r, 0])
        finally:
            w.caches = NULL
        return probabilities


def update_with_adam(parameters, gradients, adam, double learning_rate, str instruction_set=None):
    """Move flat `parameters` against their `gradients`, by default with the best instruction set.

    `adam` has m, v, beta1, beta2, eps and step_count, which it counts.
    """
    cdef const Kernels *kernels = find_kernels(parameters.dtype.name, instruction_set or instruction_sets()[0])
    cdef AdamStep step
    cdef int64_t n = len(parameters)
    cdef void *parameters_start = address(parameters, parameters.dtype, n)
    cdef void *gradients_start = address(gradients, parameters.dtype, n)
    cdef void *m = address(adam.m, parameters.dtype, n)
    cdef void *v = address(adam.v, parameters.dtype, n)
    step.learning_rate, step.beta1, step.beta2, step.eps = learning_rate, adam.beta1, adam.beta2, adam.eps
    adam.step_count += 1
    set_biases(&step, adam.step_count)
    kernels.adam(n, parameters_start, gradients_start, m, v, &step)


def multiply_adds(str dtype, str instruction_set, int64_t iterations):
    """Multiply and add in registers only, at the speed limit of the machine; how many elements, that often."""
    cdef const Kernels *kernels = find_kernels(dtype, instruction_set)
    with nogil:
        kernels.multiply_add_loop(iterations)
    return iterations * kernels.multiply_adds_per_iteration


def divisions_and_roots(str dtype, str instruction_set, int64_t iterations):
    """Divide and take square roots in registers only, as Adam must once a parameter; how many elements, that often."""
    cdef const Kernels *kernels = find_kernels(dtype, instruction_set)
    with nogil:
        kernels.divide_root_loop(iterations)
    return iterations * kernels.divide_roots_per_iteration
