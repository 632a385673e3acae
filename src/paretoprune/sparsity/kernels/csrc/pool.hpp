// Threads that wait for work between calls. One call at a time; the caller works too.
#pragma once
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <new>
#include <thread>



constexpr int MAX_THREADS = 64;

class Pool {
   public:
    // work(context, task, thread) for every task in [0, tasks).
    typedef void (*Work)(void *context, int64_t task, int thread);

    void run(int threads, int64_t tasks, Work work, void *context) {
        threads = static_cast<int>(std::min<int64_t>(std::min(threads, MAX_THREADS), tasks));
        if (threads <= 1) {
            for (int64_t i = 0; i < tasks; i++) work(context, i, 0);
            return;
        }
        std::lock_guard<std::mutex> only(one_call_);
        grow(threads - 1);
        {
            std::lock_guard<std::mutex> hold(mutex_);
            work_ = work, context_ = context, tasks_ = tasks, next_ = 0;
            wanted_ = threads - 1, busy_ = threads - 1, round_++;
        }
        wake_.notify_all();
        take(0);
        std::unique_lock<std::mutex> hold(mutex_);
        done_.wait(hold, [this] { return busy_ == 0; });
    }

   private:
    void grow(int workers) {
        for (; workers_ < workers; workers_++) std::thread(&Pool::serve, this, workers_ + 1, round_).detach();
    }

    void serve(int me, uint64_t seen) {
        while (true) {
            {
                std::unique_lock<std::mutex> hold(mutex_);
                wake_.wait(hold, [&] { return round_ != seen; });
                seen = round_;
                if (me > wanted_) continue;
            }
            take(me);
            std::lock_guard<std::mutex> hold(mutex_);
            if (--busy_ == 0) done_.notify_one();
        }
    }

    void take(int me) {
        for (int64_t i; (i = next_.fetch_add(1)) < tasks_;) work_(context_, i, me);
    }

    std::mutex one_call_, mutex_;
    std::condition_variable wake_, done_;
    Work work_ = nullptr;
    void *context_ = nullptr;
    int64_t tasks_ = 0;
    std::atomic<int64_t> next_{0};
    int wanted_ = 0, busy_ = 0, workers_ = 0;
    uint64_t round_ = 0;
};

// A forked child has none of its parent's threads: it gets a pool of its own. Pools are never freed, since threads
// wait in them until the process ends.
inline Pool &pool() {
    static std::atomic<Pool *> mine{nullptr};
    static std::atomic<pid_t> owner{0};
    static std::mutex making;
    if (owner.load() != getpid()) {
        std::lock_guard<std::mutex> hold(making);
        if (owner.load() != getpid()) mine.store(new Pool), owner.store(getpid());
    }
    return *mine.load();
}
