/* Forward for a single row: one document that grows token by token, which would use one lane of a panel.
 *
 * The lanes of a vector are features here, and an activation of width n is a plain row [n], at the start of the panel
 * that it has otherwise. What is computed is what the panel kernels compute for a row, to the bit: each lane is an
 * output with a sum of its own, which has the same terms in the same order, and in float32 the same partial sums and
 * the same fused multiply-adds. What stands beside a row of width n, up to the end of its line, is never part of a sum.
 *
 * A matrix product reads each weight once for a row, and does little else. So weights are packed once for a document,
 *
 *     [lines of outputs][n_in][LINE]       output o, input i at ((o / LINE) * n_in + i) * LINE + o % LINE
 *
 * and are then read from front to back. Outputs beyond the last have weights 0.
 *
 * The cache holds, for each layer, keys [n_head][lines of positions][head_dim][LINE], whose lanes are positions, then
 * values [n_head][block_size][head_dim], whose lanes are features, and a line into which the last of these may be read.
 * So attention reads all that a head needs from front to back.
 */
#pragma once

#include "attention.h"
#include "linear.h"

/* Independent accumulators, to hide the latency of additions. A product has 8 vectors of them, in DECODE_LINES lines;
 * attention's values have VALUE_VECTORS, times four partial sums in float32. */
#if VECTOR_BYTES == 64
#define DECODE_LINES 8
#define VALUE_VECTORS 4
#elif VECTOR_BYTES == 32
#define DECODE_LINES 4
#define VALUE_VECTORS 2
#else
#define DECODE_LINES 2
#define VALUE_VECTORS 2
#endif
enum { DECODE_GRAIN = DECODE_LINES / 2 }; /* lines for a thread: few enough to share a narrow matrix evenly */

INLINE bits lane_numbers(void) {
    bits numbers;
    for (int i = 0; i < LANES; i++) numbers[i] = i;
    return numbers;
}

/* A mask of the lanes of a vector beginning at `first` that come before `end`. */
INLINE bits lanes_before(int64_t end, int64_t first) { return lane_numbers() < (real_bits)(end - first); }

/* sums[v] = sum over k < n of a[k * a_stride + v * LANES] * b[k]: sum_of_products, for a b that is alike in all lanes */
INLINE void sums_with_scalars(const int vectors, const real *a, ptrdiff_t a_stride, const real *b, int64_t n,
                              vec *sums) {
    enum { PARTS = MICROGPT_EXACT ? 1 : 4 };
    vec parts[VALUE_VECTORS][4];
#define EACH_SUM _Pragma("GCC unroll 16") for (int v = 0; v < vectors; v++)
#define EACH_PART _Pragma("GCC unroll 4") for (int i = 0; i < PARTS; i++)
    EACH_SUM EACH_PART parts[v][i] = (vec){0};
    int64_t k = 0;
    for (; k + PARTS <= n; k += PARTS)
        EACH_PART {
            const vec b_k = broadcast(b[k + i]);
            EACH_SUM parts[v][i] += load(a + (k + i) * a_stride + v * LANES) * b_k;
        }
    EACH_PART if (k + i < n) {
        const vec b_k = broadcast(b[k + i]);
        EACH_SUM parts[v][i] += load(a + (k + i) * a_stride + v * LANES) * b_k;
    }
    EACH_SUM sums[v] = MICROGPT_EXACT ? parts[v][0] : (parts[v][0] + parts[v][1]) + (parts[v][2] + parts[v][3]);
#undef EACH_SUM
#undef EACH_PART
}

/* a * b + c for numbers, rounded as in vectors: compilers fuse the two there, but here only now and then. */
INLINE real multiply_add(real a, real b, real c) {
#if !MICROGPT_EXACT && (defined(__FP_FAST_FMAF) || defined(__FMA__) || defined(__aarch64__))
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
}

/* sum over i < n of x[i] * x[i]: sum_of_products for a row */
INLINE real sum_of_squares_of_row(const real *x, int64_t n) {
    enum { PARTS = MICROGPT_EXACT ? 1 : 4 };
    real parts[4] = {0};
    int64_t k = 0;
    for (; k + PARTS <= n; k += PARTS)
#pragma GCC unroll 4
        for (int i = 0; i < PARTS; i++) parts[i] = multiply_add(x[k + i], x[k + i], parts[i]);
#pragma GCC unroll 4
    for (int i = 0; i < PARTS - 1; i++)
        if (k + i < n) parts[i] = multiply_add(x[k + i], x[k + i], parts[i]);
    return MICROGPT_EXACT ? parts[0] : (parts[0] + parts[1]) + (parts[2] + parts[3]);
}

