// Sparse weights times a panel of T vectors of positions (pixels, or rows laid side by side).
//
// A stored column is R weights, of R neighbouring outputs, for one input: T loads of that input serve R*T multiply-adds.
// `table` turns an input's number into its distance from the panel's origin, so that a k x k convolution reads its
// window in place.
#pragma once
#include "lanes.hpp"

struct Rows {              // the packed weights of one layer
    int64_t outputs, inputs, height;  // height: outputs in a stored column
    int64_t parts;         // of the inputs, each small enough for the nearest cache; 1 where height > CHUNK
    const int32_t *start;  // (row blocks * parts + 1): first column of each row block and part
    const uint16_t *index; // (columns): the input
    const float *value;    // (columns, height)

    static constexpr int64_t CHUNK = 64;  // outputs that are done together
    int64_t first(int64_t block) const { return start[block * parts]; }
    int most() const;
    void run(const int32_t *table, const struct Panel &p, int64_t from, int64_t to) const;
};

constexpr int WIDE = LANES;

// Vectors of a panel: what the registers hold beside the inputs and one broadcast.
template <int R>
constexpr int panel_vectors() {
    if (R == 1) return REGISTERS == 32 ? 12 : 8;
    return REGISTERS == 32 ? 6 : 3;
}

// Independent sums, enough to hide the latency of a multiply-add (4 cycles, 2 a cycle).
template <int R, int T>
constexpr int independent() {
    return R * T >= 8 ? 1 : R * T >= 4 ? 2 : 4;
}

template <int R, int T>
struct Sums {
    typename Lanes<WIDE>::Vec at[R][T];
};

template <int R, int T>
inline void add_column(const float *const *x, int64_t off, const float *w, Sums<R, T> &sum) {
    typename Lanes<WIDE>::Vec v[T];
    for (int t = 0; t < T; t++) v[t] = load<WIDE>(x[t] + off);
    for (int r = 0; r < R; r++) {
        const typename Lanes<WIDE>::Vec b = Lanes<WIDE>::splat(w[r]);
        for (int t = 0; t < T; t++) sum.at[r][t] += b * v[t];
    }
}

template <int R, int T>
inline Sums<R, T> multiply(const Sums<R, T> &before, const float *const *at, const int32_t *table, const uint16_t *index,
                           const float *w, int64_t height, int64_t count) {
    constexpr int U = independent<R, T>();
    const float *x[T];
    for (int t = 0; t < T; t++) x[t] = at[t];
    Sums<R, T> sum[U] = {before};
    int64_t j = 0;
    for (; j + U <= count; j += U, w += U * height)
        for (int u = 0; u < U; u++) add_column<R, T>(x, table[index[j + u]], w + u * height, sum[u]);
    for (; j < count; j++, w += height) add_column<R, T>(x, table[index[j]], w, sum[0]);
    for (int u = 1; u < U; u++)
        for (int r = 0; r < R; r++)
            for (int t = 0; t < T; t++) sum[0].at[r][t] += sum[u].at[r][t];
    return sum[0];
}

struct Finish {
    const float *bias;      // (outputs), or null
    const float *residual;  // laid out as the output, or null; never the output itself
    int32_t activation;
};

// Where a panel reads and writes: vector t of output n goes to y + n * stride + to[t].
struct Panel {
    int vectors;
    const float *at[12];
    int64_t to[12];
    float *y;
    int64_t stride;
    Finish finish;
};

template <int R, int T>
inline void put_any(const Panel &p, const Sums<R, T> &sum, int64_t n, int rows) {
    for (int r = 0; r < rows; r++) {
        const int64_t row = (n + r) * p.stride;
        const float bias = p.finish.bias ? p.finish.bias[n + r] : 0.0f;
        for (int t = 0; t < T; t++) {
            auto v = sum.at[r][t] + Lanes<WIDE>::splat(bias);
            if (p.finish.residual) v += load<WIDE>(p.finish.residual + row + p.to[t]);
            store<WIDE>(p.y + row + p.to[t], activate<WIDE>(v, p.finish.activation));
        }
    }
}

