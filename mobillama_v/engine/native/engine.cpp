// The decoder: checks what it is given, and runs positions through all layers.
#include "engine.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"
#include "pool.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif
#if !defined(_WIN32)
#include <unistd.h>
#else
#include <intrin.h>
#include <malloc.h>
#include <process.h>
#define getpid _getpid
#endif

using mv::Activations;
using mv::HeadCache;
using mv::kBlock;
using mv::kQueries;
using mv::kRows;
using mv::Matrix;

namespace {

constexpr int kChunk = 128;  // positions that pass a layer together
constexpr size_t kHugePage = size_t{2} << 20;

thread_local std::string last_error;

[[noreturn]] void fail(const std::string& message) { throw std::runtime_error(message); }

// Memory, zeroed unless it will be written before it is read. Large blocks ask for huge pages: the shared network is walked through once a layer, and with small
// pages its translations alone would not fit the processor's tables.
template <typename T>
class Buffer {
   public:
    Buffer() = default;
    explicit Buffer(size_t count, bool zeroed = true) {
        const size_t bytes = std::max<size_t>(count * sizeof(T), 64);
        const size_t align = bytes >= kHugePage ? kHugePage : 64;
        const size_t rounded = (bytes + align - 1) / align * align;
#if defined(_WIN32)
        data_ = static_cast<T*>(_aligned_malloc(rounded, align));
#else
        void* memory = nullptr;
        data_ = posix_memalign(&memory, align, rounded) == 0 ? static_cast<T*>(memory) : nullptr;
#endif
        if (data_ == nullptr) throw std::bad_alloc();
#if defined(__linux__)
        if (align == kHugePage) madvise(data_, rounded, MADV_HUGEPAGE);
#endif
        if (zeroed) std::memset(static_cast<void*>(data_), 0, rounded);
    }
    Buffer(Buffer&& other) noexcept : data_(other.data_) { other.data_ = nullptr; }
    Buffer& operator=(Buffer&& other) noexcept {
        std::swap(data_, other.data_);
        return *this;
    }
    ~Buffer() {
#if defined(_WIN32)
        _aligned_free(data_);
#else
        std::free(data_);
#endif
    }
    T* get() const { return data_; }

