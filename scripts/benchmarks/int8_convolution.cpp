// The dense 3x3 convolution of SAFMN's channel mixers in 8 bits (VNNI), beside the kernels' Winograd convolution.
//
// Called by int8_convolution.py. Both sides read a map of the kernels (maps.h), apply the GELU, and leave the result of a
// chunk in the cache, where the kernels' next step would take it up; `to` is for checking only.
//
// The 8-bit map has the layout of maps.h with cells of four channels (unsigned, zero is 128) instead of channels. The
// products of vpdpbusd are 4 channels of 16 neighbouring places with 4 weights of one output, so that nothing is wasted on
// padding: 36 channels are 9 cells, and 72 outputs are 6 blocks of 12 sums for two vectors, as in the kernels.

#include "maps.h"

#ifdef __AVX512VNNI__
#include <immintrin.h>
#endif

namespace {

constexpr int TAPS_3X3 = 9;
constexpr std::uint32_t ZEROS = 0x80808080u;  // four channels of value zero

template <int N>
void write(const float* result, const Map& to, int row, int phase, int tile, int channels, int step) {
    if (row >= to.height) return;
    for (int c = 0; c < channels; ++c)
        for (int v = 0; v < N; ++v)
            store(to.at(c, row, phase) + tile + v * LANES, load(result + std::ptrdiff_t(c) * step + v * LANES));
}

template <typename Factor>
void winograd(const Conv& conv, const Map& from, const Map& to) {
    const Tiles tiles(conv);
    for (int band = 0; band < (from.height + 3) / 4; ++band)
        for_chunks(from.tiles, [&](auto n, int tile) {
            transform_input<n, Factor>(from, 0, conv.in, band, tile, tiles.inputs);
            convolve<n, Factor, 1>(conv, tiles.inputs, tiles.products, [&](int o, int v, const Vec (&pixels)[1][16]) {
                for (int place = 0; place < 16; ++place)
                    store(tiles.result + (std::ptrdiff_t(place) * conv.out + o) * CHUNK + v * LANES, pixels[0][place]);
            });
            for (int place = 0; to.data && place < 16; ++place)
                write<n>(tiles.result + std::ptrdiff_t(place) * conv.out * CHUNK, to, 4 * band + place / 4, place % 4,
                         tile, conv.out, CHUNK);
        });
}

#ifdef __AVX512VNNI__

INLINE __m512i level(const float* from, __m512 factor) {
    const __m512 value = _mm512_fmadd_ps(_mm512_loadu_ps(from), factor, _mm512_set1_ps(128.0f));
    return _mm512_min_epi32(_mm512_max_epi32(_mm512_cvtps_epi32(value), _mm512_setzero_si512()), _mm512_set1_epi32(255));
}

void quantise(const Map& from, const Map& to, float factor) {
    const __m512 scale = _mm512_set1_ps(factor);
    for (int y = 0; y < from.height; ++y)
        for (int cell = 0; cell < to.channels; ++cell)
            for (int p = 0; p < 4; ++p) {
                const float* in[4];
                for (int i = 0; i < 4; ++i) in[i] = from.at(4 * cell + i, y, p);
                auto out = reinterpret_cast<std::uint32_t*>(to.at(cell, y, p));
                for (int t = 0; t < from.tiles; t += LANES) {
                    __m512i four = level(in[0] + t, scale);
                    four = _mm512_or_si512(four, _mm512_slli_epi32(level(in[1] + t, scale), 8));
                    four = _mm512_or_si512(four, _mm512_slli_epi32(level(in[2] + t, scale), 16));
                    four = _mm512_or_si512(four, _mm512_slli_epi32(level(in[3] + t, scale), 24));
                    _mm512_storeu_si512(out + t, four);
                }
                out[-1] = ZEROS;
                for (int t = (from.width - p + 3) / 4; t <= round_up(from.tiles, LANES); ++t) out[t] = ZEROS;
            }
}

// Weights: [blocks][9 taps][cells][BLOCK], four channels each. `offset` is what the sums start with: -128 times the sum of
// an output's weights. The result is gelu(sum * scale + bias).
struct Conv8 {
    const std::uint32_t* weights;
    const std::int32_t* offset;
    const float *scale, *bias;
    int in, out;
};

// The sums of 12 outputs for a phase of a chunk. `rows` are phase 0 of the three rows at the first place of the chunk.
template <int N>
INLINE void block_sums(const std::uint32_t* weights, const std::int32_t* offset, const std::uint32_t* const (&rows)[3],
                       const Map& map, int cells, int phase, __m512i (&sums)[BLOCK][N]) {
#pragma GCC unroll 16
    for (int o = 0; o < BLOCK; ++o)
        for (int v = 0; v < N; ++v) sums[o][v] = _mm512_set1_epi32(offset[o]);
    for (int i = 0; i < 3; ++i)
        for (int j = 0; j < 3; ++j) {
            const int column = phase + j - 1;  // column -1 is phase 3 of the place before, column 4 phase 0 of the next
            const std::uint32_t* from = rows[i] + (column & 3) * map.stride + (column < 0 ? -1 : column > 3 ? 1 : 0);
            for (int k = 0; k < cells; ++k, from += map.line, weights += BLOCK) {
                __m512i x[N];
#pragma GCC unroll 2
                for (int v = 0; v < N; ++v) x[v] = _mm512_loadu_si512(from + v * LANES);
#pragma GCC unroll 16
                for (int o = 0; o < BLOCK; ++o) {
                    const __m512i w = _mm512_set1_epi32(int(weights[o]));
#pragma GCC unroll 2
                    for (int v = 0; v < N; ++v) sums[o][v] = _mm512_dpbusd_epi32(sums[o][v], x[v], w);
                }
            }
        }
}

void direct(const Conv8& conv, const Map& from, const Map& to) {
    const int cells = conv.in / 4;
    Scratch scratch;
    float* const result = scratch.take(std::size_t(4) * conv.out * CHUNK);  // [4 phases][out][CHUNK]
    std::vector<std::uint32_t> outside(std::size_t(cells) * from.line, ZEROS);
    for (int y = 0; y < from.height; ++y)
        for_chunks(from.tiles, [&](auto n, int tile) {
            const std::uint32_t* rows[3];
            for (int i = 0; i < 3; ++i) {
                const bool inside = y + i >= 1 && y + i <= from.height;
                rows[i] = inside ? reinterpret_cast<const std::uint32_t*>(from.at(0, y + i - 1, 0)) + tile
                                 : outside.data() + GUARD;
            }
            const std::uint32_t* weights = conv.weights;
            for (int first = 0; first < conv.out; first += BLOCK, weights += TAPS_3X3 * cells * BLOCK)
                for (int p = 0; p < 4; ++p) {
                    __m512i sums[BLOCK][n];
                    block_sums<n>(weights, conv.offset + first, rows, from, cells, p, sums);
                    float* const out = result + (std::ptrdiff_t(p) * conv.out + first) * CHUNK;
                    for (int o = 0; o < BLOCK; ++o) {
                        Vec values[n];
                        for (int v = 0; v < n; ++v)
                            values[v] = (Vec)_mm512_cvtepi32_ps(sums[o][v]) * conv.scale[first + o] + conv.bias[first + o];
                        activate(Activation{GELU, 0.0f, 0.0f}, values);
                        for (int v = 0; v < n; ++v) store(out + o * CHUNK + v * LANES, values[v]);
                    }
                }
            for (int p = 0; to.data && p < 4; ++p)
                write<n>(result + std::ptrdiff_t(p) * conv.out * CHUNK, to, y, p, tile, conv.out, CHUNK);
        });
}

template <typename Product>
float repeat(int times, Product&& product) {
    __m512i sums[BLOCK];
    for (int i = 0; i < BLOCK; ++i) sums[i] = _mm512_set1_epi32(i);
    __m512i x = _mm512_set1_epi32(0x01010101 * (times & 3)), w = _mm512_set1_epi32(times & 7);
    for (int n = 0; n < times; ++n) {
        asm volatile("" : "+v"(x), "+v"(w));  // the compiler must not take anything out of the loop
#pragma GCC unroll 16
        for (int i = 0; i < BLOCK; ++i) sums[i] = product(sums[i], x, w);
    }
    for (int i = 1; i < BLOCK; ++i) sums[0] = _mm512_xor_si512(sums[0], sums[i]);
    return float(_mm512_reduce_add_epi32(sums[0]));
}
#endif

}  // namespace

