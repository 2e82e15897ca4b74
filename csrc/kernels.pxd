# Declarations that engine.pyx uses, of kernels/interface.h, where every field is explained, and of kernels/isa.h.
from libc.stdint cimport int32_t, int64_t, uint64_t


cdef extern from "kernels/interface.h" nogil:
    enum: LINE_BYTES, STAGES, QUERY_PANELS

    ctypedef enum Epilogue:
        STORE, ADD, RELU, RELU_BACKWARD

    ctypedef struct Stage:
        void (*run)(const Operation *, const Workspace *, const Range *) noexcept nogil
        int64_t (*tasks)(const Operation *, const Workspace *) noexcept nogil
        int64_t grain

    ctypedef struct Kernel:
        const char *name
        Stage forward[STAGES]
        Stage backward[STAGES]
        Stage pack[STAGES]
        Stage decode[STAGES]

    ctypedef struct Operation:
        const Kernel *kernel
        Epilogue epilogue, backward_epilogue
        bint accumulate
        int64_t n_in, n_out
        int64_t input, output, d_input, d_output
        int64_t residual, saved
        double scale
        int64_t weight
        const int64_t *weight_blocks
        int64_t gathered, d_gathered, transposed
        int64_t cache, packed
        int64_t first_draw, threshold

    ctypedef struct Workspace:
        void *arena
        const void *parameters
        void *gradients
        int64_t num_wte, num_wpe, vocab_size, n_embd, n_head, block_size
        int64_t rows, longest
        int32_t *longest_of_panel
        int32_t *tokens
        int32_t *targets
        int32_t *positions
        int32_t *first_rows
        double *d_losses
        double *losses
        int64_t *attention_start
        int64_t *span_start
        int64_t spans
        uint64_t *streams
        bint by_rows
        void *const *caches
        const void *packed
        double temperature
        const double *uniforms
        double *probabilities
        int32_t *drawn

    ctypedef struct Range:
        int64_t begin, end
        void *scratch

    ctypedef struct AdamStep:
        double beta1, beta2, eps

    ctypedef struct Kernels:
        bint exact
        size_t itemsize
        Stage draw[STAGES]
        Stage decode_draw[STAGES]
        int64_t (*scratch_size)(const Workspace *, int64_t rows) noexcept nogil
        int64_t (*attention_size)(const Workspace *, int64_t panel) noexcept nogil
        int64_t (*cache_size)(const Workspace *) noexcept nogil
        int64_t (*decode_cache_size)(const Workspace *) noexcept nogil
        int (*all_finite)(int64_t n, const void *x) noexcept nogil
        double (*multiply_add_loop)(int64_t iterations) noexcept nogil
        double (*divide_root_loop)(int64_t iterations) noexcept nogil
        int64_t multiply_adds_per_iteration, divide_roots_per_iteration

cdef extern from "kernels/isa.h" nogil:
    const char *instruction_set_name(int i)
    const Kernels *find_kernels(const char *instruction_set, bint exact)
    const Kernel *find_kernel(const Kernels *, const char *name)
