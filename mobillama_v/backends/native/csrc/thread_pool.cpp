#include "thread_pool.h"

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <emmintrin.h>
#endif

// GCC 12 gave waiting a newer version of the same symbol. The old one is in every libstdc++, so that a library that was
// built here also loads on older systems.
#if defined(__GLIBCXX__) && defined(__GLIBC__) && defined(__x86_64__)
__asm__(".symver _ZNSt18condition_variable4waitERSt11unique_lockISt5mutexE,"
        "_ZNSt18condition_variable4waitERSt11unique_lockISt5mutexE@GLIBCXX_3.4.11");
#endif

namespace mv {
namespace {

inline void relax() {
#if defined(__x86_64__) || defined(_M_X64)
    _mm_pause();
#elif defined(__aarch64__) && defined(__GNUC__)
    asm volatile("yield");
#endif
}

// In turns of relax(), some 25 to 50 nanoseconds each: for as long as sampling takes, and for as long as threads with
// like work are apart where each has a processor.
constexpr int kJobSpins = 4000, kBarrierSpins = 400;

// Binds worker `thread` to a processor of its own, where the pool has as many threads as the process has processors.
// With fewer threads, processes that did so would meet on the same ones; and the caller's thread is not ours to bind.
void pin(int thread, int threads) {
#if defined(__linux__)
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0 || CPU_COUNT(&allowed) != threads) return;
    int seen = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &allowed) || seen++ != thread) continue;
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        sched_setaffinity(0, sizeof(one), &one);  // of the thread that asks; pthread's asks for a newer glibc
        return;
    }
#else
    (void)thread, (void)threads;
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads) : threads_(threads) {
    try {
        for (int i = 1; i < threads; i++) workers_.emplace_back(&ThreadPool::work, this, i);
    } catch (...) {  // the system gives no more threads: those that began must end before their object does
        end();
        throw;
    }
}

ThreadPool::~ThreadPool() { end(); }

void ThreadPool::end() {
    stop_.store(true);
    {
        std::lock_guard<std::mutex> lock(mutex_);
        number_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
}

void ThreadPool::run_erased(Entry entry, const void* job) {
    if (threads_ == 1) {
        entry(job, 0);
        return;
    }
    entry_ = entry;
    job_ = job;
    bool asleep;
    {
        std::lock_guard<std::mutex> lock(mutex_);
        number_.fetch_add(1, std::memory_order_release);
        asleep = sleeping_ > 0;
    }
    if (asleep) wake_.notify_all();
    entry(job, 0);
    barrier();  // the job may be gone after this
}

void ThreadPool::barrier() {
    if (threads_ == 1) return;
    const uint32_t before = passed_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
        arrived_.store(0, std::memory_order_relaxed);
        passed_.store(before + 1, std::memory_order_release);
        return;
    }
    for (int spins = 0; passed_.load(std::memory_order_acquire) == before; spins++) {
        // The others may not be running: let them.
        if (spins < kBarrierSpins) {
            relax();
        } else {
            std::this_thread::yield();
        }
    }
}

void ThreadPool::work(int thread) {
    pin(thread, threads_);
    for (uint32_t seen = 0;; seen++) {
        int spins = 0;
        while (number_.load(std::memory_order_acquire) == seen && spins++ < kJobSpins) relax();
        if (number_.load(std::memory_order_acquire) == seen) {
            std::unique_lock<std::mutex> lock(mutex_);
            sleeping_++;
            wake_.wait(lock, [&] { return number_.load(std::memory_order_acquire) != seen; });
            sleeping_--;
        }
        if (stop_.load()) return;
        entry_(job_, thread);
        barrier();
    }
}

}  // namespace mv
