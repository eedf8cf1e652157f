// Makes a model of what it is given, and checks that first.
#include "model.h"

#include "tensor_reader.h"

#include <algorithm>
#include <cmath>

#if !defined(_WIN32)
#include <unistd.h>
#endif

namespace mv {
namespace {

// Bytes of the last-level cache, which others use too.
uint64_t cache_bytes() {
#if defined(_SC_LEVEL3_CACHE_SIZE)
    const long bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
    if (bytes > 0) return static_cast<uint64_t>(bytes);
#endif
    return uint64_t{16} << 20;
}

void check(const mv_config& c) {
    within("vocab", c.vocab, 1, 1 << 24);
    within("hidden", c.hidden, 8, 1 << 16);
    within("ffn", c.ffn, 1, 1 << 18);
    within("layers", c.layers, 1, 1 << 10);
    within("heads", c.heads, 1, 1 << 16);
    within("head_width", c.head_width, 8, 1 << 10);
    within("kv_heads", c.kv_heads, 1, c.heads);
    within("context", c.context, 1, 1 << 20);
    within("threads", c.threads, 1, 256);
    if (c.bits != 4 && c.bits != 8 && c.bits != 16)
        fail("bits is " + std::to_string(c.bits) + " and must be 4, 8 or 16");
    within("heads together", int64_t{1} * c.heads * c.head_width, 8, 1 << 18);
    if (c.head_width % 8) fail("the width of a head must be a multiple of 8");
    if (c.heads % c.kv_heads) fail("heads must be a multiple of kv_heads");
    if (c.ffn_count != 1 && c.ffn_count != c.layers) fail("ffn_count must be 1 or the number of layers");
    if (!(c.eps >= 0)) fail("eps must be positive");
    within("qkv_bias", c.qkv_bias, 0, 1);
    within("qk_norm", c.qk_norm, 0, 1);
}

// What a token reads decides what may stay in the cache: where everything fits it does; else only what all layers
// share. Half of the cache is left to others.
void plan_traffic(mv_model& m, uint64_t ffn_bytes, uint64_t other_bytes) {
    const bool shared = m.config.ffn_count == 1 && m.config.layers > 1;
    const bool fits = ffn_bytes + other_bytes <= cache_bytes() / 2;
    const bool stream_ffn = !shared && !fits;
    m.head.stream = !fits;
    for (Layer& layer : m.layers) layer.qkv.stream = layer.out.stream = !fits;
    for (Ffn& ffn : m.ffns) ffn.gate_up.stream = ffn.down.stream = stream_ffn;
    m.streamed = other_bytes + (stream_ffn ? ffn_bytes : 0);
    m.cached = stream_ffn ? 0 : ffn_bytes * (shared ? m.config.layers : 1);
    if (!shared) return;
    m.resident = Buffer<uint8_t>(ffn_bytes, false);
    uint8_t* to = m.resident.get();
    for (Matrix* matrix : {&m.ffns[0].gate_up, &m.ffns[0].down}) {
        const size_t bytes = tile_bytes(m.config.bits) * matrix->panels * matrix->blocks;
        std::memcpy(to, matrix->data, bytes);
        matrix->data = to;
        to += bytes;
    }
}

}  // namespace

std::unique_ptr<mv_model> make_model(const mv_config& c, const mv_span* tensors, int count) {
    check(c);
    auto m = std::make_unique<mv_model>(c);
    m->width = c.head_width;
    m->queries = c.heads * m->width;
    m->hidden = round_up(c.hidden, kBlock);
    m->attention = round_up(m->queries, kBlock);
    m->q_stride = round_up(m->queries + 2 * c.kv_heads * m->width, kRows);
    m->vocab = round_up(c.vocab, kRows);

    TensorReader reader(tensors, count);
    uint64_t ffn_bytes = 0, other_bytes = 0;
    const auto matrix = [&](int rows, int columns, uint64_t& bytes) {
        const Matrix out = reader.matrix(c.bits, rows, columns);
        bytes += uint64_t{1} * out.panels * out.blocks * tile_bytes(c.bits);
        return out;
    };
    m->embeddings = static_cast<const uint16_t*>(reader.next(uint64_t{2} * c.vocab * c.hidden));
    m->head = matrix(c.vocab, c.hidden, other_bytes);
    m->norm = reader.floats(c.hidden);
    const int ffn = round_up(c.ffn, kBlock);  // gate and up are padded each, as they alternate
    for (int i = 0; i < c.ffn_count; i++) {
        const Matrix gate_up = matrix(2 * ffn, c.hidden, ffn_bytes);
        m->ffns.push_back({gate_up, matrix(c.hidden, ffn, ffn_bytes)});
    }
    for (int i = 0; i < c.layers; i++) {
        Layer layer;
        layer.qkv = matrix(m->queries + 2 * c.kv_heads * m->width, c.hidden, other_bytes);
        if (c.qkv_bias) layer.bias = reader.floats(m->queries + 2 * c.kv_heads * m->width);
        if (c.qk_norm) layer.qk_norm = reader.floats(2 * m->width);
        layer.out = matrix(c.hidden, m->queries, other_bytes);
        layer.attention_norm = reader.floats(c.hidden);
        layer.ffn_norm = reader.floats(c.hidden);
        m->layers.push_back(std::move(layer));
    }
    const Buffer<float> frequencies = reader.floats(m->width / 2);
    reader.end();
    plan_traffic(*m, ffn_bytes, other_bytes);

    const size_t chunk = kChunk, half = m->width / 2;
    m->cosines = Buffer<float>(half * c.context);
    m->sines = Buffer<float>(half * c.context);
    for (int p = 0; p < c.context; p++)
        for (size_t i = 0; i < half; i++) {  // in fp32 where the torch decoder is
            const float angle = static_cast<float>(p) * frequencies.get()[i];
            m->cosines.get()[p * half + i] = static_cast<float>(std::cos(static_cast<double>(angle)));
            m->sines.get()[p * half + i] = static_cast<float>(std::sin(static_cast<double>(angle)));
        }
    m->x = Buffer<float>(chunk * m->hidden);
    m->qkv = Buffer<float>(chunk * m->q_stride);
    m->attended = Buffer<float>(chunk * m->attention);
    m->gate_up = Buffer<float>(chunk * 2 * ffn);
    m->scores = Buffer<float>(static_cast<size_t>(c.threads) * kQueries * round_up(c.context, 8));
    m->inputs = ActivationBuffer(chunk, m->hidden, c.bits == 16);
    m->inner = ActivationBuffer(chunk, std::max(ffn, m->attention), c.bits == 16);
    m->slots.resize(chunk);
    m->groups.reserve(chunk);
    m->counters = std::make_unique<Counter[]>(static_cast<size_t>(kCountersPerLayer) * c.layers);
    m->threads.get();
    return m;
}

}  // namespace mv
