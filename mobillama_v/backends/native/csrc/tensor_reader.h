// The tensors of a model, one after another, each of exactly the size that it must have.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>

#include "buffer.h"
#include "engine.h"
#include "kernels.h"
#include "model.h"

namespace mv {

// Throws what fail() throws unless `value` is from `least` to `most`.
inline void within(const char* name, int64_t value, int64_t least, int64_t most) {
    if (value < least || value > most)
        fail(std::string(name) + " is " + std::to_string(value) + " and must be between " + std::to_string(least) + " and " +
             std::to_string(most));
}

class TensorReader {
   public:
    TensorReader(const mv_span* spans, int count) : spans_(spans), count_(count) {}

    const mv_span& next() {
        if (at_ >= count_) fail("there are only " + std::to_string(count_) + " tensors");
        return spans_[at_++];
    }
    const void* next(uint64_t bytes) {
        const mv_span& span = next();
        if (span.data == nullptr || span.bytes != bytes)
            fail("tensor " + std::to_string(at_ - 1) + " has " + std::to_string(span.bytes) + " bytes and must have " +
                 std::to_string(bytes));
        return span.data;
    }
    Matrix matrix(int bits, int rows, int columns) {
        Matrix m;
        m.panels = round_up(rows, kRows) / kRows;
        m.blocks = round_up(columns, kBlock) / kBlock;
        m.data = static_cast<const uint8_t*>(next(uint64_t{1} * m.panels * m.blocks * tile_bytes(bits)));
        return m;
    }
    // Padded with zeros to whole blocks.
    Buffer<float> floats(int width) {
        Buffer<float> out(round_up(width, kBlock));
        std::memcpy(out.get(), next(uint64_t{4} * width), sizeof(float) * width);
        return out;
    }
    void end() const {
        if (at_ != count_) fail("there are " + std::to_string(count_ - at_) + " tensors too many");
    }

   private:
    const mv_span* spans_;
    int count_, at_ = 0;
};

}  // namespace mv
