// Fuzzes the C interface of the CPU engine: any shape, any bytes as tensors, calls in any order and of any size. What a
// caller owes (engine.h) is kept: pointers are valid, and buffers as large as the interface says. All else may be wrong,
// and must end with an error or with numbers.
#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "../mobillama_v/backends/native/csrc/engine.h"
#include "../mobillama_v/backends/native/csrc/kernels.h"

namespace {

using Bytes = std::vector<uint8_t>;

// `size` bytes: repetitions of what the fuzzer gave, which keeps its inputs small.
Bytes tensor(FuzzedDataProvider& data, uint64_t size) {
    Bytes out = data.ConsumeBytes<uint8_t>(data.ConsumeIntegralInRange<size_t>(0, 48));
    uint64_t filled = out.size();
    out.resize(size);
    // Twice as much each time: a loop over bytes would take half of the fuzzer's time.
    for (uint64_t some; filled > 0 && filled < size; filled += some) {
        some = std::min(filled, size - filled);
        std::copy_n(out.begin(), some, out.begin() + filled);
    }
    return out;
}

uint64_t tiles(int bits, int64_t rows, int64_t columns) {
    return static_cast<uint64_t>((rows + 15) / 16 * ((columns + 31) / 32)) * mv::tile_bytes(bits);
}

struct Model {
    mv_config config{};
    std::vector<Bytes> tensors;
    std::unique_ptr<mv_model, void (*)(mv_model*)> model{nullptr, mv_model_free};
};

// Sizes are now and then impossible, and so may be the bytes of a tensor.
void make(FuzzedDataProvider& data, Model& made) {
    mv_config& c = made.config;
    const bool wild = data.ConsumeIntegralInRange(0, 15) == 0;
    const auto number = [&](int most) {
        return wild && data.ConsumeBool() ? data.ConsumeIntegral<int32_t>() : data.ConsumeIntegralInRange(1, most);
    };
    c.eps = wild ? data.ConsumeFloatingPoint<double>() : 1e-5;
    c.kv_heads = number(3);
    c.heads = wild ? number(6) : c.kv_heads * data.ConsumeIntegralInRange(1, 2);
    c.head_width = wild ? number(40) : 8 * data.ConsumeIntegralInRange(1, 4);
    c.hidden = wild ? number(96) : 8 * data.ConsumeIntegralInRange(1, 12);
    c.vocab = number(40);
    c.ffn = number(70);
    c.layers = number(2);
    c.context = number(40);
    c.ffn_count = data.ConsumeBool() ? 1 : c.layers;
    const int bits[] = {4, 8, 16, wild ? 5 : 8};
    c.bits = bits[data.ConsumeIntegralInRange(0, 3)];
    c.threads = wild ? number(2) : 1 + (data.ConsumeIntegralInRange(0, 31) == 0);
    c.path = mv_path_name(data.ConsumeIntegralInRange(0, 3));
    c.qkv_bias = wild ? number(1) : data.ConsumeBool();
    c.qk_norm = wild ? number(1) : data.ConsumeBool();

    std::vector<uint64_t> sizes;
    const bool possible = c.hidden > 0 && c.hidden <= 200 && c.vocab > 0 && c.vocab <= 64 && c.ffn > 0 && c.ffn <= 128 &&
                          c.head_width > 0 && c.head_width <= 64 && c.heads <= 64 && c.layers > 0 && c.layers <= 4 && c.ffn_count > 0 && c.ffn_count <= 4 && c.heads > 0 &&
                          c.kv_heads > 0 && c.kv_heads <= 64 && c.context <= 64;
    if (possible) {
        const int64_t ffn = (c.ffn + 31) / 32 * 32;
        const int64_t queries = int64_t{1} * c.heads * c.head_width, keys = int64_t{1} * c.kv_heads * c.head_width;
        const uint64_t single = uint64_t{4} * c.hidden;
        sizes = {uint64_t{2} * c.vocab * c.hidden, tiles(c.bits, c.vocab, c.hidden), single};
        for (int i = 0; i < c.ffn_count; i++) {
            sizes.push_back(tiles(c.bits, 2 * ffn, c.hidden));
            sizes.push_back(tiles(c.bits, c.hidden, ffn));
        }
        for (int i = 0; i < c.layers; i++) {
            sizes.push_back(tiles(c.bits, queries + 2 * keys, c.hidden));
            if (c.qkv_bias) sizes.push_back(4 * (queries + 2 * keys));
            if (c.qk_norm) sizes.push_back(8 * c.head_width);
            sizes.push_back(tiles(c.bits, c.hidden, queries));
            sizes.push_back(single);
            sizes.push_back(single);
        }
        sizes.push_back(4 * (c.head_width / 2));
    }
    if (wild && data.ConsumeBool()) sizes.resize(data.ConsumeIntegralInRange<size_t>(0, 12));
    for (uint64_t size : sizes) {
        if (wild && data.ConsumeIntegralInRange(0, 7) == 0) size = data.ConsumeIntegralInRange<uint64_t>(0, 4096);
        made.tensors.push_back(tensor(data, size));
    }
    std::vector<mv_span> spans;
    for (const Bytes& each : made.tensors) spans.push_back({each.data(), each.size()});
    made.model.reset(mv_model_new(&c, spans.data(), static_cast<int32_t>(spans.size())));
}

void converse(FuzzedDataProvider& data, Model& made) {
    mv_model* model = made.model.get();
    const mv_config& c = made.config;
    std::vector<std::unique_ptr<mv_sequence, void (*)(mv_sequence*)>> sequences;
    uint64_t streamed, cached;
    mv_model_traffic(model, &streamed, &cached);
    for (int calls = 0; calls < 8 && data.remaining_bytes() > 0; calls++) {
        const int what = data.ConsumeIntegralInRange(0, 5);
        if (what == 0 || sequences.empty()) {
            mv_sequence* made_now = mv_sequence_new(model, data.ConsumeIntegralInRange(-1, c.context + 1));
            if (made_now != nullptr) sequences.emplace_back(made_now, mv_sequence_free);
            continue;
        }
        const auto some = [&] { return sequences[data.ConsumeIntegralInRange<size_t>(0, sequences.size() - 1)].get(); };
        if (what == 1) {
            mv_sequence* to = some();
            mv_sequence_copy(to, some(), data.ConsumeIntegralInRange(-1, c.context + 1));
            continue;
        }
        std::vector<mv_sequence*> batch;
        std::vector<int32_t> counts, tokens;
        const int rows = data.ConsumeIntegralInRange(0, 3);
        for (int i = 0; i < rows; i++) {
            batch.push_back(some());
            counts.push_back(data.ConsumeIntegralInRange(-1, 12));
            for (int j = 0; j < counts.back(); j++) tokens.push_back(data.ConsumeIntegralInRange(-1, c.vocab));
        }
        std::vector<float> embeddings(tokens.size() * static_cast<size_t>(c.hidden));
        const Bytes bytes = tensor(data, 4 * embeddings.size());
        std::copy(bytes.begin(), bytes.end(), reinterpret_cast<uint8_t*>(embeddings.data()));
        std::vector<float> logits(static_cast<size_t>(rows) * ((c.vocab + 15) / 16 * 16));
        mv_forward(model, batch.data(), counts.data(), rows, what == 2 ? nullptr : embeddings.data(),
                   what == 2 || what == 3 ? tokens.data() : nullptr, logits.data());
    }
}

void map(FuzzedDataProvider& data) {
    mv_thread_pool* pool = mv_thread_pool_new(data.ConsumeIntegralInRange(0, 40) == 0 ? 2 : 1, mv_path_name(data.ConsumeIntegralInRange(0, 3)));
    const int32_t rows = data.ConsumeIntegralInRange(-1, 70), columns = data.ConsumeIntegralInRange(-1, 70);
    const int32_t count = data.ConsumeIntegralInRange(-1, 9);
    uint64_t size = rows > 0 && columns > 0 ? tiles(8, rows, columns) : 0;
    if (data.ConsumeIntegralInRange(0, 7) == 0) size = data.ConsumeIntegralInRange<uint64_t>(0, 4096);
    const Bytes weights = tensor(data, size);
    const mv_span span{weights.data(), weights.size()};
    const auto floats = [&](int64_t numbers) {
        std::vector<float> out(numbers > 0 ? static_cast<size_t>(numbers) : 1);
        const Bytes bytes = tensor(data, 4 * out.size());
        std::copy(bytes.begin(), bytes.end(), reinterpret_cast<uint8_t*>(out.data()));
        return out;
    };
    const std::vector<float> x = floats(int64_t{1} * count * columns), bias = floats(rows);
    std::vector<float> y(rows > 0 && count > 0 ? static_cast<size_t>(rows) * count : 1);
    mv_linear(pool, &span, rows, columns, data.ConsumeBool() ? bias.data() : nullptr, x.data(), count, y.data());
    mv_thread_pool_free(pool);
}

// Image towers of any shape, with any bytes as tensors and pixels.
void see(FuzzedDataProvider& data) {
    const bool wild = data.ConsumeIntegralInRange(0, 15) == 0;
    const auto number = [&](int least, int most) {
        return wild && data.ConsumeBool() ? data.ConsumeIntegral<int32_t>() : data.ConsumeIntegralInRange(least, most);
    };
    mv_tower_config c{};
    c.eps = wild ? data.ConsumeFloatingPoint<double>() : 1e-5;
    c.patch = number(1, 6), c.image = number(6, 20);
    c.heads = number(1, 3), c.width = wild ? number(1, 70) : c.heads * number(1, 24);
    c.layers = number(1, 2), c.mlp = number(1, 70), c.activation = number(0, 2);
    c.class_token = number(0, 1), c.keep_class = c.class_token && data.ConsumeBool();
    c.pre_norm = number(0, 1), c.final_norm = number(0, 1);
    std::vector<Bytes> tensors;
    const bool possible = c.width > 0 && c.width <= 100 && c.mlp > 0 && c.mlp <= 100 && c.layers > 0 && c.layers <= 4 &&
                          c.patch > 0 && c.patch <= c.image && c.image <= 40;
    if (possible) {
        const int64_t side = c.image / c.patch, tokens = side * side + (c.class_token == 1), single = 4 * c.width;
        std::vector<uint64_t> sizes = {tiles(16, c.width, 3 * c.patch * c.patch), static_cast<uint64_t>(tokens * single)};
        const auto norm = [&] { sizes.insert(sizes.end(), 2, static_cast<uint64_t>(single)); };
        const auto linear = [&](int rows, int columns) {
            sizes.push_back(tiles(data.ConsumeBool() ? 16 : 8, rows, columns));
            sizes.push_back(uint64_t{4} * rows);
        };
        if (c.pre_norm) norm();
        for (int i = 0; i < c.layers; i++) {
            norm();
            linear(3 * c.width, c.width);
            linear(c.width, c.width);
            norm();
            linear(c.mlp, c.width);
            linear(c.width, c.mlp);
        }
        if (c.final_norm) norm();
        for (uint64_t size : sizes) {
            if (wild && data.ConsumeIntegralInRange(0, 7) == 0) size = data.ConsumeIntegralInRange<uint64_t>(0, 4096);
            tensors.push_back(tensor(data, size));
        }
    }
    std::vector<mv_span> spans;
    for (const Bytes& each : tensors) spans.push_back({each.data(), each.size()});
    mv_thread_pool* pool = mv_thread_pool_new(data.ConsumeIntegralInRange(0, 40) == 0 ? 2 : 1,
                                              mv_path_name(data.ConsumeIntegralInRange(0, 3)));
    mv_tower* tower = mv_tower_new(pool, &c, spans.data(), static_cast<int32_t>(spans.size()));
    if (tower != nullptr) {
        const int32_t images = data.ConsumeIntegralInRange(-1, 3);
        const size_t some = images > 0 ? static_cast<size_t>(images) : 0, side = static_cast<size_t>(c.image / c.patch);
        const Bytes bytes = tensor(data, some * 12 * c.image * c.image);
        std::vector<float> pixels(bytes.size() / 4), features(some * (side * side + c.keep_class) * c.width);
        std::copy(bytes.begin(), bytes.end(), reinterpret_cast<uint8_t*>(pixels.data()));
        mv_tower_encode(tower, pixels.data(), images, features.data());
        mv_tower_free(tower);
    }
    mv_thread_pool_free(pool);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
    FuzzedDataProvider data(bytes, size);
    const int what = data.ConsumeIntegralInRange(0, 5);
    if (what < 3) {
        what == 0 ? map(data) : see(data);
        return 0;
    }
    Model made;
    make(data, made);
    if (made.model != nullptr) converse(data, made);
    return 0;
}
