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
    INLINE Columns(const Map& map, int channel, int row, int tile) {
        const float* phase = map.at(channel, row, 0) + tile;
        const int s = map.stride;
        at[0] = load(phase + 3 * s - 1);
        for (int p = 0; p < 4; ++p) at[1 + p] = load(phase + p * s);
        at[5] = load(phase + 1);
    }
};

// Transform the tiles of one channel: rows 4 band - 1 ... 4 band + 4.
INLINE void transform(const Map& map, int channel, int band, int tile, Vec (&out)[TAPS]) {
    Vec lines[6][6];
    for (int i = 0; i < 6; ++i) {
        const int row = 4 * band - 1 + i;
        if (row >= 0 && row < map.height) {
            input_line(Columns(map, channel, row, tile).at, lines[i]);
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
    const int cells = cells_of<Factor>(map.channels);
    for (int k = 0; k < cells; ++k)
        for (int v = 0; v < N; ++v) {
            Vec parts[Factor::DEPTH][TAPS] = {};
            for (int i = 0; i < Factor::DEPTH && k * Factor::DEPTH + i < map.channels; ++i)
                transform(map, k * Factor::DEPTH + i, band, tile + v * LANES, parts[i]);
            for (int tap = 0; tap < TAPS; ++tap) {
                Vec channels[Factor::DEPTH];
                for (int i = 0; i < Factor::DEPTH; ++i) channels[i] = parts[i][tap];
                Factor::pack(to + (std::ptrdiff_t(tap) * cells + k) * CHUNK + v * LANES, channels);
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
                Vec pixels[Output::DEPTH][16] = {};
                for (int i = 0; i < Output::DEPTH && first + o + i < conv.out; ++i)
                    transform_back(products + (o + i) * CHUNK + v * LANES, conv.bias[first + o + i], conv.activated,
                                   pixels[i]);
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
    const auto each = [&](auto&& run) {
#pragma GCC unroll 4
        for (int p = 0; p < 4; ++p)
#pragma GCC unroll 4
            for (int v = 0; v < N; ++v) run(p, v);
    };
    const auto at = [&](int c, int p, int v) { return load(from.at(c, y, p) + tile + v * LANES); };
    Vec mean[4][N] = {}, scale[4][N] = {};
    for (int c = 0; c < channels; ++c) each([&](int p, int v) { mean[p][v] += at(c, p, v); });
    each([&](int p, int v) { mean[p][v] /= float(channels); });
    for (int c = 0; c < channels; ++c)
        each([&](int p, int v) {
            const Vec centred = at(c, p, v) - mean[p][v];
            scale[p][v] += centred * centred;
        });
    each([&](int p, int v) { scale[p][v] = reciprocal_root(scale[p][v] / float(channels) + norm.eps); });
    for (int c = 0; c < channels; ++c) {
        each([&](int p, int v) {
            const Vec value = (at(c, p, v) - mean[p][v]) * scale[p][v] * norm.weight[c] + norm.bias[c];
            store(to.at(c, y, p) + tile + v * LANES, value);
        });
        for (int p = 0; p < 4; ++p) to.close(to.at(c, y, p), p, tile, tile + N * LANES);
    }
}

// ------------------------------------------------------------------------------------------------------- modulation

// `full` and `coarse` are the parts of the aggregation (a 1x1 convolution) for the unpooled and pooled levels.
struct Modulation {
    int channels, chunk;    // channels in total, and per level
    const int* factors;     // of pooling, [LEVELS]; the first is 2 or 4, each next one is twice as large
    const float* taps;      // depthwise, [channels][9]
    const float* tap_bias;  // [channels]
    const float* full;      // [blocks][chunk][BLOCK]
    const float* coarse;    // [LEVELS][channels][chunk]
    const float* bias;      // of the aggregation, [channels]
    int cell() const { return factors[LEVELS - 1]; }                // side of a pixel of the coarsest level, in pixels
    int rows(int level) const { return cell() / factors[level]; }  // of a level in a cell
};

// A pooled map in plain order. Only the latest rows are kept. A row is a zero, the values and another zero.
struct Pooled {
    float* data;
    int channels, height, width, mask;
    float* at(int channel, int row) const {
        return data + (std::ptrdiff_t(row & mask) * channels + channel) * (width + 2) + 1;
    }
};

void pool_by_2(const Map& map, int channel, int y, float* to) {
    const float *a = map.at(channel, 2 * y, 0), *b = map.at(channel, 2 * y + 1, 0);
    const int s = map.stride;
    for (int t = 0; t < map.tiles; ++t) {
        to[2 * t] = std::max(std::max(a[t], a[s + t]), std::max(b[t], b[s + t]));
        to[2 * t + 1] = std::max(std::max(a[2 * s + t], a[3 * s + t]), std::max(b[2 * s + t], b[3 * s + t]));
    }
}

void pool_by_4(const Map& map, int channel, int y, float* to) {
    std::copy_n(map.at(channel, 4 * y, 0), map.tiles, to);
    for (int i = 1; i < 16; ++i) {
        const float* a = map.at(channel, 4 * y + i / 4, i % 4);
        for (int t = 0; t < map.tiles; ++t) to[t] = std::max(to[t], a[t]);
    }
}

void pool_again(const Pooled& from, int channel, int y, float* to) {
    const float *a = from.at(channel, 2 * y), *b = from.at(channel, 2 * y + 1);
    for (int x = 0; x < from.width / 2; ++x)
        to[x] = std::max(std::max(a[2 * x], a[2 * x + 1]), std::max(b[2 * x], b[2 * x + 1]));
}

// Pool one row of cells on all levels. A level holds its own channels and those of all coarser levels.
void pool_cells(const Modulation& m, const Map& normed, const Pooled* pooled, int cell) {
    for (int level = 0; level < LEVELS; ++level) {
        const Pooled& to = pooled[level];
        for (int c = 0; c < to.channels; ++c)
            for (int y = cell * m.rows(level); y < (cell + 1) * m.rows(level); ++y) {
                float* row = to.at(c, y);
                if (level > 0) pool_again(pooled[level - 1], c + m.chunk, y, row);
                else if (m.factors[0] == 2) pool_by_2(normed, c + m.chunk, y, row);
                else pool_by_4(normed, c + m.chunk, y, row);
                row[-1] = row[to.width] = 0.0f;
            }
    }
}

void depthwise_row(const Pooled& from, int channel, int y, const float* taps, float bias, float* to) {
    std::fill_n(to, from.width, bias);
    for (int i = 0; i < 3; ++i) {
        if (y + i < 1 || y + i > from.height) continue;
        const float* row = from.at(channel, y + i - 1);
        for (int x = 0; x < from.width; ++x)
            to[x] += taps[3 * i] * row[x - 1] + taps[3 * i + 1] * row[x] + taps[3 * i + 2] * row[x + 1];
    }
}

// Compute the part of the gate that comes from the pooled levels, for one row of cells. Each level is added to the next
// coarser one, enlarged. gates[level] is [channels][rows][width]; `lines` is [chunk][width].
void gate_cells(const Modulation& m, const Pooled* pooled, int cell, float* const* gates, float* lines) {
    for (int level = LEVELS - 1; level >= 0; --level) {
        const int rows = m.rows(level), width = pooled[level].width;
        const int first = m.chunk * (level + 1);  // channel of the network
        for (int row = 0; row < rows; ++row) {
            for (int k = 0; k < m.chunk; ++k)
                depthwise_row(pooled[level], k, cell * rows + row, m.taps + 9 * (first + k), m.tap_bias[first + k],
                              lines + std::ptrdiff_t(k) * width);
            for (int c = 0; c < m.channels; ++c) {
                const float* weights = m.coarse + (std::ptrdiff_t(level) * m.channels + c) * m.chunk;
                float* to = gates[level] + (std::ptrdiff_t(c) * rows + row) * width;
                if (level == LEVELS - 1) {
                    std::fill_n(to, width, m.bias[c]);
                } else {
                    const float* coarser = gates[level + 1] + (std::ptrdiff_t(c) * rows + row) / 2 * (width / 2);
                    for (int x = 0; x < width / 2; ++x) to[2 * x] = to[2 * x + 1] = coarser[x];
                }
                for (int k = 0; k < m.chunk; ++k)
                    for (int x = 0; x < width; ++x) to[x] += weights[k] * lines[std::ptrdiff_t(k) * width + x];
            }
        }
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
                const Columns columns(normed, k, y + i - 1, tile + v * LANES);
                const float* taps = m.taps + 9 * k + 3 * i;
                for (int p = 0; p < 4; ++p)
                    out[p] += taps[0] * columns.at[p] + taps[1] * columns.at[p + 1] + taps[2] * columns.at[p + 2];
            }
            for (int p = 0; p < 4; ++p) store(to + (k * 4 + p) * CHUNK + v * LANES, out[p]);
        }
}

// The part of the gate that comes from the pooled levels, for one row of level 0: [channels][phases][places].
struct Gate {
    const float* data;
    int phases;  // of level 0: the number of its columns in a tile
    int places;
    const float* at(int channel, int phase) const {
        return data + (std::ptrdiff_t(channel) * phases + phase * phases / 4) * places;
    }
};

// out = x + gelu(gate + aggregation of the unpooled level) * normed, for one row of a chunk.
template <int N>
void modulate(const Modulation& m, const Map& normed, const Map& x, const Map& out, int y, int tile, const float* lines,
              const Gate& gate) {
    for (int p = 0; p < 4; ++p)
        for (int first = 0; first < m.channels; first += BLOCK) {
            const int count = std::min(BLOCK, m.channels - first);
            Vec sums[BLOCK][N] = {};
            for (int o = 0; o < count; ++o)
                for (int v = 0; v < N; ++v) sums[o][v] = load(gate.at(first + o, p) + tile + v * LANES);
            multiply<N, Single>(sums, m.full + std::ptrdiff_t(first) * m.chunk, lines + p * CHUNK, 4 * CHUNK, m.chunk);
            for (int o = 0; o < count; ++o) {
                float* to = out.at(first + o, y, p);
                for (int v = 0; v < N; ++v) {
                    const int t = tile + v * LANES;
                    const Vec input = load(normed.at(first + o, y, p) + t);
                    store(to + t, load(x.at(first + o, y, p) + t) + gelu(sums[o][v]) * input);
                }
                out.close(to, p, tile, tile + N * LANES);
            }
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
            float* to = out.at(c, y, p);
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
    int cell() const { return modulation ? modulation->cell() : 4; }
};

// Runs some rows of a frame through a block, from top to bottom. Only a few intermediate rows are kept, so that they
// stay in the cache: at most three normalised and pooled cells, and two modulated ones.
template <typename Factor>
class Strip {
  public:
    Strip(const Block& block, const Map& in, const Map& out, int top, int bottom)
        : block(block), in(in), out(out), top(top), bottom(bottom), margin(block.conv ? 1 : 0),
          tiles(block.conv ? *block.conv : Conv{nullptr, nullptr, 0, 0, false}),
          normed1(block.modulation && block.norm1.weight ? kept(4) : in),
          modulated(!block.modulation ? in : block.conv ? kept(rows_kept() / block.cell()) : out),
          normed2(block.conv && block.norm2.weight ? kept(rows_kept() / block.cell()) : modulated) {
        if (!block.modulation) return;
        const Modulation& m = *block.modulation;
        depthwise = scratch.take(std::size_t(m.chunk) * 4 * CHUNK);
        lines = scratch.take(std::size_t(m.chunk) * 4 * in.tiles);
        phases = scratch.take(std::size_t(in.channels) * 2 * places());
        for (int level = 0; level < LEVELS; ++level) {
            const int channels = m.chunk * (LEVELS - level), rows = m.rows(level), width = 4 * in.tiles / m.factors[level];
            pooled[level] = {scratch.take(std::size_t(channels) * 4 * rows * (width + 2)), channels,
                             in.height / m.factors[level], width, 4 * rows - 1};
            gates[level] = scratch.take(std::size_t(in.channels) * rows * width);
        }
    }

    void run() {
        const int side = block.cell(), cells = (in.height + side - 1) / side;
        const int first = std::max(top - margin, 0) / side, last = std::min(bottom - 1 + margin, in.height - 1) / side;
        int prepared = std::max(first - 1, 0), band = top / 4;
        for (int cell = first; cell <= last; ++cell) {
            for (; block.modulation && prepared <= std::min(cell + 1, cells - 1); ++prepared) prepare(prepared);
            const int begin = std::max(cell * side, top - margin);
            const int end = std::min({(cell + 1) * side, bottom + margin, in.height});
            if (block.modulation) modulate_rows(cell, begin, end);
            if (!block.conv) continue;
            for (int y = begin; y < end && block.norm2.weight; ++y) normalise_row(block.norm2, modulated, normed2, y);
            for (; 4 * band < bottom && (4 * band + 4 < end || end == in.height); ++band) mix(band);
        }
    }

  private:
    const Block& block;
    const Map &in, &out;
    const int top, bottom, margin;
    Scratch scratch;
    Tiles tiles;
    Map normed1, modulated, normed2;
    Pooled pooled[LEVELS];
    float *depthwise, *lines, *phases, *gates[LEVELS];

    int rows_kept() const { return std::max(2 * block.cell(), 16); }
    int places() const { return round_up(in.tiles, CHUNK); }
    Map kept(int cells) {
        Map map(nullptr, in.channels, in.height, in.width, cells * block.cell());
        map.data = scratch.take(std::size_t(cells) * block.cell() * in.channels * map.line);
        return map;
    }

    static void normalise_row(const Norm& norm, const Map& from, const Map& to, int y) {
        for_chunks(from.tiles, [&](auto n, int tile) { normalise<n>(norm, from, to, y, tile); });
    }

    void prepare(int cell) {
        const int side = block.cell();
        for (int y = cell * side; y < (cell + 1) * side && block.norm1.weight; ++y)
            normalise_row(block.norm1, in, normed1, y);
        pool_cells(*block.modulation, normed1, pooled, cell);
    }

    void modulate_rows(int cell, int begin, int end) {
        const Modulation& m = *block.modulation;
        const int rows = m.rows(0), width = pooled[0].width, count = 4 / m.factors[0];
        const Gate gate{phases, count, places()};
        gate_cells(m, pooled, cell, gates, lines);
        for (int y = begin; y < end; ++y) {
            const int row = (y - cell * m.cell()) / m.factors[0];
            if (y == begin || y % m.factors[0] == 0)
                for (int c = 0; c < m.channels; ++c)
                    for (int q = 0; q < count; ++q)
                        for (int t = 0; t < in.tiles; ++t)
                            phases[(std::ptrdiff_t(c) * count + q) * gate.places + t] =
                                gates[0][(std::ptrdiff_t(c) * rows + row) * width + t * count + q];
            for_chunks(in.tiles, [&](auto n, int tile) {
                depthwise_full<n>(m, normed1, y, tile, depthwise);
                modulate<n>(m, normed1, in, modulated, y, tile, depthwise, gate);
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
            Vec sums[BLOCK][N] = {};
            for (int o = 0; o < count; ++o)
                for (int v = 0; v < N; ++v)
                    sums[o][v] = load(modulated.at(first + o, y, p) + tile + v * LANES) + block.back_bias[first + o];
            multiply<N, Factor>(sums, weights, tiles.result + std::ptrdiff_t(place) * cells * CHUNK, CHUNK, cells);
            for (int o = 0; o < count; ++o) {
                float* to = out.at(first + o, y, p);
                for (int v = 0; v < N; ++v) store(to + tile + v * LANES, sums[o][v]);
                out.close(to, p, tile, tile + N * LANES);
            }
        }
    }
};

template <typename Factor>
void run_block(const Block& block, const Map& in, const Map& out, int threads) {
    const int side = block.cell(), cells = (in.height + side - 1) / side;
    const int strips = std::min(threads, cells);
    for_all(strips, threads, [&](int i) {
        const int top = cells * i / strips * side, bottom = std::min(cells * (i + 1) / strips * side, in.height);
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
// mixing if `weights` is null, and no norm if its weight is null. With modulation, height and width are multiples of
// the last factor.
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
