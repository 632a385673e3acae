// The plain C interface of the fp32 kernels. Arguments are checked by the caller (run.py), indices by packing.py.
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

    void run(int64_t part, int) const {
        const int64_t blocks = row_blocks(w), from = blocks * part / parts, to = blocks * (part + 1) / parts;
        const bool vectors = w.height % 4 == 0;
        for (int64_t m = 0; m < rows;) {
            const int64_t group = vectors ? std::min<int64_t>(MOST_ROWS, rows - m) : 1;
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

// Side by side unless there are too few rows to fill a vector, or whole vectors of outputs to be had without moving.
bool few(const Rows &w, int64_t rows) {
    if (w.height % 16 == 0) return true;
    return w.height % 4 == 0 ? rows < WIDE / 2 : rows < 3;
}

}  // namespace

API int32_t pp_lanes() { return WIDE; }

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
