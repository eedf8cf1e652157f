// Threads of this process: made when they are first needed, and anew in a process that was forked, for they stayed behind.
#pragma once

#include <memory>

#include "pool.h"

#if defined(_WIN32)
#include <process.h>
#define getpid _getpid
#else
#include <unistd.h>
#endif

namespace mv {

class OwnPool {
   public:
    explicit OwnPool(int threads) : threads_(threads) {}
    ~OwnPool() {
        if (owner_ != getpid()) pool_.release();  // its threads are another process's
    }
    OwnPool(const OwnPool&) = delete;
    OwnPool& operator=(const OwnPool&) = delete;

    int threads() const { return threads_; }
    // For one thread at a time.
    Pool& get() {
        if (owner_ != getpid()) {
            pool_.release();
            pool_ = std::make_unique<Pool>(threads_);
            owner_ = getpid();
        }
        return *pool_;
    }

   private:
    const int threads_;
    std::unique_ptr<Pool> pool_;
    int owner_ = 0;
};

}  // namespace mv
