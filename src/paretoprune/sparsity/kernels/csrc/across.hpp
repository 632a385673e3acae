// Few rows: a stored column of `height` outputs is NV vectors of L outputs, times one input of each of R rows.
#pragma once
#include "panel.hpp"

template <int L, int NV, int R>
constexpr int across_sums() {
    return NV * R >= 8 ? 1 : NV * R >= 4 ? 2 : 4;
}

// Row blocks [from, to), rows x[0 .. R) at distance `inputs`.
template <int L, int NV, int R>
void run_across(const Rows &w, const float *x, float *y, const Finish &finish, int64_t from, int64_t to) {
    typedef typename Lanes<L>::Vec Vec;
    constexpr int U = across_sums<L, NV, R>();
    for (int64_t block = from; block < to; block++) {
        const int64_t first = w.first(block), count = w.first(block + 1) - first;
        const uint16_t *index = w.index + first;
        for (int64_t part = 0; part < w.height; part += L * NV) {
            const int64_t n = block * w.height + part;
            if (n >= w.outputs) break;
            const float *value = w.value + first * w.height + part;
            Vec sum[U][R][NV] = {};
            int64_t j = 0;
            auto add = [&](Vec(&into)[R][NV], int64_t k, const float *v) {
                Vec column[NV];
                for (int i = 0; i < NV; i++) column[i] = load<L>(v + i * L);
                for (int r = 0; r < R; r++) {
                    const Vec b = Lanes<L>::splat(x[r * w.inputs + k]);
                    for (int i = 0; i < NV; i++) into[r][i] += b * column[i];
                }
            };
            for (; j + U <= count; j += U, value += U * w.height)
                for (int u = 0; u < U; u++) add(sum[u], index[j + u], value + u * w.height);
            for (; j < count; j++, value += w.height) add(sum[0], index[j], value);
            for (int r = 0; r < R; r++) {
                alignas(64) float out[L * NV];
                for (int i = 0; i < NV; i++) {
                    for (int u = 1; u < U; u++) sum[0][r][i] += sum[u][r][i];
                    std::memcpy(out + i * L, &sum[0][r][i], sizeof(Vec));
                }
                const int64_t valid = std::min<int64_t>(L * NV, w.outputs - n), at = r * w.outputs + n;
                if (finish.bias)
                    for (int64_t i = 0; i < valid; i++) out[i] += finish.bias[n + i];
                if (finish.residual)
                    for (int64_t i = 0; i < valid; i++) out[i] += finish.residual[at + i];
                activate_all(out, L * NV, finish.activation);
                if (valid == L * NV)
                    std::memcpy(y + at, out, sizeof(out));
                else
                    std::memcpy(y + at, out, sizeof(float) * valid);
            }
        }
    }
}

template <int L, int NV, int R>
void run_across_of(int rows, const Rows &w, const float *x, float *y, const Finish &finish, int64_t from, int64_t to) {
    if (rows == R) return run_across<L, NV, R>(w, x, y, finish, from, to);
    if constexpr (R > 1) run_across_of<L, NV, R - 1>(rows, w, x, y, finish, from, to);
}

constexpr int MOST_ROWS = 6;

// At most MOST_ROWS rows, height a multiple of 4.
inline void run_across(int rows, const Rows &w, const float *x, float *y, const Finish &finish, int64_t from, int64_t to) {
    if (w.height % 16 == 0)
        run_across_of<std::min(LANES, 16), 16 / LANES, MOST_ROWS>(rows, w, x, y, finish, from, to);
    else
        run_across_of<4, 1, MOST_ROWS>(rows, w, x, y, finish, from, to);
}

// One output of one row: what unstructured weights allow. Four sums in scalar registers: gathers are slower.
// HEIGHT 1, or 0 for what `given` says.
template <int HEIGHT>
inline float dot(const uint16_t *index, const float *value, int64_t given, int64_t count, const float *x) {
    const int64_t height = HEIGHT ? HEIGHT : given;
    float a = 0, b = 0, c = 0, d = 0;
    int64_t j = 0;
    for (; j + 4 <= count; j += 4, value += 4 * height) {
        a += value[0] * x[index[j]];
        b += value[height] * x[index[j + 1]];
        c += value[2 * height] * x[index[j + 2]];
        d += value[3 * height] * x[index[j + 3]];
        #if defined(__x86_64__)
        asm("" : "+x"(a), "+x"(b), "+x"(c), "+x"(d));  // keeps the compiler from gathering
#endif
    }
    for (; j < count; j++, value += height) a += value[0] * x[index[j]];
    return (a + b) + (c + d);
}

inline void run_dots(const Rows &w, const float *x, float *y, const Finish &finish, int64_t from, int64_t to) {
    for (int64_t block = from; block < to; block++) {
        const int64_t first = w.first(block), count = w.first(block + 1) - first;
        for (int64_t r = 0; r < w.height; r++) {
            const int64_t n = block * w.height + r;
            if (n >= w.outputs) break;
            const float *value = w.value + first * w.height + r;
            float total = w.height == 1 ? dot<1>(w.index + first, value, 1, count, x)
                                        : dot<0>(w.index + first, value, w.height, count, x);
            if (finish.bias) total += finish.bias[n];
            if (finish.residual) total += finish.residual[n];
            y[n] = activate(total, finish.activation);
        }
    }
}
