/* Adam (Kingma and Ba, 2015) with decoupled weight decay (Loshchilov and Hutter, 2019), in one pass over flat arrays.
 *
 *     g = gradient_scale * gradient            parameter = shrinkage * parameter
 *     m = beta1 * m + (1 - beta1) * g          v = beta2 * v + (1 - beta2) * g ** 2
 *     parameter -= learning_rate * (m / bias1) / ((v / bias2) ** 0.5 + eps)
 */
#pragma once

#include "numerics.h"

#if MICROGPT_EXACT
/* The constants of a step, in the element type. */
typedef struct {
    real beta1, beta2, rest1, rest2, learning_rate, eps;
    real shrinkage, gradient_scale;
    Divisor bias1, bias2;
    real smallest;  /* parameter for whose update `divide` is exact enough */
} AdamConstants;

INLINE AdamConstants constants_of(const AdamStep *s) {
    return (AdamConstants){
        .beta1 = s->beta1, .beta2 = s->beta2, .rest1 = 1 - s->beta1, .rest2 = 1 - s->beta2,
        .learning_rate = s->learning_rate, .eps = s->eps,
        .shrinkage = s->shrinkage, .gradient_scale = s->gradient_scale,
        .bias1 = divisor_of(s->bias1), .bias2 = divisor_of(s->bias2),
        /* `divide` is exact from 2**-900 on; an update below 2**-55 of a parameter changes no bit of it. */
        .smallest = fmax(0x1p-500, s->learning_rate * 0x1p-845 / (s->bias1 * s->eps)),
    };
}

/* The next three return masks in the sign bits: where a result may differ from the one with the C library's pow.
 *
 * kept + rest * g ** 2: near a midpoint the library may round the square to the other neighbour, and the sum may
 * differ. The residual of a tiny square cannot be represented, which shows only where the sum is tiny as well. */
INLINE bits uncertain_square(vec g, vec squared, vec kept, real rest, vec sum) {
#if VECTOR_POWERS
    const vec residual = fused_multiply_add(g, g, -squared);
    const vec other_sum = kept + rest * other_rounding(squared, residual, MIDPOINT_MARGIN_OF_ALL);
    return differ(sum, other_sum) | (larger(-sum, -0x1p-900) & larger(squared, 0));
#else
    (void)g, (void)squared, (void)kept, (void)rest, (void)sum;
    return ALL_LANES;
#endif
}

/* p - a / (v_hat ** 0.5 + eps): with the other neighbour of the root, 1 ulp away, the quotient changes by less than 3
 * ulp in the other direction. The root is near a midpoint where the residual of its square is nearly as large as the
 * root times half an ulp of it; just below a power of two, neighbours are closer together: hence the - 1. The dividend
 * may be a few ulp off where `divide` was given a tiny number; then the update is so small that it changes only a p
 * smaller than `smallest`. */
INLINE bits uncertain_root(vec v_hat, vec root, vec p, vec update, vec new_p, real smallest) {
#if VECTOR_POWERS
    const vec residual = fused_multiply_add(-root, root, v_hat);
    const vec power_of_two = (vec)(((bits)root - 1) & BITS_OF_POWER_OF_TWO(1024));
    const vec near_midpoint = fused_multiply_add(root * power_of_two, broadcast((1 - 2 * MIDPOINT_MARGIN) * 0x1p-52),
                                                 with_sign(residual, broadcast(-1)));
    const vec factor = broadcast(1) - with_sign(broadcast(0x3p-52), residual);
    const vec other_p = fused_multiply_add(-update, factor, p);
    return (((bits)near_midpoint | larger(-v_hat, -0x1p-240)) & differ(new_p, other_p))
         | larger(-absolute(p), -smallest);
#else
    (void)v_hat, (void)root, (void)p, (void)update, (void)new_p, (void)smallest;
    return ALL_LANES;
#endif
}

/* A mask of where `divide` may overflow, or a root be too large for the margin: no bias is less than 2**-53. */
INLINE bits uncertain_size(vec size) {
#if VECTOR_POWERS
    return larger(size, 0x1p180);
#else
    (void)size;
    return ALL_LANES;
#endif
}

/* One vector of parameters. `unbiased`: bias1 is 1, as it soon becomes: 0.9**n is lost beside it from step 349 on. */
INLINE void adam_vector(real *parameter, const real *gradient, real *m, real *v, const AdamConstants *c,
                        const int unbiased) {
    const vec p = c->shrinkage * load(parameter), g = c->gradient_scale * load(gradient);
    const vec new_m = c->beta1 * load(m) + c->rest1 * g, kept = c->beta2 * load(v);
    vec squared = g * g, new_v = kept + c->rest2 * squared, v_hat = divide(new_v, c->bias2);
    vec root = square_root(v_hat);
    const vec m_hat = unbiased ? new_m : divide(new_m, c->bias1);
    vec update = c->learning_rate * m_hat / (root + c->eps), new_p = p - update;

    const bits uncertain_squares = uncertain_square(g, squared, kept, c->rest2, new_v);
    const bits uncertain_roots = uncertain_root(v_hat, root, p, update, new_p, c->smallest)
                            | uncertain_size(unbiased ? new_v : new_v + new_m * new_m);
    if (__builtin_expect(negative_lanes(uncertain_squares | uncertain_roots), 0)) {
        const int squares = negative_lanes(uncertain_squares);
        for (int lanes = squares; lanes; lanes &= lanes - 1)
            squared[__builtin_ctz(lanes)] = power(g[__builtin_ctz(lanes)], 2);
        new_v = kept + c->rest2 * squared;
        v_hat = new_v / c->bias2.divisor;
        root = square_root(v_hat);
        for (int lanes = squares | negative_lanes(uncertain_roots); lanes; lanes &= lanes - 1)
            root[__builtin_ctz(lanes)] = power(v_hat[__builtin_ctz(lanes)], (real)0.5);
        update = c->learning_rate * (unbiased ? new_m : new_m / c->bias1.divisor) / (root + c->eps);
        new_p = p - update;
    }
    store(m, new_m);
    store(v, new_v);
    store(parameter, new_p);
}
#else
/* A constant in the element type, at most its largest finite number: 0 times that is 0. */
INLINE real constant(double x) { return (real)fmin(fmax(x, -FLT_MAX), FLT_MAX); }

