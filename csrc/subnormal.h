/* Subnormal numbers are too small to have all their digits, and take processors a hundred times as long as others.
 * Training makes many of them: the running mean of a dead ReLU's gradients, the gradients of very unlikely tokens. In
 * float32, where their digits do not matter, they are set to 0. */
#pragma once

#if defined(__SSE2__)
#include <xmmintrin.h>
typedef unsigned FloatMode;
static inline FloatMode float_mode(void) { return _mm_getcsr(); }
static inline void set_float_mode(FloatMode mode) { _mm_setcsr(mode); }
enum { SUBNORMAL_IS_ZERO = 0x8040 }; /* as a result, as an operand */
#elif defined(__aarch64__)
#include <stdint.h>
typedef uint64_t FloatMode;
static inline FloatMode float_mode(void) {
    FloatMode mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
}
static inline void set_float_mode(FloatMode mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
enum { SUBNORMAL_IS_ZERO = 1 << 24 };
#else
typedef int FloatMode;
static inline FloatMode float_mode(void) { return 0; }
static inline void set_float_mode(FloatMode mode) { (void)mode; }
enum { SUBNORMAL_IS_ZERO = 0 };
#endif

/* Called before and after work of this thread: unless `exact`, subnormal numbers are 0 in between. Within other such
 * work this changes nothing, and takes next to no time. */
static inline FloatMode begin_work(int exact) {
    const FloatMode before = float_mode();
    if (!exact && (before & SUBNORMAL_IS_ZERO) != SUBNORMAL_IS_ZERO) set_float_mode(before | SUBNORMAL_IS_ZERO);
    return before;
}
static inline void end_work(int exact, FloatMode before) {
    if (!exact && (before & SUBNORMAL_IS_ZERO) != SUBNORMAL_IS_ZERO) set_float_mode(before);
}
