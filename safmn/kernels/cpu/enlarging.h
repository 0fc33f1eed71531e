// Small images, enlarged to the frame of a pass.
#pragma once

#include "code.h"

namespace {

// A small image that is enlarged to the rows of one band: [4 rows][channels][4 phases][places].
//
// It is first enlarged along its rows, which takes a gather for each value, and then across them. The latest two wide rows
// are kept, because many rows of the frame lie between the same two.
class EnlargedLines {
  public:
    EnlargedLines(const Tensor& small, int width)
        : small(small), width(width), places(round_up((width + 3) / 4, CHUNK)), left(std::size_t(4) * places),
          right(std::size_t(4) * places), share(std::size_t(4) * places) {
        const std::size_t row = std::size_t(4) * small.channels * places;
        data = scratch.take(4 * row);
        wide[0] = scratch.take(row), wide[1] = scratch.take(row);
        for (int x = 0; x < width; ++x) {
            const Source source = source_of(x, small.column_step, small.width);
            const int at = x % 4 * places + x / 4;
            left[at] = source.first, right[at] = source.second, share[at] = source.share;
        }
    }
    const float* at(int channel, int row) const { return data + (std::ptrdiff_t(row) * small.channels + channel) * step(); }
    int step() const { return 4 * places; }
    int phase(int p) const { return p * places; }

    // Fill row `row` of the band with row y of the frame.
    void fill(int y, int row) {
        const Source source = source_of(y, small.row_step, small.height);
        const float *const above = widened(source.first), *const below = widened(source.second);
        float* const to = data + std::ptrdiff_t(row) * small.channels * step();
        const int count = small.channels * step();
        if (!small.bilinear) {
            std::copy_n(above, count, to);
        } else {
            for (int i = 0; i < count; i += LANES)
                store(to + i, load(above + i) * (1.0f - source.share) + load(below + i) * source.share);
        }
    }

  private:
    struct Source {
        int first, second;
        float share;  // of the second
    };
    const Tensor& small;
    int width, places;
    std::vector<int> left, right;
    std::vector<float> share;
    Scratch scratch;
    float *data, *wide[2];
    int kept[2] = {-1, -1};  // the rows in `wide`

    // Row `cell`, enlarged: [channels][4 phases][places].
    const float* widened(int cell) {
        float* const to = wide[cell % 2];
        if (kept[cell % 2] == cell) return to;
        kept[cell % 2] = cell;
        for (int c = 0; c < small.channels; ++c) {
            const float* const line = small.data + (std::ptrdiff_t(c) * small.height + cell) * small.width;
            float* const row = to + std::ptrdiff_t(c) * step();
            if (small.bilinear)
                for (int i = 0; i < step(); ++i) row[i] = line[left[i]] * (1.0f - share[i]) + line[right[i]] * share[i];
            else
                for (int i = 0; i < step(); ++i) row[i] = line[left[i]];
        }
        return to;
    }

    // The cells from which a row or column is made, computed in float32 as torch does.
    Source source_of(int pixel, float step, int cells) const {
        if (!small.bilinear) {
            const int cell = std::min(int(std::floor(float(pixel) * step)), cells - 1);
            return {cell, cell, 0.0f};
        }
        const float real = std::max((float(pixel) + 0.5f) * step - 0.5f, 0.0f);
        const int cell = std::min(int(real), cells - 1);
        return {cell, std::min(cell + 1, cells - 1), real - float(cell)};
    }
};

}  // namespace
