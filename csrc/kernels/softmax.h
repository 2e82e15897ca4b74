/* Softmax: its parts for attention, the cross entropy of each row with its target, and sampling of tokens. */
#pragma once

#include "exponential.h"
#include "panel.h"

/* exp(x), x <= 0, in the lanes that attend; 0 in the others, whatever x is there. */
INLINE vec exponential_where(bits attends, vec x) {
    return (vec)((bits)exponential((vec)((bits)x & attends)) & attends);
}

/* In the forward pass this was: weights[t] = exps[t] / total, exps[t] = exp(scale * logits[t]). So now, for n of them:
 *
 *     d_total     = -(sum over t, last to first, of exps[t] * d_weights[t]) / total**2
 *     d_logits[t] = scale * exps[t] * (d_weights[t] / total + d_total)
 *
 * d_logits holds the d_weights on entry, and is replaced in place; the weights are written to `weights`. Pointers are
 * to the last t, and the strides lead to the first. */
INLINE void softmax_backward(const real *exps, ptrdiff_t exps_stride, vec total, vec reciprocals, real scale,
                             real *d_logits, real *weights, ptrdiff_t stride, int64_t n) {
#if MICROGPT_EXACT
    const vec d_total_factor = -reciprocal_square(total);
    vec d_total = {0};
    for (int64_t t = 0; t < n; t++)
        d_total += d_total_factor * (load(exps + t * exps_stride) * load(d_logits + t * stride));
    for (int64_t t = 0; t < n; t++) {
        const vec e = load(exps + t * exps_stride), d_weight = load(d_logits + t * stride);
        store(weights + t * stride, e * reciprocals);
        store(d_logits + t * stride, scale * (e * (reciprocals * d_weight + d_total)));
    }
#else
    (void)total, (void)reciprocals; /* the exps are divided by it already */
    const vec d_total = sum_of_products(exps, exps_stride, d_logits, stride, n);
    for (int64_t t = 0; t < n; t++) {
        const vec e = load(exps + t * exps_stride);
        store(weights + t * stride, e);
        store(d_logits + t * stride, scale * e * (load(d_logits + t * stride) - d_total));
    }
#endif
}

typedef struct {
    vec largest, total;
} Softmax;

/* exp(factor * (logits - largest)) */
INLINE vec exponential_of_logits(vec logits, vec largest, real factor) {
#if MICROGPT_EXACT
    return exponential(logits * factor - largest * factor);
#else /* a fused multiply-add of the above would not be 0 at the largest */
    return exponential((logits - largest) * factor);
#endif
}

/* The largest of x[i * LINE], i < n, lane by lane; found in four chains, for none has to wait for another. */
INLINE vec largest_of(const real *x, int64_t n) {
    vec largest[4];
    int64_t i = 0;
    for (int k = 0; k < 4; k++) largest[k] = load(x);
    for (; i + 4 <= n; i += 4)
#pragma GCC unroll 4
        for (int k = 0; k < 4; k++) largest[k] = larger_of(load(x + (i + k) * LINE), largest[k]);
    for (; i < n; i++) largest[0] = larger_of(load(x + i * LINE), largest[0]);
    return larger_of(larger_of(largest[0], largest[1]), larger_of(largest[2], largest[3]));
}

/* For one vector of rows, replaces logits[i * LINE], i < n, by exps = exp(factor * (logits - largest)); total is their
 * sum. */
INLINE Softmax exponentials(real *logits, int64_t n, real factor) {
    Softmax softmax = {largest_of(logits, n), {0}};
    for (int64_t i = 0; i < n * LINE; i += LINE) {
        const vec exps = exponential_of_logits(load(logits + i), softmax.largest, factor);
        store(logits + i, exps);
        softmax.total += exps;
    }
    return softmax;
}

/* x[targets[r]] for each row r of a vector */
INLINE vec at_targets(const real *x, const int32_t *targets) {
    vec found;
    for (int r = 0; r < LANES; r++) found[r] = x[targets[r] * LINE + r];
    return found;
}

/* losses[r] = -log softmax(input[r])[targets[r]]
 * The logits are replaced by their exponentials; saved: total and 1 / total, [panels][2][LINE]. */
