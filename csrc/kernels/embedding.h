/* Token and position embeddings, added. */
#pragma once

#include "panel.h"

/* Set the lanes of a panel [n][LINE] that no row exists for to 0. */
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
        real *output = activation(w, op->output, op->n_out, panel * LINE);
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

/* d_wte[tokens[r]] += d_output[r], d_wpe[positions[r]] += d_output[r], rows last to first. A task is a line of
 * features. */
static void embedding_backward(const Operation *op, const Workspace *w, const Range *range) {
    const int64_t n = op->n_out, panels = lines_for(w->rows);
    for (int64_t feature = range->begin * LINE; feature < minimum(range->end * LINE, n); feature += LINE) {
        const int64_t width = minimum(LINE, n - feature);
        real *wte = (real *)w->gradients + feature, *wpe = wte + w->num_wte, rows[LINE * LINE];
        for (int64_t i = 0; i < w->num_wte + w->num_wpe; i += n) clear(wte + i, width);
        for (int64_t panel = panels - 1; panel >= 0; panel--) {
            const real *features = activation(w, op->d_output, n, panel * LINE) + feature * LINE;
            transpose_lines(features, LINE, rows, LINE, w->rows - panel * LINE);
            for (int64_t r = minimum(LINE, w->rows - panel * LINE) - 1; r >= 0; r--) {
                add_to(wte + w->tokens[panel * LINE + r] * n, rows + r * LINE, width);
                add_to(wpe + w->positions[panel * LINE + r] * n, rows + r * LINE, width);
            }
        }
    }
}
