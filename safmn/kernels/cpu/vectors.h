// Shared by the kernels for inference and for training: vectors, threads, Winograd transforms.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <type_traits>
#include <vector>

#define INLINE inline __attribute__((always_inline))

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, BLOCK = 12;  // 2 x 12 sums, 2 inputs and a weight, in 32 registers
#elif defined(__AVX__)
constexpr int LANES = 8, BLOCK = 6;  // 2 x 6 sums, 2 inputs and a weight, in 16 registers
#elif defined(__aarch64__)
constexpr int LANES = 4, BLOCK = 12;
#else
constexpr int LANES = 4, BLOCK = 6;
#endif
constexpr int TAPS = 36;  // products of a Winograd tile

typedef float Vec __attribute__((vector_size(LANES * 4)));
typedef float UnalignedVec __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef std::uint32_t Bits __attribute__((vector_size(LANES * 4)));
typedef std::uint32_t UnalignedBits __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

INLINE Vec load(const float* from) { return *reinterpret_cast<const UnalignedVec*>(from); }
INLINE void store(float* to, Vec value) { *reinterpret_cast<UnalignedVec*>(to) = value; }
INLINE Vec splat(float value) { return value - Vec{}; }

// weights[o] in all lanes.
INLINE Vec weight(const float* weights, int o) {
#if defined(__aarch64__)  // a product can take its factor from any lane of a vector: one load for LANES weights
    return splat(load(weights + o / LANES * LANES)[o % LANES]);
#else
    return splat(weights[o]);
#endif
}

INLINE Vec larger(Vec a, Vec b) { return a > b ? a : b; }
INLINE Vec smaller(Vec a, Vec b) { return a < b ? a : b; }

INLINE Vec reciprocal_root(Vec value) {
    Vec root;
    for (int i = 0; i < LANES; ++i) root[i] = std::sqrt(value[i]);
    return 1.0f / root;
}

// Coefficients of a polynomial q with f(x) - 1/2 = c q(2 (c / LIMIT)^2 - 1), where c is x clamped to [-LIMIT, LIMIT].
// f - 1/2 is odd, and constant outside that interval. The error of the fit is 1e-6.
struct GeluSlope {  // the derivative of x Phi(x)
    static constexpr float LIMIT = 5.6f;
    static constexpr float COEFFICIENTS[] = {
        0.12641659362188232f,  -0.06428307795593004f,  0.05181492250184712f,  -0.05093996386559335f, 0.05652244510834066f,
        -0.06527182937614914f, 0.07305887857724637f,   -0.07171082084601296f, 0.06048560674033183f,
        -0.057094157928047465f, 0.05681531040024344f,  -0.03044567110799886f, 0.0024086260658185508f,
        -0.0081350281424032f,  0.016061775606871605f,  -0.006417872830248203f};
};

// Compute f of N vectors at once: the steps for one vector depend on each other, those for different vectors do not.
template <typename F, int N>
INLINE void evaluate(const Vec (&x)[N], Vec (&out)[N]) {
    constexpr int COUNT = sizeof(F::COEFFICIENTS) / sizeof(float);
    Vec c[N], u[N], q[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) {
        c[n] = smaller(larger(x[n], splat(-F::LIMIT)), splat(F::LIMIT));
        u[n] = c[n] * c[n] * (2.0f / (F::LIMIT * F::LIMIT)) - 1.0f;
        q[n] = splat(F::COEFFICIENTS[COUNT - 1]);
    }
#pragma GCC unroll 16
    for (int i = COUNT - 2; i >= 0; --i)
#pragma GCC unroll 4
        for (int n = 0; n < N; ++n) q[n] = q[n] * u[n] + F::COEFFICIENTS[i];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) out[n] = c[n] * q[n] + 0.5f;
}

// Call item(state, i) for all i < count on up to `threads` threads. Each thread has its own state = make(). Threads are
// started for every call and not kept, so that a fork or another library cannot disturb them. This costs
// microseconds, where a call takes milliseconds.
template <typename Make, typename Item>
void for_all(int count, int threads, Make&& make, Item&& item) {
    std::atomic<int> next{0};
    std::mutex mutex;
    std::exception_ptr error;
    const auto loop = [&] {
        try {
            auto state = make();
            for (int i = next++; i < count; i = next++) item(state, i);
        } catch (...) {
            const std::lock_guard<std::mutex> lock(mutex);
            error = std::current_exception();
        }
    };
    std::vector<std::thread> others;
    others.reserve(std::max(threads, 1));
    try {
        while (int(others.size()) + 1 < std::min(threads, count)) others.emplace_back(loop);
    } catch (const std::system_error&) {  // no more threads are available: fewer do all the work
    } catch (const std::bad_alloc&) {     // a thread's state is on the heap
    }
    loop();
    for (std::thread& other : others) other.join();
    if (error) std::rethrow_exception(error);
}

template <typename Item>
void for_all(int count, int threads, Item&& item) {
    for_all(count, threads, [] { return 0; }, [&](int, int i) { item(i); });
}

// Winograd's F(4x4, 3x3) along one side: six inputs to six factors, and six products to four outputs.
INLINE void input_line(const Vec (&d)[6], Vec (&out)[6]) {
    const Vec a = d[4] - d[2], b = d[3] - d[1];
    out[0] = (d[0] - d[2]) + a + 1.5f * b;
    out[1] = a + 0.5f * b - 1.5f * (d[2] - d[1]);
    out[2] = a + 2.5f * b + 1.5f * (d[2] + d[1]);
    out[3] = a + 2.0f * b;
    out[4] = a - 0.5f * b;
    out[5] = (d[5] - d[3]) - b + 1.5f * a;
}

INLINE void output_line(const Vec (&m)[6], Vec (&out)[4]) {
    const Vec sum = m[2] + m[1], difference = m[2] - m[1];
    out[0] = m[0] + sum + (m[3] + m[4]);
    out[1] = difference + 0.5f * m[3] - 2.0f * m[4];
    out[2] = sum + 0.25f * m[3] + 4.0f * m[4];
    out[3] = difference + 0.125f * m[3] - 8.0f * m[4] + m[5];
}

// Exceptions must not reach Python. Return 0, or 1 if memory ran out.
template <typename Function>
int status_of(Function&& run) {
    try {
        run();
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

}  // namespace
