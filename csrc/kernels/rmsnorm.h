/* Division by the root mean square of each row. */
#pragma once

#include "numerics.h"

/* output[r] = input[r] * scale[r], scale = (mean of input[r]**2 + 1e-5) ** -0.5
 * saved: mean + 1e-5 and scale, [panels][2][LINE] */
static void rmsnorm_forward(const Operation *op, const Workspace *w, const Range *range) {
    const int64_t n = op->n_in;
    for (int64_t at = range->begin * LINE; at < range->end * LINE; at += LANES) {
        const int64_t panel = at / LINE * LINE, lane = at % LINE;
        const real *input = (real *)w->arena + op->input + panel * n + lane;
        real *output = (real *)w->arena + op->output + panel * n + lane;
        real *saved = (real *)w->arena + op->saved + 2 * panel + lane;
        const vec mean = sum_of_products(input, LINE, input, LINE, n) * (real)op->scale + (real)1e-5;
        const vec scale = reciprocal_root(mean);
        store(saved, mean);
        store(saved + LINE, scale);
        for (int64_t i = 0; i < n * LINE; i += LINE) store(output + i, load(input + i) * scale);
    }
}

/* d_input += scale * d_output, then twice input * d mean, once for each factor of input * input
 * where d mean = (-0.5 * mean ** -1.5) * (sum over i, last to first, of input * d_output) / n */
static void rmsnorm_backward(const Operation *op, const Workspace *w, const Range *range) {
    const int64_t n = op->n_in, last = (n - 1) * LINE;
    for (int64_t at = range->begin * LINE; at < range->end * LINE; at += LANES) {
        const int64_t panel = at / LINE * LINE, lane = at % LINE;
        const real *input = (real *)w->arena + op->input + panel * n + lane;
        const real *d_output = (real *)w->arena + op->d_output + panel * n + lane;
        real *d_input = (real *)w->arena + op->d_input + panel * n + lane;
        const real *saved = (real *)w->arena + op->saved + 2 * panel + lane;
        const vec mean = load(saved), scale = load(saved + LINE);
        const vec d_scale = sum_of_products(input + last, -LINE, d_output + last, -LINE, n);
        const vec d_mean = (real)op->scale * ((real)-0.5 * reciprocal_cubed_root(mean) * d_scale);
        for (int64_t i = 0; i < n * LINE; i += LINE) {
            const vec through_mean = load(input + i) * d_mean;
            const vec before = op->accumulate ? load(d_input + i) : (vec){0};
            store(d_input + i, before + scale * load(d_output + i) + through_mean + through_mean);
        }
    }
}
