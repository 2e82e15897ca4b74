/* Types shared by the engine and its kernels: the operations on the tape, and the table of kernels for one element type
 * and one instruction set. Everything here is independent of both.
 *
 * Shapes. A step works on `rows` token positions: the documents of the batch packed end to end, no padding between
 * them. LINE elements fill a cache line, and LINE rows are a panel. An activation of width n is stored panel by panel,
 * feature by feature:
 *
 *     [panels][n][LINE]        row r, feature i at ((r / LINE) * n + i) * LINE + r % LINE
 *
 * So the lanes of a vector are different positions, and every sum over features, over the vocabulary or over earlier
 * positions is a sum of vectors, in the order of the reference: exact whatever the width of a vector.
 *
 * Padding. The lanes beyond the last row must change no bit, whatever the parameters are:
 *
 *   1. Their embeddings are 0, and every operation makes zeros of zeros, as long as parameters are finite. Their losses
 *      have gradient 0, and so all their gradients are 0.
 *   2. Sums over rows (gradients of weights and embeddings) end at the last row: they never meet padding.
 *   3. Sums of attention do meet padding, other documents and later rows, as terms 0 * x. A sum that starts at +0.0 is
 *      never -0.0, so 0 * x changes no bit of it if x is finite. If x is not, the term is NaN, then the sum, then
 *      everything computed from it, up to the row's logits, down to the gradient of its position's embedding. Where
 *      the engine finds those not finite, rightly or not, it runs the pass again `by_rows`, without such terms. A loss
 *      need not be computed again: a value that is not finite makes that of its own row, which attends to it, NaN.
 *   4. In a cache, a lane meets only what earlier documents have left in it: see attention_forward_cached.
 *
 * A single document that grows token by token would use one lane of 16: decode.h has another layout for it.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>

enum {
    LINE_BYTES = 64,
    QUERY_PANELS = 2, /* panels of a query block, whose attention is computed together */
};

typedef enum {
    STORE,          /* c = sum */
    ADD,            /* c = sum + extra */
    RELU,           /* c = max(0, sum) */
    RELU_BACKWARD   /* c = sum where extra > 0, otherwise 0 (exact: 0 * sum) */
} Epilogue;

/* One record on the tape: `Operation` of network.py, with the places of its arrays in the arena. Offsets count elements
 * from the start of the arena; -1 stands for none. Gradients are named d_ and what they are of. */
typedef struct {
    const struct Kernel *kernel;    /* its forward and backward */
    Epilogue epilogue;              /* of LINEAR and DROPOUT: applied to each result before it is stored */
    Epilogue backward_epilogue;     /* of LINEAR: applied to each element of d_input */
    int accumulate;                 /* of RMSNORM: add to the d_input that is there already */
    int64_t n_in, n_out;            /* widths of input and output */
    int64_t input, output;          /* activations */
    int64_t d_input, d_output;
    int64_t residual;               /* activation that the epilogue ADD adds to the output */
    int64_t saved;                  /* array that forward leaves for backward, beside input and output */
    double scale;                   /* of RMSNORM: 1 / n_in, of ATTENTION: 1 / sqrt(head_dim), of DROPOUT: 1 / (1 - p) */
    int64_t weight;                 /* of a matrix product: where in the parameters its weights [n_out][n_in] start */
    const int64_t *weight_blocks;   /* ... where those of each head_dim outputs start, if not in one piece; or NULL */
    int64_t gathered;               /* ... where in the arena they are brought together, */
    int64_t d_gathered;      /* ... and their gradients */
    int64_t transposed;             /* of a large matrix: where in the arena backward transposes it to */
    int64_t cache;                  /* of ATTENTION: its number among the layers that have keys and values in a cache */
    int64_t packed;                 /* of a matrix product: where in the packed weights its own start */
    int64_t first_draw;             /* of DROPOUT: the first of its random numbers, among those of a position */
    int64_t threshold;              /* ... an element is dropped if its random number, of 53 bits, is below */
} Operation;

