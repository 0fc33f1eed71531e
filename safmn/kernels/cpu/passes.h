// A pass over a frame: one 3x3 convolution or none, and then operations on each pixel, while its values are in the cache.
// code.h says what it consists of.
#pragma once

#include <memory>

#include "ahead.h"
#include "code.h"
#include "enlarging.h"
#include "maps.h"

namespace {

// Runs a pass on bands of four rows; every thread has its own.
template <typename Factor>
class Worker {
  public:
    explicit Worker(const Pass& pass) : pass(pass), frame(nullptr, 1, pass.height, pass.width) {
        if (pass.has_head) tiles = std::make_unique<Tiles>(pass.conv);
        registers = scratch.take(std::size_t(std::max(pass.registers, 1)) * CHUNK);
        for (const Tensor& tensor : pass.tensors) {
            maps.push_back(Map(tensor.data, tensor.channels, pass.height, pass.width));
            lines.push_back(tensor.place == LINES ? std::make_unique<EnlargedLines>(tensor, pass.width) : nullptr);
        }
        find_ranges();
    }

    void run(int band) {
        const int rows = std::min(4, pass.height - 4 * band);
        for (const auto& each : lines)
            for (int row = 0; each && row < rows; ++row) each->fill(4 * band + row, row);
        for_chunks(frame.tiles, [&](auto n, int tile) {
            const bool last = tile + CHUNK >= frame.tiles;
            look_ahead(last ? band + 1 : band, last ? 0 : tile + CHUNK);
            const auto fetch = [&] { ahead.fetch(); };
            if (pass.has_head) {
                transform_input<n, Factor>(maps[pass.source], pass.begin, pass.conv.in, band, tile, tiles->inputs);
                convolve<n, Factor>(pass.conv, tiles->inputs, tiles->products, put_head(band, tile), fetch);
            }
            for (int place = 0; place < 4 * rows; ++place)
                for (const Instruction& it : pass.instructions) {
                    execute<n>(it, Pixels{band, place, tile});
                    if (!pass.has_head) fetch();
                }
        });
    }

  private:
    // The current pixels: one phase of one row of a chunk.
    struct Pixels {
        int band, place, tile;
        int row() const { return place / 4; }
        int y() const { return 4 * band + row(); }
        int phase() const { return place % 4; }
    };
    struct Values {  // of an operand, for the current pixels
        const float* data;
        std::ptrdiff_t step;  // between channels
        bool number;          // one number instead of a vector
        INLINE Vec get(int channel, int v) const {
            return number ? splat(data[channel * step]) : ::load(data + channel * step + v * LANES);
        }
    };

    const Pass& pass;
    const Map frame;
    Scratch scratch;
    std::unique_ptr<Tiles> tiles;
    float* registers;
    std::vector<Map> maps;
    std::vector<std::unique_ptr<EnlargedLines>> lines;

    // Channels of a map that the pass reads or writes.
    struct Range {
        int tensor, begin, end;
        int margin;  // rows above and below that it reads, too
    };
    std::vector<Range> ranges;
    Ahead ahead;

    void find_ranges() {
        if (pass.has_head) use({MAP, pass.source, pass.begin, false}, pass.conv.in, 1);
        for (const Output& output : pass.outputs)
            if (output.tensor >= 0) use({MAP, output.tensor, output.channel, true}, 1);
        for (const Instruction& it : pass.instructions) {
            const bool own_count = it.operation == DEPTHWISE || it.operation == MEAN || it.operation == LENGTH;
            use(it.to, it.channels);
            if (it.operation != PRODUCT) use(it.a, own_count ? it.inputs : it.channels, it.operation == DEPTHWISE);
            if (it.arithmetic != ONLY_A) use(it.b, it.channels);
            for (const Piece& piece : it.pieces) use(piece.from, piece.channels);
        }
    }
    void use(const Operand& operand, int channels, int margin = 0) {
        if (operand.place != MAP) return;
        const int begin = operand.channel, end = begin + (operand.one ? 1 : channels);
        for (Range& range : ranges)
            if (range.tensor == operand.index) {
                range = {range.tensor, std::min(range.begin, begin), std::max(range.end, end), std::max(range.margin, margin)};
                return;
            }
        ranges.push_back({operand.index, begin, end, margin});
    }

