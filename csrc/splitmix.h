/* Random numbers with random access: SplitMix64 (Steele, Lea and Flood, 2014), a counter whose bits are mixed.
 * microgpt/random/splitmix.py is the twin in Python. */
#pragma once

#include <stdint.h>

/* The counter of a stream after n more numbers. It is incremented before each number. */
#define SPLITMIX_SKIP(counter, n) ((counter) + (n) * UINT64_C(0x9E3779B97F4A7C15))

/* A variable with a counter, or a vector of them, mixed in place. */
#define SPLITMIX_MIX(word)                                                \
    (word = (word ^ (word >> 30)) * UINT64_C(0xBF58476D1CE4E5B9),         \
     word = (word ^ (word >> 27)) * UINT64_C(0x94D049BB133111EB),         \
     word ^ (word >> 31))

/* Stream `number` of those that begin with a seed, or with another stream. */
static inline uint64_t stream_of(uint64_t parent, uint64_t number) {
    uint64_t word = parent + number;
    return SPLITMIX_MIX(word);
}

/* The stream of a step of training, from which those of its documents derive. Sampling shares none of them: no sampled
 * document has number 2**63. */
static inline uint64_t step_stream(uint64_t seed, uint64_t step) {
    return stream_of(stream_of(stream_of(seed, 0), UINT64_C(1) << 63), step);
}

/* A random number in [0, 1) of 53 bits: number `number` of the stream of a document. */
static inline double uniform_of(uint64_t seed, uint64_t document, uint64_t number) {
    uint64_t word = SPLITMIX_SKIP(stream_of(stream_of(seed, 0), document), number + 1);
    return (SPLITMIX_MIX(word) >> 11) * 0x1p-53;
}
