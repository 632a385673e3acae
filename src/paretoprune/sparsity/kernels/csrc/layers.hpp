// Linear layers and convolutions by panels, over any weights W that have `outputs`, `inputs`, `height`, CHUNK, `most()`
// (vectors of a panel) and `run(table, panel, from, to)` over blocks of `height` outputs.
#pragma once
#include "conv.hpp"
#include "transpose.hpp"

template <class W>
int64_t row_blocks(const W &w) {
    return divided_up(w.outputs, w.height);
}

inline int64_t splits(int64_t panels, int threads, int64_t blocks) {
    return panels >= threads ? 1 : std::min(divided_up(threads, panels), std::max<int64_t>(blocks, 1));
}

// Blocks [from, to) in runs of about W::CHUNK outputs, which are moved out of a panel together.
template <class W, class Run>
void in_chunks(const W &w, int64_t from, int64_t to, Run run) {
    const int64_t step = std::max<int64_t>(1, W::CHUNK / w.height);
    for (int64_t b = from; b < to; b += step) run(b, std::min(b + step, to));
}

// y (rows, outputs) = x (rows, inputs) times the weights, rows laid side by side in each thread's own memory.
template <class W>
struct Linear {
    W w;
    Finish finish;
    const float *x;
    float *y;
    int64_t rows, panels, parts;
    int32_t *table;
    float *work;
    int most;

    int64_t width() const { return int64_t(most) * WIDE; }
    int64_t chunk_outputs() const { return std::max(W::CHUNK, int64_t(w.height)); }
    int64_t each_thread() const { return padded(w.inputs * width()) + padded(chunk_outputs() * width()); }

    void run(int64_t task, int thread) {
        const int64_t panel = task / parts, part = task % parts, blocks = row_blocks(w);
        const int64_t vectors = divided_up(rows, WIDE), first = panel * vectors / panels * WIDE;
        const int64_t last = std::min((panel + 1) * vectors / panels * WIDE, rows), count = last - first;
        float *in = work + thread * each_thread(), *out = in + padded(w.inputs * width());
        gather(x + first * w.inputs, count, in);
        Panel p = {static_cast<int>(divided_up(count, WIDE)), {}, {}, nullptr, width(), finish.residual ? Finish{} : finish};
        for (int t = 0; t < p.vectors; t++) p.at[t] = in + t * WIDE, p.to[t] = t * WIDE;
        in_chunks(w, blocks * part / parts, blocks * (part + 1) / parts, [&](int64_t from, int64_t to) {
            const int64_t n = from * w.height, outputs = std::min(to * w.height, w.outputs) - n;
            p.y = out - n * width();
            w.run(table, p, from, to);
            transpose(out, width(), outputs, count, y + first * w.outputs + n, w.outputs);
            if (finish.residual) finish_rows(first, count, n, outputs);
        });
    }

    // Rows become columns; what is missing to a whole vector is zero.
    void gather(const float *from, int64_t count, float *in) const {
        const int64_t whole = divided_up(count, WIDE) * WIDE;
        if (count < whole)
            for (int64_t k = 0; k < w.inputs; k++) std::fill(in + k * width() + count, in + k * width() + whole, 0.0f);
        transpose(from, w.inputs, count, w.inputs, in, width());
    }

    void finish_rows(int64_t first, int64_t count, int64_t n, int64_t outputs) const {
        for (int64_t m = first; m < first + count; m++) {
            float *line = y + m * w.outputs + n;
            if (finish.bias)
                for (int64_t i = 0; i < outputs; i++) line[i] += finish.bias[n + i];
            const float *other = finish.residual + m * w.outputs + n;
            for (int64_t i = 0; i < outputs; i++) line[i] += other[i];
            activate_all(line, outputs, finish.activation);
        }
    }
};

template <class W>
Linear<W> linear_of(const W &w, int64_t rows, int threads) {
    Linear<W> job = {};
    job.w = w, job.rows = rows, job.most = w.most();
    const int64_t vectors = divided_up(rows, WIDE);
    job.most = static_cast<int>(std::min<int64_t>(job.most, std::max<int64_t>(vectors, 1)));
    job.panels = divided_up(vectors, job.most);
    job.parts = splits(job.panels, threads, row_blocks(w));
    return job;
}

// Channels-first images.
template <class W>
struct Conv {
    W w;
    Geometry g;
    View view;
    Finish finish;
    const float *x;
    float *y;
    int64_t panels, parts, vectors, copies;
    int most;
    bool copying;
    int32_t *table;
    float *image, *work;

    int64_t out_pixels() const { return view.out_high * view.out_wide; }
    int64_t per_line() const { return divided_up(view.narrow ? view.pixels : view.out_wide, WIDE); }
    int64_t chunk_outputs() const { return std::max(W::CHUNK, int64_t(w.height)); }
    int64_t each_thread() const { return view.narrow ? padded(chunk_outputs() * most * WIDE) : 0; }

