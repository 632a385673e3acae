// Layers of binary weights, on fp32 inputs or (linear ones) on the signs of the inputs.
#include "layers.hpp"
#include "signs.hpp"

namespace {

// Both sides by their signs: the sum is inputs - 2 * (bits that differ).
struct Popcount {
    Signs w;
    Finish finish;
    const float *x;
    float *y;
    int64_t rows, slices;
    uint32_t *bits;
    bool packing;

    void run(int64_t task, int) const {
        for (int64_t m = rows * task / slices; packing && m < rows * (task + 1) / slices; m++) pack(m);
        const int64_t from = w.outputs * task / slices, to = w.outputs * (task + 1) / slices;
        for (int64_t m = 0; !packing && m < rows; m++)
            for (int64_t n = from; n < to; n++) multiply(m, n);
    }

    void pack(int64_t m) const {
        const float *line = x + m * w.inputs;
        for (int64_t word = 0; word < w.words; word++) {
            uint32_t b = 0;
            for (int64_t i = 0; i < std::min<int64_t>(32, w.inputs - 32 * word); i++) b |= uint32_t(line[32 * word + i] >= 0) << i;
            bits[m * w.words + word] = b;
        }
    }

    void multiply(int64_t m, int64_t n) const {
        const uint32_t *a = bits + m * w.words, *b = w.bits + n * w.words;
        int64_t differ = 0, word = 0;
        for (; word + 2 <= w.words; word += 2) {
            uint64_t both[2];
            std::memcpy(&both[0], a + word, 8), std::memcpy(&both[1], b + word, 8);
            differ += __builtin_popcountll(both[0] ^ both[1]);
        }
        if (word < w.words) differ += __builtin_popcount(a[word] ^ b[word]);
        const int64_t to = m * w.outputs + n;
        float v = float(w.inputs - 2 * differ) * w.scale[n] + (finish.bias ? finish.bias[n] : 0.0f);
        if (finish.residual) v += finish.residual[to];
        y[to] = activate(v, finish.activation);
    }
};

}  // namespace

API int64_t pp_binary_linear_work(const Signs *w, int64_t rows, int32_t threads) { return linear_work(*w, rows, threads); }

API void pp_binary_linear(const Signs *w, const Finish *finish, const float *x, float *y, int64_t rows, void *work,
                          int32_t threads) {
    if (rows > 0) linear(*w, *finish, x, y, rows, work, threads);
}

API int64_t pp_binary_conv_work(const Signs *w, const Geometry *g, int32_t threads) { return conv_work(*w, *g, threads); }

API void pp_binary_conv(const Signs *w, const Geometry *g, const Finish *finish, const float *x, float *y, int64_t images,
                        void *work, int32_t threads) {
    conv(*w, *g, *finish, x, y, images, work, threads);
}

API int64_t pp_popcount_work(const Signs *w, int64_t rows) { return 4 * padded(rows * w->words); }

// Bits behind the last input must be 0 in the weights.
API void pp_popcount(const Signs *w, const Finish *finish, const float *x, float *y, int64_t rows, void *work, int32_t threads) {
    Popcount job = {*w, *finish, x, y, rows, threads, static_cast<uint32_t *>(work), true};
    start(threads, threads, job);
    job.packing = false;
    start(threads, threads, job);
}
