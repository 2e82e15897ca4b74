/* Causal multi-head attention.
 *
 * A row of the input holds, head after head, its query, key and value of head_dim each: [rows][n_head][3][head_dim].
 * Each document attends to itself. For one document of T positions and one head:
 *
 *     logits[t][p]  = sum over j of key[t][j] * query[p][j] / sqrt(head_dim)        t <= p
 *     weights[t][p] = softmax over t
 *     output[p][j]  = sum over t of weights[t][p] * value[t][j]
 *
 * Everything over (t, p) is laid out in panels of LINE positions p: [lines(T)][T][LINE]. So the lanes of a vector are
 * different positions, and every sum over t is a sum of vectors, in the order of t. Where t > p there are zeros: adding
 * 0 times a number to a sum that started at +0.0 changes no bit of it, so that panels are multiplied as if they were
 * full, down to the last t that any of their positions attends to.
 *
 * saved, for each document and head: exps [lines(T)][T][LINE], total [stride(T)], 1 / total [stride(T)].
 */
#pragma once

#include "product.h"
#include "softmax.h"

typedef struct {
    int64_t positions, head_dim, row, output_row; /* T, and the strides of input and output */
    real scale;
    real *exps, *total, *reciprocals;
} Head;

INLINE int64_t saved_by_head(int64_t positions) { return stride(positions) * (positions + 2); }

INLINE Head head_of(const Operation *op, const Workspace *w, int64_t document, int64_t head) {
    const int64_t positions = w->document_start[document + 1] - w->document_start[document];
    real *exps = (real *)w->arena + op->saved + w->attention_start[document] + head * saved_by_head(positions);
    return (Head){
        .positions = positions,
        .head_dim = w->n_embd / w->n_head,
        .row = stride(op->n_in),
        .output_row = stride(op->n_out),
        .scale = op->scale,
        .exps = exps,
        .total = exps + positions * stride(positions),
        .reciprocals = exps + (positions + 1) * stride(positions),
    };
}

/* Logits to exponentials, in place, for the positions from `first` on in one vector of a panel, t < past. */
static void softmax_panel(real *panel, int64_t first, int64_t past, real scale, real *total, real *reciprocals) {
    const bits position = lane_numbers() + (real_bits)first;
    vec largest = load(panel) * scale, sum = {0};
    for (int64_t t = 0; t < past; t++) {
        const vec logits = load(panel + t * LINE) * scale;
        largest = larger_of(choose(position >= (real_bits)t, logits, largest), largest);
        store(panel + t * LINE, logits);
    }
    for (int64_t t = 0; t < past; t++) {
        const bits attends = position >= (real_bits)t;
        const vec arguments = (vec)((bits)(load(panel + t * LINE) - largest) & attends);
        const vec exps = (vec)((bits)exponential(arguments) & attends);
        store(panel + t * LINE, exps);
        sum += exps;
    }
    store(total, sum);
    store(reciprocals, reciprocal(sum));
}

/* output[p] for the T rows of one head, and what backward needs of it. */
static void attention_forward_head(const Head *h, const real *input, real *output, real *scratch) {
    const int64_t T = h->positions, head_dim = h->head_dim;
    const real *query = input, *key = input + head_dim, *value = input + 2 * head_dim;
    real *queries_transposed = scratch, *weights = scratch + stride(T) * head_dim;

    transpose_to_lines(query, NULL, h->row, T, head_dim, queries_transposed);
    for (int64_t first = 0; first < T; first += LINE) {
        const int64_t past = minimum(first + LINE, T);
        real *exps = h->exps + first * T;
        multiply(&(Product){.a = key, .a_row = h->row, .a_step = 1,
                            .b = queries_transposed + first * head_dim, .b_step = LINE,
                            .depth = head_dim,
                            .c = exps, .c_row = LINE},
                 past, LINE, 1);
        for (int v = 0; v < LINE; v += LANES) {
            softmax_panel(exps + v, first + v, past, h->scale, h->total + first + v, h->reciprocals + first + v);
            const vec reciprocals = load(h->reciprocals + first + v);
            for (int64_t t = 0; t < past; t++)
                store(weights + t * LINE + v, load(exps + t * LINE + v) * reciprocals);
        }
        multiply(&(Product){.a = weights, .a_row = 1, .a_step = LINE,
                            .b = value, .b_step = h->row, .b_line = LINE,
                            .depth = past,
                            .c = output + first * h->output_row, .c_row = h->output_row},
                 past - first, head_dim, 0);
    }
}

/* d weights[t][p] = sum over j, last to first, of value[t][j] * output_gradient[p][j]
 * d logits = exps * (d weights / total + d total), d total = -(sum over t, last to first, of exps * d weights) / total**2
 * and from these the gradients of query (t last to first), key and value (p last to first, hence the panels). */
