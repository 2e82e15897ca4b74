/* Causal multi-head attention.
 *
 * The features of a row of the input are, head after head, its query, key and value of head_dim each. A row p attends to
 * the rows t of its document up to itself:
 *
 *     logits[t][p]  = sum over j of key[t][j] * query[p][j] / sqrt(head_dim)
 *     weights[t][p] = softmax over t
 *     output[p][j]  = sum over t of weights[t][p] * value[t][j]
 *
 * A panel of rows p may hold several documents, or a part of one. Everything over (t, p) covers all rows t that any of
 * its rows attends to, [keys][LINE], and is 0 where p does not attend to t: adding 0 times a number to a sum that
 * started at +0.0 changes no bit of it. No more is ever kept than these triangles of exponentials.
 *
 * saved, for each panel and head: exps [keys][LINE], total [LINE], 1 / total [LINE]. In float32 the exps are already
 * divided by their total.
 */
#pragma once

#include "attention_short.h"
#include "product.h"

/* One head of one panel: its rows p, and the rows t that they attend to. */
typedef struct {
    int64_t head_dim, width, output_width;  /* features of a head, of a row of input, of output */
    int64_t panel, rows;                    /* rows p that exist */
    int64_t first_key, past_key;
    int64_t next_first_key;                 /* of the panel that follows, which backward comes to first */
    int64_t features, output_features;      /* before those of this head */
    real scale;
    real *exps, *total, *reciprocals;
} Head;

INLINE int64_t first_key_of(const Workspace *w, int64_t panel) { return w->first_rows[panel * LINE]; }
INLINE int64_t past_key_of(const Workspace *w, int64_t panel) { return minimum((panel + 1) * LINE, w->rows); }

static int64_t attention_size(const Workspace *w, int64_t panel) {
    if (attention_is_short(w)) return attention_short_size(w);
    return w->n_head * (past_key_of(w, panel) - first_key_of(w, panel) + 2) * LINE;
}

INLINE Head head_of(const Operation *op, const Workspace *w, int64_t panel, int64_t head) {
    const int64_t head_dim = w->n_embd / w->n_head;
    const int64_t first_key = first_key_of(w, panel), past_key = past_key_of(w, panel), keys = past_key - first_key;
    real *exps = (real *)w->arena + op->saved + w->attention_start[panel] + head * (keys + 2) * LINE;
    return (Head){
        .head_dim = head_dim, .width = op->n_in, .output_width = op->n_out,
        .panel = panel, .rows = past_key - panel * LINE,
        .first_key = first_key, .past_key = past_key,
        .next_first_key = past_key < w->rows ? first_key_of(w, panel + 1) : INT64_MAX,
        .features = head * 3 * head_dim, .output_features = head * head_dim,
        .scale = op->scale,
        .exps = exps, .total = exps + keys * LINE, .reciprocals = exps + (keys + 1) * LINE,
    };
}

/* Where feature 0 of the query, key or value (part 0, 1, 2) of a row stands in an array like the input. */
INLINE int64_t at_row(const Head *h, int part, int64_t row) {
    return (row / LINE * h->width + h->features + part * h->head_dim) * LINE + row % LINE;
}
INLINE int64_t at_output(const Head *h) { return (h->panel * h->output_width + h->output_features) * LINE; }

enum { QUERY, KEY, VALUE };

/* c[t][p] = sum over j, with the sign of `step` as its direction, of rows[t][j] * columns[j][p], for all keys t from
 * first_key, a panel of keys after the other */
INLINE void multiply_keys(const Head *h, const real *rows, int part, const real *columns, int step, real *c) {
    const int64_t start = step > 0 ? 0 : (h->head_dim - 1) * LINE;
    for (int64_t t = h->first_key, next; t < h->past_key; c += (next - t) * LINE, t = next) {
        next = minimum((t / LINE + 1) * LINE, h->past_key);
        multiply(&(Product){.a = rows + at_row(h, part, t) + start, .a_row = 1, .a_step = step * LINE,
                                  .first_run = h->head_dim,
                                  .b = columns + start, .b_step = step * LINE,
                                  .depth = h->head_dim,
                                  .c = c, .c_row = LINE},
                       next - t, 0, 1);
    }
}

/* Logits [n][LINE] to exponentials, in place, for one vector of rows. A row attends to the keys from its `first` to its
 * `last`, counted from the first of the n. Returns their total, and 1 where there are no keys. */
INLINE vec attention_exponentials(real *logits, int64_t n, bits first, bits last, real scale) {
    vec largest = broadcast(-INFINITY), total = choose(first > last, broadcast(1), (vec){0});
    for (int64_t t = 0; t < n; t++) {
        const bits attends = (first <= (real_bits)t) & (last >= (real_bits)t);
        largest = larger_of(choose(attends, load(logits + t * LINE) * scale, largest), largest);
    }
    for (int64_t t = 0; t < n; t++) {
        const bits attends = (first <= (real_bits)t) & (last >= (real_bits)t);
        const vec argument = (vec)((bits)(load(logits + t * LINE) * scale - largest) & attends);
        const vec exps = (vec)((bits)exponential(argument) & attends);
        store(logits + t * LINE, exps);
        total += exps;
    }
    return total;
}