// The usual ends unrolled, so that the sums need not leave their registers.
template <int R, int T, bool BIAS, bool POSITIVE>
inline void put_whole(const Panel &p, const Sums<R, T> &sum, int64_t n) {
    const auto zero = Lanes<WIDE>::splat(0.0f);
    float *y = p.y + n * p.stride;
#pragma GCC unroll 16
    for (int r = 0; r < R; r++, y += p.stride) {
        const auto bias = Lanes<WIDE>::splat(BIAS ? p.finish.bias[n + r] : 0.0f);
#pragma GCC unroll 16
        for (int t = 0; t < T; t++) {
            auto v = sum.at[r][t];
            if (BIAS) v += bias;
            if (POSITIVE) v = v < zero ? zero : v;
            store<WIDE>(y + p.to[t], v);
        }
    }
}

template <int R, int T>
inline void put(const Panel &p, const Sums<R, T> &sum, int64_t n, int64_t rows) {
    const bool positive = p.finish.activation == RELU;
    if (rows < R || p.finish.residual || p.finish.activation == GELU) return put_any<R, T>(p, sum, n, std::min<int>(R, rows));
    if (!p.finish.bias) return positive ? put_whole<R, T, false, true>(p, sum, n) : put_whole<R, T, false, false>(p, sum, n);
    return positive ? put_whole<R, T, true, true>(p, sum, n) : put_whole<R, T, true, false>(p, sum, n);
}

// Row blocks [from, to), one part of the inputs; `between`: the sums so far, of each R outputs.
template <int R, int T>
inline void run_part(const Rows &w, const int32_t *table, const Panel &p, int64_t from, int64_t to, int64_t part,
                     Sums<R, T> *between) {
    for (int64_t block = from; block < to; block++) {
        const int64_t first = w.start[block * w.parts + part], count = w.start[block * w.parts + part + 1] - first;
        for (int64_t r = 0; r < w.height; r += R) {
            const int64_t n = block * w.height + r;
            if (n >= w.outputs) break;
            const auto sum = multiply<R, T>(part ? *between : Sums<R, T>{}, p.at, table, w.index + first,
                                            w.value + first * w.height + r, w.height, count);
            if (part + 1 < w.parts)
                *between = sum;
            else
                put<R, T>(p, sum, n, w.outputs - n);
            if (between) between++;
        }
    }
}

// Row blocks [from, to) of the layer.
template <int R, int T>
void run_panel(const Rows &w, const int32_t *table, const Panel &p, int64_t from, int64_t to) {
    if (w.parts == 1) return run_part<R, T>(w, table, p, from, to, 0, nullptr);
    Sums<R, T> between[Rows::CHUNK / R];
    const int64_t step = Rows::CHUNK / w.height;
    for (int64_t b = from; b < to; b += step)
        for (int64_t part = 0; part < w.parts; part++) run_part<R, T>(w, table, p, b, std::min(b + step, to), part, between);
}

template <int R, int T>
void run_panel_of(const Rows &w, const int32_t *table, const Panel &p, int64_t from, int64_t to) {
    if (p.vectors == T) return run_panel<R, T>(w, table, p, from, to);
    if constexpr (T > 1) run_panel_of<R, T - 1>(w, table, p, from, to);
}

inline int Rows::most() const { return height % 4 == 0 ? panel_vectors<4>() : panel_vectors<1>(); }

inline void Rows::run(const int32_t *table, const Panel &p, int64_t from, int64_t to) const {
    if (height % 4 == 0)
        run_panel_of<4, panel_vectors<4>()>(*this, table, p, from, to);
    else
        run_panel_of<1, panel_vectors<1>()>(*this, table, p, from, to);
}
