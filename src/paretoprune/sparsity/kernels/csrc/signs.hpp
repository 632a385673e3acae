// Binary weights: +1 or -1 by bit, one scale for an output.
//
// Four inputs have sixteen signed sums. They are made once for a panel of positions, and every output then adds one of
// them for each four bits: a quarter of the additions, and no multiplication.
#pragma once
#include "panel.hpp"

struct Signs {
    int64_t outputs, inputs;
    int64_t words;          // 32-bit words of an output's line
    const uint32_t *bits;   // (outputs, words), first input lowest; what stands behind the last input is not used
    const float *scale;     // (outputs)

    static constexpr int64_t height = 1, parts = 1;
    static constexpr int T = LANES == 4 ? 4 : 2;
    static constexpr int64_t OUTPUTS = 256, CHUNK = OUTPUTS;  // whose sums stay in the nearest cache
    typedef typename Lanes<WIDE>::Vec Vec;
    struct Sixteen {
        Vec at[16][T];
    };

    int most() const { return T; }

    void run(const Panel &p, int64_t from, int64_t to) const {
        for (int64_t n = from; n < to; n += OUTPUTS) run_some(p, n, std::min(n + OUTPUTS, to));
    }

   private:
    void run_some(const Panel &p, int64_t from, int64_t to) const {
        Vec sum[OUTPUTS][T];
        std::fill(&sum[0][0], &sum[0][0] + (to - from) * T, Vec{});
        Sixteen sums[8];
        for (int64_t word = 0; word < words; word++) {
            const int64_t groups = std::min<int64_t>(8, (inputs - 32 * word + 3) / 4);
            for (int64_t g = 0; g < groups; g++) make(p, 32 * word + 4 * g, sums[g]);
            for (int64_t n = from; n < to; n++) add(bits[n * words + word], groups, sums, sum[n - from]);
        }
        for (int64_t n = from; n < to; n++) put(p, n, sum[n - from]);
    }

    static void add(uint32_t bits, int64_t groups, const Sixteen *sums, Vec (&sum)[T]) {
        if (groups == 8) {
#pragma GCC unroll 8
            for (int g = 0; g < 8; g++)
                for (int t = 0; t < T; t++) sum[t] += sums[g].at[bits >> 4 * g & 15][t];
            return;
        }
        for (int64_t g = 0; g < groups; g++)
            for (int t = 0; t < T; t++) sum[t] += sums[g].at[bits >> 4 * g & 15][t];
    }

    void make(const Panel &p, int64_t k, Sixteen &sums) const {
        for (int t = 0; t < T; t++) {
            Vec x[4] = {};
            for (int i = 0; i < 4 && k + i < inputs && t < p.vectors; i++) x[i] = load<WIDE>(p.in + ((k + i) * p.vectors + t) * WIDE);
            for (int s = 0; s < 16; s++)
                sums.at[s][t] = ((s & 1 ? x[0] : -x[0]) + (s & 2 ? x[1] : -x[1])) + ((s & 4 ? x[2] : -x[2]) + (s & 8 ? x[3] : -x[3]));
        }
    }

    void put(const Panel &p, int64_t n, const Vec (&sum)[T]) const {
        const Vec by = Lanes<WIDE>::splat(scale[n]), bias = Lanes<WIDE>::splat(p.finish.bias ? p.finish.bias[n] : 0.0f);
        for (int t = 0; t < p.vectors; t++) {
            const int64_t to = n * p.stride + (t + 1 < p.vectors ? t * WIDE : p.last);
            Vec v = sum[t] * by + bias;
            if (p.finish.residual) v += load<WIDE>(p.finish.residual + to);
            store<WIDE>(p.y + to, activate<WIDE>(v, p.finish.activation));
        }
    }
};
