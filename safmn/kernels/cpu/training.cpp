// SAFMN forward and backward on a CPU, for training (built and called by training.py).
//
// Layout. LANES samples of the batch are computed together, one per lane: a map of C channels, H rows and W columns is
// [H][W][C] vectors. So every step works on whole vectors, whatever the size of the patches. A batch is padded to a
// multiple of LANES with zeros, whose gradients are zero. Groups of LANES samples are independent, except that the
// gradients of the parameters are summed. The sum is in the order of the groups, so the result does not depend on the
// number of threads.
//
// 3x3 convolutions use Winograd's F(4x4, 3x3) (arXiv 1509.09308) forward and its exact adjoint backward. The transform
// of the output's gradient is used for the gradients of both input and filter. Values that are cheap to recompute
// (norms, pooled and depthwise levels, GELU) are not kept for the backward pass.

#include "gelu.h"
#include "vectors.h"

#include <memory>

#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

constexpr int LEVELS = 4;           // of the modulation: the first pools by 1, each next one by twice as much
constexpr int FORWARD_TILES = 4;    // Winograd tiles that are transformed together: few enough for the caches
constexpr int BACKWARD_TILES = 16;  // more, because sums over lanes and tiles are taken once per group of tiles
constexpr int STRETCH = 64;         // pixels that go through pointwise steps together

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

// ------------------------------------------------------------------------------------------------------ 3x3 convolution

constexpr float FILTER[6][3] = {{1, 0, 0},
                                {-1 / 3.0f, 1 / 3.0f, -1 / 3.0f},
                                {1 / 3.0f, 1 / 3.0f, 1 / 3.0f},
                                {-16 / 15.0f, -8 / 15.0f, -4 / 15.0f},
                                {1 / 15.0f, -2 / 15.0f, 4 / 15.0f},
                                {0, 0, 1}};

// The adjoint of output_line: from the gradients of four outputs to those of six products.
INLINE void output_line_adjoint(const Vec (&d)[4], Vec (&out)[6]) {
    const Vec even = d[0] + d[2], odd = d[1] + d[3];
    out[0] = d[0];
    out[1] = even - odd;
    out[2] = even + odd;
    out[3] = d[0] + 0.5f * d[1] + 0.25f * d[2] + 0.125f * d[3];
    out[4] = d[0] - 2.0f * d[1] + 4.0f * d[2] - 8.0f * d[3];
    out[5] = d[3];
}

// The adjoint of input_line: from the gradients of six factors to those of six inputs.
INLINE void input_line_adjoint(const Vec (&d)[6], Vec (&out)[6]) {
    out[0] = d[0];
    out[1] = (d[1] - d[2]) - 1.5f * d[0] - 2.0f * d[3] + 0.5f * d[4] + d[5];
    out[2] = 0.5f * d[2] - 2.0f * d[0] - 2.5f * d[1] - (d[3] + d[4]) - 1.5f * d[5];
    out[3] = 1.5f * d[0] + 0.5f * (d[1] - d[4]) + 2.5f * d[2] + 2.0f * (d[3] - d[5]);
    out[4] = (d[0] + d[1]) + (d[2] + d[3]) + d[4] + 1.5f * d[5];
    out[5] = d[5];
}

// Transformed filters (out, in, 3, 3): one packed matrix per tap.
struct Conv {
    int in, out;
    const float* bias;
    std::vector<float> forward, backward;

    Conv(int in, int out, const float* weights, const float* bias)
        : in(in), out(out), bias(bias), forward(TAPS * packed_size(out, in)), backward(TAPS * packed_size(in, out)) {
        std::vector<float> factors(std::size_t(TAPS) * out * in);
        for (int k = 0; k < out * in; ++k) {
            const float* w = weights + 9 * k;
            float half[6][3] = {};
            for (int i = 0; i < 6; ++i)
                for (int a = 0; a < 3; ++a)
                    for (int b = 0; b < 3; ++b) half[i][b] += FILTER[i][a] * w[3 * a + b];
            for (int i = 0; i < 6; ++i)
                for (int j = 0; j < 6; ++j)
                    factors[std::size_t(6 * i + j) * out * in + k] =
                        FILTER[j][0] * half[i][0] + FILTER[j][1] * half[i][1] + FILTER[j][2] * half[i][2];
        }
        for (int tap = 0; tap < TAPS; ++tap) {
            const float* from = factors.data() + std::size_t(tap) * out * in;
            pack(out, in, forward.data() + tap * packed_size(out, in), [&](int o, int k) { return from[o * in + k]; });
            pack(in, out, backward.data() + tap * packed_size(in, out), [&](int o, int k) { return from[k * in + o]; });
        }
    }
};

// The adjoint of the filters' transform: factors (taps, out, in) are added to (out, in, 3, 3).
void add_filter_gradient(const Conv& conv, const float* factors, float* to) {
    const std::size_t count = std::size_t(conv.out) * conv.in;
    for (std::size_t k = 0; k < count; ++k) {
        float half[3][6] = {};
        for (int i = 0; i < 6; ++i)
            for (int a = 0; a < 3; ++a)
                for (int j = 0; j < 6; ++j) half[a][j] += FILTER[i][a] * factors[(6 * i + j) * count + k];
        for (int a = 0; a < 3; ++a)
            for (int b = 0; b < 3; ++b)
                for (int j = 0; j < 6; ++j) to[9 * k + 3 * a + b] += FILTER[j][b] * half[a][j];
    }
}

