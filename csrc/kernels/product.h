/* The matrix product behind every linear layer and attention head, in one shape for all its uses:
 *
 *     c[r][n] = sum over k of a[r][k] * b[k][n]        r < rows, n < columns, k < depth
 *
 * where element a[r][k] stands at a + r * a_row + k * a_step, and the line of columns l at b + l * b_line + k * b_step.
 * Each sum starts at +0.0 and runs over k in order, so negative steps sum from last to first. Vectors run across
 * columns, never along a sum: that is what keeps every result exact, whatever the width of a vector.
 */
#pragma once

#include "vector.h"

typedef struct {
    const real *a;
    ptrdiff_t a_row, a_step;
    const real *b;
    ptrdiff_t b_step, b_line;
    int64_t depth;
    real *c;
    ptrdiff_t c_row;            /* row r of c starts at c + r * c_row ... */
    const int64_t *c_rows;      /* ... or, where this is given, at c + c_rows[r] */
    Epilogue epilogue;
    int accumulate;             /* each sum continues from what is in c */
    const real *extra;          /* operand of the epilogue, its rows `c_row` apart */
} Product;

INLINE vec finish(Epilogue epilogue, vec sum, const real *extra) {
    switch (epilogue) {
    case ADD: return sum + load(extra);
    case RELU: return where_positive(sum, sum);
    case RELU_BACKWARD: return where_positive(load(extra), sum);
    default: return sum;
    }
}

/* One block of c, small enough for its sums to live in registers: `rows` rows from r, `tile_lines` lines from line l,
 * of which the first `width` columns exist. */
INLINE void tile(const int rows, const int tile_lines, const Product *p, int64_t r, int64_t l, int64_t width) {
    const int vectors = tile_lines * LINE_VECTORS;
    const ptrdiff_t a_row = p->a_row, a_step = p->a_step, b_step = p->b_step, b_line = p->b_line;
    const real *a = p->a + r * a_row, *b = p->b + l * b_line;
    vec sum[TILE_ROWS][TILE_LINES * LINE_VECTORS], b_k[TILE_LINES * LINE_VECTORS];

#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++) sum[i][v] = (vec){0};
    if (p->accumulate)
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++)
#pragma GCC unroll 16
            for (int v = 0; v < vectors; v++) sum[i][v] = load(p->c + (r + i) * p->c_row + l * LINE + v * LANES);

    for (int64_t k = p->depth; k > 0; k--, a += a_step, b += b_step) {
#pragma GCC unroll 16
        for (int v = 0; v < vectors; v++) b_k[v] = load(b + v / LINE_VECTORS * b_line + v % LINE_VECTORS * LANES);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            const vec a_k = broadcast(a[i * a_row]);
#pragma GCC unroll 16
            for (int v = 0; v < vectors; v++) sum[i][v] += a_k * b_k[v];
        }
    }

#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
        real *c = p->c + (p->c_rows ? p->c_rows[r + i] : (r + i) * p->c_row) + l * LINE;
        if (width == tile_lines * LINE) {
            const real *extra = p->epilogue == ADD || p->epilogue == RELU_BACKWARD
                                    ? p->extra + (r + i) * p->c_row + l * LINE : c;
#pragma GCC unroll 16
            for (int v = 0; v < vectors; v++)
                store(c + v * LANES, finish(p->epilogue, sum[i][v], extra + v * LANES));
        } else {
            real whole[TILE_LINES * LINE];
#pragma GCC unroll 16
            for (int v = 0; v < vectors; v++) store(whole + v * LANES, sum[i][v]);
            for (int64_t n = 0; n < width; n++) c[n] = whole[n];
        }
    }
}

/* Every tile the registers can hold, rows by lines. */
typedef void Tile(const Product *, int64_t r, int64_t l, int64_t width);
#define TILE(rows, lines) \
    static void tile_##rows##x##lines(const Product *p, int64_t r, int64_t l, int64_t width) { \
        tile(rows, lines, p, r, l, width); \
    }
