// A pass over a frame: one 3x3 convolution or none, and then operations on each pixel, while its values are in the cache.
//
// passes.py makes the code of a pass. An operand is one of
//   REGISTER  values of the current pixels, of some operation before
//   HEAD      the convolution's result
//   MAP       a map in memory
//   LINES     a small image, enlarged to the frame: nearest neighbours or bilinear
//   VECTOR    one number for each channel
#pragma once

#include <cstring>
#include <memory>

#include "maps.h"

namespace {

enum Place : int { REGISTER, HEAD, MAP, LINES, VECTOR };
enum Operation : int { PRODUCT, POINT, DEPTHWISE, MEAN, LENGTH, NORMALISE };  // the order of OPERATIONS in passes.py
enum Arithmetic : int { ONLY_A, ADD, SUBTRACT, MULTIPLY, DIVIDE };

struct Operand {
    Place place;
    int index;    // of the first channel of a register, or of a tensor
    int channel;  // the first one
    bool one;     // one channel instead of all
};

// A range of channels that enters a product.
struct Piece {
    Operand from;
    int channels;
};

struct Instruction {
    Operation operation;
    int channels;  // of the result
    Operand to, a, b;
    Arithmetic arithmetic;
    float scale, shift;  // after the arithmetic
    Activation activation;
    const float *weights, *bias;
    std::vector<Piece> pieces;  // of a product's input
    int inputs;                 // their channels in total, or input channels of a depthwise convolution
};

struct Tensor {
    Place place;  // MAP, LINES or VECTOR
    float* data;
    int channels, height, width;  // of a map: those of the frame
    bool bilinear;
    float row_step, column_step;  // cells per pixel of the frame
};

// Reads the code: whole numbers, and the bits of real ones.
class Reader {
  public:
    explicit Reader(const int* code) : code(code) {}
    int number() { return *code++; }
    float real() {
        float value;
        std::memcpy(&value, code++, sizeof value);
        return value;
    }
    Operand operand() {
        const auto place = Place(number());
        const int index = number(), channel = number();
        return {place, index, channel, number() != 0};
    }
    Activation activation() {
        const auto curve = Curve(number());
        const float first = real();
        return {curve, first, real()};
    }

  private:
    const int* code;
};

struct Pass {
    int height, width;
    bool has_head, half;
    Conv conv;
    int source, begin;  // of the convolution: tensor and first channel
    int registers;      // channels
    std::vector<Tensor> tensors;
    std::vector<Instruction> instructions;

    Pass(const int* code, const float* weights, const void* taps, const float* bias, int height, int width,
         float* const* data)
        : height(height), width(width) {
        Reader read(code);
        has_head = read.number() != 0;
        half = read.number() != 0;
        source = read.number();
        begin = read.number();
        const int in = read.number(), out = read.number();
        conv = {taps, bias, in, out, read.activation()};
        registers = read.number();
        tensors.resize(std::size_t(read.number()));
        instructions.resize(std::size_t(read.number()));
        for (Tensor& tensor : tensors) {
            const auto place = Place(read.number());
            const int channels = read.number(), rows = read.number(), columns = read.number();
            const bool bilinear = read.number() != 0;
            const float row_step = read.real(), column_step = read.real();
            tensor = {place, *data++, channels, rows, columns, bilinear, row_step, column_step};
        }
        for (Instruction& it : instructions) {
            it.operation = Operation(read.number());
            it.channels = read.number();
            it.to = read.operand();
            it.a = read.operand();
            it.b = read.operand();
            it.arithmetic = Arithmetic(read.number());
            it.scale = read.real();
            it.shift = read.real();
            it.activation = read.activation();
            it.weights = weights + read.number();
            it.bias = weights + read.number();
            it.inputs = read.number();
            it.pieces.resize(std::size_t(read.number()));
            for (Piece& piece : it.pieces) {
                piece.from = read.operand();
                piece.channels = read.number();
            }
        }
    }
    Map map(int tensor) const { return Map(tensors[tensor].data, tensors[tensor].channels, height, width); }
};

// A small image that is enlarged to the rows of one band: [4 rows][channels][4 phases][places].
class EnlargedLines {
  public:
    EnlargedLines(const Tensor& small, int width)
        : small(small), width(width), places(round_up((width + 3) / 4, CHUNK)), left(std::size_t(4) * places),
          right(std::size_t(4) * places), share(std::size_t(4) * places) {
        data = scratch.take(std::size_t(16) * small.channels * places);
        line = scratch.take(std::size_t(small.width));
        for (int x = 0; x < width; ++x) {
            const Source source = source_of(x, small.column_step, small.width);
            const int at = x % 4 * places + x / 4;
            left[at] = source.first, right[at] = source.second, share[at] = source.share;
        }
    }
    const float* at(int channel, int row) const { return data + (std::ptrdiff_t(row) * small.channels + channel) * 4 * places; }
    int step() const { return 4 * places; }
    int phase(int p) const { return p * places; }

    void fill(int y, int row) {
        const Source source = source_of(y, small.row_step, small.height);
        const int count = (width + 3) / 4;
        for (int c = 0; c < small.channels; ++c) {
            const float* const plane = small.data + std::ptrdiff_t(c) * small.height * small.width;
            const float *const above = plane + source.first * small.width, *const below = plane + source.second * small.width;
            float* const to = data + (std::ptrdiff_t(row) * small.channels + c) * 4 * places;
            if (!small.bilinear) {
                for (int i = 0; i < 4 * places; ++i) to[i] = above[left[i]];
                continue;
            }
            for (int i = 0; i < small.width; ++i) line[i] = above[i] * (1.0f - source.share) + below[i] * source.share;
            for (int p = 0; p < 4; ++p)
                for (int i = p * places; i < p * places + count; ++i)
                    to[i] = line[left[i]] * (1.0f - share[i]) + line[right[i]] * share[i];
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
    float *data, *line;

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
    }

    void run(int band) {
        const int rows = std::min(4, pass.height - 4 * band);
        for (const auto& each : lines)
            for (int row = 0; each && row < rows; ++row) each->fill(4 * band + row, row);
        for_chunks(frame.tiles, [&](auto n, int tile) {
            if (pass.has_head) {
                transform_input<n, Factor>(maps[pass.source], pass.begin, pass.conv.in, band, tile, tiles->inputs);
                convolve<n, Factor, Single>(pass.conv, tiles->inputs, tiles->products, tiles->result);
            }
            for (int place = 0; place < 4 * rows; ++place)
                for (const Instruction& it : pass.instructions) execute<n>(it, Pixels{band, place, tile});
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
