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

// Channels of a part; of linear layers, inputs.
template <class W>
int64_t part_first(const W &w, int64_t part, int64_t channels) {
    return divided_up(part * channels, w.parts);
}

// Floats of a panel's memory: of the inputs of a part, of sums between the parts, and of CHUNK finished outputs.
template <class W>
struct Room {
    int64_t in, between, out;

    Room(const W &w, int64_t channels, int64_t taps, int most) {
        const int64_t wide = int64_t(most) * WIDE, height = w.height;
        in = padded(divided_up(channels, w.parts) * taps * wide);
        between = w.parts > 1 ? padded(row_blocks(w) * height * wide) : 0;
        out = padded(std::max(W::CHUNK, height) * wide);
    }
    int64_t all() const { return in + between + out; }
};

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

    Room<W> room() const { return {w, w.inputs, 1, most}; }

    void run(int64_t task, int thread) {
        const int64_t panel = task / parts, part = task % parts, blocks = row_blocks(w);
        const int64_t from = blocks * part / parts, to = blocks * (part + 1) / parts;
        const int64_t vectors = divided_up(rows, WIDE), first = panel * vectors / panels * WIDE;
        const int64_t last = std::min((panel + 1) * vectors / panels * WIDE, rows), count = last - first;
        const int64_t width = divided_up(count, WIDE) * WIDE;
        const Room<W> size = room();
        float *in = work + thread * size.all(), *between = in + size.in, *out = between + size.between;
        const Finish inside = {finish.bias, nullptr, finish.residual ? NONE : finish.activation};
        Panel p = {static_cast<int>(width / WIDE), nullptr, nullptr, width, width - WIDE, inside, 0, between, true, true};
        for (p.part = 0; p.part < w.parts; p.part++) {
            const int64_t begin = part_first(w, p.part, w.inputs), end = part_first(w, p.part + 1, w.inputs);
            gather(x + first * w.inputs + begin, count, end - begin, width, in);
            p.in = in - begin * width;
            if (p.part + 1 < w.parts) {
                w.run(p, from, to);
                continue;
            }
            in_chunks(w, from, to, [&](int64_t a, int64_t b) {
                const int64_t n = a * w.height, outputs = std::min(b * w.height, w.outputs) - n;
                p.y = out - n * width;
                w.run(p, a, b);
                transpose(out, width, outputs, count, y + first * w.outputs + n, w.outputs);
                if (finish.residual) finish_rows(first, count, n, outputs);
            });
        }
    }

    // Rows become columns; what is missing to a whole vector is zero.
    void gather(const float *from, int64_t count, int64_t inputs, int64_t width, float *in) const {
        if (count < width)
            for (int64_t k = 0; k < inputs; k++) std::fill(in + k * width + count, in + (k + 1) * width, 0.0f);
        transpose(from, w.inputs, count, inputs, in, width);
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

    Room<W> room() const { return {w, g.channels, g.kernel_high * g.kernel_wide, most}; }

    void run(int64_t task, int thread) {
        if (copying) return view.copy(g, x, image, g.channels * task / copies, g.channels * (task + 1) / copies);
        const int64_t panel = task / parts, part = task % parts, blocks = row_blocks(w);
        const int64_t from = blocks * part / parts, to = blocks * (part + 1) / parts;
        const int64_t first = panel * vectors / panels, count = (panel + 1) * vectors / panels - first;
        const int64_t taps = g.kernel_high * g.kernel_wide, width = count * WIDE;
        const Room<W> size = room();
        float *in = work + thread * size.all(), *between = in + size.in, *out = between + size.between;
        const int64_t last = view.start(first + count - 1) - first * WIDE;
        Panel p = {static_cast<int>(count), nullptr, y + first * WIDE, view.pixels, last, finish, 0, between, true, true};
        const bool few = view.pixels < WIDE;
        if (few) p.stride = WIDE, p.finish = {finish.bias, nullptr, finish.residual ? NONE : finish.activation};
        else if (finish.residual) p.finish.residual += first * WIDE;
        for (p.part = 0; p.part < w.parts; p.part++) {
            const int64_t begin = part_first(w, p.part, g.channels) * taps, end = part_first(w, p.part + 1, g.channels) * taps;
            view.gather(view.copied ? image : x, table + begin, end - begin, first, p.vectors, in);
            p.in = in - begin * width;
            if (!few || p.part + 1 < w.parts) {
                w.run(p, from, to);
                continue;
            }
            in_chunks(w, from, to, [&](int64_t a, int64_t b) {
                p.y = out - a * w.height * WIDE;
                w.run(p, a, b);
                for (int64_t n = a * w.height; n < std::min(b * w.height, w.outputs); n++) move_out(p.y + n * WIDE, n);
            });
        }
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
    return 4 * threads * linear_of(w, rows, threads).room().all();
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
    return 4 * (padded(w.inputs) + padded(job.view.elements) + threads * job.room().all());
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
