/* Token and position embeddings, added. */
#pragma once

#include "vector.h"

/* output[r] = wte[tokens[r]] + wpe[positions[r]] */
static void embedding_forward(const Operation *op, const Workspace *w) {
    const real *wte = w->parameters, *wpe = wte + w->num_wte;
    const int64_t n = op->n_out;
    for (int64_t r = 0; r < w->rows; r++) {
        const real *token = wte + w->tokens[r] * n, *position = wpe + w->positions[r] * n;
        real *output = (real *)w->arena + op->output + r * stride(n);
        for (int64_t i = 0; i < n; i++) output[i] = token[i] + position[i];
    }
}

/* Each row's gradient goes to its token and to its position, rows last to first. */
static void embedding_backward(const Operation *op, const Workspace *w) {
    real *wte = w->gradients, *wpe = wte + w->num_wte;
    const int64_t n = op->n_out;
    memset(wte, 0, (w->num_wte + w->num_wpe) * sizeof(real));
    for (int64_t r = w->rows - 1; r >= 0; r--) {
        const real *gradient = (real *)w->arena + op->output_gradient + r * stride(n);
        real *token = wte + w->tokens[r] * n, *position = wpe + w->positions[r] * n;
        for (int64_t i = 0; i < n; i++) token[i] += gradient[i], position[i] += gradient[i];
    }
}