/* output = wte[token] + wpe[position] */
static void embedding_decode(const Operation *op, const Workspace *w, const Range *range) {
    (void)range;
    const real *wte = (const real *)w->parameters + w->tokens[0] * op->n_out;
    const real *wpe = (const real *)w->parameters + w->num_wte + w->positions[0] * op->n_out;
    real *output = array(w, op->output);
    for (int64_t i = 0; i < op->n_out; i += LANES) store(output + i, load(wte + i) + load(wpe + i));
}

/* output = input * (mean of input**2 + 1e-5) ** -0.5 */
static void rmsnorm_decode(const Operation *op, const Workspace *w, const Range *range) {
    (void)range;
    const real *input = array(w, op->input);
    real *output = array(w, op->output);
    const real mean = multiply_add(sum_of_squares_of_row(input, op->n_in), (real)op->scale, (real)1e-5);
    const vec scale = reciprocal_root(broadcast(mean));
    for (int64_t i = 0; i < op->n_in; i += LANES) store(output + i, load(input + i) * scale);
}

/* Packs lines of outputs. Squares of weights are transposed in registers, what is left at the edges one by one. */
static void linear_pack(const Operation *op, const Workspace *w, const Range *range) {
    const int64_t n_in = op->n_in;
    for (int64_t line = range->begin; line < range->end; line++) {
        const real *weights = weights_of(op, w) + line * LINE * n_in;
        real *packed = (real *)w->packed + op->packed + line * LINE * n_in;
        const int64_t outputs = minimum(LINE, op->n_out - line * LINE), squares = outputs == LINE ? n_in / LINE : 0;
        for (int64_t i = 0; i < squares * LINE; i += LINE)
            transpose_lines(weights + i, n_in, packed + i * LINE, LINE, LINE);
        for (int64_t i = squares * LINE; i < n_in; i++)
            for (int64_t o = 0; o < LINE; o++) packed[i * LINE + o] = o < outputs ? weights[o * n_in + i] : 0;
    }
}

/* Some lines of outputs: output[o] = sum over i of weight[o][i] * input[i] */
INLINE void decode_lines(const int lines, const Operation *op, const Workspace *w, int64_t line) {
    const int64_t n_in = op->n_in;
    const real *weights = (const real *)w->packed + op->packed + line * LINE * n_in, *input = array(w, op->input);
    real *output = array(w, op->output) + line * LINE;
    const real *extra = op->epilogue == ADD ? array(w, op->residual) + line * LINE : output;
    vec sum[DECODE_LINES * LINE_VECTORS];
#define EACH_VECTOR _Pragma("GCC unroll 8") for (int v = 0; v < lines * LINE_VECTORS; v++)
    EACH_VECTOR sum[v] = (vec){0};
    for (int64_t i = 0; i < n_in; i++) {
        const vec x = broadcast(input[i]);
        EACH_VECTOR sum[v] += x * load(weights + v / LINE_VECTORS * LINE * n_in + i * LINE + v % LINE_VECTORS * LANES);
    }
    EACH_VECTOR store(output + v * LANES, finish(op->epilogue, sum[v], extra + v * LANES));
#undef EACH_VECTOR
}

static void linear_decode(const Operation *op, const Workspace *w, const Range *range) {
    int64_t line = range->begin;
    for (; line + DECODE_LINES <= range->end; line += DECODE_LINES) decode_lines(DECODE_LINES, op, w, line);
    switch (range->end - line) {
#if DECODE_LINES > 4
    case 7: decode_lines(7, op, w, line); break;
    case 6: decode_lines(6, op, w, line); break;
    case 5: decode_lines(5, op, w, line); break;
    case 4: decode_lines(4, op, w, line); break;
#endif
#if DECODE_LINES > 2
    case 3: decode_lines(3, op, w, line); break;
    case 2: decode_lines(2, op, w, line); break;
#endif
    case 1: decode_lines(1, op, w, line); break;
    }
}

/* Elements of a layer in the cache. */
static int64_t decode_cache_size(const Workspace *w) {
    return (lines_for(w->block_size) * LINE + w->block_size) * w->n_embd + LINE;
}

/* Some vectors of outputs: output[j] = sum over t of weights[t] * value[t][j] */
INLINE void decode_values(const int vectors, const real *value, int64_t head_dim, const real *weights, int64_t n,
                          real *output, int64_t features) {
    vec sums[VALUE_VECTORS];
    sums_with_scalars(vectors, value, head_dim, weights, n, sums);
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) {
        if (features >= (v + 1) * LANES) store(output + v * LANES, sums[v]);
        else
            for (int64_t j = v * LANES; j < features; j++) output[j] = sums[v][j - v * LANES]; /* and no other head's */
    }
}

