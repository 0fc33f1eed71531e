// Feature mixing modules of SAFMN, in strips of rows.
#pragma once

#include "ahead.h"
#include "modulation.h"
#include "normalisation.h"

namespace {

// A feature mixing module or one half of it: y = in + modulation(norm1(in)), out = y + mixing(norm2(y)). A norm without
// weights is skipped, and so is a half that is null.
struct Block {
    const Modulation* modulation;
    const Conv* conv;  // the first convolution of the mixing
    const void* back;  // weights of the second convolution of the mixing
    const float* back_bias;
    Norm norm1, norm2;
};

// Runs some rows of a frame through a block, from top to bottom, in steps of SIDE rows. Only a few intermediate rows are
// kept, so that they stay in the cache: those which later rows still need.
template <typename Factor>
class Strip {
  public:
    static constexpr int SIDE = 4;

    Strip(const Block& block, const Map& in, const Map& out, int top, int bottom)
        : block(block), in(in), out(out), top(top), bottom(bottom), margin(block.conv ? 1 : 0),
          levels(levels_of(block, in)), tiles(block.conv ? *block.conv : Conv{}),
          normed1(block.modulation && block.norm1.weight ? kept(rows_ahead()) : in),
          modulated(!block.modulation ? in : block.conv ? kept(4 * SIDE) : out),
          normed2(block.conv && block.norm2.weight ? kept(4 * SIDE) : modulated) {
        if (!block.modulation) return;
        const Modulation& m = *block.modulation;
        depthwise = scratch.take(std::size_t(m.chunk) * 4 * CHUNK);
        for (Level& level : levels) level.keep(power_of_two(rows_pooled(level)), in.channels, scratch);
    }

    void run() {
        const int begin = std::max(top - margin, 0), last = std::min(bottom + margin, in.height);
        int band = top / SIDE;
        prepared = std::max(begin - 1, 0);
        for (Level& level : levels) {
            level.next = level.above(begin);
            prepared = std::min(prepared, level.rows.begin(level.next));
        }
        for (int y = begin; y < last;) {
            const int end = std::min(y / SIDE * SIDE + SIDE, last);
            if (block.modulation) {
                prepare(needed(end - 1));
                modulate_rows(y, end);
            }
            const int from = y;
            y = end;
            if (!block.conv) continue;
            for (int row = from; row < end && block.norm2.weight; ++row)
                normalise_row(block.norm2, modulated, normed2, row);
            for (; SIDE * band < bottom && (SIDE * (band + 1) < end || end == in.height); ++band) mix(band);
        }
    }

  private:
    const Block& block;
    const Map &in, &out;
    const int top, bottom, margin;
    std::vector<Level> levels;
    Scratch scratch;
    Ahead ahead;
    Tiles tiles;
    Map normed1, modulated, normed2;
    float* depthwise;
    int prepared = 0;  // the first row that is not normalised yet

    static std::vector<Level> levels_of(const Block& block, const Map& in) {
        std::vector<Level> found;
        for (int i = 0; block.modulation && i < LEVELS; ++i)
            found.emplace_back(in, block.modulation->factors[i], block.modulation->chunk * (i + 1), block.modulation->chunk);
        return found;
    }
    static int power_of_two(int least) {
        int value = 1;
        while (value < least) value *= 2;
        return value;
    }
    int places() const { return round_up(in.tiles, CHUNK); }
    Map kept(int rows) {
        Map map(nullptr, in.channels, in.height, in.width, power_of_two(rows));
        map.data = scratch.take(std::size_t(power_of_two(rows)) * in.channels * map.line);
        return map;
    }

    // The end of the normalised rows on which row y depends.
    int needed(int y) const {
        int end = std::min(y + 2, in.height);
        for (const Level& level : levels) end = std::max(end, level.rows.end(level.below(y)));
        return end;
    }
    // How many normalised rows must be kept: from the row above a step to the last that it needs, and whole cells.
    int rows_ahead() const {
        int most = 1;
        for (int y = 0; y < in.height; y += SIDE) most = std::max(most, needed(std::min(y + SIDE, in.height) - 1) - y + 1);
        for (const Level& level : levels)
            for (int i = 0; i < level.rows.cells; ++i) most = std::max(most, level.rows.end(i) - level.rows.begin(i));
        return most + 1;  // a strip may begin one row before a step
    }
    int rows_pooled(const Level& level) const {
        int most = 1, count = 0;
        for (int y = 0; y < in.height; y += SIDE) {
            const int end = needed(std::min(y + SIDE, in.height) - 1);
            while (count < level.rows.cells && level.rows.end(count) <= end) ++count;
            most = std::max(most, count - level.above(std::max(y - 1, 0)));
        }
        return most;
    }

    void normalise_row(const Norm& norm, const Map& from, const Map& to, int y) {
        for_chunks(from.tiles, [&](auto n, int tile) {
            const Chunk next = after(y, tile);
            look_ahead(from.channels, [&] {
                ahead.add(from, 0, from.channels, next.at, next.at + 1, next.tile);
                ahead.add(to, 0, to.channels, next.at, next.at + 1, next.tile);
            });
            normalise<n>(norm, from, to, y, tile, [&] { ahead.fetch(); });
        });
    }

