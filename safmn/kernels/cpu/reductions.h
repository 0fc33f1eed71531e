// Operators that need many pixels of a map for each of their values: pooling, and mean and variance of a frame.
#pragma once

#include "lines.h"
#include "maps.h"

namespace {

// The larger value, or NaN if one of them is NaN.
INLINE Vec largest(Vec a, Vec b) { return (b > a) | (b != b) ? b : a; }

// How a frame is divided: cell i has the rows bounds[i] to bounds[rows + i], and likewise for columns.
struct Cells {
    const int* bounds;
    int rows, columns;
};

void pool(const Map& from, int begin, int channels, const Cells& cells, float* to, int threads) {
    const int *const first = cells.bounds, *const last = first + cells.rows;
    const int *const left = last + cells.rows, *const right = left + cells.columns;
    const int places = round_up(from.tiles, LANES);
    struct Lines {
        Scratch scratch;
        float *phases, *columns;
    };
    const auto make = [&] {
        auto lines = std::make_unique<Lines>();
        lines->phases = lines->scratch.take(std::size_t(4) * places);
        lines->columns = lines->scratch.take(std::size_t(4) * places);
        return lines;
    };
    for_all(cells.rows, threads, make, [&](const std::unique_ptr<Lines>& lines, int row) {
        for (int c = 0; c < channels; ++c) {
            const float* phases[4];
            for (int p = 0; p < 4; ++p) {
                float* const line = lines->phases + p * places;
                for (int t = 0; t < places; t += LANES) {
                    Vec most = load(from.at(begin + c, first[row], p) + t);
                    for (int y = first[row] + 1; y < last[row]; ++y) most = largest(most, load(from.at(begin + c, y, p) + t));
                    store(line + t, most);
                }
                phases[p] = line;
            }
            join(phases, lines->columns, 4, from.width);
            float* const out = to + (std::ptrdiff_t(c) * cells.rows + row) * cells.columns;
            for (int i = 0; i < cells.columns; ++i) {
                float most = lines->columns[left[i]];
                for (int x = left[i] + 1; x < right[i]; ++x) {
                    const float value = lines->columns[x];
                    most = value > most || value != value ? value : most;
                }
                out[i] = most;
            }
        }
    });
}

// Sum f(value) over a row of a channel.
template <typename Function>
INLINE float row_sum(const Map& map, int channel, int y, Function&& f) {
    Vec sums = {};
    float rest = 0.0f;
    for (int p = 0; p < 4; ++p) {
        const float* const row = map.at(channel, y, p);
        const int count = (map.width - p + 3) / 4;
        int t = 0;
        for (; t + LANES <= count; t += LANES) sums += f(load(row + t));
        for (; t < count; ++t) rest += f(row[t]);
    }
    for (int i = 0; i < LANES; ++i) rest += sums[i];
    return rest;
}

// Means and sums of squared distances from the mean: (2, channels). Each row gives both, and the rows' are joined in
// float64 (Chan, Golub and LeVeque, The American Statistician 37, 1983), in an order that is the same for any threads.
void moments(const Map& from, int begin, int channels, double* to, int threads) {
    std::vector<float> rows(std::size_t(from.height) * channels * 2);
    for_all(from.height, threads, [&](int y) {
        for (int c = 0; c < channels; ++c) {
            const float mean = row_sum(from, begin + c, y, [](auto x) { return x; }) / float(from.width);
            float* const row = &rows[(std::size_t(y) * channels + c) * 2];
            row[0] = mean;
            row[1] = row_sum(from, begin + c, y, [&](auto x) { return (x - mean) * (x - mean); });
        }
    });
    for (int c = 0; c < channels; ++c) {
        double mean = 0.0, squares = 0.0;
        for (int y = 0; y < from.height; ++y) {
            const float* const row = &rows[(std::size_t(y) * channels + c) * 2];
            const double distance = row[0] - mean;
            mean += distance / (y + 1);
            squares += row[1] + distance * distance * from.width * y / (y + 1);
        }
        to[c] = mean;
        to[channels + c] = squares;
    }
}

}  // namespace