// The step between taps of `count` tiles: an odd number of cache lines, so that the taps do not share one cache set.
INLINE std::ptrdiff_t tap_step(int count, int channels) {
    constexpr int LINE = 64 / sizeof(Vec) ? 64 / sizeof(Vec) : 1;  // vectors
    return (std::ptrdiff_t(count) * channels + LINE - 1) / LINE / 2 * 2 * LINE + LINE;
}

// Get the addresses of a tile's pixels; `outside` for pixels beyond the border.
template <int SIDE, typename Pointer>
INLINE void locate(Pointer map, int channels, Size size, int tile, Pointer outside, Pointer (&at)[SIDE * SIDE]) {
    constexpr int MARGIN = (SIDE - 4) / 2;
    const int top = tile / (size.width / 4) * 4 - MARGIN, left = tile % (size.width / 4) * 4 - MARGIN;
    for (int i = 0; i < SIDE; ++i)
        for (int j = 0; j < SIDE; ++j) {
            const int y = top + i, x = left + j;
            const bool inside = y >= 0 && x >= 0 && y < size.height && x < size.width;
            at[SIDE * i + j] = inside ? map + (std::ptrdiff_t(y) * size.width + x) * channels : outside;
        }
}

// Memory that all steps of one thread share.
struct Work {
    Buffer inputs, products;   // of Winograd tiles: [TAPS][tiles][channels]
    Buffer zeros, waste;       // read and written in place of pixels outside the map
    std::vector<float> factors;  // gradient of the transformed filters
    Work(int narrow, int wide)
        : inputs(TAPS * tap_step(BACKWARD_TILES, wide)), products(TAPS * tap_step(BACKWARD_TILES, wide)),
          zeros(wide), waste(wide), factors(std::size_t(TAPS) * narrow * wide) {
        for (int c = 0; c < wide; ++c) zeros[c] = waste[c] = Vec{};
    }
};

// Transform `count` tiles of a map: to[tap][tile][channel].
void transform_input(const Vec* map, int channels, Size size, int first, int count, const Vec* zeros, Vec* to) {
    const std::ptrdiff_t step = tap_step(count, channels);
    for (int t = 0; t < count; ++t) {
        const Vec* at[36];
        locate<6, const Vec*>(map, channels, size, first + t, zeros, at);
        for (int c = 0; c < channels; ++c) {
            Vec lines[6][6];
            for (int i = 0; i < 6; ++i) {
                const Vec d[6] = {at[6 * i][c],     at[6 * i + 1][c], at[6 * i + 2][c],
                                  at[6 * i + 3][c], at[6 * i + 4][c], at[6 * i + 5][c]};
                input_line(d, lines[i]);
            }
            Vec* out = to + std::ptrdiff_t(t) * channels + c;
            for (int j = 0; j < 6; ++j) {
                const Vec d[6] = {lines[0][j], lines[1][j], lines[2][j], lines[3][j], lines[4][j], lines[5][j]};
                Vec column[6];
                input_line(d, column);
                for (int i = 0; i < 6; ++i) out[(6 * i + j) * step] = column[i];
            }
        }
    }
}

// out = conv(in) for whole maps.
void convolve(const Conv& conv, Size size, const Vec* in, Vec* out, const Work& work) {
    const int tiles = size.pixels() / 16;
    for (int first = 0; first < tiles; first += FORWARD_TILES) {
        const int count = std::min(FORWARD_TILES, tiles - first);
        transform_input(in, conv.in, size, first, count, work.zeros, work.inputs);
        for (int tap = 0; tap < TAPS; ++tap)
            multiply(conv.forward.data() + tap * packed_size(conv.out, conv.in), conv.out, conv.in,
                     work.inputs + tap * tap_step(count, conv.in), conv.in,
                     work.products + tap * tap_step(count, conv.out), conv.out, count, false);
        const std::ptrdiff_t step = tap_step(count, conv.out);
        for (int t = 0; t < count; ++t) {
            Vec* at[16];
            locate<4, Vec*>(out, conv.out, size, first + t, nullptr, at);
            for (int o = 0; o < conv.out; ++o) {
                const Vec* from = work.products + std::ptrdiff_t(t) * conv.out + o;
                Vec lines[4][6];
                for (int j = 0; j < 6; ++j) {
                    Vec m[6], column[4];
                    for (int i = 0; i < 6; ++i) m[i] = from[(6 * i + j) * step];
                    output_line(m, column);
                    for (int i = 0; i < 4; ++i) lines[i][j] = column[i];
                }
                for (int i = 0; i < 4; ++i) {
                    Vec row[4];
                    output_line(lines[i], row);
                    for (int j = 0; j < 4; ++j) at[4 * i + j][o] = row[j] + conv.bias[o];
                }
            }
        }
    }
}

