/* Causal multi-head attention.
 *
 * The features of a row of the input are, head after head, its query, key and value of head_dim each. A row p attends to
 * the rows t of its document up to itself:
 *
 *     logits[t][p]  = sum over j of key[t][j] * query[p][j] / sqrt(head_dim)
 *     weights[t][p] = softmax over t
 *     output[p][j]  = sum over t of weights[t][p] * value[t][j]
 *
 * QUERY_PANELS panels of rows p, a query block, are computed together. They may hold several documents, or a part of one.
 * Everything over (t, p) covers the panels of all rows t that any row of the query block attends to, [panels][keys][LINE], and
 * is 0 where p does not attend to t: adding 0 times a finite number to a sum that started at +0.0 changes no bit of it,
 * see interface.h. No more is ever kept than these triangles.
 *
 * saved, for each query block, head and panel: exps [keys][LINE], total [LINE], 1 / total [LINE]. In float32 the exps are
 * already divided by their total.
 */
#pragma once

#include "attention_short.h"
#include "product.h"

/* One head of a query block: its rows p, and the panels of the rows t that they attend to. */
typedef struct {
    int64_t head_dim, width, output_width;  /* features of a head, of a row of input, of output */
    int64_t panel, panels, rows;            /* of the rows p; rows are those that exist */
    int64_t first_key_panel, key_panels;
    int64_t next_first_key_panel;           /* of the query block that follows, which backward comes to first */
    int64_t features, output_features;      /* before those of this head */
    real scale;
    real *exps;
} Head;

INLINE int64_t first_key_panel_of(const Workspace *w, int64_t panel) { return w->first_rows[panel * LINE] / LINE; }
INLINE int64_t keys_of(const Head *h) { return h->key_panels * LINE; }
INLINE int64_t saved_line(const Head *h) { return (keys_of(h) + 2) * LINE; }

static int64_t attention_size(const Workspace *w, int64_t panel) {
    if (attention_is_short(w)) return attention_short_size(w);
    const int64_t query_block = panel / QUERY_PANELS * QUERY_PANELS, end = minimum(query_block + QUERY_PANELS, lines_for(w->rows));
    return w->n_head * ((end - first_key_panel_of(w, query_block)) * LINE + 2) * LINE;
}

INLINE Head head_of(const Operation *op, const Workspace *w, int64_t query_block, int64_t head) {
    const int64_t head_dim = w->n_embd / w->n_head, panel = query_block * QUERY_PANELS;
    const int64_t end = minimum(panel + QUERY_PANELS, lines_for(w->rows)), first_key_panel = first_key_panel_of(w, panel);
    Head h = {
        .head_dim = head_dim, .width = op->n_in, .output_width = op->n_out,
        .panel = panel, .panels = end - panel, .rows = minimum(end * LINE, w->rows) - panel * LINE,
        .first_key_panel = first_key_panel, .key_panels = end - first_key_panel,
        .next_first_key_panel = end < lines_for(w->rows) ? first_key_panel_of(w, end) : end,
        .features = head * 3 * head_dim, .output_features = head * head_dim,
        .scale = op->scale,
    };
    h.exps = (real *)w->arena + op->saved + w->attention_start[panel] + head * h.panels * saved_line(&h);
    return h;
}

enum { QUERY, KEY, VALUE };

/* Where feature 0 of the query, key or value of a panel's rows stands in an array like the input, or like the output. */
INLINE int64_t at_panel(const Head *h, int part, int64_t panel) {
    return (panel * h->width + h->features + part * h->head_dim) * LINE;
}
INLINE int64_t at_output(const Head *h) { return (h->panel * h->output_width + h->output_features) * LINE; }

/* c[t][p] = sum over j, with the sign of `step` as its direction, of rows[t][j] * columns[j][p], for all keys t */
INLINE void multiply_keys(const Head *h, const real *rows, int part, const real *columns, ptrdiff_t column_line,
                          int step, real *c, ptrdiff_t c_line) {
    const int64_t start = step > 0 ? 0 : (h->head_dim - 1) * LINE;
    for (int64_t panel = 0; panel < h->key_panels; panel++)
        multiply(&(Product){.a = rows + at_panel(h, part, h->first_key_panel + panel) + start,
                            .a_row = 1, .a_step = step * LINE, .first_run = h->head_dim,
                            .b = columns + start, .b_step = step * LINE, .b_line = column_line,
                            .depth = h->head_dim,
                            .c = c + panel * LINE * LINE, .c_row = LINE, .c_line = c_line},
                 LINE, 0, h->panels);
}

