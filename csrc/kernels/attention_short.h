/* Causal attention where no document is longer than LINE: the formulas of attention.h, diagonal by diagonal.
 *
 * A panel of rows p then holds several documents, and most pairs (t, p) of its rows are of different ones. So arrays
 * over (t, p) are laid out by offset o = p - t, [diagonals][LINE]: lane p of diagonal o stands for the pair (p - o, p),
 * or for nothing where the document of p has no row t = p - o.
 *
 * A row t lies in the panel of p or in the one before. Features of two neighbouring panels stand side by side in a
 * window, so that one load gives the keys (or values) of a whole diagonal, o lanes before p. Nothing is broadcast and
 * nothing transposed. With LINE = 8, for the rows p = 8 ... F of a panel:
 *
 *                      the panel before        |           this panel
 *     window    k0  k1  k2  k3  k4  k5  k6  k7 | k8  k9  kA  kB  kC  kD  kE  kF
 *     o = 0                                    |[k8  k9  kA  kB  kC  kD  kE  kF] t = p
 *     o = 1                                [k7   k8  k9  kA  kB  kC  kD  kE]     t = p - 1
 *     o = 2                            [k6  k7   k8  k9  kA  kB  kC  kD]         t = p - 2
 *
 * Gradients of keys and values sum over p, so backward turns this round: for the rows t of a panel, the queries q that
 * attend to them lie o lanes after t, in this panel or in the next, and so do their d_logits and weights:
 *
 *                         this panel           |         the next panel
 *     window    q8  q9  qA  qB  qC  qD  qE  qF | qG  qH  qI  qJ  qK  qL  qM  qN
 *     o = 0    [q8  q9  qA  qB  qC  qD  qE  qF]|                                 p = t
 *     o = 1        [q9  qA  qB  qC  qD  qE  qF   qG]                             p = t + 1
 *     o = 2            [qA  qB  qC  qD  qE  qF   qG  qH]                         p = t + 2
 *
 * saved, for each panel and head: exps [diagonals][LINE], total [LINE], 1 / total [LINE]. In float32 the exps are
 * already divided by their total.
 */
#pragma once

#include "attention_rows.h"

enum {
    WINDOW = 2 * LINE,
    TOGETHER = 4, /* sums computed at once; the number of diagonals is a multiple of it */
};

INLINE int attention_is_short(const Workspace *w) { return w->longest <= LINE; }
INLINE int64_t diagonals_of(const Workspace *w) { return (w->longest + TOGETHER - 1) / TOGETHER * TOGETHER; }
INLINE int64_t attention_short_size(const Workspace *w) { return w->n_head * (diagonals_of(w) + 2) * LINE; }

/* sums[i * sums_stride] = sum over k < n, in order, of a[i * a_stride + k * a_k_stride] * b[k * b_k_stride], vectors of
 * lanes, for i < min(count, TOGETHER) */
INLINE void sums_of_products(int64_t count, const real *a, ptrdiff_t a_stride, ptrdiff_t a_k_stride, const real *b,
                             ptrdiff_t b_k_stride, int64_t n, real *sums, ptrdiff_t sums_stride) {
    vec sum[TOGETHER];
#pragma GCC unroll 4
    for (int i = 0; i < TOGETHER; i++) sum[i] = (vec){0};
    if (__builtin_expect(count >= TOGETHER, 1)) {
        for (int64_t k = 0; k < n; k++, a += a_k_stride, b += b_k_stride)
#pragma GCC unroll 4
            for (int i = 0; i < TOGETHER; i++) sum[i] += load(a + i * a_stride) * load(b);
#pragma GCC unroll 4
        for (int i = 0; i < TOGETHER; i++) store(sums + i * sums_stride, sum[i]);
    } else {
        for (int64_t i = 0; i < count; i++) {
            vec alone = {0};
            for (int64_t k = 0; k < n; k++) alone += load(a + i * a_stride + k * a_k_stride) * load(b + k * b_k_stride);
            store(sums + i * sums_stride, alone);
        }
    }
}

/* A window: features i < n of two neighbouring panels, [n][left LINE, right LINE]. NULL stands for zeros. */
INLINE void fill_window(real *window, const real *left, const real *right, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        for (int v = 0; v < LINE; v += LANES) {
            store(window + i * WINDOW + v, left ? load(left + i * LINE + v) : (vec){0});
            store(window + i * WINDOW + LINE + v, right ? load(right + i * LINE + v) : (vec){0});
        }
}

/* reach[o]: all bits are set in the lanes p whose documents have a row p - o. */
INLINE void fill_reach(const Workspace *w, int64_t panel, real_bits *reach) {
    for (int v = 0; v < LINE; v += LANES) {
        bits positions;
        for (int r = 0; r < LANES; r++) positions[r] = w->positions[panel * LINE + v + r];
        for (int64_t o = 0; o < diagonals_of(w); o++) store_bits(reach + o * LINE + v, positions >= (real_bits)o);
    }
}

