# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: freethreading_compatible=True
"""The compiled engine: a tape of fused operations over one arena, run forward, backward, and updated by Adam.

It knows no files, no text and no progress bars. Its callers hand it arrays that have been validated
(`microgpt.engine.packing`), and it trusts them. `microgpt.engine.reference_engine` is its twin.

Design:
a) The network is data. `microgpt.engine.network` lists the operations and the arrays between them; here each array
   gets a place in the arena, and each operation becomes a record of those places. So the engine knows no
   architecture, and a new operation changes nothing here.
b) One arena, laid out again only when a larger batch comes. A step allocates nothing and runs without the GIL, which is
   taken back 20 times a second, for signals and the progress callback.
c) Work is divided into tasks that do not depend on each other, and a team of threads takes them. Every sum is computed
   whole, within one task, so results have the same bits for any number of threads.
d) Kernels come in one table for each dtype and instruction set (kernels/interface.h), chosen once for each engine.
"""
from cpython.exc cimport PyErr_CheckSignals
from kernels cimport (
    ADD, LINE_BYTES, QUERY_PANELS, RELU, RELU_BACKWARD, STAGES, STORE, Kernels, Operation, Range, Stage,
    Workspace, find_kernel, find_kernels, instruction_set_name,
)
from libc.math cimport INFINITY, isfinite
from libc.stdint cimport int32_t, int64_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from team cimport (
    TEAM_MAXIMUM, AdamUpdate, FloatMode, Team, adam_step, begin_work, end_work, gil_after_fork, gil_before_exit,
    gil_is_exiting, now_ns, sum_shards, team_run, team_start, team_stop, team_work,
)

import atexit
import contextlib
import os
import threading

import numpy

from microgpt.engine.arrays import aligned_zeros
from microgpt.engine.exclusive import EngineLock, exclusive, free_in_forks
from microgpt.engine.network import network

cdef extern from "splitmix.h" nogil:
    double uniform_of(uint64_t seed, uint64_t document, uint64_t number)
    uint64_t stream_of(uint64_t parent, uint64_t number)
    uint64_t step_stream(uint64_t seed, uint64_t step)
    uint64_t SPLITMIX_SKIP(uint64_t counter, uint64_t n)

cdef enum:
    SLOTS = 256  # documents drawn at once: many share a step, and their keys stay in the caches
    POLL_INTERVAL_NS = 50_000_000  # between polls of signals and reports of progress
    HEAVY_STEP = 1_000_000  # rows x parameters from which a single step may take that long, and polls within itself
    SHARED_WORK = 5_000_000  # rows x parameters of a batch from which more threads are faster

_EPILOGUES = {"store": STORE, "add": ADD, "relu": RELU, "relu_backward": RELU_BACKWARD}

_PRESENT_TEAM = contextlib.nullcontext()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=gil_after_fork)
atexit.register(gil_before_exit)


def instruction_sets():
    """Names of the instruction sets this processor runs, best first."""
    cdef int i = 0
    names = []
    while instruction_set_name(i) != NULL:
        names.append(instruction_set_name(i).decode())
        i += 1
    return names


cdef const Kernels *kernels_for(str dtype, str instruction_set) except NULL:
    cdef bytes name = (instruction_set or "").encode()
    cdef const Kernels *kernels = find_kernels(name, dtype == "float64")
    if kernels == NULL:
        raise ValueError(f"instruction set {instruction_set!r} is not one of {', '.join(instruction_sets())}")
    return kernels


cdef tuple sides(activation, offsets):
    """Width of an input or output, and where in the arena its array and its gradient start."""
    if activation is None:
        return 0, -1, -1
    return activation.width, offsets[activation.array], offsets[activation.gradient.array]


cdef void *address(array, dtype, size) except NULL:
    """Address of a one-dimensional array of this type and size. Beyond this boundary, nothing is checked again."""
    if array.dtype != dtype or array.shape != (size,) or not array.flags.c_contiguous or not array.flags.writeable:
        raise ValueError(f"expected a writeable, contiguous array of {size} {dtype}, got {array.shape} {array.dtype}")
    return <void *><uintptr_t>array.ctypes.data


cdef struct Job:  # a stage of an operation, to be run by a team
    const Kernels *kernels
    const Operation *operation
    const Workspace *workspace
    const Stage *stage
    char *scratch
    int64_t scratch_bytes  # of each thread

cdef struct Shards:  # of the batches of `train`, those that this rank computes
    int64_t count, size  # shards in a batch, and documents in a shard
    double share  # of a document in the loss
    int64_t rank, ranks
    const int32_t *tokens
    const int64_t *starts  # and lengths, for each document of this rank
    const int64_t *lengths
    int64_t documents, step  # documents of this rank in a step, and the number of the step
    uint64_t stream  # of the step's random numbers
    void *gradients  # of one shard

cdef void run_stage(void *context, int64_t begin, int64_t end, int thread) noexcept nogil:
    cdef Job *job = <Job *>context
    cdef Range part
    cdef FloatMode before = begin_work(job.kernels.exact)
    part.begin, part.end, part.scratch = begin, end, job.scratch + thread * job.scratch_bytes
    job.stage.run(job.operation, job.workspace, &part)
    end_work(job.kernels.exact, before)


