// Threads of this process: made when they are first needed, and anew in a process that was forked, for they stayed behind.
#pragma once

#include <memory>

#include "thread_pool.h"

#if defined(_WIN32)
#include <process.h>
#define getpid _getpid
#else
#include <unistd.h>
#endif

namespace mv {

class ForkSafePool {
   public:
    explicit ForkSafePool(int threads) : threads_(threads) {}
    ~ForkSafePool() {
        if (owner_ != getpid()) pool_.release();  // its threads are another process's
    }
    ForkSafePool(const ForkSafePool&) = delete;
    ForkSafePool& operator=(const ForkSafePool&) = delete;

    int threads() const { return threads_; }
    // For one thread at a time.
    ThreadPool& get() {
        if (owner_ != getpid()) {
            pool_.release();
            pool_ = std::make_unique<ThreadPool>(threads_);
            owner_ = getpid();
        }
        return *pool_;
    }

   private:
    const int threads_;
    std::unique_ptr<ThreadPool> pool_;
    int owner_ = 0;
};

}  // namespace mv
