/* Runs the kernels of one instruction set without Python: training steps, and documents that are drawn, of a model that
 * targets.py describes on standard input. Prints every bit of the losses, the first gradients, the parameters, the moments
 * of Adam, and the probabilities of what is drawn. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../csrc/adam_step.h"
#include "../csrc/kernels/cpu.h"
#include "../csrc/splitmix.h"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define FLOAT64 JOIN(microgpt_kernels_float64_, MICROGPT_INSTRUCTION_SET)
#define FLOAT32 JOIN(microgpt_kernels_float32_, MICROGPT_INSTRUCTION_SET)
extern const Kernels FLOAT64, FLOAT32;

enum { MOST_CACHES = 64, NOT_SUPPORTED = 77 };

/* The functions of targets.h, no better than they need be. With them, all systems have to agree on every bit. */
double exp(double x) {
    if (!(x > -700)) return x == x ? 0 : x;
    const double k = (double)(int64_t)(x * 1.4426950408889634 - 0.5), r = x - k * 0x1.62e42fefa38p-1 - k * 0x1.ef35793c7673p-45;
    double sum = 1;
    for (int i = 18; i > 0; i--) sum = 1 + r / i * sum;
    const uint64_t bits = (uint64_t)((int64_t)k + 1023) << 52;
    double power;
    memcpy(&power, &bits, sizeof power);
    return power * sum;
}

double log(double x) {
    int exponent;
    const double m = frexp(x, &exponent), z = (m - 1) / (m + 1);
    double sum = 0;
    for (int i = 61; i > 0; i -= 2) sum = sum * z * z + 1.0 / i;
    return exponent * 0x1.62e42fefa39efp-1 + 2 * z * sum;
}

double pow(double x, double y) {
    if (y == 2) return x * x;
    if (y == -1) return 1 / x;
    if (y == 0.5) return sqrt(x);
    return exp(y * log(x));
}

double erf(double x) {
    double term = x, sum = x;
    if (!(fabs(x) < 5)) return x > 0 ? 1 : -1;
    for (int i = 1; i < 100; i++) term *= -x * x / i, sum += term / (2 * i + 1);
    return sum * 1.1283791670955126;
}

static int64_t next(void) {
    int64_t x;
    if (scanf("%" SCNd64, &x) != 1) fputs("the description of the model ends too early\n", stderr), exit(2);
    return x;
}

static void *zeros(int64_t size) { /* on a cache line, with room for what kernels read past the end */
    char *memory = calloc((size_t)size + 2 * LINE_BYTES, 1);
    if (!memory) fputs("no memory\n", stderr), exit(2);
    return memory + LINE_BYTES - (uintptr_t)memory % LINE_BYTES;
}

static void print_numbers(const char *name, const Kernels *kernels, const void *numbers, int64_t n, int is_real) {
    printf("%s", name);
    for (int64_t i = 0; i < n; i++) {
        uint64_t bits = 0;
        uint32_t half;
        if (is_real && kernels->itemsize == 4) memcpy(&half, (const char *)numbers + 4 * i, 4), bits = half;
        else memcpy(&bits, (const char *)numbers + 8 * i, 8);
        printf(" %" PRIx64, bits);
    }
    printf("\n");
}

static void run(const Stage *stages, const Operation *op, const Workspace *w, void *scratch, int exact) {
    for (int i = 0; i < STAGES && stages[i].run; i++) {
        const FloatMode before = begin_work(exact);
        const Range all = {0, stages[i].tasks(op, w), scratch};
        stages[i].run(op, w, &all);
        end_work(exact, before);
    }
}

