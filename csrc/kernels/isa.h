/* The instruction-set levels that kernels.c is compiled for on this architecture, best first, and which of them this
 * processor has. setup.py compiles exactly these. */
#pragma once

#include "interface.h"

#define VARIANT(name, is_supported) {&microgpt_kernels_float64_##name, &microgpt_kernels_float32_##name, is_supported}
#define DECLARE(name) extern const Kernels microgpt_kernels_float64_##name, microgpt_kernels_float32_##name;

typedef struct {
    const Kernels *float64, *float32;
    int supported;
} Variant;

#if defined(__x86_64__)
DECLARE(avx512)
DECLARE(avx2)
#elif defined(__aarch64__)
DECLARE(neon)
#endif
#if !defined(__aarch64__)
DECLARE(baseline)
#endif

/* Variant i, best first; its kernels are NULL past the last. */
static inline Variant microgpt_variant(int i) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")
                       && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    const Variant variants[] = {VARIANT(avx512, avx512), VARIANT(avx2, avx2), VARIANT(baseline, 1), {NULL, NULL, 0}};
#elif defined(__aarch64__)
    const Variant variants[] = {VARIANT(neon, 1), {NULL, NULL, 0}};
#else
    const Variant variants[] = {VARIANT(baseline, 1), {NULL, NULL, 0}};
#endif
    return variants[i];
}
