// What a model and a sequence hold, for those who make them and for those who run them.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "activations.h"
#include "buffer.h"
#include "engine.h"
#include "kernels.h"
#include "fork_safe_mutex.h"
#include "fork_safe_pool.h"

namespace mv {

constexpr int kChunk = 128;     // positions that pass a layer together
constexpr int kCountersPerLayer = 4;  // of a layer, whose pieces threads take as they come to them where there are many tokens

// Ends a call of the C interface with a message.
[[noreturn]] void fail(const std::string& message);

struct Layer {
    Matrix qkv, out;
    Buffer<float> bias;     // of qkv, or null
    Buffer<float> qk_norm;  // of queries, then of keys, or null
    Buffer<float> attention_norm, ffn_norm;
};
struct Ffn {
    Matrix gate_up, down;
};
struct TokenSlot {
    mv_sequence* sequence;
    int position;
};
// Pieces of a job that have been taken.
struct alignas(64) Counter {
    std::atomic<int> taken{0};
};
struct QueryGroup {  // queries of one sequence that attend together
    int first, count;
};

}  // namespace mv

struct mv_sequence {
    mv_model* model;
    int capacity, length = 0;
    uint64_t call = 0;  // the last that it was part of
    mv::Buffer<uint8_t> memory;
    // Of `positions` of one head: bytes of its keys (its values are as large), and of one scale each. Scales, keys and values
    // follow one another in the order in which they are read, as one head follows another.
    inline size_t key_bytes(int positions) const;
    inline size_t scale_bytes(int positions) const;
    size_t head_bytes() const { return 2 * (key_bytes(capacity) + scale_bytes(capacity)); }
    inline mv::HeadCache head(int layer, int head) const;
};

struct mv_model {
    mv_config config;
    // A head; all heads; padded to whole blocks, the model's width and all heads; a row of qkv; rows of logits, padded.
    int width, queries, hidden, attention, q_stride, vocab;
    const mv::KernelPath& path;
    const uint16_t* embeddings;
    mv::Matrix head;
    mv::Buffer<float> norm;
    std::vector<mv::Ffn> ffns;
    std::vector<mv::Layer> layers;
    mv::Buffer<uint8_t> resident;  // the shared network's own copy
    uint64_t streamed = 0, cached = 0;

    mv::Buffer<float> cosines, sines;                     // [context, width / 2]
    mv::Buffer<float> x, qkv, attended, gate_up, scores;  // of a chunk; scores a thread
    // Inputs of the matrices. `inner` are those that are made while `inputs` are read: what attention gives, and what goes
    // on inside the feed-forward network.
    mv::ActivationBuffer inputs, inner;
    std::vector<mv::TokenSlot> slots;
    std::vector<mv::QueryGroup> groups;
    std::unique_ptr<mv::Counter[]> counters;  // mv::kCountersPerLayer a layer

    mv::ForkSafeMutex mutex;
    mv::ForkSafePool threads;
    uint64_t calls = 0;

    explicit mv_model(const mv_config& c) : config(c), path(mv::choose_path(c.path)), threads(c.threads) {
        config.path = path.name;  // the caller's goes with the call
    }
};

inline size_t mv_sequence::key_bytes(int positions) const {
    return static_cast<size_t>(mv::round_up(positions, 8)) * model->width * (model->config.bits == 16 ? 2 : 1);
}
inline size_t mv_sequence::scale_bytes(int positions) const {
    return model->config.bits == 16 ? 0 : sizeof(float) * mv::round_up(positions, 8);
}
inline mv::HeadCache mv_sequence::head(int layer, int head) const {
    uint8_t* first = memory.get() + head_bytes() * (static_cast<size_t>(layer) * model->config.kv_heads + head);
    uint8_t* keys = first + 2 * scale_bytes(capacity);
    uint8_t* values = keys + key_bytes(capacity);
    if (keys == first) return {keys, values, nullptr, nullptr};
    float* scales = reinterpret_cast<float*>(first);
    return {keys, values, scales, scales + mv::round_up(capacity, 8)};
}

namespace mv {

// Checks a configuration and its tensors; throws what fail() throws, or std::bad_alloc.
std::unique_ptr<mv_model> make_model(const mv_config& config, const mv_span* tensors, int count);

// What mv_forward() does, by one thread at a time; a call that throws has changed no sequence.
void forward(mv_model& model, mv_sequence* const* sequences, const int32_t* counts, int count, const float* embeddings,
             const int32_t* tokens, float* logits);

}  // namespace mv
