/* The matrix product behind every linear layer and attention head:
 *
 *     c[m][n] = sum over k of a[m][k] * b[k][n]        m < rows, k < depth
 *
 * Each sum starts at +0.0 and runs over k in order. A view of an operand says where its elements lie; where the
 * reference sums from last to first, the view runs backwards. Vectors run across columns n, never along a sum: so every
 * result is exact, whatever the width of a vector, and the same in whatever blocks and by whatever thread it is
 * computed. Columns come in lines of LINE.
 */
#pragma once

#include "panel.h"

enum { FORWARDS = 1, BACKWARDS = -1 }; /* the direction of k in a view */

/* a[m][k] is first[m * row_stride + k * k_stride]. Where k counts positions, a lies in panels: after `first_run` steps,
 * and then after every LINE, `panel_jump` is added. */
typedef struct {
    const real *first;
    ptrdiff_t row_stride, k_stride, panel_jump;
    int64_t first_run;
} Left;

/* b[k][l * LINE + i] is first[k * k_stride + l * line_stride + i]. */
typedef struct {
    const real *first;
    ptrdiff_t k_stride, line_stride;
} Right;

typedef struct {
    Left a;
    Right b;
    int64_t depth;
    real *c;                    /* c[m][l * LINE + i] is c[m * c_row_stride + l * c_line_stride + i] */
    ptrdiff_t c_row_stride, c_line_stride;
    Epilogue epilogue;
    int accumulate;             /* each sum continues from what is in c */
    const real *extra;          /* operand of the epilogue, laid out as c */
} Product;

/* The first of n elements in this direction, as an index. */
INLINE int64_t first_of(int64_t n, int direction) { return direction == FORWARDS ? 0 : n - 1; }

/* a[m][k] = matrix[m][k], of a matrix with n columns */
INLINE Left over_columns(const real *matrix, int direction, int64_t n) {
    return (Left){.first = matrix + first_of(n, direction), .row_stride = n, .k_stride = direction, .first_run = n};
}

/* a[m][k] = matrix[k][m], of a matrix with n rows of this width */
INLINE Left over_rows(const real *matrix, int direction, int64_t n, int64_t width) {
    return (Left){.first = matrix + first_of(n, direction) * width, .row_stride = 1, .k_stride = direction * width,
                  .first_run = n};
}

/* a[m][k] = feature k of position m of a panel, for n features */
INLINE Left over_features(const real *panel, int direction, int64_t n) {
    return (Left){.first = panel + first_of(n, direction) * LINE, .row_stride = 1, .k_stride = direction * LINE,
                  .first_run = n};
}

/* a[m][k] = feature m of position k, for n positions from the start of a panel on, of an activation of this width */
INLINE Left over_positions(const real *panels, int direction, int64_t n, int64_t width) {
    const int64_t first = first_of(n, direction);
    return (Left){.first = panels + first / LINE * width * LINE + first % LINE, .row_stride = LINE,
                  .k_stride = direction, .panel_jump = direction * (width - 1) * LINE,
                  .first_run = direction == FORWARDS ? LINE : first % LINE + 1};
}

/* b[k][l * LINE + i] = lines[l][k][i], of lines [depth][LINE] that are `line_stride` apart */
INLINE Right in_lines(const real *lines, int direction, int64_t depth, ptrdiff_t line_stride) {
    return (Right){.first = lines + first_of(depth, direction) * LINE, .k_stride = direction * LINE,
                   .line_stride = line_stride};
}

/* b[k][n] = feature k of position n, of an activation of this width */
INLINE Right activations(const real *panels, int direction, int64_t width) {
    return in_lines(panels, direction, width, width * LINE);
}

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

/* Places of the rows of a and of c: few addresses fit in registers, and all but the last
 * arrangement need no more than one or two. */
typedef enum {
    NEIGHBOURS,     /* of a: neighbours; of c: LINE apart */
    LINES,          /* both LINE apart */
    LINES_TO_ROWS,  /* of a: LINE apart; of c: anywhere */
    ROWS_TO_LINES,  /* of a: anywhere; of c: LINE apart */
    ARRANGEMENTS
} Arrangement;

INLINE Arrangement arrangement_of(const Product *p) {
    return p->a.row_stride == 1       ? NEIGHBOURS
           : p->c_row_stride != LINE ? LINES_TO_ROWS
           : p->a.row_stride == LINE ? LINES
                                     : ROWS_TO_LINES;
}