extern "C" {

int has_vnni() {
#ifdef __AVX512VNNI__
    return 1;
#else
    return 0;
#endif
}

int line_of(int width) { return Map(nullptr, 0, 0, width).line; }

// gelu(conv(from)) with the kernels' Winograd convolution; `half`: factors in bfloat16. `to` may be null.
void convolve_float(const float* from, const void* weights, const float* bias, float* to, int in, int out, int height,
                    int width, int half) {
    const Conv conv{weights, bias, in, out, {GELU, 0.0f, 0.0f}};
    (half ? winograd<Half> : winograd<Single>)(conv, Map(from, in, height, width), Map(to, out, height, width));
}

#ifdef __AVX512VNNI__
// Quantise a map to levels round(value * factor) + 128.
void quantise_map(const float* from, float* to, int channels, int height, int width, float factor) {
    quantise(Map(from, channels, height, width), Map(to, channels / 4, height, width), factor);
}

// gelu(scale (sum - 128 * sum of weights) + bias), of a quantised map. `to` may be null.
void convolve_int8(const float* from, const std::uint32_t* weights, const std::int32_t* offset, const float* scale,
                   const float* bias, float* to, int in, int out, int height, int width) {
    direct({weights, offset, scale, bias, in, out}, Map(from, in / 4, height, width), Map(to, out, height, width));
}

// 12 independent multiply-adds of whole vectors, `times` times: 0 in float32, 1 in 8 bits. For the processor's peak.
float multiply_adds(int kind, int times) {
    if (kind) return repeat(times, [](__m512i sum, __m512i x, __m512i w) { return _mm512_dpbusd_epi32(sum, x, w); });
    return repeat(times, [](__m512i sum, __m512i x, __m512i w) {
        return (__m512i)_mm512_fmadd_ps((__m512)x, (__m512)w, (__m512)sum);
    });
}
#endif
}
