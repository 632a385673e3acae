// What this processor can do, in the words of library.py. Compiled for any processor.
extern "C" __attribute__((visibility("default"))) int pp_supports(int set) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    switch (set) {
        case 0: return 1;
        case 1: return avx2;
        case 2: return avx512;
        case 3: return avx512 && __builtin_cpu_supports("avx512vnni");
    }
    return 0;
#else
    return set == 0;
#endif
}
