/* Causal multi-head attention.
 *
 * The features of a row of the input are, head after head, its query, key and value of head_dim each. A row p attends
 * to the rows t of its document up to itself. Forward, for each head, sums from first to last:
 *
 *     logits[t][p]    = sum over j of key[t][j] * query[p][j]
 *     exps[t][p]      = exp(scale * logits[t][p] - max over t of scale * logits[t][p]), scale = 1 / sqrt(head_dim)
 *     total[p]        = sum over t of exps[t][p]
 *     weights[t][p]   = exps[t][p] * (1 / total[p])
 *     output[p][j]    = sum over t of weights[t][p] * value[t][j]
 *
 * Backward, sums from last to first, which is the order of the reference:
 *
 *     d_weights[t][p] = sum over j of value[t][j] * d_output[p][j]
 *     d_total[p]      = -(sum over t of exps[t][p] * d_weights[t][p]) / total[p]**2
 *     d_logits[t][p]  = scale * exps[t][p] * (d_weights[t][p] / total[p] + d_total[p])
 *     d_query[p][j]   = sum over t of d_logits[t][p] * key[t][j]
 *     d_key[t][j]     = sum over p of d_logits[t][p] * query[p][j]
 *     d_value[t][j]   = sum over p of weights[t][p] * d_output[p][j]
 *
 * QUERY_PANELS panels of rows p, a query block, are computed together. They may hold several documents, or a part of
 * one. Arrays over (t, p) cover the panels of all rows t that any row of the query block attends to, [panels][t][LINE].
 * They are 0 where p does not attend to t: adding 0 times a finite number to a sum that started at +0.0 changes no bit
 * of it, see interface.h. Backward goes through query blocks from last to first, and adds to the d_key and d_value that
 * later query blocks have left. Nothing larger than these triangles is ever kept.
 *
 * saved, for each query block, head and panel: exps [keys][LINE], total [LINE], 1 / total [LINE]. In float32 the exps
 * are already divided by their total.
 *
 * attention_short.h computes the same for documents of at most LINE rows, attention_rows.h for rows of which some
 * number is not finite, and attention_forward_cached, below, for rows whose keys and values are in caches.
 */
#pragma once

#include "attention_short.h"
#include "product.h"

/* One head of a query block. */
typedef struct {
    int64_t head_dim, width, output_width;  /* features of a head, of a row of input, of output */
    int64_t panel, panels, rows;            /* of the rows p: first panel, how many, how many rows that exist */
    int64_t first_key_panel, key_panels;    /* of the rows t that they attend to */
    int64_t next_first_key_panel;           /* of the query block that follows, which backward does first */
    int64_t features, output_features;      /* in front of those of this head */
    real scale;
    real *exps;
} Head;

INLINE int64_t first_key_panel_of(const Workspace *w, int64_t panel) { return w->first_rows[panel * LINE] / LINE; }
INLINE int64_t keys_of(const Head *h) { return h->key_panels * LINE; }
INLINE int64_t saved_line(const Head *h) { return (keys_of(h) + 2) * LINE; }

/* Elements of `saved` that one panel needs. */
static int64_t attention_size(const Workspace *w, int64_t panel) {
    if (attention_is_short(w)) return attention_short_size(w, panel);
    const int64_t query_block = panel / QUERY_PANELS * QUERY_PANELS;
    const int64_t end = minimum(query_block + QUERY_PANELS, lines_for(w->rows));
    return w->n_head * ((end - first_key_panel_of(w, query_block)) * LINE + 2) * LINE;
}

INLINE Head head_of(const Operation *op, const Workspace *w, int64_t query_block, int64_t head) {
    const int64_t head_dim = w->n_embd / w->n_head, panel = query_block * QUERY_PANELS;
    const int64_t first_key_panel = first_key_panel_of(w, panel);
    const int64_t end = minimum(panel + QUERY_PANELS, lines_for(w->rows));
    Head h = {
        .head_dim = head_dim, .width = op->n_in, .output_width = op->n_out,
        .panel = panel, .panels = end - panel, .rows = minimum(end * LINE, w->rows) - panel * LINE,
        .first_key_panel = first_key_panel, .key_panels = end - first_key_panel,
        .next_first_key_panel = end < lines_for(w->rows) ? first_key_panel_of(w, end) : end,
        .features = head * 3 * head_dim, .output_features = head * head_dim,
        .scale = op->scale,
    };
    h.exps = array(w, op->saved) + w->attention_start[panel] + head * h.panels * saved_line(&h);
    return h;
}

