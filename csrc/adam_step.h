/* The last part of a training step, on flat arrays, divided among a team: the gradients of shards are added, and Adam
 * moves the parameters. Where several ranks train one model, each does this for its slice of the parameters. The
 * arithmetic is in kernels/adam.h. */
#pragma once

#include <math.h>
#include <string.h>

#include "kernels/interface.h"
#include "subnormal.h"
#include "team.h"

enum { ADAM_TASK = 1024 }; /* parameters. Slices begin at multiples of it, so that their vectors are those of the whole */

typedef struct {
    const Kernels *kernels;
    int64_t size;             /* of the slice */
    char *parameters, *gradients;
    char *m, *v;
    const char *pieces;       /* gradients of consecutive shards, [count][size] */
    int64_t count;
    int is_first;             /* whether the first piece is the first of all: it is copied, to keep the sign of -0 */
    const char *all_gradients; /* of the whole model, for their norm */
    int64_t all_size;
    double weight_decay;
    double max_grad_norm;     /* INFINITY: gradients are not clipped */
    AdamStep step;
} AdamUpdate;

/* Elements [*first, *first + the result) of the slice are those of tasks [begin, end). */
static int64_t adam_elements(const AdamUpdate *u, int64_t begin, int64_t end, int64_t *first) {
    *first = begin * ADAM_TASK;
    return (end * ADAM_TASK < u->size ? end * ADAM_TASK : u->size) - *first;
}

static int64_t adam_task_count(const AdamUpdate *u) { return (u->size + ADAM_TASK - 1) / ADAM_TASK; }

static void sum_tasks(void *context, int64_t begin, int64_t end, int thread) {
    const AdamUpdate *u = context;
    const size_t itemsize = u->kernels->itemsize;
    const FloatMode before = begin_work(u->kernels->exact);
    (void)thread;
    for (int64_t task = begin; task < end; task++) {
        int64_t first;
        const int64_t n = adam_elements(u, task, task + 1, &first);
        char *sum = u->gradients + first * itemsize;
        for (int64_t i = 0; i < u->count; i++) {
            const char *piece = u->pieces + (i * u->size + first) * itemsize;
            if (i == 0 && u->is_first) memcpy(sum, piece, n * itemsize);
            else u->kernels->add(n, sum, piece);
        }
    }
    end_work(u->kernels->exact, before);
}

/* Adds the next pieces to the gradients, in order. */
static void sum_shards(AdamUpdate *u, Team *team) { team_run(team, sum_tasks, u, adam_task_count(u), 1); }

static void adam_tasks(void *context, int64_t begin, int64_t end, int thread) {
    const AdamUpdate *u = context;
    int64_t first;
    const int64_t n = adam_elements(u, begin, end, &first), offset = first * (int64_t)u->kernels->itemsize;
    const FloatMode before = begin_work(u->kernels->exact);
    (void)thread;
    u->kernels->adam(n, u->parameters + offset, u->gradients + offset, u->m + offset, u->v + offset, &u->step);
    end_work(u->kernels->exact, before);
}

/* Moves the parameters against their gradients: step number `step_count`, counted from 1. */
static void adam_step(AdamUpdate *u, Team *team, int64_t step_count, double learning_rate) {
    AdamStep *step = &u->step;
    step->learning_rate = learning_rate;
    step->bias1 = 1 - pow(step->beta1, (double)step_count);
    step->bias2 = 1 - pow(step->beta2, (double)step_count);
    step->shrinkage = 1 - learning_rate * u->weight_decay;
    step->gradient_scale = 1;
    if (u->max_grad_norm < INFINITY) {
        const double norm = sqrt(u->kernels->sum_of_squares(u->all_size, u->all_gradients));
        if (norm > u->max_grad_norm) step->gradient_scale = u->max_grad_norm / norm;
    }
    team_run(team, adam_tasks, u, adam_task_count(u), 1);
}