// Transform the gradients of output tiles: to[tap][tile][channel].
void transform_gradient(const Vec* map, int channels, Size size, int first, int count, Vec* to) {
    const std::ptrdiff_t step = tap_step(count, channels);
    for (int t = 0; t < count; ++t) {
        const Vec* at[16];
        locate<4, const Vec*>(map, channels, size, first + t, nullptr, at);
        for (int c = 0; c < channels; ++c) {
            Vec lines[4][6];
            for (int i = 0; i < 4; ++i) {
                const Vec d[4] = {at[4 * i][c], at[4 * i + 1][c], at[4 * i + 2][c], at[4 * i + 3][c]};
                output_line_adjoint(d, lines[i]);
            }
            Vec* out = to + std::ptrdiff_t(t) * channels + c;
            for (int j = 0; j < 6; ++j) {
                const Vec d[4] = {lines[0][j], lines[1][j], lines[2][j], lines[3][j]};
                Vec column[6];
                output_line_adjoint(d, column);
                for (int i = 0; i < 6; ++i) out[(6 * i + j) * step] = column[i];
            }
        }
    }
}

// The adjoint of transform_input; it adds to the map.
void add_input_gradient(const Vec* from, int channels, Size size, int first, int count, Vec* waste, Vec* map) {
    const std::ptrdiff_t step = tap_step(count, channels);
    for (int t = 0; t < count; ++t) {
        Vec* at[36];
        locate<6, Vec*>(map, channels, size, first + t, waste, at);
        for (int c = 0; c < channels; ++c) {
            const Vec* tile = from + std::ptrdiff_t(t) * channels + c;
            Vec lines[6][6];
            for (int j = 0; j < 6; ++j) {
                Vec d[6], column[6];
                for (int i = 0; i < 6; ++i) d[i] = tile[(6 * i + j) * step];
                input_line_adjoint(d, column);
                for (int i = 0; i < 6; ++i) lines[i][j] = column[i];
            }
            for (int i = 0; i < 6; ++i) {
                Vec row[6];
                input_line_adjoint(lines[i], row);
                for (int j = 0; j < 6; ++j) at[6 * i + j][c] += row[j];
            }
        }
    }
}

// Add to the gradients of filters and bias; set the gradient of the input, unless `in_gradient` is null.
void convolve_backward(const Conv& conv, Size size, const Vec* in, const Vec* gradient, Vec* in_gradient,
                       float* weight_gradient, float* bias_gradient, Work& work) {
    const int tiles = size.pixels() / 16;
    std::fill(work.factors.begin(), work.factors.end(), 0.0f);
    if (in_gradient) std::fill_n(in_gradient, std::ptrdiff_t(size.pixels()) * conv.in, Vec{});
    for (int first = 0; first < tiles; first += BACKWARD_TILES) {
        const int count = std::min(BACKWARD_TILES, tiles - first);
        transform_input(in, conv.in, size, first, count, work.zeros, work.inputs);
        transform_gradient(gradient, conv.out, size, first, count, work.products);
        for (int tap = 0; tap < TAPS; ++tap) {
            Vec* inputs = work.inputs + tap * tap_step(count, conv.in);
            const Vec* products = work.products + tap * tap_step(count, conv.out);
            outer(products, conv.out, conv.out, inputs, conv.in, conv.in, count,
                  work.factors.data() + std::ptrdiff_t(tap) * conv.out * conv.in, conv.in);
            if (in_gradient)  // overwrites the inputs, which are no longer needed
                multiply(conv.backward.data() + tap * packed_size(conv.in, conv.out), conv.in, conv.out, products,
                         conv.out, inputs, conv.in, count, false);
        }
        if (in_gradient) add_input_gradient(work.inputs, conv.in, size, first, count, work.waste, in_gradient);
    }
    add_filter_gradient(conv, work.factors.data(), weight_gradient);
    sum_into(gradient, conv.out, size.pixels(), bias_gradient);
}

// --------------------------------------------------------------------------------------------------- normalisation

constexpr float EPSILON = 1e-6f;

// Compute mean and reciprocal deviation over the channels of every pixel: stats[pixel][2].
void measure(const Vec* x, int channels, int pixels, Vec* stats) {
    for (int p = 0; p < pixels; ++p, x += channels, stats += 2) {
        Vec mean = {}, variance = {};
        for (int c = 0; c < channels; ++c) mean += x[c];
        mean /= float(channels);
        for (int c = 0; c < channels; ++c) variance += (x[c] - mean) * (x[c] - mean);
        stats[0] = mean;
        stats[1] = reciprocal_root(variance / float(channels) + EPSILON);
    }
}

void normalise(const Vec* x, const Vec* stats, const float* weight, const float* bias, int channels, int pixels, Vec* to) {
    for (int p = 0; p < pixels; ++p, x += channels, to += channels, stats += 2)
        for (int c = 0; c < channels; ++c) to[c] = (x[c] - stats[0]) * stats[1] * weight[c] + bias[c];
}

