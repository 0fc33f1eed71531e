// CPU kernels for the feature mixing modules of SAFMN (built and called by inference.py).
//
// Layout. A map of C channels, H rows and W columns is stored as [H][C][4][stride]: column 4 t + p of a row is at place
// t of phase p. In this order all steps work on whole vectors of neighbouring t: Winograd transforms, whose tiles are
// four columns wide, pooling and all pointwise operations. Zeros before the first and after the last place of every
// phase are the zero padding of the convolutions. The function that writes a row also writes these zeros (`close`).
//
// 3x3 convolutions use Winograd's F(4x4, 3x3) (Lavin and Gray, CVPR 2016, arXiv 1509.09308): 36 instead of 144
// multiplications for 16 pixels. With the points 0, -1, 1, 1/2, -2 (Barabasz et al., arXiv 1803.10986) it is accurate
// enough for factors in bfloat16. These are stored in pairs of channels, as the processor's instruction requires.

#include "vectors.h"

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

constexpr int VECTORS = 2;
constexpr int CHUNK = VECTORS * LANES;  // tiles that are processed together
constexpr int GUARD = 16;               // places before the first and after the last tile; one on each side is read
constexpr int LEVELS = 3;               // of pooling

constexpr int round_up(int value, int step) { return (value + step - 1) / step * step; }

// The layout above in memory that the caller owns, for a whole frame or only the latest `kept` rows (a power of two).
struct Map {
    float* data;
    int channels, height, width;
    int tiles;   // of four columns; the last one may be partial
    int stride;  // of a phase
    int line;    // of one channel; an odd number of cache lines, so that channels do not share one cache set
    int mask;

    Map(const float* data, int channels, int height, int width, int kept = 0)
        : data(const_cast<float*>(data)), channels(channels), height(height), width(width), tiles((width + 3) / 4),
          stride(GUARD + round_up(tiles, 16) + GUARD), line(4 * stride + 16), mask(kept - 1) {}
    float* at(int channel, int row, int phase) const {
        return data + (std::ptrdiff_t(row & mask) * channels + channel) * line + phase * stride + GUARD;
    }
    // Write the zeros around a phase of a row, after the places [tile, end) of it have been written.
    INLINE void close(float* row, int phase, int tile, int end) const {
        if (tile == 0) row[-1] = 0.0f;
        if (end >= tiles)
            for (int t = (width - phase + 3) / 4; t <= end; ++t) row[t] = 0.0f;
    }
};

// Memory of one thread, in pieces aligned to cache lines.
class Scratch {
  public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() {
        for (float* piece : pieces) ::operator delete(piece, ALIGNMENT);
    }
    float* take(std::size_t floats) {
        pieces.reserve(pieces.size() + 1);
        pieces.push_back(static_cast<float*>(::operator new(floats * sizeof(float), ALIGNMENT)));
        return pieces.back();
    }

  private:
    static constexpr std::align_val_t ALIGNMENT{64};
    std::vector<float*> pieces;
};

// Call run(number of vectors, first tile) for every chunk of a row. The last chunk may be shorter.
template <typename Function>
INLINE void for_chunks(int tiles, Function&& run) {
    int tile = 0;
    for (; tiles - tile > LANES; tile += CHUNK) run(std::integral_constant<int, VECTORS>{}, tile);
    if (tile < tiles) run(std::integral_constant<int, 1>{}, tile);
}

// ---------------------------------------------------------------------------------------------------- matrix products

// Factors in float32: a cell is one channel.
struct Single {
    static constexpr int DEPTH = 1;
    using Cell = float;
    static INLINE Vec cells(const float* from) { return load(from); }
    static INLINE Vec weight(const float* weights, int o) { return ::weight(weights, o); }
    static INLINE Vec fused(Vec sum, Vec weight, Vec cells) { return sum + weight * cells; }
    static INLINE void pack(float* to, const Vec (&channels)[DEPTH]) { store(to, channels[0]); }
};

#ifdef __AVX512BF16__
// Factors in bfloat16: a cell is a pair of channels, the even one in the lower half.
struct Half {
    static constexpr int DEPTH = 2;
    using Cell = std::uint32_t;
    static INLINE Bits cells(const float* from) { return *reinterpret_cast<const UnalignedBits*>(from); }
    static INLINE Bits weight(const Cell* weights, int o) { return weights[o] - Bits{}; }
    static INLINE Vec fused(Vec sum, Bits weight, Bits cells) {
        return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)weight, (__m512bh)cells);
    }
    static INLINE void pack(float* to, const Vec (&channels)[DEPTH]) {
        const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,  //
                                               23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
        const __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)channels[1], (__m512)channels[0]);
        *reinterpret_cast<UnalignedBits*>(to) = (Bits)_mm512_permutexvar_epi16(order, both);
    }
};
#else
using Half = Single;  // without that instruction float32 is faster
#endif
constexpr bool HAS_HALF = Half::DEPTH == 2;

