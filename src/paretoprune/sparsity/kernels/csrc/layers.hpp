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
    float *work;
    int most;

    int64_t chunk_outputs() const { return std::max(W::CHUNK, int64_t(w.height)); }
    int64_t each_thread() const { return padded(w.inputs * most * WIDE) + padded(chunk_outputs() * most * WIDE); }

    void run(int64_t task, int thread) {
        const int64_t panel = task / parts, part = task % parts, blocks = row_blocks(w);
        const int64_t vectors = divided_up(rows, WIDE), first = panel * vectors / panels * WIDE;
        const int64_t last = std::min((panel + 1) * vectors / panels * WIDE, rows), count = last - first;
        const int64_t width = divided_up(count, WIDE) * WIDE;
        float *in = work + thread * each_thread(), *out = in + padded(w.inputs * most * WIDE);
        gather(x + first * w.inputs, count, width, in);
        const Finish inside = {finish.bias, nullptr, finish.residual ? NONE : finish.activation};
        Panel p = {static_cast<int>(width / WIDE), in, nullptr, width, width - WIDE, inside};
        in_chunks(w, blocks * part / parts, blocks * (part + 1) / parts, [&](int64_t from, int64_t to) {
            const int64_t n = from * w.height, outputs = std::min(to * w.height, w.outputs) - n;
            p.y = out - n * width;
            w.run(p, from, to);
            transpose(out, width, outputs, count, y + first * w.outputs + n, w.outputs);
            if (finish.residual) finish_rows(first, count, n, outputs);
        });
    }

    // Rows become columns; what is missing to a whole vector is zero.
    void gather(const float *from, int64_t count, int64_t width, float *in) const {
        if (count < width)
            for (int64_t k = 0; k < w.inputs; k++) std::fill(in + k * width + count, in + (k + 1) * width, 0.0f);
        transpose(from, w.inputs, count, w.inputs, in, width);
    }

    void finish_rows(int64_t first, int64_t count, int64_t n, int64_t outputs) const {
        for (int64_t m = first; m < first + count; m++) {
            float *line = y + m * w.outputs + n;
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

// Channels-first images. A panel's inputs are laid side by side first (for a k x k kernel: once for every tap).
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

    int64_t chunk_outputs() const { return std::max(W::CHUNK, int64_t(w.height)); }
    int64_t each_thread() const {
        return padded(w.inputs * most * WIDE) + (view.pixels < WIDE ? padded(chunk_outputs() * WIDE) : 0);
    }

    void run(int64_t task, int thread) {
        if (copying) return view.copy(g, x, image, g.channels * task / copies, g.channels * (task + 1) / copies);
        const int64_t panel = task / parts, part = task % parts, blocks = row_blocks(w);
        const int64_t from = blocks * part / parts, to = blocks * (part + 1) / parts;
        const int64_t first = panel * vectors / panels, count = (panel + 1) * vectors / panels - first;
        float *in = work + thread * each_thread(), *out = in + padded(w.inputs * most * WIDE);
        view.gather(view.copied ? image : x, table, w.inputs, first, static_cast<int>(count), in);
        Panel p = {static_cast<int>(count), in, y + first * WIDE, view.pixels, view.start(first + count - 1) - first * WIDE, finish};
        if (view.pixels >= WIDE) {
            if (finish.residual) p.finish.residual += first * WIDE;
            return w.run(p, from, to);
        }
        p.stride = WIDE, p.finish = {finish.bias, nullptr, finish.residual ? NONE : finish.activation};
        in_chunks(w, from, to, [&](int64_t a, int64_t b) {
            p.y = out - a * w.height * WIDE;
            w.run(p, a, b);
            for (int64_t n = a * w.height; n < std::min(b * w.height, w.outputs); n++) move_out(p.y + n * WIDE, n);
        });
    }

    // Images of fewer pixels than a vector has.
    void move_out(float *line, int64_t n) const {
        const int64_t at = n * view.pixels;
        if (finish.residual) {
            for (int64_t q = 0; q < view.pixels; q++) line[q] += finish.residual[at + q];
            activate_all(line, view.pixels, finish.activation);
        }
        std::memcpy(y + at, line, sizeof(float) * view.pixels);
    }
};

template <class W>
Conv<W> conv_of(const W &w, const Geometry &g, int threads) {
    Conv<W> job = {w, g, View(g), {}, nullptr, nullptr, 0, 0, 0, 0, 0, false, nullptr, nullptr, nullptr};
    job.vectors = divided_up(job.view.pixels, WIDE);
    job.most = static_cast<int>(std::min<int64_t>(w.most(), job.vectors));
    job.panels = divided_up(job.vectors, job.most);
    job.parts = splits(job.panels, threads, row_blocks(w));
    job.copies = std::min<int64_t>(threads, g.channels);
    return job;
}

// Each call's memory: of convolutions a table and the copied image, then each thread's own. 64-byte aligned.
template <class W>
int64_t linear_work(const W &w, int64_t rows, int threads) {
    return 4 * threads * linear_of(w, rows, threads).each_thread();
}

template <class W>
void linear(const W &w, const Finish &finish, const float *x, float *y, int64_t rows, void *work, int threads) {
    Linear<W> job = linear_of(w, rows, threads);
    job.finish = finish, job.x = x, job.y = y, job.work = static_cast<float *>(work);
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
    const int64_t in = g.channels * g.high * g.wide, out = w.outputs * job.view.pixels;
    for (int64_t i = 0; i < images; i++) {
        job.x = x + i * in, job.y = y + i * out;
        if (finish.residual) job.finish.residual = finish.residual + i * out;
        job.copying = true;
        if (job.view.copied) start(threads, job.copies, job);
        job.copying = false;
        start(threads, job.panels * job.parts, job);
    }
}
