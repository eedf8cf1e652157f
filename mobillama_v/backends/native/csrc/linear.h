// Linear layers outside the decoder, those of the image tower and the projector: y = W x + b for many x at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#include "buffer.h"
#include "engine.h"
#include "kernels.h"
#include "own_pool.h"

namespace mv {

// What a thread computes in.
struct Desk {
    Buffer<float> row;   // one vector, padded to whole blocks
    Buffer<float> sums;  // of a unit of work
};

}  // namespace mv

// Threads, and room for activations, that all layers of a process share.
struct mv_team {
    mv_team(int threads, int path);

    // One call at a time; checks the weights' size, and throws what fail() throws, or std::bad_alloc.
    void linear(const mv_span& weights, int rows, int columns, const float* bias, const float* x, int count, float* y);

    const int path;

   private:
    void make_room(int columns);

    const mv::Kernels& kernels_;
    mv::OwnPool pool_;
    std::mutex mutex_;
    std::vector<mv::Desk> desks_;  // one a thread
    mv::Buffer<int8_t> values_;    // activations of kTogether vectors
    mv::Buffer<float> scales_;
    mv::Buffer<int32_t> sums_;
    int columns_ = 0;  // for which there is room
};
