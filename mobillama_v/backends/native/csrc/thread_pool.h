// Threads that are made once and do every step together.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace mv {

// A job is run by all threads at once, the caller being number 0; within a job they meet at barriers. Workers wait for
// the next job by spinning for about as long as a token is sampled, and then sleep.
class ThreadPool {
   public:
    explicit ThreadPool(int threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    template <typename Job>
    void run(const Job& job) {
        run_erased([](const void* that, int thread) { (*static_cast<const Job*>(that))(thread); }, &job);
    }
    // Waits until all threads of the job are here; what they wrote before is seen by all after.
    void barrier();

   private:
    using Entry = void (*)(const void* job, int thread);
    void run_erased(Entry entry, const void* job);
    void work(int thread);
    void end();

    const int threads_;
    Entry entry_ = nullptr;
    const void* job_ = nullptr;
    // Apart, for the threads that spin on one not to slow those that write another.
    alignas(64) std::atomic<uint32_t> number_{0};  // of the job
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<uint32_t> passed_{0};  // barriers
    alignas(64) std::atomic<bool> stop_{false};
    int sleeping_ = 0;  // guarded by mutex_
    std::mutex mutex_;
    std::condition_variable wake_;
    std::vector<std::thread> workers_;
};

}  // namespace mv