// Add to the gradients of weight, bias and input.
void normalise_backward(const Vec* x, const Vec* stats, const float* weight, const Vec* gradient, int channels, int pixels,
                        float* weight_gradient, float* bias_gradient, Vec* in_gradient) {
    std::vector<Vec> weights(channels), biases(channels);
    for (int p = 0; p < pixels; ++p, x += channels, gradient += channels, in_gradient += channels, stats += 2) {
        Vec sum = {}, product = {};
        for (int c = 0; c < channels; ++c) {
            const Vec normal = (x[c] - stats[0]) * stats[1], part = gradient[c] * normal;
            weights[c] += part;
            biases[c] += gradient[c];
            sum += gradient[c] * weight[c];
            product += part * weight[c];
        }
        sum /= float(channels);
        product /= float(channels);
        for (int c = 0; c < channels; ++c)
            in_gradient[c] += stats[1] * (gradient[c] * weight[c] - sum - (x[c] - stats[0]) * stats[1] * product);
    }
    for (int c = 0; c < channels; ++c) {
        weight_gradient[c] += total(weights[c]);
        bias_gradient[c] += total(biases[c]);
    }
}

// ------------------------------------------------------------------------------------------------------- modulation

// The maximum over cells of factor x factor pixels, for `chunk` of the `step` channels.
void pool(const Vec* in, std::ptrdiff_t step, Size size, int factor, int chunk, Vec* out) {
    for (int y = 0; y < size.height; y += factor)
        for (int x = 0; x < size.width; x += factor, out += chunk)
            for (int c = 0; c < chunk; ++c) {
                Vec best = in[(std::ptrdiff_t(y) * size.width + x) * step + c];
                for (int i = 0; i < factor * factor; ++i)
                    best = larger(best,
                                  in[(std::ptrdiff_t(y + i / factor) * size.width + x + i % factor) * step + c]);
                out[c] = best;
            }
}

// Add the gradient of a cell to the first of its pixels that equals the maximum.
void pool_backward(const Vec* in, std::ptrdiff_t step, Size size, int factor, int chunk, const Vec* pooled,
                   const Vec* gradient, Vec* in_gradient) {
    for (int y = 0; y < size.height; y += factor)
        for (int x = 0; x < size.width; x += factor, pooled += chunk, gradient += chunk)
            for (int c = 0; c < chunk; ++c) {
                Vec left = gradient[c];
                for (int i = 0; i < factor * factor; ++i) {
                    const std::ptrdiff_t at =
                        (std::ptrdiff_t(y + i / factor) * size.width + x + i % factor) * step + c;
                    const auto hit = in[at] == pooled[c];
                    in_gradient[at] += hit ? left : Vec{};
                    left = hit ? Vec{} : left;
                }
            }
}

// Depthwise 3x3 convolution of `chunk` of the `step` channels. Taps are [chunk][9].
void depthwise(const Vec* in, std::ptrdiff_t step, Size size, int chunk, const float* taps, const float* bias, Vec* out) {
    for (int y = 0; y < size.height; ++y)
        for (int x = 0; x < size.width; ++x, out += chunk) {
            for (int c = 0; c < chunk; ++c) out[c] = splat(bias[c]);
            for (int i = std::max(0, 1 - y); i < std::min(3, size.height + 1 - y); ++i)
                for (int j = std::max(0, 1 - x); j < std::min(3, size.width + 1 - x); ++j) {
                    const Vec* from = in + (std::ptrdiff_t(y + i - 1) * size.width + x + j - 1) * step;
                    for (int c = 0; c < chunk; ++c) out[c] += taps[9 * c + 3 * i + j] * from[c];
                }
        }
}

// Add to the gradients of taps, bias and input.
void depthwise_backward(const Vec* in, std::ptrdiff_t step, Size size, int chunk, const float* taps, const Vec* gradient,
                        float* tap_gradient, float* bias_gradient, Vec* in_gradient, std::ptrdiff_t in_gradient_step) {
    std::vector<Vec> sums(std::size_t(9) * chunk);
    const Vec* at = gradient;
    for (int y = 0; y < size.height; ++y)
        for (int x = 0; x < size.width; ++x, at += chunk)
            for (int i = std::max(0, 1 - y); i < std::min(3, size.height + 1 - y); ++i)
                for (int j = std::max(0, 1 - x); j < std::min(3, size.width + 1 - x); ++j) {
                    const std::ptrdiff_t pixel = std::ptrdiff_t(y + i - 1) * size.width + x + j - 1;
                    const Vec* from = in + pixel * step;
                    Vec* to = in_gradient + pixel * in_gradient_step;
                    Vec* sum = sums.data() + (3 * i + j) * chunk;
                    for (int c = 0; c < chunk; ++c) {
                        sum[c] += at[c] * from[c];
                        to[c] += taps[9 * c + 3 * i + j] * at[c];
                    }
                }
    for (int c = 0; c < chunk; ++c)
        for (int tap = 0; tap < 9; ++tap) tap_gradient[9 * c + tap] += total(sums[tap * chunk + c]);
    sum_into(gradient, chunk, size.pixels(), bias_gradient);
}

