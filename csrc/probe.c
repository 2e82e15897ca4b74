/* The extension module that setup.py builds, imports and throws away before it builds ours: with the same compiler,
 * flags and linker, it needs what they need, and its import fails with the reason where arithmetic is not what the exact
 * policy says. A flag may come from where setup.py cannot see it, such as from inside a compiler that is a script. */
#include <Python.h>

#include "kernels/cpu.h"
#include "kernels/peak.h"
#include "kernels/exponential.h"
#include "team.h"

/* The optimizer knows none of these numbers. */
static volatile double zero = 0, one = 1, two = 2, three = 3, forty_nine = 49, tiny = 0x1p-1030, epsilon = 0x1p-30;
static volatile double large = 1e16, infinity = INFINITY, not_a_number = NAN, exponents[] = {2, 0.5, -1, -2, -0.5, -1.5};
static double (*volatile library_pow)(double, double) = pow;

#if defined(__x86_64__)
#define CAN_FUSE has_avx2()
__attribute__((target("fma")))
#else
#define CAN_FUSE 1
#endif
static double multiply_add(double a, double b, double c) { return a * b + c; }

static int pow_is_the_library_s(void) {
    for (int i = 0; i < 10000; i++) {
        const double x = one + i * 0x1.9p-13;
        const double powers[] = {pow(x, 2), pow(x, 0.5), pow(x, -1), pow(x, -2), pow(x, -0.5), pow(x, -1.5)};
        for (int k = 0; k < 6; k++)
            if (powers[k] != library_pow(x, exponents[k])) return 0;
    }
    return 1;
}

static void count(void *context, int64_t begin, int64_t end, int thread) {
    (void)thread;
    *(int64_t *)context += end - begin;
}

/* Whether work for a team is done, by a leader whose worker never comes. */
static int team_works(void) {
    static Team team;
    int64_t counted = 0;
    team_start(&team, 2);
    team_run(&team, count, &counted, 100, 1);
    team_stop(&team);
    return counted == 100;
}

static const char *fault(void) {
    const double a = one, b = epsilon, sums[] = {one + b * b + b * b, (a + b * b) - a};
    if (tiny * 0.5 == 0) return "the compiler's flags make subnormal numbers 0 in the whole process";
    if (not_a_number == not_a_number || infinity - infinity == 0 || isfinite(infinity) || !isnan(not_a_number))
        return "the compiler's flags do away with infinity and NaN";
    if (copysign(1, zero - zero) != 1 || copysign(1, 0 - zero) != 1 || copysign(1, -zero + 0) != 1)
        return "the compiler's flags do away with the sign of 0";
    if (sums[0] != 1 || sums[1] != 0 || large + 2.99999 != large + two)
        return "the compiler's flags add numbers in another order or precision";
    if (forty_nine / 49.0 != 1 || 1 / (one / three) != 3) return "the compiler's flags divide by multiplying";
    if (CAN_FUSE && multiply_add(one + b, one + b, -(one + 2 * b)) != 0)
        return "the compiler's flags fuse multiply and add";
    if (!pow_is_the_library_s()) return "the compiler's flags compute pow in another way than the C library";
    if (!(multiply_add_loop(10) < 100) || !(divide_root_loop(10) > 0) || !(exponential((vec){0})[0] == 1))
        return "the compiler computes wrong vectors";
    if (!team_works()) return "the compiler gets atomic variables wrong";
    return NULL;
}

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "probe"};

PyMODINIT_FUNC PyInit_probe(void) {
    const char *reason = fault();
    if (reason) return PyErr_SetString(PyExc_ImportError, reason), NULL;
    return PyModule_Create(&definition);
}