    void run(int64_t task, int thread) {
        if (copying) return view.copy(g, x, image, g.channels * task / copies, g.channels * (task + 1) / copies);
        const int64_t panel = task / parts, part = task % parts, blocks = row_blocks(w);
        const int64_t from = blocks * part / parts, to = blocks * (part + 1) / parts;
        const int64_t first = panel * vectors / panels, last = (panel + 1) * vectors / panels;
        const float *origin = view.copied ? image : x;
        Panel p = {static_cast<int>(last - first), {}, {}, y, out_pixels(), view.narrow ? Finish{} : finish};
        for (int t = 0; t < p.vectors; t++) {
            const int64_t line = (first + t) / per_line(), column = (first + t) % per_line() * WIDE;
            const int64_t at = view.narrow ? column : std::min(column, view.out_wide - WIDE);  // the last one overlaps
            p.at[t] = origin + line * view.line + at;
            p.to[t] = view.narrow ? t * WIDE : line * view.out_wide + at;
        }
        if (!view.narrow) return w.run(table, p, from, to);
        float *out = work + thread * each_thread();
        p.stride = p.vectors * WIDE;
        in_chunks(w, from, to, [&](int64_t a, int64_t b) {
            const int64_t n = a * w.height;
            p.y = out - n * p.stride;
            w.run(table, p, a, b);
            for (int64_t o = n; o < std::min(b * w.height, w.outputs); o++) move_out(p, o, first * WIDE);
        });
    }

    // One output's line of a narrow image: positions between the lines are dropped.
    void move_out(const Panel &p, int64_t n, int64_t first) const {
        const float *line = p.y + n * p.stride, bias = finish.bias ? finish.bias[n] : 0.0f;
        const int64_t last = std::min(first + p.stride, view.pixels);
        for (int64_t q = first; q < last; q++) {
            const int64_t row = q / view.line, column = q % view.line;
            if (column >= view.out_wide) continue;
            const int64_t at = n * out_pixels() + row * view.out_wide + column;
            const float v = line[q - first] + bias + (finish.residual ? finish.residual[at] : 0.0f);
            y[at] = activate(v, finish.activation);
        }
    }
};

template <class W>
Conv<W> conv_of(const W &w, const Geometry &g, int threads) {
    Conv<W> job = {w, g, View(g), {}, nullptr, nullptr, 0, 0, 0, 0, 0, false, nullptr, nullptr, nullptr};
    job.vectors = job.per_line() * (job.view.narrow ? 1 : job.view.out_high);
    job.most = static_cast<int>(std::min<int64_t>(w.most(), job.vectors));
    job.panels = divided_up(job.vectors, job.most);
    job.parts = splits(job.panels, threads, row_blocks(w));
    job.copies = std::min<int64_t>(threads, g.channels);
    return job;
}

// Each call's memory: the table, then (convolution) the copied image, then each thread's own. 64-byte aligned.
template <class W>
int64_t linear_work(const W &w, int64_t rows, int threads) {
    return 4 * (padded(w.inputs) + threads * linear_of(w, rows, threads).each_thread());
}

template <class W>
void linear(const W &w, const Finish &finish, const float *x, float *y, int64_t rows, void *work, int threads) {
    Linear<W> job = linear_of(w, rows, threads);
    job.finish = finish, job.x = x, job.y = y;
    job.table = static_cast<int32_t *>(work), job.work = static_cast<float *>(work) + padded(w.inputs);
    for (int64_t k = 0; k < w.inputs; k++) job.table[k] = static_cast<int32_t>(k * job.width());
    start(threads, job.panels * job.parts, job);
}

template <class W>
int64_t conv_work(const W &w, const Geometry &g, int threads) {
    const Conv<W> job = conv_of(w, g, threads);
    return 4 * (padded(w.inputs) + padded(job.view.elements) + threads * job.each_thread());
}

template <class W>
void conv(const W &w, const Geometry &g, const Finish &finish, const float *x, float *y, int64_t images, void *work,
          int threads) {
    Conv<W> job = conv_of(w, g, threads);
    job.finish = finish;
    job.table = static_cast<int32_t *>(work);
    job.image = static_cast<float *>(work) + padded(w.inputs);
    job.work = job.image + padded(job.view.elements);
    job.view.fill_table(g, job.table);
    const int64_t in = g.channels * g.high * g.wide, out = w.outputs * job.out_pixels();
    for (int64_t i = 0; i < images; i++) {
        job.x = x + i * in, job.y = y + i * out;
        if (finish.residual) job.finish.residual = finish.residual + i * out;
        job.copying = true;
        if (job.view.copied) start(threads, job.copies, job);
        job.copying = false;
        start(threads, job.panels * job.parts, job);
    }
}
