/* The matrix product behind every linear layer and attention head, in one shape for all its uses:
 *
 *     c[m][n] = sum over k of a[m][k] * b[k][n]        m < rows, k < depth
 *
 * Element a[m][k] stands at a + m * a_row + k * a_step, the line of columns l of b at b + l * b_line + k * b_step, that
 * of c at c + m * c_row + l * c_line. Each sum starts at +0.0 and runs over k in order, so negative steps sum from last
 * to first. Vectors run across columns, never along a sum: that is what keeps every result exact, whatever the width of
 * a vector, and the same in whatever blocks and by whatever thread it is computed.
 *
 * Where k counts positions, a lies in panels: after `first_run` steps, and then after every LINE, `a_jump` leads on.
 */
#pragma once

#include "panel.h"

typedef struct {
    const real *a;
    ptrdiff_t a_row, a_step, a_jump;
    int64_t first_run;
    const real *b;
    ptrdiff_t b_step, b_line;
    int64_t depth;
    real *c;
    ptrdiff_t c_row, c_line;
    Epilogue epilogue;
    int accumulate;             /* each sum continues from what is in c */
    const real *extra;          /* operand of the epilogue, laid out as c */
} Product;

enum { DEPTH_BLOCK = 128 }; /* steps k for which the lines of a tile stay in the first cache */

INLINE vec finish(Epilogue epilogue, vec sum, const real *extra) {
    switch (epilogue) {
    case ADD: return sum + load(extra);
    case RELU: return where_positive(sum, sum);
#if MICROGPT_EXACT /* the derivative is a factor: 0 times infinity is NaN */
    case RELU_BACKWARD: return where_positive(load(extra), broadcast(1)) * sum;
#else
    case RELU_BACKWARD: return where_positive(load(extra), sum);
#endif
    default: return sum;
    }
}

/* Where the rows of a and of c lie: few addresses fit in registers, and these three need no more than one or two. */
typedef enum {
    NEIGHBOURS,     /* a_row 1, c_row LINE */
    LINES,          /* a_row LINE, c_row LINE */
    LINES_TO_ROWS,  /* a_row LINE, any c_row */
    ROWS_TO_LINES,  /* any a_row, c_row LINE */
    ARRANGEMENTS
} Arrangement;

INLINE Arrangement arrangement_of(const Product *p) {
    return p->a_row == 1 ? NEIGHBOURS : p->c_row != LINE ? LINES_TO_ROWS : p->a_row == LINE ? LINES : ROWS_TO_LINES;
}

