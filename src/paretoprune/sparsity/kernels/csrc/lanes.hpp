// A vector of floats as wide as the instruction set that this file is compiled for, and what is done with it.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

// AS_AVX512 tries the code for AVX-512 on a machine without it: the same lanes, registers and layouts, the compiler
// cutting the vectors up.
#if defined(__AVX512F__) || defined(AS_AVX512)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif

#if defined(__AVX512F__) || defined(AS_AVX512)
constexpr int REGISTERS = 32;
#else
constexpr int REGISTERS = 16;
#endif

template <int L>
struct Lanes;
template <>
struct Lanes<4> {
    typedef float Vec __attribute__((vector_size(16)));
    typedef float Loose __attribute__((vector_size(16), aligned(4), may_alias));
    static inline Vec splat(float s) { return Vec{s, s, s, s}; }
};
template <>
struct Lanes<8> {
    typedef float Vec __attribute__((vector_size(32)));
    typedef float Loose __attribute__((vector_size(32), aligned(4), may_alias));
    static inline Vec splat(float s) { return Vec{s, s, s, s, s, s, s, s}; }
};
template <>
struct Lanes<16> {
    typedef float Vec __attribute__((vector_size(64)));
    typedef float Loose __attribute__((vector_size(64), aligned(4), may_alias));
    static inline Vec splat(float s) { return Vec{s, s, s, s, s, s, s, s, s, s, s, s, s, s, s, s}; }
};

template <int L>
inline typename Lanes<L>::Vec load(const float *p) {
    return *reinterpret_cast<const typename Lanes<L>::Loose *>(p);
}
template <int L>
inline void store(float *p, typename Lanes<L>::Vec v) {
    *reinterpret_cast<typename Lanes<L>::Loose *>(p) = v;
}

enum Activation : int32_t { NONE = 0, RELU = 1, GELU = 2 };

// 0.5 x (1 + erf(x / sqrt 2)); erf by Abramowitz and Stegun 7.1.26, absolute error below 2e-7.
inline float gelu(float x) {
    float z = std::min(std::fabs(x) * 0.70710678f, 6.0f);  // beyond it erf is 1; NaN stays NaN through x
    float t = 1.0f / (1.0f + 0.3275911f * z);
    float poly = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    // exp(-z*z) as 2^i * 2^f, f in [-1/2, 1/2]
    float e = -z * z * 1.44269504f;
    float whole = std::rint(e), f = (e - whole) * 0.69314718f;
    float two = 1.0f + f * (1.0f + f * (0.5f + f * (0.16666667f + f * (0.041666668f + f * (0.0083333310f + f * 0.0013888889f)))));
    int32_t bits = (static_cast<int32_t>(whole) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, 4);
    float erf = 1.0f - poly * two * power;
    return 0.5f * x * (1.0f + (x < 0 ? -erf : erf));
}

// NaN passes: the comparison is false for it.
inline float activate(float v, int32_t kind) {
    if (kind == RELU) return v < 0 ? 0.0f : v;
    if (kind == GELU) return v == v ? gelu(v) : v;
    return v;
}

// In place. A loop for each kind: one loop with a choice inside would compute all kinds and select.
inline void activate_all(float *v, int64_t count, int32_t kind) {
    if (kind == RELU) {
        for (int64_t i = 0; i < count; i++) v[i] = v[i] < 0 ? 0.0f : v[i];
    } else if (kind == GELU) {
        for (int64_t i = 0; i < count; i++) v[i] = gelu(v[i]);
    }
}

template <int L>
inline typename Lanes<L>::Vec activate(typename Lanes<L>::Vec v, int32_t kind) {
    if (kind == NONE) return v;
    alignas(64) float lanes[L];
    std::memcpy(lanes, &v, sizeof(v));
    activate_all(lanes, L, kind);
    std::memcpy(&v, lanes, sizeof(v));
    return v;
}
