// What the processor can do at best: the roof that benchmarks/sparse_kernels.py measures kernels against.
#include "abi.hpp"
#include "lanes.hpp"

// `rounds` times 12 vectors of multiply-adds that never leave their registers. Returns how many multiply-adds it did.
API int64_t pp_peak(int64_t rounds) {
    typedef Lanes<LANES>::Vec Vec;
    Vec sum[12] = {}, x = Lanes<LANES>::splat(0.999f), y = Lanes<LANES>::splat(0.001f);
    for (int64_t i = 0; i < rounds; i++) {
#pragma GCC unroll 12
        for (int k = 0; k < 12; k++) {
            sum[k] = sum[k] * x + y;
#if defined(__AVX512F__)
            asm volatile("" : "+v"(sum[k]));
#elif defined(__AVX2__) && !defined(AS_AVX512)
            asm volatile("" : "+x"(sum[k]));
#endif
        }
    }
    Vec total = {};
#pragma GCC unroll 12
    for (int k = 0; k < 12; k++) total += sum[k];
    return total[0] < 0 ? 0 : rounds * 12 * LANES;
}

// Reads `floats` once, a multiple of 8 vectors. Returns something that depends on all of them.
API float pp_read(const float *x, int64_t floats) {
    typedef Lanes<LANES>::Vec Vec;
    Vec sum[8] = {};
    for (int64_t i = 0; i + 8 * LANES <= floats; i += 8 * LANES)
        for (int k = 0; k < 8; k++) sum[k] += load<LANES>(x + i + k * LANES);
    Vec total = {};
    for (int k = 0; k < 8; k++) total += sum[k];
    return total[0];
}
