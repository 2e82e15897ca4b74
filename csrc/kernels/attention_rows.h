/* Attention of single rows, a number at a time: for rows that the other kernels of attention cannot compute.
 *
 * Those multiply by 0 what a row does not attend to. Where that is infinite or NaN, in a later row, in a row of another
 * document or in padding, their sum is NaN. Here every sum has the terms that it has in the reference, in the same
 * order, and no others. The formulas are those of attention.h.
 */
#pragma once

#include "softmax.h"

/* The numbers saved by forward for a row p and a head. */
typedef struct {
    const real *exps;       /* of the first row that p attends to */
    ptrdiff_t stride;       /* from one row to the next */
    real total, reciprocal;
} SavedRow;

/* The index of feature i of row r in an activation of width n. */
INLINE int64_t at_row(int64_t r, int64_t n, int64_t i) { return (r / LINE * n + i) * LINE + r % LINE; }

/* output[p][j] = sum over t of weights[t] * value[t][j] */
static void attention_row_forward(const Operation *op, const Workspace *w, int64_t head, int64_t p, SavedRow saved) {
    const int64_t n_in = op->n_in, n_out = op->n_out, head_dim = w->n_embd / w->n_head, first = w->first_rows[p];
    const int64_t own = head * head_dim, value = (3 * head + 2) * head_dim;
    const real *input = array(w, op->input);
    real *output = array(w, op->output);
    for (int64_t j = 0; j < head_dim; j++) {
        real sum = 0;
        for (int64_t t = first; t <= p; t++) {
            const real e = saved.exps[(t - first) * saved.stride], weight = MICROGPT_EXACT ? e * saved.reciprocal : e;
            sum += weight * input[at_row(t, n_in, value + j)];
        }
        output[at_row(p, n_out, own + j)] = sum;
    }
}

/* Sets d_query of row p, and adds to d_key and d_value of the rows t that it attends to. In `scratch`, room for 2
 * vectors of LINE elements for each t; only their first lanes count. */
static void attention_row_backward(const Operation *op, const Workspace *w, int64_t head, int64_t p, SavedRow saved,
                                   real *scratch) {
    const int64_t n_in = op->n_in, n_out = op->n_out, head_dim = w->n_embd / w->n_head, first = w->first_rows[p];
    const int64_t n = p - first + 1, last = (n - 1) * LINE, own = head * head_dim;
    const int64_t query = 3 * own, key = query + head_dim, value = key + head_dim;
    const real *input = array(w, op->input), *d_output = array(w, op->d_output);
    real *d_input = array(w, op->d_input), *d_logits = scratch, *weights = scratch + n * LINE;

    /* d_weights[t] = sum over j, last to first, of value[t][j] * d_output[p][j], stored where d_logits replace them */
    for (int64_t t = 0; t < n; t++) {
        real d_weight = 0;
        for (int64_t j = head_dim - 1; j >= 0; j--)
            d_weight += input[at_row(first + t, n_in, value + j)] * d_output[at_row(p, n_out, own + j)];
        store(d_logits + t * LINE, broadcast(d_weight));
    }
    softmax_backward(saved.exps + (n - 1) * saved.stride, -saved.stride, broadcast(saved.total),
                     broadcast(saved.reciprocal), op->scale, d_logits + last, weights + last, -LINE, n);

    /* d_query[p][j]  = sum over t, last to first, of d_logits[t] * key[t][j]
     * d_key[t][j]   += d_logits[t] * query[p][j]
     * d_value[t][j] += weights[t] * d_output[p][j] */
    for (int64_t j = 0; j < head_dim; j++) {
        const real q = input[at_row(p, n_in, query + j)], d_out = d_output[at_row(p, n_out, own + j)];
        real d_query = 0;
        for (int64_t t = n - 1; t >= 0; t--) {
            d_query += d_logits[t * LINE] * input[at_row(first + t, n_in, key + j)];
            d_input[at_row(first + t, n_in, key + j)] += d_logits[t * LINE] * q;
            d_input[at_row(first + t, n_in, value + j)] += weights[t * LINE] * d_out;
        }
        d_input[at_row(p, n_in, query + j)] = d_query;
    }
}
