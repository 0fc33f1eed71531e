// CPU kernels for inference (built and called by inference.py): the interface to Python.

#include "blocks.h"
#include "images.h"
#include "passes.h"
#include "reductions.h"

namespace {

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

// Convolve `channels` channels, from `begin` on, of a map of `total` channels by 3x3 to out_channels, and write them as
// safmn_from_map does.
int safmn_conv_to_image(const float* map, float* image, const float* shortcut, int total, int begin, int channels,
                        int out_channels, int height, int width, int scale, const void* weights, const float* bias,
                        int half, int threads) {
    const Conv conv{weights, bias, channels, out_channels, {}};
    const Map from(map, total, height, width), added(shortcut, out_channels / (scale * scale), height, width);
    return status_of([&] {
        (half ? convolve_to_image<Half> : convolve_to_image<Single>)(conv, from, begin, added, image, scale, threads);
    });
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