template <typename Factor>
constexpr int cells_of(int channels) {
    return (channels + Factor::DEPTH - 1) / Factor::DEPTH;
}

// sums[o][v] += weights[k][o] * inputs[k][v] for k < count. Most of the time is spent in this loop.
template <int N, typename Factor>
INLINE void multiply(Vec (&sums)[BLOCK][N], const typename Factor::Cell* weights, const float* inputs,
                     std::ptrdiff_t step, int count) {
    for (int k = 0; k < count; ++k, weights += BLOCK, inputs += step) {
        decltype(Factor::cells(inputs)) x[N];
#pragma GCC unroll 4
        for (int v = 0; v < N; ++v) x[v] = Factor::cells(inputs + v * LANES);
#pragma GCC unroll 16
        for (int o = 0; o < BLOCK; ++o) {
            const auto w = Factor::weight(weights, o);
#pragma GCC unroll 4
            for (int v = 0; v < N; ++v) sums[o][v] = Factor::fused(sums[o][v], w, x[v]);
        }
    }
}

// ------------------------------------------------------------------------------------------------------ 3x3 convolution

// Columns 4 t - 1 ... 4 t + 4 of a row, for all t of a vector.
struct Columns {
    Vec at[6];
    INLINE Columns(const float* phase, int s) {  // phase 0 at the first place, and the stride
        at[0] = load(phase + 3 * s - 1);
        for (int p = 0; p < 4; ++p) at[1 + p] = load(phase + p * s);
        at[5] = load(phase + 1);
    }
};

// Transform the tiles of one channel from its rows 4 band - 1 ... 4 band + 4; null for a row outside of the frame.
INLINE void transform(const float* const (&rows)[6], std::ptrdiff_t at, int stride, Vec (&out)[TAPS]) {
    Vec lines[6][6];
    for (int i = 0; i < 6; ++i) {
        if (rows[i]) {
            input_line(Columns(rows[i] + at, stride).at, lines[i]);
        } else {
            for (int j = 0; j < 6; ++j) lines[i][j] = Vec{};
        }
    }
    for (int j = 0; j < 6; ++j) {
        const Vec d[6] = {lines[0][j], lines[1][j], lines[2][j], lines[3][j], lines[4][j], lines[5][j]};
        Vec column[6];
        input_line(d, column);
        for (int i = 0; i < 6; ++i) out[i * 6 + j] = column[i];
    }
}

// Transform all channels of a chunk: [TAPS][cells][CHUNK].
template <int N, typename Factor>
void transform_input(const Map& map, int band, int tile, float* to) {
    const int channels = map.channels, cells = cells_of<Factor>(channels), line = map.line, stride = map.stride;
    const float* rows[6];
    for (int i = 0; i < 6; ++i) {
        const int row = 4 * band - 1 + i;
        rows[i] = row >= 0 && row < map.height ? map.at(0, row, 0) + tile : nullptr;
    }
    for (int k = 0; k < cells; ++k)
        for (int v = 0; v < N; ++v) {
            Vec parts[Factor::DEPTH][TAPS];
            for (int i = 0; i < Factor::DEPTH; ++i) {
                const int channel = k * Factor::DEPTH + i;
                if (channel < channels) transform(rows, std::ptrdiff_t(channel) * line + v * LANES, stride, parts[i]);
                else std::fill_n(parts[i], TAPS, Vec{});
            }
            for (int tap = 0; tap < TAPS; ++tap) {
                Vec both[Factor::DEPTH];
                for (int i = 0; i < Factor::DEPTH; ++i) both[i] = parts[i][tap];
                Factor::pack(to + (std::ptrdiff_t(tap) * cells + k) * CHUNK + v * LANES, both);
            }
        }
}

