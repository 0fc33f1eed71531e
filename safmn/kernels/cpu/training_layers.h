// Normalisation and the parts of the modulation, forward and backward, for training.
#pragma once

#include "training_products.h"

namespace {

constexpr int LEVELS = 4;  // of the modulation: the first pools by 1, each next one by twice as much

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

}  // namespace
