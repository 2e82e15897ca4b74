/* The functions that the C libraries of two systems compute with other last bits, replaced in kernels and targets.c by
 * those of targets.c. */
#include <math.h>

double targets_exp(double x);
double targets_log(double x);
double targets_pow(double x, double y);
double targets_erf(double x);

#define exp targets_exp
#define log targets_log
#define pow targets_pow
#define erf targets_erf
