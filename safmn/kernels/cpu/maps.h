// Feature maps in memory, matrix products and 3x3 convolutions: shared by the kernels for inference.
//
// Layout. A map of C channels, H rows and W columns is stored as [H][C][4][stride]: column 4 t + p of a row is at place
// t of phase p. In this order all steps work on whole vectors of neighbouring t: Winograd transforms, whose tiles are
// four columns wide, pooling and all pointwise operations. Zeros before the first and after the last place of every
// phase are the zero padding of the convolutions. The function that writes a row also writes these zeros (`close`).
//
// 3x3 convolutions use Winograd's F(4x4, 3x3) (Lavin and Gray, CVPR 2016, arXiv 1509.09308): 36 instead of 144
// multiplications for 16 pixels. With the points 0, -1, 1, 1/2, -2 (Barabasz et al., arXiv 1803.10986) it is accurate
// enough for factors in bfloat16. These are stored in pairs of channels, as the processor's instruction requires.

#pragma once

#include "activations.h"
#include "vectors.h"

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace {

constexpr int VECTORS = 2;
constexpr int CHUNK = VECTORS * LANES;  // tiles that are processed together
constexpr int GUARD = 16;               // places before the first and after the last tile; one on each side is read

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

// end(o, v, begin(o, v) + the sum of weights[k][o] * inputs[k][v] over k < count), for o < M. Most of the time is spent in
// this loop. Its sums stay in registers.
template <int M, int N, typename Factor, typename Begin, typename End>
INLINE void multiply_part(const typename Factor::Cell* weights, const float* inputs, std::ptrdiff_t step, int count,
                          Begin&& begin, End&& end) {
    Vec sums[M][N];
#pragma GCC unroll 16
    for (int o = 0; o < M; ++o)
#pragma GCC unroll 4
        for (int v = 0; v < N; ++v) sums[o][v] = begin(o, v);
    for (int k = 0; k < count; ++k, weights += BLOCK, inputs += step) {
        decltype(Factor::cells(inputs)) x[N];
#pragma GCC unroll 4
        for (int v = 0; v < N; ++v) x[v] = Factor::cells(inputs + v * LANES);
#pragma GCC unroll 16
        for (int o = 0; o < M; ++o) {
            const auto w = Factor::weight(weights, o);
#pragma GCC unroll 4
            for (int v = 0; v < N; ++v) sums[o][v] = Factor::fused(sums[o][v], w, x[v]);
        }
    }
#pragma GCC unroll 16
    for (int o = 0; o < M; ++o)
#pragma GCC unroll 4
        for (int v = 0; v < N; ++v) end(o, v, sums[o][v]);
}

// The same for all o < outputs, and for some more: the last block is often not full.
template <int N, typename Factor, typename Begin, typename End>
INLINE void multiply(const typename Factor::Cell* weights, const float* inputs, std::ptrdiff_t step, int count,
                     int outputs, Begin&& begin, End&& end) {
    constexpr int PART = BLOCK / 3;
    if (outputs > 2 * PART) multiply_part<BLOCK, N, Factor>(weights, inputs, step, count, begin, end);
    else if (outputs > PART) multiply_part<2 * PART, N, Factor>(weights, inputs, step, count, begin, end);
    else multiply_part<PART, N, Factor>(weights, inputs, step, count, begin, end);
}

// sums[o][v] += the sum of weights[k][o] * inputs[k][v].
template <int N, typename Factor>
INLINE void multiply(Vec (&sums)[BLOCK][N], const typename Factor::Cell* weights, const float* inputs,
                     std::ptrdiff_t step, int count, int outputs = BLOCK) {
    multiply<N, Factor>(weights, inputs, step, count, outputs, [&](int o, int v) { return sums[o][v]; },
                        [&](int o, int v, Vec sum) { sums[o][v] = sum; });
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

// Floats between the cells of one tap and those of the next: an odd number of cache lines, so that the taps of a channel
// do not share one cache set.
constexpr int tap_step(int cells) { return cells * CHUNK + 16; }

// Transform `channels` channels of a chunk, from channel `begin` on: [TAPS][cells][CHUNK], see tap_step.
template <int N, typename Factor>
void transform_input(const Map& map, int begin, int channels, int band, int tile, float* to) {
    const int cells = cells_of<Factor>(channels), line = map.line, stride = map.stride;
    const float* rows[6];
    for (int i = 0; i < 6; ++i) {
        const int row = 4 * band - 1 + i;
        rows[i] = row >= 0 && row < map.height ? map.at(begin, row, 0) + tile : nullptr;
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
                Factor::pack(to + std::ptrdiff_t(tap) * tap_step(cells) + k * CHUNK + v * LANES, both);
            }
        }
}

// Transform the products of one output channel to its 4 x 4 pixels.
INLINE void transform_back(const float* products, float bias, const Activation& activation, Vec (&out)[16]) {
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
        for (Vec& value : row) value += bias;
        activate(activation, row);
        for (int p = 0; p < 4; ++p) out[i * 4 + p] = row[p];
    }
}

