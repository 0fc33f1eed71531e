// The pooled levels of a modulation: pooling of rows, and their part of the gate, enlarged to the frame again.
#pragma once

#include "lines.h"
#include "maps.h"

namespace {

constexpr int LEVELS = 3;  // of pooling

// `full` and `coarse` are the parts of the aggregation (a 1x1 convolution) for the unpooled and pooled levels.
struct Modulation {
    int channels, chunk;    // channels in total, and per level
    const int* factors;     // of pooling, [LEVELS]
    const float* taps;      // depthwise, [channels][9]
    const float* tap_bias;  // [channels]
    const float* full;      // [blocks][chunk][BLOCK]
    const float* coarse;    // [LEVELS][blocks][chunk][BLOCK]
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

// out[i] = from[index[i]] for indices below 2 LANES.
INLINE Vec picked(const float* from, const std::uint32_t* index) {
#if defined(__AVX512F__)
    const __m512i places = _mm512_loadu_si512(index);
    return (Vec)_mm512_permutex2var_ps((__m512)load(from), places, (__m512)load(from + LANES));
#elif defined(__AVX2__)
    const __m256i places = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index));
    const __m256 low = _mm256_permutevar8x32_ps((__m256)load(from), places);
    const __m256 high = _mm256_permutevar8x32_ps((__m256)load(from + LANES), places);
    return (Vec)_mm256_blendv_ps(low, high, (__m256)_mm256_slli_epi32(places, 28));  // the sign bit of each lane decides
#else
    Vec out;
    for (int i = 0; i < LANES; ++i) out[i] = from[index[i]];
    return out;
#endif
}

// A pooled level of a frame. Only the latest rows are kept. A row is a zero, the values and another zero.
class Level {
  public:
    const Division rows, columns;
    const int first;   // its first channel in the network
    int next = 0;      // the next row to pool
    int current = -1;  // the row of which the gate is known

    Level(const Map& frame, int factor, int first, int channels)
        : rows(frame.height, factor), columns(frame.width, factor), first(first), channels(channels),
          factor(frame.width % columns.cells ? 0 : frame.width / columns.cells), step(round_up(columns.cells, CHUNK) + CHUNK) {
        find_cells();
        find_sources(round_up(frame.tiles, CHUNK));
    }

    // Take memory for this number of rows, a power of two, and for the gate of `outputs` channels.
    void keep(int count, int outputs, Scratch& scratch) {
        mask = count - 1;
        pooled = scratch.take(std::size_t(count) * channels * (columns.cells + 2));
        convolved = scratch.take(std::size_t(channels) * step);
        gate = scratch.take(std::size_t(outputs) * step);
        std::fill_n(convolved, std::size_t(channels) * step, 0.0f);  // beyond the last column, too
        std::fill_n(gate, std::size_t(outputs) * step, 0.0f);
        enlarged = scratch.take(std::size_t(outputs) * 4 * places);
        line = scratch.take(std::size_t(8) * places);
    }

    int below(int y) const { return std::min(rows.source(y) + 1, rows.cells - 1); }  // the last row that y depends on
    int above(int y) const { return std::max(rows.source(y) - 1, 0); }               // and the first one

    // Pool row `row` from the rows of the map.
    void pool(const Map& map, int row) const {
        const int begin = rows.begin(row), end = rows.end(row);
        for (int k = 0; k < channels; ++k) {
            for (int p = 0; p < 4; ++p)
                for (int t = 0; t < map.tiles; t += LANES) {
                    Vec most = load(map.at(first + k, begin, p) + t);
                    for (int y = begin + 1; y < end; ++y) most = larger(load(map.at(first + k, y, p) + t), most);
                    store(line + p * places + t, most);
                }
            float* const to = at(k, row);
            to[-1] = to[columns.cells] = 0.0f;
            pool_columns(to);
        }
    }

    // Compute this level's part of the gate for one of its rows, at its own resolution. `last`: it adds the bias, too.
    void compute_gate(const Modulation& m, int row, const float* weights, bool last) {
        current = row;
        for (int k = 0; k < channels; ++k)
            depthwise(k, row, m.taps + 9 * (first + k), m.tap_bias[first + k], convolved + std::ptrdiff_t(k) * step);
        for_chunks(columns.cells, [&](auto n, int x) {
            for (int c = 0; c < m.channels; c += BLOCK) {
                const int count = std::min(BLOCK, m.channels - c);
                Vec sums[BLOCK][n];
                for (int o = 0; o < BLOCK; ++o)
                    for (Vec& sum : sums[o]) sum = splat(last && o < count ? m.bias[c + o] : 0.0f);
                multiply<n, Single>(sums, weights + std::ptrdiff_t(c) * channels, convolved + x, step, channels, count);
                for (int o = 0; o < count; ++o)
                    for (int v = 0; v < n; ++v) store(gate + std::ptrdiff_t(c + o) * step + x + v * LANES, sums[o][v]);
            }
        });
    }

