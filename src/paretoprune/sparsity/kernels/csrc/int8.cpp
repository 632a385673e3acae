// Layers of 16 x 4 blocks of signed 8-bit weights, activations quantized on the way in.
#include "abi.hpp"
#include "conv.hpp"
#include "quantize.hpp"
#include "transpose.hpp"

namespace {

struct Int8 {
    int64_t outputs, inputs;     // inputs: blocks of four that an index may name
    const int32_t *start;        // (row blocks of 16, + 1)
    const uint16_t *index;       // (blocks)
    const Dot4::Weight *value;   // (blocks, 64)
    const int32_t *total;        // (outputs, up to 16): zero point times the sum of an output's weights
    const float *scale;          // (likewise): of the activation times that of the weight
};

struct Requantize {  // y = clamp(round(v * inverse) + zero, 0, 255); or fp32 where inverse is 0
    float inverse;
    int32_t zero;
};

constexpr int64_t TILE = 96;  // positions that all weights pass together
constexpr int64_t BATCH = 192;  // rows of a linear layer that are quantized before they are multiplied

struct Job {
    Int8 w;
    Geometry g;
    Finish finish;
    Scale in;
    Requantize out;
    const float *x;
    void *y;
    int32_t *table;
    Dot4::Act *q;
    int64_t whole, high, wide, out_wide, positions, tiles, parts, slices;
    bool quantizing, rows;
    std::atomic<int32_t> *bad;

    void run(int64_t task, int) {
        if (quantizing) {
            const int64_t lines = rows ? positions : g.high, from = lines * task / slices, to = lines * (task + 1) / slices;
            if (rows ? quantize_rows(from, to) : quantize_lines(from, to)) bad->store(1);
            return;
        }
        const int64_t tile = task / parts, part = task % parts, blocks = divided_up(w.outputs, 16);
        const int64_t first = positions * tile / tiles, last = positions * (tile + 1) / tiles;
        const Dot4::Act *starts[TILE];
        for (int64_t p = first; p < last; p++) starts[p - first] = at(p);
        for (int64_t b = blocks * part / parts; b < blocks * (part + 1) / parts; b++) block(b, starts, first, last - first);
    }

    bool quantize_rows(int64_t from, int64_t to) const {
        bool found = false;
        for (int64_t i = from; i < to; i++) found |= quantize_line(x + i * g.channels, g.channels, whole, in, q + i * whole);
        return found;
    }

    // Lines of the image; without zeros beside it they are one.
    bool quantize_lines(int64_t from, int64_t to) const {
        const int64_t at_once = wide == g.wide ? to - from : 1;
        bool found = false;
        for (int64_t h = from; h < to; h += at_once) {
            Dot4::Act *line = q + ((h + g.pad_top) * wide + g.pad_left) * whole;
            found |= quantize_pixels(x + h * g.wide, g.high * g.wide, g.channels, at_once * g.wide, whole, in, line);
        }
        return found;
    }

    const Dot4::Act *at(int64_t position) const {
        if (rows) return q + position * whole;
        const int64_t oy = position / out_wide, ox = position % out_wide;
        return q + (oy * g.stride_high * wide + ox * g.stride_wide) * whole;
    }

    template <int R>
    void multiply(int64_t b, const Dot4::Act *const *starts, int32_t *to) const {
        const Dot4::Act *x[R];
        for (int r = 0; r < R; r++) x[r] = starts[r];
        Dot4::Sum sum[R];
        const Dot4::Weight *value = w.value + int64_t(w.start[b]) * 64;
        for (int64_t j = w.start[b]; j < w.start[b + 1]; j++, value += 64) Dot4::add<R>(sum, x, table[w.index[j]], value);
        for (int r = 0; r < R; r++) sum[r].store(to + 16 * r);
    }

    template <int R>
    void multiply_some(int64_t count, int64_t b, const Dot4::Act *const *starts, int32_t *to) const {
        if (count == R) return multiply<R>(b, starts, to);
        if constexpr (R > 1) multiply_some<R - 1>(count, b, starts, to);
    }

    // Sixteen outputs at `count` positions from `first` on.
    void block(int64_t b, const Dot4::Act *const *starts, int64_t first, int64_t count) const {
        alignas(64) int32_t sums[TILE * 16];
        alignas(64) float tile[TILE * 16];
        for (int64_t p = 0; p < count; p += Dot4::ROWS)
            multiply_some<Dot4::ROWS>(std::min<int64_t>(Dot4::ROWS, count - p), b, starts + p, sums + 16 * p);
        const int64_t n = 16 * b, outputs = std::min<int64_t>(16, w.outputs - n);
        float bias[16] = {};
        if (finish.bias) std::memcpy(bias, finish.bias + n, sizeof(float) * outputs);
        for (int64_t p = 0; p < count; p++)
            for (int o = 0; o < 16; o++)
                tile[16 * p + o] = float(sums[16 * p + o] - w.total[n + o]) * w.scale[n + o] + bias[o];
        if (rows) {
            for (int64_t p = 0; p < count; p++) end(tile + 16 * p, (first + p) * w.outputs + n, outputs);
            return;
        }
        alignas(64) float turned[16 * TILE];
        const bool real = out.inverse == 0;
        float *to = real ? static_cast<float *>(y) + n * positions + first : turned;
        const int64_t step = real ? positions : TILE;
        transpose(tile, 16, count, outputs, to, step);
        for (int64_t o = 0; o < outputs; o++) end(to + o * step, (n + o) * positions + first, count);
    }

