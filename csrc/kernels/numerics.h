/* Elementary functions under the two policies.
 *
 * float64 gives the bits of CPython, which calls the C library: `a / b` between Values is a * pow(b, -1), `x ** 2` is
 * pow(x, 2), and the library's pow is not correctly rounded. Compile with -fno-builtin-pow, or the compiler turns
 * pow(x, 2) into x * x and pow(x, -1) into 1 / x.
 */
#pragma once

#include "vector.h"

#if MICROGPT_EXACT
INLINE real power(real x, real exponent) { return pow(x, exponent); }
#else
INLINE real power(real x, real exponent) { return powf(x, exponent); }
#endif

/* --- pow in vectors -------------------------------------------------------------------------------------------------
 *
 * glibc's pow is within 0.509 units in the last place for results of moderate size, on processors with fused
 * multiply-add (the comment in its e_pow.c states and derives the bound). So it can differ from the correctly rounded
 * x * x or square root only where the exact result lies that close to the midpoint between two neighbours. The
 * residual, which one fused multiply-add gives exactly, tells where: with the margin below, in 2.5 % of all cases.
 */
#if MICROGPT_EXACT && defined(__GLIBC__) && (defined(__FMA__) || defined(__aarch64__))
#define VECTOR_POWERS 1

/* Units in the last place: 0.009, and 4e-5 for each unit of |log(result)| up to 87, hence the range. */
#define MIDPOINT_MARGIN 0.0125
#define LARGEST_POWER 0x1p120

enum { EXPONENT_SHIFT = 52, EXPONENT_BIAS = 1023 };
#define BITS_OF_POWER_OF_TWO(e) ((real_bits)(EXPONENT_BIAS + (e)) << EXPONENT_SHIFT)

/* Each of the following answers in the sign bit of every lane; the other bits mean nothing. */

/* Whether value + residual / scale, value being its rounding, is near a midpoint, or 0 < value * scale < 2**-120. Just
 * below a power of two neighbours are closer, hence the - 1. For value 0, never. */
INLINE bits near_midpoint(vec value, vec residual, vec scale) {
    const bits exponent = ((bits)value - 1) & BITS_OF_POWER_OF_TWO(1024);
    const vec limit = fused_multiply_add((vec)exponent * ((0.5 - MIDPOINT_MARGIN) * 0x1p-52), scale,
                                         broadcast(-0x1p-174));
    return (bits)(limit - absolute(residual));
}

INLINE bits differ(vec a, vec b) {
    const bits difference = (bits)a ^ (bits)b;
    return difference | -difference;
}

INLINE bits larger(vec a, real b) { return (bits)(b - a); }

/* Where value + residual is near a midpoint, the neighbour of value on its other side. */
INLINE vec neighbour(vec value, vec residual) { return fused_multiply_add(residual, broadcast(2), value); }

/* a / b, correctly rounded, from b's rounded reciprocal (Markstein, 1990): each step takes out the error of the one
 * before, and the last starts from a quotient that is at most one unit off. For 0 < |a| < 2**-900 the errors cannot be
 * represented, and the result may be a few units off. */
INLINE vec divide(vec a, real b, real reciprocal) {
    const vec divisor = broadcast(-b), r = broadcast(reciprocal);
    vec quotient = a * r;
    quotient = fused_multiply_add(fused_multiply_add(quotient, divisor, a), r, quotient);
    return fused_multiply_add(fused_multiply_add(quotient, divisor, a), r, quotient);
}

/* A number as its rounding and what is left over, much more exactly than one vector could hold it. */
typedef struct {
    vec value, residual;
} DoubleDouble;

INLINE DoubleDouble fast_two_sum(vec large, vec small) {
    const vec value = large + small;
    return (DoubleDouble){value, small - (value - large)};
}

INLINE DoubleDouble two_product(vec a, vec b) {
    const vec value = a * b;
    return (DoubleDouble){value, fused_multiply_add(a, b, -value)};
}