/* Dividing by the biases is left to the constants (Kingma and Ba, end of section 2):
 *     parameter -= rate * m / (v ** 0.5 + eps)     rate = learning_rate * bias2 ** 0.5 / bias1, eps * bias2 ** 0.5 */
typedef struct {
    real beta1, beta2, rest1, rest2, rate, eps, shrinkage, gradient_scale;
} AdamConstants;

INLINE AdamConstants constants_of(const AdamStep *s) {
    return (AdamConstants){
        .beta1 = s->beta1, .beta2 = s->beta2, .rest1 = 1 - s->beta1, .rest2 = 1 - s->beta2,
        .rate = constant(s->learning_rate * sqrt(s->bias2) / s->bias1), .eps = constant(s->eps * sqrt(s->bias2)),
        .shrinkage = constant(s->shrinkage), .gradient_scale = constant(s->gradient_scale),
    };
}

INLINE void adam_vector(real *parameter, const real *gradient, real *m, real *v, const AdamConstants *c,
                        const int unbiased) {
    const vec p = c->shrinkage * load(parameter), g = c->gradient_scale * load(gradient);
    const vec new_m = c->beta1 * load(m) + c->rest1 * g;
    const vec new_v = c->beta2 * load(v) + c->rest2 * g * g;
    const vec update = quotient(c->rate * new_m, root(new_v) + c->eps);
    (void)unbiased;
    store(m, new_m);
    store(v, new_v);
    store(parameter, p - (vec)((bits)update & (new_v != INFINITY))); /* whose estimates are NaN */
}
#endif

/* Whether no gradient is infinite or NaN. */
static int all_finite(int64_t n, const void *x_) {
    const real *x = x_;
    int64_t i = n / LANES * LANES;
    if (any_not_finite(x, LANES, n / LANES)) return 0;
    for (; i < n; i++)
        if (!isfinite(x[i])) return 0;
    return 1;
}

/* sum += x: the gradient of another shard. */
static void add(int64_t n, void *sum_, const void *x_) {
    real *sum = sum_;
    const real *x = x_;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(sum + i, load(sum + i) + load(x + i));
    for (; i < n; i++) sum[i] += x[i];
}

/* Sum of the squares of all gradients, for clipping by their norm. Exact: one after the other, as in the reference. */
static double sum_of_squares(int64_t n, const void *gradients_) {
    const real *gradients = gradients_;
    double total = 0;
    int64_t i = 0;
#if !MICROGPT_EXACT
    enum { BLOCK = 64 * LANES }; /* few enough for the precision of float32 */
    for (; i + BLOCK <= n; i += BLOCK) {
        vec sums[4] = {0};
        for (int64_t j = i; j < i + BLOCK; j += 4 * LANES)
            for (int k = 0; k < 4; k++) {
                const vec g = load(gradients + j + k * LANES);
                sums[k] += g * g;
            }
        const vec sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        for (int lane = 0; lane < LANES; lane++) total += sum[lane];
    }
    if (!(total > 1e-25 && total < INFINITY)) i = 0, total = 0; /* some are 0 or infinite: in float64 */
#endif
    for (; i < n; i++) total += (double)gradients[i] * gradients[i];
    return total;
}

static void adam(int64_t n, void *parameters_, const void *gradients_, void *m_, void *v_, const AdamStep *s) {
    real *parameters = parameters_, *m = m_, *v = v_;
    const real *gradients = gradients_;
    const AdamConstants c = constants_of(s);
    const int unbiased = MICROGPT_EXACT && s->bias1 == 1;
    int64_t i = 0;
    if (unbiased)
        for (; i + LANES <= n; i += LANES) adam_vector(parameters + i, gradients + i, m + i, v + i, &c, 1);
    else
        for (; i + LANES <= n; i += LANES) adam_vector(parameters + i, gradients + i, m + i, v + i, &c, 0);
    if (i < n) {
        const size_t rest = (n - i) * sizeof(real);
        real last[4][LANES] = {0};
        memcpy(last[0], parameters + i, rest), memcpy(last[1], gradients + i, rest);
        memcpy(last[2], m + i, rest), memcpy(last[3], v + i, rest);
        adam_vector(last[0], last[1], last[2], last[3], &c, 0);
        memcpy(parameters + i, last[0], rest), memcpy(m + i, last[2], rest), memcpy(v + i, last[3], rest);
    }
}