// Copy every pixel of `coarse` to four pixels of `fine`. `size` is the size of `coarse`.
void enlarge(const Vec* coarse, Size size, int channels, Vec* fine) {
    for (int y = 0; y < 2 * size.height; ++y)
        for (int x = 0; x < 2 * size.width; ++x, fine += channels)
            std::copy_n(coarse + (std::ptrdiff_t(y / 2) * size.width + x / 2) * channels, channels, fine);
}

// The adjoint: sum four pixels of `fine` into one pixel of `coarse`. `size` is the size of `coarse`.
void shrink(const Vec* fine, Size size, int channels, Vec* coarse) {
    const std::ptrdiff_t row = std::ptrdiff_t(2) * size.width * channels;
    for (int y = 0; y < size.height; ++y)
        for (int x = 0; x < size.width; ++x, coarse += channels) {
            const Vec* at = fine + 2 * y * row + std::ptrdiff_t(2) * x * channels;
            for (int c = 0; c < channels; ++c)
                coarse[c] = (at[c] + at[channels + c]) + (at[row + c] + at[row + channels + c]);
        }
}

// ------------------------------------------------------------------------------------------------------- the network

struct Shape {
    int dim, hidden, blocks, scale;
    int chunk() const { return dim / LEVELS; }
    int colours() const { return 3 * scale * scale; }
};

// Parameters or their gradients, in the order of the network's state dict.
template <typename T>
struct BlockParameters {
    T *norm1_weight, *norm1_bias, *norm2_weight, *norm2_bias, *taps[LEVELS], *tap_bias[LEVELS], *aggregation,
        *aggregation_bias, *conv, *conv_bias, *back, *back_bias;
    BlockParameters(T*& at, const Shape& shape) {
        const auto take = [&](std::size_t count) {
            T* taken = at;
            at += count;
            return taken;
        };
        const std::size_t dim = shape.dim, hidden = shape.hidden, chunk = shape.chunk();
        norm1_weight = take(dim);
        norm1_bias = take(dim);
        norm2_weight = take(dim);
        norm2_bias = take(dim);
        for (int level = 0; level < LEVELS; ++level) {
            taps[level] = take(9 * chunk);
            tap_bias[level] = take(chunk);
        }
        aggregation = take(dim * dim);
        aggregation_bias = take(dim);
        conv = take(9 * hidden * dim);
        conv_bias = take(hidden);
        back = take(dim * hidden);
        back_bias = take(dim);
    }
};

template <typename T>
struct Parameters {
    T *to_feat, *to_feat_bias, *to_img, *to_img_bias;
    std::vector<BlockParameters<T>> blocks;
    std::size_t count;
    Parameters(T* data, const Shape& shape) {
        T* at = data;
        to_feat = at;
        at += 27 * shape.dim;
        to_feat_bias = at;
        at += shape.dim;
        for (int i = 0; i < shape.blocks; ++i) blocks.emplace_back(at, shape);
        to_img = at;
        at += std::size_t(9) * shape.colours() * shape.dim;
        to_img_bias = at;
        at += shape.colours();
        count = at - data;
    }
};

struct Block {
    BlockParameters<const float> p;
    Conv conv;
    Matrix back, back_adjoint;
    std::vector<Matrix> aggregation, aggregation_adjoint;  // one per level

    Block(const BlockParameters<const float>& p, const Shape& s)
        : p(p), conv(s.dim, s.hidden, p.conv, p.conv_bias),
          back(s.dim, s.hidden, [&](int o, int k) { return p.back[o * s.hidden + k]; }),
          back_adjoint(s.hidden, s.dim, [&](int o, int k) { return p.back[k * s.hidden + o]; }) {
        for (int level = 0; level < LEVELS; ++level) {
            const float* part = p.aggregation + level * s.chunk();
            aggregation.emplace_back(s.dim, s.chunk(), [&](int o, int k) { return part[o * s.dim + k]; });
            aggregation_adjoint.emplace_back(s.chunk(), s.dim, [&](int o, int k) { return part[k * s.dim + o]; });
        }
    }
};

struct Network {
    Shape shape;
    Conv to_feat, to_img;
    std::vector<Block> blocks;

    Network(const Parameters<const float>& p, const Shape& shape)
        : shape(shape), to_feat(3, shape.dim, p.to_feat, p.to_feat_bias),
          to_img(shape.dim, shape.colours(), p.to_img, p.to_img_bias) {
        for (const auto& block : p.blocks) blocks.emplace_back(block, shape);
    }
};

// What a group of samples keeps for the backward pass, in memory that the caller owns.
struct Kept {
    struct OfBlock {
        Vec *stats1, *gate, *middle, *stats2, *hidden, *out;
    };
    Vec *image, *first, *last;  // input; after to_feat; before to_img
    std::vector<OfBlock> blocks;
    std::size_t count;

    Kept(Vec* data, const Shape& shape, int pixels) {
        Vec* at = data;
        const auto take = [&](std::size_t channels) {
            Vec* taken = at;
            at += channels * pixels;
            return taken;
        };
        image = take(3);
        first = take(shape.dim);
        last = take(shape.dim);
        for (int i = 0; i < shape.blocks; ++i) {
            OfBlock block;
            block.stats1 = take(2);
            block.gate = take(shape.dim);
            block.middle = take(shape.dim);
            block.stats2 = take(2);
            block.hidden = take(shape.hidden);
            block.out = take(shape.dim);
            blocks.push_back(block);
        }
        count = at - data;
    }
    const Vec* input(int block) const { return block ? blocks[block - 1].out : first; }
};

