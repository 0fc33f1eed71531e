// 3x3 convolutions and their gradients, for training.
//
// 3x3 convolutions use Winograd's F(4x4, 3x3) (arXiv 1509.09308) forward and its exact adjoint backward. The transform
// of the output's gradient is used for the gradients of both input and filter.
#pragma once

#include "training_products.h"

namespace {

constexpr int FORWARD_TILES = 4;    // Winograd tiles that are transformed together: few enough for the caches
constexpr int BACKWARD_TILES = 16;  // more, because sums over lanes and tiles are taken once per group of tiles

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

}  // namespace
