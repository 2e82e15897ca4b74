/* Linear layers without bias, and the last of them, which gives the logits. */
#pragma once

#include "panel.h"
#include "product.h"


/* The weights [n_out][n_in], outputs in the order in which backward sums over them. */
INLINE const real *weights_of(const Operation *op, const Workspace *w) {
    return op->weight_rows ? (real *)w->arena + op->gathered : (const real *)w->parameters + op->weight;
}

static void linear_gather(const Operation *op, const Workspace *w, const Range *range) {
    for (int64_t o = range->begin; o < range->end; o++)
        copy((real *)w->arena + op->gathered + o * op->n_in, (const real *)w->parameters + op->weight_rows[o], op->n_in);
}

/* output[r][o] = sum over i of weight[o][i] * input[r][i] */
static void linear_forward(const Operation *op, const Workspace *w, const Range *range) {
    real *arena = w->arena;
    multiply(&(Product){.a = weights_of(op, w), .a_row = op->n_in, .a_step = 1, .first_run = op->n_in,
                        .b = arena + op->input, .b_step = LINE, .b_line = op->n_in * LINE,
                        .depth = op->n_in,
                        .c = arena + op->output, .c_row = LINE, .c_line = op->n_out * LINE,
                        .epilogue = op->epilogue, .extra = arena + op->residual},
             op->n_out, range->begin, range->end);
}

/* Backward reads weights along their columns: of large matrices rather from a transposed copy, [n_in][n_out]. */
static void linear_transpose(const Operation *op, const Workspace *w, const Range *range) {
    real *transposed = (real *)w->arena + op->transposed;
    for (int64_t o = range->begin * LINE; o < range->end * LINE; o += LINE)
        for (int64_t i = 0; i < op->n_in; i += LINE)
            transpose_lines(weights_of(op, w) + o * op->n_in + i, op->n_in, transposed + i * op->n_out + o, op->n_out);
}

/* d_input[r][i] = sum over o, last to first, of weight[o][i] * d_output[r][o] */
static void linear_backward_input(const Operation *op, const Workspace *w, const Range *range) {
    real *arena = w->arena;
    const int64_t last = op->n_out - 1;
    const int is_transposed = op->transposed >= 0;
    multiply(&(Product){.a = is_transposed ? arena + op->transposed + last : weights_of(op, w) + last * op->n_in,
                        .a_row = is_transposed ? op->n_out : 1, .a_step = is_transposed ? -1 : -op->n_in,
                        .first_run = op->n_out,
                        .b = arena + op->d_output + last * LINE, .b_step = -LINE, .b_line = op->n_out * LINE,
                        .depth = op->n_out,
                        .c = arena + op->d_input, .c_row = LINE, .c_line = op->n_in * LINE,
                        .epilogue = op->backward_epilogue, .extra = arena + op->input},
             op->n_in, range->begin, range->end);
}

/* d_weight[o][i] = sum over rows, last to first, of d_output[r][o] * input[r][i]
 * Here lanes are inputs i, so that input is transposed, a block at a time: [lines of inputs][rows][LINE]. */
enum { GRADIENT_LINES = 8 };

INLINE int64_t gradient_block_rows(int64_t rows) { return minimum(lines_for(rows) * LINE, DEPTH_BLOCK); }

static void linear_backward_weight(const Operation *op, const Workspace *w, const Range *range) {
    const int64_t n_in = op->n_in, n_out = op->n_out, panels = lines_for(w->rows);
    const real *input = (real *)w->arena + op->input, *d_output = (real *)w->arena + op->d_output;
    real *gradient = op->weight_rows ? (real *)w->arena + op->d_gathered : (real *)w->gradients + op->weight;
    const int is_padded = n_in % LINE > 0;
    real *transposed = range->scratch, *padded = transposed + GRADIENT_LINES * LINE * gradient_block_rows(w->rows);
    for (int64_t line = range->begin; line < range->end; line += GRADIENT_LINES) {
        const int64_t block_lines = minimum(GRADIENT_LINES, range->end - line);
        real *c = is_padded ? padded : gradient + line * LINE;
        const int64_t c_row = is_padded ? block_lines * LINE : n_in;
        for (int64_t end = panels; end > 0; end -= minimum(end, DEPTH_BLOCK / LINE)) {
            const int64_t begin = end - minimum(end, DEPTH_BLOCK / LINE);
            const int64_t depth = minimum(end * LINE, w->rows) - begin * LINE, last = (depth - 1) % LINE;
            for (int64_t l = 0; l < block_lines; l++)
                for (int64_t panel = begin; panel < end; panel++)
                    transpose_lines(input + (panel * n_in + (line + l) * LINE) * LINE, LINE,
                                    transposed + (l * (end - begin) + panel - begin) * LINE * LINE, LINE);
            multiply(&(Product){.a = d_output + (end - 1) * n_out * LINE + last, .a_row = LINE, .a_step = -1,
                                .a_jump = LINE - n_out * LINE, .first_run = last + 1,
                                .b = transposed + (depth - 1) * LINE, .b_step = -LINE,
                                .b_line = (end - begin) * LINE * LINE,
                                .depth = depth,
                                .c = c, .c_row = c_row, .c_line = LINE,
                                .accumulate = end < panels},
                     n_out, 0, block_lines);
        }
        if (is_padded)
            for (int64_t o = 0; o < n_out; o++)
                copy(gradient + o * n_in + line * LINE, c + o * c_row, minimum(c_row, n_in - line * LINE));
    }
}

static void linear_scatter(const Operation *op, const Workspace *w, const Range *range) {
    for (int64_t o = range->begin; o < range->end; o++)
        copy((real *)w->gradients + op->weight_rows[o], (const real *)w->arena + op->d_gathered + o * op->n_in,
             op->n_in);
}

INLINE int64_t linear_scratch_size(const Workspace *w, int64_t rows) {
    const int64_t widest = w->vocab_size > 4 * w->n_embd ? w->vocab_size : 4 * w->n_embd;
    return GRADIENT_LINES * LINE * (gradient_block_rows(rows) + (w->n_embd % LINE > 0 ? widest : 0));
}

/* In the reference's graph the target's logit is reached first through the loss's numerator, so that its row is the
 * last to be added to the input's gradient. Leaving it out first is adding 0 times it, which changes no bit. */
static void unembedding_backward_input(const Operation *op, const Workspace *w, const Range *range) {
#if MICROGPT_EXACT
    real *arena = w->arena, *rows = range->scratch;
    const int64_t n_in = op->n_in;
    for (int64_t panel = range->begin; panel < range->end; panel++) {
        const int32_t *targets = w->targets + panel * LINE;
        real *gradient = arena + op->d_output + panel * op->n_out * LINE, target_gradient[LINE];
        for (int r = 0; r < LINE; r++) {
            target_gradient[r] = gradient[targets[r] * LINE + r];
            gradient[targets[r] * LINE + r] = 0;
        }
        linear_backward_input(op, w, &(Range){panel, panel + 1, range->scratch});
        gather_rows(weights_of(op, w), targets, NULL, NULL, n_in, rows);
        real *d_input = arena + op->d_input + panel * n_in * LINE;
        for (int64_t i = 0; i < n_in * LINE; i += LANES)
            store(d_input + i, load(d_input + i) + load(rows + i) * load(target_gradient + i % LINE));
    }
#else
    linear_backward_input(op, w, range);
#endif
}
