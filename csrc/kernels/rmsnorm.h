/* Division by the root mean square, row by row. */
#pragma once

#include "numerics.h"
#include "sums.h"

/* output[r] = input[r] * scale[r], scale = (mean of input[r]**2 + 1e-5) ** -0.5
 * saved: mean + 1e-5 [stride(rows)], scale [stride(rows)] */
static void rmsnorm_forward(const Operation *op, const Workspace *w) {
    const int64_t n = op->n_in, rows = w->rows;
    const real *input = (real *)w->arena + op->input;
    real *output = (real *)w->arena + op->output;
    real *mean = (real *)w->arena + op->saved, *scale = mean + stride(rows);
    row_products(input, input, rows, n, 1, mean);
    for (int64_t r = 0; r < rows; r++) mean[r] = mean[r] * (real)op->scale + (real)1e-5;
    each_reciprocal_root(rows, mean, scale);
    for (int64_t r = 0; r < rows; r++, input += stride(n), output += stride(n))
        for (int64_t i = 0; i < n; i += LANES) store(output + i, load(input + i) * scale[r]);
}

/* input_gradient += scale * output_gradient, then twice input * d mean, once for each factor of input * input
 * where d mean = (-0.5 * mean ** -1.5) * (sum over i, last to first, of input * output_gradient) / n */
static void rmsnorm_backward(const Operation *op, const Workspace *w) {
    const int64_t n = op->n_in, rows = w->rows;
    const real *input = (real *)w->arena + op->input;
    const real *output_gradient = (real *)w->arena + op->output_gradient;
    real *input_gradient = (real *)w->arena + op->input_gradient;
    const real *mean = (real *)w->arena + op->saved, *scale = mean + stride(rows);
    real *d_scale = w->scratch, *scale_cubed = d_scale + stride(rows);
    row_products(input, output_gradient, rows, n, -1, d_scale);
    each_reciprocal_cubed_root(rows, mean, scale_cubed);
    for (int64_t r = 0; r < rows; r++, input += stride(n), output_gradient += stride(n), input_gradient += stride(n)) {
        const real d_mean = (real)op->scale * ((real)-0.5 * scale_cubed[r] * d_scale[r]);
        for (int64_t i = 0; i < n; i += LANES) {
            const vec through_mean = load(input + i) * d_mean;
            const vec before = op->accumulate ? load(input_gradient + i) : (vec){0};
            store(input_gradient + i, before + scale[r] * load(output_gradient + i) + through_mean + through_mean);
        }
    }
}
