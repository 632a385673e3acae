// What the files that export functions share.
#pragma once
#include "pool.hpp"

#define API extern "C" __attribute__((visibility("default")))

inline int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t padded(int64_t words) { return divided_up(words, 16) * 16; }  // to 64 bytes

// job.run(task, thread) for every task.
template <class Job>
void start(int threads, int64_t tasks, Job &job) {
    pool().run(threads, tasks, [](void *job, int64_t task, int thread) { static_cast<Job *>(job)->run(task, thread); }, &job);
}
