/* Refuses to be compiled where a `double` would not be one. setup.py takes back the flags that it knows of; here is what
 * the compiler says of itself after that. probe.c looks at what it does. */
#pragma once

#include <float.h>

#if defined(__FAST_MATH__) || defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) \
    || defined(__NO_SIGNED_ZEROS__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "the compiler's flags change numbers, as -ffast-math and -Ofast do"
#endif

#if defined(_WIN32) && !defined(__clang__)
#error "compilers for Windows other than Clang have no vectors, or misalign them on the stack, as GCC does"
#endif

#if FLT_EVAL_METHOD < 0 || FLT_EVAL_METHOD == 2 || FLT_EVAL_METHOD > 64
#error "doubles are computed in another precision than their own, as the x87 does"
#endif

_Static_assert(DBL_MANT_DIG == 53, "doubles have another precision than Python's");
_Static_assert((long)16777217.0 == 16777217, "the compiler's flags make constants less precise"); /* 2**24 + 1 */