enum { QUERY, KEY, VALUE };

/* Feature 0 of the query, key or value of a panel, in an array like the input. */
INLINE int64_t at_panel(const Head *h, int part, int64_t panel) {
    return (panel * h->width + h->features + part * h->head_dim) * LINE;
}

/* Feature 0 of the query block, in an array like the output. */
INLINE int64_t at_output(const Head *h) { return (h->panel * h->output_width + h->output_features) * LINE; }

/* c[t][p] = sum over j of part[t][j] * columns[j][p], for all keys t: logits from keys and queries, d_weights from
 * values and d_output. */
INLINE void multiply_by_features(const Head *h, const real *input, int part, const real *columns,
                                 ptrdiff_t column_stride, int direction, real *c, ptrdiff_t c_line_stride) {
    for (int64_t panel = 0; panel < h->key_panels; panel++)
        multiply(&(Product){.a = over_features(input + at_panel(h, part, h->first_key_panel + panel), direction,
                                               h->head_dim),
                            .b = in_lines(columns, direction, h->head_dim, column_stride),
                            .depth = h->head_dim,
                            .c = c + panel * LINE * LINE, .c_row_stride = LINE, .c_line_stride = c_line_stride},
                 LINE, 0, h->panels);
}

/* c[j][p] = sum over t of part[t][j] * columns[t][p], for all keys t: output from values and weights, d_query from keys
 * and d_logits. */
INLINE void multiply_by_keys(const Head *h, const real *input, int part, const real *columns, ptrdiff_t column_stride,
                             int direction, real *c, ptrdiff_t c_line_stride) {
    multiply(&(Product){.a = over_positions(input + at_panel(h, part, h->first_key_panel), direction, keys_of(h),
                                            h->width),
                        .b = in_lines(columns, direction, keys_of(h), column_stride),
                        .depth = keys_of(h),
                        .c = c, .c_row_stride = LINE, .c_line_stride = c_line_stride},
             h->head_dim, 0, h->panels);
}

/* d_part[t][j] (+)= sum over p, last to first, of d[t][p] * rows[p][j], for all keys t: d_key from d_logits and
 * queries, d_value from weights and d_output. Lanes are keys t here, so d [panels][keys][LINE] is transposed first. */
INLINE void multiply_by_queries(const Head *h, const real *d, const real *rows, int64_t width, real *transposed,
                                int part, real *d_input) {
    const int64_t square = LINE * LINE;
    for (int64_t key_panel = 0; key_panel < h->key_panels; key_panel++)
        for (int64_t p = 0; p < h->panels; p++)
            transpose_lines(d + (p * h->key_panels + key_panel) * square, LINE,
                            transposed + (key_panel * h->panels + p) * square, LINE, LINE);
    /* Key panels from next_first_key_panel on already hold sums of later query blocks; those before it do not. */
    const int64_t fresh_panels = h->next_first_key_panel - h->first_key_panel;
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        const int64_t begin = accumulate ? fresh_panels : 0, end = accumulate ? h->key_panels : fresh_panels;
        if (begin >= end) continue;
        multiply(&(Product){.a = over_positions(rows, BACKWARDS, h->rows, width),
                            .b = in_lines(transposed, BACKWARDS, h->rows, h->panels * square),
                            .depth = h->rows, .accumulate = accumulate,
                            .c = d_input + at_panel(h, part, h->first_key_panel),
                            .c_row_stride = LINE, .c_line_stride = h->width * LINE},
                 h->head_dim, begin, end);
    }
}

/* Turns logits [n][LINE] of one vector of rows into exps, in place. Of these n keys, a row attends to those
 * from its `first` to its `last`. Returns the total, or 1 where a row attends to none. */