    // Enlarge this level's part of the gate along its rows, and add the coarser levels' part unless that is null.
    void enlarge(const float* coarser, int outputs, int tiles) const {
        for (int c = 0; c < outputs; ++c) {
            const float* const from = gate + std::ptrdiff_t(c) * step;
            for (int p = 0; p < 4; ++p) {
                const std::ptrdiff_t begin = (std::ptrdiff_t(c) * 4 + p) * places;
                for (int t = 0; t < tiles; t += LANES) {
                    const int source = p * places + t;
                    Vec values = picked(from + bases[source / LANES], &offsets[source]);
                    if (coarser) values += load(coarser + begin + t);
                    store(enlarged + begin + t, values);
                }
            }
        }
    }

    const float* enlarged_gate() const { return enlarged; }  // of this level and all coarser ones: see Gate

  private:
    const int channels;
    const int factor;  // columns of each cell; 0 if cells differ or overlap
    const int step;    // of a channel of the gate: readable beyond the last column
    int places = 0, mask = 0;
    float* pooled = nullptr;     // [rows kept][channels][columns + 2]
    float* convolved = nullptr;  // depthwise: [channels][step]
    float* gate = nullptr;       // its part of the gate for row `current`: [outputs][step]
    float* enlarged = nullptr;   // [outputs][4 phases][places]
    float* line = nullptr;       // room for one row in phases and one in order
    int widest = 0;                      // columns of the widest cell
    std::vector<int> cells;              // the columns of each cell, the last one repeated: [widest][cells]
    std::vector<int> bases;              // for each vector of a row in phases: the first column that it is made of
    std::vector<std::uint32_t> offsets;  // from there to the sources of its places: [4 phases][places]

    float* at(int channel, int row) const {
        return pooled + (std::ptrdiff_t(row & mask) * channels + channel) * (columns.cells + 2) + 1;
    }

    void find_cells() {
        for (int x = 0; x < columns.cells; ++x) widest = std::max(widest, columns.end(x) - columns.begin(x));
        for (int i = 0; i < widest; ++i)
            for (int x = 0; x < columns.cells; ++x) cells.push_back(std::min(columns.begin(x) + i, columns.end(x) - 1));
    }

    // A vector of places is made of less than 2 LANES columns, because each cell has at least two columns of the frame.
    void find_sources(int count) {
        places = count;
        for (int p = 0; p < 4; ++p)
            for (int t = 0; t < places; ++t) {
                const int source = columns.source(std::min(4 * t + p, columns.pixels - 1));
                if (t % LANES == 0) bases.push_back(source);
                offsets.push_back(std::uint32_t(source - bases.back()));
            }
    }

    // The largest value of each cell of `line`.
    void pool_columns(float* to) const {
        const float *const a = line, *const b = a + places, *const c = b + places, *const d = c + places;
        const int count = columns.cells;
        if (factor == 4) {
            for (int x = 0; x < count; ++x) to[x] = std::max(std::max(a[x], b[x]), std::max(c[x], d[x]));
        } else if (factor == 2) {
            const float *const left = line + 4 * places, *const right = left + places;
            largest_of(a, b, line + 4 * places, (count + 1) / 2);
            largest_of(c, d, line + 5 * places, count / 2);
            const float* const both[2] = {left, right};
            join<2>(both, to, count);
        } else {
            float* const ordered = line + 4 * places;
            const float* const phases[4] = {a, b, c, d};
            join(phases, ordered, 4, columns.pixels);
            for (int x = 0; x < count; ++x) to[x] = ordered[cells[x]];
            for (int i = 1; i < widest; ++i) {
                const int* const column = &cells[std::size_t(i) * count];
                for (int x = 0; x < count; ++x) to[x] = std::max(to[x], ordered[column[x]]);
            }
        }
    }
    static void largest_of(const float* a, const float* b, float* to, int count) {
        for (int x = 0; x < count; ++x) to[x] = std::max(a[x], b[x]);
    }

    void depthwise(int channel, int y, const float* taps, float bias, float* to) const {
        const int width = columns.cells;
        std::fill_n(to, width, bias);
        for (int i = 0; i < 3; ++i) {
            if (y + i < 1 || y + i > rows.cells) continue;
            const float* row = at(channel, y + i - 1);
            for (int x = 0; x < width; ++x)
                to[x] += taps[3 * i] * row[x - 1] + taps[3 * i + 1] * row[x] + taps[3 * i + 2] * row[x + 1];
        }
    }
};

}  // namespace