   private:
    T* data_ = nullptr;
};

// How much of the weights the last-level cache can be hoped to keep; half of it is others'.
uint64_t cache_bytes() {
#if defined(_SC_LEVEL3_CACHE_SIZE)
    const long bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
    if (bytes > 0) return static_cast<uint64_t>(bytes);
#endif
    return uint64_t{16} << 20;
}

bool has_path(int path) {
    if (path == MV_PORTABLE) return true;
#if defined(MV_HAVE_AVX2)
#if defined(_MSC_VER) && !defined(__clang__)
    if (path == MV_AVX2) {
        int leaf[4];
        __cpuid(leaf, 0);
        if (leaf[0] < 7) return false;
        __cpuid(leaf, 1);
        const int wanted = 1 << 12 | 1 << 27 | 1 << 28 | 1 << 29;  // FMA, saved by the system, AVX, F16C
        if ((leaf[2] & wanted) != wanted || (_xgetbv(0) & 6) != 6) return false;
        __cpuidex(leaf, 7, 0);
        return (leaf[1] & 1 << 5) != 0;
    }
#else
    // Every processor with AVX2 and FMA has F16C, which older compilers do not know by name.
    if (path == MV_AVX2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
#endif
    return false;
}

const mv::Kernels& kernels_of(int path) {
#if defined(MV_HAVE_AVX2)
    if (path == MV_AVX2) return mv::kAvx2;
#endif
    (void)path;
    return mv::kPortable;
}

void check(const mv_config& c) {
    const auto within = [](const char* name, int64_t value, int64_t least, int64_t most) {
        if (value < least || value > most)
            fail(std::string(name) + " is " + std::to_string(value) + " and must be between " + std::to_string(least) +
                 " and " + std::to_string(most));
    };
    within("vocab", c.vocab, 1, 1 << 24);
    within("hidden", c.hidden, 8, 1 << 16);
    within("ffn", c.ffn, 1, 1 << 18);
    within("layers", c.layers, 1, 1 << 10);
    within("heads", c.heads, 1, c.hidden);
    within("kv_heads", c.kv_heads, 1, c.heads);
    within("context", c.context, 1, 1 << 20);
    within("threads", c.threads, 1, 256);
    if (c.bits != 4 && c.bits != 8 && c.bits != 16) fail("bits is " + std::to_string(c.bits) + " and must be 4, 8 or 16");
    if (c.hidden % c.heads || c.hidden / c.heads % 8) fail("the width of a head must be a multiple of 8");
    if (c.heads % c.kv_heads) fail("heads must be a multiple of kv_heads");
    if (c.ffn_count != 1 && c.ffn_count != c.layers) fail("ffn_count must be 1 or the number of layers");
    if (!(c.eps >= 0) || !(c.theta > 0)) fail("eps and theta must be positive");
    if (c.path != MV_AUTO && !has_path(c.path)) fail("this processor cannot run the kernel path that was asked for");
}

// The tensors of a model, one after another, each of exactly the size that it must have.
class Reader {
   public:
    Reader(const mv_span* spans, int count) : spans_(spans), count_(count) {}

    const void* take(uint64_t bytes) {
        if (at_ >= count_) fail("there are only " + std::to_string(count_) + " tensors");
        const mv_span& span = spans_[at_++];
        if (span.data == nullptr || span.bytes != bytes)
            fail("tensor " + std::to_string(at_ - 1) + " has " + std::to_string(span.bytes) + " bytes and must have " +
                 std::to_string(bytes));
        return span.data;
    }
    Matrix matrix(int bits, int rows, int columns) {
        Matrix m;
        m.bands = mv::round_up(rows, kRows) / kRows;
        m.blocks = mv::round_up(columns, kBlock) / kBlock;
        m.data = static_cast<const uint8_t*>(take(uint64_t{1} * m.bands * m.blocks * mv::tile_bytes(bits)));
        return m;
    }
    Buffer<float> norm(int width) {
        Buffer<float> out(mv::round_up(width, kBlock));
        std::memcpy(out.get(), take(uint64_t{4} * width), sizeof(float) * width);
        return out;
    }
    void end() const {
        if (at_ != count_) fail("there are " + std::to_string(count_ - at_) + " tensors too many");
    }

   private:
    const mv_span* spans_;
    int count_, at_ = 0;
};

struct Layer {
    Matrix qkv, out;
    Buffer<float> attention_norm, ffn_norm;
};
struct Ffn {
    Matrix gate_up, down;
};
// Room for the activations of a chunk.
struct Area {
    Buffer<int8_t> values;
    Buffer<float> scales, floats;
    Buffer<int32_t> sums;

    Area() = default;
    Area(size_t columns, bool as_floats) {
        if (as_floats) {
            floats = Buffer<float>(kChunk * columns);
        } else {
            values = Buffer<int8_t>(kChunk * columns);
            scales = Buffer<float>(kChunk * columns / kBlock);
            sums = Buffer<int32_t>(kChunk * columns / kBlock);
        }
    }
    Activations at(int token, int blocks) const {
        const size_t skip = static_cast<size_t>(token) * blocks;
        if (floats.get() != nullptr) return {nullptr, nullptr, nullptr, floats.get() + skip * kBlock};
        return {values.get() + skip * kBlock, scales.get() + skip, sums.get() + skip, nullptr};
    }
};
struct Place {
    mv_sequence* sequence;
    int position;
};
struct Group {  // queries of one sequence that attend together
    int first, count;
};

}  // namespace

struct mv_sequence {
    mv_model* model;
    int capacity, length = 0;
    uint64_t call = 0;  // the last that it was part of
    size_t head_size;   // of the keys of one head; its values are as large and follow
    Buffer<uint16_t> memory;
    inline HeadCache head(int layer, int head) const;
};

struct mv_model {
    mv_config config;
    int width, hidden, q_stride, vocab;  // a head; padded to whole blocks; a row of qkv; rows of logits, padded
    int path;
    const mv::Kernels* kernels;
    const uint16_t* embeddings;
    Matrix head;
    Buffer<float> norm;
    std::vector<Ffn> ffns;
    std::vector<Layer> layers;
    Buffer<uint8_t> resident;  // the shared network's own copy
    uint64_t streamed = 0, cached = 0;

    Buffer<float> cosines, sines;                    // [context, width / 2]
    Buffer<float> x, qkv, attended, gate_up, scores;  // of a chunk; scores a thread
    Area inputs, inner;  // of the matrices, but for those of the last one, which are made while `inputs` are read
    std::vector<Place> places;
    std::vector<Group> groups;

