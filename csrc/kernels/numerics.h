/* Elementary functions under the two policies.
 *
 * float64 gives the bits of CPython, which calls the C library: `a / b` between Values is a * pow(b, -1), `x ** 2` is
 * pow(x, 2), and the library's pow is not correctly rounded. Compile with -fno-builtin-pow, or the compiler turns
 * pow(x, 2) into x * x and pow(x, -1) into 1 / x.
 */
#pragma once

#include "vector.h"

#if MICROGPT_EXACT
INLINE real power(real x, real exponent) { return pow(x, exponent); }
INLINE real exponential(real x) { return exp(x); }
INLINE real logarithm(real x) { return log(x); }
#else
INLINE real power(real x, real exponent) { return powf(x, exponent); }
INLINE real exponential(real x) { return expf(x); }
INLINE real logarithm(real x) { return logf(x); }
#endif

