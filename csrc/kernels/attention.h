/* Causal multi-head attention.
 *
 * A row of the input holds, head after head, its query, key and value of head_dim each: [rows][n_head][3][head_dim].
 * Each document attends to itself. For one document of T positions and one head:
 *
 *     logits[p][t]  = sum over j of query[p][j] * key[t][j] / sqrt(head_dim)        t <= p
 *     weights[p][t] = softmax over t
 *     output[p][j]  = sum over t of weights[p][t] * value[t][j]
 *
 * Matrices over (p, t) have rows of stride(T). Where t > p they hold zeros, and adding 0 times a number to a sum that
 * started at +0.0 changes no bit of it: so blocks of rows are multiplied as if they were full up to their last column.
 *
 * saved, for each document and head: exps [T][stride(T)], total [T], 1 / total [T].
 */
#pragma once

#include "product.h"
#include "softmax.h"

enum { ATTENTION_ROWS = 16 }; /* the rows of a block */

typedef struct {
    int64_t positions, head_dim, row, output_row; /* T, and the strides of input and output */
    int64_t first_row;
    real scale;
    real *exps, *total, *reciprocal;
} Head;

INLINE int64_t saved_by_head(int64_t positions) { return positions * (stride(positions) + 2); }

INLINE Head head_of(const Operation *op, const Workspace *w, int64_t document, int64_t head) {
    const int64_t positions = w->document_start[document + 1] - w->document_start[document];
    real *exps = (real *)w->arena + op->saved + w->attention_start[document] + head * saved_by_head(positions);
    return (Head){
        .positions = positions,
        .head_dim = w->n_embd / w->n_head,
        .row = stride(op->n_in),
        .output_row = stride(op->n_out),
        .first_row = w->document_start[document],
        .scale = power(power((real)(w->n_embd / w->n_head), (real)0.5), -1),
        .exps = exps,
        .total = exps + positions * stride(positions),
        .reciprocal = exps + positions * (stride(positions) + 1),
    };
}

/* weights[t] = exps[t] * reciprocal for t < n, 0 for the rest of the row */
INLINE void attention_weights(const real *exps, real reciprocal, int64_t n, int64_t row, real *weights) {
    for (int64_t t = 0; t < n; t++) weights[t] = exps[t] * reciprocal;
    for (int64_t t = n; t < row; t++) weights[t] = 0;
}

/* What one query, or a block of them, takes from the keys: exps, total and 1 / total of each row p < rows, which
 * attends to `first + p + 1` positions. */
static void attend(const real *query, int64_t query_row, const real *keys_transposed, int64_t head_dim, real scale,
                   int64_t first, int64_t rows, real *exps, int64_t exps_row, real *total, real *reciprocal) {
    multiply(&(Product){.a = query, .a_row = query_row, .a_step = 1,
                        .b = keys_transposed, .b_step = LINE, .b_line = head_dim * LINE,
                        .depth = head_dim,
                        .c = exps, .c_row = exps_row},
             rows, first + rows, 1);
    for (int64_t p = 0; p < rows; p++)
        total[p] = exponentials(exps + p * exps_row, scale, first + p + 1, exps + p * exps_row);
    reciprocals(rows, total, reciprocal);
}

static void attention_forward_head(const Head *h, const real *input, real *output, real *scratch) {
    const int64_t T = h->positions, row = stride(T), head_dim = h->head_dim;
    const real *query = input, *key = input + head_dim, *value = input + 2 * head_dim;
    real *keys_transposed = scratch, *weights = scratch + row * head_dim;

    transpose_to_lines(key, NULL, h->row, T, head_dim, keys_transposed);
    for (int64_t first = 0; first < T; first += ATTENTION_ROWS) {
        const int64_t rows = minimum(ATTENTION_ROWS, T - first);
        attend(query + first * h->row, h->row, keys_transposed, head_dim, h->scale, first, rows,
               h->exps + first * row, row, h->total + first, h->reciprocal + first);
        for (int64_t p = first; p < first + rows; p++)
            attention_weights(h->exps + p * row, h->reciprocal[p], p + 1, row, weights + p * row);
        multiply(&(Product){.a = weights + first * row, .a_row = row, .a_step = 1,
                            .b = value, .b_step = h->row, .b_line = LINE,
                            .depth = first + rows,
                            .c = output + first * h->output_row, .c_row = h->output_row},
                 rows, head_dim, 0);
    }
}

