/* Adam (Kingma and Ba, 2015), one pass over the flat arrays.
 *
 *     m = beta1 * m + (1 - beta1) * g          v = beta2 * v + (1 - beta2) * g ** 2
 *     parameter -= learning_rate * (m / bias1) / ((v / bias2) ** 0.5 + eps)
 */
#pragma once

#include "numerics.h"

static void adam(int64_t n, void *parameters_, const void *gradients_, void *m_, void *v_, const AdamStep *s) {
    real *parameters = parameters_, *m = m_, *v = v_;
    const real *gradients = gradients_;
    const real beta1 = s->beta1, beta2 = s->beta2, rest1 = 1 - s->beta1, rest2 = 1 - s->beta2;
    for (int64_t i = 0; i < n; i++) {
        const real g = gradients[i];
        m[i] = beta1 * m[i] + rest1 * g;
        v[i] = beta2 * v[i] + rest2 * power(g, 2);
        const real m_hat = m[i] / (real)s->bias1, v_hat = v[i] / (real)s->bias2;
        parameters[i] -= (real)s->learning_rate * m_hat / (power(v_hat, (real)0.5) + (real)s->eps);
    }
}