    // The chunk after the one at `tile` in a row or band.
    struct Chunk {
        int at, tile;
    };
    Chunk after(int at, int tile) const { return tile + CHUNK < in.tiles ? Chunk{at, tile + CHUNK} : Chunk{at + 1, 0}; }

    // Begin to bring what `add` adds into the cache, in `calls` shares.
    template <typename Add>
    void look_ahead(int calls, Add&& add) {
        ahead.clear();
        add();
        ahead.divide(calls);
    }

    // Normalise and pool the rows before `end`.
    void prepare(int end) {
        for (; prepared < end; ++prepared) {
            if (block.norm1.weight) normalise_row(block.norm1, in, normed1, prepared);
            for (Level& level : levels)
                for (; level.next < level.rows.cells && level.rows.end(level.next) <= prepared + 1; ++level.next)
                    level.pool(normed1, level.next);
        }
    }

    // Compute the gate's part of all pooled levels for row y. Most rows have the same one as the row above.
    void gate(int y) {
        const Modulation& m = *block.modulation;
        const std::ptrdiff_t weights = std::ptrdiff_t(round_up(m.channels, BLOCK)) * m.chunk;  // of a level
        const float* coarser = nullptr;
        bool changed = false;
        for (int i = LEVELS - 1; i >= 0; --i) {
            Level& level = levels[i];
            const int row = level.rows.source(y);
            if (row != level.current) {
                level.compute_gate(m, row, m.coarse + i * weights, i == LEVELS - 1);
                changed = true;
            }
            if (changed) level.enlarge(coarser, in.channels, in.tiles);
            coarser = level.enlarged_gate();
        }
    }

    void modulate_rows(int begin, int end) {
        const Modulation& m = *block.modulation;
        for (int y = begin; y < end; ++y) {
            gate(y);
            for_chunks(in.tiles, [&](auto n, int tile) {
                const Chunk next = after(y, tile);
                look_ahead(4 * in.channels, [&] {
                    ahead.add(normed1, 0, m.chunk, next.at - 1, next.at + 2, next.tile);
                    ahead.add(normed1, m.chunk, in.channels - m.chunk, next.at, next.at + 1, next.tile);
                    ahead.add(in, 0, in.channels, next.at, next.at + 1, next.tile);
                    ahead.add(modulated, 0, in.channels, next.at, next.at + 1, next.tile);
                });
                depthwise_full<n>(m, normed1, y, tile, depthwise);
                modulate<n>(m, normed1, in, modulated, y, tile, depthwise, Gate{levels[0].enlarged_gate(), places()},
                            [&] { ahead.fetch(); });
            });
        }
    }

    void mix(int band) {
        for_chunks(in.tiles, [&](auto n, int tile) {
            const Chunk next = after(band, tile);
            look_ahead(TAPS * ((block.conv->out + BLOCK - 1) / BLOCK), [&] {
                const int top = 4 * next.at, channels = in.channels;
                ahead.add(normed2, 0, channels, top - 1, top + 5, next.tile);
                ahead.add(modulated, 0, channels, top, top + 4, next.tile);
                ahead.add(out, 0, channels, top, top + 4, next.tile);
            });
            transform_input<n, Factor>(normed2, 0, normed2.channels, band, tile, tiles.inputs);
            convolve<n, Factor, Factor::DEPTH>(*block.conv, tiles.inputs, tiles.products,
                                               IntoTiles<Factor>{tiles.result, block.conv->out},
                                               [&] { ahead.fetch(); });
            for (int place = 0; place < 16 && 4 * band + place / 4 < in.height; ++place)
                mix_back<n>(4 * band + place / 4, place % 4, tile, place);
        });
    }

    template <int N>
    void mix_back(int y, int p, int tile, int place) {
        const int cells = cells_of<Factor>(block.conv->out);
        auto weights = static_cast<const typename Factor::Cell*>(block.back);
        for (int first = 0; first < in.channels; first += BLOCK, weights += cells * BLOCK) {
            const int count = std::min(BLOCK, in.channels - first);
            const std::ptrdiff_t line = out.line;
            const float* const shortcut = modulated.at(first, y, p) + tile;
            Vec sums[BLOCK][N];
            for (int o = 0; o < BLOCK; ++o)
                for (int v = 0; v < N; ++v)
                    sums[o][v] = o < count ? load(shortcut + o * line + v * LANES) + block.back_bias[first + o] : Vec{};
            multiply<N, Factor>(sums, weights, tiles.result + std::ptrdiff_t(place) * cells * CHUNK, CHUNK, cells);
            float* const to = out.at(first, y, p);
            for (int o = 0; o < count; ++o)
                for (int v = 0; v < N; ++v) store(to + o * line + tile + v * LANES, sums[o][v]);
            if (tile == 0 || tile + N * LANES >= out.tiles)
                for (int o = 0; o < count; ++o) out.close(to + o * line, p, tile, tile + N * LANES);
        }
    }
};

template <typename Factor>
void run_block(const Block& block, const Map& in, const Map& out, int threads) {
    constexpr int SIDE = Strip<Factor>::SIDE;
    const int steps = (in.height + SIDE - 1) / SIDE, strips = std::min(threads, steps);
    for_all(strips, threads, [&](int i) {
        const int top = steps * i / strips * SIDE, bottom = std::min(steps * (i + 1) / strips * SIDE, in.height);
        Strip<Factor>(block, in, out, top, bottom).run();
    });
}

}  // namespace