/* Logits [n][LINE] to exponentials, in place, for one vector of rows. A row attends to the keys from its `first` to its
 * `last` of these n. Returns their total, and 1 where there are no keys. */
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
    real *weights = MICROGPT_EXACT ? scratch : h->exps; /* saved_line apart */
    multiply_keys(h, input, KEY, input + at_panel(h, QUERY, h->panel), h->width * LINE, 1, h->exps, saved_line(h));
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
    multiply(&(Product){.a = input + at_panel(h, VALUE, h->first_key_panel),
                        .a_row = LINE, .a_step = 1, .a_jump = (h->width - 1) * LINE, .first_run = LINE,
                        .b = weights, .b_step = LINE, .b_line = saved_line(h),
                        .depth = keys,
                        .c = output + at_output(h), .c_row = LINE, .c_line = h->output_width * LINE},
             h->head_dim, 0, h->panels);
}

/* d_rows[t][j] = sum over p, last to first, of d[t][p] * columns[p][j], for all keys t: here lanes are rows t, so
 * that d, [panels][keys][LINE], is transposed. What later query blocks have left there is added to. */
INLINE void multiply_rows(const Head *h, const real *d, const real *columns, int64_t width, real *transposed,
                          int part, real *d_rows) {
    const int64_t depth = h->rows, last = (depth - 1) % LINE, block = LINE * LINE;
    for (int64_t key_panel = 0; key_panel < h->key_panels; key_panel++)
        for (int64_t p = 0; p < h->panels; p++)
            transpose_lines(d + (p * h->key_panels + key_panel) * block, LINE,
                            transposed + (key_panel * h->panels + p) * block, LINE);
    const int64_t added_to = h->next_first_key_panel - h->first_key_panel;
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        const int64_t begin = accumulate ? added_to : 0, end = accumulate ? h->key_panels : added_to;
        if (begin >= end) continue;
        multiply(&(Product){.a = columns + (h->panels - 1) * width * LINE + last,
                            .a_row = LINE, .a_step = -1, .a_jump = LINE - width * LINE, .first_run = last + 1,
                            .b = transposed + (depth - 1) * LINE, .b_step = -LINE, .b_line = h->panels * block,
                            .depth = depth, .accumulate = accumulate,
                            .c = d_rows + at_panel(h, part, h->first_key_panel),
                            .c_row = LINE, .c_line = h->width * LINE},
                 h->head_dim, begin, end);
    }
}

/* d weights[t][p] = sum over j, last to first, of value[t][j] * d_output[p][j]
 * from these d logits, and from those the gradients of query (t last to first), key and value (p last to first). */
static void attention_backward_head(const Head *h, const real *input, const real *d_output,
                                    real *d_input, real *scratch) {
    const int64_t keys = keys_of(h), last_key_panel = h->first_key_panel + h->key_panels - 1;
    const real *query = input + at_panel(h, QUERY, h->panel), *head_d_output = d_output + at_output(h);
    real *d_logits = scratch, *weights = d_logits + h->panels * keys * LINE;
    real *transposed = weights + h->panels * keys * LINE;

    multiply_keys(h, input, VALUE, head_d_output, h->output_width * LINE, -1, d_logits, keys * LINE); /* d weights, for now */
    for (int64_t p = 0; p < h->panels * LINE; p += LANES) {
        const real *exps = h->exps + p / LINE * saved_line(h) + p % LINE;
        const int64_t last = (keys - 1) * LINE, at = p / LINE * keys * LINE + p % LINE + last;
        softmax_backward(exps + last, -LINE, load(exps + keys * LINE), load(exps + (keys + 1) * LINE), h->scale,
                         d_logits + at, weights + at, -LINE, keys);
    }
    multiply(&(Product){.a = input + at_panel(h, KEY, last_key_panel) + LINE - 1,
                        .a_row = LINE, .a_step = -1, .a_jump = LINE - h->width * LINE, .first_run = LINE,
                        .b = d_logits + (keys - 1) * LINE, .b_step = -LINE, .b_line = keys * LINE,
                        .depth = keys,
                        .c = d_input + at_panel(h, QUERY, h->panel), .c_row = LINE, .c_line = h->width * LINE},
             h->head_dim, 0, h->panels);
    multiply_rows(h, d_logits, query, h->width, transposed, KEY, d_input);
    multiply_rows(h, weights, head_d_output, h->output_width, transposed, VALUE, d_input);
}

