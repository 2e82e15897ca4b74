/* Arrays of the arena, and the ways into and out of the layout of panels that interface.h describes. */
#pragma once

#include "vector.h"

/* The array that starts at this offset of the arena. */
INLINE real *array(const Workspace *w, int64_t offset) { return (real *)w->arena + offset; }

/* Feature 0 of a row of an activation [panels][width][LINE]. The features of the row are LINE elements apart. From a
 * row that is a multiple of LANES, a vector holds the same feature of LANES rows. */
INLINE real *activation(const Workspace *w, int64_t offset, int64_t width, int64_t row) {
    return array(w, offset) + row / LINE * LINE * width + row % LINE;
}

/* memset to 0 and memcpy, inlined: for the short rows of a small model the call costs more than the work. */
INLINE void clear(real *to, int64_t n) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(to + i, (vec){0});
    for (; i < n; i++) to[i] = 0;
}

INLINE void copy(real *to, const real *from, int64_t n) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) store(to + i, load(from + i));
    for (; i < n; i++) to[i] = from[i];
}

/* out[j][i] = in[i][j] for a square of LANES vectors, j < n; the shuffles of other rows are not compiled. */
INLINE void transpose_vectors(const real *in, ptrdiff_t in_stride, real *out, ptrdiff_t out_stride, const int n) {
    vec square[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) square[i] = load(in + i * in_stride);
    transpose_square(square);
#pragma GCC unroll 16
    for (int j = 0; j < n; j++) store(out + j * out_stride, square[j]);
}

/* out[j][i] = in[i][j] for a square of LINE rows of LINE elements, with rows `in_stride` and `out_stride` apart. Of out,
 * the first n rows are needed; others may keep what they were. */
static void transpose_lines(const real *in, ptrdiff_t in_stride, real *out, ptrdiff_t out_stride, int64_t n) {
    for (int64_t r = 0; r < LINE; r += LANES)
        for (int64_t c = 0; c < minimum(LINE, n); c += LANES) {
            if (n - c <= LANES / 2)
                transpose_vectors(in + r * in_stride + c, in_stride, out + c * out_stride + r, out_stride, LANES / 2);
            else
                transpose_vectors(in + r * in_stride + c, in_stride, out + c * out_stride + r, out_stride, LANES);
        }
}

/* panel[i][r] = table[indices[r]][i] + other[other_indices[r]][i], i < n, for the LINE rows of a panel; `other` may be
 * NULL. It reads up to a line beyond a row of a table: there is always a next matrix. */
INLINE void gather_rows(const real *table, const int32_t *indices, const real *other, const int32_t *other_indices,
                        int64_t n, real *panel) {
    for (int64_t r = 0; r < LINE; r += LANES)
        for (int64_t i = 0; i < n; i += LANES) {
            vec square[LANES];
#pragma GCC unroll 16
            for (int lane = 0; lane < LANES; lane++) {
                square[lane] = load(table + indices[r + lane] * n + i);
                if (other) square[lane] += load(other + other_indices[r + lane] * n + i);
            }
            transpose_square(square);
#pragma GCC unroll 16
            for (int lane = 0; lane < LANES; lane++)
                if (i + lane < n) store(panel + (i + lane) * LINE + r, square[lane]);
        }
}