#if defined(__AVX512F__)
TILE(1, 1) TILE(2, 1) TILE(3, 1) TILE(4, 1) TILE(5, 1) TILE(6, 1) TILE(7, 1) TILE(8, 1)
TILE(9, 1) TILE(10, 1) TILE(11, 1) TILE(12, 1) TILE(13, 1) TILE(14, 1) TILE(15, 1) TILE(16, 1)
TILE(1, 2) TILE(2, 2) TILE(3, 2) TILE(4, 2) TILE(5, 2) TILE(6, 2) TILE(7, 2) TILE(8, 2)
TILE(9, 2) TILE(10, 2) TILE(11, 2) TILE(12, 2)
TILE(1, 3) TILE(2, 3) TILE(3, 3) TILE(4, 3) TILE(5, 3) TILE(6, 3) TILE(7, 3) TILE(8, 3)
TILE(1, 4) TILE(2, 4) TILE(3, 4) TILE(4, 4) TILE(5, 4) TILE(6, 4)
static const int tile_rows[TILE_LINES + 1] = {0, 16, 12, 8, 6};
static Tile *const tiles[TILE_LINES + 1][TILE_ROWS + 1] = {
    {0},
    {0, tile_1x1, tile_2x1, tile_3x1, tile_4x1, tile_5x1, tile_6x1, tile_7x1, tile_8x1, tile_9x1, tile_10x1,
     tile_11x1, tile_12x1, tile_13x1, tile_14x1, tile_15x1, tile_16x1},
    {0, tile_1x2, tile_2x2, tile_3x2, tile_4x2, tile_5x2, tile_6x2, tile_7x2, tile_8x2, tile_9x2, tile_10x2,
     tile_11x2, tile_12x2},
    {0, tile_1x3, tile_2x3, tile_3x3, tile_4x3, tile_5x3, tile_6x3, tile_7x3, tile_8x3},
    {0, tile_1x4, tile_2x4, tile_3x4, tile_4x4, tile_5x4, tile_6x4},
};
#elif defined(__AVX__)
TILE(1, 1) TILE(2, 1) TILE(3, 1) TILE(4, 1) TILE(5, 1) TILE(6, 1)
static const int tile_rows[TILE_LINES + 1] = {0, 6};
static Tile *const tiles[TILE_LINES + 1][TILE_ROWS + 1] = {
    {0},
    {0, tile_1x1, tile_2x1, tile_3x1, tile_4x1, tile_5x1, tile_6x1},
};
#elif defined(__aarch64__)
TILE(1, 1) TILE(2, 1) TILE(3, 1) TILE(4, 1) TILE(5, 1) TILE(6, 1)
static const int tile_rows[TILE_LINES + 1] = {0, 6};
static Tile *const tiles[TILE_LINES + 1][TILE_ROWS + 1] = {
    {0},
    {0, tile_1x1, tile_2x1, tile_3x1, tile_4x1, tile_5x1, tile_6x1},
};
#else
TILE(1, 1) TILE(2, 1) TILE(3, 1)
static const int tile_rows[TILE_LINES + 1] = {0, 3};
static Tile *const tiles[TILE_LINES + 1][TILE_ROWS + 1] = {{0}, {0, tile_1x1, tile_2x1, tile_3x1}};
#endif

/* The whole product. Where `columns` is not a whole number of lines, `whole_lines` says that c has room for the rest. */
static void multiply(const Product *p, int64_t rows, int64_t columns, int whole_lines) {
    const int64_t all_lines = lines(columns);
    for (int64_t l = 0; l < all_lines; l += TILE_LINES) {
        const int64_t tile_lines = minimum(TILE_LINES, all_lines - l);
        const int64_t width = whole_lines ? tile_lines * LINE : minimum(tile_lines * LINE, columns - l * LINE);
        const int64_t blocks = (rows + tile_rows[tile_lines] - 1) / tile_rows[tile_lines];
        for (int64_t block = 0; block < blocks; block++) {
            const int64_t r = rows * block / blocks;
            tiles[tile_lines][rows * (block + 1) / blocks - r](p, r, l, width);
        }
    }
}
