// The code of a pass over a frame, as planning/passes.py makes it.
//
// An operand is one of
//   REGISTER  values of the current pixels, of some operation before
//   HEAD      the convolution's result
//   MAP       a map in memory
//   LINES     a small image, enlarged to the frame: nearest neighbours or bilinear
//   VECTOR    one number for each channel
#pragma once

#include <cstring>

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

// Where the convolution writes a channel.
struct Output {
    int tensor;   // a map; -1 for the tiles from which operations read HEAD
    int channel;  // of the map
};

struct Pass {
    int height, width;
    bool has_head, half;
    Conv conv;
    int source, begin;  // of the convolution: tensor and first channel
    int registers;      // channels
    std::vector<Output> outputs;  // for each channel of the convolution
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
        for (int part = read.number(); part > 0; --part) {
            const int tensor = read.number(), channels = read.number();
            for (int c = 0; c < channels; ++c) outputs.push_back({tensor, c});
        }
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

}  // namespace
