/* Sums along rows. */
#pragma once

#include "vector.h"

#if MICROGPT_EXACT
/* A sum along a row has to run in order, so that each addition waits for the one before: several rows at once. */
enum { SUM_ROWS = 8 };

/* sums[r] = sum over i of a[r][i] * b[r][i], or without b of a[r][i]; i from first to last with step 1, from last to
 * first with step -1 */
INLINE void row_products(const real *a, const real *b, int64_t rows, int64_t n, int step, real *sums) {
    for (int64_t first = 0; first < rows; first += SUM_ROWS) {
        const real *a_row[SUM_ROWS], *b_row[SUM_ROWS];
        real sum[SUM_ROWS] = {0};
        for (int r = 0; r < SUM_ROWS; r++) { /* the last row again, where there are no more */
            const int64_t start = minimum(first + r, rows - 1) * stride(n) + (step > 0 ? 0 : n - 1);
            a_row[r] = a + start;
            b_row[r] = b ? b + start : NULL;
        }
        for (int64_t i = 0; i != step * n; i += step)
#pragma GCC unroll 8
            for (int r = 0; r < SUM_ROWS; r++) sum[r] += b ? a_row[r][i] * b_row[r][i] : a_row[r][i];
        for (int64_t r = first; r < minimum(first + SUM_ROWS, rows); r++) sums[r] = sum[r - first];
    }
}
#else
/* The same in any order. */
INLINE void row_products(const real *a, const real *b, int64_t rows, int64_t n, int step, real *sums) {
    (void)step;
    for (int64_t r = 0; r < rows; r++) {
        vec sum = {0};
        for (int64_t i = 0; i < n; i += LANES) {
            const int64_t at = r * stride(n) + i;
            const vec product = b ? load(a + at) * load(b + at) : load(a + at);
            sum += i + LANES <= n ? product : choose(lanes_below(n - i), product, (vec){0});
        }
        sums[r] = sum_of_lanes(sum);
    }
}
#endif
