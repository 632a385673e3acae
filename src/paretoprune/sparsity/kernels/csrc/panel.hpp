// Sparse weights times a panel of T vectors of positions (pixels, or rows laid side by side).
//
// A stored column is R weights, of R neighbouring outputs, for one input: T loads of that input serve R*T multiply-adds.
#pragma once
#include "lanes.hpp"

struct Rows {              // the packed weights of one layer
    int64_t outputs, inputs, height;  // height: outputs in a stored column
    int64_t parts;         // of the inputs, each small enough for the nearest cache
    const int32_t *start;  // (row blocks * parts + 1): first column of each row block and part
    const uint16_t *index; // (columns): the input
    const float *value;    // (columns, height)

    static constexpr int64_t CHUNK = 64;  // outputs that are moved to their place together
    int64_t first(int64_t block) const { return start[block * parts]; }
    int most() const;
    void run(const struct Panel &p, int64_t from, int64_t to) const;
};

constexpr int WIDE = LANES;

// Vectors of a panel: what the registers hold beside the inputs and one broadcast.
template <int R>
constexpr int panel_vectors() {
    if (R == 1) return REGISTERS == 32 ? 12 : 8;
    return REGISTERS == 32 ? 6 : 3;
}

struct Finish {
    const float *bias;      // (outputs), or null
    const float *residual;  // laid out as the output, or null; never the output itself
    int32_t activation;
};

// Inputs of one part side by side: vector t of input k stands at in + (k * vectors + t) * WIDE. That of output n goes to
// y + n * stride + t * WIDE, the last one to y + n * stride + last (it may lie over the one before); before the last
// piece, to between + (n * vectors + t) * WIDE.
struct Panel {
    int vectors;
    const float *in;
    float *y;
    int64_t stride, last;
    Finish finish;
    int64_t part;
    float *between;
    bool first_piece, last_piece;  // of the columns
};

#define INLINE inline __attribute__((always_inline))  // so that sums stay in registers

template <int R, int T>
struct Sums {
    typename Lanes<WIDE>::Vec at[R][T];
};

template <int R, int T>
INLINE void begin(const Panel &p, Sums<R, T> &sum, int64_t n, int64_t rows) {
    if (!p.first_piece) {
        const float *before = p.between + n * T * WIDE;
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 16
            for (int t = 0; t < T; t++) sum.at[r][t] = load<WIDE>(before + (r * T + t) * WIDE);
        return;
    }
    const float *bias = p.finish.bias;
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        const auto b = Lanes<WIDE>::splat(bias && r < rows ? bias[n + r] : 0.0f);
#pragma GCC unroll 16
        for (int t = 0; t < T; t++) sum.at[r][t] = b;
    }
}

template <int R, int T>
INLINE void add_column(const float *x, const float *w, Sums<R, T> &sum) {
    typename Lanes<WIDE>::Vec v[T];
#pragma GCC unroll 16
    for (int t = 0; t < T; t++) v[t] = load<WIDE>(x + t * WIDE);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        const auto b = Lanes<WIDE>::splat(w[r]);
#pragma GCC unroll 16
        for (int t = 0; t < T; t++) sum.at[r][t] += b * v[t];
    }
}

// Independent sums, enough to hide the latency of a multiply-add (4 cycles, 2 a cycle).
template <int R, int T>
constexpr int independent() {
    return R * T >= 6 ? 1 : R * T >= 4 ? 2 : 4;
}

// Columns [index, end), their weights `height` apart.
template <int R, int T>
INLINE void multiply(const float *in, const uint16_t *index, const uint16_t *end, const float *w, int64_t height, Sums<R, T> &sum) {
    constexpr int U = independent<R, T>();
    constexpr int64_t STEP = T * WIDE;
    if constexpr (U > 1) {
        Sums<R, T> more[U - 1] = {};
        for (; index + U <= end; index += U, w += U * height) {
            add_column<R, T>(in + *index * STEP, w, sum);
#pragma GCC unroll 4
            for (int u = 1; u < U; u++) add_column<R, T>(in + index[u] * STEP, w + u * height, more[u - 1]);
        }
#pragma GCC unroll 4
        for (int u = 1; u < U; u++)
            for (int r = 0; r < R; r++)
                for (int t = 0; t < T; t++) sum.at[r][t] += more[u - 1].at[r][t];
    }
    for (; index < end; index++, w += height) add_column<R, T>(in + *index * STEP, w, sum);
}

