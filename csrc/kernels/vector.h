/* The element type, its vectors and its arithmetic policy, for the instruction set this file is compiled for.
 *
 * float64 is exact: a multiply and an add, each rounded (-ffp-contract=off), sums in the order of the reference.
 * float32 is fast: the compiler fuses multiply and add (-ffp-contract=fast).
 */
#pragma once

#include <float.h>
#include <math.h>
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#include <string.h>

#include "arithmetic.h"
#include "interface.h"

#if MICROGPT_EXACT
typedef double real;
typedef int64_t real_bits;
typedef uint64_t real_unsigned;
#define REAL_BYTES 8
#else
typedef float real;
typedef int32_t real_bits;
typedef uint32_t real_unsigned;
#define REAL_BYTES 4
#endif

/* A tile of a matrix product keeps at most TILE_ROWS x TILE_LINES lines of sums in registers. */
#if defined(__AVX512F__)
#define VECTOR_BYTES 64
enum { TILE_LINES = 4, TILE_ROWS = 16 };
#elif defined(__AVX__)
#define VECTOR_BYTES 32
enum { TILE_LINES = 1, TILE_ROWS = 6 };
#elif defined(__aarch64__)
#define VECTOR_BYTES 16
enum { TILE_LINES = 1, TILE_ROWS = 6 };
#else
#define VECTOR_BYTES 16
enum { TILE_LINES = 1, TILE_ROWS = 3 };
#endif

#define LANES (VECTOR_BYTES / REAL_BYTES)   /* elements in a vector */
enum {
    LINE = LINE_BYTES / REAL_BYTES,         /* elements in a line, the task of padding */
    LINE_VECTORS = LINE / LANES,
};

typedef real vec __attribute__((vector_size(VECTOR_BYTES)));
typedef real_bits bits __attribute__((vector_size(VECTOR_BYTES)));
typedef real_unsigned unsigned_bits __attribute__((vector_size(VECTOR_BYTES))); /* where sums may wrap around */
typedef real unaligned_vec __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));

#define INLINE static inline __attribute__((always_inline))

/* Loads and stores need no alignment. */
INLINE vec load(const real *p) { return *(const unaligned_vec *)p; }
INLINE void store(real *p, vec v) { *(unaligned_vec *)p = v; }

/* Numbers of other types, one for each lane. */
typedef double doubles __attribute__((vector_size(LANES * 8), aligned(8), may_alias));
typedef int32_t integers __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
INLINE vec from_doubles(const double *p) { return __builtin_convertvector(*(const doubles *)p, vec); }
INLINE bits from_integers(const int32_t *p) { return __builtin_convertvector(*(const integers *)p, bits); }

