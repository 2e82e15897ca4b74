/* All kernels, for the element type and instruction set given by the compiler's flags (see setup.py). */
#include "adam.h"
#include "attention.h"
#include "ceiling.h"
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

const Kernels JOIN(MICROGPT_SYMBOL, MICROGPT_INSTRUCTION_SET) = {
    .instruction_set = STRINGIFY(MICROGPT_INSTRUCTION_SET),
    .itemsize = sizeof(real),
    .pack = linear_pack,
    .forward = {embedding_forward, rmsnorm_forward, linear_forward, attention_forward, unembedding_forward,
                cross_entropy_forward},
    .backward = {embedding_backward, rmsnorm_backward, linear_backward, attention_backward, unembedding_backward,
                 cross_entropy_backward},
    .adam = adam,
    .softmax = softmax_forward,
    .multiply_add_loop = multiply_add_loop,
    .divide_root_loop = divide_root_loop,
    .multiply_adds_per_iteration = CEILING_SUMS * LANES,
    .divide_roots_per_iteration = CEILING_ROOTS * LANES,
};
