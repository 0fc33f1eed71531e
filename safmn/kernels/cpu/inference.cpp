// CPU kernels for the feature mixing modules of SAFMN (built and called by inference.py), and the interface to Python.

#include "lines.h"
#include "ahead.h"
#include "maps.h"
#include "images.h"
#include "passes.h"
#include "reductions.h"

namespace {

constexpr int LEVELS = 3;  // of pooling

// --------------------------------------------------------------------------------------------------- normalisation

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

// ------------------------------------------------------------------------------------------------------- modulation

// `full` and `coarse` are the parts of the aggregation (a 1x1 convolution) for the unpooled and pooled levels.
struct Modulation {
    int channels, chunk;    // channels in total, and per level
    const int* factors;     // of pooling, [LEVELS]
    const float* taps;      // depthwise, [channels][9]
    const float* tap_bias;  // [channels]
    const float* full;      // [blocks][chunk][BLOCK]
    const float* coarse;    // [LEVELS][channels][chunk]
    const float* bias;      // of the aggregation, [channels]
};

// How adaptive pooling divides a side of `pixels` into `cells`, and nearest-neighbour enlarging goes back, as in torch.
struct Division {
    int pixels, cells;
    Division(int pixels, int factor) : pixels(pixels), cells(std::max(pixels / factor, 1)) {}
    int begin(int cell) const { return int(std::int64_t(cell) * pixels / cells); }
    int end(int cell) const { return int((std::int64_t(cell + 1) * pixels + cells - 1) / cells); }
    int source(int pixel) const {  // computed in float32, as torch does
        return std::min(int(std::floor(float(pixel) * (float(cells) / float(pixels)))), cells - 1);
    }
};

// A pooled level. Only the latest rows are kept. A row is a zero, the values and another zero.
struct Level {
    Division rows, columns;
    const int first;             // its first channel in the network
    std::vector<int> sources;    // of all columns, in the order of a map: [4 phases][places]
    float* pooled = nullptr;     // [rows kept][chunk][columns + 2]
    float* gate = nullptr;       // its part of the gate for row `current`: [channels][columns]
    float* enlarged = nullptr;   // the gate of this level and all coarser ones: [channels][4 phases][places]
    int channels = 0, mask = 0, next = 0, current = -1;
    Level(int height, int width, int factor, int first) : rows(height, factor), columns(width, factor), first(first) {}
    float* at(int channel, int row) const {
        return pooled + (std::ptrdiff_t(row & mask) * channels + channel) * (columns.cells + 2) + 1;
    }
    int below(int y) const { return std::min(rows.source(y) + 1, rows.cells - 1); }  // the last row that y depends on
    int above(int y) const { return std::max(rows.source(y) - 1, 0); }               // and the first one
};

// Pool row `row` of a level from the rows of the map. `line` has room for one row and one row in phases.
void pool_row(const Level& level, const Map& map, int row, float* line) {
    const int places = map.stride;
    float* const columns = line + 4 * places;
    const int begin = level.rows.begin(row), end = level.rows.end(row);
    for (int k = 0; k < level.channels; ++k) {
        for (int p = 0; p < 4; ++p) {
            float* to = line + p * places;
            std::copy_n(map.at(level.first + k, begin, p), map.tiles, to);
            for (int y = begin + 1; y < end; ++y) {
                const float* a = map.at(level.first + k, y, p);
                for (int t = 0; t < map.tiles; ++t) to[t] = std::max(to[t], a[t]);
            }
        }
        const float* const phases[4] = {line, line + places, line + 2 * places, line + 3 * places};
        join(phases, columns, 4, map.width);
        float* to = level.at(k, row);
        to[-1] = to[level.columns.cells] = 0.0f;
        for (int x = 0; x < level.columns.cells; ++x) {
            const int last = level.columns.end(x);
            float largest = columns[level.columns.begin(x)];
            for (int i = level.columns.begin(x) + 1; i < last; ++i) largest = std::max(largest, columns[i]);
            to[x] = largest;
        }
    }
}

void depthwise_row(const Level& from, int channel, int y, const float* taps, float bias, float* to) {
    const int width = from.columns.cells;
    std::fill_n(to, width, bias);
    for (int i = 0; i < 3; ++i) {
        if (y + i < 1 || y + i > from.rows.cells) continue;
        const float* row = from.at(channel, y + i - 1);
        for (int x = 0; x < width; ++x)
            to[x] += taps[3 * i] * row[x - 1] + taps[3 * i + 1] * row[x] + taps[3 * i + 2] * row[x + 1];
    }
}

// Compute a level's part of the gate for one of its rows, at its own resolution. `lines` is [chunk][columns].
void gate_row(const Modulation& m, const Level& level, int index, int row, float* lines) {
    const int width = level.columns.cells;
    for (int k = 0; k < m.chunk; ++k)
        depthwise_row(level, k, row, m.taps + 9 * (level.first + k), m.tap_bias[level.first + k],
                      lines + std::ptrdiff_t(k) * width);
    for (int c = 0; c < m.channels; ++c) {
        const float* weights = m.coarse + (std::ptrdiff_t(index) * m.channels + c) * m.chunk;
        float* to = level.gate + std::ptrdiff_t(c) * width;
        std::fill_n(to, width, index == LEVELS - 1 ? m.bias[c] : 0.0f);
        for (int k = 0; k < m.chunk; ++k)
            for (int x = 0; x < width; ++x) to[x] += weights[k] * lines[std::ptrdiff_t(k) * width + x];
    }
}

// Enlarge a level's part of the gate along its rows, and add the coarser levels' part.
void enlarge_gate(const Level& level, const float* coarser, int channels, int tiles, int places) {
    for (int c = 0; c < channels; ++c)
        for (int p = 0; p < 4; ++p) {
            const std::ptrdiff_t at = (std::ptrdiff_t(c) * 4 + p) * places;
            const float* from = level.gate + std::ptrdiff_t(c) * level.columns.cells;
            const int* sources = level.sources.data() + p * places;
            for (int t = 0; t < tiles; ++t) level.enlarged[at + t] = from[sources[t]];
            if (!coarser) continue;
            for (int t = 0; t < tiles; ++t) level.enlarged[at + t] += coarser[at + t];
        }
}

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

// ------------------------------------------------------------------------------------------------- loops over a frame

template <typename Factor>
void run_conv(const Conv& conv, const Map& in, const Map& out, const Map& add, int threads) {
    const auto make = [&] { return Tiles(conv); };
    for_all((in.height + 3) / 4, threads, make, [&](const Tiles& tiles, int band) {
        for_chunks(in.tiles, [&](auto n, int tile) {
            transform_input<n, Factor>(in, 0, in.channels, band, tile, tiles.inputs);
            convolve<n, Factor>(conv, tiles.inputs, tiles.products, [&](int channel, int v, Vec (&pixels)[1][16]) {
                const int at = tile + v * LANES, places = 4 * std::min(4, out.height - 4 * band);
                for (int place = 0; add.data && place < places; ++place)
                    pixels[0][place] += load(add.at(channel, 4 * band + place / 4, place % 4) + at);
                write_tile(pixels[0], out, channel, band, at);
            });
        });
    });
}

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
        lines = scratch.take(std::size_t(m.chunk) * in.tiles * 4 + 8 * std::size_t(in.stride));
        for (Level& level : levels) {
            level.channels = m.chunk;
            const int rows = power_of_two(rows_pooled(level));
            level.mask = rows - 1;
            level.pooled = scratch.take(std::size_t(rows) * m.chunk * (level.columns.cells + 2));
            level.gate = scratch.take(std::size_t(in.channels) * level.columns.cells);
            level.enlarged = scratch.take(std::size_t(in.channels) * 4 * places());
            level.sources.assign(std::size_t(4) * places(), 0);
            for (int x = 0; x < in.width; ++x) level.sources[x % 4 * places() + x / 4] = level.columns.source(x);
        }
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
    float *depthwise, *lines;
    int prepared = 0;  // the first row that is not normalised yet

