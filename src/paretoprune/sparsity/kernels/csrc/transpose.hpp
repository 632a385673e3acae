// to[j * to_step + i] = from[i * from_step + j], in tiles of 8 x 8.
#pragma once
#include "lanes.hpp"

inline void transpose_any(const float *from, int64_t from_step, int64_t rows, int64_t columns, float *to, int64_t to_step) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) to[j * to_step + i] = from[i * from_step + j];
}

#if defined(__AVX2__)
inline void transpose_tile(const float *from, int64_t from_step, float *to, int64_t to_step) {
    __m256 a[8], b[8];
    for (int i = 0; i < 4; i++) {  // halves of lines i and i + 4 side by side
        const float *low = from + i * from_step, *high = low + 4 * from_step;
        a[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high), 1);
        a[i + 4] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low + 4)), _mm_loadu_ps(high + 4), 1);
    }
    for (int h = 0; h < 8; h += 4) {
        b[h] = _mm256_unpacklo_ps(a[h], a[h + 1]), b[h + 1] = _mm256_unpackhi_ps(a[h], a[h + 1]);
        b[h + 2] = _mm256_unpacklo_ps(a[h + 2], a[h + 3]), b[h + 3] = _mm256_unpackhi_ps(a[h + 2], a[h + 3]);
        _mm256_storeu_ps(to + (h + 0) * to_step, _mm256_shuffle_ps(b[h], b[h + 2], 0x44));
        _mm256_storeu_ps(to + (h + 1) * to_step, _mm256_shuffle_ps(b[h], b[h + 2], 0xEE));
        _mm256_storeu_ps(to + (h + 2) * to_step, _mm256_shuffle_ps(b[h + 1], b[h + 3], 0x44));
        _mm256_storeu_ps(to + (h + 3) * to_step, _mm256_shuffle_ps(b[h + 1], b[h + 3], 0xEE));
    }
}
#else
inline void transpose_tile(const float *from, int64_t from_step, float *to, int64_t to_step) {
    transpose_any(from, from_step, 8, 8, to, to_step);
}
#endif

inline void transpose(const float *from, int64_t from_step, int64_t rows, int64_t columns, float *to, int64_t to_step) {
    const int64_t whole_rows = rows / 8 * 8, whole_columns = columns / 8 * 8;
    for (int64_t j = 0; j < whole_columns; j += 8)  // lines of `to` may be a power of two apart: each is written in one go
        for (int64_t i = 0; i < whole_rows; i += 8)
            transpose_tile(from + i * from_step + j, from_step, to + j * to_step + i, to_step);
    transpose_any(from + whole_columns, from_step, whole_rows, columns - whole_columns, to + whole_columns * to_step, to_step);
    transpose_any(from + whole_rows * from_step, from_step, rows - whole_rows, columns, to + whole_rows, to_step);
}