    // A run of finished sums to its place, where it may be already.
    void end(float *v, int64_t at, int64_t count) const {
        if (finish.residual)
            for (int64_t i = 0; i < count; i++) v[i] += finish.residual[at + i];
        activate_all(v, count, finish.activation);
        if (out.inverse == 0) {
            float *to = static_cast<float *>(y) + at;
            if (v != to) std::memcpy(to, v, sizeof(float) * count);
            return;
        }
        const Scale s = {out.inverse, out.zero};
        for (int64_t j = 0; j < count; j++) static_cast<uint8_t *>(y)[at + j] = static_cast<uint8_t>(quantized(v[j], s));
    }

    int32_t start_both(int threads) {
        std::atomic<int32_t> any{0};
        bad = &any;
        tiles = divided_up(positions, TILE);
        parts = tiles >= threads ? 1 : std::min(divided_up(threads, tiles), divided_up(w.outputs, 16));
        slices = std::min<int64_t>(threads, rows ? positions : g.high);
        quantizing = true;
        start(threads, slices, *this);
        quantizing = false;
        if (any.load()) return 1;
        start(threads, tiles * parts, *this);
        return 0;
    }
};

int64_t four(int64_t channels) { return (channels + 3) / 4 * 4; }

Job job_of(const Int8 &w, const Geometry &g) {
    Job job = {};
    job.w = w, job.g = g, job.whole = four(g.channels);
    job.high = g.high + g.pad_top + g.pad_bottom, job.wide = g.wide + g.pad_left + g.pad_right;
    job.out_wide = (job.wide - g.kernel_wide) / g.stride_wide + 1;
    job.positions = ((job.high - g.kernel_high) / g.stride_high + 1) * job.out_wide;
    return job;
}

void lay(Job &job, void *work) {
    job.table = static_cast<int32_t *>(work);
    job.q = reinterpret_cast<Dot4::Act *>(job.table + padded(job.w.inputs));
}

}  // namespace

// 1: weights as 16-bit pairs, 0: as bytes (see Dot4).
API int32_t pp_int8_pairs() { return Dot4::PAIRS; }

API int64_t pp_int8_linear_work(const Int8 *w, int64_t rows) {
    return 4 * padded(w->inputs) + sizeof(Dot4::Act) * 4 * w->inputs * std::min(rows, BATCH) + 64;
}

// 0, or 1 where an input is not finite: the output is then not to be used.
API int32_t pp_int8_linear(const Int8 *w, const Scale *in, const Requantize *out, const Finish *finish, int64_t channels,
                           const float *x, void *y, int64_t rows, void *work, int32_t threads) {
    Job job = {};
    job.w = *w, job.finish = *finish, job.out = *out, job.in = *in;
    job.g.channels = channels, job.whole = four(channels), job.rows = true;
    lay(job, work);
    for (int64_t k = 0; k < w->inputs; k++) job.table[k] = static_cast<int32_t>(4 * k);
    for (int64_t m = 0; m < rows; m += BATCH) {
        job.positions = std::min(BATCH, rows - m);
        job.x = x + m * channels;
        const int64_t done = m * w->outputs;
        job.y = out->inverse == 0 ? static_cast<void *>(static_cast<float *>(y) + done) : static_cast<uint8_t *>(y) + done;
        if (finish->residual) job.finish.residual = finish->residual + done;
        if (job.start_both(threads)) return 1;
    }
    return 0;
}

API int64_t pp_int8_conv_work(const Int8 *w, const Geometry *g) {
    const Job job = job_of(*w, *g);
    return 4 * padded(w->inputs) + sizeof(Dot4::Act) * job.high * job.wide * job.whole + 64;
}

API int32_t pp_int8_conv(const Int8 *w, const Geometry *g, const Scale *in, const Requantize *out, const Finish *finish,
                         const float *x, void *y, int64_t images, void *work, int32_t threads) {
    Job job = job_of(*w, *g);
    job.finish = *finish, job.out = *out, job.in = *in;
    lay(job, work);
    int32_t *entry = job.table;
    for (int64_t i = 0; i < g->kernel_high; i++)
        for (int64_t j = 0; j < g->kernel_wide; j++)
            for (int64_t c = 0; c < job.whole; c += 4) *entry++ = static_cast<int32_t>((i * job.wide + j) * job.whole + c);
    if (job.high > g->high || job.wide > g->wide)
        std::fill(job.q, job.q + job.high * job.wide * job.whole, static_cast<Dot4::Act>(in->zero));
    for (int64_t i = 0; i < images; i++) {
        const int64_t done = i * w->outputs * job.positions;
        job.x = x + i * g->channels * g->high * g->wide;
        job.y = out->inverse == 0 ? static_cast<void *>(static_cast<float *>(y) + done) : static_cast<uint8_t *>(y) + done;
        if (finish->residual) job.finish.residual = finish->residual + done;
        if (job.start_both(threads)) return 1;
    }
    return 0;
}