/* How many lines hold n elements. */
INLINE int64_t lines_for(int64_t n) { return (n + LINE - 1) / LINE; }
INLINE int64_t minimum(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE vec broadcast(real x) { return x - (vec){0}; } /* x - 0 is x to the bit, x + 0 is not for x = -0 */
/* By their sign bits, so for every number, infinity and NaN. */
INLINE vec absolute(vec v) { return (vec)((bits)v & ~(bits)broadcast((real)-0.0)); }
INLINE vec with_sign(vec v, vec sign) { /* v >= 0 */
    return (vec)((bits)v | ((bits)sign & (bits)broadcast((real)-0.0)));
}
#define ALL_LANES ((bits){0} - 1) /* a mask with every lane set */

INLINE vec where_positive(vec condition, vec v) { return (vec)((condition > (vec){0}) & (bits)v); } /* else +0 */


/* Operations that vector extensions cannot express: intrinsics where there are any, else lane by lane. */
#if defined(__AVX512F__) && MICROGPT_EXACT
#define FUSED_MULTIPLY_ADD(a, b, c) (vec) _mm512_fmadd_pd((__m512d)(a), (__m512d)(b), (__m512d)(c))
#define SQUARE_ROOT(v) (vec) _mm512_sqrt_pd((__m512d)(v))
#define LARGER_OF(a, b) (vec) _mm512_max_pd((__m512d)(a), (__m512d)(b))
#define NEGATIVE_LANES(v) _mm512_movepi64_mask((__m512i)(v))
#define LOOK_UP_16(table, index) \
    (vec) _mm512_permutex2var_pd((__m512d)load(table), (__m512i)(index), (__m512d)load((table) + 8))
#elif defined(__AVX512F__)
#define FUSED_MULTIPLY_ADD(a, b, c) (vec) _mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c))
#define SQUARE_ROOT(v) (vec) _mm512_sqrt_ps((__m512)(v))
#define LARGER_OF(a, b) (vec) _mm512_max_ps((__m512)(a), (__m512)(b))
#define NEGATIVE_LANES(v) _mm512_movepi32_mask((__m512i)(v))
#define RECIPROCAL_ESTIMATE(v) (vec) _mm512_rcp14_ps((__m512)(v))
#define RECIPROCAL_ROOT_ESTIMATE(v) (vec) _mm512_rsqrt14_ps((__m512)(v))
#define SCALE_BY_POWER_OF_TWO(v, exponent) (vec) _mm512_scalef_ps((__m512)(v), (__m512)(exponent))
#elif defined(__AVX2__) && MICROGPT_EXACT
#define FUSED_MULTIPLY_ADD(a, b, c) (vec) _mm256_fmadd_pd((__m256d)(a), (__m256d)(b), (__m256d)(c))
#define SQUARE_ROOT(v) (vec) _mm256_sqrt_pd((__m256d)(v))
#define LARGER_OF(a, b) (vec) _mm256_max_pd((__m256d)(a), (__m256d)(b))
#define NEGATIVE_LANES(v) _mm256_movemask_pd((__m256d)(v))
#elif defined(__AVX2__)
#define FUSED_MULTIPLY_ADD(a, b, c) (vec) _mm256_fmadd_ps((__m256)(a), (__m256)(b), (__m256)(c))
#define SQUARE_ROOT(v) (vec) _mm256_sqrt_ps((__m256)(v))
#define LARGER_OF(a, b) (vec) _mm256_max_ps((__m256)(a), (__m256)(b))
#define NEGATIVE_LANES(v) _mm256_movemask_ps((__m256)(v))
#elif defined(__aarch64__) && MICROGPT_EXACT
#define FUSED_MULTIPLY_ADD(a, b, c) (vec) vfmaq_f64((float64x2_t)(c), (float64x2_t)(a), (float64x2_t)(b))
#define SQUARE_ROOT(v) (vec) vsqrtq_f64((float64x2_t)(v))
#elif defined(__aarch64__)
#define FUSED_MULTIPLY_ADD(a, b, c) (vec) vfmaq_f32((float32x4_t)(c), (float32x4_t)(a), (float32x4_t)(b))
#define SQUARE_ROOT(v) (vec) vsqrtq_f32((float32x4_t)(v))
#endif

/* a * b + c, rounded once. */
INLINE vec fused_multiply_add(vec a, vec b, vec c) {
#ifdef FUSED_MULTIPLY_ADD
    return FUSED_MULTIPLY_ADD(a, b, c);
#else
    for (int i = 0; i < LANES; i++) c[i] = sizeof(real) == 8 ? fma(a[i], b[i], c[i]) : fmaf(a[i], b[i], c[i]);
    return c;
#endif
}

/* Correctly rounded; NaN below 0. */
INLINE vec square_root(vec v) {
#ifdef SQUARE_ROOT
    return SQUARE_ROOT(v);
#else
    for (int i = 0; i < LANES; i++) v[i] = sizeof(real) == 8 ? sqrt(v[i]) : sqrtf(v[i]);
    return v;
#endif
}

/* One bit for each lane whose sign bit is set. */
INLINE int negative_lanes(bits v) {
#ifdef NEGATIVE_LANES
    return NEGATIVE_LANES(v);
#else
    int lanes = 0;
    for (int i = 0; i < LANES; i++) lanes |= (v[i] < 0) << i;
    return lanes;
#endif
}

/* Whether any number in n vectors, `stride` apart, is infinite or NaN: 0 times such a number is NaN. */
INLINE int any_not_finite(const real *x, ptrdiff_t stride, int64_t n) {
    vec zeros = {0};
    for (int64_t i = 0; i < n; i++) zeros += load(x + i * stride) * 0;
    return negative_lanes((bits)(zeros != zeros));
}

/* table[index[i]] in every lane i, for a table of 16 and indices from 0 to 15. */
INLINE vec look_up_16(const real *table, bits index) {
#ifdef LOOK_UP_16
    return LOOK_UP_16(table, index);
#else
    vec found;
    for (int i = 0; i < LANES; i++) found[i] = table[index[i]];
    return found;
#endif
}

INLINE bits load_bits(const real_bits *p) { return (bits)load((const real *)p); }
INLINE void store_bits(real_bits *p, bits v) { store((real *)p, (vec)v); }

/* Lane by lane, a where all bits of the condition are set, b where none is. */
INLINE vec choose(bits condition, vec a, vec b) { return (vec)(((bits)a & condition) | ((bits)b & ~condition)); }
/* The larger of a and b, which are not NaN. */
INLINE vec larger_of(vec a, vec b) {
#ifdef LARGER_OF
    return LARGER_OF(a, b);
#else
    return choose(a > b, a, b);
#endif
}

/* sum over k < n of a[k * a_stride] * b[k * b_stride], lane by lane. Exact: in order. Fast: four sums, by k % 4,
 * so that zeros at the end, where a neighbour is longer, change no bit. */
INLINE vec sum_of_products(const real *a, ptrdiff_t a_stride, const real *b, ptrdiff_t b_stride, int64_t n) {
#if MICROGPT_EXACT
    vec sum = {0};
    for (int64_t k = 0; k < n; k++) sum += load(a + k * a_stride) * load(b + k * b_stride);
    return sum;
#else
    vec sums[4] = {{0}};
    int64_t k = 0;
    for (; k + 4 <= n; k += 4)
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) sums[i] += load(a + (k + i) * a_stride) * load(b + (k + i) * b_stride);
#pragma GCC unroll 4
    for (int i = 0; i < 3; i++)
        if (k + i < n) sums[i] += load(a + (k + i) * a_stride) * load(b + (k + i) * b_stride);
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
#endif
}

/* The lower or upper half of a and b interleaved, a first. */
#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (bits){__VA_ARGS__})
#endif
#if LANES == 2
#define LOWER(a, b) SHUFFLE(a, b, 0, 2)
#define UPPER(a, b) SHUFFLE(a, b, 1, 3)
#elif LANES == 4
#define LOWER(a, b) SHUFFLE(a, b, 0, 4, 1, 5)
#define UPPER(a, b) SHUFFLE(a, b, 2, 6, 3, 7)
#elif LANES == 8
#define LOWER(a, b) SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11)
#define UPPER(a, b) SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15)
#else
#define LOWER(a, b) SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
#define UPPER(a, b) SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
#endif

/* Transposes a square of LANES vectors: each round interleaves vector i with vector i + LANES / 2. */
INLINE void transpose_square(vec square[LANES]) {
#pragma GCC unroll 4
    for (int round = 1; round < LANES; round *= 2) {
        vec next[LANES];
#pragma GCC unroll 8
        for (int i = 0; i < LANES / 2; i++) {
            next[2 * i] = LOWER(square[i], square[i + LANES / 2]);
            next[2 * i + 1] = UPPER(square[i], square[i + LANES / 2]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) square[i] = next[i];
    }
}
