/* Attention of single rows, a number at a time: of those that the other kernels of attention cannot compute.
 *
 * They multiply by 0 what a row does not attend to. Where that is infinite or NaN, as may be what comes later, what is
 * of another document, or padding, the sum is NaN. Here every sum has the terms that it has in the reference, and no
 * others; it runs in the same order.
 */
#pragma once

#include "softmax.h"

/* What forward has saved of a row and a head. */
typedef struct {
    const real *exps;       /* of the first row it attends to, */
    ptrdiff_t step;         /* and from one of those to the next */
    real total, reciprocal;
} SavedRow;

/* Where feature i of row r stands in an activation of width n. */
INLINE int64_t at_row(int64_t r, int64_t n, int64_t i) { return (r / LINE * n + i) * LINE + r % LINE; }

/* output[p][j] = sum over t of weights[t] * value[t][j] */
static void attention_row_forward(const Operation *op, const Workspace *w, int64_t head, int64_t p, SavedRow saved) {
    const int64_t head_dim = w->n_embd / w->n_head, first = w->first_rows[p];
    const real *input = (real *)w->arena + op->input;
    for (int64_t j = 0; j < head_dim; j++) {
        real sum = 0;
        for (int64_t t = first; t <= p; t++) {
            const real e = saved.exps[(t - first) * saved.step], weight = MICROGPT_EXACT ? e * saved.reciprocal : e;
            sum += weight * input[at_row(t, op->n_in, (3 * head + 2) * head_dim + j)];
        }
        ((real *)w->arena + op->output)[at_row(p, op->n_out, head * head_dim + j)] = sum;
    }
}

/* Adds to the gradients of keys and values. Of the vectors in `scratch`, 2 * LINE elements for each row attended to, the
 * first lane counts. */
static void attention_row_backward(const Operation *op, const Workspace *w, int64_t head, int64_t p, SavedRow saved,
                                   real *scratch) {
    const int64_t head_dim = w->n_embd / w->n_head, first = w->first_rows[p], n = p - first + 1, last = (n - 1) * LINE;
    const int64_t query = 3 * head * head_dim, key = query + head_dim, value = key + head_dim;
    const real *input = (real *)w->arena + op->input, *d_output = (real *)w->arena + op->d_output;
    real *d_input = (real *)w->arena + op->d_input, *d_logits = scratch, *weights = scratch + n * LINE;
    for (int64_t t = 0; t < n; t++) {
        real d_weight = 0;
        for (int64_t j = head_dim - 1; j >= 0; j--)
            d_weight += input[at_row(first + t, op->n_in, value + j)] * d_output[at_row(p, op->n_out, head * head_dim + j)];
        store(d_logits + t * LINE, broadcast(d_weight));
    }
    softmax_backward(saved.exps + (n - 1) * saved.step, -saved.step, broadcast(saved.total), broadcast(saved.reciprocal),
                     op->scale, d_logits + last, weights + last, -LINE, n);
    for (int64_t j = 0; j < head_dim; j++) {
        const real q = input[at_row(p, op->n_in, query + j)], d_out = d_output[at_row(p, op->n_out, head * head_dim + j)];
        real d_query = 0;
        for (int64_t t = n - 1; t >= 0; t--) {
            d_query += d_logits[t * LINE] * input[at_row(first + t, op->n_in, key + j)];
            d_input[at_row(first + t, op->n_in, key + j)] += d_logits[t * LINE] * q;
            d_input[at_row(first + t, op->n_in, value + j)] += weights[t * LINE] * d_out;
        }
        d_input[at_row(p, op->n_in, query + j)] = d_query;
    }
}
