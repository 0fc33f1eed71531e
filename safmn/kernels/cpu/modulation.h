// The modulation of a feature mixing module: the unpooled level, and the product with the gate.
#pragma once

#include "levels.h"

namespace {

// Convolve one row of a chunk of the unpooled level depthwise: [chunk][4 phases][CHUNK].
template <int N>
void depthwise_full(const Modulation& m, const Map& normed, int y, int tile, float* to) {
    for (int k = 0; k < m.chunk; ++k)
        for (int v = 0; v < N; ++v) {
            Vec out[4];
            for (int p = 0; p < 4; ++p) out[p] = splat(m.tap_bias[k]);
            for (int i = 0; i < 3; ++i) {
                if (y + i < 1 || y + i > normed.height) continue;
                const Columns columns(normed.at(k, y + i - 1, 0) + tile + v * LANES, normed.stride);
                const float* taps = m.taps + 9 * k + 3 * i;
                for (int p = 0; p < 4; ++p)
                    out[p] += taps[0] * columns.at[p] + taps[1] * columns.at[p + 1] + taps[2] * columns.at[p + 2];
            }
            for (int p = 0; p < 4; ++p) store(to + (k * 4 + p) * CHUNK + v * LANES, out[p]);
        }
}

// The part of the gate that comes from the pooled levels, for one row: [channels][4 phases][places].
struct Gate {
    const float* data;
    int places;
    const float* at(int channel, int phase) const { return data + (std::ptrdiff_t(channel) * 4 + phase) * places; }
};

// out = x + gelu(gate + aggregation of the unpooled level) * normed, for one row of a chunk. Call `between` once for each
// output.
template <int N, typename Between>
void modulate(const Modulation& m, const Map& normed, const Map& x, const Map& out, int y, int tile, const float* lines,
              const Gate& gate, Between&& between) {
    for (int p = 0; p < 4; ++p)
        for (int first = 0; first < m.channels; first += BLOCK) {
            const int count = std::min(BLOCK, m.channels - first);
            Vec sums[BLOCK][N];
            for (int o = 0; o < BLOCK; ++o)
                for (int v = 0; v < N; ++v)
                    sums[o][v] = o < count ? load(gate.at(first + o, p) + tile + v * LANES) : Vec{};
            multiply<N, Single>(sums, m.full + std::ptrdiff_t(first) * m.chunk, lines + p * CHUNK, 4 * CHUNK, m.chunk);
            const std::ptrdiff_t line = out.line;
            const float *const factor = normed.at(first, y, p) + tile, *const shortcut = x.at(first, y, p) + tile;
            float* const to = out.at(first, y, p);
            for (int o = 0; o < count; ++o) {
                between();
                Vec gates[N];
                gelu(sums[o], gates);
                for (int v = 0; v < N; ++v) {
                    const std::ptrdiff_t at = o * line + v * LANES;
                    store(to + at + tile, load(shortcut + at) + gates[v] * load(factor + at));
                }
            }
            if (tile == 0 || tile + N * LANES >= out.tiles)
                for (int o = 0; o < count; ++o) out.close(to + o * line, p, tile, tile + N * LANES);
        }
}

}  // namespace
