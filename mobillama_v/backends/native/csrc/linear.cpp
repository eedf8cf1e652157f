#include "linear.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>

#include "model.h"

namespace {

constexpr int kBits = 8;
constexpr int kVectorsAtOnce = 256;  // vectors that are quantized before the threads meet
constexpr int kUnitPanels = 4;       // of a unit of work, whose sums stay in the first-level cache until they have their bias
constexpr int kUnitRows = kUnitPanels * mv::kRows;

int checked_threads(int threads) {
    if (threads < 1 || threads > 256)
        mv::fail("threads is " + std::to_string(threads) + " and must be between 1 and 256");
    return threads;
}

}  // namespace

mv_thread_pool::mv_thread_pool(int threads, const char* path)
    : path(mv::choose_path(path)),
      pool_(checked_threads(threads)),
      scratch_(static_cast<size_t>(threads)) {
    for (mv::ThreadScratch& scratch : scratch_)
        scratch.sums = mv::Buffer<float>(size_t{mv::kTokenTile} * kUnitRows, false);
}

void mv_thread_pool::reserve(int columns) {
    if (columns <= columns_) return;
    columns_ = 0;  // until all of it is there
    const size_t all = size_t{kVectorsAtOnce} * columns;
    values_ = mv::Buffer<int8_t>(all, false);
    scales_ = mv::Buffer<float>(all / mv::kBlock, false);
    sums_ = mv::Buffer<int32_t>(all / mv::kBlock, false);
    for (mv::ThreadScratch& scratch : scratch_) scratch.row = mv::Buffer<float>(columns, false);
    columns_ = columns;
}

void mv_thread_pool::linear(const mv_span& weights, int rows, int columns, const float* bias, const float* x, int count,
                            float* y) {
    if (rows < 1 || columns < 1 || rows > 1 << 20 || columns > 1 << 20)
        mv::fail("a layer of " + std::to_string(rows) + " rows and " + std::to_string(columns) + " columns");
    mv::Matrix matrix;
    matrix.data = static_cast<const uint8_t*>(weights.data);
    matrix.panels = mv::round_up(rows, mv::kRows) / mv::kRows;
    matrix.blocks = mv::round_up(columns, mv::kBlock) / mv::kBlock;
    const uint64_t bytes = uint64_t{1} * matrix.panels * matrix.blocks * mv::tile_bytes(kBits);
    if (matrix.data == nullptr || weights.bytes != bytes)
        mv::fail("a layer's weights have " + std::to_string(weights.bytes) + " bytes and must have " +
                 std::to_string(bytes));
    if (count < 0) mv::fail("there are " + std::to_string(count) + " vectors");
    if (count == 0) return;

    std::lock_guard<mv::ForkSafeMutex> lock(mutex_);
    mv::ThreadPool& pool = pool_.get();
    reserve(matrix.blocks * mv::kBlock);
    const int threads = pool_.threads(), padded = matrix.blocks * mv::kBlock;
    const int groups = (matrix.panels + kUnitPanels - 1) / kUnitPanels;
    const auto at = [&](int vector) {  // of those that are together
        const size_t skip = static_cast<size_t>(vector) * matrix.blocks;
        return mv::Activations{values_.get() + skip * mv::kBlock, scales_.get() + skip, sums_.get() + skip, nullptr};
    };
    const auto quantize = [&](mv::ThreadScratch& scratch, const float* from, int vector) {
        if (padded != columns) {
            std::copy_n(from, columns, scratch.row.get());
            std::fill(scratch.row.get() + columns, scratch.row.get() + padded, 0.0f);
            from = scratch.row.get();
        }
        path.kernels->quantize(from, nullptr, 0.0f, padded, 0, matrix.blocks, false, at(vector));
    };
    const size_t group_bytes = mv::tile_bytes(kBits) * matrix.blocks * kUnitPanels;
    // Panels [group * kUnitPanels, ...) of `some` vectors from `first`, of which number 0 is the layer's `start`.
    const auto unit = [&](mv::ThreadScratch& scratch, int start, int first, int some, int group) {
        const int row = group * kUnitRows, width = std::min(kUnitRows, rows - row);
        const mv::Matrix part{matrix.data + group * group_bytes, std::min(kUnitPanels, matrix.panels - group * kUnitPanels),
                              matrix.blocks, false};
        float* sums = scratch.sums.get();
        path.kernels->product(kBits, part, at(first), some, sums, kUnitRows, false, 0, part.panels);
        for (int t = 0; t < some; t++) {
            const float* sum = sums + t * kUnitRows;
            float* out = y + static_cast<size_t>(start + first + t) * rows + row;
            if (bias == nullptr) {
                std::copy_n(sum, width, out);
            } else {
                for (int i = 0; i < width; i++) out[i] = sum[i] + bias[row + i];
            }
        }
    };
    // Units are numbered through the whole layer and taken by whoever is free: threads meet twice for kVectorsAtOnce vectors,
    // and one that is held up by other programs leaves its share to the rest.
    std::atomic<int64_t> next{0};
    pool.run([&](int thread) {
        mv::ThreadScratch& scratch = scratch_[static_cast<size_t>(thread)];
        int64_t mine = next.fetch_add(1, std::memory_order_relaxed), begin = 0;
        for (int start = 0; start < count; start += kVectorsAtOnce) {
            const int here = std::min(kVectorsAtOnce, count - start);
            for (int v = here * thread / threads; v < here * (thread + 1) / threads; v++)
                quantize(scratch, x + static_cast<size_t>(start + v) * columns, v);
            pool.barrier();
            const int tiles = (here + mv::kTokenTile - 1) / mv::kTokenTile;
            const int64_t end = begin + int64_t{1} * tiles * groups;
            for (; mine < end; mine = next.fetch_add(1, std::memory_order_relaxed)) {
                const int tile = static_cast<int>((mine - begin) / groups);
                const int first = tile * mv::kTokenTile;
                unit(scratch, start, first, std::min(mv::kTokenTile, here - first), static_cast<int>((mine - begin) % groups));
            }
            begin = end;
            if (start + kVectorsAtOnce < count) pool.barrier();
        }
    });
}
