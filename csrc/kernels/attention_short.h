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
INLINE int64_t diagonals_of(const Workspace *w, int64_t panel) {
    return (w->longest_of_panel[panel] + TOGETHER - 1) / TOGETHER * TOGETHER;
}
INLINE int64_t attention_short_size(const Workspace *w, int64_t panel) {
    return w->n_head * (diagonals_of(w, panel) + 2) * LINE;
}

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

/* Features of some heads in two neighbouring panels side by side: feature j of head h begins, in the left panel, at
 * first + h * head_stride + j * stride, and LINE further in the right one. */
typedef struct {
    const real *first;
    ptrdiff_t head_stride, stride;
} Window;

/* A window of the features that begin at `left` and `right`, heads `head_stride` apart, copied to [heads][head_dim]
 * [left LINE, right LINE]. A neighbour that does not exist is NULL, and stands for zeros. */
INLINE Window window_of(const real *left, const real *right, int64_t heads, ptrdiff_t head_stride, int64_t head_dim,
                        real *copies) {
    real *to = copies;
    for (int64_t h = 0; h < heads; h++)
        for (int64_t at = h * head_stride; at < h * head_stride + head_dim * LINE; at += LINE, to += WINDOW)
            for (int v = 0; v < LINE; v += LANES) {
                store(to + v, left ? load(left + at + v) : (vec){0});
                store(to + LINE + v, right ? load(right + at + v) : (vec){0});
            }
    return (Window){copies, head_dim * WINDOW, WINDOW};
}

/* The same without a copy where a neighbour does not exist. What is read instead of it are other features of the same
 * rows, so this is for numbers that are then masked, or meet weights of 0 in backward, which is run again by rows if one
 * is infinite; and not for the features at either end of an array. */
INLINE Window loose_window_of(const real *left, const real *right, int64_t heads, ptrdiff_t head_stride,
                              int64_t head_dim, real *copies) {
    if (left && right) return window_of(left, right, heads, head_stride, head_dim, copies);
    return (Window){left ? left : right - LINE, head_stride, LINE};
}

/* reach[o]: all bits are set in the lanes p whose documents have a row p - o. */
INLINE void fill_reach(const Workspace *w, int64_t panel, real_bits *reach) {
    for (int v = 0; v < LINE; v += LANES) {
        const bits positions = from_integers(w->positions + panel * LINE + v);
        for (int64_t o = 0; o < diagonals_of(w, panel); o++) store_bits(reach + o * LINE + v, positions >= (real_bits)o);
    }
}