// A 3x3 convolution. The weights are transformed: [blocks][TAPS][cells of the input][BLOCK].
struct Conv {
    const void* weights;
    const float* bias;  // [out]
    int in, out;
    Activation activation;
};

struct Nothing {
    void operator()() const {}
};

// Writes pixels of a convolution to [4 rows][4 phases][cells of the output][CHUNK].
template <typename Output>
struct IntoTiles {
    static constexpr int DEPTH = Output::DEPTH;
    float* to;
    int channels;
    INLINE void operator()(int channel, int v, const Vec (&pixels)[DEPTH][16]) const {
        const int cells = cells_of<Output>(channels), cell = channel / DEPTH;
        for (int place = 0; place < 16; ++place) {
            Vec packed[DEPTH];
            for (int i = 0; i < DEPTH; ++i) packed[i] = pixels[i][place];
            Output::pack(to + (std::ptrdiff_t(place) * cells + cell) * CHUNK + v * LANES, packed);
        }
    }
};

// Write the 4 x 4 pixels of a vector of tiles to the rows of a band that are in the frame.
INLINE void write_tile(const Vec (&pixels)[16], const Map& map, int channel, int band, int tile) {
    const int rows = std::min(4, map.height - 4 * band);
    const bool edge = tile == 0 || tile + LANES >= map.tiles;
    for (int row = 0; row < rows; ++row) {
        float* const to = map.at(channel, 4 * band + row, 0) + tile;
        for (int p = 0; p < 4; ++p) store(to + p * map.stride, pixels[4 * row + p]);
        for (int p = 0; edge && p < 4; ++p) map.close(to - tile + p * map.stride, p, tile, tile + LANES);
    }
}

// Convolve a chunk of four rows. Call put(channel, vector, pixels) for every DEPTH output channels, and `between` once for
// each tap of a block.
template <int N, typename Factor, int DEPTH = 1, typename Put, typename Between = Nothing>
void convolve(const Conv& conv, const float* inputs, float* products, Put&& put, Between&& between = {}) {
    const int cells = cells_of<Factor>(conv.in);
    auto weights = static_cast<const typename Factor::Cell*>(conv.weights);
    for (int first = 0; first < conv.out; first += BLOCK) {
        const int outputs = std::min(BLOCK, conv.out - first);
        for (int tap = 0; tap < TAPS; ++tap, weights += cells * BLOCK) {
            between();
            float* const to = products + tap * BLOCK * CHUNK;
            multiply<N, Factor>(weights, inputs + std::ptrdiff_t(tap) * tap_step(cells), CHUNK, cells, outputs,
                                [](int, int) { return Vec{}; },
                                [&](int o, int v, Vec sum) { store(to + o * CHUNK + v * LANES, sum); });
        }
        for (int o = 0; o < outputs; o += DEPTH)
            for (int v = 0; v < N; ++v) {
                Vec pixels[DEPTH][16];
                for (int i = 0; i < DEPTH; ++i) {
                    if (first + o + i < conv.out)
                        transform_back(products + (o + i) * CHUNK + v * LANES, conv.bias[first + o + i], conv.activation,
                                       pixels[i]);
                    else std::fill_n(pixels[i], 16, Vec{});
                }
                put(first + o, v, pixels);
            }
    }
}

// The memory that a thread needs for `convolve`.
struct Tiles {
    Scratch scratch;
    float *inputs, *products, *result;
    explicit Tiles(const Conv& conv)
        : inputs(scratch.take(std::size_t(TAPS) * tap_step(conv.in))), products(scratch.take(TAPS * BLOCK * CHUNK)),
          result(scratch.take(std::size_t(16) * conv.out * CHUNK)) {}
};

}  // namespace
