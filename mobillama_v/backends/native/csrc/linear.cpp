#include "linear.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <string>

#include "model.h"
#include "units.h"

namespace {

constexpr int kVectorsAtOnce = 256;  // vectors that are quantized before the threads meet

int checked_threads(int threads) {
    if (threads < 1 || threads > 256)
        mv::fail("threads is " + std::to_string(threads) + " and must be between 1 and 256");
    return threads;
}

}  // namespace

mv::Weights mv::checked_weights(const mv_span& span, int rows, int columns) {
    if (rows < 1 || columns < 1 || rows > 1 << 20 || columns > 1 << 20)
        fail("a layer of " + std::to_string(rows) + " rows and " + std::to_string(columns) + " columns");
    Weights out;
    out.data = static_cast<const uint8_t*>(span.data);
    out.panels = round_up(rows, kRows) / kRows;
    out.blocks = round_up(columns, kBlock) / kBlock;
    const uint64_t tiles = uint64_t{1} * out.panels * out.blocks;
    out.bits = span.bytes == tiles * tile_bytes(16) ? 16 : 8;
    if (out.data == nullptr || span.bytes != tiles * tile_bytes(out.bits))
        fail("a layer's weights have " + std::to_string(span.bytes) + " bytes and must have " +
             std::to_string(tiles * tile_bytes(8)) + " or " + std::to_string(tiles * tile_bytes(16)));
    return out;
}

mv_thread_pool::mv_thread_pool(int threads, const char* name)
    : path(mv::choose_path(name)), pool(checked_threads(threads)), scratch_(static_cast<size_t>(threads)) {
    for (mv::ThreadScratch& scratch : scratch_) scratch.sums = mv::Buffer<float>(mv::kUnitSums, false);
}

void mv_thread_pool::linear(const mv_span& span, int rows, int columns, const float* bias, const float* x, int count,
                            float* y) {
    const mv::Weights weights = mv::checked_weights(span, rows, columns);
    if (count < 0) mv::fail("there are " + std::to_string(count) + " vectors");
    if (count == 0) return;

    std::lock_guard<mv::ForkSafeMutex> lock(mutex);
    mv::ThreadPool& threads = pool.get();
    const bool floats = weights.bits == 16;
    const int padded = weights.blocks * mv::kBlock, all = pool.threads();
    mv::ActivationBuffer& inputs = inputs_[floats];
    if (padded > columns_[floats]) {
        columns_[floats] = 0;  // until all of it is there
        inputs = mv::ActivationBuffer(kVectorsAtOnce, padded, floats);
        for (mv::ThreadScratch& scratch : scratch_)
            scratch.row = mv::Buffer<float>(std::max(padded, columns_[!floats]), false);
        columns_[floats] = padded;
    }
    const auto quantize = [&](mv::ThreadScratch& scratch, const float* from, int vector) {
        if (padded != columns) {
            std::copy_n(from, columns, scratch.row.get());
            std::fill(scratch.row.get() + columns, scratch.row.get() + padded, 0.0f);
            from = scratch.row.get();
        }
        path.kernels->quantize(from, nullptr, 0.0f, padded, 0, weights.blocks, floats, inputs.at(vector, weights.blocks));
    };
    std::atomic<int64_t> next{0};
    threads.run([&](int thread) {
        mv::ThreadScratch& scratch = scratch_[static_cast<size_t>(thread)];
        mv::UnitTaker taker(next);
        for (int start = 0; start < count; start += kVectorsAtOnce) {
            const int here = std::min(kVectorsAtOnce, count - start);
            for (int v = here * thread / all; v < here * (thread + 1) / all; v++)
                quantize(scratch, x + static_cast<size_t>(start + v) * columns, v);
            threads.barrier();
            mv::multiply(taker, *path.kernels, weights.bits, weights, inputs.at(0, weights.blocks), here, scratch.sums.get(),
                         [&](int vector, int row, const float* sums) {
                             const int width = std::min(mv::kUnitRows, rows - row);
                             float* out = y + static_cast<size_t>(start + vector) * rows + row;
                             for (int i = 0; i < width; i++) out[i] = bias == nullptr ? sums[i] : sums[i] + bias[row + i];
                         });
            if (start + kVectorsAtOnce < count) threads.barrier();
        }
    });
}