// One group of samples, forward and backward.
class Group {
  public:
    Group(const Network& network, Size size)
        : network(network), shape(network.shape), size(size), pixels(size.pixels()), work(widest_pair(), widest()),
          normed(map(shape.dim)), normed_gradient(map(shape.dim)), gates(map(shape.dim)), fine(map(shape.dim)),
          coarse(map(shape.dim) / 4), pooled(map(shape.chunk())), mixed(map(shape.chunk())),
          mixed_gradient(map(shape.chunk())), pooled_gradient(map(shape.chunk())),
          hidden(map(std::max(shape.hidden, shape.colours()))), stretch(std::size_t(STRETCH) * shape.hidden),
          slopes(std::size_t(STRETCH) * shape.hidden) {}

    void forward(const Kept& kept, Vec* out) {
        convolve(network.to_feat, size, kept.image, kept.first, work);
        for (int i = 0; i < shape.blocks; ++i) block_forward(network.blocks[i], kept.input(i), kept.blocks[i]);
        const Vec* end = kept.input(shape.blocks);
        for (int k = 0; k < pixels * shape.dim; ++k) kept.last[k] = kept.first[k] + end[k];
        convolve(network.to_img, size, kept.last, out, work);
    }

    // `frozen` counts the first stages (to_feat, then the blocks) whose gradients are not needed: they are left out.
    void backward(const Kept& kept, const Vec* gradient, const Parameters<float>& to, int frozen) {
        const Buffer ends(map(shape.dim)), starts(map(shape.dim)), skip(map(shape.dim));
        Vec *above = ends, *below = starts;
        convolve_backward(network.to_img, size, kept.last, gradient, above, to.to_img, to.to_img_bias, work);
        std::copy_n(above, pixels * shape.dim, skip + 0);
        for (int i = shape.blocks - 1; i >= std::max(frozen - 1, 0); --i) {
            block_backward(network.blocks[i], kept.input(i), kept.blocks[i], above, below, to.blocks[i]);
            std::swap(above, below);
        }
        if (frozen > 0) return;
        for (int k = 0; k < pixels * shape.dim; ++k) above[k] += skip[k];
        convolve_backward(network.to_feat, size, kept.image, above, nullptr, to.to_feat, to.to_feat_bias, work);
    }

  private:
    const Network& network;
    const Shape shape;
    const Size size;
    const int pixels;
    Work work;
    Buffer normed, normed_gradient, gates, fine, coarse, pooled, mixed, mixed_gradient, pooled_gradient, hidden, stretch,
        slopes;

    int widest() const { return std::max({shape.dim, shape.hidden, shape.colours()}); }
    int widest_pair() const { return shape.dim; }
    std::size_t map(int channels) const { return std::size_t(channels) * pixels; }

    // fine = aggregation of the pooled levels, at the resolution of level 1.
    void pooled_levels(const Block& b) {
        for (int level = LEVELS - 1; level >= 1; --level) {
            const Size small = size.over(1 << level);
            Vec* to = level % 2 ? fine : coarse;
            if (level == LEVELS - 1) {
                for (int p = 0; p < small.pixels(); ++p)
                    for (int c = 0; c < shape.dim; ++c) to[p * shape.dim + c] = splat(b.p.aggregation_bias[c]);
            } else {
                enlarge(level % 2 ? coarse : fine, size.over(2 << level), shape.dim, to);
            }
            mix_level(b, level);
            multiply(b.aggregation[level], mixed, shape.chunk(), to, shape.dim, small.pixels(), true);
        }
    }

    // mixed = depthwise convolution of the pooled channels of a level.
    void mix_level(const Block& b, int level) {
        const Vec* in = normed + level * shape.chunk();
        const Size small = size.over(1 << level);
        if (level) pool(in, shape.dim, size, 1 << level, shape.chunk(), pooled);
        depthwise(level ? +pooled : in, level ? shape.chunk() : shape.dim, small, shape.chunk(), b.p.taps[level],
                  b.p.tap_bias[level], mixed);
    }

