/* The instruction-set levels that kernels.c is compiled for on this architecture, best first, and which of them this
 * processor has. setup.py compiles exactly these. */
#pragma once

#include "interface.h"

#if defined(__x86_64__)
extern const Kernels microgpt_kernels_float64_avx512, microgpt_kernels_float64_avx2, microgpt_kernels_float64_baseline;
#elif defined(__aarch64__)
extern const Kernels microgpt_kernels_float64_neon;
#else
extern const Kernels microgpt_kernels_float64_baseline;
#endif

/* Level i, best first, NULL past the last; `supported` says whether this processor runs it. */
static inline const Kernels *microgpt_level(int i, int *supported) {
    *supported = 1;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (i == 0) {
        *supported = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")
                     && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")
                     && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
        return &microgpt_kernels_float64_avx512;
    }
    if (i == 1) {
        *supported = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
        return &microgpt_kernels_float64_avx2;
    }
    return i == 2 ? &microgpt_kernels_float64_baseline : NULL;
#elif defined(__aarch64__)
    return i == 0 ? &microgpt_kernels_float64_neon : NULL;
#else
    return i == 0 ? &microgpt_kernels_float64_baseline : NULL;
#endif
}
