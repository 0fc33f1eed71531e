// GELU of vectors: gelu(x) = max(x, 0) - g(|x|), where g(a) = a Phi(-a) and Phi is the normal distribution.
//
// g is a polynomial in each of some equal intervals. The coefficients of all intervals lie in vectors, from which each
// lane takes its own with one instruction: 32 cubics with AVX-512, 8 polynomials of degree 5 with AVX2. Processors
// without such an instruction use one polynomial for Phi.
#pragma once

#include "vectors.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX2__)

// The polynomials of -g, for t = |x| / WIDTH in [i - 1/2, i + 1/2], in t - i. The error is below 1e-6.
struct GeluTail {
#if defined(__AVX512F__)
    static constexpr int COUNT = 2 * LANES, DEGREE = 3;
#else
    static constexpr int COUNT = LANES, DEGREE = 5;
#endif
    static constexpr float LIMIT = 5.5f, WIDTH = LIMIT / (COUNT - 0.5f);
    alignas(64) float table[DEGREE + 1][COUNT];

    // Interpolate at Chebyshev nodes. The first interval begins at 0, where g is exactly 0.
    GeluTail() {
        constexpr double PI = 3.14159265358979323846;
        for (int i = 0; i < COUNT; ++i) {
            const double half = i ? 0.5 : 0.5 / (1.0 + std::cos(PI / (2 * DEGREE + 2)));
            double nodes[DEGREE + 1], values[DEGREE + 1], sums[DEGREE + 1] = {};
            for (int k = 0; k <= DEGREE; ++k) {
                nodes[k] = 0.5 - half - half * std::cos(PI * (2 * k + 1) / (2 * DEGREE + 2));
                const double a = std::max(nodes[k] + i, 0.0) * WIDTH;
                values[k] = -a * 0.5 * std::erfc(a / std::sqrt(2.0));
            }
            for (int order = 1; order <= DEGREE; ++order)  // divided differences
                for (int k = DEGREE; k >= order; --k)
                    values[k] = (values[k] - values[k - 1]) / (nodes[k] - nodes[k - order]);
            for (int k = DEGREE; k >= 0; --k) {  // Newton's form to powers, by Horner's rule
                for (int j = DEGREE; j > 0; --j) sums[j] = sums[j - 1] - nodes[k] * sums[j];
                sums[0] = values[k] - nodes[k] * sums[0];
            }
            for (int k = 0; k <= DEGREE; ++k) table[k][i] = float(sums[k]);
            if (i == 0) table[0][0] = 0.0f;
        }
    }
    // Coefficient k for the intervals in the lowest bits of each lane of `index`.
    INLINE Vec coefficient(int k, Bits index) const {
#if defined(__AVX512F__)
        return (Vec)_mm512_permutex2var_ps(_mm512_load_ps(table[k]), (__m512i)index, _mm512_load_ps(table[k] + LANES));
#else
        return (Vec)_mm256_permutevar8x32_ps(_mm256_load_ps(table[k]), (__m256i)index);
#endif
    }
};

const GeluTail GELU_TAIL;

// Keep the compiler from joining a value with what is computed before and after it. It would do so for some numbers of
// vectors only, and a pixel would get other bits at another place of an image (tests/test_unchanged.py).
INLINE void separate(Vec& value) {
#if defined(__AVX512F__)
    asm("" : "+v"(value));
#else
    asm("" : "+x"(value));
#endif
}

// Compute GELU of N vectors at once; `out` may be `x`. NaN stays NaN, and infinity of either sign becomes NaN.
template <int N>
INLINE void gelu(const Vec (&x)[N], Vec (&out)[N]) {
    constexpr float ROUNDING = 12582912.0f;  // 1.5 * 2^23: a sum with it is rounded to a whole number
    Vec t[N], q[N];
    Bits index[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
        const Vec size = smaller((Vec)((Bits)x[n] & 0x7FFFFFFFu), splat(GeluTail::LIMIT * 0.9999f));
        Vec place = size * (1.0f / GeluTail::WIDTH);
        separate(place);
        const Vec shifted = place + ROUNDING;
        index[n] = (Bits)shifted;
        t[n] = place - (shifted - ROUNDING);
        q[n] = GELU_TAIL.coefficient(GeluTail::DEGREE, index[n]);
    }
#pragma GCC unroll 8
    for (int k = GeluTail::DEGREE - 1; k >= 0; --k)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) q[n] = q[n] * t[n] + GELU_TAIL.coefficient(k, index[n]);
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
        Vec in = x[n];
        separate(in);
        separate(q[n]);
        out[n] = q[n] + (in * 0.0f + larger(splat(0.0f), in));
        separate(out[n]);
    }
}

#else

// Phi, the cumulative distribution function. The error of the fit is 1e-6.
struct NormalDistribution {
    static constexpr float LIMIT = 5.2f;
    static constexpr float COEFFICIENTS[] = {
        0.1359499841928482f,    -0.06774362176656723f, 0.050025615841150284f, -0.03993198648095131f, 0.03197391703724861f,
        -0.024698840454220772f, 0.018038777634501457f, -0.012619661167263985f, 0.008365083485841751f,
        -0.004542309790849686f, 0.0020051931496709585f, -0.001468777540139854f, 0.001188680762425065f,
        -0.0003882334567606449f};
};

// Compute GELU of N vectors at once; `out` may be `x`. NaN stays NaN, and infinity of either sign becomes NaN.
template <int N>
INLINE void gelu(const Vec (&x)[N], Vec (&out)[N]) {
    Vec part[N];
    evaluate<NormalDistribution>(x, part);
    for (int n = 0; n < N; ++n)  // the limit keeps the error small, and the product with zero keeps infinity
        out[n] = part[n] * (x[n] * 0.0f + larger(splat(-NormalDistribution::LIMIT), x[n]));
}

#endif

}  // namespace
