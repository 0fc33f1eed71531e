// Vectors of samples and products of matrices, for training.
//
// Layout. LANES samples of the batch are computed together, one per lane: a map of C channels, H rows and W columns is
// [H][W][C] vectors. So every step works on whole vectors, whatever the size of the patches. A batch is padded to a
// multiple of LANES with zeros, whose gradients are zero. Groups of LANES samples are independent, except that the
// gradients of the parameters are summed. The sum is in the order of the groups, so the result does not depend on the
// number of threads.
#pragma once

#include "gelu.h"
#include "vectors.h"

#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

struct Size {
    int height, width;
    int pixels() const { return height * width; }
    Size over(int factor) const { return {height / factor, width / factor}; }
};

// Uninitialised memory for vectors.
class Buffer {
  public:
    explicit Buffer(std::size_t vectors) : data(static_cast<Vec*>(::operator new(vectors * sizeof(Vec), ALIGNMENT))) {}
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() { ::operator delete(data, ALIGNMENT); }
    operator Vec*() const { return data; }

  private:
    static constexpr std::align_val_t ALIGNMENT{64};
    Vec* data;
};

INLINE float total(Vec value) {
    float lanes[LANES];
    store(lanes, value);
#pragma GCC unroll 4
    for (int half = LANES / 2; half; half /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    return lanes[0];
}

// Call visit(k, gelu(x[k]), its slope) for all k < count. The slopes are computed only with SLOPES.
template <bool SLOPES, typename Visit>
INLINE void for_gelu(const Vec* x, std::ptrdiff_t count, Visit&& visit) {
    constexpr int N = 4;
    std::ptrdiff_t k = 0;
    for (; k + N <= count; k += N) {
        Vec in[N], value[N], slope[N] = {};
        for (int n = 0; n < N; ++n) in[n] = x[k + n];
        gelu(in, value);
        if (SLOPES) evaluate<GeluSlope>(in, slope);
        for (int n = 0; n < N; ++n) visit(k + n, value[n], slope[n]);
    }
    for (; k < count; ++k) {
        const Vec in[1] = {x[k]};
        Vec value[1], slope[1] = {};
        gelu(in, value);
        if (SLOPES) evaluate<GeluSlope>(in, slope);
        visit(k, value[0], slope[0]);
    }
}

// ---------------------------------------------------------------------------------------------------- matrix products

// The size of a matrix (outputs, inputs) in blocks of BLOCK outputs, padded with zeros: [blocks][inputs][BLOCK].
constexpr std::size_t packed_size(int outputs, int inputs) {
    return std::size_t((outputs + BLOCK - 1) / BLOCK) * inputs * BLOCK;
}

template <typename At>
void pack(int outputs, int inputs, float* to, At&& at) {
    for (int first = 0; first < outputs; first += BLOCK)
        for (int k = 0; k < inputs; ++k)
            for (int o = first; o < first + BLOCK; ++o) *to++ = o < outputs ? at(o, k) : 0.0f;
}

struct Matrix {
    int outputs, inputs;
    std::vector<float> packed;
    template <typename At>
    Matrix(int outputs, int inputs, At&& at)
        : outputs(outputs), inputs(inputs), packed(packed_size(outputs, inputs)) {
        pack(outputs, inputs, packed.data(), at);
    }
};

template <int N, bool WHOLE>
INLINE void multiply_block(const float* weights, int inputs, int live, const Vec* in, std::ptrdiff_t in_step, Vec* out,
                           std::ptrdiff_t out_step, bool add) {
    Vec sums[BLOCK][N];
#pragma GCC unroll 16
    for (int o = 0; o < BLOCK; ++o)
#pragma GCC unroll 2
        for (int v = 0; v < N; ++v) sums[o][v] = add && (WHOLE || o < live) ? out[v * out_step + o] : Vec{};
    for (int k = 0; k < inputs; ++k, weights += BLOCK) {
        Vec x[N];
#pragma GCC unroll 2
        for (int v = 0; v < N; ++v) x[v] = in[v * in_step + k];
#pragma GCC unroll 16
        for (int o = 0; o < BLOCK; ++o) {
            const Vec w = weight(weights, o);
#pragma GCC unroll 2
            for (int v = 0; v < N; ++v) sums[o][v] += w * x[v];
        }
    }
#pragma GCC unroll 16
    for (int o = 0; o < BLOCK; ++o)
#pragma GCC unroll 2
        for (int v = 0; v < N; ++v)
            if (WHOLE || o < live) out[v * out_step + o] = sums[o][v];
}

// out[n][o] = sum over k of matrix[o][k] * in[n][k], added to out[n][o] if `add` is set. Steps are in vectors.
void multiply(const float* packed, int outputs, int inputs, const Vec* in, std::ptrdiff_t in_step, Vec* out,
              std::ptrdiff_t out_step, int count, bool add) {
    for (int first = 0; first < outputs; first += BLOCK, packed += std::ptrdiff_t(inputs) * BLOCK) {
        const int live = std::min(BLOCK, outputs - first);
        int n = 0;
        for (; n + 2 <= count; n += 2) {
            const Vec* from = in + n * in_step;
            Vec* to = out + n * out_step + first;
            if (live == BLOCK) multiply_block<2, true>(packed, inputs, live, from, in_step, to, out_step, add);
            else multiply_block<2, false>(packed, inputs, live, from, in_step, to, out_step, add);
        }
        if (n < count)
            multiply_block<1, false>(packed, inputs, live, in + n * in_step, in_step, out + n * out_step + first,
                                     out_step, add);
    }
}

void multiply(const Matrix& matrix, const Vec* in, std::ptrdiff_t in_step, Vec* out, std::ptrdiff_t out_step, int count,
              bool add) {
    multiply(matrix.packed.data(), matrix.outputs, matrix.inputs, in, in_step, out, out_step, count, add);
}

// to[j] += sum over the lanes of sums[j].
template <int J>
INLINE void add_totals(const Vec (&sums)[J], float* to) {
    for (int j = 0; j < J; ++j) to[j] += total(sums[j]);
}

#if defined(__AVX__)
INLINE __m256 halved(Vec value) {
#if defined(__AVX512F__)
    const __m512 v = (__m512)value;
    return _mm256_add_ps(_mm512_castps512_ps256(v), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1)));
