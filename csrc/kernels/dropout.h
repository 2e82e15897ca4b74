/* Dropout. In training,
 *
 *     output[r][i] = factor[r][i] * input[r][i] + residual[r][i]       a residual only with the epilogue ADD
 *     d_input[r][i] = factor[r][i] * d_output[r][i]
 *     factor[r][i] = 0 if number first_draw + i of the row's stream is below the threshold, otherwise scale
 *
 * and otherwise every factor is 1. Nothing is kept for backward: a stream gives its numbers again, in any order.
 */
#pragma once

#include "../splitmix.h"
#include "product.h"

/* Random words for the lanes of a vector. In float32, lanes are half as long: there are words for even lanes, and words
 * for odd lanes. */
enum { WORD_VECTORS = 8 / REAL_BYTES };
typedef uint64_t words __attribute__((vector_size(VECTOR_BYTES)));
typedef struct {
    words counters[WORD_VECTORS];
} Streams;

/* The streams of LANES rows, at the first number that an operation takes from them. */
INLINE void begin_streams(const Operation *op, const Workspace *w, int64_t row, Streams *streams) {
    for (int lane = 0; lane < LANES; lane++) {
        const uint64_t counter = w->streams ? w->streams[row + lane] : 0;
        streams->counters[lane % WORD_VECTORS][lane / WORD_VECTORS] = SPLITMIX_SKIP(counter, (uint64_t)op->first_draw);
    }
}

/* The factors of the next feature. */
INLINE vec next_factors(const Operation *op, const Workspace *w, Streams *streams) {
    if (!w->streams) return broadcast(1);
    words below[WORD_VECTORS]; /* negative in the lanes that are dropped */
    for (int v = 0; v < WORD_VECTORS; v++) {
        words word = streams->counters[v] = SPLITMIX_SKIP(streams->counters[v], 1);
        below[v] = (SPLITMIX_MIX(word) >> 11) - (uint64_t)op->threshold;
    }
#if MICROGPT_EXACT
    const bits sign = (bits)below[0];
#elif __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    const bits sign = (bits)(below[1] >> 32 | below[0] >> 32 << 32);
#else
    const bits sign = (bits)(below[0] >> 32 | below[1] >> 32 << 32);
#endif
    return (vec)((sign >= (bits){0}) & (bits)broadcast((real)op->scale));
}

static void dropout_forward(const Operation *op, const Workspace *w, const Range *range) {
    const int64_t n = op->n_in;
    for (int64_t row = range->begin * LINE; row < range->end * LINE; row += LANES) {
        const real *input = activation(w, op->input, n, row);
        real *output = activation(w, op->output, n, row);
        const real *extra = op->epilogue == ADD ? activation(w, op->residual, n, row) : output;
        Streams streams = {{{0}}};
        begin_streams(op, w, row, &streams);
        for (int64_t i = 0; i < n * LINE; i += LINE)
            store(output + i, finish(op->epilogue, next_factors(op, w, &streams) * load(input + i), extra + i));
    }
}

static void dropout_backward(const Operation *op, const Workspace *w, const Range *range) {
    const int64_t n = op->n_in;
    for (int64_t row = range->begin * LINE; row < range->end * LINE; row += LANES) {
        const real *d_output = activation(w, op->d_output, n, row);
        real *d_input = activation(w, op->d_input, n, row);
        Streams streams = {{{0}}};
        begin_streams(op, w, row, &streams);
        for (int64_t i = 0; i < n * LINE; i += LINE)
            store(d_input + i, next_factors(op, w, &streams) * load(d_output + i));
    }
}

/* Forward for a single row (decode.h), which is never part of training. */
static void dropout_decode(const Operation *op, const Workspace *w, const Range *range) {
    const real *input = array(w, op->input);
    real *output = array(w, op->output);
    const real *extra = op->epilogue == ADD ? array(w, op->residual) : output;
    for (int64_t at = range->begin * LINE; at < range->end * LINE; at += LANES)
        store(output + at, finish(op->epilogue, load(input + at), extra + at));
}
