// Linear layers outside the decoder, those of the image tower and the projector: y = W x + b for many x at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "activations.h"
#include "buffer.h"
#include "engine.h"
#include "fork_safe_mutex.h"
#include "fork_safe_pool.h"
#include "kernels.h"

namespace mv {

// Scratch memory of one thread.
struct ThreadScratch {
    Buffer<float> row;   // one vector, padded to whole blocks
    Buffer<float> sums;  // of a unit of work
};

// A matrix with 8 or 16 bits.
struct Weights : Matrix {
    int bits = 0;
};
// The bits follow from the size; throws what fail() throws where it is neither's.
Weights checked_weights(const mv_span& span, int rows, int columns);

}  // namespace mv

// Threads and activation buffers that all layers of a process share.
struct mv_thread_pool {
    mv_thread_pool(int threads, const char* path);

    // One call at a time; checks the weights' size, and throws what fail() throws, or std::bad_alloc.
    void linear(const mv_span& weights, int rows, int columns, const float* bias, const float* x, int count, float* y);

    const mv::KernelPath& path;
    mv::ForkSafePool pool;    // guarded by `mutex`
    mv::ForkSafeMutex mutex;

   private:
    std::vector<mv::ThreadScratch> scratch_;  // one a thread
    mv::ActivationBuffer inputs_[2];          // of kVectorsAtOnce vectors: quantized, fp32
    int columns_[2] = {0, 0};                 // that they are made for
};