/* One block of c, small enough for its sums to live in registers: `rows` rows of `tile_lines` lines. */
INLINE void tile(const Arrangement arrangement, const int rows, const int tile_lines, const Product *p, const real *a,
                 const real *b, real *c) {
    const int vectors = tile_lines * LINE_VECTORS;
    const ptrdiff_t a_row = arrangement == NEIGHBOURS ? 1 : arrangement == ROWS_TO_LINES ? p->a_row : LINE;
    const ptrdiff_t c_row = arrangement == LINES_TO_ROWS ? p->c_row : LINE;
    const ptrdiff_t a_step = p->a_step, b_step = p->b_step, b_line = p->b_line, c_line = p->c_line;
    const real *a_rows[4] = {a, a + 4 * a_row, a + 8 * a_row, a + 12 * a_row};
    const int a_groups = arrangement == ROWS_TO_LINES ? (rows + 3) / 4 : 1, group_rows = a_groups > 1 ? 4 : 16;
    vec sum[TILE_ROWS][TILE_LINES * LINE_VECTORS], b_k[TILE_LINES * LINE_VECTORS];

#define EACH_ROW _Pragma("GCC unroll 16") for (int i = 0; i < rows; i++)
#define EACH_VECTOR _Pragma("GCC unroll 8") for (int v = 0; v < vectors; v++)
#define VECTOR_OF(line) (v / LINE_VECTORS * (line) + v % LINE_VECTORS * LANES)

    if (p->accumulate) {
        const real *c_i = c;
        EACH_ROW {
            EACH_VECTOR sum[i][v] = load(c_i + VECTOR_OF(c_line));
            c_i += c_row;
        }
    } else {
        EACH_ROW EACH_VECTOR sum[i][v] = (vec){0};
    }

    for (int64_t left = p->depth, run = p->first_run;; run = minimum(LINE, left)) {
        left -= run;
        do {
            EACH_VECTOR b_k[v] = load(b + VECTOR_OF(b_line));
            EACH_ROW {
                const vec a_k = broadcast(a_rows[i / group_rows][i % group_rows * a_row]);
                EACH_VECTOR sum[i][v] += a_k * b_k[v];
            }
            b += b_step;
#pragma GCC unroll 4
            for (int i = 0; i < a_groups; i++) a_rows[i] += a_step;
        } while (--run);
        if (__builtin_expect(left == 0, 1)) break;
#pragma GCC unroll 4
        for (int i = 0; i < a_groups; i++) a_rows[i] += p->a_jump;
    }

    if (p->epilogue == STORE) {
        EACH_ROW {
            EACH_VECTOR store(c + VECTOR_OF(c_line), sum[i][v]);
            c += c_row;
        }
    } else {
        const real *extra = p->epilogue == RELU ? c : p->extra + (c - p->c);
        EACH_ROW {
            EACH_VECTOR store(c + VECTOR_OF(c_line), finish(p->epilogue, sum[i][v], extra + VECTOR_OF(c_line)));
            c += c_row, extra += c_row;
        }
    }
#undef EACH_ROW
#undef EACH_VECTOR
#undef VECTOR_OF
}

/* Every tile the registers can hold, rows by lines. */
typedef void Tile(const Product *, const real *a, const real *b, real *c);
#define TILE_OF(arrangement, rows, lines) \
    static void tile_##rows##x##lines##_##arrangement(const Product *p, const real *a, const real *b, real *c) { \
        tile(arrangement, rows, lines, p, a, b, c); \
    }
#define TILE(rows, lines) \
    TILE_OF(NEIGHBOURS, rows, lines) TILE_OF(LINES, rows, lines) \
    TILE_OF(LINES_TO_ROWS, rows, lines) TILE_OF(ROWS_TO_LINES, rows, lines)