/* One block of c, small enough for its sums to live in registers: `rows` rows of `tile_lines` lines. */
INLINE void tile(const Arrangement arrangement, const int rows, const int tile_lines, const Product *p, const real *a,
                 const real *b, real *c) {
    const int vectors = tile_lines * LINE_VECTORS;
    const ptrdiff_t a_stride = arrangement == NEIGHBOURS ? 1 : arrangement == ROWS_TO_LINES ? p->a.row_stride : LINE;
    const ptrdiff_t c_stride = arrangement == LINES_TO_ROWS ? p->c_row_stride : LINE;
    const ptrdiff_t a_k_stride = p->a.k_stride, b_k_stride = p->b.k_stride;
    const ptrdiff_t b_line_stride = p->b.line_stride, c_line_stride = p->c_line_stride;
    const real *a_rows[4] = {a, a + 4 * a_stride, a + 8 * a_stride, a + 12 * a_stride};
    const int a_groups = arrangement == ROWS_TO_LINES ? (rows + 3) / 4 : 1, group_rows = a_groups > 1 ? 4 : 16;
    vec sum[TILE_ROWS][TILE_LINES * LINE_VECTORS], b_k[TILE_LINES * LINE_VECTORS];

#define EACH_ROW _Pragma("GCC unroll 16") for (int i = 0; i < rows; i++)
#define EACH_VECTOR _Pragma("GCC unroll 8") for (int v = 0; v < vectors; v++)
#define VECTOR_AT(line_stride) (v / LINE_VECTORS * (line_stride) + v % LINE_VECTORS * LANES)

    if (p->accumulate) {
        const real *c_i = c;
        EACH_ROW {
            EACH_VECTOR sum[i][v] = load(c_i + VECTOR_AT(c_line_stride));
            c_i += c_stride;
        }
    } else {
        EACH_ROW EACH_VECTOR sum[i][v] = (vec){0};
    }

    for (int64_t left = p->depth, run = p->a.first_run;; run = minimum(LINE, left)) {
        left -= run;
        do {
            EACH_VECTOR b_k[v] = load(b + VECTOR_AT(b_line_stride));
            EACH_ROW {
                const vec a_k = broadcast(a_rows[i / group_rows][i % group_rows * a_stride]);
                EACH_VECTOR sum[i][v] += a_k * b_k[v];
            }
            b += b_k_stride;
#pragma GCC unroll 4
            for (int i = 0; i < a_groups; i++) a_rows[i] += a_k_stride;
        } while (--run);
        if (__builtin_expect(left == 0, 1)) break;
#pragma GCC unroll 4
        for (int i = 0; i < a_groups; i++) a_rows[i] += p->a.panel_jump;
    }

    if (p->epilogue == STORE) {
        EACH_ROW {
            EACH_VECTOR store(c + VECTOR_AT(c_line_stride), sum[i][v]);
            c += c_stride;
        }
    } else {
        const real *extra = p->epilogue == RELU ? c : p->extra + (c - p->c);
        EACH_ROW {
            EACH_VECTOR store(c + VECTOR_AT(c_line_stride), finish(p->epilogue, sum[i][v], extra + VECTOR_AT(c_line_stride)));
            c += c_stride, extra += c_stride;
        }
    }
#undef EACH_ROW
#undef EACH_VECTOR
#undef VECTOR_AT
}

/* A function for each tile the registers can hold, rows by lines, in each arrangement. */
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
#define TILES_ENTRY(rows, lines) [lines][rows] = TILES(rows, lines),
#define UP_TO_3(X, lines) X(1, lines) X(2, lines) X(3, lines)
#define UP_TO_6(X, lines) UP_TO_3(X, lines) X(4, lines) X(5, lines) X(6, lines)
#define UP_TO_8(X, lines) UP_TO_6(X, lines) X(7, lines) X(8, lines)
#define UP_TO_12(X, lines) UP_TO_8(X, lines) X(9, lines) X(10, lines) X(11, lines) X(12, lines)
#define UP_TO_16(X, lines) UP_TO_12(X, lines) X(13, lines) X(14, lines) X(15, lines) X(16, lines)
#if defined(__AVX512F__)
#define EACH_TILE(X) UP_TO_16(X, 1) UP_TO_12(X, 2) UP_TO_8(X, 3) UP_TO_6(X, 4)
static const int tile_rows[TILE_LINES + 1] = {0, 16, 12, 8, 6};
#elif defined(__AVX__) || defined(__aarch64__)
#define EACH_TILE(X) UP_TO_6(X, 1)
static const int tile_rows[TILE_LINES + 1] = {0, 6};
#else
#define EACH_TILE(X) UP_TO_3(X, 1)
static const int tile_rows[TILE_LINES + 1] = {0, 3};
#endif
EACH_TILE(TILE)
static Tile *const tiles[TILE_LINES + 1][TILE_ROWS + 1][ARRANGEMENTS] = {EACH_TILE(TILES_ENTRY)};

/* The product for up to TILE_LINES lines, in blocks of rows of nearly the same size. */
static void multiply_lines(const Product *p, int64_t rows, int64_t line, int64_t tile_lines) {
    const Arrangement arrangement = arrangement_of(p);
    for (int64_t m = 0, left = rows, next; left; m += next, left -= next) {
        next = left;
        if (left > tile_rows[tile_lines]) { /* divisions of 32 bits: those of 64 take longer than a small product */
            const uint32_t blocks = ((uint32_t)left + tile_rows[tile_lines] - 1) / (uint32_t)tile_rows[tile_lines];
            next = (uint32_t)left / blocks;
        }
        tiles[tile_lines][next][arrangement](p, p->a.first + m * p->a.row_stride, p->b.first + line * p->b.line_stride,
                                             p->c + m * p->c_row_stride + line * p->c_line_stride);
    }
}

/* The product for the lines [begin, end), TILE_LINES at a time. Of a deep product, DEPTH_BLOCK steps k at a time: their
 * part of b stays in the first cache for all rows of a, and the lines of c in the second. */
static void multiply(const Product *p, int64_t rows, int64_t begin, int64_t end) {
    const int is_deep = p->depth > DEPTH_BLOCK && p->a.first_run == p->depth;
    for (int64_t line = begin; line < end; line += TILE_LINES) {
        const int64_t tile_lines = minimum(TILE_LINES, end - line);
        if (!is_deep) {
            multiply_lines(p, rows, line, tile_lines);
            continue;
        }
        for (int64_t k = 0; k < p->depth; k += DEPTH_BLOCK) {
            Product block = *p;
            block.a.first += k * p->a.k_stride, block.b.first += k * p->b.k_stride;
            block.depth = block.a.first_run = minimum(DEPTH_BLOCK, p->depth - k);
            block.accumulate |= k > 0;
            if (k + DEPTH_BLOCK < p->depth) block.epilogue = STORE;
            multiply_lines(&block, rows, line, tile_lines);
        }
    }
}