/* Attention of the row to itself and the rows in the cache, which it then joins; see attention.h. A task is a head. */
static void attention_decode(const Operation *op, const Workspace *w, const Range *range) {
    const int64_t n_embd = w->n_embd, head_dim = n_embd / w->n_head, position = w->positions[0], n = position + 1;
    real *keys = (real *)w->caches[0] + op->cache * decode_cache_size(w);
    const int64_t positions = lines_for(w->block_size) * LINE;
    real *values = keys + positions * n_embd;
    real *weights = range->scratch;
    for (int64_t head = range->begin; head < range->end; head++) {
        const real *query = array(w, op->input) + head * 3 * head_dim, *new_key = query + head_dim;
        real *key = keys + head * positions * head_dim, *value = values + head * w->block_size * head_dim;
        real *at = key + position / LINE * head_dim * LINE + position % LINE;
        for (int64_t j = 0; j < head_dim; j++) at[j * LINE] = new_key[j];
        copy(value + position * head_dim, new_key + head_dim, head_dim);

        /* logits[t] = sum over j of key[t][j] * query[j] */
        vec largest = broadcast(-INFINITY);
        for (int64_t t = 0; t < n; t += LANES) {
            vec sum;
            sums_with_scalars(1, key + t / LINE * head_dim * LINE + t % LINE, LINE, query, head_dim, &sum);
            const vec logit = sum * (real)op->scale;
            largest = larger_of(choose(lanes_before(n, t), logit, largest), largest);
            store(weights + t, logit); /* rounded, as in attention_short.h */
        }
        real largest_of_all = largest[0], total = 0;
        for (int i = 1; i < LANES; i++) largest_of_all = largest[i] > largest_of_all ? largest[i] : largest_of_all;

        /* weights[t] = exp(logits[t] - largest) / total */
        for (int64_t t = 0; t < n; t += LANES)
            store(weights + t, exponential_where(lanes_before(n, t), load(weights + t) - broadcast(largest_of_all)));
        for (int64_t t = 0; t < n; t++) total += weights[t];
        const vec reciprocals = reciprocal(broadcast(total));
        for (int64_t t = 0; t < n; t += LANES) store(weights + t, load(weights + t) * reciprocals);

        /* output[j] = sum over t of weights[t] * value[t][j] */
        real *output = array(w, op->output) + head * head_dim;
        int64_t j = 0;
        for (; j + VALUE_VECTORS * LANES <= head_dim; j += VALUE_VECTORS * LANES)
            decode_values(VALUE_VECTORS, value + j, head_dim, weights, n, output + j, head_dim - j);
        for (; j < head_dim; j += LANES) decode_values(1, value + j, head_dim, weights, n, output + j, head_dim - j);
    }
}

/* Probabilities of the next token, and a token drawn from them: see draw. */
static void decode_draw(const Operation *op, const Workspace *w, const Range *range) {
    const int64_t n = op->n_out;
    real *probabilities = array(w, op->output), *reached = range->scratch, total = 0;
    if (w->temperature > 0) {
        const real factor = power((real)w->temperature, -1);
        real largest = probabilities[0];
        for (int64_t i = 1; i < n; i++) largest = probabilities[i] > largest ? probabilities[i] : largest;
        for (int64_t i = 0; i < n; i += LANES) {
            const bits is_token = lanes_before(n, i);
            const vec logits = choose(is_token, load(probabilities + i), broadcast(largest));
            store(probabilities + i, exponential_of_logits(logits, broadcast(largest), factor));
        }
        for (int64_t i = 0; i < n; i++) total += probabilities[i];
        const vec reciprocals = reciprocal(broadcast(total));
        for (int64_t i = 0; i < n; i += LANES) store(probabilities + i, load(probabilities + i) * reciprocals);
    } else {
        int64_t likeliest = 0;
        for (int64_t i = 1; i < n; i++) likeliest = probabilities[i] > probabilities[likeliest] ? i : likeliest;
        for (int64_t i = 0; i < n; i++) probabilities[i] = i == likeliest;
    }
    total = 0;
    for (int64_t i = 0; i < n; i++) reached[i] = total += probabilities[i];
    if (w->probabilities)
        for (int64_t i = 0; i < n; i++) w->probabilities[i] = probabilities[i];
    if (w->uniforms) {
        const real point = (real)w->uniforms[0] * total;
        int32_t token = (int32_t)(n - 1); /* drawn where all are NaN and no point is reached */
        for (int64_t i = 0; i < n - 1; i++) token -= reached[i] > point;
        w->drawn[0] = token;
    }
}
