/* Token and position embeddings, added. */
#pragma once

#include "vector.h"

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

/* Let a panel [n][LINE] be 0 in the lanes that no row exists for. */
INLINE void clear_padding(const Workspace *w, int64_t panel, int64_t n, real *activation) {
    const int64_t rows = w->rows - panel * LINE;
    real_bits exists[LINE];
    if (rows >= LINE) return;
    for (int r = 0; r < LINE; r++) exists[r] = -(real_bits)(r < rows);
    for (int64_t i = 0; i < n * LINE; i += LANES)
        store(activation + i, (vec)((bits)load(activation + i) & load_bits(exists + i % LINE)));
}

/* output[r] = wte[tokens[r]] + wpe[positions[r]], and 0 where there is no row r */
static void embedding_forward(const Operation *op, const Workspace *w, const Range *range) {
    const real *wte = w->parameters, *wpe = wte + w->num_wte;
    for (int64_t panel = range->begin; panel < range->end; panel++) {
        real *output = (real *)w->arena + op->output + panel * op->n_out * LINE;
        gather_rows(wte, w->tokens + panel * LINE, wpe, w->positions + panel * LINE, op->n_out, output);
        clear_padding(w, panel, op->n_out, output);
    }
}

INLINE void add_to(real *sums, const real *terms, int64_t n) {
    if (n == LINE)
        for (int i = 0; i < LINE; i += LANES) store(sums + i, load(sums + i) + load(terms + i));
    else
        for (int64_t i = 0; i < n; i++) sums[i] += terms[i];
}

/* Each row's gradient goes to its token and to its position, rows last to first. A task is a line of features. */
static void embedding_backward(const Operation *op, const Workspace *w, const Range *range) {
    const int64_t n = op->n_out, panels = lines_for(w->rows);
    for (int64_t feature = range->begin * LINE; feature < minimum(range->end * LINE, n); feature += LINE) {
        const int64_t width = minimum(LINE, n - feature);
        real *wte = (real *)w->gradients + feature, *wpe = wte + w->num_wte, rows[LINE * LINE];
        for (int64_t i = 0; i < w->num_wte + w->num_wpe; i += n) clear(wte + i, width);
        for (int64_t panel = panels - 1; panel >= 0; panel--) {
            const real *gradient = (real *)w->arena + op->d_output + (panel * n + feature) * LINE;
            transpose_lines(gradient, LINE, rows, LINE);
            for (int64_t r = minimum(LINE, w->rows - panel * LINE) - 1; r >= 0; r--) {
                add_to(wte + w->tokens[panel * LINE + r] * n, rows + r * LINE, width);
                add_to(wpe + w->positions[panel * LINE + r] * n, rows + r * LINE, width);
            }
        }
    }
}