/* The first and last keys of the rows of a panel, counted from its first key. Rows that do not exist have none. */
typedef struct {
    real_bits first[LINE], last[LINE];
} Reach;

INLINE void reach_of(const Workspace *w, int64_t panel, Reach *reach) {
    const int64_t first_key = first_key_of(w, panel);
    for (int r = 0; r < LINE; r++) {
        const int64_t row = panel * LINE + r;
        reach->first[r] = (real_bits)(w->first_rows[row] - first_key);
        reach->last[r] = row < w->rows ? (real_bits)(row - first_key) : -1;
    }
}

static void attention_forward_head(const Head *h, const Reach *reach, const real *input, real *output, real *scratch) {
    const int64_t keys = h->past_key - h->first_key;
    real *weights = MICROGPT_EXACT ? scratch : h->exps;
    multiply_keys(h, input, KEY, input + at_row(h, QUERY, h->panel * LINE), 1, h->exps);
    for (int v = 0; v < LINE; v += LANES) {
        const vec total = attention_exponentials(h->exps + v, keys, load_bits(reach->first + v),
                                                 load_bits(reach->last + v), h->scale);
        const vec reciprocals = reciprocal(total);
        store(h->total + v, total);
        store(h->reciprocals + v, reciprocals);
        for (int64_t t = 0; t < keys * LINE; t += LINE)
            store(weights + t + v, load(h->exps + t + v) * reciprocals);
    }
    multiply(&(Product){.a = input + at_row(h, VALUE, h->first_key), .a_row = LINE, .a_step = 1,
                              .a_jump = (h->width - 1) * LINE,
                              .first_run = minimum(LINE - h->first_key % LINE, keys),
                              .b = weights, .b_step = LINE,
                              .depth = keys,
                              .c = output + at_output(h), .c_row = LINE},
                   h->head_dim, 0, 1);
}

/* d weights[t][p] = sum over j, last to first, of value[t][j] * output_gradient[p][j]
 * d logits = exps * (d weights / total + d total), d total = -(sum over t, last to first, of exps * d weights) / total**2
 * and from these the gradients of query (t last to first), key and value (p last to first). For the latter two, lanes
 * are rows t: blocks of LINE rows t by LINE rows p are transposed. */
static void attention_backward_head(const Head *h, const real *input, const real *output_gradient,
                                    real *input_gradient, real *scratch) {
    const int64_t keys = h->past_key - h->first_key, before = h->first_key % LINE;
    const int64_t first_panel = h->first_key / LINE, key_panels = h->panel + 1 - first_panel;
    const real *query = input + at_row(h, QUERY, h->panel * LINE), *d_output = output_gradient + at_output(h);
    real *d_logits = scratch, *weights = d_logits + key_panels * LINE * LINE; /* from the first panel with keys */
    real *transposed = weights + key_panels * LINE * LINE;
    real *d_weights = d_logits + before * LINE; /* replaced line by line */

    multiply_keys(h, input, VALUE, d_output, -1, d_weights);
    for (int64_t i = 0; i < 2; i++) {
        real *lines_of_keys = i ? weights : d_logits;
        memset(lines_of_keys, 0, before * LINE * sizeof(real));
        memset(lines_of_keys + (before + keys) * LINE, 0, (LINE - h->rows) * LINE * sizeof(real));
    }
    for (int v = 0; v < LINE; v += LANES) {
        const real *exps = h->exps + v, *d_weights_v = d_weights + v;
        real *weights_v = weights + before * LINE + v, *d_logits_v = d_logits + before * LINE + v;
#if MICROGPT_EXACT
        const vec reciprocals = load(h->reciprocals + v), d_total_factor = -reciprocal_square(load(h->total + v));
        vec d_total = {0};
        for (int64_t t = (keys - 1) * LINE; t >= 0; t -= LINE)
            d_total += d_total_factor * (load(exps + t) * load(d_weights_v + t));
        for (int64_t t = 0; t < keys * LINE; t += LINE) {
            const vec e = load(exps + t), d_weight = load(d_weights_v + t);
            store(weights_v + t, e * reciprocals);
            store(d_logits_v + t, h->scale * (e * (reciprocals * d_weight + d_total)));
        }
#else
        const vec d_total = sum_of_products(exps, LINE, d_weights_v, LINE, keys);
        for (int64_t t = 0; t < keys * LINE; t += LINE) {
            const vec weight = load(exps + t);
            store(weights_v + t, weight);
            store(d_logits_v + t, h->scale * weight * (load(d_weights_v + t) - d_total));
        }
#endif
    }
    multiply(&(Product){.a = input + at_row(h, KEY, h->past_key - 1), .a_row = LINE, .a_step = -1,
                              .a_jump = LINE - h->width * LINE,
                              .first_run = minimum((h->past_key - 1) % LINE + 1, keys),
                              .b = d_weights + (keys - 1) * LINE, .b_step = -LINE,
                              .depth = keys,
                              .c = input_gradient + at_row(h, QUERY, h->panel * LINE), .c_row = LINE},
                   h->head_dim, 0, 1);
    for (int64_t key_panel = h->panel; key_panel >= first_panel; key_panel--)
        for (int part = KEY; part <= VALUE; part++) {
            const real *a = part == KEY ? query : d_output;
            const real *block = (part == KEY ? d_logits : weights) + (key_panel - first_panel) * LINE * LINE;
            transpose_lines(block, LINE, transposed, LINE);
            multiply(&(Product){.a = a + h->rows - 1, .a_row = LINE, .a_step = -1, .first_run = h->rows,
                                      .b = transposed + (h->rows - 1) * LINE, .b_step = -LINE,
                                      .depth = h->rows, .accumulate = h->next_first_key < (key_panel + 1) * LINE,
                                      .c = input_gradient + at_row(h, part, key_panel * LINE), .c_row = LINE},
                           h->head_dim, 0, 1);
        }
}

