// Memory for the inputs of matrices.
#pragma once

#include "buffer.h"
#include "kernels.h"

namespace mv {

// Of `tokens` vectors of `columns`, a multiple of kBlock: quantized, or fp32.
struct ActivationBuffer {
    Buffer<int8_t> values;
    Buffer<float> scales, floats;
    Buffer<int32_t> sums;

    ActivationBuffer() = default;
    ActivationBuffer(size_t tokens, size_t columns, bool as_floats) {
        const size_t all = tokens * columns;
        if (as_floats) {
            floats = Buffer<float>(all);
        } else {
            values = Buffer<int8_t>(all);
            scales = Buffer<float>(all / kBlock);
            sums = Buffer<int32_t>(all / kBlock);
        }
    }
    // Where vectors have `blocks`, those from `block` of vector `token` on.
    Activations at(int token, int blocks, int block = 0) const {
        const size_t skip = static_cast<size_t>(token) * blocks + block;
        if (floats.get() != nullptr) return {nullptr, nullptr, nullptr, floats.get() + skip * kBlock};
        return {values.get() + skip * kBlock, scales.get() + skip, sums.get() + skip, nullptr};
    }
};

}  // namespace mv
