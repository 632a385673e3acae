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

// 0.5 x (1 + erf(x / sqrt 2)); erf by Abramowitz and Stegun 7.1.26, absolute error below 2e-7. Written out in vectors:
// of the plain loop the compiler made scalars wherever a length was not known.
template <int L>
inline typename Lanes<L>::Vec gelu(typename Lanes<L>::Vec x) {
    using Vec = typename Lanes<L>::Vec;
    typedef int32_t Int __attribute__((vector_size(4 * L)));
    Vec z = (x < 0 ? -x : x) * 0.70710678f;
    z = z < 6.0f ? z : Lanes<L>::splat(6.0f);  // beyond it erf is 1; NaN stays NaN through x
    const Vec t = 1.0f / (1.0f + 0.3275911f * z);
    const Vec poly = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    // exp(-z*z) as 2^i * 2^f, f in [-1/2, 1/2]; adding and taking away 1.5 * 2^23 rounds.
    const Vec e = -z * z * 1.44269504f;
    const Vec whole = (e + 12582912.0f) - 12582912.0f, f = (e - whole) * 0.69314718f;
    const Vec two = 1.0f + f * (1.0f + f * (0.5f + f * (0.16666667f + f * (0.041666668f + f * (0.0083333310f + f * 0.0013888889f)))));
    const Int bits = (__builtin_convertvector(whole, Int) + 127) << 23;
    Vec power;
    std::memcpy(&power, &bits, sizeof(power));
    const Vec erf = 1.0f - poly * two * power;
    return 0.5f * x * (1.0f + (x < 0 ? -erf : erf));
}

// NaN passes: the comparison is false for it.
inline float activate(float v, int32_t kind) {
    if (kind == RELU) return v < 0 ? 0.0f : v;
    if (kind == GELU) return gelu<4>(Lanes<4>::splat(v))[0];
    return v;
}

// In place.
inline void activate_all(float *v, int64_t count, int32_t kind) {
    if (kind == RELU) {
        for (int64_t i = 0; i < count; i++) v[i] = v[i] < 0 ? 0.0f : v[i];
    } else if (kind == GELU) {
        int64_t i = 0;
        for (; i + LANES <= count; i += LANES) store<LANES>(v + i, gelu<LANES>(load<LANES>(v + i)));
        for (; i < count; i++) v[i] = activate(v[i], GELU);
    }
}

template <int L>
inline typename Lanes<L>::Vec activate(typename Lanes<L>::Vec v, int32_t kind) {
    if (kind == RELU) return v < 0 ? Lanes<L>::splat(0.0f) : v;
    return kind == GELU ? gelu<L>(v) : v;
}
