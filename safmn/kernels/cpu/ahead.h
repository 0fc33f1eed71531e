// Brings the values of the next chunk of a frame into the cache while the current chunk is computed.
//
// A chunk's values lie in many short runs, one for each channel, row and phase, which the processor does not foresee.
#pragma once

#include "maps.h"

namespace {

class Ahead {
  public:
    // Add rows [top, bottom) of `channels` channels of a map, from channel `begin` on, at the places of a chunk.
    void add(const Map& map, int begin, int channels, int top, int bottom, int tile) {
        for (int y = std::max(top, 0); y < std::min(bottom, map.height); ++y)
            for (int p = 0; p < 4; ++p) runs.push_back({map.at(begin, y, p) + tile, map.line, channels});
        count += std::size_t(std::max(std::min(bottom, map.height) - std::max(top, 0), 0)) * 4 * channels;
    }
    // Forget what was added.
    void clear() {
        runs.clear();
        run = channel = 0;
        count = 0;
    }
    // Let each of `calls` calls of `fetch` bring the same share.
    void divide(int calls) { share = int((count + calls - 1) / std::max(calls, 1)); }

    INLINE void fetch() {
        for (int i = 0; i < share && run < runs.size(); ++i) {
            const Run& now = runs[run];
            const float* const from = now.data + channel * now.step;
            for (int line = 0; line < CHUNK; line += LINE) __builtin_prefetch(from + line, 0, 2);
            if (++channel == now.channels) channel = 0, ++run;
        }
    }

  private:
    static constexpr int LINE = 16;  // floats
    struct Run {
        const float* data;
        std::ptrdiff_t step;  // between channels
        int channels;
    };
    std::vector<Run> runs;
    std::size_t run = 0, count = 0;
    int channel = 0, share = 0;
};

}  // namespace