    void block_forward(const Block& b, const Vec* x, const Kept::OfBlock& kept) {
        const int dim = shape.dim;
        measure(x, dim, pixels, kept.stats1);
        normalise(x, kept.stats1, b.p.norm1_weight, b.p.norm1_bias, dim, pixels, normed);
        pooled_levels(b);
        enlarge(fine, size.over(2), dim, kept.gate);
        mix_level(b, 0);
        multiply(b.aggregation[0], mixed, shape.chunk(), kept.gate, dim, pixels, true);
        for_gelu<false>(kept.gate, std::ptrdiff_t(pixels) * dim,
                        [&](std::ptrdiff_t k, Vec value, Vec) { kept.middle[k] = x[k] + value * normed[k]; });

        measure(kept.middle, dim, pixels, kept.stats2);
        normalise(kept.middle, kept.stats2, b.p.norm2_weight, b.p.norm2_bias, dim, pixels, normed);
        convolve(b.conv, size, normed, kept.hidden, work);
        for (int first = 0; first < pixels; first += STRETCH) {
            const int count = std::min(STRETCH, pixels - first);
            const Vec* from = kept.hidden + std::ptrdiff_t(first) * shape.hidden;
            for_gelu<false>(from, std::ptrdiff_t(count) * shape.hidden,
                            [&](std::ptrdiff_t k, Vec value, Vec) { stretch[k] = value; });
            for (int p = first; p < first + count; ++p)
                for (int c = 0; c < dim; ++c) kept.out[p * dim + c] = kept.middle[p * dim + c] + b.p.back_bias[c];
            multiply(b.back, stretch, shape.hidden, kept.out + std::ptrdiff_t(first) * dim, dim, count, true);
        }
    }

    // Compute the gradient of the block's input from that of its output; add to the parameters' gradients.
    void block_backward(const Block& b, const Vec* x, const Kept::OfBlock& kept, Vec* gradient, Vec* in_gradient,
                        const BlockParameters<float>& to) {
        const int dim = shape.dim;
        mixing_backward(b, kept, gradient, to);  // adds to `gradient`, which is then the gradient of `middle`
        normalise(x, kept.stats1, b.p.norm1_weight, b.p.norm1_bias, dim, pixels, normed);
        for_gelu<true>(kept.gate, std::ptrdiff_t(pixels) * dim, [&](std::ptrdiff_t k, Vec value, Vec slope) {
            normed_gradient[k] = gradient[k] * value;
            gates[k] = gradient[k] * normed[k] * slope;
        });
        sum_into(gates, dim, pixels, to.aggregation_bias);
        const Vec* level_gradient = gates;
        for (int level = 0; level < LEVELS; ++level) {
            if (level) {
                Vec* shrunk = level % 2 ? fine : coarse;
                shrink(level_gradient, size.over(1 << level), dim, shrunk);
                level_gradient = shrunk;
            }
            level_backward(b, level, level_gradient, to);
        }
        std::copy_n(gradient, pixels * dim, in_gradient);
        normalise_backward(x, kept.stats1, b.p.norm1_weight, normed_gradient, dim, pixels, to.norm1_weight, to.norm1_bias,
                           in_gradient);
    }

    void level_backward(const Block& b, int level, const Vec* gradient, const BlockParameters<float>& to) {
        const int dim = shape.dim, chunk = shape.chunk();
        const Size small = size.over(1 << level);
        const Vec* in = normed + level * chunk;
        Vec* in_gradient = normed_gradient + level * chunk;
        mix_level(b, level);
        outer(gradient, dim, dim, mixed, chunk, chunk, small.pixels(), to.aggregation + level * chunk, dim);
        multiply(b.aggregation_adjoint[level], gradient, dim, mixed_gradient, chunk, small.pixels(), false);
        if (!level) {
            depthwise_backward(in, dim, small, chunk, b.p.taps[0], mixed_gradient, to.taps[0], to.tap_bias[0],
                               in_gradient, dim);
            return;
        }
        std::fill_n(pooled_gradient + 0, small.pixels() * chunk, Vec{});
        depthwise_backward(pooled, chunk, small, chunk, b.p.taps[level], mixed_gradient, to.taps[level],
                           to.tap_bias[level], pooled_gradient, chunk);
        pool_backward(in, dim, size, 1 << level, chunk, pooled, pooled_gradient, in_gradient);
    }

    void mixing_backward(const Block& b, const Kept::OfBlock& kept, Vec* gradient, const BlockParameters<float>& to) {
        const int dim = shape.dim;
        for (int first = 0; first < pixels; first += STRETCH) {
            const int count = std::min(STRETCH, pixels - first);
            const Vec* from = kept.hidden + std::ptrdiff_t(first) * shape.hidden;
            const Vec* out = gradient + std::ptrdiff_t(first) * dim;
            Vec* result = hidden + std::ptrdiff_t(first) * shape.hidden;
            for_gelu<true>(from, std::ptrdiff_t(count) * shape.hidden, [&](std::ptrdiff_t k, Vec value, Vec slope) {
                stretch[k] = value;
                slopes[k] = slope;
            });
            outer(out, dim, dim, stretch, shape.hidden, shape.hidden, count, to.back, shape.hidden);
            multiply(b.back_adjoint, out, dim, result, shape.hidden, count, false);
            for (int k = 0; k < count * shape.hidden; ++k) result[k] *= slopes[k];
        }
        sum_into(gradient, dim, pixels, to.back_bias);
        normalise(kept.middle, kept.stats2, b.p.norm2_weight, b.p.norm2_bias, dim, pixels, normed);
        convolve_backward(b.conv, size, normed, hidden, normed_gradient, to.conv, to.conv_bias, work);
        normalise_backward(kept.middle, kept.stats2, b.p.norm2_weight, normed_gradient, dim, pixels, to.norm2_weight,
                           to.norm2_bias, gradient);
    }
};