/* x ** -1: a quotient, and what it lacks */
INLINE DoubleDouble precise_reciprocal(vec x) {
    const vec quotient = 1 / x;
    return fast_two_sum(quotient, quotient * fused_multiply_add(-quotient, x, broadcast(1)));
}

/* x ** -2 */
INLINE DoubleDouble precise_reciprocal_square(vec x) {
    const DoubleDouble square = two_product(x, x);
    const vec quotient = 1 / square.value;
    const vec error = fused_multiply_add(-quotient, square.value, broadcast(1)) - quotient * square.residual;
    return fast_two_sum(quotient, quotient * error);
}

/* For root near x ** -0.5, e such that root * (1 + e) is it, up to e ** 2 */
INLINE vec error_of_reciprocal_root(vec root, vec x) {
    const DoubleDouble square = two_product(root, root);
    return 0.5 * (fused_multiply_add(-square.value, x, broadcast(1)) - square.residual * x);
}

/* x ** -0.5 */
INLINE DoubleDouble precise_reciprocal_root(vec x) {
    const vec root = 1 / square_root(x);
    return fast_two_sum(root, root * error_of_reciprocal_root(root, x));
}

/* x ** -1.5 */
INLINE DoubleDouble precise_reciprocal_cubed_root(vec x) {
    const vec root = 1 / square_root(x);
    const DoubleDouble square = two_product(root, root), cube = two_product(square.value, root);
    const vec error = cube.residual + square.residual * root;
    return fast_two_sum(cube.value, error + 3 * cube.value * error_of_reciprocal_root(root, x));
}

#define POWER(name, exponent) \
    INLINE vec name(vec x) { \
        DoubleDouble result = precise_##name(x); \
        int uncertain = negative_lanes(near_midpoint(result.value, result.residual, broadcast(1)) | larger(x, 0x1p60)); \
        for (; __builtin_expect(uncertain, 0); uncertain &= uncertain - 1) \
            result.value[__builtin_ctz(uncertain)] = power(x[__builtin_ctz(uncertain)], exponent); \
        return result.value; \
    }
#else
#define VECTOR_POWERS 0
INLINE vec divide(vec a, real b, real reciprocal) { return (void)reciprocal, a / b; }
#endif

#if MICROGPT_EXACT && !VECTOR_POWERS
#define POWER(name, exponent) \
    INLINE vec name(vec x) { \
        for (int i = 0; i < LANES; i++) x[i] = power(x[i], exponent); \
        return x; \
    }
#elif !MICROGPT_EXACT
/* Where the processor divides slowly and estimates quickly, one step of Newton's method makes 24 bits of 14. */
#ifdef RECIPROCAL_ESTIMATE
INLINE vec quotient(vec a, vec b) {
    const vec estimate = RECIPROCAL_ESTIMATE(b);
    return a * (estimate * (2 - b * estimate));
}
INLINE vec root(vec x) { /* of a number so small that its reciprocal is none, the root of a slightly larger one */
    x = larger_of(x, broadcast(0x1p-120f));
    const vec estimate = RECIPROCAL_ROOT_ESTIMATE(x), near = x * estimate;
    return near * ((real)1.5 - (real)0.5 * near * estimate);
}
#else
INLINE vec quotient(vec a, vec b) { return a / b; }
INLINE vec root(vec x) { return square_root(x); }
#endif

INLINE vec fast_reciprocal(vec x) { return 1 / x; }
INLINE vec fast_reciprocal_square(vec x) { return 1 / (x * x); }
INLINE vec fast_reciprocal_root(vec x) { return 1 / square_root(x); }
INLINE vec fast_reciprocal_cubed_root(vec x) { return 1 / (x * square_root(x)); }
#define POWER(name, exponent) \
    INLINE vec name(vec x) { return fast_##name(x); }
#endif

/* x ** exponent for x >= 1e-5: the power is at most 2**34, and where it may be less than 2**-120, the C library's. */
POWER(reciprocal, -1)
POWER(reciprocal_square, -2)
POWER(reciprocal_root, (real)-0.5)
POWER(reciprocal_cubed_root, (real)-1.5)