    // Begin to bring the maps of another chunk into the cache.
    void look_ahead(int band, int tile) {
        ahead.clear();
        for (const Range& range : ranges)
            ahead.add(maps[range.tensor], range.begin, range.end - range.begin, 4 * band - range.margin,
                      4 * band + 4 + range.margin, tile);
        const int blocks = (pass.conv.out + BLOCK - 1) / BLOCK;
        ahead.divide(pass.has_head ? TAPS * blocks : 16 * int(pass.instructions.size()));
    }

    Values values(const Operand& from, const Pixels& at) const {
        const int unit = from.one ? 0 : 1;
        switch (from.place) {
            case REGISTER: return {registers + std::ptrdiff_t(from.index + from.channel) * CHUNK, unit * CHUNK, false};
            case HEAD:
                return {tiles->result + (std::ptrdiff_t(at.place) * pass.conv.out + from.channel) * CHUNK, unit * CHUNK, false};
            case MAP: {
                const Map& map = maps[from.index];
                return {map.at(from.channel, at.y(), at.phase()) + at.tile, std::ptrdiff_t(unit) * map.line, false};
            }
            case LINES: {
                const EnlargedLines& small = *lines[from.index];
                return {small.at(from.channel, at.row()) + small.phase(at.phase()) + at.tile, unit * small.step(), false};
            }
            default: return {pass.tensors[from.index].data + from.channel, unit, true};
        }
    }

    // Where a result goes. It is a register or a map.
    struct Target {
        float* data;  // of the current pixels
        std::ptrdiff_t step;
        const Map* map;
    };
    Target target(const Operand& to, const Pixels& at) const {
        const Values place = values(to, at);
        return {const_cast<float*>(place.data), place.step, to.place == MAP ? &maps[to.index] : nullptr};
    }
    template <int N>
    INLINE void put(const Target& to, int channel, const Vec (&values)[N], const Pixels& at) const {
        float* const data = to.data + channel * to.step;
        for (int v = 0; v < N; ++v) store(data + v * LANES, values[v]);
        if (to.map && (at.tile == 0 || at.tile + N * LANES >= frame.tiles))
            to.map->close(data - at.tile, at.phase(), at.tile, at.tile + N * LANES);
    }

    // Return where the convolution writes the pixels of a channel.
    auto put_head(int band, int tile) const {
        return [this, band, tile, inner = IntoTiles<Single>{tiles->result, pass.conv.out}](
                   int channel, int v, const Vec (&pixels)[1][16]) {
            const Output& output = pass.outputs[channel];
            if (output.tensor < 0) inner(channel, v, pixels);
            else write_tile(pixels[0], maps[output.tensor], output.channel, band, tile + v * LANES);
        };
    }

    template <int N>
    void execute(const Instruction& it, const Pixels& at) {
        switch (it.operation) {
            case PRODUCT: return product<N>(it, at);
            case POINT: return point<N>(it, at);
            case DEPTHWISE: return depthwise<N>(it, at);
            case MEAN:
            case LENGTH: return reduce<N>(it, at);
            case NORMALISE: return normalise<N>(it, at);
        }
    }

    template <int N>
    void product(const Instruction& it, const Pixels& at) {
        const Target to = target(it.to, at);
        const bool adds = it.arithmetic == ADD;
        const Values add = adds ? values(it.b, at) : Values{};
        const float* weights = it.weights;
        for (int first = 0; first < it.channels; first += BLOCK) {
            const int count = std::min(BLOCK, it.channels - first);
            Vec sums[BLOCK][N];
            for (int o = 0; o < BLOCK; ++o)
                for (int v = 0; v < N; ++v) {
                    sums[o][v] = splat(it.bias[first + o]);
                    if (adds && o < count) sums[o][v] += add.get(first + o, v);
                }
            for (const Piece& piece : it.pieces) {
                const Values from = values(piece.from, at);
                multiply<N, Single>(sums, weights, from.data, from.step, piece.channels, count);
                weights += piece.channels * BLOCK;
            }
            for (int o = 0; o < count; ++o) {
                activate(it.activation, sums[o]);
                put(to, first + o, sums[o], at);
            }
        }
    }