INLINE vec attention_exponentials(real *logits, int64_t n, bits first, bits last, real scale) {
    vec largest = broadcast(-INFINITY), total = choose(first > last, broadcast(1), (vec){0});
    for (int64_t t = 0; t < n; t++) {
        const bits attends = (first <= (real_bits)t) & (last >= (real_bits)t);
        const vec logit = load(logits + t * LINE) * scale;
        largest = larger_of(choose(attends, logit, largest), largest);
        store(logits + t * LINE, logit); /* rounded, as in attention_short.h */
    }
    for (int64_t t = 0; t < n; t++) {
        const bits attends = (first <= (real_bits)t) & (last >= (real_bits)t);
        const vec exps = exponential_where(attends, load(logits + t * LINE) - largest);
        store(logits + t * LINE, exps);
        total += exps;
    }
    return total;
}

static void attention_forward_head(const Head *h, const Workspace *w, const real *input, real *output, real *scratch) {
    const int64_t keys = keys_of(h), first_key = h->first_key_panel * LINE;
    real *weights = MICROGPT_EXACT ? scratch : h->exps; /* panels are saved_line apart, as those of exps */

    /* logits[t][p] = sum over j of key[t][j] * query[p][j] */
    multiply_by_features(h, input, KEY, input + at_panel(h, QUERY, h->panel), h->width * LINE, FORWARDS,
                         h->exps, saved_line(h));

    /* exps, total and weights, one vector of rows p after the other */
    for (int64_t p = 0; p < h->panels * LINE; p += LANES) {
        const int64_t row = h->panel * LINE + p, at = p / LINE * saved_line(h) + p % LINE;
        const int64_t end = keys - (h->panels - 1 - p / LINE) * LINE; /* no row attends beyond its own panel */
        bits first, last;
        for (int r = 0; r < LANES; r++) {
            first[r] = (real_bits)(w->first_rows[row + r] - first_key);
            last[r] = row + r < w->rows ? (real_bits)(row + r - first_key) : -1;
        }
        const vec total = attention_exponentials(h->exps + at, end, first, last, h->scale);
        const vec reciprocals = reciprocal(total);
        for (int64_t t = 0; t < end * LINE; t += LINE)
            store(weights + at + t, load(h->exps + at + t) * reciprocals);
        for (int64_t t = end * LINE; t < keys * LINE; t += LINE) {
            store(h->exps + at + t, (vec){0});
            store(weights + at + t, (vec){0});
        }
        store(h->exps + at + keys * LINE, total);
        store(h->exps + at + (keys + 1) * LINE, reciprocals);
    }

    /* output[p][j] = sum over t of value[t][j] * weights[t][p] */
    multiply_by_keys(h, input, VALUE, weights, saved_line(h), FORWARDS, output + at_output(h), h->output_width * LINE);
}

static void attention_backward_head(const Head *h, const real *input, const real *d_output, real *d_input,
                                    real *scratch) {
    const int64_t keys = keys_of(h), triangle = h->panels * keys * LINE;
    const real *query = input + at_panel(h, QUERY, h->panel), *head_d_output = d_output + at_output(h);
    real *d_logits = scratch, *weights = d_logits + triangle, *transposed = weights + triangle;

    /* In the forward pass this was: output[p][j] = sum over t of value[t][j] * weights[t][p].
     * So now, from the other factor: d_weights[t][p] = sum over j of value[t][j] * d_output[p][j],
     * stored where d_logits will replace them. */
    multiply_by_features(h, input, VALUE, head_d_output, h->output_width * LINE, BACKWARDS, d_logits, keys * LINE);

    /* It was: weights = softmax(logits). So now: d_logits from exps and d_weights; the weights come back on the way. */
    for (int64_t p = 0; p < h->panels * LINE; p += LANES) {
        const real *exps = h->exps + p / LINE * saved_line(h) + p % LINE;
        const int64_t last = (keys - 1) * LINE, at = p / LINE * keys * LINE + p % LINE + last;
        softmax_backward(exps + last, -LINE, load(exps + keys * LINE), load(exps + (keys + 1) * LINE), h->scale,
                         d_logits + at, weights + at, -LINE, keys);
    }

    /* It was: logits[t][p] = sum over j of key[t][j] * query[p][j]. So now, from both factors:
     *     d_query[p][j]  = sum over t of key[t][j] * d_logits[t][p]
     *     d_key[t][j]   += sum over p of query[p][j] * d_logits[t][p] */
    multiply_by_keys(h, input, KEY, d_logits, keys * LINE, BACKWARDS,
                     d_input + at_panel(h, QUERY, h->panel), h->width * LINE);
    multiply_by_queries(h, d_logits, query, h->width, transposed, KEY, d_input);

    /* And from the first formula again: d_value[t][j] += sum over p of weights[t][p] * d_output[p][j] */
    multiply_by_queries(h, weights, head_d_output, h->output_width, transposed, VALUE, d_input);
}

