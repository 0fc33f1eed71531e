// From maps to images: pixel shuffle, with or without the enlarged input image.
#pragma once

#include <memory>

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

    // to[t] = from[t] + the enlarged row at column `part` of pixel 4 t + phase.
    void add(const float* from, int phase, int part, float* to) const {
        const float real = (float(part) + 0.5f) / float(scale) - 0.5f;
        const int offset = real < 0.0f ? -1 : 0;
        const float share = real - float(offset);
        const float *const a = column(phase + offset), *const b = column(phase + offset + 1);
        for (int t = 0; t < image.tiles; ++t) to[t] = from[t] + (a[t] * (1.0f - share) + b[t] * share);
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
                lines->enlarged.add(lines->rows[i], phase, column, sum);
                lines->rows[i] = sum;
            }
            join(lines->rows.data(), to, 4 * scale, width * scale);
        }
    });
}

}  // namespace
