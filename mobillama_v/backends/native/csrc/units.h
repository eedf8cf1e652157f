// Work that is cut into units, which threads take as they come to them.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include "kernels.h"

namespace mv {

// One thread's way through the work of a job. Units are numbered through all of it, so that a thread that is held up by
// other programs leaves its share to the rest, and nobody has to begin the count anew.
class UnitTaker {
   public:
    explicit UnitTaker(std::atomic<int64_t>& next) : next_(next), mine_(take()) {}
    // Calls f(unit) for those of the next `count` units that this thread gets; every thread must ask for the same.
    template <typename F>
    void run(int64_t count, const F& f) {
        const int64_t end = begin_ + count;
        for (; mine_ < end; mine_ = take()) f(static_cast<int>(mine_ - begin_));
        begin_ = end;
    }

   private:
    int64_t take() { return next_.fetch_add(1, std::memory_order_relaxed); }
    std::atomic<int64_t>& next_;
    int64_t mine_, begin_ = 0;
};

constexpr int kUnitPanels = 4;  // of a product, whose sums stay in the first-level cache until something is made of them
constexpr int kUnitRows = kUnitPanels * kRows;
constexpr size_t kUnitSums = size_t{kTokenTile} * kUnitRows;

// The product of a matrix and `tokens` vectors: calls done(token, row, sums) with kUnitRows sums a call, in `sums`
// [kUnitSums] of this thread. Units of the same rows follow each other, so that weights are read from memory once.
template <typename F>
void multiply(UnitTaker& taker, const Kernels& kernels, int bits, const Matrix& matrix, const Activations& in, int tokens,
              float* sums, const F& done) {
    const int tiles = (tokens + kTokenTile - 1) / kTokenTile;
    const int groups = (matrix.panels + kUnitPanels - 1) / kUnitPanels;
    taker.run(int64_t{1} * tiles * groups, [&](int unit) {
        const int group = unit / tiles, first = unit % tiles * kTokenTile, some = std::min(kTokenTile, tokens - first);
        Matrix part = matrix;
        part.data += tile_bytes(bits) * matrix.blocks * kUnitPanels * group;
        part.panels = std::min(kUnitPanels, matrix.panels - group * kUnitPanels);
        Activations from = in;
        const size_t skip = static_cast<size_t>(first) * matrix.blocks;
        if (bits == 16) {
            from.floats += skip * kBlock;
        } else {
            from.values += skip * kBlock, from.scales += skip, from.sums += skip;
        }
        kernels.product(bits, part, from, some, sums, kUnitRows, false, 0, part.panels);
        for (int t = 0; t < some; t++) done(first + t, group * kUnitRows, sums + t * kUnitRows);
    });
}

}  // namespace mv
