/* What the engine and its kernels share: the operations on the tape, and the table of kernels for one element type
 * and one instruction set. Everything here is independent of both.
 *
 * Shapes. A step works on `rows` token positions: the documents of the batch packed end to end, no padding between
 * them. An activation of width n is a matrix [rows][stride(n)], row-major, where stride(n) rounds n up to whole lines
 * of 64 bytes; the columns beyond n hold numbers nobody reads. Parameters and their gradients have no such padding.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

enum { LINE_BYTES = 64 };

typedef enum {
    EMBEDDING,      /* output = wte[token] + wpe[position] */
    RMSNORM,        /* output = input / root mean square of input */
    LINEAR,         /* output = input x weight, then the epilogue */
    ATTENTION,      /* output = causal multi-head attention of the packed queries, keys and values in input */
    UNEMBEDDING,    /* output = input x weight, the logits */
    CROSS_ENTROPY,  /* losses = -log softmax(input)[target] */
    OPERATION_KINDS
} OperationKind;

typedef enum {
    STORE,          /* c = sum */
    ADD,            /* c = sum + extra */
    RELU,           /* c = max(0, sum) */
    RELU_BACKWARD   /* c = sum where extra > 0, otherwise 0 */
} Epilogue;

/* One record on the tape. Offsets count elements from the start of the arena; -1 says there is no such thing. */
typedef struct {
    OperationKind kind;
    Epilogue epilogue;              /* of LINEAR: what happens to each sum before it is stored */
    Epilogue backward_epilogue;     /* of LINEAR: what happens to each gradient of the input */
    int accumulate;                 /* of RMSNORM: add to the gradient that the input already has */
    int64_t n_in, n_out;            /* widths of input and output */
    int64_t input, output;          /* activations */
    int64_t input_gradient, output_gradient;
    int64_t residual;               /* activation that the epilogue ADD adds */
    int64_t saved;                  /* what forward leaves for backward, beside input and output */
    double scale;                   /* of RMSNORM: 1 / n_in, of ATTENTION: 1 / sqrt(head_dim) */
    const int64_t *weight_rows;     /* of a matrix product: where in the parameters each output's weights start */
    int64_t packed, packed_transposed; /* of a matrix product: the same weights in lines, see `pack` */
    int64_t cache;                  /* of ATTENTION: where in a key/value cache this layer starts */
} Operation;

/* What an operation works on. */
typedef struct {
    void *arena;
    const void *parameters;         /* [num_params] */
    void *gradients;                /* [num_params] */
    int64_t num_wte, num_wpe;       /* elements of the first two parameter matrices */
    int64_t vocab_size, n_embd, n_head, block_size;

    int64_t rows, documents;
    const int32_t *tokens;          /* [rows] */
    const int32_t *targets;         /* [rows] */
    const int32_t *positions;       /* [rows] */
    const int64_t *document_start;  /* [documents + 1], the row where each document starts */
    const int64_t *attention_start; /* [documents], where in an ATTENTION's `saved` each document starts */
    const double *loss_gradient;    /* [rows], d loss / d (loss of the row) */
    double *losses;                 /* [rows] */

    void *scratch;                  /* `scratch_size` elements for the length of one kernel */
    void *const *caches;            /* [rows] key/value caches: each row then continues a document of its own */
} Workspace;

typedef struct {
    double learning_rate, beta1, beta2, eps;
    double bias1, bias2;            /* 1 - beta1**step and 1 - beta2**step */
} AdamStep;

typedef void (*Kernel)(const Operation *, const Workspace *);

/* The kernels for one element type and one instruction set. */
typedef struct {
    const char *instruction_set;
    size_t itemsize;
    Kernel pack, forward[OPERATION_KINDS], backward[OPERATION_KINDS];
    void (*adam)(int64_t n, void *parameters, const void *gradients, void *m, void *v, const AdamStep *);
    void (*softmax)(int64_t n, void *logits, double temperature, double *probabilities);
    /* The machine's ceiling, see ceiling.h. */
    double (*multiply_add_loop)(int64_t iterations);
    double (*divide_root_loop)(int64_t iterations);
    int64_t multiply_adds_per_iteration, divide_roots_per_iteration;
} Kernels;

