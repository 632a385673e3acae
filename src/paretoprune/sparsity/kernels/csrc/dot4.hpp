// Sums of products of four 8-bit inputs, for sixteen outputs at once, exactly.
//
// Activations are unsigned, weights signed. The 16-bit sums of vpmaddubsw saturate, so without VNNI both sides are held
// in 16 bits and vpmaddwd adds pairs in 32 bits, which cannot overflow below 66,000 inputs. (On Zen 3 this costs no
// multiplication more than the inexact way.)
#pragma once
#include "lanes.hpp"

#if defined(__AVX512VNNI__) && defined(__AVX512F__)

struct Dot4 {
    typedef uint8_t Act;
    typedef int8_t Weight;  // [16 outputs][4 inputs]
    static constexpr int PAIRS = 0, ROWS = 12;
    struct Sum {
        __m512i v = _mm512_setzero_si512();
        void store(int32_t *to) const { _mm512_storeu_si512(to, v); }
    };
    template <int R>
    static inline void add(Sum (&sum)[R], const Act *const *x, int64_t off, const Weight *w) {
        const __m512i weights = _mm512_loadu_si512(w);
        for (int r = 0; r < R; r++) {
            int32_t four;
            std::memcpy(&four, x[r] + off, 4);
            sum[r].v = _mm512_dpbusd_epi32(sum[r].v, _mm512_set1_epi32(four), weights);
        }
    }
};

#elif defined(AS_AVX512)

struct Dot4 {  // what vpdpbusd does, in plain words
    typedef uint8_t Act;
    typedef int8_t Weight;
    static constexpr int PAIRS = 0, ROWS = 12;
    struct Sum {
        int32_t v[16] = {};
        void store(int32_t *to) const { std::memcpy(to, v, sizeof(v)); }
    };
    template <int R>
    static inline void add(Sum (&sum)[R], const Act *const *x, int64_t off, const Weight *w) {
        for (int r = 0; r < R; r++)
            for (int i = 0; i < 64; i++) sum[r].v[i / 4] += int32_t(x[r][off + i % 4]) * w[i];
    }
};

#elif defined(__AVX2__)

struct Dot4 {
    typedef int16_t Act;
    typedef int16_t Weight;  // [inputs 0 1, inputs 2 3][16 outputs][2 inputs]
    static constexpr int PAIRS = 1, ROWS = 4;
    struct Sum {
        __m256i low = _mm256_setzero_si256(), high = _mm256_setzero_si256();
        void store(int32_t *to) const {
            _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), low);
            _mm256_storeu_si256(reinterpret_cast<__m256i *>(to + 8), high);
        }
    };
    template <int R>
    static inline void add(Sum (&sum)[R], const Act *const *x, int64_t off, const Weight *weights) {
        const auto *w = reinterpret_cast<const __m256i *>(weights);
        const __m256i w0 = _mm256_loadu_si256(w), w1 = _mm256_loadu_si256(w + 1);
        const __m256i w2 = _mm256_loadu_si256(w + 2), w3 = _mm256_loadu_si256(w + 3);
        for (int r = 0; r < R; r++) {
            int32_t pair[2];
            std::memcpy(pair, x[r] + off, 8);
            const __m256i a = _mm256_set1_epi32(pair[0]), b = _mm256_set1_epi32(pair[1]);
            sum[r].low = _mm256_add_epi32(sum[r].low, _mm256_add_epi32(_mm256_madd_epi16(w0, a), _mm256_madd_epi16(w2, b)));
            sum[r].high = _mm256_add_epi32(sum[r].high, _mm256_add_epi32(_mm256_madd_epi16(w1, a), _mm256_madd_epi16(w3, b)));
        }
    }
};

#else

struct Dot4 {
    typedef int16_t Act;
    typedef int16_t Weight;
    static constexpr int PAIRS = 1, ROWS = 2;
    struct Sum {
        int32_t v[16] = {};
        void store(int32_t *to) const { std::memcpy(to, v, sizeof(v)); }
    };
    template <int R>
    static inline void add(Sum (&sum)[R], const Act *const *x, int64_t off, const Weight *w) {
        for (int r = 0; r < R; r++) {
            const Act *a = x[r] + off;
            for (int o = 0; o < 16; o++)
                sum[r].v[o] += int32_t(a[0]) * w[2 * o] + int32_t(a[1]) * w[2 * o + 1] + int32_t(a[2]) * w[32 + 2 * o] +
                               int32_t(a[3]) * w[32 + 2 * o + 1];
        }
    }
};

#endif