// Transform the products of one output channel to its 4 x 4 pixels.
INLINE void transform_back(const float* products, float bias, bool activated, Vec (&out)[16]) {
    Vec lines[4][6];
    for (int j = 0; j < 6; ++j) {
        Vec m[6], column[4];
        for (int i = 0; i < 6; ++i) m[i] = load(products + (i * 6 + j) * BLOCK * CHUNK);
        output_line(m, column);
        for (int i = 0; i < 4; ++i) lines[i][j] = column[i];
    }
    for (int i = 0; i < 4; ++i) {
        Vec row[4];
        output_line(lines[i], row);
        for (int p = 0; p < 4; ++p) {
            const Vec value = row[p] + bias;
            out[i * 4 + p] = activated ? gelu(value) : value;
        }
    }
}

// A 3x3 convolution. The weights are transformed: [blocks][TAPS][cells of the input][BLOCK].
struct Conv {
    const void* weights;
    const float* bias;  // [out]
    int in, out;
    bool activated;
};

// Convolve a chunk of four rows: [4 rows][4 phases][cells of the output][CHUNK].
template <int N, typename Factor, typename Output>
void convolve(const Conv& conv, const float* inputs, float* products, float* to) {
    const int cells = cells_of<Factor>(conv.in), out_cells = cells_of<Output>(conv.out);
    auto weights = static_cast<const typename Factor::Cell*>(conv.weights);
    for (int first = 0; first < conv.out; first += BLOCK) {
        for (int tap = 0; tap < TAPS; ++tap, weights += cells * BLOCK) {
            Vec sums[BLOCK][N] = {};
            multiply<N, Factor>(sums, weights, inputs + std::ptrdiff_t(tap) * cells * CHUNK, CHUNK, cells);
            for (int o = 0; o < BLOCK; ++o)
                for (int v = 0; v < N; ++v) store(products + (tap * BLOCK + o) * CHUNK + v * LANES, sums[o][v]);
        }
        for (int o = 0; o < std::min(BLOCK, conv.out - first); o += Output::DEPTH)
            for (int v = 0; v < N; ++v) {
                Vec pixels[Output::DEPTH][16];
                for (int i = 0; i < Output::DEPTH; ++i) {
                    if (first + o + i < conv.out)
                        transform_back(products + (o + i) * CHUNK + v * LANES, conv.bias[first + o + i], conv.activated,
                                       pixels[i]);
                    else std::fill_n(pixels[i], 16, Vec{});
                }
                for (int place = 0; place < 16; ++place) {
                    Vec channels[Output::DEPTH];
                    for (int i = 0; i < Output::DEPTH; ++i) channels[i] = pixels[i][place];
                    const int cell = (first + o) / Output::DEPTH;
                    Output::pack(to + (std::ptrdiff_t(place) * out_cells + cell) * CHUNK + v * LANES, channels);
                }
            }
    }
}

// The memory that a thread needs for `convolve`.
struct Tiles {
    Scratch scratch;
    float *inputs, *products, *result;
    explicit Tiles(const Conv& conv)
        : inputs(scratch.take(std::size_t(TAPS) * conv.in * CHUNK)), products(scratch.take(TAPS * BLOCK * CHUNK)),
          result(scratch.take(std::size_t(16) * conv.out * CHUNK)) {}
};

// --------------------------------------------------------------------------------------------------- normalisation

// Layer normalisation over channels.
struct Norm {
    const float *weight, *bias;  // [channels]; null for no normalisation
    float eps;
};

