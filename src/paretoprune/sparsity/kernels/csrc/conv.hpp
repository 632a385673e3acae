// Convolution of channels-first images by panels of pixels; a linear layer of rows by panels of rows laid side by side.
#pragma once
#include "abi.hpp"
#include "panel.hpp"

struct Geometry {  // one image; all in elements. dilation 1, one group
    int64_t channels, high, wide;
    int64_t kernel_high, kernel_wide, stride_high, stride_wide, pad_top, pad_left, pad_bottom, pad_right;
};

// The image as panels are gathered from it: itself, or a copy with its zeros around it, parted into stride x stride
// phases so that neighbouring outputs read neighbouring inputs.
struct View {
    int64_t out_high, out_wide, phase_high, phase_wide, pixels;  // pixels: of the output
    int64_t elements;  // floats of the copy with slack behind it
    bool copied;

    explicit View(const Geometry &g) {
        out_high = (g.high + g.pad_top + g.pad_bottom - g.kernel_high) / g.stride_high + 1;
        out_wide = (g.wide + g.pad_left + g.pad_right - g.kernel_wide) / g.stride_wide + 1;
        const bool plain = g.kernel_high == 1 && g.kernel_wide == 1 && g.stride_high == 1 && g.stride_wide == 1 &&
                           g.pad_top + g.pad_left + g.pad_bottom + g.pad_right == 0;
        if (plain) out_wide *= out_high, out_high = 1;
        pixels = out_high * out_wide;
        copied = !plain;
        phase_high = plain ? 1 : divided_up(g.high + g.pad_top + g.pad_bottom, g.stride_high);
        phase_wide = plain ? out_wide : divided_up(g.wide + g.pad_left + g.pad_right, g.stride_wide);
        elements = copied ? g.channels * phases(g) * phase_high * phase_wide + 4 * WIDE : 0;
    }

    // The last vector ends with the last pixel.
    int64_t start(int64_t vector) const { return std::max<int64_t>(std::min(vector * WIDE, pixels - WIDE), 0); }
    int64_t at(int64_t pixel) const { return pixel / out_wide * phase_wide + pixel % out_wide; }

    // T vectors of pixels from vector `first` on, of `inputs` inputs: to in[input][vector].
    template <int T>
    void gather(const float *from, const int32_t *table, int64_t inputs, int64_t first, float *in) const {
        typedef typename Lanes<WIDE>::Vec Vec;
        const int64_t gap = phase_wide - out_wide;
        const float *x[T];
        decltype(Vec{} < Vec{}) one[T], two[T];  // lanes of the first line, of the first two
        int64_t breaks[T];
        for (int t = 0; t < T; t++) {
            const int64_t q = start(first + t), column = q % out_wide;
            x[t] = from + at(q), breaks[t] = (column + WIDE - 1) / out_wide;
            for (int i = 0; i < WIDE; i++)
                one[t][i] = column + i < out_wide ? -1 : 0, two[t][i] = column + i < 2 * out_wide ? -1 : 0;
        }
        for (int64_t k = 0; k < inputs; k++, in += T * WIDE)
#pragma GCC unroll 16
            for (int t = 0; t < T; t++) {
                const float *at = x[t] + table[k];
                Vec v = load<WIDE>(at);
                if (breaks[t] > 0) {
                    v = one[t] ? v : load<WIDE>(at + gap);
                    if (breaks[t] > 1) v = two[t] ? v : load<WIDE>(at + 2 * gap);
                }
                store<WIDE>(in + t * WIDE, v);
            }
    }

    // Lines so short that a vector may hold more than three, and fewer pixels than a vector has.
    void gather_any(const float *from, const int32_t *table, int64_t inputs, int64_t first, int count, float *in) const {
        int64_t pixel[12 * WIDE];
        for (int i = 0; i < count * WIDE; i++) pixel[i] = at(std::min(start(first + i / WIDE) + i % WIDE, pixels - 1));
        for (int64_t k = 0; k < inputs; k++, in += count * WIDE)
            for (int i = 0; i < count * WIDE; i++) in[i] = from[table[k] + pixel[i]];
    }

    template <int T = 12>
    void gather(const float *from, const int32_t *table, int64_t inputs, int64_t first, int count, float *in) const {
        if (2 * out_wide < WIDE || pixels < WIDE) return gather_any(from, table, inputs, first, count, in);
        if (count == T) return gather<T>(from, table, inputs, first, in);
        if constexpr (T > 1) gather<T - 1>(from, table, inputs, first, count, in);
    }

    // Of the stride x stride phases those that the kernel reads: of a 1x1 kernel one.
    static int64_t used_high(const Geometry &g) { return std::min(g.stride_high, g.kernel_high); }
    static int64_t used_wide(const Geometry &g) { return std::min(g.stride_wide, g.kernel_wide); }
    static int64_t phases(const Geometry &g) { return used_high(g) * used_wide(g); }

    // Inputs are numbered by channel, kernel line, kernel column: those of a part stand together.
    void fill_table(const Geometry &g, int32_t *table) const {
        const int64_t plane = phase_high * phase_wide;
        for (int64_t c = 0; c < g.channels; c++)
            for (int64_t i = 0; i < g.kernel_high; i++)
                for (int64_t j = 0; j < g.kernel_wide; j++) {
                    const int64_t phase = (i % g.stride_high) * used_wide(g) + j % g.stride_wide;
                    const int64_t tap = phase * plane + (i / g.stride_high) * phase_wide + j / g.stride_wide;
                    *table++ = static_cast<int32_t>(c * phases(g) * plane + tap);
                }
    }

    // Channels [from, to) of one image.
    void copy(const Geometry &g, const float *x, float *into, int64_t from, int64_t to) const {
        const int64_t plane = phase_high * phase_wide, each = phases(g) * plane;
        std::memset(into + from * each, 0, sizeof(float) * (to - from) * each);
        for (int64_t c = from; c < to; c++)
            for (int64_t h = 0; h < g.high; h++) {
                const int64_t ph = h + g.pad_top, stride = g.stride_wide;
                if (ph % g.stride_high >= used_high(g)) continue;
                const float *line_in = x + (c * g.high + h) * g.wide;
                float *line_out = into + c * each + (ph % g.stride_high) * used_wide(g) * plane +
                                  (ph / g.stride_high) * phase_wide;
                if (stride == 1) {
                    std::memcpy(line_out + g.pad_left, line_in, sizeof(float) * g.wide);
                    continue;
                }
                for (int64_t j = 0; j < used_wide(g); j++) {
                    const int64_t first = ((j - g.pad_left) % stride + stride) % stride;
                    float *to = line_out + j * plane + (first + g.pad_left) / stride;
                    for (int64_t w = first; w < g.wide; w += stride) *to++ = line_in[w];
                }
            }
    }
};
