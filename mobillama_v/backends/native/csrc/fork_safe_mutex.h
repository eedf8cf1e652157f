// A mutex for which a fork waits: the process that is made finds it free, and whole what it guards.
#pragma once

#include <mutex>

namespace mv {

class ForkSafeMutex {
   public:
    ForkSafeMutex();
    ~ForkSafeMutex();
    ForkSafeMutex(const ForkSafeMutex&) = delete;
    ForkSafeMutex& operator=(const ForkSafeMutex&) = delete;

    void lock() { mutex_.lock(); }
    void unlock() { mutex_.unlock(); }

   private:
    std::mutex mutex_;
};

}  // namespace mv
