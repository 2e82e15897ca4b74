/* The exponential function for x <= 0, which is what softmax needs after it has subtracted the maximum; in float32, the
 * logarithm, too. Contracts as in numerics.h. */
#pragma once

#include "numerics.h"

#if VECTOR_POWERS
/* 2 ** (j / 16): its rounding, and the residual. */
static const double power_of_two[16] = {
    0x1.0000000000000p+0, 0x1.0b5586cf9890fp+0, 0x1.172b83c7d517bp+0, 0x1.2387a6e756238p+0,
    0x1.306fe0a31b715p+0, 0x1.3dea64c123422p+0, 0x1.4bfdad5362a27p+0, 0x1.5ab07dd485429p+0,
    0x1.6a09e667f3bcdp+0, 0x1.7a11473eb0187p+0, 0x1.8ace5422aa0dbp+0, 0x1.9c49182a3f090p+0,
    0x1.ae89f995ad3adp+0, 0x1.c199bdd85529cp+0, 0x1.d5818dcfba487p+0, 0x1.ea4afa2a490dap+0,
};
static const double power_of_two_residual[16] = {
    0x0.0p+0, 0x1.8a62e4adc610bp-54, -0x1.19041b9d78a76p-55, 0x1.9b07eb6c70573p-54,
    0x1.6f46ad23182e4p-55, 0x1.ada0911f09ebcp-55, 0x1.d4397afec42e2p-56, 0x1.6324c054647adp-54,
    -0x1.bdd3413b26456p-54, -0x1.41577ee04992fp-55, 0x1.6e9f156864b27p-54, 0x1.c7c46b071f2bep-56,
    0x1.7a1cd345dcc81p-54, 0x1.11065895048ddp-55, 0x1.2ed02d75b3707p-55, -0x1.e9c23179c2893p-54,
};

/* exp(x) for -40 <= x <= 0; any bits outside. x = (k / 16) log 2 + r, so exp(x) = 2 ** (k / 16) * exp(r), with the
 * Taylor series of exp for r, which is at most log(2) / 32. The residual is exact to 2**-10 ulp; glibc's exp is within
 * 0.509 ulp (the comment in its exp_data.c). */
INLINE DoubleDouble precise_exponential(vec x) {
    const vec shift = broadcast(0x1.8p52); /* its addition rounds to a whole number, in the lowest bits */
    const vec shifted = x * 0x1.71547652b82fep+4 + shift, k = shifted - shift;
    const vec reduced = fused_multiply_add(k, broadcast(-0x1.62e42fefa2000p-5), x); /* exact, as is the product */
    const DoubleDouble remainder = fast_two_sum(reduced, k * -0x1.9ef35793c7673p-45);
    const vec r = remainder.value, r_residual = remainder.residual;
    const bits index = (bits)shifted & 15;
    const vec power = look_up_16(power_of_two, index), power_residual = look_up_16(power_of_two_residual, index);

    vec series = fused_multiply_add(r, broadcast(1. / 40320), broadcast(1. / 5040));
    series = fused_multiply_add(series, r, broadcast(1. / 720));
    series = fused_multiply_add(series, r, broadcast(1. / 120));
    series = fused_multiply_add(series, r, broadcast(1. / 24));
    series = fused_multiply_add(series, r, broadcast(1. / 6));
    series = fused_multiply_add(series, r, broadcast(0.5));
    const vec beyond_r = fused_multiply_add(series, r * r, r_residual);

    const DoubleDouble first = two_product(power, r), sum = fast_two_sum(power, first.value);
    const vec small = fused_multiply_add(power, beyond_r, fused_multiply_add(power_residual, r, power_residual));
    const DoubleDouble result = fast_two_sum(sum.value, sum.residual + (first.residual + small));
    const vec scale = (vec)(((unsigned_bits)shifted >> 4 << EXPONENT_SHIFT) + (real_unsigned)BITS_OF_POWER_OF_TWO(0));
    return (DoubleDouble){result.value * scale, result.residual * scale};
}

/* exp(x) for x <= 0, NaN for NaN: the bits of the C library, called where the result is uncertain or x < -40. */
INLINE vec exponential(vec x) {
    DoubleDouble result = precise_exponential(x);
    int uncertain = negative_lanes(near_midpoint(result) | larger(-x, 40));
    for (; __builtin_expect(uncertain, 0); uncertain &= uncertain - 1)
        result.value[__builtin_ctz(uncertain)] = exp(x[__builtin_ctz(uncertain)]);
    return result.value;
}
#elif MICROGPT_EXACT
INLINE vec exponential(vec x) {
    for (int i = 0; i < LANES; i++) x[i] = exp(x[i]);
    return x;
}
#else
/* exp(x) for x <= 0: relative error about 1e-7; for x < -86.6, where exp(x) < 2**-124, it may be 0; NaN for NaN.
 * x = k log 2 + r, with a polynomial for the exponential of r, which is at most log(2) / 2: its relative error is at
 * most 3e-9, the least that six coefficients can have (by Remez's algorithm). */
INLINE vec exponential(vec x) {
    const vec shift = broadcast(0x1.8p23f); /* its addition rounds to a whole number, in the lowest bits */
#ifdef SCALE_BY_POWER_OF_TWO
    x = larger_of(broadcast(-200), x);
#endif
    const vec shifted = x * 0x1.715476p+0f + shift, k = shifted - shift;
    const vec r = fused_multiply_add(k, broadcast(-0x1.7f7d1cp-20f), fused_multiply_add(k, broadcast(-0x1.62e4p-1f), x));
    vec series = fused_multiply_add(r, broadcast(1.4061240e-3f), broadcast(8.3790112e-3f));
    series = fused_multiply_add(series, r, broadcast(4.16647773e-2f));
    series = fused_multiply_add(series, r, broadcast(0.166663654f));
    series = fused_multiply_add(series, r, broadcast(0.500000043f));
    series = fused_multiply_add(series, r, broadcast(1));
    const vec power = fused_multiply_add(series, r, broadcast(1));
#ifdef SCALE_BY_POWER_OF_TWO
    return SCALE_BY_POWER_OF_TWO(power, k);
#else
    const vec scale = (vec)(((unsigned_bits)shifted << 23) + 0x3f800000);
    return (vec)((bits)(power * scale) & ~(x < -86.6f));
#endif
}

/* log(x) for finite x >= 1: error about 1e-7. Infinity and NaN give finite numbers.
 * x = 2 ** k * m with m around 1, and the series of log(m) = 2 artanh((m - 1) / (m + 1)). */
INLINE vec logarithm(vec x) {
    const bits exponent = ((bits)x - 0x3f3504f3) >> 23; /* m from sqrt(0.5) */
    const vec m = (vec)((bits)x - (exponent << 23)), z = (m - 1) / (m + 1), square = z * z;
    vec series = fused_multiply_add(square, broadcast(2.f / 9), broadcast(2.f / 7));
    series = fused_multiply_add(series, square, broadcast(2.f / 5));
    series = fused_multiply_add(series, square, broadcast(2.f / 3));
    series = fused_multiply_add(series, square, broadcast(2));
    return fused_multiply_add(__builtin_convertvector(exponent, vec), broadcast(0x1.62e43p-1f), series * z);
}
#endif