/* All heads take each step together: while one of them waits for a result, the processor works on another. */
static void attention_short_forward(const Operation *op, const Workspace *w, int64_t panel, real *scratch) {
    const int64_t n_head = w->n_head, head_dim = w->n_embd / n_head, n = diagonals_of(w, panel);
    const ptrdiff_t head_stride = 3 * head_dim * LINE;
    const real *input = activation(w, op->input, op->n_in, panel * LINE);
    const real *input_key = input + head_dim * LINE, *input_value = input_key + head_dim * LINE;
    const ptrdiff_t before = -op->n_in * LINE; /* from a panel to the one before */
    real *output = activation(w, op->output, op->n_out, panel * LINE);
    real *saved = array(w, op->saved) + w->attention_start[panel];
    real *windows = scratch, *own_weights = windows + 2 * w->n_embd * WINDOW;
    const Window keys = loose_window_of(panel > 0 ? input_key + before : NULL, input_key, n_head, head_stride, head_dim,
                                        windows);
    const Window values = window_of(panel > 0 ? input_value + before : NULL, input_value, n_head, head_stride, head_dim,
                                    windows + w->n_embd * WINDOW);
    const real scale = op->scale;
    real_bits reach[LINE * LINE];
    fill_reach(w, panel, reach);

    for (int v = 0; v < LINE; v += LANES) {
        /* logits[o][p] = sum over j of key[p - o][j] * query[p][j]; scaled, and the largest of each p */
        for (int64_t head = 0; head < n_head; head++) {
            const real *query = input + head * head_stride + v, *key = keys.first + head * keys.head_stride + LINE + v;
            real *logits = saved + head * (n + 2) * LINE + v;
            vec largest = broadcast(-INFINITY);
            for (int64_t o = 0; o < n; o += TOGETHER)
                sums_of_products(TOGETHER, key - o, -1, keys.stride, query, LINE, head_dim, logits + o * LINE, LINE);
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
            const real *value = values.first + head * values.head_stride + LINE + v - (n - 1);
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
    const int64_t head_dim = w->n_embd / w->n_head, heads = head_end - head_begin;
    const int64_t part = head_dim * WINDOW, triangle = LINE * WINDOW;
    const real scale = op->scale;
    real *windows = scratch, *d_logits = windows + 4 * heads * part;
    real *weights = d_logits + heads * triangle;
    for (int64_t panel = end - 1; panel >= begin; panel--) {
        const ptrdiff_t next = op->n_in * LINE, output_next = op->n_out * LINE; /* from a panel to the next */
        const ptrdiff_t head_stride = 3 * head_dim * LINE, output_stride = head_dim * LINE;
        const real *query = activation(w, op->input, op->n_in, panel * LINE) + head_begin * head_stride;
        const real *key = query + head_dim * LINE, *value = key + head_dim * LINE;
        const real *d_output = activation(w, op->d_output, op->n_out, panel * LINE) + head_begin * output_stride;
        real *d_input = activation(w, op->d_input, op->n_in, panel * LINE) + head_begin * head_stride;
        const real *saved = array(w, op->saved) + w->attention_start[panel];
        const int has_left = panel > begin, has_right = panel + 1 < end;
        const int64_t own = diagonals_of(w, panel), next_own = has_right ? diagonals_of(w, panel + 1) : 0;
        const int64_t n = own > next_own ? own : next_own; /* of rows p in either panel */
        const Window values = loose_window_of(has_left ? value - next : NULL, value, heads, head_stride, head_dim,
                                              windows);
        const Window keys = loose_window_of(has_left ? key - next : NULL, key, heads, head_stride, head_dim,
                                            windows + heads * part);
        const Window queries = loose_window_of(query, has_right ? query + next : NULL, heads, head_stride, head_dim,
                                               windows + 2 * heads * part);
        const Window d_outputs = window_of(d_output, has_right ? d_output + output_next : NULL, heads, output_stride,
                                           head_dim, windows + 3 * heads * part);
        for (int64_t h = 0; h < 2 * heads; h++) /* d_logits, and weights behind them */
            for (int64_t o = 0; o < n; o++) {
                real *left = d_logits + h * triangle + o * WINDOW;
                if (o < next_own) copy(left + LINE, left, LINE); /* what was this panel is now the next one */
                else clear(left + LINE, LINE);
                if (o >= own) clear(left, LINE);
            }
        for (int v = 0; v < LINE; v += LANES) {
            /* In the forward pass this was: output[p][j] = sum over o of weights[o][p] * value[p - o][j].
             * So now: d_weights[o][p] = sum over j, last to first, of value[p - o][j] * d_output[p][j]. */
            for (int64_t h = 0; h < heads; h++) {
                const real *last_d_output = d_output + (h + 1) * output_stride - LINE + v;
                const real *last_value = values.first + h * values.head_stride + (head_dim - 1) * values.stride
                                       + LINE + v;
                real *d_weight = d_logits + h * triangle + v; /* until d_logits replace them */
                for (int64_t o = 0; o < own; o += TOGETHER)
                    sums_of_products(TOGETHER, last_value - o, -1, -values.stride, last_d_output, -LINE, head_dim,
                                     d_weight + o * WINDOW, WINDOW);
            }
            /* It was: weights = softmax(logits), each p over its o. So now: d_logits from exps and d_weights. */
            for (int64_t h = 0; h < heads; h++) {
                const real *exps = saved + (head_begin + h) * (own + 2) * LINE + v;
                softmax_backward(exps, LINE, load(exps + own * LINE), load(exps + (own + 1) * LINE), scale,
                                 d_logits + h * triangle + v, weights + h * triangle + v, WINDOW, own);
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
                const real *head_key = keys.first + h * keys.head_stride + LINE + v;
                const real *head_query = queries.first + h * queries.head_stride + last;
                const real *head_d_output = d_outputs.first + h * d_outputs.head_stride + last;
                real *d_query = d_input + h * head_stride + v;
                for (int64_t j = 0; j < head_dim; j += TOGETHER) {
                    const int64_t count = head_dim - j;
                    sums_of_products(count, head_key + j * keys.stride, keys.stride, -1, d_logit + v, WINDOW, own,
                                     d_query + j * LINE, LINE);
                    sums_of_products(count, head_query + j * queries.stride, queries.stride, -1,
                                     d_logit + last_diagonal, -(WINDOW + 1), n, d_query + (head_dim + j) * LINE, LINE);
                    sums_of_products(count, head_d_output + j * d_outputs.stride, d_outputs.stride, -1,
                                     weight + last_diagonal, -(WINDOW + 1), n, d_query + (2 * head_dim + j) * LINE, LINE);
                }
            }
    }
}

/* The numbers saved by forward for row p. Its rows t lie a diagonal apart, the first one last. */
INLINE SavedRow attention_short_saved(const Operation *op, const Workspace *w, int64_t head, int64_t p) {
    const int64_t n = diagonals_of(w, p / LINE);
    const real *exps = array(w, op->saved) + w->attention_start[p / LINE] + head * (n + 2) * LINE + p % LINE;
    return (SavedRow){exps + w->positions[p] * LINE, -LINE, exps[n * LINE], exps[(n + 1) * LINE]};
}

INLINE int64_t attention_short_scratch_size(const Workspace *w) {
    const int64_t forward = 2 * w->n_embd * WINDOW + LINE * LINE;
    const int64_t backward = (4 * w->n_embd + 2 * w->n_head * LINE) * WINDOW;
    return forward > backward ? forward : backward;
}