cdef class ThreadTeam:
    """Threads that share the work that is run inside `with`; `size` counts the one that enters it.

    They live no longer than that: there is nothing to inherit at a fork, and nothing to wait for at exit. Each thread
    holds a reference to the memory of the team, so it may start late. Where the system refuses to start more threads,
    the team is smaller.
    """

    cdef Team team
    cdef int size
    cdef list helpers

    def __cinit__(self, int size):
        team_start(&self.team, 1)
        self.size = size
        self.helpers = []

    def __enter__(self):
        try:
            for i in range(1, self.size):
                helper = threading.Thread(target=self.work, args=(i,), daemon=True)
                self.helpers.append(helper)
                try:
                    helper.start()
                except RuntimeError:  # "can't start new thread": a process limit, or Python is exiting
                    break
                self.team.size = i + 1  # no helper reads it before the first piece of work
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error):
        team_stop(&self.team)  # before Python runs again, where Ctrl-C may strike
        for helper in self.helpers:
            if helper.ident is not None:  # it was started
                helper.join()

    def work(self, int thread):
        """Share the work until the team is stopped, or Python exits."""
        with nogil:
            team_work(&self.team, thread, gil_is_exiting)


cdef class Cache:
    """The keys and values of documents in progress; a single document also has the weights, packed for it.

    Attributes:
        lengths: int32, how many tokens each document has; setting one to 0 begins a new document.
    """

    cdef readonly object lengths
    cdef object engine  # that it belongs to
    cdef object store  # a row for each panel of documents, or for the single document
    cdef object addresses  # where each of them starts
    cdef object packed  # or None
    cdef int32_t *first_length  # where the arrays of a single document start
    cdef void *first_store
    cdef void *first_packed

    def __init__(self, engine, samples, store, packed=None):
        self.engine = engine
        self.lengths = numpy.zeros(samples, numpy.int32)
        self.store = store
        self.addresses = store.ctypes.data + numpy.arange(len(store), dtype=numpy.uintp) * store.strides[0]
        self.packed = packed
        if packed is not None:
            self.first_length = <int32_t *>address(self.lengths, numpy.dtype(numpy.int32), 1)
            self.first_store = address(store.ravel(), store.dtype, store.size)
            self.first_packed = address(packed, store.dtype, packed.size)


