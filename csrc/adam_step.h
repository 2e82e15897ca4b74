/* A step of Adam on flat arrays, divided among a team. The arithmetic is in kernels/adam.h. */
#pragma once

#include <math.h>

#include "kernels/interface.h"
#include "subnormal.h"
#include "team.h"

enum { ADAM_TASK = 1024 }; /* parameters */

typedef struct {
    const Kernels *kernels;
    char *parameters;
    const char *gradients;
    char *m, *v;
    int64_t size;
    double weight_decay;
    double max_grad_norm; /* INFINITY: gradients are not clipped */
    AdamStep step;
} AdamUpdate;

static void adam_tasks(void *context, int64_t begin, int64_t end, int thread) {
    const AdamUpdate *u = context;
    const int64_t first = begin * ADAM_TASK, n = (end * ADAM_TASK < u->size ? end * ADAM_TASK : u->size) - first;
    const int64_t offset = first * (int64_t)u->kernels->itemsize;
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
        const double norm = sqrt(u->kernels->sum_of_squares(u->size, u->gradients));
        if (norm > u->max_grad_norm) step->gradient_scale = u->max_grad_norm / norm;
    }
    team_run(team, adam_tasks, u, (u->size + ADAM_TASK - 1) / ADAM_TASK, 1);
}