    template <int N>
    void point(const Instruction& it, const Pixels& at) {
        const Target to = target(it.to, at);
        const Values a = values(it.a, at), b = it.arithmetic == ONLY_A ? Values{} : values(it.b, at);
        const bool scaled = it.scale != 1.0f || it.shift != 0.0f;
        for (int c = 0; c < it.channels; ++c) {
            Vec out[N];
            for (int v = 0; v < N; ++v) {
                out[v] = a.get(c, v);
                switch (it.arithmetic) {
                    case ONLY_A: break;
                    case ADD: out[v] += b.get(c, v); break;
                    case SUBTRACT: out[v] -= b.get(c, v); break;
                    case MULTIPLY: out[v] *= b.get(c, v); break;
                    case DIVIDE: out[v] /= b.get(c, v); break;
                }
                if (scaled) out[v] = out[v] * it.scale + it.shift;
            }
            activate(it.activation, out);
            put(to, c, out, at);
        }
    }

    // A depthwise 3x3 convolution of a map. The weights are [channels][9].
    template <int N>
    void depthwise(const Instruction& it, const Pixels& at) {
        const Target to = target(it.to, at);
        const Map& map = maps[it.a.index];
        const int each = it.channels / it.inputs, y = at.y(), stride = map.stride;
        const auto column = [&](int offset) {  // from a row's first place to the column beside the current one
            const int x = at.phase() + offset;
            return x < 0 ? 3 * stride - 1 : x > 3 ? 1 : x * stride;
        };
        const int columns[3] = {column(-1) + at.tile, column(0) + at.tile, column(1) + at.tile};
        for (int c = 0; c < it.inputs; ++c) {
            Vec in[9][N] = {};
            for (int i = 0; i < 3; ++i) {
                if (y + i < 1 || y + i > pass.height) continue;
                const float* const row = map.at(it.a.channel + c, y + i - 1, 0);
                for (int j = 0; j < 3; ++j)
                    for (int v = 0; v < N; ++v) in[3 * i + j][v] = load(row + columns[j] + v * LANES);
            }
            for (int o = c * each; o < (c + 1) * each; ++o) {
                Vec out[N];
                for (int v = 0; v < N; ++v) {
                    out[v] = splat(it.bias[o]);
                    for (int tap = 0; tap < 9; ++tap) out[v] += it.weights[9 * o + tap] * in[tap][v];
                }
                activate(it.activation, out);
                put(to, o, out, at);
            }
        }
    }

    // The mean over `inputs` channels of each pixel, or the root of the sum of their squares.
    template <int N>
    void reduce(const Instruction& it, const Pixels& at) {
        const Values a = values(it.a, at);
        const bool squares = it.operation == LENGTH;
        Vec sums[N] = {};
        for (int c = 0; c < it.inputs; ++c)
            for (int v = 0; v < N; ++v) {
                const Vec value = a.get(c, v);
                sums[v] += squares ? value * value : value;
            }
        for (Vec& sum : sums) {
            if (!squares) sum /= float(it.inputs);
            for (int i = 0; squares && i < LANES; ++i) sum[i] = std::sqrt(sum[i]);
            sum = sum * it.scale + it.shift;
        }
        activate(it.activation, sums);
        put(target(it.to, at), 0, sums, at);
    }

    // Layer normalisation over the channels of each pixel; `shift` is its epsilon.
    template <int N>
    void normalise(const Instruction& it, const Pixels& at) {
        const Target to = target(it.to, at);
        const Values a = values(it.a, at);
        Vec mean[N] = {}, scale[N] = {};
        for (int c = 0; c < it.channels; ++c)
            for (int v = 0; v < N; ++v) mean[v] += a.get(c, v);
        for (Vec& each : mean) each /= float(it.channels);
        for (int c = 0; c < it.channels; ++c)
            for (int v = 0; v < N; ++v) scale[v] += (a.get(c, v) - mean[v]) * (a.get(c, v) - mean[v]);
        for (Vec& each : scale) each = reciprocal_root(each / float(it.channels) + it.shift);
        for (int c = 0; c < it.channels; ++c) {
            Vec out[N];
            for (int v = 0; v < N; ++v) out[v] = (a.get(c, v) - mean[v]) * scale[v] * it.weights[c] + it.bias[c];
            put(to, c, out, at);
        }
    }
};

template <typename Factor>
void run_pass(const Pass& pass, int threads) {
    const auto make = [&] { return std::make_unique<Worker<Factor>>(pass); };
    for_all((pass.height + 3) / 4, threads, make,
            [&](const std::unique_ptr<Worker<Factor>>& worker, int band) { worker->run(band); });
}

}  // namespace
