/* Exponentials of one row of logits, their sum, and the cross entropy of a row with its target. */
#pragma once

#include "exponential.h"
#include "sums.h"

/* exps[i] = exp(logits[i] * factor - their maximum), in place. What stands beyond n, up to a whole line, is replaced
 * too. */
INLINE void exponentials(real *logits, real factor, int64_t n) {
    vec largest = broadcast(logits[0] * factor);
    for (int64_t i = 0; i < n; i += LANES) {
        const vec scaled = load(logits + i) * factor;
        largest = larger_of(choose(lanes_below(n - i), scaled, largest), largest);
        store(logits + i, scaled);
    }
    const vec maximum = broadcast(largest_lane(largest));
    for (int64_t i = 0; i < n; i += LANES) {
        const vec argument = choose(lanes_below(n - i), load(logits + i) - maximum, (vec){0});
        store(logits + i, exponential(argument));
    }
}

INLINE real sum_in_order(const real *x, int64_t n) {
    real sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i];
    return sum;
}

/* probabilities[i] = softmax of logits / temperature; both [n]. The logits are replaced by their exponentials. */
static void softmax_forward(int64_t n, void *logits, double temperature, double *probabilities) {
    const real *exps = logits;
    exponentials(logits, power((real)temperature, -1), n);
    const real reciprocal = power(sum_in_order(exps, n), -1);
    for (int64_t i = 0; i < n; i++) probabilities[i] = exps[i] * reciprocal;
}

/* losses[r] = -log softmax(input[r])[targets[r]]
 * The logits are replaced by their exponentials; saved: total [stride(rows)], 1 / total [stride(rows)]. */
static void cross_entropy_forward(const Operation *op, const Workspace *w) {
    const int64_t n = op->n_in, rows = w->rows;
    real *exps = (real *)w->arena + op->input;
    real *total = (real *)w->arena + op->saved, *reciprocal = total + stride(rows);
    for (int64_t r = 0; r < rows; r++) exponentials(exps + r * stride(n), 1, n);
    row_products(exps, NULL, rows, n, 1, total);
    each_reciprocal(rows, total, reciprocal);
    for (int64_t r = 0; r < rows; r++) w->losses[r] = -logarithm(exps[r * stride(n) + w->targets[r]] * reciprocal[r]);
}

/* input_gradient[r][i] = exps[i] * d total for every i, the target's plus exps[i] * d probability / total
 * where d probability = -loss_gradient / probability, d total = -(1 / total**2) * exps[target] * d probability */
static void cross_entropy_backward(const Operation *op, const Workspace *w) {
    const int64_t n = op->n_in, rows = w->rows;
    const real *total = (real *)w->arena + op->saved, *reciprocal = total + stride(rows);
    real *reciprocal_square = w->scratch;
    each_reciprocal_square(rows, total, reciprocal_square);
    for (int64_t r = 0; r < rows; r++) {
        const real *exps = (real *)w->arena + op->input + r * stride(n);
        real *gradient = (real *)w->arena + op->input_gradient + r * stride(n);
        const real target = exps[w->targets[r]];
        const real d_probability = 1 / (target * reciprocal[r]) * (real)-w->loss_gradient[r];
        const real d_total = -reciprocal_square[r] * (target * d_probability);
        for (int64_t i = 0; i < n; i += LANES) store(gradient + i, load(exps + i) * d_total);
        gradient[w->targets[r]] = target * (reciprocal[r] * d_probability + d_total);
    }
}