/* The batch that operations work on. Arrays over rows have room for whole panels. */
typedef struct {
    void *arena;
    const void *parameters;         /* [num_params] */
    void *gradients;                /* [num_params] */
    int64_t num_wte, num_wpe;       /* elements of the first two parameter matrices */
    int64_t vocab_size, n_embd, n_head, block_size;

    int64_t rows, longest;          /* `longest`: the most rows that any row attends to, */
    int32_t *longest_of_panel;      /* [panels], ... and any of a panel */
    int32_t *tokens;                /* [rows], padding: 0, as in the next two */
    int32_t *targets;               /* [rows] */
    int32_t *positions;             /* [rows] */
    int32_t *first_rows;            /* [rows], the row at which the document of the row starts */
    double *d_losses;          /* [rows], d loss / d (loss of the row) */
    double *losses;                 /* [rows] */
    int64_t *attention_start;       /* [panels], where in the `saved` of an ATTENTION each panel starts */
    int64_t *span_start;            /* [spans + 1], panels: no document reaches into another span */
    int64_t spans;
    uint64_t *streams;              /* [rows], where the random numbers of each row begin (splitmix.h); NULL: there are
                                       none, because this is no training */
    int by_rows;                    /* attention skips what a row does not attend to, rather than add 0 times it */

    void *const *caches;            /* [panels] key/value caches: each row then continues a document of its own */
    const void *packed;             /* weights of all matrix products, packed for decode.h */
    double temperature;             /* with caches: the divisor of the logits, or 0 */
    const double *uniforms;         /* [rows], in [0, 1), to draw tokens with; or NULL */
    double *probabilities;          /* [rows][vocab_size], or NULL: where they go */
    int32_t *drawn;                 /* [rows], where the tokens go, if there are uniforms */
} Workspace;

/* Part of an operation's work, for one thread: the tasks in [begin, end), whatever a task is. */
typedef struct {
    int64_t begin, end;
    void *scratch;                  /* memory of this thread alone, `scratch_size` elements */
} Range;

/* Work that threads can share: no task waits for another, and none adds to what another writes. */
typedef struct {
    void (*run)(const Operation *, const Workspace *, const Range *);
    int64_t (*tasks)(const Operation *, const Workspace *);
    int64_t grain;                  /* tasks that a thread had better do together */
} Stage;

enum { STAGES = 4 };
typedef Stage Stages[STAGES];       /* run one after the other, up to the first without `run` */

/* The two directions of an operation; and forward for a single row, whose weights are packed first, see decode.h. */
typedef struct Kernel {
    const char *name;
    Stages forward, backward;
    Stages pack, decode;
} Kernel;

typedef struct {
    double learning_rate, beta1, beta2, eps;
    double bias1, bias2;            /* 1 - beta1**step and 1 - beta2**step */
    double shrinkage;               /* 1 - learning_rate * weight_decay: factor of the parameters */
    double gradient_scale;          /* factor of the gradients: below 1 where they are clipped */
} AdamStep;

/* The kernels for one element type and one instruction set. */
typedef struct {
    const char *instruction_set;
    int exact;                      /* float64: every bit is the reference's */
    size_t itemsize;
    const Kernel *operations;       /* ends with one without a name */
    Stages draw, decode_draw;       /* of the logits: probabilities and tokens; of a single row */
    int64_t (*scratch_size)(const Workspace *, int64_t rows);
    /* Elements of `saved` that one panel of an ATTENTION needs. */
    int64_t (*attention_size)(const Workspace *, int64_t panel);
    /* Elements of the key/value cache of a panel, or of a single row, for one layer. */
    int64_t (*cache_size)(const Workspace *);
    int64_t (*decode_cache_size)(const Workspace *);
    int (*all_finite)(int64_t n, const void *x);
    void (*add)(int64_t n, void *sum, const void *x);
    double (*sum_of_squares)(int64_t n, const void *gradients);
    void (*adam)(int64_t n, void *parameters, const void *gradients, void *m, void *v, const AdamStep *);
    /* Peak rates of the machine, see peak.h. */
    double (*multiply_add_loop)(int64_t iterations);
    double (*divide_root_loop)(int64_t iterations);
    int64_t multiply_adds_per_iteration, divide_roots_per_iteration;
} Kernels;