/* Triangles over the longest document of a batch, twice, and a transposed block. */
INLINE int64_t attention_scratch_size(const Workspace *w, int64_t rows) {
    const int64_t squares = (2 * (lines(minimum(w->block_size, rows)) + 2) + 1) * LINE * LINE;
    const int64_t diagonals = attention_short_scratch_size(w);
    return squares > diagonals ? squares : diagonals;
}

/* One more row for each of the documents that a panel continues: lanes are documents, and the earlier keys and values
 * are in the panel's cache, for each layer keys [block_size][n_embd][LINE], then values. */
static void attention_forward_cached(const Operation *op, const Workspace *w, int64_t panel, real *weights) {
    const int64_t n_embd = w->n_embd, head_dim = n_embd / w->n_head, row = n_embd * LINE;
    const int32_t *positions = w->positions + panel * LINE;
    real *keys = (real *)w->caches[panel] + op->cache, *values = keys + w->block_size * row;
    real_bits last[LINE];
    int64_t n = 0;
    for (int r = 0; r < LINE; r++) last[r] = positions[r], n = positions[r] >= n ? positions[r] + 1 : n;
    for (int64_t head = 0; head < w->n_head; head++) {
        const real *query = (real *)w->arena + op->input + (panel * op->n_in + head * 3 * head_dim) * LINE;
        const real *new_key = query + head_dim * LINE, *new_value = new_key + head_dim * LINE;
        real *key = keys + head * head_dim * LINE, *value = values + head * head_dim * LINE;
        for (int64_t j = 0; j < head_dim * LINE; j += LINE)
            for (int r = 0; r < LINE; r++) {
                key[positions[r] * row + j + r] = new_key[j + r];
                value[positions[r] * row + j + r] = new_value[j + r];
            }
        real *output = (real *)w->arena + op->output + (panel * n_embd + head * head_dim) * LINE;
        for (int v = 0; v < LINE; v += LANES) {
            for (int64_t t = 0; t < n; t++)
                store(weights + t * LINE, sum_of_products(key + t * row + v, LINE, query + v, LINE, head_dim));
            const vec total = attention_exponentials(weights, n, (bits){0}, load_bits(last + v), (real)op->scale);
            const vec reciprocals = reciprocal(total);
            for (int64_t t = 0; t < n; t++) store(weights + t * LINE, load(weights + t * LINE) * reciprocals);
            for (int64_t j = 0; j < head_dim * LINE; j += LINE)
                store(output + j + v, sum_of_products(value + j + v, row, weights, LINE, n));
        }
    }
}

static void attention_forward(const Operation *op, const Workspace *w, Share share) {
    for (int64_t panel = share.first; panel < share.past; panel++) {
        if (w->caches) {
            attention_forward_cached(op, w, panel, share.scratch);
            continue;
        }
        if (attention_is_short(w)) {
            attention_short_forward(op, w, panel, share.scratch);
            continue;
        }
        Reach reach;
        reach_of(w, panel, &reach);
        for (int64_t head = 0; head < w->n_head; head++) {
            const Head h = head_of(op, w, panel, head);
            attention_forward_head(&h, &reach, (real *)w->arena + op->input, (real *)w->arena + op->output,
                                   share.scratch);
        }
    }
}

static void attention_backward(const Operation *op, const Workspace *w, Share share) {
    for (int64_t unit = share.first, next; unit < share.past; unit = next) {
        const int64_t group = unit / w->n_head, first = w->group_start[group], past = w->group_start[group + 1];
        next = minimum((group + 1) * w->n_head, share.past);
        const int64_t first_head = unit - group * w->n_head, past_head = next - group * w->n_head;
        if (attention_is_short(w)) {
            attention_short_backward(op, w, first, past, first_head, past_head, share.scratch);
            continue;
        }
        for (int64_t head = first_head; head < past_head; head++)
            for (int64_t panel = past - 1; panel >= first; panel--) {
                const Head h = head_of(op, w, panel, head);
                attention_backward_head(&h, (real *)w->arena + op->input, (real *)w->arena + op->output_gradient,
                                        (real *)w->arena + op->input_gradient, share.scratch);
            }
    }
}
