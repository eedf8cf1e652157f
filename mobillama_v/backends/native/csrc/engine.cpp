// The C interface: what is exported, and exceptions turned into messages.
#include "engine.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>

#include "linear.h"
#include "model.h"
#include "tensor_reader.h"
#include "tower.h"

namespace {

thread_local std::string last_error;

constexpr int kActivated = 1 << 20;  // numbers at once

// Runs f and turns what it throws into mv_error() and `failed`.
template <typename Result, typename F>
Result guarded(Result failed, const F& f) {
    try {
        return f();
    } catch (const std::bad_alloc&) {
        last_error = "there is not enough memory";
    } catch (const std::exception& error) {
        last_error = error.what();
    }
    return failed;
}

}  // namespace

void mv::fail(const std::string& message) { throw std::runtime_error(message); }

extern "C" {

int32_t mv_abi(void) { return MV_ABI; }

const char* mv_error(void) { return last_error.c_str(); }

const char* mv_path_name(int32_t index) {
    const mv::KernelPath* path = mv::supported_path(index);
    return path == nullptr ? nullptr : path->name;
}

mv_model* mv_model_new(const mv_config* config, const mv_span* tensors, int32_t count) {
    return guarded<mv_model*>(nullptr, [&] { return mv::make_model(*config, tensors, count).release(); });
}

void mv_model_free(mv_model* model) { delete model; }

const char* mv_model_path(const mv_model* model) { return model->path.name; }

void mv_model_traffic(const mv_model* model, uint64_t* streamed, uint64_t* cached) {
    *streamed = model->streamed;
    *cached = model->cached;
}

mv_sequence* mv_sequence_new(mv_model* model, int32_t capacity) {
    return guarded<mv_sequence*>(nullptr, [&]() -> mv_sequence* {
        if (capacity < 1 || capacity > model->config.context)
            mv::fail("a sequence of " + std::to_string(capacity) + " positions does not fit a context of " +
                     std::to_string(model->config.context));
        const size_t heads = static_cast<size_t>(model->config.layers) * model->config.kv_heads;
        auto sequence = std::make_unique<mv_sequence>();
        sequence->model = model;
        sequence->capacity = capacity;
        sequence->memory = mv::Buffer<uint8_t>(heads * sequence->head_bytes(), false);
        return sequence.release();
    });
}

void mv_sequence_free(mv_sequence* sequence) { delete sequence; }

int32_t mv_sequence_copy(mv_sequence* sequence, const mv_sequence* source, int32_t length) {
    return guarded<int32_t>(-1, [&] {
        std::lock_guard<mv::ForkSafeMutex> lock(sequence->model->mutex);  // no call appends to the source meanwhile
        if (sequence->model != source->model) mv::fail("a sequence of another model");
        if (sequence->length != 0) mv::fail("only an empty sequence takes what another one has");
        if (length < 0 || length > source->length || length > sequence->capacity)
            mv::fail("there are not " + std::to_string(length) + " positions, or no room for them");
        // Keys lie in groups of eight positions: the last group is taken whole, and what is beyond `length` is not read.
        const mv_config& config = sequence->model->config;
        const size_t bytes = source->key_bytes(length), scales = source->scale_bytes(length);
        for (int layer = 0; layer < config.layers; ++layer)
            for (int head = 0; head < config.kv_heads; ++head) {
                const mv::HeadCache from = source->head(layer, head), to = sequence->head(layer, head);
                std::memcpy(to.keys, from.keys, bytes);
                std::memcpy(to.values, from.values, bytes);
                if (scales == 0) continue;
                std::memcpy(to.key_scales, from.key_scales, scales);
                std::memcpy(to.value_scales, from.value_scales, scales);
            }
        sequence->length = length;
        return 0;
    });
}

int32_t mv_forward(mv_model* model, mv_sequence* const* sequences, const int32_t* counts, int32_t count,
                   const float* embeddings, const int32_t* tokens, float* logits) {
    return guarded<int32_t>(-1, [&] {
        std::lock_guard<mv::ForkSafeMutex> lock(model->mutex);
        mv::forward(*model, sequences, counts, count, embeddings, tokens, logits);
        return 0;
    });
}

mv_thread_pool* mv_thread_pool_new(int32_t threads, const char* path) {
    return guarded<mv_thread_pool*>(nullptr, [&] { return new mv_thread_pool(threads, path); });
}

void mv_thread_pool_free(mv_thread_pool* pool) { delete pool; }

const char* mv_thread_pool_path(const mv_thread_pool* pool) { return pool->path.name; }

int32_t mv_linear(mv_thread_pool* pool, const mv_span* weights, int32_t rows, int32_t columns, const float* bias, const float* x,
                  int32_t count, float* y) {
    return guarded<int32_t>(-1, [&] {
        pool->linear(*weights, rows, columns, bias, x, count, y);
        return 0;
    });
}

int32_t mv_activate(mv_thread_pool* pool, int32_t kind, float* x, int64_t count) {
    return guarded<int32_t>(-1, [&] {
        mv::within("kind", kind, 0, 2);
        const int64_t whole = count / 8 * 8;
        float rest[8] = {};
        for (int64_t at = 0; at < whole; at += kActivated)
            pool->path.kernels->activate(kind, x + at, static_cast<int>(std::min<int64_t>(kActivated, whole - at)));
        if (whole < count) {
            std::memcpy(rest, x + whole, sizeof(float) * (count - whole));
            pool->path.kernels->activate(kind, rest, 8);
            std::memcpy(x + whole, rest, sizeof(float) * (count - whole));
        }
        return 0;
    });
}

mv_tower* mv_tower_new(mv_thread_pool* pool, const mv_tower_config* config, const mv_span* tensors, int32_t count) {
    return guarded<mv_tower*>(nullptr, [&] { return new mv_tower(pool, *config, tensors, count); });
}

void mv_tower_free(mv_tower* tower) { delete tower; }

int32_t mv_tower_encode(mv_tower* tower, const float* pixels, int32_t images, float* features) {
    return guarded<int32_t>(-1, [&] {
        tower->encode(pixels, images, features);
        return 0;
    });
}

}  // extern "C"
