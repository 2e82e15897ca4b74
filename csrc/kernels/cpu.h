/* The vectors that an x86-64 processor has and its system lets programs use. __builtin_cpu_supports tells the same, from
 * a library that clang-cl does not link with. */
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>

/* The registers that the system saves when it switches to another program, as bits. */
static inline unsigned saved_registers(void) {
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

enum {
    AVX_REGISTERS = 0x06,
#if defined(__APPLE__) /* saves the others, too, once a program has used them */
    AVX512_REGISTERS = AVX_REGISTERS,
#else
    AVX512_REGISTERS = 0xe6,
#endif
};

/* Whether all these bits are set in the word that tells of AVX2 and AVX-512, there is FMA, and `registers` are saved. */
static inline int has_vectors(unsigned bits, unsigned registers) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE) || !(c & bit_FMA)) return 0;
    if ((saved_registers() & registers) != registers) return 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bits) == bits;
}

/* With FMA, which is a feature of its own. */
static inline int has_avx2(void) { return has_vectors(bit_AVX2, AVX_REGISTERS); }

/* With what the kernels use of its extensions. */
static inline int has_avx512(void) {
    return has_vectors(bit_AVX2 | bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL, AVX512_REGISTERS);
}
#endif