/* All heads take each step together: while one of them waits for a result, the processor works on another. */
static void attention_short_forward(const Operation *op, const Workspace *w, int64_t panel, real *scratch) {
    const int64_t n_head = w->n_head, head_dim = w->n_embd / n_head, n = diagonals_of(w), features = 3 * head_dim;
    const real *input = activation(w, op->input, op->n_in, panel * LINE);
    const real *before = panel > 0 ? input - op->n_in * LINE : NULL;
    real *output = activation(w, op->output, op->n_out, panel * LINE);
    real *saved = array(w, op->saved) + w->attention_start[panel];
    real *windows = scratch, *own_weights = windows + 2 * w->n_embd * WINDOW;
    const real scale = op->scale;
    real_bits reach[LINE * LINE];
    for (int64_t head = 0; head < n_head; head++) /* keys and values, which are neighbours */
        fill_window(windows + head * 2 * head_dim * WINDOW, before ? before + (head * features + head_dim) * LINE : NULL,
                    input + (head * features + head_dim) * LINE, 2 * head_dim);
    fill_reach(w, panel, reach);

    for (int v = 0; v < LINE; v += LANES) {
        /* logits[o][p] = sum over j of key[p - o][j] * query[p][j]; scaled, and the largest of each p */
        for (int64_t head = 0; head < n_head; head++) {
            const real *query = input + head * features * LINE + v;
            const real *key = windows + head * 2 * head_dim * WINDOW + LINE + v;
            real *logits = saved + head * (n + 2) * LINE + v;
            vec largest = broadcast(-INFINITY);
            for (int64_t o = 0; o < n; o += TOGETHER)
                sums_of_products(TOGETHER, key - o, -1, WINDOW, query, LINE, head_dim, logits + o * LINE, LINE);
            for (int64_t o = 0; o < n; o++) {
                const vec logit = load(logits + o * LINE) * scale;
                largest = larger_of(choose(load_bits(reach + o * LINE + v), logit, largest), largest);
                store(logits + o * LINE, logit);
            }
            store(logits + n * LINE, largest);
        }
        /* exps[o][p] = exp(scaled[o][p] - largest[p]), total[p] = their sum over t, first to last */
        for (int64_t head = 0; head < n_head; head++) {
            real *exps = saved + head * (n + 2) * LINE + v;
            const vec largest = load(exps + n * LINE);
            vec total = {0};
            for (int64_t o = n - 1; o >= 0; o--) {
                const bits attends = load_bits(reach + o * LINE + v);
                const vec e = exponential_where(attends, load(exps + o * LINE) - largest);
                store(exps + o * LINE, e);
                total += e;
            }
            store(exps + n * LINE, total);
            store(exps + (n + 1) * LINE, reciprocal(total));
        }
        /* weights = exps / total, output[p][j] = sum over t, first to last, of weights[o][p] * value[p - o][j] */
        for (int64_t head = 0; head < n_head; head++) {
            const real *value = windows + (head * 2 + 1) * head_dim * WINDOW + LINE + v - (n - 1);
            real *exps = saved + head * (n + 2) * LINE + v, *weights = MICROGPT_EXACT ? own_weights : exps;
            const vec reciprocals = load(exps + (n + 1) * LINE);
            for (int64_t o = 0; o < n; o++) store(weights + o * LINE, load(exps + o * LINE) * reciprocals);
            for (int64_t j = 0; j < head_dim; j += TOGETHER)
                sums_of_products(head_dim - j, value + j * WINDOW, WINDOW, 1, weights + (n - 1) * LINE, -LINE, n,
                                 output + (head * head_dim + j) * LINE + v, LINE);
        }
    }
}

/* The gradients of some heads in the panels of a span, panels last to first. d_logits and weights are windows, too,
 * [diagonals][WINDOW]: what the right halves hold has been computed with the panel after this one. */