int main(void) {
    if (!SUPPORTED) return NOT_SUPPORTED;
    const int exact = (int)next();
    const Kernels *kernels = exact ? &FLOAT64 : &FLOAT32;

    Workspace w = {.vocab_size = next()};
    w.n_embd = next(), w.n_head = next(), w.block_size = next(), w.num_wte = next(), w.num_wpe = next();
    const int64_t num_params = next(), layers = next(), packed = next(), arena = next(), length = next();
    const int64_t inference = next();
    Operation *tape = calloc((size_t)length, sizeof *tape);
    for (int64_t i = 0; i < length; i++) {
        Operation *op = &tape[i];
        char name[32];
        if (scanf("%31s", name) != 1) return 2;
        for (op->kernel = kernels->operations; strcmp(op->kernel->name, name) != 0;) op->kernel++;
        op->epilogue = (Epilogue)next(), op->backward_epilogue = (Epilogue)next(), op->accumulate = (int)next();
        const int64_t scale = next();
        memcpy(&op->scale, &scale, 8);
        op->n_in = next(), op->n_out = next(), op->input = next(), op->output = next(), op->d_input = next();
        op->d_output = next(), op->residual = next(), op->saved = next(), op->weight = next(), op->gathered = next();
        op->d_gathered = next(), op->transposed = next(), op->cache = next(), op->packed = next();
        op->first_draw = next(), op->threshold = next();
        const int64_t blocks = next();
        int64_t *starts = zeros(blocks * 8);
        for (int64_t k = 0; k < blocks; k++) starts[k] = next();
        op->weight_blocks = blocks > 0 ? starts : NULL;
    }

    const int64_t itemsize = (int64_t)kernels->itemsize, size = num_params * itemsize;
    void *parameters = zeros(size), *gradients = zeros(size), *m = zeros(size), *v = zeros(size);
    for (int64_t i = 0; i < num_params; i++) {
        const double x = 0.5 * (uniform_of(42, 0, (uint64_t)i) - 0.5);
        if (exact) ((double *)parameters)[i] = x;
        else ((float *)parameters)[i] = (float)x;
    }
    w.parameters = parameters, w.gradients = gradients, w.arena = zeros(arena * itemsize);

    /* The batch: padded to whole panels, in the engine's layout. */
    const int64_t rows = next(), padded = next(), panels = next();
    w.rows = rows, w.longest = next(), w.spans = next();
    w.tokens = zeros(padded * 4), w.targets = zeros(padded * 4), w.positions = zeros(padded * 4);
    w.first_rows = zeros(padded * 4), w.d_losses = zeros(padded * 8), w.losses = zeros(padded * 8);
    w.longest_of_panel = zeros(padded * 4);
    w.attention_start = zeros(panels * 8 + 8), w.span_start = zeros(w.spans * 8 + 8);
    for (int64_t r = 0; r < padded; r++) {
        w.tokens[r] = (int32_t)next(), w.targets[r] = (int32_t)next(), w.positions[r] = (int32_t)next();
        w.first_rows[r] = (int32_t)next();
        const int64_t d_loss = next();
        memcpy(&w.d_losses[r], &d_loss, 8);
    }
    uint64_t *streams = zeros(padded * 8);
    const uint64_t draws = (uint64_t)next();
    for (int64_t r = 0; r < rows; r++)
        streams[r] = SPLITMIX_SKIP(stream_of(1, (uint64_t)w.first_rows[r]), (uint64_t)w.positions[r] * draws);
    for (int64_t span = 0; span <= w.spans; span++) w.span_start[span] = next();
    for (int64_t r = 0; r < panels * LINE_BYTES / itemsize; r++) {
        int32_t *longest = &w.longest_of_panel[r * itemsize / LINE_BYTES];
        if (w.positions[r] + 1 > *longest) *longest = w.positions[r] + 1;
    }
    for (int64_t panel = 0, attention = 0; panel < panels; panel++) {
        w.attention_start[panel] = attention;
        attention += kernels->attention_size(&w, panel);
    }
    void *scratch = zeros(kernels->scratch_size(&w, padded) * itemsize);

    AdamUpdate update = {.kernels = kernels, .size = num_params, .parameters = parameters, .gradients = gradients,
                         .m = m, .v = v, .all_gradients = gradients, .all_size = num_params, .weight_decay = 0.1,
                         .max_grad_norm = 1, .step = {.beta1 = 0.85, .beta2 = 0.99, .eps = 1e-8}};
    static Team alone;
    team_start(&alone, 1);
    w.streams = streams;
    for (int64_t step = 1, steps = next(); step <= steps; step++) {
        for (int64_t i = 0; i < length; i++) run(tape[i].kernel->forward, &tape[i], &w, scratch, exact);
        for (int64_t i = length - 1; i >= 0; i--) run(tape[i].kernel->backward, &tape[i], &w, scratch, exact);
        print_numbers("losses", kernels, w.losses, rows, 0);
        if (step == 1) print_numbers("gradients", kernels, gradients, num_params, 1);
        adam_step(&update, &alone, step, 0.01);
    }
    print_numbers("parameters", kernels, parameters, num_params, 1);
    print_numbers("m", kernels, m, num_params, 1);
    print_numbers("v", kernels, v, num_params, 1);

    w.streams = NULL;

    /* Documents, many at once and one alone, drawn with temperature 0.8. */
    const int64_t documents = next(), document_panels = next(), tokens = next();
    void *caches[MOST_CACHES];
    for (int64_t i = 0; i < document_panels; i++) caches[i] = zeros(layers * kernels->cache_size(&w) * itemsize);
    w.probabilities = zeros(documents * w.vocab_size * 8), w.drawn = zeros(padded * 4);
    double *uniforms = zeros(padded * 8);
    w.uniforms = uniforms, w.caches = caches, w.temperature = 0.8, w.rows = documents;
    for (int64_t r = 0; r < padded; r++) w.tokens[r] = 0, w.first_rows[r] = (int32_t)r;
    for (int64_t position = 0; position < tokens; position++) {
        w.longest = position + 1;
        for (int64_t panel = 0; panel < document_panels; panel++) w.longest_of_panel[panel] = (int32_t)position + 1;
        for (int64_t r = 0; r < documents; r++) {
            w.positions[r] = (int32_t)position;
            uniforms[r] = uniform_of(7, (uint64_t)r, (uint64_t)position);
        }
        for (int64_t i = 0; i < inference; i++) run(tape[i].kernel->forward, &tape[i], &w, scratch, exact);
        run(kernels->draw, &tape[inference - 1], &w, scratch, exact);
        print_numbers("probabilities", kernels, w.probabilities, documents * w.vocab_size, 0);
        memcpy(w.tokens, w.drawn, (size_t)documents * 4);
    }
    w.packed = zeros(packed * itemsize), w.caches = NULL;
    for (int64_t i = 0; i < inference; i++) run(tape[i].kernel->pack, &tape[i], &w, scratch, exact);
    caches[0] = zeros(layers * kernels->decode_cache_size(&w) * itemsize);
    w.caches = caches, w.rows = 1, w.tokens[0] = 0;
    for (int64_t position = 0; position < tokens; position++) {
        w.positions[0] = (int32_t)position, uniforms[0] = uniform_of(7, 0, (uint64_t)position);
        for (int64_t i = 0; i < inference; i++) run(tape[i].kernel->decode, &tape[i], &w, scratch, exact);
        run(kernels->decode_draw, &tape[inference - 1], &w, scratch, exact);
        print_numbers("decoded", kernels, w.probabilities, w.vocab_size, 0);
        w.tokens[0] = w.drawn[0];
    }
    return 0;
}