#define TILES(rows, lines) \
    {tile_##rows##x##lines##_NEIGHBOURS, tile_##rows##x##lines##_LINES, tile_##rows##x##lines##_LINES_TO_ROWS, \
     tile_##rows##x##lines##_ROWS_TO_LINES}
#if defined(__AVX512F__)
TILE(1, 1) TILE(2, 1) TILE(3, 1) TILE(4, 1) TILE(5, 1) TILE(6, 1) TILE(7, 1) TILE(8, 1)
TILE(9, 1) TILE(10, 1) TILE(11, 1) TILE(12, 1) TILE(13, 1) TILE(14, 1) TILE(15, 1) TILE(16, 1)
TILE(1, 2) TILE(2, 2) TILE(3, 2) TILE(4, 2) TILE(5, 2) TILE(6, 2) TILE(7, 2) TILE(8, 2)
TILE(9, 2) TILE(10, 2) TILE(11, 2) TILE(12, 2)
TILE(1, 3) TILE(2, 3) TILE(3, 3) TILE(4, 3) TILE(5, 3) TILE(6, 3) TILE(7, 3) TILE(8, 3)
TILE(1, 4) TILE(2, 4) TILE(3, 4) TILE(4, 4) TILE(5, 4) TILE(6, 4)
static const int tile_rows[TILE_LINES + 1] = {0, 16, 12, 8, 6};
static Tile *const tiles[TILE_LINES + 1][TILE_ROWS + 1][ARRANGEMENTS] = {
    {{0}},
    {{0}, TILES(1, 1), TILES(2, 1), TILES(3, 1), TILES(4, 1), TILES(5, 1), TILES(6, 1), TILES(7, 1), TILES(8, 1),
     TILES(9, 1), TILES(10, 1), TILES(11, 1), TILES(12, 1), TILES(13, 1), TILES(14, 1), TILES(15, 1), TILES(16, 1)},
    {{0}, TILES(1, 2), TILES(2, 2), TILES(3, 2), TILES(4, 2), TILES(5, 2), TILES(6, 2), TILES(7, 2), TILES(8, 2),
     TILES(9, 2), TILES(10, 2), TILES(11, 2), TILES(12, 2)},
    {{0}, TILES(1, 3), TILES(2, 3), TILES(3, 3), TILES(4, 3), TILES(5, 3), TILES(6, 3), TILES(7, 3), TILES(8, 3)},
    {{0}, TILES(1, 4), TILES(2, 4), TILES(3, 4), TILES(4, 4), TILES(5, 4), TILES(6, 4)},
};
#elif defined(__AVX__) || defined(__aarch64__)
TILE(1, 1) TILE(2, 1) TILE(3, 1) TILE(4, 1) TILE(5, 1) TILE(6, 1)
static const int tile_rows[TILE_LINES + 1] = {0, 6};
static Tile *const tiles[TILE_LINES + 1][TILE_ROWS + 1][ARRANGEMENTS] = {
    {{0}},
    {{0}, TILES(1, 1), TILES(2, 1), TILES(3, 1), TILES(4, 1),
     TILES(5, 1), TILES(6, 1)},
};
#else
TILE(1, 1) TILE(2, 1) TILE(3, 1)
static const int tile_rows[TILE_LINES + 1] = {0, 3};
static Tile *const tiles[TILE_LINES + 1][TILE_ROWS + 1][ARRANGEMENTS] = {
    {{0}},
    {{0}, TILES(1, 1), TILES(2, 1), TILES(3, 1)},
};
#endif

/* The product for a few lines, rows in blocks of nearly the same size. */
static void multiply_lines(const Product *p, int64_t rows, int64_t line, int64_t tile_lines) {
    const Arrangement arrangement = arrangement_of(p);
    for (int64_t m = 0, left = rows, next; left; m += next, left -= next) {
        next = left;
        if (left > tile_rows[tile_lines]) { /* divisions of 32 bits: those of 64 take longer than a small product */
            const uint32_t blocks = ((uint32_t)left + tile_rows[tile_lines] - 1) / (uint32_t)tile_rows[tile_lines];
            next = (uint32_t)left / blocks;
        }
        tiles[tile_lines][next][arrangement](p, p->a + m * p->a_row, p->b + line * p->b_line,
                                             p->c + m * p->c_row + line * p->c_line);
    }
}

/* The product for the lines in [begin, end): a few of b, which stay in the first cache for all rows of a, and
 * of these in turn DEPTH_BLOCK steps, while their lines of c stay in the second. */
static void multiply(const Product *p, int64_t rows, int64_t begin, int64_t end) {
    const int is_deep = p->depth > DEPTH_BLOCK && p->first_run == p->depth;
    for (int64_t line = begin; line < end; line += TILE_LINES) {
        const int64_t tile_lines = minimum(TILE_LINES, end - line);
        if (!is_deep) {
            multiply_lines(p, rows, line, tile_lines);
            continue;
        }
        for (int64_t k = 0; k < p->depth; k += DEPTH_BLOCK) {
            Product block = *p;
            block.a += k * p->a_step, block.b += k * p->b_step;
            block.depth = block.first_run = minimum(DEPTH_BLOCK, p->depth - k);
            block.accumulate |= k > 0;
            if (k + DEPTH_BLOCK < p->depth) block.epilogue = STORE;
            multiply_lines(&block, rows, line, tile_lines);
        }
    }
}
