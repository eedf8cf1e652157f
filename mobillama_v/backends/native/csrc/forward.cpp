// Runs positions through all layers.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "model.h"

namespace mv {
namespace {

// This thread's part of `tokens` times `items`: calls f(token, from, to).
template <typename F>
void split_evenly(int tokens, int items, int thread, int threads, const F& f) {
    const int64_t all = static_cast<int64_t>(tokens) * items;
    int64_t at = all * thread / threads;
    const int64_t end = all * (thread + 1) / threads;
    while (at < end) {
        const int token = static_cast<int>(at / items), from = static_cast<int>(at % items);
        const int to = static_cast<int>(std::min<int64_t>(items, from + end - at));
        f(token, from, to);
        at += to - from;
    }
}

constexpr int kManyTokens = 16;  // tokens for which a network is computed with rather than read

// Calls f(from, to) for this thread's pieces of `items`. With few tokens they are the same at every call, for the part of the
// shared network that a thread reads may lie in a cache of its processor's own; read by whoever comes first, decoding took
// a tenth longer. With many, processors that are slower because other programs run take fewer pieces.
template <typename F>
void split_work(Counter& counter, int items, int tokens, int thread, int threads, const F& f) {
    if (tokens < kManyTokens) {
        f(items * thread / threads, items * (thread + 1) / threads);
        return;
    }
    const int unit = std::max(1, items / (16 * threads));
    for (int at; (at = counter.taken.fetch_add(unit, std::memory_order_relaxed)) < items;)
        f(at, std::min(at + unit, items));
}

// One thread's work on the chunk of positions in m.slots and m.x. Whoever computes a number, it is computed in the
// same order. Waiting for each other is what threads lose most by, above all where other programs run: what is cheap is
// done by each for itself, and what follows from a thread's own part it does at once.
void run_layers(mv_model& m, ThreadPool& pool, int tokens, int thread) {
    const mv_config& c = m.config;
    const Kernels& k = *m.path.kernels;
    const int threads = c.threads, heads = c.heads, kv_heads = c.kv_heads, width = m.width;
    const bool floats = c.bits == 16;
    const float eps = static_cast<float>(c.eps), query_scale = 1.0f / std::sqrt(static_cast<float>(width));
    const int hidden_blocks = m.hidden / kBlock, attention_blocks = m.attention / kBlock;
    const int padded = round_up(c.context, 8);
    const bool whole_heads = width % kBlock == 0;  // else two heads share a block
    // A thread takes a head from its rows of the matrix to what it attends to, and waits for nobody in between.
    const bool by_heads = width % kRows == 0 && kv_heads % threads == 0;
    float* scores = m.scores.get() + static_cast<size_t>(thread) * kQueries * padded;

    // One token's are made by every thread for itself.
    const bool apart = tokens == 1 && threads <= kChunk;
    const auto normalize = [&](const Buffer<float>& weight) {
        if (apart) {
            k.quantize(m.x.get(), weight.get(), eps, c.hidden, 0, hidden_blocks, floats,
                       m.inputs.at(thread, hidden_blocks));
            return m.inputs.at(thread, hidden_blocks);
        }
        split_evenly(tokens, hidden_blocks, thread, threads, [&](int t, int from, int to) {
            k.quantize(m.x.get() + static_cast<size_t>(t) * m.hidden, weight.get(), eps, c.hidden, from, to, floats,
                       m.inputs.at(t, hidden_blocks));
        });
        pool.barrier();
        return m.inputs.at(0, hidden_blocks);
    };
    const auto product = [&](Counter& counter, const Matrix& matrix, const Activations& in, float* y, size_t stride,
                             bool add) {
        split_work(counter, matrix.panels, tokens, thread, threads,
             [&](int from, int to) { k.product(c.bits, matrix, in, tokens, y, stride, add, from, to); });
        pool.barrier();
    };

    const auto add_bias = [&](int l, float* row, int head) {
        const float* bias = m.layers[l].bias.get();
        for (int i = head * width; bias != nullptr && i < (head + 1) * width; i++) row[i] += bias[i];
    };
    // What `quantize` does to a whole position, for one head's queries or keys.
    const auto normalize_head = [&](float* x, const float* weight) {
        float squares = 0;
        for (int i = 0; i < width; i++) squares += x[i] * x[i];
        const float factor = 1.0f / std::sqrt(squares / static_cast<float>(width) + eps);
        for (int i = 0; i < width; i++) x[i] *= factor * weight[i];
    };
    // Heads [from, to) of a position, counted over queries and keys, which go with their values.
    const auto rotate_and_store = [&](int l, int t, int from, int to) {
        const TokenSlot& slot = m.slots[t];
        float* row = m.qkv.get() + static_cast<size_t>(t) * m.q_stride;
        const float* cosines = m.cosines.get() + static_cast<size_t>(slot.position) * (width / 2);
        const float* sines = m.sines.get() + static_cast<size_t>(slot.position) * (width / 2);
        for (int h = from; h < to; h++) {
            float* vector = row + h * width;  // keys follow the queries, and values the keys
            add_bias(l, row, h);
            if (h >= heads) add_bias(l, row, h + kv_heads);
            if (c.qk_norm) normalize_head(vector, m.layers[l].qk_norm.get() + (h < heads ? 0 : width));
            k.rotate(vector, cosines, sines, width, h < heads ? query_scale : 1.0f);
            if (h >= heads)
                k.store(slot.sequence->head(l, h - heads), slot.position, width, vector, vector + kv_heads * width);
        }
    };
    const auto attend = [&](int l, const QueryGroup& group, int h) {
        const TokenSlot& slot = m.slots[group.first];
        k.attend(slot.sequence->head(l, h / (heads / kv_heads)), slot.position, group.count, width,
                 m.qkv.get() + static_cast<size_t>(group.first) * m.q_stride + h * width, m.q_stride,
                 m.attended.get() + static_cast<size_t>(group.first) * m.attention + h * width, m.attention, scores, padded);
        for (int t = group.first; whole_heads && t < group.first + group.count; t++)
            k.quantize(m.attended.get() + static_cast<size_t>(t) * m.attention, nullptr, 0, m.queries, h * width / kBlock,
                       (h + 1) * width / kBlock, floats, m.inner.at(t, attention_blocks));
    };
    const int queries = heads / kv_heads, head_panels = width / kRows;
    // Heads [kv, to) of keys and values, and the queries that share them, where `by_heads`: from their rows of the matrix on.
    const auto attend_by_heads = [&](int l, const Activations& in, int kv, int to) {
        const auto rows_of = [&](int from, int count) {
            k.product(c.bits, m.layers[l].qkv, in, tokens, m.qkv.get(), m.q_stride, false, from * head_panels,
                      (from + count) * head_panels);
        };
        rows_of(kv * queries, (to - kv) * queries);
        rows_of(heads + kv, to - kv);
        rows_of(heads + kv_heads + kv, to - kv);
        for (int t = 0; t < tokens; t++) {
            rotate_and_store(l, t, kv * queries, to * queries);
            rotate_and_store(l, t, heads + kv, heads + to);
        }
        for (int h = kv * queries; h < to * queries; h++)
            for (const QueryGroup& group : m.groups) attend(l, group, h);
    };

    // Where this thread begins with a layer's weights, if they come from memory.
    const auto first_weights = [&](int l) -> const uint8_t* {
        if (l >= c.layers || !m.layers[l].qkv.stream) return nullptr;
        const Matrix& qkv = m.layers[l].qkv;
        const int panel = by_heads ? kv_heads * thread / threads * queries * head_panels : qkv.panels * thread / threads;
        return qkv.data + tile_bytes(c.bits) * qkv.blocks * panel;
    };

    for (int l = 0; l < c.layers; l++) {
        const Layer& layer = m.layers[l];
        const Ffn& ffn = m.ffns[c.ffn_count == 1 ? 0 : l];
        Counter* counters = &m.counters[static_cast<size_t>(kCountersPerLayer) * l];
        if (by_heads) {
            const Activations normal = normalize(layer.attention_norm);
            split_work(counters[0], kv_heads, tokens, thread, threads,
                 [&](int from, int to) { attend_by_heads(l, normal, from, to); });
        } else {
            product(counters[0], layer.qkv, normalize(layer.attention_norm), m.qkv.get(), m.q_stride, false);
            split_evenly(tokens, heads + kv_heads, thread, threads,
                  [&](int t, int from, int to) { rotate_and_store(l, t, from, to); });
            pool.barrier();
            const int items = static_cast<int>(m.groups.size()) * heads;
            for (int i = thread; i < items; i += threads)  // by turns: later positions take longer
                attend(l, m.groups[i / heads], i % heads);
        }
        pool.barrier();
        if (!whole_heads) {
            split_evenly(tokens, attention_blocks, thread, threads, [&](int t, int from, int to) {
                k.quantize(m.attended.get() + static_cast<size_t>(t) * m.attention, nullptr, 0, m.queries, from, to, floats,
                           m.inner.at(t, attention_blocks));
            });
            pool.barrier();
        }
        product(counters[1], layer.out, m.inner.at(0, attention_blocks), m.x.get(), m.hidden, true);
        const Activations normal = normalize(layer.ffn_norm);
        Matrix gate_up = ffn.gate_up;
        gate_up.next = first_weights(l + 1);
        // Four panels of gate and up make one block of what goes on.
        const size_t stride = static_cast<size_t>(gate_up.panels) * kRows;
        split_work(counters[2], ffn.down.blocks, tokens, thread, threads, [&](int from, int to) {
            k.product(c.bits, gate_up, normal, tokens, m.gate_up.get(), stride, false, 4 * from, 4 * to);
            for (int t = 0; t < tokens; t++)
                k.swiglu(m.gate_up.get() + t * stride, from, to, floats, m.inner.at(t, ffn.down.blocks));
        });
        pool.barrier();
        product(counters[3], ffn.down, m.inner.at(0, ffn.down.blocks), m.x.get(), m.hidden, true);
    }
}

// Logits of the chunk's positions whose rows were moved to the front of m.x.
void run_head(mv_model& m, ThreadPool& pool, int rows, float* logits, int thread) {
    const int threads = m.config.threads, blocks = m.head.blocks;
    split_evenly(rows, blocks, thread, threads, [&](int t, int from, int to) {
        m.path.kernels->quantize(m.x.get() + static_cast<size_t>(t) * m.hidden, m.norm.get(),
                            static_cast<float>(m.config.eps), m.config.hidden, from, to, m.config.bits == 16,
                            m.inputs.at(t, blocks));
    });
    pool.barrier();
    m.path.kernels->product(m.config.bits, m.head, m.inputs.at(0, blocks), rows, logits, m.vocab, false,
                       m.head.panels * thread / threads, m.head.panels * (thread + 1) / threads);
}

void group_queries(mv_model& m, int tokens) {
    m.groups.clear();
    for (int t = 0; t < tokens; t++) {
        if (!m.groups.empty()) {
            QueryGroup& last = m.groups.back();
            if (last.count < kQueries && m.slots[last.first].sequence == m.slots[t].sequence) {
                last.count++;
                continue;
            }
        }
        m.groups.push_back({t, 1});
    }
}

void check_call(mv_model& m, mv_sequence* const* sequences, const int32_t* counts, int count, const float* embeddings,
                const int32_t* tokens, const float* logits) {
    if (count < 1 || sequences == nullptr || counts == nullptr || logits == nullptr) fail("nothing was asked for");
    m.calls++;
    int64_t at = 0;
    for (int i = 0; i < count; i++) {
        mv_sequence* s = sequences[i];
        if (s == nullptr || s->model != &m) fail("a sequence belongs to another model");
        if (s->call == m.calls) fail("a sequence was given twice");
        s->call = m.calls;
        if (counts[i] < 1 || counts[i] > s->capacity - s->length)
            fail("a sequence of " + std::to_string(s->length) + " positions has room for " +
                 std::to_string(s->capacity - s->length) + " more and was given " + std::to_string(counts[i]));
        for (int j = 0; tokens != nullptr && j < counts[i]; j++, at++)
            if (tokens[at] < 0 || tokens[at] >= m.config.vocab)
                fail("token " + std::to_string(tokens[at]) + " is not in a vocabulary of " +
                     std::to_string(m.config.vocab));
    }
    if ((embeddings == nullptr) == (tokens == nullptr)) fail("give either embeddings or tokens");
}

}  // namespace

void forward(mv_model& m, mv_sequence* const* sequences, const int32_t* counts, int count, const float* embeddings,
             const int32_t* tokens, float* logits) {
    check_call(m, sequences, counts, count, embeddings, tokens, logits);
    ThreadPool& pool = m.threads.get();
    const size_t width = static_cast<size_t>(m.config.hidden), row = static_cast<size_t>(m.hidden);
    int sequence = 0, offset = 0;  // the next position
    size_t at = 0;                 // the same, over all sequences
    while (sequence < count) {
        const int first = sequence;
        int filled = 0, ended = 0, ends[kChunk];
        for (; filled < kChunk && sequence < count; filled++, at++) {
            float* x = m.x.get() + filled * row;
            if (embeddings != nullptr) {
                std::memcpy(x, embeddings + at * width, width * sizeof(float));
            } else {
                m.path.kernels->widen(m.embeddings + tokens[at] * width, x, m.config.hidden);
            }
            // Padded rows of a damaged file may have left something here.
            std::fill(x + width, x + row, 0.0f);
            m.slots[filled] = {sequences[sequence], sequences[sequence]->length + offset};
            if (++offset == counts[sequence]) {
                ends[ended++] = filled;
                offset = 0;
                sequence++;
            }
        }
        group_queries(m, filled);
        for (int i = 0; i < kCountersPerLayer * m.config.layers; i++) m.counters[i].taken.store(0, std::memory_order_relaxed);
        pool.run([&](int thread) { run_layers(m, pool, filled, thread); });
        if (ended == 0) continue;
        for (int i = 0; i < ended; i++)
            std::memmove(m.x.get() + i * row, m.x.get() + ends[i] * row, row * sizeof(float));
        float* out = logits + static_cast<size_t>(first) * m.vocab;
        pool.run([&](int thread) { run_head(m, pool, ended, out, thread); });
    }
    for (int i = 0; i < count; i++) sequences[i]->length += counts[i];
}

}  // namespace mv
