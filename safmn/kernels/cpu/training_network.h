// SAFMN on one group of samples, forward and backward. Values that are cheap to recompute (norms, pooled and depthwise
// levels, GELU) are not kept for the backward pass.
#pragma once

#include "training_convolution.h"
#include "training_layers.h"

namespace {

constexpr int STRETCH = 64;  // pixels that go through pointwise steps together

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

}  // namespace