static void attention_backward_head(const Head *h, const real *input, const real *output_gradient,
                                    real *input_gradient, real *scratch) {
    const int64_t T = h->positions, row = stride(T), head_dim = h->head_dim;
    const real *query = input, *key = input + head_dim, *value = input + 2 * head_dim;
    real *d_query = input_gradient, *d_key = input_gradient + head_dim, *d_value = input_gradient + 2 * head_dim;
    real *values_transposed = scratch, *weights = scratch + row * head_dim, *d_logits = weights + T * row;
    real *reciprocal_square = d_logits + T * row;

    reciprocal_squares(T, h->total, reciprocal_square);
    transpose_to_lines(value, NULL, h->row, T, head_dim, values_transposed);
    for (int64_t first = 0; first < T; first += ATTENTION_ROWS) {
        const int64_t rows = minimum(ATTENTION_ROWS, T - first), past = first + rows;
        real *d_weights = d_logits; /* replaced row by row */
        multiply(&(Product){.a = output_gradient + first * h->output_row + head_dim - 1,
                            .a_row = h->output_row, .a_step = -1,
                            .b = values_transposed + (head_dim - 1) * LINE, .b_step = -LINE, .b_line = head_dim * LINE,
                            .depth = head_dim,
                            .c = d_weights + first * row, .c_row = row},
                 rows, past, 1);
        for (int64_t p = first; p < past; p++) {
            const real *exps = h->exps + p * row, reciprocal = h->reciprocal[p];
            real *d_row = d_logits + p * row, d_total = 0;
            attention_weights(exps, reciprocal, p + 1, row, weights + p * row);
            for (int64_t t = p; t >= 0; t--) d_total += -reciprocal_square[p] * (exps[t] * d_row[t]);
            for (int64_t t = 0; t <= p; t++) d_row[t] = h->scale * (exps[t] * (reciprocal * d_row[t] + d_total));
            for (int64_t t = p + 1; t < row; t++) d_row[t] = 0;
        }
        multiply(&(Product){.a = d_logits + first * row + past - 1, .a_row = row, .a_step = -1,
                            .b = key + (past - 1) * h->row, .b_step = -h->row, .b_line = LINE,
                            .depth = past,
                            .c = d_query + first * h->row, .c_row = h->row},
                 rows, head_dim, 0);
    }
    for (int64_t first = 0; first < T; first += ATTENTION_ROWS) {
        const int64_t rows = minimum(ATTENTION_ROWS, T - first);
        multiply(&(Product){.a = d_logits + (T - 1) * row + first, .a_row = 1, .a_step = -row,
                            .b = query + (T - 1) * h->row, .b_step = -h->row, .b_line = LINE,
                            .depth = T - first,
                            .c = d_key + first * h->row, .c_row = h->row},
                 rows, head_dim, 0);
        multiply(&(Product){.a = weights + (T - 1) * row + first, .a_row = 1, .a_step = -row,
                            .b = output_gradient + (T - 1) * h->output_row, .b_step = -h->output_row, .b_line = LINE,
                            .depth = T - first,
                            .c = d_value + first * h->row, .c_row = h->row},
                 rows, head_dim, 0);
    }
}

/* One more position of a document whose earlier ones are in its cache. A cache holds, for each layer:
 * keys [n_head][lines(block_size)][head_dim][LINE], values [block_size][stride(n_embd)]. */
static void attention_forward_cached(const Operation *op, const Workspace *w, int64_t r) {
    const int64_t n_embd = w->n_embd, head_dim = n_embd / w->n_head, position = w->positions[r];
    const real scale = power(power((real)head_dim, (real)0.5), -1);
    real *keys = (real *)w->caches[r] + op->cache, *values = keys + stride(w->block_size) * n_embd;
    real *weights = w->scratch;
    for (int64_t head = 0; head < w->n_head; head++) {
        const real *query = (real *)w->arena + op->input + r * stride(op->n_in) + head * 3 * head_dim;
        const real *key = query + head_dim, *value = key + head_dim;
        real *keys_transposed = keys + head * stride(w->block_size) * head_dim, total, reciprocal;
        for (int64_t j = 0; j < head_dim; j++)
            keys_transposed[(position / LINE * head_dim + j) * LINE + position % LINE] = key[j];
        memcpy(values + position * stride(n_embd) + head * head_dim, value, head_dim * sizeof(real));
        attend(query, 0, keys_transposed, head_dim, scale, position, 1, weights, 0, &total, &reciprocal);
        attention_weights(weights, reciprocal, position + 1, position + 1, weights);
        multiply(&(Product){.a = weights, .a_step = 1,
                            .b = values + head * head_dim, .b_step = stride(n_embd), .b_line = LINE,
                            .depth = position + 1,
                            .c = (real *)w->arena + op->output + r * stride(n_embd) + head * head_dim},
                 1, head_dim, 0);
    }
}

static void attention_forward(const Operation *op, const Workspace *w) {
    if (w->caches) {
        for (int64_t r = 0; r < w->rows; r++) attention_forward_cached(op, w, r);
        return;
    }
    for (int64_t document = 0; document < w->documents; document++)
        for (int64_t head = 0; head < w->n_head; head++) {
            const Head h = head_of(op, w, document, head);
            attention_forward_head(&h, (real *)w->arena + op->input + h.first_row * h.row + head * 3 * h.head_dim,
                                   (real *)w->arena + op->output + h.first_row * h.output_row + head * h.head_dim,
                                   w->scratch);
        }
}

static void attention_backward(const Operation *op, const Workspace *w) {
    for (int64_t document = 0; document < w->documents; document++)
        for (int64_t head = 0; head < w->n_head; head++) {
            const Head h = head_of(op, w, document, head);
            const int64_t input = h.first_row * h.row + head * 3 * h.head_dim;
            attention_backward_head(&h, (real *)w->arena + op->input + input,
                                    (real *)w->arena + op->output_gradient + h.first_row * h.output_row
                                        + head * h.head_dim,
                                    (real *)w->arena + op->input_gradient + input, w->scratch);
        }
}
