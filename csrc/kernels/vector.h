/* The element type, its vectors and its arithmetic policy, for the instruction set this file is compiled for.
 *
 * float64 is exact: a multiply and an add, each rounded (-ffp-contract=off), sums in the order of the reference.
 * float32 is fast: the compiler fuses multiply and add (-ffp-contract=fast).
 */
#pragma once

#include <math.h>
#include <string.h>

#include "interface.h"

#if MICROGPT_EXACT
typedef double real;
typedef int64_t real_bits;
#else
typedef float real;
typedef int32_t real_bits;
#endif

/* A tile of a matrix product keeps at most TILE_ROWS x TILE_LINES lines of sums in registers. */
#if defined(__AVX512F__)
enum { VECTOR_BYTES = 64, TILE_LINES = 4, TILE_ROWS = 8 };
#elif defined(__AVX__)
enum { VECTOR_BYTES = 32, TILE_LINES = 1, TILE_ROWS = 6 };
#elif defined(__aarch64__)
enum { VECTOR_BYTES = 16, TILE_LINES = 1, TILE_ROWS = 6 };
#else
enum { VECTOR_BYTES = 16, TILE_LINES = 1, TILE_ROWS = 3 };
#endif

enum {
    LINE = LINE_BYTES / sizeof(real),       /* elements in a line, the unit of padding */
    LANES = VECTOR_BYTES / sizeof(real),    /* elements in a vector */
    LINE_VECTORS = LINE / LANES,
};

typedef real vec __attribute__((vector_size(VECTOR_BYTES)));
typedef real_bits bits __attribute__((vector_size(VECTOR_BYTES)));
typedef real unaligned_vec __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));

#define INLINE static inline __attribute__((always_inline))

INLINE vec load(const real *p) { return *(const unaligned_vec *)p; }
INLINE void store(real *p, vec v) { *(unaligned_vec *)p = v; }
INLINE vec broadcast(real x) { return x - (vec){0}; } /* x - 0 is x to the bit, x + 0 is not for x = -0 */

INLINE vec square_root(vec v) {
    for (int i = 0; i < LANES; i++) v[i] = sizeof(real) == 8 ? sqrt(v[i]) : sqrtf(v[i]);
    return v;
}

INLINE vec where_positive(vec condition, vec v) { return (vec)((condition > (vec){0}) & (bits)v); } /* else +0 */

INLINE int64_t lines(int64_t n) { return (n + LINE - 1) / LINE; }
INLINE int64_t stride(int64_t n) { return lines(n) * LINE; }
INLINE int64_t minimum(int64_t a, int64_t b) { return a < b ? a : b; }