// Match samples [first, first + LANES) of images (batch, channels, height * scale, width * scale) with the lanes of a
// map of channels * scale^2 channels (pixel unshuffle): call visit(place in the images, place in the map) for every
// sample that exists.
template <typename Visit>
void for_lanes(int batch, int channels, Size size, int scale, int first, Visit&& visit) {
    const int maps = channels * scale * scale;
    const std::ptrdiff_t wide = std::ptrdiff_t(size.width) * scale;
    for (int lane = 0; lane < std::min(LANES, batch - first); ++lane)
        for (int m = 0; m < maps; ++m) {
            const int c = m / (scale * scale), i = m / scale % scale, j = m % scale;
            const std::ptrdiff_t plane = (std::ptrdiff_t(first + lane) * channels + c) * size.height * scale * wide;
            for (int y = 0; y < size.height; ++y) {
                const std::ptrdiff_t row = plane + (std::ptrdiff_t(y) * scale + i) * wide + j;
                const std::ptrdiff_t at = (std::ptrdiff_t(y) * size.width * maps + m) * LANES + lane;
                for (int x = 0; x < size.width; ++x) visit(row + x * scale, at + std::ptrdiff_t(x) * maps * LANES);
            }
        }
}

void read_images(const float* images, int batch, int channels, Size size, int scale, int first, Vec* map) {
    float* to = reinterpret_cast<float*>(map);
    if (batch - first < LANES) std::fill_n(map, std::ptrdiff_t(size.pixels()) * channels * scale * scale, Vec{});
    for_lanes(batch, channels, size, scale, first, [&](std::ptrdiff_t image, std::ptrdiff_t at) { to[at] = images[image]; });
}

void write_images(const Vec* map, int batch, int channels, Size size, int scale, int first, float* images) {
    const float* from = reinterpret_cast<const float*>(map);
    for_lanes(batch, channels, size, scale, first, [&](std::ptrdiff_t image, std::ptrdiff_t at) { images[image] = from[at]; });
}

int groups_of(int batch) { return (batch + LANES - 1) / LANES; }

}  // namespace

// ------------------------------------------------------------------------------------------------------- the interface
// Parameters and gradients are flat, in the order of the state dict. height and width are multiples of 8. The functions
// return 0, or 1 if memory runs out.

extern "C" {

// Samples that are computed together.
int safmn_lanes() { return LANES; }

// The number of floats that the forward pass keeps for the backward pass.
std::ptrdiff_t safmn_kept(int batch, int height, int width, int dim, int hidden, int blocks, int scale) {
    return groups_of(batch) * std::ptrdiff_t(Kept(nullptr, Shape{dim, hidden, blocks, scale}, height * width).count) * LANES;
}

// The forward pass: images (batch, 3, height, width) to out (batch, 3, height * scale, width * scale).
int safmn_train_forward(const float* images, float* out, float* kept, const float* parameters, int batch, int height,
                        int width, int dim, int hidden, int blocks, int scale, int threads) {
    const Shape shape{dim, hidden, blocks, scale};
    const Size size{height, width};
    return status_of([&] {
        const Network network(Parameters<const float>(parameters, shape), shape);
        for_all(groups_of(batch), threads, [&] { return std::make_unique<Group>(network, size); },
                [&](const std::unique_ptr<Group>& group, int i) {
                    const std::size_t step = Kept(nullptr, shape, size.pixels()).count;
                    const Kept mine(reinterpret_cast<Vec*>(kept) + i * step, shape, size.pixels());
                    const Buffer result(std::size_t(size.pixels()) * shape.colours());
                    read_images(images, batch, 3, size, 1, i * LANES, mine.image);
                    group->forward(mine, result);
                    write_images(result, batch, 3, size, scale, i * LANES, out);
                });
    });
}

// The backward pass: set `gradients`, those of the parameters, from the gradient of out. Those of the first `frozen`
// stages (to_feat, then the blocks) become 0.
int safmn_train_backward(const float* gradient, float* kept, const float* parameters, float* gradients, int batch,
                         int height, int width, int dim, int hidden, int blocks, int scale, int frozen, int threads) {
    const Shape shape{dim, hidden, blocks, scale};
    const Size size{height, width};
    return status_of([&] {
        const Parameters<const float> values(parameters, shape);
        const Network network(values, shape);
        std::vector<std::vector<float>> parts(groups_of(batch));
        for_all(groups_of(batch), threads, [&] { return std::make_unique<Group>(network, size); },
                [&](const std::unique_ptr<Group>& group, int i) {
                    const std::size_t step = Kept(nullptr, shape, size.pixels()).count;
                    const Kept mine(reinterpret_cast<Vec*>(kept) + i * step, shape, size.pixels());
                    const Buffer result(std::size_t(size.pixels()) * shape.colours());
                    read_images(gradient, batch, 3, size, scale, i * LANES, result);
                    parts[i].assign(values.count, 0.0f);
                    group->backward(mine, result, Parameters<float>(parts[i].data(), shape), frozen);
                });
        std::fill_n(gradients, values.count, 0.0f);
        for (const auto& part : parts)
            for (std::size_t k = 0; k < values.count; ++k) gradients[k] += part[k];
    });
}

}  // extern "C"
