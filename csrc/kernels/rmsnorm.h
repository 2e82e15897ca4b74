/* Division by the root mean square of each row. */
#pragma once

#include "numerics.h"
#include "panel.h"

/* output[r] = input[r] * scale[r], scale = (mean of input[r]**2 + 1e-5) ** -0.5
 * saved: mean + 1e-5 and scale, [panels][2][LINE] */
static void rmsnorm_forward(const Operation *op, const Workspace *w, const Range *range) {
    const int64_t n = op->n_in;
    for (int64_t row = range->begin * LINE; row < range->end * LINE; row += LANES) {
        const real *input = activation(w, op->input, n, row);
        real *output = activation(w, op->output, n, row);
        real *saved = activation(w, op->saved, 2, row);
        const vec mean = sum_of_products(input, LINE, input, LINE, n) * (real)op->scale + (real)1e-5;
        const vec scale = reciprocal_root(mean);
        store(saved, mean);
        store(saved + LINE, scale);
        for (int64_t i = 0; i < n * LINE; i += LINE) store(output + i, load(input + i) * scale);
    }
}

/* d_input += scale * d_output, then twice input * d_mean, once for each factor of input * input
 * where d_mean = (-0.5 * mean ** -1.5) * (sum over i, last to first, of input * d_output) / n */
static void rmsnorm_backward(const Operation *op, const Workspace *w, const Range *range) {
    const int64_t n = op->n_in, last = (n - 1) * LINE;
    for (int64_t row = range->begin * LINE; row < range->end * LINE; row += LANES) {
        const real *input = activation(w, op->input, n, row);
        const real *d_output = activation(w, op->d_output, n, row);
        real *d_input = activation(w, op->d_input, n, row);
        const real *saved = activation(w, op->saved, 2, row);
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
