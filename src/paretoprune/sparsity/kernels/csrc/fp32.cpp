// The plain C interface of the fp32 kernels. Arguments are checked by the caller (layers.py), indices by packing.py.
#include "abi.hpp"
#include "across.hpp"
#include "layers.hpp"

namespace {

struct Few {
    Rows w;
    Finish finish;
    const float *x;
    float *y;
    int64_t rows, parts;

    // A block's weights stay in the nearest cache while the rows pass.
    void run(int64_t part, int) const {
        const int64_t blocks = row_blocks(w), from = blocks * part / parts, to = blocks * (part + 1) / parts;
        const int64_t step = rows > MOST_ROWS ? 1 : std::max<int64_t>(to - from, 1);
        for (int64_t b = from; b < to; b += step) run_rows(0, rows, b, std::min(b + step, to));
    }

    void run_rows(int64_t m, int64_t end, int64_t from, int64_t to) const {
        const bool vectors = w.height % 4 == 0;
        while (m < end) {
            const int64_t group = vectors ? std::min<int64_t>(MOST_ROWS, end - m) : 1;
            Finish f = finish;
            if (f.residual) f.residual += m * w.outputs;
            if (vectors)
                run_across(static_cast<int>(group), w, x + m * w.inputs, y + m * w.outputs, f, from, to);
            else
                run_dots(w, x + m * w.inputs, y + m * w.outputs, f, from, to);
            m += group;
        }
    }
};

// Side by side unless there are too few rows to fill vectors.
bool few(const Rows &w, int64_t rows) {
    if (w.height % 16 == 0) return rows < 2 * MOST_ROWS;
    return w.height % 4 == 0 ? rows < WIDE / 2 : rows < 3;
}

}  // namespace

// Bytes of one input in a panel.
API int64_t pp_panel_bytes(const Rows *w) { return sizeof(float) * WIDE * w->most(); }

API int64_t pp_linear_work(const Rows *w, int64_t rows, int32_t threads) {
    return few(*w, rows) ? 0 : linear_work(*w, rows, threads);
}

API void pp_linear(const Rows *w, const Finish *finish, const float *x, float *y, int64_t rows, void *work, int32_t threads) {
    if (rows == 0) return;
    if (!few(*w, rows)) return linear(*w, *finish, x, y, rows, work, threads);
    Few job = {*w, *finish, x, y, rows, std::min<int64_t>(threads, row_blocks(*w))};
    start(threads, job.parts, job);
}

API int64_t pp_conv_work(const Rows *w, const Geometry *g, int32_t threads) { return conv_work(*w, *g, threads); }

API void pp_conv(const Rows *w, const Geometry *g, const Finish *finish, const float *x, float *y, int64_t images, void *work,
                 int32_t threads) {
    conv(*w, *g, *finish, x, y, images, work, threads);
}
