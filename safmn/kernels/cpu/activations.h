// Activation functions of vectors. NaN stays NaN; where eager mode makes infinity or NaN of infinity, so do these.
#pragma once

#include "gelu.h"
#include "vectors.h"

namespace {

// The order is that of CURVES in passes.py.
enum Curve : int { IDENTITY, GELU, GELU_TANH, RELU, LEAKY_RELU, SIGMOID, SILU, TANH, ROOT, CLAMP };

struct Activation {
    Curve curve;
    float first, second;  // the slope of LEAKY_RELU, or the limits of CLAMP
};

// The larger or smaller value of a number and a limit; NaN if `value` is NaN.
INLINE Vec at_least(float limit, Vec value) { return larger(splat(limit), value); }
INLINE Vec at_most(float limit, Vec value) { return smaller(splat(limit), value); }

// e^x to 2 units in the last place: 2^n times a polynomial (Taylor's) in the remainder, of at most ln(2) / 2.
INLINE Vec exponential(Vec x) {
    constexpr float ROUNDING = 12582912.0f;  // 1.5 * 2^23: a sum with it is rounded to a whole number
    x = at_most(88.0f, at_least(-87.3f, x));
    const Vec shifted = x * 1.44269504088896341f + ROUNDING, n = shifted - ROUNDING;
    const Vec r = x - n * 0.693359375f + n * 2.12194440e-4f;  // ln(2) in two parts
    Vec sum = splat(1.0f / 5040);
    for (const float factor : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) sum = sum * r + factor;
    return sum * (Vec)(((Bits)shifted << 23) + 0x3F800000u);
}

INLINE Vec sigmoid(Vec x) { return 1.0f / (1.0f + exponential(-x)); }

template <int N>
INLINE void activate(const Activation& activation, Vec (&values)[N]) {
    switch (activation.curve) {
        case IDENTITY: break;
        case GELU: gelu(values, values); break;
        case GELU_TANH:
            for (Vec& x : values) x *= sigmoid(x * (1.5957691216057308f + 0.07135481282989447f * x * x));
            break;
        case RELU:
            for (Vec& x : values) x = at_least(0.0f, x);
            break;
        case LEAKY_RELU:
            for (Vec& x : values) x = x > 0.0f ? x : x * activation.first;
            break;
        case SIGMOID:
            for (Vec& x : values) x = sigmoid(x);
            break;
        case SILU:
            for (Vec& x : values) x *= sigmoid(x);
            break;
        case TANH:
            for (Vec& x : values) x = 2.0f * sigmoid(2.0f * x) - 1.0f;
            break;
        case ROOT:
            for (Vec& x : values)
                for (int i = 0; i < LANES; ++i) x[i] = std::sqrt(x[i]);
            break;
        case CLAMP:
            for (Vec& x : values) x = at_most(activation.second, at_least(activation.first, x));
            break;
    }
}

}  // namespace
