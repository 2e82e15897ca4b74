/* Peak rates of the machine: loops in registers only, by which `microgpt bench` divides its timings. */
#pragma once

#include "vector.h"

enum { PEAK_SUMS = 12, PEAK_ROOTS = 4 }; /* enough independent vectors to hide every latency */

/* Hides a value from the optimizer, which would otherwise compute the loop's result in advance: wherever it is, it may
 * have changed. */
#if defined(__x86_64__)
#define OPAQUE(v) __asm__ volatile("" : "+x"(v))
#elif defined(__aarch64__)
#define OPAQUE(v) __asm__ volatile("" : "+w"(v))
#else
#define OPAQUE(v) __asm__ volatile("" : "+m"(v))
#endif

static double multiply_add_loop(int64_t iterations) {
    vec sums[PEAK_SUMS], factor = broadcast((real)0.999), term = broadcast((real)1e-3);
    OPAQUE(factor);
    OPAQUE(term);
    for (int i = 0; i < PEAK_SUMS; i++) sums[i] = broadcast((real)i);
    for (int64_t n = 0; n < iterations; n++)
#pragma GCC unroll 12
        for (int i = 0; i < PEAK_SUMS; i++) sums[i] = sums[i] * factor + term;
    for (int i = 1; i < PEAK_SUMS; i++) sums[0] += sums[i];
    return sums[0][0];
}

static double divide_root_loop(int64_t iterations) {
    vec values[PEAK_ROOTS], one = broadcast(1);
    OPAQUE(one);
    for (int i = 0; i < PEAK_ROOTS; i++) values[i] = broadcast((real)(i + 2));
    for (int64_t n = 0; n < iterations; n++)
#pragma GCC unroll 4
        for (int i = 0; i < PEAK_ROOTS; i++) values[i] = one / square_root(values[i]);
    for (int i = 1; i < PEAK_ROOTS; i++) values[0] += values[i];
    return values[0][0];
}
