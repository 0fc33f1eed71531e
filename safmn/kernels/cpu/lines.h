// Lines of pixels between their order in an image and their order in a map, where four phases lie apart.
#pragma once

#include <utility>

#include "vectors.h"

namespace {

// Values BEGIN ... BEGIN + LANES - 1 of a[0], b[0], a[1], b[1], ...
template <int BEGIN, int... I>
INLINE Vec interleaved(Vec a, Vec b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, ((BEGIN + I) % 2 * LANES + (BEGIN + I) / 2)...);
#else
    typedef int Order __attribute__((vector_size(LANES * 4)));
    return __builtin_shuffle(a, b, Order{((BEGIN + I) % 2 * LANES + (BEGIN + I) / 2)...});
#endif
}

// to[COUNT t + i] = rows[i][t] for t < LANES. COUNT is a power of two.
template <int COUNT>
INLINE void interleave(const float* const* rows, int t, float* to) {
    using Places = std::make_integer_sequence<int, LANES>;
    Vec now[COUNT], next[COUNT];
    for (int i = 0; i < COUNT; ++i) now[i] = load(rows[i] + t);
#pragma GCC unroll 4
    for (int rest = COUNT / 2, each = 1; rest; rest /= 2, each *= 2) {  // `each` vectors in a row so far
#pragma GCC unroll 16
        for (int i = 0; i < COUNT / 2; ++i) {
            next[2 * i] = interleaved<0>(now[i], now[i + COUNT / 2], Places{});
            next[2 * i + 1] = interleaved<LANES>(now[i], now[i + COUNT / 2], Places{});
        }
        for (int i = 0; i < COUNT; ++i) now[i] = next[i];
    }
    for (int i = 0; i < COUNT; ++i) store(to + i * LANES, now[i]);
}

// to[COUNT t + i] = rows[i][t] for COUNT t + i < `width`.
template <int COUNT>
INLINE void join(const float* const* rows, float* to, int width) {
    int t = 0;
    if constexpr ((COUNT & (COUNT - 1)) == 0)
        for (; (t + LANES) * COUNT <= width; t += LANES) interleave<COUNT>(rows, t, to + t * COUNT);
    for (; (t + 1) * COUNT <= width; ++t)
        for (int i = 0; i < COUNT; ++i) to[t * COUNT + i] = rows[i][t];
    for (int i = 0; t * COUNT + i < width; ++i) to[t * COUNT + i] = rows[i][t];
}

// The same for any count.
INLINE void join(const float* const* rows, float* to, int count, int width) {
    switch (count) {
        case 4: return join<4>(rows, to, width);
        case 8: return join<8>(rows, to, width);
        case 12: return join<12>(rows, to, width);
        case 16: return join<16>(rows, to, width);
        default:
            for (int t = 0; t * count < width; ++t)
                for (int i = 0; i < count && t * count + i < width; ++i) to[t * count + i] = rows[i][t];
    }
}

// rows[p][t] = from[4 t + p], of `width` values.
INLINE void part(const float* __restrict from, float* const (&rows)[4], int width) {
    float *__restrict a = rows[0], *__restrict b = rows[1], *__restrict c = rows[2], *__restrict d = rows[3];
    for (int t = 0; t < width / 4; ++t) {
        a[t] = from[4 * t];
        b[t] = from[4 * t + 1];
        c[t] = from[4 * t + 2];
        d[t] = from[4 * t + 3];
    }
    for (int x = width / 4 * 4; x < width; ++x) rows[x % 4][x / 4] = from[x];
}

}  // namespace