/* Three times everything over (t, p) of a query block, whose documents are no longer than a context. */
INLINE int64_t attention_scratch_size(const Workspace *w, int64_t rows) {
    const int64_t key_panels = lines_for(minimum(w->block_size, rows)) + QUERY_PANELS;
    const int64_t query_blocks = 3 * QUERY_PANELS * (key_panels * LINE + 2) * LINE, diagonals = attention_short_scratch_size(w);
    return query_blocks > diagonals ? query_blocks : diagonals;
}

/* Let the values [n][head_dim][LINE] be 0 beyond the `last` of each document: those of documents that had its place before. */
static __attribute__((noinline)) void forget_beyond(real *value, ptrdiff_t row, int64_t head_dim, int64_t n, bits last) {
    for (int64_t t = 0; t < n; t++)
        for (int64_t j = 0; j < head_dim * LINE; j += LINE)
            store(value + t * row + j, (vec)((bits)load(value + t * row + j) & (last >= (real_bits)t)));
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
            if (__builtin_expect(any_not_finite(output + v, LINE, head_dim), 0)) {
                forget_beyond(value + v, row, head_dim, n, load_bits(last + v));
                for (int64_t j = 0; j < head_dim * LINE; j += LINE)
                    store(output + j + v, sum_of_products(value + j + v, row, weights, LINE, n));
            }
        }
    }
}

INLINE SavedRow attention_saved(const Operation *op, const Workspace *w, int64_t head, int64_t p) {
    if (attention_is_short(w)) return attention_short_saved(op, w, head, p);
    const Head h = head_of(op, w, p / LINE / QUERY_PANELS, head);
    const real *exps = h.exps + (p / LINE - h.panel) * saved_line(&h) + p % LINE, *behind = exps + keys_of(&h) * LINE;
    return (SavedRow){exps + (w->first_rows[p] - h.first_key_panel * LINE) * LINE, LINE, behind[0], behind[LINE]};
}

/* See attention_rows.h. From what the other kernels have saved: the output of all rows of some panels, and the gradients
 * of a head in a span of them. */
static void attention_forward_by_rows(const Operation *op, const Workspace *w, int64_t begin, int64_t end) {
    for (int64_t p = begin * LINE; p < minimum(end * LINE, w->rows); p++)
        for (int64_t head = 0; head < w->n_head; head++)
            attention_row_forward(op, w, head, p, attention_saved(op, w, head, p));
}

static void attention_backward_by_rows(const Operation *op, const Workspace *w, int64_t begin, int64_t end, int64_t head,
                                       real *scratch) {
    const int64_t features = 3 * (w->n_embd / w->n_head);
    for (int64_t panel = begin; panel < end; panel++)
        clear((real *)w->arena + op->d_input + (panel * op->n_in + head * features) * LINE, features * LINE);
    for (int64_t p = minimum(end * LINE, w->rows) - 1; p >= begin * LINE; p--)
        attention_row_backward(op, w, head, p, attention_saved(op, w, head, p), scratch);
}

static void attention_forward(const Operation *op, const Workspace *w, const Range *range) {
    for (int64_t query_block = range->begin; query_block < range->end; query_block++) {
        const int64_t begin = query_block * QUERY_PANELS, end = minimum(begin + QUERY_PANELS, lines_for(w->rows));
        if (w->caches || attention_is_short(w)) {
            for (int64_t panel = begin; panel < end; panel++)
                (w->caches ? attention_forward_cached : attention_short_forward)(op, w, panel, range->scratch);
        } else {
            for (int64_t head = 0; head < w->n_head; head++) {
                const Head h = head_of(op, w, query_block, head);
                attention_forward_head(&h, w, (real *)w->arena + op->input, (real *)w->arena + op->output, range->scratch);
            }
        }
        if (w->by_rows) attention_forward_by_rows(op, w, begin, end);
    }
}

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
                attention_backward_head(&h, (real *)w->arena + op->input, (real *)w->arena + op->d_output,
                                        (real *)w->arena + op->d_input, range->scratch);
            }
        }
    }
}
