// Linear layers outside the decoder, those of the image tower and the projector: y = W x + b for many x at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "buffer.h"
#include "engine.h"
#include "kernels.h"
#include "fork_safe_mutex.h"
#include "fork_safe_pool.h"

namespace mv {

// Scratch memory of one thread.
struct ThreadScratch {
    Buffer<float> row;   // one vector, padded to whole blocks
    Buffer<float> sums;  // of a unit of work
};

}  // namespace mv

// Threads and activation buffers that all layers of a process share.
struct mv_thread_pool {
    mv_thread_pool(int threads, const char* path);

    // One call at a time; checks the weights' size, and throws what fail() throws, or std::bad_alloc.
    void linear(const mv_span& weights, int rows, int columns, const float* bias, const float* x, int count, float* y);

    const mv::KernelPath& path;

   private:
    void reserve(int columns);

    mv::ForkSafePool pool_;
    mv::ForkSafeMutex mutex_;
    std::vector<mv::ThreadScratch> scratch_;  // one a thread
    mv::Buffer<int8_t> values_;    // activations of kVectorsAtOnce vectors
    mv::Buffer<float> scales_;
    mv::Buffer<int32_t> sums_;
    int columns_ = 0;  // that the buffers are made for
};
