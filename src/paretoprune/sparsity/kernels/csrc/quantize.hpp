// fp32 to unsigned 8-bit activations, four channels side by side, as Dot4 wants them.
#pragma once
#include "dot4.hpp"

struct Scale {        // q = clamp(round(x * inverse) + zero, 0, 255)
    float inverse;
    int32_t zero;
};

// Ties to even, as the float addition rounds: 1.5 * 2^23 + v has its integer in the low bits.
inline int32_t quantized(float x, const Scale &s) {
    const float low = static_cast<float>(-s.zero), high = static_cast<float>(255 - s.zero);
    float v = x * s.inverse;
    v = v < high ? v : high;
    v = v > low ? v : low;
    v += 12582912.0f;
    int32_t bits;
    std::memcpy(&bits, &v, 4);
    return bits - 0x4B400000 + s.zero;
}

inline bool unsound(float x) { return !(x - x == 0); }

// One line of `count` values, then zeros of the weights' side up to `whole`. True where a value is not finite.
inline bool quantize_line(const float *x, int64_t count, int64_t whole, const Scale &s, Dot4::Act *q) {
    int32_t bad = 0;
    for (int64_t i = 0; i < count; i++) {
        bad |= unsound(x[i]);
        q[i] = static_cast<Dot4::Act>(quantized(x[i], s));
    }
    for (int64_t i = count; i < whole; i++) q[i] = 0;
    return bad != 0;
}

#if defined(__AVX2__)

constexpr int PER_WORD = 4 / sizeof(Dot4::Act), GROUP = 4 * PER_WORD;  // channels in 32 bits, and in 16 bytes

inline __m256i quantize_word(const float *x, int64_t step, const Scale &s, __m256 &bad) {
    const __m256 low = _mm256_set1_ps(static_cast<float>(-s.zero)), high = _mm256_set1_ps(static_cast<float>(255 - s.zero));
    __m256i word = _mm256_setzero_si256();
    for (int c = 0; c < PER_WORD; c++) {
        const __m256 v = _mm256_loadu_ps(x + c * step), zero = _mm256_sub_ps(v, v);
        bad = _mm256_or_ps(bad, _mm256_cmp_ps(zero, zero, _CMP_UNORD_Q));
        const __m256 scaled = _mm256_max_ps(_mm256_min_ps(_mm256_mul_ps(v, _mm256_set1_ps(s.inverse)), high), low);
        const __m256i q = _mm256_add_epi32(_mm256_cvtps_epi32(scaled), _mm256_set1_epi32(s.zero));
        word = _mm256_or_si256(word, _mm256_slli_epi32(q, c * 32 / PER_WORD));
    }
    return word;
}

// 8 pixels of GROUP channels: channel c at x + c * step; pixel i to q + i * q_step.
inline bool quantize_tile(const float *x, int64_t step, const Scale &s, Dot4::Act *q, int64_t q_step) {
    __m256 bad = _mm256_setzero_ps();
    __m256i w[4];
    for (int i = 0; i < 4; i++) w[i] = quantize_word(x + i * PER_WORD * step, step, s, bad);
    const __m256i a = _mm256_unpacklo_epi32(w[0], w[1]), b = _mm256_unpackhi_epi32(w[0], w[1]);
    const __m256i c = _mm256_unpacklo_epi32(w[2], w[3]), d = _mm256_unpackhi_epi32(w[2], w[3]);
    const __m256i pixel[4] = {_mm256_unpacklo_epi64(a, c), _mm256_unpackhi_epi64(a, c), _mm256_unpacklo_epi64(b, d),
                              _mm256_unpackhi_epi64(b, d)};
    for (int i = 0; i < 4; i++) {
        _mm_storeu_si128(reinterpret_cast<__m128i *>(q + i * q_step), _mm256_castsi256_si128(pixel[i]));
        _mm_storeu_si128(reinterpret_cast<__m128i *>(q + (i + 4) * q_step), _mm256_extracti128_si256(pixel[i], 1));
    }
    return _mm256_movemask_ps(bad) != 0;
}

#else

constexpr int GROUP = 8;

inline bool quantize_tile(const float *x, int64_t step, const Scale &s, Dot4::Act *q, int64_t q_step) {
    bool bad = false;
    for (int c = 0; c < GROUP; c++)
        for (int i = 0; i < 8; i++) {
            bad |= unsound(x[c * step + i]);
            q[i * q_step + c] = static_cast<Dot4::Act>(quantized(x[c * step + i], s));
        }
    return bad;
}

#endif

// `pixels` neighbouring pixels of all channels; `whole`: channels rounded up to four, also the distance of pixels in q.
inline bool quantize_pixels(const float *x, int64_t step, int64_t channels, int64_t pixels, int64_t whole, const Scale &s,
                            Dot4::Act *q) {
    bool bad = false;
    const int64_t tiled_channels = pixels < 8 ? 0 : channels / GROUP * GROUP;
    for (int64_t at = 0; at < pixels && tiled_channels; at += 8) {
        const int64_t p = std::min(at, pixels - 8);  // the last tile overlaps
        for (int64_t c = 0; c < tiled_channels; c += GROUP)
            bad |= quantize_tile(x + c * step + p, step, s, q + p * whole + c, whole);
    }
    for (int64_t p = 0; p < pixels && tiled_channels < whole; p++) {
        for (int64_t c = tiled_channels; c < channels; c++) {
            bad |= unsound(x[c * step + p]);
            q[p * whole + c] = static_cast<Dot4::Act>(quantized(x[c * step + p], s));
        }
        for (int64_t c = channels; c < whole; c++) q[p * whole + c] = 0;
    }
    return bad;
}
