/* Linear layers without bias, and the last of them, which gives the logits.
 *
 *     output[r][o]  = sum over i of weight[o][i] * input[r][i]
 *     d_input[r][i] = sum over o, last to first, of weight[o][i] * d_output[r][o]
 *     d_weight[o][i] = sum over r, last to first, of d_output[r][o] * input[r][i]
 */
#pragma once

#include "product.h"

/* The weights [n_out][n_in], outputs in the order in which backward sums over them: the parameters themselves, or,
 * where that is another order, a gathered copy. Backward scatters the gradients of a copy. */
INLINE const real *weights_of(const Operation *op, const Workspace *w) {
    return op->weight_blocks ? array(w, op->gathered) : (const real *)w->parameters + op->weight;
}

static void linear_gather(const Operation *op, const Workspace *w, const Range *range) {
    const int64_t size = w->n_embd / w->n_head * op->n_in;
    for (int64_t block = range->begin; block < range->end; block++)
        copy(array(w, op->gathered) + block * size, (const real *)w->parameters + op->weight_blocks[block], size);
}

static void linear_scatter(const Operation *op, const Workspace *w, const Range *range) {
    const int64_t size = w->n_embd / w->n_head * op->n_in;
    for (int64_t block = range->begin; block < range->end; block++)
        copy((real *)w->gradients + op->weight_blocks[block], array(w, op->d_gathered) + block * size, size);
}

/* output[r][o] = sum over i of weight[o][i] * input[r][i] */
static void linear_forward(const Operation *op, const Workspace *w, const Range *range) {
    multiply(&(Product){.a = over_columns(weights_of(op, w), FORWARDS, op->n_in),
                        .b = activations(array(w, op->input), FORWARDS, op->n_in),
                        .depth = op->n_in,
                        .c = array(w, op->output), .c_row_stride = LINE, .c_line_stride = op->n_out * LINE,
                        .epilogue = op->epilogue, .extra = array(w, op->residual)},
             op->n_out, range->begin, range->end);
}

/* Backward reads weights along their columns; for large matrices, from a transposed copy [n_in][n_out]. */
static void linear_transpose(const Operation *op, const Workspace *w, const Range *range) {
    const real *weights = weights_of(op, w);
    real *transposed = array(w, op->transposed);
    for (int64_t o = range->begin * LINE; o < range->end * LINE; o += LINE)
        for (int64_t i = 0; i < op->n_in; i += LINE)
            transpose_lines(weights + o * op->n_in + i, op->n_in, transposed + i * op->n_out + o, op->n_out, LINE);
}

/* d_input[r][i] = sum over o, last to first, of weight[o][i] * d_output[r][o] */
static void linear_backward_input(const Operation *op, const Workspace *w, const Range *range) {
    multiply(&(Product){.a = op->transposed >= 0 ? over_columns(array(w, op->transposed), BACKWARDS, op->n_out)
                                                 : over_rows(weights_of(op, w), BACKWARDS, op->n_out, op->n_in),
                        .b = activations(array(w, op->d_output), BACKWARDS, op->n_out),
                        .depth = op->n_out,
                        .c = array(w, op->d_input), .c_row_stride = LINE, .c_line_stride = op->n_in * LINE,
                        .epilogue = op->backward_epilogue, .extra = array(w, op->input)},
             op->n_in, range->begin, range->end);
}

/* d_weight[o][i] = sum over r, last to first, of d_output[r][o] * input[r][i]
 * Here lanes are inputs i, so the input is transposed, a block at a time: [lines of inputs][rows][LINE]. */
enum { GRADIENT_LINES = 8 };

INLINE int64_t gradient_block_rows(int64_t rows) { return minimum(lines_for(rows) * LINE, DEPTH_BLOCK); }

static void linear_backward_weight(const Operation *op, const Workspace *w, const Range *range) {
    const int64_t n_in = op->n_in, n_out = op->n_out, panels = lines_for(w->rows);
    real *d_weight = op->weight_blocks ? array(w, op->d_gathered) : (real *)w->gradients + op->weight;
    const int is_padded = n_in % LINE > 0;
    real *transposed = range->scratch, *padded = transposed + GRADIENT_LINES * LINE * gradient_block_rows(w->rows);
    for (int64_t line = range->begin; line < range->end; line += GRADIENT_LINES) {
        const int64_t block_lines = minimum(GRADIENT_LINES, range->end - line);
        real *c = is_padded ? padded : d_weight + line * LINE;
        const int64_t c_row_stride = is_padded ? block_lines * LINE : n_in;
        for (int64_t end = panels; end > 0; end -= minimum(end, DEPTH_BLOCK / LINE)) {
            const int64_t begin = end - minimum(end, DEPTH_BLOCK / LINE);
            const int64_t depth = minimum(end * LINE, w->rows) - begin * LINE;
            for (int64_t l = 0; l < block_lines; l++)
                for (int64_t panel = begin; panel < end; panel++)
                    transpose_lines(activation(w, op->input, n_in, panel * LINE) + (line + l) * LINE * LINE, LINE,
                                    transposed + (l * (end - begin) + panel - begin) * LINE * LINE, LINE,
                                    w->rows - panel * LINE);
            multiply(&(Product){.a = over_positions(activation(w, op->d_output, n_out, begin * LINE), BACKWARDS, depth,
                                                    n_out),
                                .b = in_lines(transposed, BACKWARDS, depth, (end - begin) * LINE * LINE),
                                .depth = depth,
                                .c = c, .c_row_stride = c_row_stride, .c_line_stride = LINE,
                                .accumulate = end < panels},
                     n_out, 0, block_lines);
        }
        if (is_padded)
            for (int64_t o = 0; o < n_out; o++)
                copy(d_weight + o * n_in + line * LINE, c + o * c_row_stride, minimum(c_row_stride, n_in - line * LINE));
    }
}

INLINE int64_t linear_scratch_size(const Workspace *w, int64_t rows) {
    const int64_t widest = w->vocab_size > 4 * w->n_embd ? w->vocab_size : 4 * w->n_embd;
    return GRADIENT_LINES * LINE * (gradient_block_rows(rows) + (w->n_embd % LINE > 0 ? widest : 0));
}

/* In the reference's graph the target's logit is reached first, through the numerator of the loss, so its term is added
 * to d_input last. The sum without it has 0 times it in its place, which changes no bit. */
static void unembedding_backward_input(const Operation *op, const Workspace *w, const Range *range) {
#if MICROGPT_EXACT
    real *rows = range->scratch;
    const int64_t n_in = op->n_in;
    for (int64_t panel = range->begin; panel < range->end; panel++) {
        const int32_t *targets = w->targets + panel * LINE;
        real *d_logits = activation(w, op->d_output, op->n_out, panel * LINE), d_target[LINE];
        for (int r = 0; r < LINE; r++) {
            d_target[r] = d_logits[targets[r] * LINE + r];
            d_logits[targets[r] * LINE + r] = 0;
        }
        linear_backward_input(op, w, &(Range){panel, panel + 1, range->scratch});
        gather_rows(weights_of(op, w), targets, NULL, NULL, n_in, rows);
        real *d_input = activation(w, op->d_input, n_in, panel * LINE);
        for (int64_t i = 0; i < n_in * LINE; i += LANES)
            store(d_input + i, load(d_input + i) + load(rows + i) * load(d_target + i % LINE));
    }
#else
    linear_backward_input(op, w, range);
#endif
}
