// From maps to images: pixel shuffle, with or without a convolution before it and the enlarged input image.
#pragma once

#include <deque>
#include <memory>

#include "ahead.h"
#include "lines.h"
#include "maps.h"

namespace {

// One row of an enlarged image, in the order of a map and before it is enlarged along the row.
class EnlargedRow {
  public:
    EnlargedRow(const Map& image, int scale)
        : image(image), scale(scale), step(image.tiles + 2 * LANES), data(scratch.take(std::size_t(4) * step)) {}

    // Mix the two rows of the image between which row y of the enlarged one lies.
    void fill(int channel, int y) {
        const float real = std::max((float(y) + 0.5f) / float(scale) - 0.5f, 0.0f);
        const int above = std::min(int(real), image.height - 1), below = std::min(above + 1, image.height - 1);
        const float share = real - float(above);
        for (int p = 0; p < 4; ++p) {
            const float *const a = image.at(channel, above, p), *const b = image.at(channel, below, p);
            float* const to = line(p);
            for (int t = 0; t < image.tiles; ++t) to[t] = a[t] * (1.0f - share) + b[t] * share;
        }
        line(3)[-1] = line(0)[0];  // beyond the edges, the last columns are repeated
        line(image.width % 4)[image.width / 4] = line((image.width - 1) % 4)[(image.width - 1) / 4];
    }

    // to[t] = from[t] + the enlarged row at column `part` of pixel 4 (tile + t) + phase, for t < count.
    void add(const float* from, int phase, int part, int tile, int count, float* to) const {
        const float real = (float(part) + 0.5f) / float(scale) - 0.5f;
        const int offset = real < 0.0f ? -1 : 0;
        const float share = real - float(offset);
        const float *const a = column(phase + offset) + tile, *const b = column(phase + offset + 1) + tile;
        for (int t = 0; t < count; ++t) to[t] = from[t] + (a[t] * (1.0f - share) + b[t] * share);
    }

  private:
    const Map& image;
    int scale, step;
    Scratch scratch;
    float* data;
    float* line(int phase) const { return data + phase * step + LANES; }
    const float* column(int phase) const { return phase < 0 ? line(3) - 1 : phase > 3 ? line(0) + 1 : line(phase); }
};

void shuffle(const Map& from, int begin, const Map& added, float* image, int scale, int threads) {
    struct Lines {
        EnlargedRow enlarged;
        Scratch scratch;
        float* sums;
        std::vector<const float*> rows;
    };
    const int channels = added.channels, width = from.width;
    const auto make = [&] {
        auto lines = std::unique_ptr<Lines>(new Lines{{added, scale}, {}, nullptr, std::vector<const float*>(4 * scale)});
        lines->sums = lines->scratch.take(std::size_t(4) * scale * from.tiles);
        return lines;
    };
    for_all(from.height * scale, threads, make, [&](const std::unique_ptr<Lines>& lines, int y) {
        for (int c = 0; c < channels; ++c) {
            if (added.data) lines->enlarged.fill(c, y);
            float* const to = image + (std::ptrdiff_t(c) * from.height * scale + y) * width * scale;
            for (int i = 0; i < 4 * scale; ++i) {
                const int phase = i / scale, column = i % scale;  // of the enlarged tile
                const int channel = begin + (c * scale + y % scale) * scale + column;
                lines->rows[i] = from.at(channel, y / scale, phase);
                if (!added.data) continue;
                float* const sum = lines->sums + std::ptrdiff_t(i) * from.tiles;
                lines->enlarged.add(lines->rows[i], phase, column, 0, from.tiles, sum);
                lines->rows[i] = sum;
            }
            join(lines->rows.data(), to, 4 * scale, width * scale);
        }
    });
}

// A 3x3 convolution with pixel shuffle: its result goes to the image from the cache, and never to a map.
template <typename Factor>
class ImageWriter {
  public:
    ImageWriter(const Conv& conv, const Map& in, int begin, const Map& added, float* image, int scale)
        : conv(conv), in(in), begin(begin), added(added), image(image), scale(scale), tiles(conv),
          sums(scratch.take(std::size_t(4) * scale * CHUNK)), lines(4 * scale) {
        for (int i = 0; added.data && i < channels() * 4 * scale; ++i) enlarged.emplace_back(added, scale);
    }

    void run(int band) {
        const int rows = std::min(4, in.height - 4 * band) * scale;
        for (int c = 0; added.data && c < channels(); ++c)
            for (int y = 0; y < rows; ++y) enlarged[c * 4 * scale + y].fill(c, 4 * band * scale + y);
        for_chunks(in.tiles, [&](auto n, int tile) {
            const bool last = tile + CHUNK >= in.tiles;
            const int next = last ? band + 1 : band;
            ahead.clear();
            ahead.add(in, begin, conv.in, 4 * next - 1, 4 * next + 5, last ? 0 : tile + CHUNK);
            ahead.divide(TAPS * ((conv.out + BLOCK - 1) / BLOCK));
            transform_input<n, Factor>(in, begin, conv.in, band, tile, tiles.inputs);
            convolve<n, Factor>(conv, tiles.inputs, tiles.products, IntoTiles<Single>{tiles.result, conv.out},
                                [&] { ahead.fetch(); });
            const int count = std::min(n * LANES, in.tiles - tile);
            for (int c = 0; c < channels(); ++c)
                for (int y = 0; y < rows; ++y) write(c, y, 4 * band * scale + y, tile, count);
        });
    }

  private:
    const Conv& conv;
    const Map& in;
    const int begin;
    const Map& added;
    float* const image;
    const int scale;
    Tiles tiles;
    Scratch scratch;
    float* sums;
    std::vector<const float*> lines;
    std::deque<EnlargedRow> enlarged;  // [channels][rows of a band]
    Ahead ahead;

    int channels() const { return conv.out / (scale * scale); }

    // Write `count` tiles of a row of the image: row `place` of the band.
    void write(int channel, int place, int y, int tile, int count) {
        const int width = in.width * scale, from = 4 * tile * scale;
        for (int i = 0; i < 4 * scale; ++i) {
            const int phase = i / scale, column = i % scale;  // of the enlarged tile
            const int source = (channel * scale + place % scale) * scale + column;
            lines[i] = tiles.result + (std::ptrdiff_t(place / scale * 4 + phase) * conv.out + source) * CHUNK;
            if (!added.data) continue;
            float* const sum = sums + std::ptrdiff_t(i) * CHUNK;
            enlarged[channel * 4 * scale + place].add(lines[i], phase, column, tile, count, sum);
            lines[i] = sum;
        }
        float* const to = image + (std::ptrdiff_t(channel) * in.height * scale + y) * width + from;
        join(lines.data(), to, 4 * scale, std::min(4 * count * scale, width - from));
    }
};

template <typename Factor>
void convolve_to_image(const Conv& conv, const Map& in, int begin, const Map& added, float* image, int scale, int threads) {
    const auto make = [&] { return std::make_unique<ImageWriter<Factor>>(conv, in, begin, added, image, scale); };
    for_all((in.height + 3) / 4, threads, make,
            [](const std::unique_ptr<ImageWriter<Factor>>& writer, int band) { writer->run(band); });
}

}  // namespace