// GELU, and fewer rows than R.
template <int R, int T>
__attribute__((noinline)) void end_any(const Panel &p, const Sums<R, T> &sum, int64_t n, int rows) {
    for (int r = 0; r < rows; r++)
        for (int t = 0; t < T; t++) {
            const int64_t to = (n + r) * p.stride + (t + 1 < T ? t * WIDE : p.last);
            auto v = sum.at[r][t];
            if (p.finish.residual) v += load<WIDE>(p.finish.residual + to);
            store<WIDE>(p.y + to, activate<WIDE>(v, p.finish.activation));
        }
}

// The usual ends unrolled, so that the sums need not leave their registers.
template <int R, int T, bool RESIDUAL>
INLINE void put(const Panel &p, const Sums<R, T> &sum, int64_t n) {
    const auto zero = Lanes<WIDE>::splat(0.0f);
    const int64_t stride = p.stride, last = p.last;
    const bool positive = p.finish.activation == RELU;
    float *y = p.y + n * stride;
    const float *other = RESIDUAL ? p.finish.residual + n * stride : y;
#pragma GCC unroll 8
    for (int r = 0; r < R; r++, y += stride, other += stride)
#pragma GCC unroll 16
        for (int t = 0; t < T; t++) {
            const int64_t at = t + 1 < T ? t * WIDE : last;
            auto v = sum.at[r][t];
            if (RESIDUAL) v += load<WIDE>(other + at);
            if (positive) v = v < zero ? zero : v;
            store<WIDE>(y + at, v);
        }
}

template <int R, int T>
INLINE void end(const Panel &p, Sums<R, T> &sum, int64_t n, int64_t rows) {
    if (!p.last_piece) {
        float *between = p.between + n * T * WIDE;
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 16
            for (int t = 0; t < T; t++) store<WIDE>(between + (r * T + t) * WIDE, sum.at[r][t]);
        return;
    }
    if (rows < R || p.finish.activation == GELU) {
        const Sums<R, T> copy = sum;
        return end_any<R, T>(p, copy, n, static_cast<int>(std::min<int64_t>(R, rows)));
    }
    if (p.finish.residual) return put<R, T, true>(p, sum, n);
    put<R, T, false>(p, sum, n);
}

// Columns [from, to) of one row block, R outputs at a time.
template <int R, int T>
INLINE void run_columns(const Rows &w, const Panel &p, int64_t block, int64_t from, int64_t to) {
    const int64_t height = w.height;
    for (int64_t r = 0; r < height; r += R) {
        const int64_t n = block * height + r, rows = w.outputs - n;
        if (rows <= 0) break;
        Sums<R, T> sum;
        begin<R, T>(p, sum, n, rows);
        multiply<R, T>(p.in, w.index + from, w.index + to, w.value + from * height + r, height, sum);
        end<R, T>(p, sum, n, rows);
    }
}

// Row blocks [from, to).
template <int R, int T>
void run_panel(const Rows &w, Panel p, int64_t from, int64_t to) {
    constexpr int64_t PIECE = 96;  // columns whose inputs and weights stay in the nearest cache while R outputs at a time pass
    constexpr int64_t MOST = 64;   // outputs of a column that is cut
    p.first_piece = p.part == 0, p.last_piece = p.part + 1 == w.parts;
    for (int64_t block = from; block < to; block++) {
        const int64_t first = w.start[block * w.parts + p.part], count = w.start[block * w.parts + p.part + 1] - first;
        if (R == 1 || w.parts > 1 || w.height == R || w.height > MOST || count <= PIECE) {
            run_columns<R, T>(w, p, block, first, first + count);
            continue;
        }
        float between[MOST * T * WIDE];
        Panel q = p;
        q.between = between - block * w.height * T * WIDE;
        const int64_t pieces = (count + PIECE - 1) / PIECE;
        for (int64_t i = 0; i < pieces; i++) {
            q.first_piece = i == 0, q.last_piece = i + 1 == pieces;
            run_columns<R, T>(w, q, block, first + count * i / pieces, first + count * (i + 1) / pieces);
        }
    }
}

template <int R, int T>
void run_panel_of(const Rows &w, const Panel &p, int64_t from, int64_t to) {
    if (p.vectors == T) return run_panel<R, T>(w, p, from, to);
    if constexpr (T > 1) run_panel_of<R, T - 1>(w, p, from, to);
}

inline int Rows::most() const { return height % 4 == 0 ? panel_vectors<4>() : panel_vectors<1>(); }

inline void Rows::run(const Panel &p, int64_t from, int64_t to) const {
    if (height % 4 == 0)
        run_panel_of<4, panel_vectors<4>()>(*this, p, from, to);
    else
        run_panel_of<1, panel_vectors<1>()>(*this, p, from, to);
}