static void cross_entropy_forward(const Operation *op, const Workspace *w, const Range *range) {
    const int64_t n = op->n_in;
    for (int64_t row = range->begin * LINE; row < range->end * LINE; row += LANES) {
        real *exps = activation(w, op->input, n, row);
        real *saved = activation(w, op->saved, 2, row);
        const vec logits = at_targets(exps, w->targets + row);
        const Softmax softmax = exponentials(exps, n, 1);
        const vec reciprocals = reciprocal(softmax.total);
#if MICROGPT_EXACT
        const vec target = at_targets(exps, w->targets + row);
        (void)logits;
        for (int r = 0; r < LANES; r++) w->losses[row + r] = -log(target[r] * reciprocals[r]);
#else
        const vec losses = logarithm(softmax.total) + (softmax.largest - logits);
        for (int r = 0; r < LANES; r++) w->losses[row + r] = losses[r];
#endif
        store(saved, softmax.total);
        store(saved + LINE, reciprocals);
    }
}

/* For each row r, with probability = exps[target] / total:
 *     d_probability = -d_losses[r] / probability
 *     d_total       = -(1 / total**2) * exps[target] * d_probability
 *     d_input[r][i] = exps[i] * d_total, for the target plus exps[target] * d_probability / total
 * In other words d_losses[r] * (softmax(input[r])[i] - (i is the target)). */
static void cross_entropy_backward(const Operation *op, const Workspace *w, const Range *range) {
    const int64_t n = op->n_in;
    for (int64_t row = range->begin * LINE; row < range->end * LINE; row += LANES) {
        const real *exps = activation(w, op->input, n, row);
        const real *saved = activation(w, op->saved, 2, row);
        real *d_logits = activation(w, op->d_input, n, row);
        const vec d_losses = from_doubles(w->d_losses + row), reciprocals = load(saved + LINE);
#if MICROGPT_EXACT
        const vec target = at_targets(exps, w->targets + row);
        const vec d_probability = 1 / (target * reciprocals) * -d_losses;
        const vec d_total = -reciprocal_square(load(saved)) * (target * d_probability);
        const vec at_target = target * (reciprocals * d_probability + d_total);
#else
        const vec d_total = reciprocals * d_losses;
        const vec at_target = at_targets(exps, w->targets + row) * d_total - d_losses;
#endif
        for (int64_t i = 0; i < n * LINE; i += LINE) store(d_logits + i, load(exps + i) * d_total);
        for (int r = 0; r < LANES; r++) d_logits[w->targets[row + r] * LINE + r] = at_target[r];
    }
}

/* Instead of the exponentials at temperature 0: 1 for the first of the largest logits of each row, 0 for the others. */
INLINE void one_for_the_likeliest(real *logits, int64_t n) {
    vec largest = load(logits);
    bits likeliest = {0};
    for (int64_t i = 1; i < n; i++) {
        const vec logit = load(logits + i * LINE);
        const bits larger = logit > largest;
        largest = (vec)(((bits)logit & larger) | ((bits)largest & ~larger));
        likeliest = (((bits){0} + (real_bits)i) & larger) | (likeliest & ~larger);
    }
    for (int64_t i = 0; i < n; i++)
        store(logits + i * LINE, (vec)((bits)broadcast(1) & (likeliest == (bits){0} + (real_bits)i)));
}

/* Probabilities of the token after each row, and a token drawn from them as `random.choices` draws it: the first up to
 * which they sum to more than the row's uniform number times their total. The logits are replaced. */
static void draw(const Operation *op, const Workspace *w, const Range *range) {
    const int64_t n = op->n_out;
    const real factor = power((real)w->temperature, -1);
    for (int64_t row = range->begin * LINE; row < minimum(range->end * LINE, w->rows); row += LANES) {
        const int64_t rows = minimum(LANES, w->rows - row);
        real *probabilities = activation(w, op->output, n, row);
        vec reciprocals = broadcast(1), total = {0};
        if (w->temperature > 0)
            reciprocals = reciprocal(exponentials(probabilities, n, factor).total);
        else
            one_for_the_likeliest(probabilities, n);
        for (int64_t i = 0; i < n * LINE; i += LINE) {
            const vec probability = load(probabilities + i) * reciprocals;
            store(probabilities + i, probability);
            total += probability;
        }
        if (w->probabilities)
            for (int64_t r = 0; r < rows; r++)
                for (int64_t i = 0; i < n; i++) w->probabilities[(row + r) * n + i] = probabilities[i * LINE + r];
        if (w->uniforms) {
            const vec point = from_doubles(w->uniforms + row) * total;
            vec reached = {0};
            bits token = {0}; /* counted from the last, which is drawn where all are NaN and no point is reached */
            for (int64_t i = 0; i < (n - 1) * LINE; i += LINE) {
                reached += load(probabilities + i);
                token += reached > point;
            }
            for (int64_t r = 0; r < rows; r++) w->drawn[row + r] = (int32_t)(n - 1 + token[r]);
        }
    }
}
