/* Linear layers without bias, and the last of them, which gives the logits. */
#pragma once

#include "product.h"

/* Weights in lines: what each product reads is contiguous, and rows appear in the order in which they are summed.
 *
 *     packed_transposed  [lines(n_out)][n_in][LINE]    read by forward:  output[r][o] sums over i
 *     packed             [lines(n_in)][n_out][LINE]    read by backward: input_gradient[r][i] sums over o
 *
 * Where the parameters have whole lines in the order of the sums already, `packed` is -1 and backward reads them.
 */
static void linear_pack(const Operation *op, const Workspace *w) {
    const real *parameters = w->parameters;
    transpose_to_lines(parameters, op->weight_rows, 0, op->n_out, op->n_in, (real *)w->arena + op->packed_transposed);
    if (op->packed < 0) return;
    for (int64_t o = 0; o < op->n_out; o++) {
        const real *row = parameters + op->weight_rows[o];
        real *line = (real *)w->arena + op->packed + o * LINE;
        int64_t i = 0;
        for (; i + LINE <= op->n_in; i += LINE, line += op->n_out * LINE)
            for (int v = 0; v < LINE; v += LANES) store(line + v, load(row + i + v));
        for (int64_t l = 0; i + l < op->n_in; l++) line[l] = row[i + l];
    }
}

static void linear_forward(const Operation *op, const Workspace *w) {
    real *arena = w->arena;
    multiply(&(Product){.a = arena + op->input, .a_row = stride(op->n_in), .a_step = 1,
                        .b = arena + op->packed_transposed, .b_step = LINE, .b_line = op->n_in * LINE,
                        .depth = op->n_in,
                        .c = arena + op->output, .c_row = stride(op->n_out),
                        .epilogue = op->epilogue, .extra = arena + op->residual},
             w->rows, op->n_out, 1);
}

/* input_gradient[r][i] = sum over o, last to first, of output_gradient[r][o] * weight[o][i] */
static void linear_backward_input(const Operation *op, const Workspace *w) {
    real *arena = w->arena;
    const int64_t last = op->n_out - 1;
    const int is_packed = op->packed >= 0;
    const real *weights = is_packed ? arena + op->packed : (const real *)w->parameters + op->weight_rows[0];
    const int64_t step = is_packed ? LINE : op->n_in;
    multiply(&(Product){.a = arena + op->output_gradient + last, .a_row = stride(op->n_out), .a_step = -1,
                        .b = weights + last * step, .b_step = -step, .b_line = is_packed ? op->n_out * LINE : LINE,
                        .depth = op->n_out,
                        .c = arena + op->input_gradient, .c_row = stride(op->n_in),
                        .epilogue = op->backward_epilogue, .extra = arena + op->input},
             w->rows, op->n_in, 1);
}

/* weight_gradient[o][i] = sum over rows, last to first, of output_gradient[r][o] * input[r][i] */
static void linear_backward_weight(const Operation *op, const Workspace *w) {
    real *arena = w->arena;
    const int64_t last = w->rows - 1;
    multiply(&(Product){.a = arena + op->output_gradient + last * stride(op->n_out),
                        .a_row = 1, .a_step = -stride(op->n_out),
                        .b = arena + op->input + last * stride(op->n_in), .b_step = -stride(op->n_in), .b_line = LINE,
                        .depth = w->rows,
                        .c = w->gradients, .c_rows = op->weight_rows},
             op->n_out, op->n_in, 0);
}

static void linear_backward(const Operation *op, const Workspace *w) {
    linear_backward_weight(op, w);
    linear_backward_input(op, w);
}

static void unembedding_forward(const Operation *op, const Workspace *w) { linear_forward(op, w); }

/* In the reference's graph the target's logit is reached first through the loss's numerator, so that its row is the
 * last to be added to the input's gradient. Leaving it out first is adding 0 times it, which changes no bit. */
static void unembedding_backward(const Operation *op, const Workspace *w) {
    real *arena = w->arena, *output_gradient = arena + op->output_gradient;
    real *target_gradient = w->scratch;
    linear_backward_weight(op, w);
    for (int64_t r = 0; r < w->rows; r++) {
        real *logit = output_gradient + r * stride(op->n_out) + w->targets[r];
        target_gradient[r] = *logit;
        *logit = 0;
    }
    linear_backward_input(op, w);
    for (int64_t r = 0; r < w->rows; r++) {
        const real *row = (const real *)w->parameters + op->weight_rows[w->targets[r]];
        real *input_gradient = arena + op->input_gradient + r * stride(op->n_in);
        for (int64_t i = 0; i < op->n_in; i++) input_gradient[i] += row[i] * target_gradient[r];
    }
}
