/* Powers and divisions under the two policies.
 *
 * float64 gives the bits of CPython, which calls the C library: `a / b` between Values is a * pow(b, -1), `x ** 2` is
 * pow(x, 2), and the library's pow is not correctly rounded. Compile with -fno-builtin-pow, or the compiler turns
 * pow(x, 2) into x * x and pow(x, -1) into 1 / x.
 *
 * Contracts name the domain of a function, its error in ulp (units in the last place of the result), and what it gives
 * outside the domain.
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
 * glibc's pow is within 0.509 ulp for results of moderate size, on processors with fused multiply-add (the comment in
 * its e_pow.c states and derives the bound). So it can differ from a correctly rounded power only where the exact
 * result lies that close to the midpoint between two neighbours. The residual, which one fused multiply-add gives
 * exactly, shows where: with the margin below, in 2.5 % of all cases. There, and only there, the library's pow is
 * called.
 */
#if MICROGPT_EXACT && defined(__GLIBC__) && (defined(__FMA__) || defined(__aarch64__))
#define VECTOR_POWERS 1

/* In ulp: 0.009, and 4e-5 for each unit of |log(result)|, which is at most 87 from 2**-125 to 2**125. */
#define MIDPOINT_MARGIN 0.0125
#define MIDPOINT_MARGIN_OF_ALL 0.04 /* for every finite result, down to the smallest */

enum { EXPONENT_SHIFT = 52, EXPONENT_BIAS = 1023 };
#define BITS_OF_POWER_OF_TWO(e) ((real_bits)(EXPONENT_BIAS + (e)) << EXPONENT_SHIFT)

/* The neighbour of value where the exact result, value + residual, is near the midpoint between the two; elsewhere
 * value itself: a residual that is a little larger still rounds to value. */
INLINE vec other_rounding(vec value, vec residual, double margin) {
    return fused_multiply_add(residual, broadcast(0.5 / (0.5 - margin)), value);
}

/* The next two return masks: only the sign bit of each lane is meaningful. */

/* A mask of where a and b differ in any bit. */
INLINE bits differ(vec a, vec b) {
    const bits difference = (bits)a ^ (bits)b;
    return difference | -difference;
}

/* A mask of where a > b; anything for NaN. */
INLINE bits larger(vec a, real b) { return (bits)(b - a); }

/* A divisor for `divide`, with its rounded reciprocal, and the residual of that. */
typedef struct {
    real divisor, reciprocal, residual;
} Divisor;

INLINE Divisor divisor_of(real x) {
    const real reciprocal = 1 / x;
    return (Divisor){x, reciprocal, fma(-reciprocal, x, 1) * reciprocal};
}

/* a / d from a quotient that is less than 1 ulp off, and whose error the last step removes (Markstein, 1990). Correctly
 * rounded for a = 0 and |a| >= 2**-900, while the quotient does not overflow. For smaller |a| the error cannot be
 * represented, and the result may be a few ulp off. */
INLINE vec divide(vec a, Divisor d) {
    const vec reciprocal = broadcast(d.reciprocal);
    const vec quotient = fused_multiply_add(a, reciprocal, a * d.residual);
    return fused_multiply_add(fused_multiply_add(quotient, broadcast(-d.divisor), a), reciprocal, quotient);
}

/* A number as the unevaluated sum of its rounding and a residual (Dekker, 1971): about twice the digits. */
typedef struct {
    vec value, residual;
} DoubleDouble;

/* A mask, in the sign bits, of where it is near the midpoint between its value and a neighbour. */
INLINE bits near_midpoint(DoubleDouble x) {
    return differ(x.value, other_rounding(x.value, x.residual, MIDPOINT_MARGIN));
}

/* large + small exactly, where |large| >= |small| or large is 0 (Dekker, 1971). */
INLINE DoubleDouble fast_two_sum(vec large, vec small) {
    const vec value = large + small;
    return (DoubleDouble){value, small - (value - large)};
}

/* a * b exactly, unless it overflows or its residual is subnormal. */
INLINE DoubleDouble two_product(vec a, vec b) {
    const vec value = a * b;
    return (DoubleDouble){value, fused_multiply_add(a, b, -value)};
}

/* x ** -1: a quotient and its error; here and below, up to the square of that error. */
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

/* The relative error e of a root near x ** -0.5: x ** -0.5 = root * (1 + e), up to terms in e ** 2. */
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
        int uncertain = negative_lanes(near_midpoint(result) | larger(x, 0x1p60)); \
        for (; __builtin_expect(uncertain, 0); uncertain &= uncertain - 1) \
            result.value[__builtin_ctz(uncertain)] = power(x[__builtin_ctz(uncertain)], exponent); \
        return result.value; \
    }
#else
#define VECTOR_POWERS 0
typedef struct {
    real divisor;
} Divisor;
INLINE Divisor divisor_of(real x) { return (Divisor){x}; }
INLINE vec divide(vec a, Divisor d) { return a / d.divisor; }
#endif

#if MICROGPT_EXACT && !VECTOR_POWERS
#define POWER(name, exponent) \
    INLINE vec name(vec x) { \
        for (int i = 0; i < LANES; i++) x[i] = power(x[i], exponent); \
        return x; \
    }
#elif !MICROGPT_EXACT
/* quotient: a / b for normal b whose reciprocal is normal. root: x ** 0.5 for x >= 0. Where the processor divides
 * slowly and estimates quickly, one step of Newton's method turns an estimate's 14 bits into nearly 24, and gives NaN
 * where the estimate is 0 or infinite. Elsewhere both are correctly rounded. */
#ifdef RECIPROCAL_ESTIMATE
INLINE vec quotient(vec a, vec b) {
    const vec estimate = RECIPROCAL_ESTIMATE(b);
    return a * (estimate * (2 - b * estimate));
}
INLINE vec root(vec x) { /* below 2**-120, where the reciprocal may overflow, the root of 2**-120 */
    x = larger_of(x, broadcast(0x1p-120f));
    const vec estimate = RECIPROCAL_ROOT_ESTIMATE(x), near = x * estimate;
    return near * ((real)1.5 - (real)0.5 * near * estimate);
}
INLINE vec fast_reciprocal_root(vec x) {
    const vec estimate = RECIPROCAL_ROOT_ESTIMATE(x);
    return estimate * ((real)1.5 - (real)0.5 * x * estimate * estimate);
}
#else
INLINE vec quotient(vec a, vec b) { return a / b; }
INLINE vec root(vec x) { return square_root(x); }
INLINE vec fast_reciprocal_root(vec x) { return 1 / square_root(x); }
#endif

INLINE vec fast_reciprocal(vec x) { return 1 / x; }
INLINE vec fast_reciprocal_square(vec x) { return 1 / (x * x); }
INLINE vec fast_reciprocal_cubed_root(vec x) {
    const vec root = fast_reciprocal_root(x);
    return root * root * root;
}
#define POWER(name, exponent) \
    INLINE vec name(vec x) { return fast_##name(x); }
#endif

/* x ** exponent for x >= 1e-5, as all that is normalized here is: the power is at most 2**34. float64: the bits of the
 * C library's pow, which is called where the result is uncertain or x is above 2**60. float32: within 2 ulp, the cubed
 * root within 6. NaN for NaN. */
POWER(reciprocal, -1)
POWER(reciprocal_square, -2)
POWER(reciprocal_root, (real)-0.5)
POWER(reciprocal_cubed_root, (real)-1.5)
