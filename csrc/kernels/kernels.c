/* All kernels, for the element type and instruction set given by the compiler's flags (see setup.py). */
#include "activation.h"
#include "adam.h"
#include "attention.h"
#include "decode.h"
#include "dropout.h"
#include "peak.h"
#include "embedding.h"
#include "linear.h"
#include "rmsnorm.h"
#include "softmax.h"

#define STRINGIFY_(x) #x
#define STRINGIFY(x) STRINGIFY_(x)
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#if MICROGPT_EXACT
#define MICROGPT_SYMBOL microgpt_kernels_float64_
#else
#define MICROGPT_SYMBOL microgpt_kernels_float32_
#endif

/* How many tasks there are for each way to divide work. */
static int64_t each_panel(const Operation *op, const Workspace *w) { return (void)op, lines_for(w->rows); }
static int64_t each_query_block(const Operation *op, const Workspace *w) {
    return (void)op, (lines_for(w->rows) + QUERY_PANELS - 1) / QUERY_PANELS;
}
static int64_t each_line_of_inputs(const Operation *op, const Workspace *w) { return (void)w, lines_for(op->n_in); }
static int64_t each_line_of_outputs(const Operation *op, const Workspace *w) { return (void)w, lines_for(op->n_out); }
static int64_t each_line_to_transpose(const Operation *op, const Workspace *w) {
    return (void)w, op->transposed >= 0 ? lines_for(op->n_out) : 0;
}
static int64_t each_gathered_block(const Operation *op, const Workspace *w) {
    return op->weight_blocks ? op->n_out / (w->n_embd / w->n_head) : 0;
}
static int64_t each_span_and_head(const Operation *op, const Workspace *w) { return (void)op, w->spans * w->n_head; }

static int64_t each_head(const Operation *op, const Workspace *w) { return (void)op, w->n_head; }
static int64_t once(const Operation *op, const Workspace *w) { return (void)op, (void)w, 1; }

static int64_t scratch_size(const Workspace *w, int64_t rows) {
    const int64_t sizes[] = {linear_scratch_size(w, rows), attention_scratch_size(w, rows),
                             lines_for(w->vocab_size) * LINE, lines_for(w->block_size) * LINE * LINE, w->n_embd * LINE};
    int64_t largest = 0;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) largest = sizes[i] > largest ? sizes[i] : largest;
    return largest;
}

/* The operations of network.py by name. */
static const Kernel operations[] = {
    {"embedding",
     .forward = {{embedding_forward, each_panel, 1}},
     .backward = {{embedding_backward, each_line_of_outputs, 1}},
     .decode = {{embedding_decode, once, 1}}},
    {"rmsnorm",
     .forward = {{rmsnorm_forward, each_panel, 1}},
     .backward = {{rmsnorm_backward, each_panel, 1}},
     .decode = {{rmsnorm_decode, once, 1}}},
    {"dropout",
     .forward = {{dropout_forward, each_panel, 1}},
     .backward = {{dropout_backward, each_panel, 1}},
     .decode = {{dropout_decode, each_line_of_inputs, 16}}},
    {"linear",
     .forward = {{linear_gather, each_gathered_block, 1},
                 {linear_forward, each_panel, TILE_LINES}},
     .backward = {{linear_backward_weight, each_line_of_inputs, TILE_LINES},
                  {linear_transpose, each_line_to_transpose, 1},
                  {linear_backward_input, each_panel, TILE_LINES},
                  {linear_scatter, each_gathered_block, 1}},
     .pack = {{linear_gather, each_gathered_block, 1},
              {linear_pack, each_line_of_outputs, 1}},
     .decode = {{linear_decode, each_line_of_outputs, DECODE_GRAIN}}},
    {"gelu",
     .forward = {{gelu_forward, each_panel, 1}},
     .backward = {{activation_backward, each_panel, 1}},
     .decode = {{gelu_decode, each_line_of_inputs, 16}}},
    {"silu",
     .forward = {{silu_forward, each_panel, 1}},
     .backward = {{activation_backward, each_panel, 1}},
     .decode = {{silu_decode, each_line_of_inputs, 16}}},
    {"attention",
     .forward = {{attention_forward, each_query_block, 1}},
     .backward = {{attention_backward, each_span_and_head, 1}},
     .decode = {{attention_decode, each_head, 1}}},
    {"unembedding",
     .forward = {{linear_forward, each_panel, TILE_LINES}},
     .backward = {{linear_backward_weight, each_line_of_inputs, TILE_LINES},
                  {unembedding_backward_input, each_panel, TILE_LINES}},
     .pack = {{linear_pack, each_line_of_outputs, 1}},
     .decode = {{linear_decode, each_line_of_outputs, DECODE_GRAIN}}},
    {"cross_entropy",
     .forward = {{cross_entropy_forward, each_panel, 1}},
     .backward = {{cross_entropy_backward, each_panel, 1}}},
    {NULL},
};

const Kernels JOIN(MICROGPT_SYMBOL, MICROGPT_INSTRUCTION_SET) = {
    .instruction_set = STRINGIFY(MICROGPT_INSTRUCTION_SET),
    .exact = MICROGPT_EXACT,
    .itemsize = sizeof(real),
    .operations = operations,
    .draw = {{draw, each_panel, 1}},
    .decode_draw = {{decode_draw, once, 1}},
    .scratch_size = scratch_size,
    .attention_size = attention_size,
    .cache_size = cache_size,
    .decode_cache_size = decode_cache_size,
    .all_finite = all_finite,
    .add = add,
    .sum_of_squares = sum_of_squares,
    .adam = adam,
    .multiply_add_loop = multiply_add_loop,
    .divide_root_loop = divide_root_loop,
    .multiply_adds_per_iteration = PEAK_SUMS * LANES,
    .divide_roots_per_iteration = PEAK_ROOTS * LANES,
};
