/* Activation functions, feature by feature. Like the reference's tape, forward keeps the derivatives:
 *
 *     output = f(input), saved = f'(input)                 [panels][n][LINE] each
 *     d_input = saved * d_output             in place
 *
 * Of a single row (decode.h), forward is the same, for another number of lines.
 */
#pragma once

#include "exponential.h"
#include "panel.h"

/* f(x) and f'(x) */
typedef struct {
    vec value, derivative;
} Differentiated;

/* For the lines [begin, end). */
INLINE void activation_forward(const Operation *op, const Workspace *w, int64_t begin, int64_t end,
                               Differentiated f(vec x)) {
    const real *input = array(w, op->input);
    real *output = array(w, op->output), *saved = array(w, op->saved);
    for (int64_t at = begin * LINE; at < end * LINE; at += LANES) {
        const Differentiated y = f(load(input + at));
        store(output + at, y.value);
        store(saved + at, y.derivative);
    }
}

static void activation_backward(const Operation *op, const Workspace *w, const Range *range) {
    const real *saved = array(w, op->saved);
    real *gradient = array(w, op->d_input);
    for (int64_t at = range->begin * op->n_in * LINE; at < range->end * op->n_in * LINE; at += LANES)
        store(gradient + at, load(saved + at) * load(gradient + at));
}

/* GELU, with the normal distribution's cdf and density: x * cdf(x), and the derivative cdf + x * density.
 * cdf = (1 + erf(x / sqrt(2))) / 2.
 * In float32 1 - cdf(|x|) is density(x) times a polynomial (Abramowitz and Stegun, 1964, 7.1.26): to 1e-7. */
INLINE Differentiated differentiated_gelu(vec x) {
    const vec power = exponential((real)-0.5 * x * x);
    const vec density = (real)0x1.9884533d43651p-2 * power; /* (2 * pi) ** -0.5 */
#if MICROGPT_EXACT
    vec cdf;
    for (int i = 0; i < LANES; i++) cdf[i] = 0.5 * (1 + erf(0x1.6a09e667f3bcdp-1 * x[i])); /* 0.5 ** 0.5 */
#else
    const vec t = 1 / (1 + 0.23164190f * absolute(x));
    const vec tail = power * (t * (0.12741480f + t * (-0.14224837f + t * (0.71070687f + t * (-0.72657601f + t * 0.53070271f)))));
    const vec cdf = choose(x > 0, 1 - tail, tail);
#endif
    return (Differentiated){x * cdf, cdf + x * density};
}

static void gelu_forward(const Operation *op, const Workspace *w, const Range *range) {
    activation_forward(op, w, range->begin * op->n_in, range->end * op->n_in, differentiated_gelu);
}

static void gelu_decode(const Operation *op, const Workspace *w, const Range *range) {
    activation_forward(op, w, range->begin, range->end, differentiated_gelu);
}

/* SiLU: x * sigmoid(x), and the derivative sigmoid * (1 + x * (1 - sigmoid)). sigmoid = 1 / (1 + exp(-x)) = exp(x) / (1
 * + exp(x)), of which one form cannot overflow for x >= 0, the other for x < 0. */
INLINE Differentiated differentiated_silu(vec x) {
    const vec power = exponential(-absolute(x)), one = broadcast(1);
    const vec sigmoid = choose(x >= 0, one, power) / (one + power);
    return (Differentiated){x * sigmoid, sigmoid * (1 + x * (1 - sigmoid))};
}

static void silu_forward(const Operation *op, const Workspace *w, const Range *range) {
    activation_forward(op, w, range->begin * op->n_in, range->end * op->n_in, differentiated_silu);
}

static void silu_decode(const Operation *op, const Workspace *w, const Range *range) {
    activation_forward(op, w, range->begin, range->end, differentiated_silu);
}
