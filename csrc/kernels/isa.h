/* The instruction sets that kernels.c is compiled for on this architecture, and the search for the kernels of one.
 * setup.py compiles exactly these. */
#pragma once

#include <string.h>

#include "cpu.h"
#include "interface.h"

/* The kernels for one instruction set. */
typedef struct {
    const Kernels *float64, *float32;
    int is_supported; /* by this processor */
} Variant;

#define DECLARE(name) extern const Kernels microgpt_kernels_float64_##name, microgpt_kernels_float32_##name;
#define VARIANT(name, is_supported) {&microgpt_kernels_float64_##name, &microgpt_kernels_float32_##name, is_supported}

#if defined(__x86_64__)
DECLARE(avx512)
DECLARE(avx2)
DECLARE(baseline)
#elif defined(__aarch64__)
DECLARE(neon)
#elif defined(__wasm__)
DECLARE(simd128)
#else
DECLARE(baseline)
#endif

/* The i-th of those that this processor supports, best first; NULLs beyond the last. */
static inline Variant supported_variant(int i) {
#if defined(__x86_64__)
    const Variant variants[] = {VARIANT(avx512, has_avx512()), VARIANT(avx2, has_avx2()), VARIANT(baseline, 1),
                                {NULL, NULL, 0}};
#elif defined(__aarch64__)
    const Variant variants[] = {VARIANT(neon, 1), {NULL, NULL, 0}};
#elif defined(__wasm__)
    const Variant variants[] = {VARIANT(simd128, 1), {NULL, NULL, 0}};
#else
    const Variant variants[] = {VARIANT(baseline, 1), {NULL, NULL, 0}};
#endif
    const Variant *variant = variants;
    for (; variant->float64; variant++)
        if (variant->is_supported && i-- == 0) break;
    return *variant;
}

/* The name of the i-th instruction set that this processor supports, best first; NULL beyond the last. */
static inline const char *instruction_set_name(int i) {
    const Variant variant = supported_variant(i);
    return variant.float64 ? variant.float64->instruction_set : NULL;
}

/* The kernels for an instruction set, in float64 if `exact`, else in float32; NULL where it is not supported. */
static inline const Kernels *find_kernels(const char *instruction_set, int exact) {
    const char *name;
    for (int i = 0; (name = instruction_set_name(i)); i++)
        if (strcmp(name, instruction_set) == 0)
            return exact ? supported_variant(i).float64 : supported_variant(i).float32;
    return NULL;
}

/* The pair of kernels of an operation; NULL where there is none of this name. */
static inline const Kernel *find_kernel(const Kernels *kernels, const char *name) {
    const Kernel *kernel = kernels->operations;
    while (kernel->name && strcmp(kernel->name, name) != 0) kernel++;
    return kernel->name ? kernel : NULL;
}