/* For d_logits, weights and one of them transposed, of a query block whose documents are no longer than a context. */
INLINE int64_t attention_scratch_size(const Workspace *w, int64_t rows) {
    const int64_t key_panels = lines_for(minimum(w->block_size, rows)) + QUERY_PANELS;
    const int64_t triangles = 3 * QUERY_PANELS * (key_panels * LINE + 2) * LINE;
    const int64_t diagonals = attention_short_scratch_size(w);
    return triangles > diagonals ? triangles : diagonals;
}

/* Sets values [n][head_dim][LINE] beyond the `last` of each document, which earlier documents have left there, to 0. */
static __attribute__((noinline)) void forget_beyond(real *value, ptrdiff_t row_stride, int64_t head_dim, int64_t n,
                                                    bits last) {
    for (int64_t t = 0; t < n; t++)
        for (int64_t j = 0; j < head_dim * LINE; j += LINE) {
            real *at = value + t * row_stride + j;
            store(at, (vec)((bits)load(at) & (last >= (real_bits)t)));
        }
}

/* Elements of a layer in the cache of a panel: keys [block_size][n_embd][LINE], then values. */
static int64_t cache_size(const Workspace *w) { return 2 * w->block_size * w->n_embd * LINE; }

/* One more row for each of the documents of a panel: lanes are documents, and the keys and values of their earlier rows
 * are in the panel's cache. */
static void attention_forward_cached(const Operation *op, const Workspace *w, int64_t panel, real *weights) {
    const int64_t n_embd = w->n_embd, head_dim = n_embd / w->n_head, row_stride = n_embd * LINE;
    const int32_t *positions = w->positions + panel * LINE;
    real *keys = (real *)w->caches[panel] + op->cache * cache_size(w), *values = keys + w->block_size * row_stride;
    real_bits last[LINE];
    int64_t n = 0; /* rows of the longest document */
    for (int r = 0; r < LINE; r++) last[r] = positions[r], n = positions[r] >= n ? positions[r] + 1 : n;
    for (int64_t head = 0; head < w->n_head; head++) {
        const real *query = activation(w, op->input, op->n_in, panel * LINE) + head * 3 * head_dim * LINE;
        const real *new_key = query + head_dim * LINE, *new_value = new_key + head_dim * LINE;
        real *key = keys + head * head_dim * LINE, *value = values + head * head_dim * LINE;
        for (int64_t j = 0; j < head_dim * LINE; j += LINE)
            for (int r = 0; r < LINE; r++) {
                key[positions[r] * row_stride + j + r] = new_key[j + r];
                value[positions[r] * row_stride + j + r] = new_value[j + r];
            }
        real *output = activation(w, op->output, n_embd, panel * LINE) + head * head_dim * LINE;
        for (int v = 0; v < LINE; v += LANES) {
            for (int64_t t = 0; t < n; t++)
                store(weights + t * LINE, sum_of_products(key + t * row_stride + v, LINE, query + v, LINE, head_dim));
            const vec total = attention_exponentials(weights, n, (bits){0}, load_bits(last + v), (real)op->scale);
            const vec reciprocals = reciprocal(total);
            for (int64_t t = 0; t < n; t++) store(weights + t * LINE, load(weights + t * LINE) * reciprocals);
            for (int64_t j = 0; j < head_dim * LINE; j += LINE)
                store(output + j + v, sum_of_products(value + j + v, row_stride, weights, LINE, n));
            if (__builtin_expect(any_not_finite(output + v, LINE, head_dim), 0)) {
                forget_beyond(value + v, row_stride, head_dim, n, load_bits(last + v));
                for (int64_t j = 0; j < head_dim * LINE; j += LINE)
                    store(output + j + v, sum_of_products(value + j + v, row_stride, weights, LINE, n));
            }
        }
    }
}

