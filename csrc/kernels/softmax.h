/* Exponentials of one row of logits, their sum, and the cross entropy of a row with its target. */
#pragma once

#include "exponential.h"

/* exps[i] = exp(logits[i] * factor - their maximum), returns the sum of exps in order. In place is fine. */
INLINE real exponentials(const real *logits, real factor, int64_t n, real *exps) {
    real largest = logits[0] * factor, total = 0;
    for (int64_t i = 0; i < n; i++) {
        exps[i] = logits[i] * factor;
        largest = exps[i] > largest ? exps[i] : largest;
    }
    for (int64_t i = 0; i < n; i++) exps[i] -= largest;
    exponential_each(n, exps, exps);
    for (int64_t i = 0; i < n; i++) total += exps[i];
    return total;
}

/* probabilities[i] = softmax of logits / temperature; all [n]. The logits are replaced by their exponentials. */
static void softmax_forward(int64_t n, void *logits, double temperature, double *probabilities) {
    real *exps = logits;
    const real total = exponentials(exps, power((real)temperature, -1), n, exps);
    const real reciprocal = power(total, -1);
    for (int64_t i = 0; i < n; i++) probabilities[i] = exps[i] * reciprocal;
}

/* losses[r] = -log softmax(input[r])[targets[r]]
 * The logits are replaced by their exponentials; saved: [rows] totals, then [rows] 1 / total. */
static void cross_entropy_forward(const Operation *op, const Workspace *w) {
    const int64_t n = op->n_in, rows = w->rows;
    real *total = (real *)w->arena + op->saved, *reciprocal = total + rows;
    for (int64_t r = 0; r < rows; r++) {
        real *exps = (real *)w->arena + op->input + r * stride(n);
        total[r] = exponentials(exps, 1, n, exps);
    }
    reciprocals(rows, total, reciprocal);
    for (int64_t r = 0; r < rows; r++) {
        const real *exps = (real *)w->arena + op->input + r * stride(n);
        w->losses[r] = -logarithm(exps[w->targets[r]] * reciprocal[r]);
    }
}

/* input_gradient[r][i] = exps[i] * d total for every i, the target's plus exps[i] * d probability / total
 * where d probability = -loss_gradient / probability, d total = -(1 / total**2) * exps[target] * d probability */
static void cross_entropy_backward(const Operation *op, const Workspace *w) {
    const int64_t n = op->n_in, rows = w->rows;
    const real *total = (real *)w->arena + op->saved, *reciprocal = total + rows;
    real *reciprocal_square = w->scratch;
    reciprocal_squares(rows, total, reciprocal_square);
    for (int64_t r = 0; r < rows; r++) {
        const real *exps = (real *)w->arena + op->input + r * stride(n);
        real *gradient = (real *)w->arena + op->input_gradient + r * stride(n);
        const real target = exps[w->targets[r]];
        const real d_probability = 1 / (target * reciprocal[r]) * (real)-w->loss_gradient[r];
        const real d_total = -reciprocal_square[r] * (target * d_probability);
        for (int64_t i = 0; i < n; i++) gradient[i] = exps[i] * d_total;
        gradient[w->targets[r]] = target * (reciprocal[r] * d_probability + d_total);
    }
}
