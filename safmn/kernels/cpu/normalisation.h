// Layer normalisation over the channels of a map.
#pragma once

#include "maps.h"

namespace {

// Layer normalisation over channels.
struct Norm {
    const float *weight, *bias;  // [channels]; null for no normalisation
    float eps;
};

// Normalise one row of a chunk. All its vectors are processed together, because their sums do not depend on each other.
// Call `between` once for each channel.
template <int N, typename Between>
void normalise(const Norm& norm, const Map& from, const Map& to, int y, int tile, Between&& between) {
    const int channels = from.channels;
    const std::ptrdiff_t line = from.line;  // of both maps; a store could change a member, as far as the compiler knows
    const float *const weight = norm.weight, *const bias = norm.bias;
    const float* in[4];
    float* out[4];
    for (int p = 0; p < 4; ++p) in[p] = from.at(0, y, p) + tile, out[p] = to.at(0, y, p);
    const auto each = [&](auto&& run) {
#pragma GCC unroll 4
        for (int p = 0; p < 4; ++p)
#pragma GCC unroll 4
            for (int v = 0; v < N; ++v) run(p, v);
    };
    Vec mean[4][N] = {}, scale[4][N] = {};
    for (int c = 0; c < channels; ++c) {
        between();
        each([&](int p, int v) { mean[p][v] += load(in[p] + c * line + v * LANES); });
    }
    each([&](int p, int v) { mean[p][v] /= float(channels); });
    for (int c = 0; c < channels; ++c)
        each([&](int p, int v) {
            const Vec centred = load(in[p] + c * line + v * LANES) - mean[p][v];
            scale[p][v] += centred * centred;
        });
    each([&](int p, int v) { scale[p][v] = reciprocal_root(scale[p][v] / float(channels) + norm.eps); });
    for (int c = 0; c < channels; ++c) {
        const Vec factor = splat(weight[c]), offset = splat(bias[c]);
        each([&](int p, int v) {
            const Vec value = (load(in[p] + c * line + v * LANES) - mean[p][v]) * scale[p][v] * factor + offset;
            store(out[p] + c * line + tile + v * LANES, value);
        });
    }
    if (tile > 0 && tile + N * LANES < from.tiles) return;  // no padding to write
    for (int c = 0; c < channels; ++c)
        for (int p = 0; p < 4; ++p) to.close(out[p] + c * line, p, tile, tile + N * LANES);
}

}  // namespace