cdef class Engine:
    """The compiled engine behind `GPT`.

    `parameters` and `gradients` are flat arrays in the order of `config.parameter_shapes()`, shared with the caller.
    `threads` is how many may share the work of a call; it changes no bit of any result.
    Source: the order of sums in microgpt's autograd graph; kernels/*.h states it operation by operation.
    """

    cdef const Kernels *kernels
    cdef Workspace workspace
    cdef ThreadTeam team
    cdef Job job
    cdef Operation *tape
    cdef int64_t tape_length, inference  # operations in all, and those up to the logits
    cdef int64_t row_capacity, attention_capacity
    cdef int64_t logits, num_params, line
    cdef uint64_t draws  # random numbers that a position takes in training
    cdef uint64_t *streams  # of the rows, see Workspace
    cdef int64_t polled_within_step, polled_after_step  # when: now_ns()
    cdef int64_t *clocks  # nanoseconds of each operation, forward and backward, of Adam and of waiting; or NULL
    cdef bint is_heavy  # the batch, see HEAVY_STEP
    cdef readonly object config, parameters, gradients, threads, lock
    cdef object dtype, progress, __weakref__
    cdef object network, arena, scratch  # what the addresses above point into
    cdef object shard  # its gradients, once there is more than one
    cdef object packed  # the weights, once there is a cache for a single document: all such caches share them
    cdef list batch_arrays

    def __cinit__(self):
        self.tape = NULL
        self.clocks = NULL

    def __init__(self, config, parameters, gradients, str instruction_set, threads):
        self.config = config
        self.lock = EngineLock()
        self.dtype = parameters.dtype
        self.kernels = kernels_for(self.dtype.name, instruction_set)
        self.num_params = config.num_params
        self.line = LINE_BYTES // self.dtype.itemsize
        self.parameters = parameters
        self.gradients = gradients
        self.threads = min(threads, TEAM_MAXIMUM)
        self.workspace.parameters = address(parameters, self.dtype, self.num_params)
        self.workspace.gradients = address(gradients, self.dtype, self.num_params)
        self.workspace.vocab_size = config.vocab_size
        self.workspace.n_embd = config.n_embd
        self.workspace.n_head = config.n_head
        self.workspace.block_size = config.block_size
        self.workspace.num_wte = config.vocab_size * config.n_embd
        self.workspace.num_wpe = config.block_size * config.n_embd
        self.workspace.caches = NULL
        self.workspace.streams = NULL
        self.network = network(config, self.line)
        self.draws = self.network.draws
        self.tape_length, self.inference = len(self.network.operations), self.network.inference
        self.tape = <Operation *>calloc(self.tape_length, sizeof(Operation))
        if self.tape == NULL:
            raise MemoryError()
        self.team = ThreadTeam(1)
        self.lay_out(1, 0)
        for i in range(self.inference):
            if self.tape[i].kernel.decode[0].run == NULL:
                raise ValueError(f"the kernel {self.network.operations[i].kernel!r} has no decode")
        free_in_forks(self)

    def __dealloc__(self):
        free(self.tape)

    # --- The tape -----------------------------------------------------------------------------------------------------

    cdef int64_t panels(self, int64_t rows) noexcept nogil:
        return (rows + self.line - 1) // self.line

    cdef int lay_out(self, int64_t rows, int64_t attention) except -1:
        """Give every array of the network its place in one arena, with room for batches up to these sizes."""
        cdef int64_t i
        padded_rows = int(self.panels(rows) * self.line)
        size, offsets = 0, {None: -1}  # Python integers: they cannot overflow
        self.row_capacity = self.attention_capacity = 0  # until all is allocated: memory may run out
        for array in self.network.arrays:
            offsets[array] = size
            elements = array.width * padded_rows + array.elements + (attention if array.triangles else 0)
            size += (elements + self.line - 1) // self.line * self.line
        size += self.line * self.line  # kernels may read, but not use, up to a square of lines past the end of an array
        for i in range(self.tape_length):
            self.record(&self.tape[i], self.network.operations[i], offsets)
        self.logits = self.tape[self.inference - 1].output

        self.arena = aligned_zeros(size, self.dtype, f"a batch of {rows:,} positions")
        self.workspace.arena = address(self.arena, self.dtype, size)
        scratch = int((self.kernels.scratch_size(&self.workspace, rows) + self.line - 1) // self.line * self.line)
        self.scratch = aligned_zeros(scratch * self.threads, self.dtype, f"a batch for {self.threads} threads")
        self.job.scratch = <char *>address(self.scratch, self.dtype, scratch * self.threads)
        self.job.scratch_bytes = scratch * self.dtype.itemsize

        starts = self.panels(rows) + 1
        self.batch_arrays = []
        self.workspace.tokens = <int32_t *>self.batch_array(numpy.int32, padded_rows)
        self.workspace.targets = <int32_t *>self.batch_array(numpy.int32, padded_rows)
        self.workspace.positions = <int32_t *>self.batch_array(numpy.int32, padded_rows)
        self.workspace.first_rows = <int32_t *>self.batch_array(numpy.int32, padded_rows)
        self.workspace.d_losses = <double *>self.batch_array(numpy.float64, padded_rows)
        self.workspace.losses = <double *>self.batch_array(numpy.float64, padded_rows)
        self.streams = <uint64_t *>self.batch_array(numpy.uint64, padded_rows)
        self.workspace.longest_of_panel = <int32_t *>self.batch_array(numpy.int32, starts)
        self.workspace.attention_start = <int64_t *>self.batch_array(numpy.int64, starts)
        self.workspace.span_start = <int64_t *>self.batch_array(numpy.int64, starts)
        self.row_capacity, self.attention_capacity = padded_rows, attention
        return 0

    cdef void *batch_array(self, dtype, size) except NULL:
        """Address of a new array of zeros, kept alive by `batch_arrays`."""
        array = numpy.zeros(size, dtype)
        self.batch_arrays.append(array)
        return address(array, dtype, size)

    cdef int record(self, Operation *op, operation, offsets) except -1:
        op.kernel = find_kernel(self.kernels, operation.kernel.encode())
        if op.kernel == NULL:
            raise ValueError(f"there are no kernels called {operation.kernel!r}")
        op.n_in, op.input, op.d_input = sides(operation.input, offsets)
        op.n_out, op.output, op.d_output = sides(operation.output, offsets)
        op.epilogue, op.backward_epilogue = _EPILOGUES[operation.epilogue], _EPILOGUES[operation.backward_epilogue]
        op.accumulate, op.scale = operation.accumulate, operation.scale
        op.residual = offsets[operation.residual.array] if operation.residual else -1
        op.saved = offsets[operation.saved]
        op.weight, op.weight_blocks = -1 if operation.weight is None else operation.weight, NULL
        blocks = operation.weight_blocks
        if blocks is not None:
            op.weight_blocks = <const int64_t *>address(blocks, numpy.int64, len(blocks))
        op.gathered, op.d_gathered = offsets[operation.gathered], offsets[operation.gathered_gradient]
        op.transposed = offsets[operation.transposed]
        op.cache = -1 if operation.cache is None else operation.cache
        op.packed = -1 if operation.packed is None else operation.packed
        op.first_draw, op.threshold = operation.first_draw, operation.threshold
        return 0

    # --- The team -----------------------------------------------------------------------------------------------------

    cdef object assembled_team(self, int64_t rows):
        """Have `threads` share the work that is run inside `with`, where it is enough for them."""
        if self.team.team.size > 1 or self.threads == 1 or rows * self.num_params < SHARED_WORK or gil_is_exiting():
            return _PRESENT_TEAM  # of an outer call, whose callback this is, or without helpers
        return self._team_with_helpers()

    @contextlib.contextmanager
    def _team_with_helpers(self):
        cdef ThreadTeam outer = self.team
        with ThreadTeam(self.threads) as self.team:
            try:
                yield
            finally:
                self.team = outer

    def _forget_other_threads(self):
        """Be free again, in a forked process, of the call that another thread was in."""
        self.lock, self.team = EngineLock(), ThreadTeam(1)
        self.workspace.caches = self.workspace.streams = NULL
        self.workspace.uniforms = self.workspace.probabilities = NULL

    # --- Running ------------------------------------------------------------------------------------------------------

    # Two clocks: polls within steps must not delay reports of progress.
    cdef int poll_within_step(self) except -1 nogil:
        return self.poll_signals(&self.polled_within_step, -1)

    cdef int poll_after_step(self, int64_t completed) except -1 nogil:
        return self.poll_signals(&self.polled_after_step, completed)

    cdef int poll_signals(self, int64_t *last_poll, int64_t completed) except -1 nogil:
        """Handle signals and, after a step, call the progress callback, unless the last poll was just now."""
        cdef int64_t now = now_ns()
        if 0 <= now - last_poll[0] < POLL_INTERVAL_NS:
            return 0
        last_poll[0] = now
        with gil:
            self.lock.busy = completed < 0
            try:
                PyErr_CheckSignals()
                if self.progress is not None and completed >= 0:
                    self.progress(completed)
            finally:
                self.lock.busy = True
        return 0

    cdef void start_clock(self, int64_t clock) noexcept nogil:
        if self.clocks != NULL:
            self.clocks[clock] -= now_ns()

    cdef void stop_clock(self, int64_t clock) noexcept nogil:
        if self.clocks != NULL:
            self.clocks[clock] += now_ns()

    cdef int run(self, const Operation *op, const Stage *stages, int64_t clock) except -1 nogil:
        """Run the stages of an operation, timed by one of the `clocks` if there are any."""
        cdef int i
        self.start_clock(clock)
        self.job.kernels, self.job.operation, self.job.workspace = self.kernels, op, &self.workspace
        for i in range(STAGES):
            if stages[i].run == NULL:
                break
            self.job.stage = &stages[i]
            team_run(&self.team.team, run_stage, &self.job, stages[i].tasks(op, &self.workspace), stages[i].grain)
            if self.is_heavy:
                self.poll_within_step()
        self.stop_clock(clock)
        return 0

    # The stages of a small step take less time than changing the mode of the processor for each of them; a heavy one
    # runs Python in between.
    cdef bint keeps_mode(self) noexcept nogil:
        return self.kernels.exact or self.is_heavy

    cdef int forward(self, int64_t operations, bint by_rows=False) except -1 nogil:
        cdef int64_t i
        cdef FloatMode before = begin_work(self.keeps_mode())
        self.workspace.by_rows = by_rows
        for i in range(operations):
            self.run(&self.tape[i], self.tape[i].kernel.forward, 2 * i)
        end_work(self.keeps_mode(), before)
        return 0

    cdef int backward(self, bint by_rows=False) except -1 nogil:
        cdef int64_t i
        cdef char *wpe_gradients = <char *>self.workspace.gradients + self.workspace.num_wte * self.kernels.itemsize
        cdef FloatMode before = begin_work(self.keeps_mode())
        self.workspace.by_rows = by_rows
        for i in range(self.tape_length - 1, -1, -1):
            self.run(&self.tape[i], self.tape[i].kernel.backward, 2 * i + 1)
        end_work(self.keeps_mode(), before)
        if not by_rows and not self.kernels.all_finite(self.workspace.num_wpe, wpe_gradients):
            self.backward(by_rows=True)
        return 0

    cdef int64_t positions_of(self, int64_t tokens) noexcept nogil:
        return min(self.workspace.block_size, tokens - 1)

    cdef int64_t reserve(self, const int64_t[::1] lengths, int64_t batch_size) except -1:
        """Room for the largest batch of `batch_size` consecutive documents of these lengths; returns its rows."""
        cdef int64_t d, n, first, row, keys, rows = 0, attention = 0, most_rows = 1, most_attention = 0
        cdef int64_t query_block = QUERY_PANELS * self.line
        for d in range(lengths.shape[0]):
            if d % batch_size == 0:
                rows, attention = 0, 0
            n = self.positions_of(lengths[d])
            first = (rows + query_block - 1) // query_block * query_block
            for row in range(first, rows + n, query_block):  # each begins a query block
                keys = query_block + (row // self.line - rows // self.line) * self.line
                attention += self.workspace.n_head * query_block * (keys + 2)
            rows += n
            most_rows, most_attention = max(most_rows, rows), max(most_attention, attention)
        if most_rows > self.row_capacity or most_attention > self.attention_capacity:
            self.lay_out(max(most_rows, self.row_capacity), max(most_attention, self.attention_capacity))
        return most_rows

    cdef void describe_batch(self, int64_t rows) noexcept nogil:
        """Describe the batch to the kernels: pad the last panel, place attention data, find spans."""
        cdef Workspace *w = &self.workspace
        cdef int64_t panel, panels = self.panels(rows), attention = 0, r
        w.rows, w.spans, w.longest = rows, 0, 0
        for r in range(rows, panels * self.line):
            w.tokens[r] = w.targets[r] = w.positions[r] = 0
            w.first_rows[r] = w.first_rows[rows - 1]
            w.d_losses[r] = 0.0
        for panel in range(panels):
            w.longest_of_panel[panel] = 0
            for r in range(panel * self.line, (panel + 1) * self.line):
                w.longest_of_panel[panel] = max(w.longest_of_panel[panel], w.positions[r] + 1)
            w.longest = max(w.longest, <int64_t>w.longest_of_panel[panel])
        for panel in range(panels):
            w.attention_start[panel] = attention
            attention += self.kernels.attention_size(w, panel)
            if panel % QUERY_PANELS == 0 and w.first_rows[panel * self.line] == panel * self.line:
                w.span_start[w.spans] = panel
                w.spans += 1
        w.span_start[w.spans] = panels
        self.is_heavy = rows * self.num_params > HEAVY_STEP

    cdef double batch(self, const int32_t *tokens, const int64_t *starts, const int64_t *lengths, int64_t documents,
                      double share, uint64_t stream=0, int64_t first=0) except? -1 nogil:
        """Pack these documents end to end, run forward, and return the sum of their losses times `share`.

        If the workspace has `streams`, document d has number `first + d` of those that begin with `stream`.
        """
        cdef Workspace *w = &self.workspace
        cdef uint64_t own
        cdef int64_t d, n, p, r = 0
        cdef double total = 0.0, document_total, d_loss
        for d in range(documents):
            n = self.positions_of(lengths[d])
            d_loss = (1.0 / <double>n) * share
            for p in range(n):
                w.tokens[r + p] = tokens[starts[d] + p]
                w.targets[r + p] = tokens[starts[d] + p + 1]
                w.positions[r + p] = <int32_t>p
                w.first_rows[r + p] = <int32_t>r
                w.d_losses[r + p] = d_loss
            if w.streams != NULL:
                own = stream_of(stream, first + d)
                for p in range(n):
                    w.streams[r + p] = SPLITMIX_SKIP(own, p * self.draws)
            r += n
        self.describe_batch(r)
        self.forward(self.tape_length)
        r = 0
        for d in range(documents):
            n = self.positions_of(lengths[d])
            document_total = 0.0
            for p in range(r, r + n):
                document_total += w.losses[p]
            total += document_total * (1.0 / <double>n)
            r += n
        return total * share

    @exclusive
    def loss(self, packed, bint gradients=False, stream=None):
        """See `microgpt.engine.interface.Engine`."""
        cdef const int32_t[::1] tokens = packed.tokens
        cdef const int64_t[::1] starts = packed.starts, lengths = packed.lengths
        cdef double loss, share = 1.0 / <double>lengths.shape[0]
        cdef uint64_t batch_stream = 0 if stream is None else stream
        with self.assembled_team(self.reserve(lengths, lengths.shape[0])):
            try:
                self.workspace.streams = NULL if stream is None else self.streams
                with nogil:
                    loss = self.batch(&tokens[0], &starts[0], &lengths[0], lengths.shape[0], share, batch_stream)
                    if gradients and isfinite(loss):
                        self.backward()
            finally:
                self.workspace.streams = NULL
            if gradients and not isfinite(loss):
                self.gradients.fill(numpy.nan)  # all, not only some
            return loss

    @exclusive
    def adam_step(self, adam, double learning_rate):
        """Move `parameters` against `gradients`, see `update_with_adam`."""
        adam_step_alone(self.kernels, self.parameters, self.gradients, adam, learning_rate)

    cdef double shard_gradients(self, Shards *s, AdamUpdate *update, ranks) except? -1 nogil:
        """Compute the loss of a step's batch, and if it is finite the gradients: the sum of those of its shards.

        In each round, every rank computes a shard, and adds the pieces of all ranks, in order, to its slice of the sum.
        """
        cdef Workspace *w = &self.workspace
        cdef void *sums = w.gradients
        cdef int64_t first = 0, document = s.step * s.documents
        cdef double loss = 0.0, shard_loss
        try:
            w.gradients = s.gradients
            if self.draws > 0:
                w.streams = self.streams
            while first < s.count:
                shard_loss = 0.0
                if first + s.rank < s.count:
                    shard_loss = self.batch(s.tokens, &s.starts[document], &s.lengths[document], s.size, s.share,
                                            s.stream, (first + s.rank) * s.size)
                    document += s.size
                    if isfinite(loss + shard_loss):
                        self.backward()
                update.count = min(s.ranks, s.count - first)
                if s.ranks == 1:
                    loss += shard_loss
                else:
                    with gil:
                        loss = ranks.exchange(loss, shard_loss, update.count)
                if s.count > 1 and isfinite(loss):
                    update.is_first = first == 0
                    sum_shards(update, &self.team.team)
                first += s.ranks
            if s.ranks > 1 and isfinite(loss) and update.max_grad_norm < INFINITY:
                with gil:
                    ranks.gather(self.gradients)  # for their norm, whose squares every rank adds in the same order
        finally:
            w.gradients, w.streams = sums, NULL
        return loss

    @exclusive
    def train(self, packed, int64_t batch_size, const double[::1] learning_rates, adam, double[::1] losses, progress,
              int64_t shards=1, ranks=None, uint64_t seed=0, int64_t[:, ::1] clocks=None):
        """See `microgpt.engine.interface.Engine`.

        `clocks` receives the nanoseconds of all steps: for each operation those forward and backward, and in a last row
        those of Adam, and those in which this thread waits for others.
        """
        cdef const int32_t[::1] tokens = packed.tokens
        cdef const int64_t[::1] starts = packed.starts, lengths = packed.lengths
        cdef int64_t completed = 0, steps = learning_rates.shape[0], step_count = adam.step_count
        cdef AdamUpdate update
        cdef Shards s
        s.count, s.size, s.share = shards, batch_size // shards, 1.0 / <double>batch_size
        s.rank, s.ranks, piece = 0, 1, slice(0, self.num_params)
        if ranks is not None:
            s.rank, s.ranks, piece = ranks.rank, ranks.size, ranks.piece
        s.documents = (s.count - s.rank + s.ranks - 1) // s.ranks * s.size
        if starts.shape[0] != steps * s.documents or lengths.shape[0] != starts.shape[0] or losses.shape[0] != steps:
            raise ValueError(
                f"{starts.shape[0]} documents and {losses.shape[0]} losses for {steps} steps of {s.documents}"
            )
        if steps == 0:
            return 0
        _moments = adam.m, adam.v  # kept alive, even if a callback gives the optimizer others
        prepare_adam(&update, self.kernels, self.parameters[piece], self.gradients[piece], adam)
        update.all_gradients, update.all_size = <char *>self.workspace.gradients, self.num_params
        s.tokens, s.starts, s.lengths = &tokens[0], &starts[0], &lengths[0]
        gradients = self.gradients
        if shards > 1:
            if self.shard is None:
                self.shard = aligned_zeros(self.num_params, self.dtype, "the gradients of a shard")
            gradients = self.shard
        pieces = gradients if ranks is None else ranks.share(gradients)
        s.gradients = address(gradients, self.dtype, self.num_params)
        update.pieces = <char *>address(pieces, self.dtype, s.ranks * update.size)
        if clocks is not None and (clocks.shape[0] != self.tape_length + 1 or clocks.shape[1] != 2):
            raise ValueError(f"expected {self.tape_length + 1} pairs of clocks, got {clocks.shape[0]}")
        around, self.progress = self.progress, progress  # if this call comes from a callback
        self.polled_after_step = now_ns()
        try:
            with self.assembled_team(self.reserve(lengths, s.size)):
                self.clocks = NULL if clocks is None else &clocks[0, 0]
                self.team.team.waited = NULL if clocks is None else &clocks[self.tape_length, 1]
                with nogil:
                    while completed < steps:
                        s.step, s.stream = completed, step_stream(seed, step_count)
                        losses[completed] = self.shard_gradients(&s, &update, ranks)
                        if not isfinite(losses[completed]):
                            break
                        step_count += 1
                        self.start_clock(2 * self.tape_length)
                        adam_step(&update, &self.team.team, step_count, learning_rates[completed])
                        self.stop_clock(2 * self.tape_length)
                        completed += 1
                        if s.ranks > 1:
                            with gil:
                                ranks.end_step(self.parameters)
                        self.poll_after_step(completed)
        finally:
            self.clocks = self.team.team.waited = NULL
            adam.step_count = step_count
            self.progress = around
        return completed

    # --- Inference ----------------------------------------------------------------------------------------------------

    @exclusive
    def logits_of(self, const int32_t[::1] tokens):
        """See `microgpt.engine.interface.Engine`."""
        cdef int64_t r, n = tokens.shape[0], vocab_size = self.workspace.vocab_size
        cdef bint by_rows
        self.reserve(numpy.array([n + 1], numpy.int64), 1)
        for r in range(n):
            self.workspace.tokens[r] = tokens[r]
            self.workspace.positions[r] = <int32_t>r
            self.workspace.first_rows[r] = 0
        self.describe_batch(n)
        for by_rows in (False, True):
            with nogil:
                self.forward(self.inference, by_rows)
            panels = self.arena[self.logits :][: self.panels(n) * vocab_size * self.line]
            logits = panels.reshape(-1, vocab_size, self.line).transpose(0, 2, 1).reshape(-1, vocab_size)[:n]
            if numpy.isfinite(logits).all():
                break
        return logits.copy()  # the arena will be reused

    @exclusive
    def new_cache(self, int64_t samples):
        """See `microgpt.engine.interface.Engine`."""
        return self.cache_for(samples)

    cdef Cache cache_for(self, int64_t samples):
        cdef int64_t i, size = self.kernels.cache_size(&self.workspace)
        if samples == 1:
            size = self.kernels.decode_cache_size(&self.workspace)
        shape = (self.panels(samples), self.config.n_layer * size)
        store = aligned_zeros(shape, self.dtype, f"a cache for {samples:,} samples")
        if samples != 1:
            return Cache(self, samples, store)
        if self.packed is None:
            self.packed = aligned_zeros(self.network.packed, self.dtype, "a copy of the model's weights")
        self.workspace.packed = address(self.packed, self.dtype, self.network.packed)
        with self.assembled_team(1):
            with nogil:
                for i in range(self.inference):
                    self.run(&self.tape[i], self.tape[i].kernel.pack, 2 * i)
        return Cache(self, samples, store, self.packed)

    @exclusive
    def next_probabilities(self, Cache cache, const int32_t[::1] tokens, double temperature):
        """See `microgpt.engine.interface.Engine`."""
        probabilities = numpy.empty((tokens.shape[0], self.workspace.vocab_size))
        cdef double[:, ::1] out = probabilities
        with self.assembled_team(tokens.shape[0]):
            self.append(cache, tokens, temperature, NULL, NULL, &out[0, 0])
        return probabilities

    @exclusive
    def draw_tokens(self, Cache cache, const int32_t[::1] tokens, double temperature, const double[::1] uniforms):
        """See `microgpt.engine.interface.Engine`."""
        drawn = numpy.empty(tokens.shape[0], numpy.int32)
        cdef int32_t[::1] out = drawn
        cdef double[::1] padded = self._padded(uniforms)
        if uniforms.shape[0] != tokens.shape[0]:
            raise ValueError(f"{uniforms.shape[0]} random numbers for {tokens.shape[0]} tokens")
        with self.assembled_team(tokens.shape[0]):
            self.append(cache, tokens, temperature, &padded[0], &out[0], NULL)
        return drawn

    @exclusive
    def draw_in_turn(self, Cache cache, const int32_t[::1] tokens, int64_t n, double temperature, random, int32_t end,
                     int64_t limit):
        """See `microgpt.engine.interface.Engine`."""
        cdef int64_t _document
        cdef list documents = []
        if tokens.shape[0] == 0 or cache.packed is None:
            raise ValueError(f"{tokens.shape[0]} tokens for a cache of {len(cache.lengths)} documents")
        around, self.progress = self.progress, None  # which is another call's, if this comes from a callback
        try:
            with self.assembled_team(1):
                for _document in range(n):
                    cache.first_length[0] = 0
                    documents.append(self.draw_alone(cache, tokens, temperature, random, end, limit))
        finally:
            self.progress = around
        return documents

    cdef list draw_alone(self, Cache cache, const int32_t[::1] tokens, double temperature, random, int32_t end,
                         int64_t limit):
        """Append tokens to the only document of a cache, and draw those that follow."""
        cdef int64_t i, n = tokens.shape[0], drawn_tokens = 0
        cdef int32_t token = tokens[n - 1]
        cdef double uniform
        cdef list drawn = []
        for i in range(n - 1):
            self.append_alone(cache, tokens[i], 0.0, NULL, NULL, NULL)
            self.poll_after_step(0)
        while drawn_tokens < limit and cache.first_length[0] < self.workspace.block_size:
            uniform = random()
            self.append_alone(cache, token, temperature, &uniform, &token, NULL)
            self.poll_after_step(0)
            drawn.append(token)
            drawn_tokens += 1
            if token == end:
                break
        return drawn

    @exclusive
    def draw_documents(self, uint64_t seed, int64_t n, int32_t bos, double temperature):
        """See `microgpt.engine.interface.Engine`.

        Many documents grow at once, and a slot whose document has ended takes the next one. Token t
        of document i is drawn with number t of its stream of random numbers (splitmix.h), whatever the others do.
        """
        cdef int64_t block_size = self.workspace.block_size, slots = min(n, <int64_t>SLOTS), r, d, started = slots
        cdef int64_t finished = 0
        tokens, lengths = numpy.empty((n, block_size), numpy.int32), numpy.zeros(n, numpy.int64)
        cdef int32_t[:, ::1] text = tokens
        cdef int64_t[::1] text_lengths = lengths
        cdef int64_t[::1] documents = numpy.arange(slots, dtype=numpy.int64)
        cdef int32_t[::1] last = numpy.full(slots, bos, numpy.int32), drawn = numpy.empty(slots, numpy.int32)
        cdef double[::1] uniforms = self._padded(numpy.zeros(slots))
        cdef Cache cache = self.cache_for(slots)
        cdef int32_t[::1] positions = cache.lengths
        if n == 0:
            return tokens, lengths
        self.polled_within_step = now_ns()
        with self.assembled_team(slots):
            while finished < n:
                for r in range(slots):
                    uniforms[r] = uniform_of(seed, documents[r], positions[r])
                self.append(cache, last, temperature, &uniforms[0], &drawn[0], NULL)
                for r in range(slots):
                    d = documents[r]
                    if d < n:
                        text[d, positions[r] - 1] = drawn[r]
                        last[r] = drawn[r]
                    if drawn[r] == bos or positions[r] == block_size:
                        if d < n:
                            text_lengths[d] = positions[r] - (drawn[r] == bos)
                            finished += 1
                        documents[r], last[r], positions[r] = min(started, n), bos, 0
                        started += 1
                self.poll_within_step()
        return tokens, lengths

    def _padded(self, array):
        """A copy with room for whole panels."""
        size = len(array)
        return numpy.concatenate([array, numpy.zeros(self.panels(size) * self.line - size)])

    cdef int append(self, Cache cache, const int32_t[::1] tokens, double temperature, const double *uniforms,
                    int32_t *drawn, double *probabilities) except -1:
        """Append a token to each document; then draw if there are `uniforms`, and give `probabilities` if not NULL."""
        cdef Workspace *w = &self.workspace
        cdef int64_t r, n = tokens.shape[0]
        cdef int32_t[::1] lengths = cache.lengths
        cdef uintptr_t[::1] addresses = cache.addresses
        if cache.engine is not self or n != lengths.shape[0]:
            raise ValueError(f"{n} tokens for a cache of {lengths.shape[0]} documents, or of another model")
        if cache.packed is not None:
            return self.append_alone(cache, tokens[0], temperature, uniforms, drawn, probabilities)
        try:
            if n > self.row_capacity:
                self.lay_out(n, self.attention_capacity)
            for r in range(n):
                if lengths[r] >= w.block_size:
                    raise ValueError(f"document {r} already has block_size={w.block_size} tokens")
                w.tokens[r], w.positions[r], w.first_rows[r] = tokens[r], lengths[r], <int32_t>r
            self.describe_batch(n)
            w.caches, w.temperature = <void *const *>&addresses[0], temperature
            w.uniforms, w.drawn, w.probabilities = uniforms, drawn, probabilities
            with nogil:
                self.forward(self.inference)
                self.run(&self.tape[self.inference - 1], self.kernels.draw, 0)
            for r in range(n):
                lengths[r] += 1
        finally:
            w.caches = NULL
            w.uniforms = w.probabilities = NULL
        return 0

    cdef int append_alone(self, Cache cache, int32_t token, double temperature, const double *uniform,
                          int32_t *drawn, double *probabilities) except -1:
        """`append` for a single document, by the kernels of decode.h; without anything to give, without its logits."""
        cdef Workspace *w = &self.workspace
        cdef int64_t i, operations = self.inference
        if cache.engine is not self:
            raise ValueError("a cache of another model")
        if cache.first_length[0] >= w.block_size:
            raise ValueError(f"document 0 already has block_size={w.block_size} tokens")
        try:
            w.rows, w.tokens[0], w.positions[0] = 1, token, cache.first_length[0]
            w.caches, w.packed, w.temperature = <void *const *>&cache.first_store, cache.first_packed, temperature
            w.uniforms, w.drawn, w.probabilities = uniform, drawn, probabilities
            self.is_heavy = self.num_params > HEAVY_STEP
            with nogil:
                if uniform == NULL and probabilities == NULL:
                    operations -= 1
                for i in range(operations):
                    self.run(&self.tape[i], self.tape[i].kernel.decode, 2 * i)
                if operations == self.inference:
                    self.run(&self.tape[self.inference - 1], self.kernels.decode_draw, 0)
            cache.first_length[0] += 1
        finally:
            w.caches = NULL
            w.uniforms = w.probabilities = NULL
        return 0


# --- Adam -------------------------------------------------------------------------------------------------------------

cdef int prepare_adam(AdamUpdate *update, const Kernels *kernels, parameters, gradients, adam) except -1:
    """Describe a step of `adam`, a `microgpt.Adam`, on these flat arrays."""
    dtype, size = parameters.dtype, len(parameters)
    update.kernels, update.size = kernels, size
    update.parameters = <char *>address(parameters, dtype, size)
    update.gradients = <char *>address(gradients, dtype, size)
    update.m, update.v = <char *>address(adam.m, dtype, size), <char *>address(adam.v, dtype, size)
    update.pieces, update.count, update.is_first = NULL, 0, True
    update.all_gradients, update.all_size = update.gradients, size
    update.step.beta1, update.step.beta2, update.step.eps = adam.beta1, adam.beta2, adam.eps
    update.weight_decay = adam.weight_decay
    update.max_grad_norm = INFINITY if adam.max_grad_norm is None else adam.max_grad_norm
    return 0


cdef int adam_step_alone(const Kernels *kernels, parameters, gradients, adam, double learning_rate) except -1:
    cdef AdamUpdate update
    cdef Team alone
    prepare_adam(&update, kernels, parameters, gradients, adam)
    team_start(&alone, 1)
    adam.step_count += 1
    adam_step(&update, &alone, adam.step_count, learning_rate)
    return 0


def update_with_adam(parameters, gradients, adam, double learning_rate, str instruction_set):
    """Move flat `parameters` against their `gradients`. `adam` is a `microgpt.Adam`, whose step_count is counted."""
    adam_step_alone(kernels_for(parameters.dtype.name, instruction_set), parameters, gradients, adam, learning_rate)


# --- Measuring --------------------------------------------------------------------------------------------------------

def multiply_adds(str dtype, str instruction_set, int64_t iterations):
    """Multiply and add in registers only, at the peak rate of the machine; returns the number of multiply-adds."""
    cdef const Kernels *kernels = kernels_for(dtype, instruction_set)
    with nogil:
        kernels.multiply_add_loop(iterations)
    return iterations * kernels.multiply_adds_per_iteration


def divisions_and_roots(str dtype, str instruction_set, int64_t iterations):
    """Divide and take roots in registers only, as Adam does for each parameter; returns the number of such pairs."""
    cdef const Kernels *kernels = kernels_for(dtype, instruction_set)
    with nogil:
        kernels.divide_root_loop(iterations)
    return iterations * kernels.divide_roots_per_iteration