static void attention_backward_head(const Head *h, const real *input, const real *output_gradient,
                                    real *input_gradient, real *scratch) {
    const int64_t T = h->positions, head_dim = h->head_dim;
    const real *query = input, *key = input + head_dim, *value = input + 2 * head_dim;
    real *d_query = input_gradient, *d_key = input_gradient + head_dim, *d_value = input_gradient + 2 * head_dim;
    real *d_output_transposed = scratch, *weights = scratch + stride(T) * head_dim, *d_logits = weights + T * LINE;

    transpose_to_lines(output_gradient, NULL, h->output_row, T, head_dim, d_output_transposed);
    for (int64_t first = stride(T) - LINE; first >= 0; first -= LINE) {
        const int64_t past = minimum(first + LINE, T), height = past - first;
        const int accumulate = past < T;
        real *d_weights = d_logits; /* replaced line by line */
        multiply(&(Product){.a = value + head_dim - 1, .a_row = h->row, .a_step = -1,
                            .b = d_output_transposed + (first + LINE) * head_dim - LINE, .b_step = -LINE,
                            .depth = head_dim,
                            .c = d_weights, .c_row = LINE},
                 past, LINE, 1);
        for (int v = 0; v < LINE; v += LANES) {
            const real *exps = h->exps + first * T + v;
            const vec reciprocals = load(h->reciprocals + first + v);
            const vec d_total_factor = -reciprocal_square(load(h->total + first + v));
            vec d_total = {0};
            for (int64_t t = past - 1; t >= 0; t--)
                d_total += d_total_factor * (load(exps + t * LINE) * load(d_weights + t * LINE + v));
            for (int64_t t = 0; t < past; t++) {
                const vec e = load(exps + t * LINE), d_weight = load(d_weights + t * LINE + v);
                store(weights + t * LINE + v, e * reciprocals);
                store(d_logits + t * LINE + v, h->scale * (e * (reciprocals * d_weight + d_total)));
            }
        }
        multiply(&(Product){.a = d_logits + (past - 1) * LINE, .a_row = 1, .a_step = -LINE,
                            .b = key + (past - 1) * h->row, .b_step = -h->row, .b_line = LINE,
                            .depth = past,
                            .c = d_query + first * h->row, .c_row = h->row},
                 height, head_dim, 0);
        multiply(&(Product){.a = d_logits + height - 1, .a_row = LINE, .a_step = -1,
                            .b = query + (past - 1) * h->row, .b_step = -h->row, .b_line = LINE,
                            .depth = height, .accumulate = accumulate,
                            .c = d_key, .c_row = h->row},
                 past, head_dim, 0);
        multiply(&(Product){.a = weights + height - 1, .a_row = LINE, .a_step = -1,
                            .b = output_gradient + (past - 1) * h->output_row, .b_step = -h->output_row, .b_line = LINE,
                            .depth = height, .accumulate = accumulate,
                            .c = d_value, .c_row = h->row},
                 past, head_dim, 0);
    }
}

/* One more position of a document whose earlier ones are in its cache. A cache holds, for each layer:
 * keys [n_head][lines(block_size)][head_dim][LINE], values [block_size][stride(n_embd)]. */
static void attention_forward_cached(const Operation *op, const Workspace *w, int64_t r) {
    const int64_t n_embd = w->n_embd, head_dim = n_embd / w->n_head, position = w->positions[r];
    real *keys = (real *)w->caches[r] + op->cache, *values = keys + stride(w->block_size) * n_embd;
    real *weights = w->scratch;
    for (int64_t head = 0; head < w->n_head; head++) {
        const real *query = (real *)w->arena + op->input + r * stride(op->n_in) + head * 3 * head_dim;
        const real *key = query + head_dim, *value = key + head_dim;
        real *keys_transposed = keys + head * stride(w->block_size) * head_dim;
        for (int64_t j = 0; j < head_dim; j++)
            keys_transposed[(position / LINE * head_dim + j) * LINE + position % LINE] = key[j];
        memcpy(values + position * stride(n_embd) + head * head_dim, value, head_dim * sizeof(real));
        multiply(&(Product){.a = query, .a_step = 1,
                            .b = keys_transposed, .b_step = LINE, .b_line = head_dim * LINE,
                            .depth = head_dim,
                            .c = weights},
                 1, position + 1, 1);
        exponentials(weights, op->scale, position + 1);
        const real reciprocal_total = power(sum_in_order(weights, position + 1), -1);
        for (int64_t t = 0; t <= position; t++) weights[t] *= reciprocal_total;
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
            const int64_t row = w->document_start[document];
            attention_forward_head(&h, (real *)w->arena + op->input + row * h.row + head * 3 * h.head_dim,
                                   (real *)w->arena + op->output + row * h.output_row + head * h.head_dim, w->scratch);
        }
}

static void attention_backward(const Operation *op, const Workspace *w) {
    for (int64_t document = 0; document < w->documents; document++)
        for (int64_t head = 0; head < w->n_head; head++) {
            const Head h = head_of(op, w, document, head);
            const int64_t row = w->document_start[document], input = row * h.row + head * 3 * h.head_dim;
            attention_backward_head(&h, (real *)w->arena + op->input + input,
                                    (real *)w->arena + op->output_gradient + row * h.output_row + head * h.head_dim,
                                    (real *)w->arena + op->input_gradient + input, w->scratch);
        }
}