    static std::vector<Level> levels_of(const Block& block, const Map& in) {
        std::vector<Level> found;
        for (int i = 0; block.modulation && i < LEVELS; ++i)
            found.emplace_back(in.height, in.width, block.modulation->factors[i], block.modulation->chunk * (i + 1));
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
                    pool_row(level, normed1, level.next, lines);
        }
    }

    // Compute the gate's part of all pooled levels for row y. Most rows have the same one as the row above.
    void gate(int y) {
        bool changed = false;
        for (int i = LEVELS - 1; i >= 0; --i) {
            Level& level = levels[i];
            const int row = level.rows.source(y);
            if (row != level.current) gate_row(*block.modulation, level, i, row, lines);
            changed = changed || row != level.current;
            level.current = row;
            const float* coarser = i == LEVELS - 1 ? nullptr : levels[i + 1].enlarged;
            if (changed) enlarge_gate(level, coarser, in.channels, in.tiles, places());
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
                modulate<n>(m, normed1, in, modulated, y, tile, depthwise, Gate{levels[0].enlarged, places()},
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

// ------------------------------------------------------------------------------------------------------- the interface
// A map is passed as a pointer to its memory and has `height` rows and `width` columns. The functions return 0, or 1 if
// memory runs out. With `half`, weights are pairs of bfloat16, which needs a processor with safmn_has_half().

extern "C" {

// Output channels per block of packed weights.
int safmn_block_size() { return BLOCK; }

int safmn_has_half() { return HAS_HALF; }

// The number of floats in a row of one channel.
int safmn_line(int width) { return Map(nullptr, 0, 0, width).line; }

// Convert a plain image (channels, height, width) to a map. Channels are `plane` floats apart, rows are `pitch` floats
// apart.
int safmn_to_map(const float* image, float* map, int channels, int height, int width, std::ptrdiff_t plane,
                 std::ptrdiff_t pitch, int threads) {
    const Map to(map, channels, height, width);
    return status_of([&] {
        for_all(height, threads, [&](int y) {
            for (int c = 0; c < channels; ++c) {
                float* const rows[4] = {to.at(c, y, 0), to.at(c, y, 1), to.at(c, y, 2), to.at(c, y, 3)};
                part(image + c * plane + y * pitch, rows, width);
                for (int p = 0; p < 4; ++p) to.close(rows[p], p, 0, round_up(to.tiles, LANES));
            }
        });
    });
}

// Convert channels * scale^2 channels, from `begin` on, of a map of `total` channels to (channels, height * scale,
// width * scale) by pixel shuffle. Add `shortcut`, a map of `channels` channels, enlarged bilinearly, unless it is null.
int safmn_from_map(const float* map, float* image, const float* shortcut, int total, int begin, int channels, int height,
                   int width, int scale, int threads) {
    const Map from(map, total, height, width), added(shortcut, channels, height, width);
    return status_of([&] { shuffle(from, begin, added, image, scale, threads); });
}

// Pool `channels` channels, from `begin` on, of a map of `total` channels to (channels, rows, columns): the largest value
// of each cell. Bounds: the first rows of the cells, the ends of their rows, then the same for columns.
int safmn_pool(const float* map, float* to, int total, int begin, int channels, int height, int width, const int* bounds,
               int rows, int columns, int threads) {
    const Map from(map, total, height, width);
    return status_of([&] { pool(from, begin, channels, Cells{bounds, rows, columns}, to, threads); });
}

// Compute the means of `channels` channels, from `begin` on, of a map of `total` channels, and the sums of the squared
// distances from them: (2, channels).
int safmn_moments(const float* map, double* to, int total, int begin, int channels, int height, int width, int threads) {
    const Map from(map, total, height, width);
    return status_of([&] { moments(from, begin, channels, to, threads); });
}

// Run a pass; see passes.h.
int safmn_pass(const int* code, const float* weights, const void* taps, const float* bias, int height, int width, float* t0,
               float* t1, float* t2, float* t3, float* t4, float* t5, float* t6, float* t7, float* t8, float* t9,
               float* t10, float* t11, int threads) {
    float* const tensors[] = {t0, t1, t2, t3, t4, t5, t6, t7, t8, t9, t10, t11};
    return status_of([&] {
        const Pass pass(code, weights, taps, bias, height, width, tensors);
        (pass.half ? run_pass<Half> : run_pass<Single>)(pass, threads);
    });
}

// out = conv3x3(in) + add. If `add` is null, nothing is added. `out` may be `add`.
int safmn_conv(const float* in, float* out, const float* add, int channels, int out_channels, int height, int width,
               const void* weights, const float* bias, int half, int threads) {
    const Conv conv{weights, bias, channels, out_channels, {}};
    const Map from(in, channels, height, width), to(out, out_channels, height, width);
    const Map residual(add, out_channels, height, width);
    return status_of([&] { (half ? run_conv<Half> : run_conv<Single>)(conv, from, to, residual, threads); });
}

// Run a feature mixing module; see Block. `out` must not be `in`. There is no modulation if `factors` is null, no
// mixing if `weights` is null, and no norm if its weight is null.
int safmn_block(const float* in, float* out, int channels, int height, int width,  //
                const float* norm1_weight, const float* norm1_bias,                //
                const int* factors, const float* taps, const float* tap_bias,      //
                const float* full, const float* coarse, const float* bias,         //
                const float* norm2_weight, const float* norm2_bias,                //
                int hidden, const void* weights, const float* hidden_bias,         //
                const void* back, const float* back_bias, float eps, int half, int threads) {
    const Modulation modulation{channels, channels / (LEVELS + 1), factors, taps, tap_bias, full, coarse, bias};
    const Conv conv{weights, hidden_bias, channels, hidden, {GELU, 0.0f, 0.0f}};
    const Block block{factors ? &modulation : nullptr, weights ? &conv : nullptr, back, back_bias,
                      Norm{norm1_weight, norm1_bias, eps}, Norm{norm2_weight, norm2_bias, eps}};
    const Map from(in, channels, height, width), to(out, channels, height, width);
    return status_of([&] { (half ? run_block<Half> : run_block<Single>)(block, from, to, threads); });
}

}  // extern "C"
