# Declarations that the engine uses, of team.h, gil.h, adam_step.h, subnormal.h and clock.h.
from kernels cimport AdamStep, Kernels
from libc.stdint cimport int64_t


cdef extern from "gil.h":
    bint gil_is_exiting() nogil
    void gil_before_exit()
    void gil_after_fork()

cdef extern from "team.h" nogil:
    enum: TEAM_MAXIMUM
    ctypedef struct Team:
        int size
        int64_t *waited
    ctypedef void (*TeamWork)(void *context, int64_t begin, int64_t end, int thread) noexcept nogil
    void team_start(Team *, int size)
    void team_work(Team *, int thread, bint (*is_over)() noexcept nogil)
    void team_run(Team *, TeamWork, void *context, int64_t tasks, int64_t grain)
    void team_stop(Team *)

cdef extern from "adam_step.h" nogil:
    ctypedef struct AdamUpdate:
        const Kernels *kernels
        int64_t size
        char *parameters
        char *gradients
        char *m
        char *v
        const char *pieces
        int64_t count
        bint is_first
        const char *all_gradients
        int64_t all_size
        double weight_decay, max_grad_norm
        AdamStep step
    void sum_shards(AdamUpdate *, Team *)
    void adam_step(AdamUpdate *, Team *, int64_t step_count, double learning_rate)

cdef extern from "subnormal.h" nogil:
    ctypedef unsigned int FloatMode
    FloatMode begin_work(bint exact)
    void end_work(bint exact, FloatMode before)

cdef extern from "clock.h" nogil:
    int64_t now_ns()
