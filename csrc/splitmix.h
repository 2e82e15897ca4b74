/* Random numbers with random access: SplitMix64 (Steele, Lea and Flood, 2014), a counter whose bits are mixed.
 * microgpt/random/splitmix.py is the twin in Python. */
#pragma once

#include <stdint.h>

static inline uint64_t mixed(uint64_t word) {
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9;
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB;
    return word ^ (word >> 31);
}

/* A random number in [0, 1) of 53 bits: number `number` of the stream of a document. */
static inline double uniform_of(uint64_t seed, uint64_t document, uint64_t number) {
    const uint64_t stream = mixed(mixed(seed) + document);
    return (mixed(stream + (number + 1) * 0x9E3779B97F4A7C15) >> 11) * 0x1p-53;
}