static void attention_short_backward(const Operation *op, const Workspace *w, int64_t begin, int64_t end,
                                     int64_t head_begin, int64_t head_end, real *scratch) {
    const int64_t head_dim = w->n_embd / w->n_head, n = diagonals_of(w), heads = head_end - head_begin;
    const int64_t part = head_dim * WINDOW, triangle = n * WINDOW;
    const real scale = op->scale;
    real *queries = scratch, *keys = queries + heads * part, *values = keys + heads * part;
    real *d_outputs = values + heads * part, *d_logits = d_outputs + heads * part;
    real *weights = d_logits + heads * triangle;
    clear(d_logits, 2 * heads * triangle);
    for (int64_t panel = end - 1; panel >= begin; panel--) {
        const int64_t next = op->n_in * LINE, output_next = op->n_out * LINE; /* from a panel to the next */
        const real *input = activation(w, op->input, op->n_in, panel * LINE);
        const real *d_output = activation(w, op->d_output, op->n_out, panel * LINE);
        real *d_input = activation(w, op->d_input, op->n_in, panel * LINE);
        const real *saved = array(w, op->saved) + w->attention_start[panel];
        const int has_left = panel > begin, has_right = panel + 1 < end;
        for (int64_t h = 0; h < heads; h++) {
            const real *query = input + (head_begin + h) * 3 * head_dim * LINE;
            const real *key = query + head_dim * LINE, *value = key + head_dim * LINE;
            const real *head_d_output = d_output + (head_begin + h) * head_dim * LINE;
            fill_window(values + h * part, has_left ? value - next : NULL, value, head_dim);
            fill_window(keys + h * part, has_left ? key - next : NULL, key, head_dim);
            fill_window(queries + h * part, query, has_right ? query + next : NULL, head_dim);
            fill_window(d_outputs + h * part, head_d_output, has_right ? head_d_output + output_next : NULL, head_dim);
        }
        if (has_right) /* what was this panel is now the next one */
            for (int64_t i = 0; i < 2 * heads * triangle; i += WINDOW) /* d_logits, and weights behind them */
                copy(d_logits + i + LINE, d_logits + i, LINE);
        for (int v = 0; v < LINE; v += LANES) {
            /* In the forward pass this was: output[p][j] = sum over o of weights[o][p] * value[p - o][j].
             * So now: d_weights[o][p] = sum over j, last to first, of value[p - o][j] * d_output[p][j]. */
            for (int64_t h = 0; h < heads; h++) {
                const real *last_d_output = d_output + ((head_begin + h + 1) * head_dim - 1) * LINE + v;
                const real *value = values + (h + 1) * part - LINE + v;
                real *d_weight = d_logits + h * triangle + v; /* until d_logits replace them */
                for (int64_t o = 0; o < n; o += TOGETHER)
                    sums_of_products(TOGETHER, value - o, -1, -WINDOW, last_d_output, -LINE, head_dim,
                                     d_weight + o * WINDOW, WINDOW);
            }
            /* It was: weights = softmax(logits), each p over its o. So now: d_logits from exps and d_weights. */
            for (int64_t h = 0; h < heads; h++) {
                const real *exps = saved + (head_begin + h) * (n + 2) * LINE + v;
                softmax_backward(exps, LINE, load(exps + n * LINE), load(exps + (n + 1) * LINE), scale,
                                 d_logits + h * triangle + v, weights + h * triangle + v, WINDOW, n);
            }
        }
        /* It was: logits[o][p] = sum over j of key[p - o][j] * query[p][j]. So now, sums from last to first:
         *     d_query[p][j] = sum over o = 0 ... n - 1 of key[p - o][j] * d_logits[o][p]
         *     d_key[t][j]   = sum over o = n - 1 ... 0 of query[t + o][j] * d_logits[o][t + o]
         *     d_value[t][j] = sum over o = n - 1 ... 0 of d_output[t + o][j] * weights[o][t + o]
         * The last two start at diagonal n - 1, n - 1 lanes after t. With each step they come a diagonal and a lane
         * nearer: a stride of -(WINDOW + 1). */
        for (int v = 0; v < LINE; v += LANES)
            for (int64_t h = 0; h < heads; h++) {
                const int64_t last = v + n - 1, last_diagonal = (n - 1) * WINDOW + last;
                const real *d_logit = d_logits + h * triangle, *weight = weights + h * triangle;
                real *d_query = d_input + (head_begin + h) * 3 * head_dim * LINE + v;
                for (int64_t j = 0; j < head_dim; j += TOGETHER) {
                    const int64_t at = h * part + j * WINDOW, count = head_dim - j;
                    sums_of_products(count, keys + at + LINE + v, WINDOW, -1, d_logit + v, WINDOW, n,
                                     d_query + j * LINE, LINE);
                    sums_of_products(count, queries + at + last, WINDOW, -1, d_logit + last_diagonal, -(WINDOW + 1), n,
                                     d_query + (head_dim + j) * LINE, LINE);
                    sums_of_products(count, d_outputs + at + last, WINDOW, -1, weight + last_diagonal, -(WINDOW + 1), n,
                                     d_query + (2 * head_dim + j) * LINE, LINE);
                }
            }
    }
}

/* The numbers saved by forward for row p. Its rows t lie a diagonal apart, the first one last. */
INLINE SavedRow attention_short_saved(const Operation *op, const Workspace *w, int64_t head, int64_t p) {
    const int64_t n = diagonals_of(w);
    const real *exps = array(w, op->saved) + w->attention_start[p / LINE] + head * (n + 2) * LINE + p % LINE;
    return (SavedRow){exps + w->positions[p] * LINE, -LINE, exps[n * LINE], exps[(n + 1) * LINE]};
}

INLINE int64_t attention_short_scratch_size(const Workspace *w) {
    const int64_t forward = 2 * w->n_embd * WINDOW + LINE * LINE;
    const int64_t backward = (4 * w->n_embd + 2 * w->n_head * LINE) * WINDOW;
    return forward > backward ? forward : backward;
}
