/* Division by the root mean square, row by row. */
#pragma once

#include "numerics.h"

/* A sum along a row has to run in order, so that each addition waits for the one before: several rows at once. */
enum { NORM_ROWS = 4 };

/* sums[r] = sum over i, in order of `step`, of a[r][i] * b[r][i] */
INLINE void row_products(const int rows, const real *a, const real *b, int64_t n, int step, real *sums) {
    const int64_t row = stride(n);
    int64_t i = step > 0 ? 0 : n - 1;
    real sum[NORM_ROWS] = {0};
    for (int64_t k = 0; k < n; k++, i += step)
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) sum[r] += a[r * row + i] * b[r * row + i];
    for (int r = 0; r < rows; r++) sums[r] = sum[r];
}

static void all_row_products(const real *a, const real *b, int64_t rows, int64_t n, int step, real *sums) {
    int64_t r = 0;
    for (; r + NORM_ROWS <= rows; r += NORM_ROWS)
        row_products(NORM_ROWS, a + r * stride(n), b + r * stride(n), n, step, sums + r);
    for (; r < rows; r++) row_products(1, a + r * stride(n), b + r * stride(n), n, step, sums + r);
}

/* output[r] = input[r] * scale[r], scale = (mean of input[r]**2 + 1e-5) ** -0.5
 * saved: [rows] mean + 1e-5, then [rows] scale */
static void rmsnorm_forward(const Operation *op, const Workspace *w) {
    const int64_t n = op->n_in, rows = w->rows;
    const real *input = (real *)w->arena + op->input;
    real *output = (real *)w->arena + op->output;
    real *mean = (real *)w->arena + op->saved, *scale = mean + rows;
    const real per_element = power(n, -1);
    all_row_products(input, input, rows, n, 1, mean);
    for (int64_t r = 0; r < rows; r++) mean[r] = mean[r] * per_element + (real)1e-5;
    reciprocal_roots(rows, mean, scale);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < n; i++) output[r * stride(n) + i] = input[r * stride(n) + i] * scale[r];
}

/* input_gradient += scale * output_gradient, then twice input * d mean, once for each factor of input * input
 * where d mean = (-0.5 * mean ** -1.5) * (sum over i, last to first, of input * output_gradient) / n */
static void rmsnorm_backward(const Operation *op, const Workspace *w) {
    const int64_t n = op->n_in, rows = w->rows;
    const real *input = (real *)w->arena + op->input;
    const real *output_gradient = (real *)w->arena + op->output_gradient;
    real *input_gradient = (real *)w->arena + op->input_gradient;
    const real *mean = (real *)w->arena + op->saved, *scale = mean + rows;
    real *d_scale = w->scratch, *scale_cubed = d_scale + rows;
    const real per_element = power(n, -1);
    all_row_products(input, output_gradient, rows, n, -1, d_scale);
    reciprocal_cubed_roots(rows, mean, scale_cubed);
    for (int64_t r = 0; r < rows; r++) {
        const real d_mean = per_element * ((real)-0.5 * scale_cubed[r] * d_scale[r]);
        for (int64_t i = r * stride(n); i < r * stride(n) + n; i++) {
            const real through_mean = input[i] * d_mean;
            const real before = op->accumulate ? input_gradient[i] : 0;
            input_gradient[i] = before + scale[r] * output_gradient[i] + through_mean + through_mean;
        }
    }
}