/* The numbers saved by forward for row p. */
INLINE SavedRow attention_saved(const Operation *op, const Workspace *w, int64_t head, int64_t p) {
    if (attention_is_short(w)) return attention_short_saved(op, w, head, p);
    const Head h = head_of(op, w, p / LINE / QUERY_PANELS, head);
    const real *exps = h.exps + (p / LINE - h.panel) * saved_line(&h) + p % LINE, *totals = exps + keys_of(&h) * LINE;
    return (SavedRow){exps + (w->first_rows[p] - h.first_key_panel * LINE) * LINE, LINE, totals[0], totals[LINE]};
}

/* Again, by rows (attention_rows.h), from what the kernels above have saved: the output of some panels. */
static void attention_forward_by_rows(const Operation *op, const Workspace *w, int64_t begin, int64_t end) {
    for (int64_t p = begin * LINE; p < minimum(end * LINE, w->rows); p++)
        for (int64_t head = 0; head < w->n_head; head++)
            attention_row_forward(op, w, head, p, attention_saved(op, w, head, p));
}

/* Likewise the gradients of one head in the panels of a span. */
static void attention_backward_by_rows(const Operation *op, const Workspace *w, int64_t begin, int64_t end,
                                       int64_t head, real *scratch) {
    const int64_t features = 3 * (w->n_embd / w->n_head);
    for (int64_t panel = begin; panel < end; panel++)
        clear(activation(w, op->d_input, op->n_in, panel * LINE) + head * features * LINE, features * LINE);
    for (int64_t p = minimum(end * LINE, w->rows) - 1; p >= begin * LINE; p--)
        attention_row_backward(op, w, head, p, attention_saved(op, w, head, p), scratch);
}

/* A task is a query block. */
static void attention_forward(const Operation *op, const Workspace *w, const Range *range) {
    for (int64_t query_block = range->begin; query_block < range->end; query_block++) {
        const int64_t begin = query_block * QUERY_PANELS, end = minimum(begin + QUERY_PANELS, lines_for(w->rows));
        if (w->caches || attention_is_short(w)) {
            for (int64_t panel = begin; panel < end; panel++)
                (w->caches ? attention_forward_cached : attention_short_forward)(op, w, panel, range->scratch);
        } else {
            for (int64_t head = 0; head < w->n_head; head++) {
                const Head h = head_of(op, w, query_block, head);
                attention_forward_head(&h, w, array(w, op->input), array(w, op->output), range->scratch);
            }
        }
        if (w->by_rows) attention_forward_by_rows(op, w, begin, end);
    }
}

/* A task is one head in one span of query blocks: d_key and d_value of a row come from all query blocks of its span. */
static void attention_backward(const Operation *op, const Workspace *w, const Range *range) {
    for (int64_t task = range->begin, next; task < range->end; task = next) {
        const int64_t span = task / w->n_head, begin = w->span_start[span], end = w->span_start[span + 1];
        next = minimum((span + 1) * w->n_head, range->end);
        const int64_t head_begin = task - span * w->n_head, head_end = next - span * w->n_head;
        if (attention_is_short(w) && !w->by_rows) {
            attention_short_backward(op, w, begin, end, head_begin, head_end, range->scratch);
            continue;
        }
        for (int64_t head = head_begin; head < head_end; head++) {
            if (w->by_rows) {
                attention_backward_by_rows(op, w, begin, end, head, range->scratch);
                continue;
            }
            for (int64_t query_block = (end - 1) / QUERY_PANELS; query_block >= begin / QUERY_PANELS; query_block--) {
                const Head h = head_of(op, w, query_block, head);
                attention_backward_head(&h, array(w, op->input), array(w, op->d_output), array(w, op->d_input),
                                        range->scratch);
            }
        }
    }
}