// Normalise one row of a chunk. All its vectors are processed together, because their sums do not depend on each other.
template <int N>
void normalise(const Norm& norm, const Map& from, const Map& to, int y, int tile) {
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
    for (int c = 0; c < channels; ++c) each([&](int p, int v) { mean[p][v] += load(in[p] + c * line + v * LANES); });
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

INLINE void join(const float* const (&rows)[4], float* __restrict to, int step, int width);

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

// out = x + gelu(gate + aggregation of the unpooled level) * normed, for one row of a chunk.
template <int N>
void modulate(const Modulation& m, const Map& normed, const Map& x, const Map& out, int y, int tile, const float* lines,
              const Gate& gate) {
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

// Write a chunk of four rows to `out`: `result`, plus `add` if it has data.
template <int N>
void write_tiles(const float* result, const Map& out, const Map& add, int band, int tile) {
    for (int place = 0; place < 16; ++place) {
        const int y = 4 * band + place / 4, p = place % 4;
        for (int c = 0; c < out.channels && y < out.height; ++c) {
            const float* from = result + (std::ptrdiff_t(place) * out.channels + c) * CHUNK;
            float* const to = out.at(c, y, p);
            for (int v = 0; v < N; ++v) {
                const Vec value = load(from + v * LANES);
                const int t = tile + v * LANES;
                store(to + t, add.data ? value + load(add.at(c, y, p) + t) : value);
            }
            out.close(to, p, tile, tile + N * LANES);
        }
    }
}

template <typename Factor>
void run_conv(const Conv& conv, const Map& in, const Map& out, const Map& add, int threads) {
    const auto make = [&] { return Tiles(conv); };
    for_all((in.height + 3) / 4, threads, make, [&](const Tiles& tiles, int band) {
        for_chunks(in.tiles, [&](auto n, int tile) {
            transform_input<n, Factor>(in, band, tile, tiles.inputs);
            convolve<n, Factor, Single>(conv, tiles.inputs, tiles.products, tiles.result);
            write_tiles<n>(tiles.result, out, add, band, tile);
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
          levels(levels_of(block, in)), tiles(block.conv ? *block.conv : Conv{nullptr, nullptr, 0, 0, false}),
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

    static void normalise_row(const Norm& norm, const Map& from, const Map& to, int y) {
        for_chunks(from.tiles, [&](auto n, int tile) { normalise<n>(norm, from, to, y, tile); });
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
                depthwise_full<n>(m, normed1, y, tile, depthwise);
                modulate<n>(m, normed1, in, modulated, y, tile, depthwise, Gate{levels[0].enlarged, places()});
            });
        }
    }

    void mix(int band) {
        for_chunks(in.tiles, [&](auto n, int tile) {
            transform_input<n, Factor>(normed2, band, tile, tiles.inputs);
            convolve<n, Factor, Factor>(*block.conv, tiles.inputs, tiles.products, tiles.result);
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

// rows[p][t] = from[4 t + p], of `width` values.
INLINE void part(const float* __restrict from, float* const (&rows)[4], int width) {
    float *__restrict a = rows[0], *__restrict b = rows[1], *__restrict c = rows[2], *__restrict d = rows[3];
    for (int t = 0; t < width / 4; ++t) {
        a[t] = from[4 * t];
        b[t] = from[4 * t + 1];
        c[t] = from[4 * t + 2];
        d[t] = from[4 * t + 3];
    }
    for (int x = width / 4 * 4; x < width; ++x) rows[x % 4][x / 4] = from[x];
}

// to[step t + p] = rows[p][t], for all step t + p < `width`.
INLINE void join(const float* const (&rows)[4], float* __restrict to, int step, int width) {
    const float *a = rows[0], *b = rows[1], *c = rows[2], *d = rows[3];
    int t = 0;
    for (; step * t + 4 <= width; ++t) {
        to[step * t] = a[t];
        to[step * t + 1] = b[t];
        to[step * t + 2] = c[t];
        to[step * t + 3] = d[t];
    }
    for (int p = 0; p < 4 && step * t + p < width; ++p) to[step * t + p] = rows[p][t];
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

// Convert a map of channels * scale^2 channels to (channels, height * scale, width * scale) by pixel shuffle.
int safmn_from_map(const float* map, float* image, int channels, int height, int width, int scale, int threads) {
    const Map from(map, channels * scale * scale, height, width);
    return status_of([&] {
        for_all(height * scale, threads, [&](int y) {
            for (int c = 0; c < channels; ++c) {
                float* to = image + (std::ptrdiff_t(c) * height * scale + y) * width * scale;
                for (int first = 0; first < 4 * scale; first += 4) {
                    const float* rows[4];
                    for (int i = 0; i < 4; ++i) {
                        const int column = first + i;  // of the enlarged tile
                        const int channel = (c * scale + y % scale) * scale + column % scale;
                        rows[i] = from.at(channel, y / scale, column / scale);
                    }
                    if (scale == 1) join(rows, to, 4, width);  // a constant step lets the compiler optimise
                    else join(rows, to + first, 4 * scale, width * scale - first);
                }
            }
        });
    });
}

// out = conv3x3(in) + add. If `add` is null, nothing is added. `out` may be `add`.
int safmn_conv(const float* in, float* out, const float* add, int channels, int out_channels, int height, int width,
               const void* weights, const float* bias, int half, int threads) {
    const Conv conv{weights, bias, channels, out_channels, false};
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
    const Conv conv{weights, hidden_bias, channels, hidden, true};
    const Block block{factors ? &modulation : nullptr, weights ? &conv : nullptr, back, back_bias,
                      Norm{norm1_weight, norm1_bias, eps}, Norm{norm2_weight, norm2_bias, eps}};
    const Map from(in, channels, height, width), to(out, channels, height, width);
    return status_of([&] { (half ? run_block<Half> : run_block<Single>)(block, from, to, threads); });
}

}  // extern "C"
