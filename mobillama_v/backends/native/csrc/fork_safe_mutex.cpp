#include "fork_safe_mutex.h"

#include <algorithm>
#include <vector>

#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace mv {
namespace {

// All that there are. It is never freed: a thread may fork while the program ends.
struct Registry {
    std::mutex mutex;
    std::vector<ForkSafeMutex*> all;
};

Registry& registry() {
    static Registry& one = *new Registry;
    return one;
}

#if !defined(_WIN32)
// The thread that forks holds them all at that moment: nobody else is inside a call, whose locks nobody would release in
// the new process. Whoever holds one waits for no other.
void hold_all() {
    registry().mutex.lock();
    for (ForkSafeMutex* each : registry().all) each->lock();
}

void release_all() {
    for (ForkSafeMutex* each : registry().all) each->unlock();
    registry().mutex.unlock();
}
#endif

}  // namespace

ForkSafeMutex::ForkSafeMutex() {
#if !defined(_WIN32)
    static const int once = pthread_atfork(hold_all, release_all, release_all);
    (void)once;
#endif
    std::lock_guard<std::mutex> lock(registry().mutex);
    registry().all.push_back(this);
}

ForkSafeMutex::~ForkSafeMutex() {
    std::lock_guard<std::mutex> lock(registry().mutex);
    auto& all = registry().all;
    all.erase(std::find(all.begin(), all.end(), this));
}

}  // namespace mv