    std::mutex mutex;
    std::unique_ptr<mv::Pool> pool;
    int owner;  // the process whose threads the pool has
    uint64_t calls = 0;
};

HeadCache mv_sequence::head(int layer, int head) const {
    uint16_t* keys = memory.get() + 2 * head_size * (static_cast<size_t>(layer) * model->config.kv_heads + head);
    return {keys, keys + head_size};
}

namespace {

// This thread's part of `tokens` times `items`: calls f(token, from, to).
template <typename F>
void share(int tokens, int items, int thread, int threads, const F& f) {
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

// One thread's work on the chunk of positions in m.places and m.x. Whoever computes a number, it is computed in the
// same order. Waiting for each other is what threads lose most by, above all where other programs run: what is cheap is
// done by each for itself, and what follows from a thread's own part it does at once.
void run_layers(mv_model& m, int tokens, int thread) {
    const mv_config& c = m.config;
    const mv::Kernels& k = *m.kernels;
    const int threads = c.threads, heads = c.heads, kv_heads = c.kv_heads, width = m.width;
    const bool floats = c.bits == 16;
    const float eps = static_cast<float>(c.eps), query_scale = 1.0f / std::sqrt(static_cast<float>(width));
    const int hidden_blocks = m.hidden / kBlock;
    const int padded = mv::round_up(c.context, 8);
    const bool whole_heads = width % kBlock == 0;  // else two heads share a block
    float* scores = m.scores.get() + static_cast<size_t>(thread) * kQueries * padded;

    // One token's are made by every thread for itself.
    const bool apart = tokens == 1 && threads <= kChunk;
    const auto normed = [&](const Buffer<float>& weight) {
        if (apart) {
            k.quantise(m.x.get(), weight.get(), eps, c.hidden, 0, hidden_blocks, floats,
                       m.inputs.at(thread, hidden_blocks));
            return m.inputs.at(thread, hidden_blocks);
        }
        share(tokens, hidden_blocks, thread, threads, [&](int t, int from, int to) {
            k.quantise(m.x.get() + static_cast<size_t>(t) * m.hidden, weight.get(), eps, c.hidden, from, to, floats,
                       m.inputs.at(t, hidden_blocks));
        });
        m.pool->barrier();
        return m.inputs.at(0, hidden_blocks);
    };
    const auto product = [&](const Matrix& matrix, const Activations& in, float* y, size_t stride, bool add) {
        k.product(c.bits, matrix, in, tokens, y, stride, add, matrix.bands * thread / threads,
                  matrix.bands * (thread + 1) / threads);
        m.pool->barrier();
    };

    for (int l = 0; l < c.layers; l++) {
        const Layer& layer = m.layers[l];
        const Ffn& ffn = m.ffns[c.ffn_count == 1 ? 0 : l];
        product(layer.qkv, normed(layer.attention_norm), m.qkv.get(), m.q_stride, false);
        share(tokens, heads + kv_heads, thread, threads, [&](int t, int from, int to) {
            const Place& place = m.places[t];
            float* row = m.qkv.get() + static_cast<size_t>(t) * m.q_stride;
            const float* cosines = m.cosines.get() + static_cast<size_t>(place.position) * (width / 2);
            const float* sines = m.sines.get() + static_cast<size_t>(place.position) * (width / 2);
            for (int h = from; h < to; h++) {
                float* vector = row + h * width;  // keys follow the queries, and values the keys
                k.rotate(vector, cosines, sines, width, h < heads ? query_scale : 1.0f);
                if (h >= heads)
                    k.store(place.sequence->head(l, h - heads), place.position, width, vector,
                            vector + kv_heads * width);
            }
        });
        m.pool->barrier();
        const int items = static_cast<int>(m.groups.size()) * heads;
        for (int i = thread; i < items; i += threads) {  // by turns: later positions take longer
            const Group& group = m.groups[i / heads];
            const int h = i % heads;
            const Place& place = m.places[group.first];
            k.attend(place.sequence->head(l, h / (heads / kv_heads)), place.position, group.count, width,
                     m.qkv.get() + static_cast<size_t>(group.first) * m.q_stride + h * width, m.q_stride,
                     m.attended.get() + static_cast<size_t>(group.first) * m.hidden + h * width, m.hidden, scores,
                     padded);
            for (int t = group.first; whole_heads && t < group.first + group.count; t++)
                k.quantise(m.attended.get() + static_cast<size_t>(t) * m.hidden, nullptr, 0, c.hidden,
                           h * width / kBlock, (h + 1) * width / kBlock, floats, m.inputs.at(t, hidden_blocks));
        }
        m.pool->barrier();
        if (!whole_heads) {
            share(tokens, hidden_blocks, thread, threads, [&](int t, int from, int to) {
                k.quantise(m.attended.get() + static_cast<size_t>(t) * m.hidden, nullptr, 0, c.hidden, from, to, floats,
                           m.inputs.at(t, hidden_blocks));
            });
            m.pool->barrier();
        }
        product(layer.out, m.inputs.at(0, hidden_blocks), m.x.get(), m.hidden, true);
        const Activations normal = normed(layer.ffn_norm);
        // Four bands of gate and up make one block of what goes on.
        const size_t stride = static_cast<size_t>(ffn.gate_up.bands) * kRows;
        const int from = ffn.down.blocks * thread / threads, to = ffn.down.blocks * (thread + 1) / threads;
        k.product(c.bits, ffn.gate_up, normal, tokens, m.gate_up.get(), stride, false, 4 * from, 4 * to);
        for (int t = 0; t < tokens; t++)
            k.swiglu(m.gate_up.get() + t * stride, from, to, floats, m.inner.at(t, ffn.down.blocks));
        m.pool->barrier();
        product(ffn.down, m.inner.at(0, ffn.down.blocks), m.x.get(), m.hidden, true);
    }
}

// Logits of the chunk's positions whose rows were moved to the front of m.x.
void run_head(mv_model& m, int rows, float* logits, int thread) {
    const int threads = m.config.threads, blocks = m.head.blocks;
    share(rows, blocks, thread, threads, [&](int t, int from, int to) {
        m.kernels->quantise(m.x.get() + static_cast<size_t>(t) * m.hidden, m.norm.get(),
                            static_cast<float>(m.config.eps), m.config.hidden, from, to, m.config.bits == 16,
                            m.inputs.at(t, blocks));
    });
    m.pool->barrier();
    m.kernels->product(m.config.bits, m.head, m.inputs.at(0, blocks), rows, logits, m.vocab, false,
                       m.head.bands * thread / threads, m.head.bands * (thread + 1) / threads);
}

void group_queries(mv_model& m, int tokens) {
    m.groups.clear();
    for (int t = 0; t < tokens; t++) {
        if (!m.groups.empty()) {
            Group& last = m.groups.back();
            if (last.count < kQueries && m.places[last.first].sequence == m.places[t].sequence) {
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

void forward(mv_model& m, mv_sequence* const* sequences, const int32_t* counts, int count, const float* embeddings,
             const int32_t* tokens, float* logits) {
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
                m.kernels->widen(m.embeddings + tokens[at] * width, x, m.config.hidden);
            }
            // Padded rows of a damaged file may have left something here.
            std::fill(x + width, x + row, 0.0f);
            m.places[filled] = {sequences[sequence], sequences[sequence]->length + offset};
            if (++offset == counts[sequence]) {
                ends[ended++] = filled;
                offset = 0;
                sequence++;
            }
        }
        group_queries(m, filled);
        m.pool->run([&](int thread) { run_layers(m, filled, thread); });
        if (ended == 0) continue;
        for (int i = 0; i < ended; i++) std::memmove(m.x.get() + i * row, m.x.get() + ends[i] * row, row * sizeof(float));
        float* out = logits + static_cast<size_t>(first) * m.vocab;
        m.pool->run([&](int thread) { run_head(m, ended, out, thread); });
    }
    for (int i = 0; i < count; i++) sequences[i]->length += counts[i];
}

// What a token reads decides what may stay in the cache: where everything fits it does; else only what all layers share.
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
        const size_t bytes = mv::tile_bytes(m.config.bits) * matrix->bands * matrix->blocks;
        std::memcpy(to, matrix->data, bytes);
        matrix->data = to;
        to += bytes;
    }
}

std::unique_ptr<mv_model> make_model(const mv_config& c, const mv_span* tensors, int count) {
    check(c);
    auto m = std::make_unique<mv_model>();
    m->config = c;
    m->width = c.hidden / c.heads;
    m->hidden = mv::round_up(c.hidden, kBlock);
    m->q_stride = mv::round_up(c.hidden + 2 * c.kv_heads * m->width, kRows);
    m->vocab = mv::round_up(c.vocab, kRows);
    m->path = c.path != MV_AUTO ? c.path : has_path(MV_AVX2) ? MV_AVX2 : MV_PORTABLE;
    m->kernels = &kernels_of(m->path);

    Reader reader(tensors, count);
    uint64_t ffn_bytes = 0, other_bytes = 0;
    const auto matrix = [&](int rows, int columns, uint64_t& bytes) {
        const Matrix out = reader.matrix(c.bits, rows, columns);
        bytes += uint64_t{1} * out.bands * out.blocks * mv::tile_bytes(c.bits);
        return out;
    };
    m->embeddings = static_cast<const uint16_t*>(reader.take(uint64_t{2} * c.vocab * c.hidden));
    m->head = matrix(c.vocab, c.hidden, other_bytes);
    m->norm = reader.norm(c.hidden);
    const int ffn = mv::round_up(c.ffn, kBlock);  // gate and up are padded each, as they alternate
    for (int i = 0; i < c.ffn_count; i++) {
        const Matrix gate_up = matrix(2 * ffn, c.hidden, ffn_bytes);
        m->ffns.push_back({gate_up, matrix(c.hidden, ffn, ffn_bytes)});
    }
    for (int i = 0; i < c.layers; i++) {
        Layer layer;
        layer.qkv = matrix(c.hidden + 2 * c.kv_heads * m->width, c.hidden, other_bytes);
        layer.out = matrix(c.hidden, c.hidden, other_bytes);
        layer.attention_norm = reader.norm(c.hidden);
        layer.ffn_norm = reader.norm(c.hidden);
        m->layers.push_back(std::move(layer));
    }
    reader.end();
    plan_traffic(*m, ffn_bytes, other_bytes);

    const size_t chunk = kChunk, half = m->width / 2;
    m->cosines = Buffer<float>(half * c.context);
    m->sines = Buffer<float>(half * c.context);
    for (int p = 0; p < c.context; p++)
        for (size_t i = 0; i < half; i++) {  // in fp32 where the torch decoder is
            const float exponent = static_cast<float>(2 * i) / static_cast<float>(m->width);
            const float angle = static_cast<float>(p) * (1.0f / std::pow(static_cast<float>(c.theta), exponent));
            m->cosines.get()[p * half + i] = static_cast<float>(std::cos(static_cast<double>(angle)));
            m->sines.get()[p * half + i] = static_cast<float>(std::sin(static_cast<double>(angle)));
        }
    m->x = Buffer<float>(chunk * m->hidden);
    m->qkv = Buffer<float>(chunk * m->q_stride);
    m->attended = Buffer<float>(chunk * m->hidden);
    m->gate_up = Buffer<float>(chunk * 2 * ffn);
    m->scores = Buffer<float>(static_cast<size_t>(c.threads) * kQueries * mv::round_up(c.context, 8));
    m->inputs = Area(m->hidden, c.bits == 16);
    m->inner = Area(ffn, c.bits == 16);
    m->places.resize(chunk);
    m->groups.reserve(chunk);
    m->pool = std::make_unique<mv::Pool>(c.threads);
    m->owner = getpid();
    return m;
}

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

extern "C" {

int32_t mv_abi(void) { return MV_ABI; }

const char* mv_error(void) { return last_error.c_str(); }

int32_t mv_has_path(int32_t path) { return has_path(path) ? 1 : 0; }

mv_model* mv_model_new(const mv_config* config, const mv_span* tensors, int32_t count) {
    return guarded<mv_model*>(nullptr, [&] { return make_model(*config, tensors, count).release(); });
}

void mv_model_free(mv_model* model) {
    if (model != nullptr && model->owner != getpid()) model->pool.release();  // its threads are another process's
    delete model;
}

int32_t mv_model_path(const mv_model* model) { return model->path; }

void mv_model_traffic(const mv_model* model, uint64_t* streamed, uint64_t* cached) {
    *streamed = model->streamed;
    *cached = model->cached;
}

mv_sequence* mv_sequence_new(mv_model* model, int32_t capacity) {
    return guarded<mv_sequence*>(nullptr, [&]() -> mv_sequence* {
        if (capacity < 1 || capacity > model->config.context)
            fail("a sequence of " + std::to_string(capacity) + " positions does not fit a context of " +
                 std::to_string(model->config.context));
        const size_t head_size = static_cast<size_t>(mv::round_up(capacity, 8)) * model->width;
        const size_t heads = static_cast<size_t>(model->config.layers) * model->config.kv_heads;
        auto sequence = std::make_unique<mv_sequence>();
        sequence->model = model;
        sequence->capacity = capacity;
        sequence->head_size = head_size;
        sequence->memory = Buffer<uint16_t>(2 * heads * head_size, false);
        return sequence.release();
    });
}

void mv_sequence_free(mv_sequence* sequence) { delete sequence; }

int32_t mv_forward(mv_model* model, mv_sequence* const* sequences, const int32_t* counts, int32_t count,
                   const float* embeddings, const int32_t* tokens, float* logits) {
    return guarded<int32_t>(-1, [&] {
        std::lock_guard<std::mutex> lock(model->mutex);
        if (model->owner != getpid()) {  // forked: the threads stayed behind
            model->pool.release();
            model->pool = std::make_unique<mv::Pool>(model->config.threads);
            model->owner = getpid();
        }
        check_call(*model, sequences, counts, count, embeddings, tokens, logits);
        forward(*model, sequences, counts, count, embeddings, tokens, logits);
        return 0;
    });
}

}  // extern "C"