#else
    return (__m256)value;
#endif
}

INLINE void add_totals(const Vec (&sums)[4], float* to) {
    const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(halved(sums[0]), halved(sums[1])),
                                        _mm256_hadd_ps(halved(sums[2]), halved(sums[3])));
    const __m128 totals = _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
    _mm_storeu_ps(to, _mm_add_ps(_mm_loadu_ps(to), totals));
}
#elif defined(__aarch64__)
INLINE void add_totals(const Vec (&sums)[4], float* to) {
    const float32x4_t a = vpaddq_f32((float32x4_t)sums[0], (float32x4_t)sums[1]);
    const float32x4_t b = vpaddq_f32((float32x4_t)sums[2], (float32x4_t)sums[3]);
    vst1q_f32(to, vaddq_f32(vld1q_f32(to), vpaddq_f32(a, b)));
}
#endif

template <int I, int J>
INLINE void outer_tile(const Vec* a, std::ptrdiff_t a_step, const Vec* b, std::ptrdiff_t b_step, int count, float* to,
                       std::ptrdiff_t to_step) {
    Vec sums[I][J] = {};
    for (int n = 0; n < count; ++n, a += a_step, b += b_step) {
        Vec x[I];
#pragma GCC unroll 4
        for (int i = 0; i < I; ++i) x[i] = a[i];
#pragma GCC unroll 4
        for (int j = 0; j < J; ++j) {
            const Vec y = b[j];
#pragma GCC unroll 4
            for (int i = 0; i < I; ++i) sums[i][j] += x[i] * y;
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < I; ++i) add_totals(sums[i], to + i * to_step);
}

template <int I>
INLINE void outer_row(const Vec* a, std::ptrdiff_t a_step, const Vec* b, std::ptrdiff_t b_step, int columns, int count,
                      float* to, std::ptrdiff_t to_step) {
    int j = 0;
    for (; j + 4 <= columns; j += 4) outer_tile<I, 4>(a, a_step, b + j, b_step, count, to + j, to_step);
    for (; j < columns; ++j) outer_tile<I, 1>(a, a_step, b + j, b_step, count, to + j, to_step);
}

// to[i][j] += sum over n and lanes of a[n][i] * b[n][j].
void outer(const Vec* a, std::ptrdiff_t a_step, int rows, const Vec* b, std::ptrdiff_t b_step, int columns, int count,
           float* to, std::ptrdiff_t to_step) {
    int i = 0;
    for (; i + 3 <= rows; i += 3)
        outer_row<3>(a + i, a_step, b, b_step, columns, count, to + i * to_step, to_step);
    for (; i < rows; ++i) outer_row<1>(a + i, a_step, b, b_step, columns, count, to + i * to_step, to_step);
}

// to[i] += sum over n and lanes of a[n][i].
void sum_into(const Vec* a, int channels, int count, float* to) {
    for (int c = 0; c < channels; ++c) {
        Vec sum = {};
        for (int n = 0; n < count; ++n) sum += a[std::ptrdiff_t(n) * channels + c];
        to[c] += total(sum);
    }
}

}  // namespace
