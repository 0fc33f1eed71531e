// SAFMN forward and backward on a CPU, for training (built and called by training.py): the interface to Python.
// training_products.h says how values lie in memory.

#include <memory>

#include "training_network.h"

namespace {

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
