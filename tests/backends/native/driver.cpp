// Runs the engine without Python, for sanitizers and for other processors: every kernel path and bit width, ragged
// shapes, several sequences and threads that call at once. Names the paths. Ends with 0 where all threads agree bit for
// bit, and all paths within the order of sums.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "../../../mobillama_v/backends/native/csrc/engine.h"
#include "../../../mobillama_v/backends/native/csrc/kernels.h"

namespace {

struct Shape {
    int vocab, hidden, ffn, layers, heads, kv_heads, width, ffn_count, qkv_bias, qk_norm;
};
constexpr int kContext = 160;

// Every tensor is a block of its own, so that a byte read past its end is seen.
struct Tensors {
    std::vector<std::vector<uint8_t>> data;
    std::mt19937 random{1};

    void halves(size_t count) {
        std::vector<uint8_t> bytes(2 * count);
        for (size_t i = 0; i < count; i++) half(&bytes[2 * i], 0x3000);
        data.push_back(std::move(bytes));
    }
    void floats(size_t count) {
        std::vector<float> values(count, 1.0f);
        data.emplace_back(4 * count);
        std::memcpy(data.back().data(), values.data(), 4 * count);
    }
    void matrix(int bits, int rows, int columns) {
        const size_t tile = mv::tile_bytes(bits);
        const size_t tiles = size_t{1} * mv::round_up(rows, 16) / 16 * mv::round_up(columns, 32) / 32;
        std::vector<uint8_t> bytes(tiles * tile);
        for (size_t t = 0; t < tiles; t++)
            for (size_t i = 0; i < tile; i++) {
                uint8_t* at = &bytes[t * tile + i];
                if (bits == 16 || i < 32) {
                    if (i % 2 == 0) half(at, bits == 4 ? 0x2400 : bits == 8 ? 0x1000 : 0x3000);
                } else {
                    *at = static_cast<uint8_t>(random());
                }
            }
        data.push_back(std::move(bytes));
    }

   private:
    void half(uint8_t* at, uint16_t size) {  // of about that size, either sign
        const uint16_t value = static_cast<uint16_t>((random() & 0x8000) | (size + (random() & 0x3ff)));
        std::memcpy(at, &value, 2);
    }
};

[[noreturn]] void die(const char* what) {
    std::fprintf(stderr, "%s: %s\n", what, mv_error());
    std::exit(1);
}

std::vector<float> answer(mv_model* model, const Shape& shape, int length, bool steps) {
    mv_sequence* sequence = mv_sequence_new(model, length + (steps ? 20 : 3));
    if (sequence == nullptr) die("sequence");
    std::vector<float> embeddings(static_cast<size_t>(length) * shape.hidden), logits(mv::round_up(shape.vocab, 16));
    for (size_t i = 0; i < embeddings.size(); i++) embeddings[i] = std::sin(static_cast<float>(i));
    for (int at = 0; at < length;) {
        const int32_t count = steps ? 1 : length;
        if (mv_forward(model, &sequence, &count, 1, &embeddings[static_cast<size_t>(at) * shape.hidden], nullptr,
                       logits.data()))
            die("prefill");
        at += count;
        if (steps && at == 61) {  // goes on in a copy, of another capacity
            mv_sequence* copy = mv_sequence_new(model, length + 3);
            if (copy == nullptr || mv_sequence_copy(copy, sequence, at + 1) == 0 || mv_sequence_copy(copy, sequence, at))
                die("copy");
            mv_sequence_free(sequence);
            sequence = copy;
        }
    }
    for (int32_t token = 0; token < 3; token++) {
        const int32_t one = 1;
        if (mv_forward(model, &sequence, &one, 1, nullptr, &token, logits.data())) die("decode");
    }
    const int32_t one = 1, token = 0;
    if (mv_forward(model, &sequence, &one, 1, nullptr, &token, logits.data()) == 0) die("a full sequence took more");
    mv_sequence_free(sequence);
    for (int i = 0; i < shape.vocab; i++)
        if (!std::isfinite(logits[i])) die("a logit is not finite");
    return logits;
}

// A server's mix: users come and go, take over prefixes of a kept prompt, and decode in batches, all at once.
void serve(mv_model* model, const Shape& shape) {
    const int padded = mv::round_up(shape.vocab, 16);
    const auto sequence = [&](int capacity) {
        mv_sequence* made = mv_sequence_new(model, capacity);
        if (made == nullptr) die("sequence");
        return made;
    };
    mv_sequence* kept = sequence(40);
    const std::vector<int32_t> prompt(33, 1);
    const int32_t length = 33;
    std::vector<float> first(padded);
    if (mv_forward(model, &kept, &length, 1, nullptr, prompt.data(), first.data())) die("kept");
    const auto turn = [&](int step) {
        mv_sequence* batch[] = {sequence(40), sequence(50)};
        const int32_t counts[] = {1 + step, 1}, tokens[] = {0, 2, 4, 6, 8};
        std::vector<float> logits(2 * static_cast<size_t>(padded));
        if (mv_sequence_copy(batch[0], kept, 32 - step) || mv_sequence_copy(batch[1], kept, 17)) die("prefix");
        if (mv_forward(model, batch, counts, 2, nullptr, tokens, logits.data())) die("turn");
        for (mv_sequence* each : batch) mv_sequence_free(each);
        return logits;
    };
    std::vector<std::vector<float>> expected;
    for (int step = 0; step < 4; step++) expected.push_back(turn(step));
    std::vector<std::thread> users;
    for (int user = 0; user < 4; user++)
        users.emplace_back([&, user] {
            for (int i = 0; i < 8; i++)
                if (turn((user + i) % 4) != expected[(user + i) % 4]) die("a user's logits differ");
        });
    for (auto& user : users) user.join();
    mv_sequence_free(kept);
}

void run(const Shape& shape, int bits, const char* path, int threads, std::vector<float>& expected) {
    Tensors tensors;
    const int width = shape.width, queries = shape.heads * width, ffn = mv::round_up(shape.ffn, 32);
    tensors.halves(static_cast<size_t>(shape.vocab) * shape.hidden);
    tensors.matrix(bits, shape.vocab, shape.hidden);
    tensors.floats(shape.hidden);
    for (int i = 0; i < shape.ffn_count; i++) {
        tensors.matrix(bits, 2 * ffn, shape.hidden);
        tensors.matrix(bits, shape.hidden, ffn);
    }
    for (int i = 0; i < shape.layers; i++) {
        tensors.matrix(bits, queries + 2 * shape.kv_heads * width, shape.hidden);
        if (shape.qkv_bias) tensors.floats(queries + 2 * shape.kv_heads * width);
        if (shape.qk_norm) tensors.floats(2 * width);
        tensors.matrix(bits, shape.hidden, queries);
        tensors.floats(shape.hidden);
        tensors.floats(shape.hidden);
    }
    tensors.floats(width / 2);
    std::vector<mv_span> spans;
    for (const auto& each : tensors.data) spans.push_back({each.data(), each.size()});
    const int32_t count = static_cast<int32_t>(spans.size());
    mv_config config{};
    config.eps = 1e-5, config.qkv_bias = shape.qkv_bias, config.qk_norm = shape.qk_norm;
    config.vocab = shape.vocab, config.hidden = shape.hidden, config.ffn = shape.ffn, config.layers = shape.layers;
    config.heads = shape.heads, config.kv_heads = shape.kv_heads, config.head_width = width, config.context = kContext;
    config.ffn_count = shape.ffn_count, config.bits = bits, config.threads = threads, config.path = path;

    for (int i = 0; i < count; i++) {  // a tensor of any other size is refused
        std::vector<mv_span> wrong = spans;
        wrong[i].bytes--;
        if (mv_model_new(&config, wrong.data(), count) != nullptr) die("a short tensor was taken");
    }
    if (mv_model_new(&config, spans.data(), count - 1) != nullptr) die("a missing tensor was not missed");

    mv_model* model = mv_model_new(&config, spans.data(), count);
    if (model == nullptr) die("model");
    if (mv_sequence_new(model, kContext + 1) != nullptr) die("a sequence beyond the context was made");
    std::vector<std::vector<float>> answers(3);
    std::vector<std::thread> callers;
    for (int i = 0; i < 3; i++)
        callers.emplace_back([&, i] { answers[i] = answer(model, shape, 140, i == 1); });
    for (auto& caller : callers) caller.join();
    if (expected.empty()) expected = answers[0];
    for (const auto& each : answers)
        if (std::memcmp(each.data(), expected.data(), sizeof(float) * shape.vocab) != 0) die("answers differ");

    serve(model, shape);

    std::vector<mv_sequence*> sequences;
    std::vector<int32_t> counts, tokens;
    for (int i = 0; i < 130; i++) {
        sequences.push_back(mv_sequence_new(model, 4));
        counts.push_back(1 + i % 3);
        for (int j = 0; j <= i % 3; j++) tokens.push_back((i + j) % shape.vocab);
    }
    std::vector<float> logits(sequences.size() * mv::round_up(shape.vocab, 16));
    if (mv_forward(model, sequences.data(), counts.data(), 130, nullptr, tokens.data(), logits.data())) die("batch");
    for (mv_sequence* sequence : sequences) mv_sequence_free(sequence);
    mv_model_free(model);
}

// Within the tolerance of the tests in Python, which say why: in standard deviations of the logits.
void compare(const std::vector<float>& found, const std::vector<float>& expected, int count) {
    double mean = 0, variance = 0, difference = 0, largest = 0;
    for (int i = 0; i < count; i++) mean += expected[i] / count;
    for (int i = 0; i < count; i++) {
        const double apart = std::fabs(found[i] - expected[i]);
        variance += (expected[i] - mean) * (expected[i] - mean) / count;
        difference += apart * apart / count;
        largest = std::fmax(largest, apart);
    }
    if (std::sqrt(difference / variance) > 0.04 || largest > 0.2 * std::sqrt(variance)) die("a path differs");
}

// Layers outside the decoder: threads that call one pool at once, and every vector alone, agree bit for bit.
void run_linear(int rows, int columns, int count, const char* path, std::vector<float>& expected) {
    Tensors tensors;
    tensors.matrix(8, rows, columns);
    const mv_span weights{tensors.data[0].data(), tensors.data[0].size()};
    std::vector<float> bias(rows), x(static_cast<size_t>(count) * columns);
    for (int i = 0; i < rows; i++) bias[i] = std::cos(static_cast<float>(i));
    for (size_t i = 0; i < x.size(); i++) x[i] = std::sin(static_cast<float>(i));
    if (mv_thread_pool_new(0, path) != nullptr || mv_thread_pool_new(1, "none") != nullptr) die("a pool that cannot be was made");
    for (int threads : {1, 2, 3}) {
        mv_thread_pool* pool = mv_thread_pool_new(threads, path);
        if (pool == nullptr || std::strcmp(mv_thread_pool_path(pool), path) != 0) die("pool");
        std::vector<std::vector<float>> found(3, std::vector<float>(static_cast<size_t>(count) * rows));
        std::vector<std::thread> callers;
        for (int i = 0; i < 3; i++)
            callers.emplace_back([&, i] {
                const int some = i == 1 ? 1 : count;  // at once
                for (int at = 0; at < count; at += some)
                    if (mv_linear(pool, &weights, rows, columns, bias.data(), &x[static_cast<size_t>(at) * columns], some,
                                  &found[i][static_cast<size_t>(at) * rows]))
                        die("linear");
            });
        for (auto& caller : callers) caller.join();
        if (expected.empty()) expected = found[0];
        for (const auto& each : found)
            if (std::memcmp(each.data(), expected.data(), sizeof(float) * each.size()) != 0) die("layers differ");
        std::vector<float> y(rows);
        if (mv_linear(pool, &weights, rows, columns, nullptr, x.data(), 1, y.data())) die("no bias");
        for (int i = 0; i < rows; i++)
            if (std::fabs(y[i] + bias[i] - expected[i]) > 1e-4f * (1 + std::fabs(expected[i]))) die("a bias differs");
        mv_span wrong = weights;
        wrong.bytes--;
        if (!mv_linear(pool, &wrong, rows, columns, nullptr, x.data(), 1, y.data())) die("short weights were taken");
        if (!mv_linear(pool, &weights, rows, columns, nullptr, x.data(), -1, y.data())) die("-1 vectors were taken");
        if (!mv_linear(pool, &weights, 0, columns, nullptr, x.data(), 1, y.data())) die("no rows were taken");
        mv_thread_pool_free(pool);
    }
}

void run_linears(const char* path, std::vector<std::vector<float>>& portable) {
    const int shapes[][3] = {{1, 1, 1}, {40, 70, 7}, {130, 64, 300}};  // rows, columns, vectors
    for (size_t i = 0; i < 3; i++) {
        std::vector<float> found;
        run_linear(shapes[i][0], shapes[i][1], shapes[i][2], path, found);
        if (portable.size() == i) portable.push_back(found);
        const int count = static_cast<int>(found.size());
        if (count > 1) compare(found, portable[i], count);
    }
    std::printf("path %s, layers\n", path);
}

// Image towers: threads that call one at once, and every image alone, agree bit for bit.
void run_tower(const mv_tower_config& c, int bits, const char* path, std::vector<float>& expected) {
    Tensors tensors;
    const int side = c.image / c.patch, tokens = side * side + c.class_token;
    const auto norm = [&] {
        tensors.floats(c.width);
        tensors.floats(c.width);
    };
    const auto linear = [&](int rows, int columns) {
        tensors.matrix(bits, rows, columns);
        tensors.floats(rows);
    };
    tensors.matrix(16, c.width, 3 * c.patch * c.patch);
    tensors.floats(static_cast<size_t>(tokens) * c.width);
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
    std::vector<mv_span> spans;
    for (const auto& each : tensors.data) spans.push_back({each.data(), each.size()});
    const int32_t count = static_cast<int32_t>(spans.size());
    constexpr int kImages = 3;
    const size_t picture = size_t{3} * c.image * c.image;
    const size_t numbers = static_cast<size_t>(side * side + c.keep_class) * c.width;
    std::vector<float> pixels(kImages * picture);
    for (size_t i = 0; i < pixels.size(); i++) pixels[i] = std::sin(static_cast<float>(i));
    for (int threads : {1, 2, 3}) {
        mv_thread_pool* pool = mv_thread_pool_new(threads, path);
        if (pool == nullptr) die("pool");
        for (int i = 0; i < count; i++) {
            std::vector<mv_span> wrong = spans;
            wrong[i].bytes--;
            if (mv_tower_new(pool, &c, wrong.data(), count) != nullptr) die("a short tensor of a tower was taken");
        }
        if (mv_tower_new(pool, &c, spans.data(), count - 1) != nullptr) die("a tower lacked a tensor");
        mv_tower* tower = mv_tower_new(pool, &c, spans.data(), count);
        if (tower == nullptr) die("tower");
        std::vector<std::vector<float>> found(3, std::vector<float>(kImages * numbers));
        std::vector<std::thread> callers;
        for (int i = 0; i < 3; i++)
            callers.emplace_back([&, i] {
                const int some = i == 1 ? 1 : kImages;
                for (int at = 0; at < kImages; at += some)
                    if (mv_tower_encode(tower, &pixels[at * picture], some, &found[i][at * numbers])) die("encode");
            });
        for (auto& caller : callers) caller.join();
        if (expected.empty()) expected = found[0];
        for (const auto& each : found)
            if (std::memcmp(each.data(), expected.data(), sizeof(float) * each.size()) != 0) die("features differ");
        if (!mv_tower_encode(tower, pixels.data(), -1, found[0].data())) die("-1 images were taken");
        float numbers_of[] = {-1, 0, 1, 2, 3};
        if (mv_activate(pool, 1, numbers_of, 5) || !mv_activate(pool, 3, numbers_of, 5)) die("activation");
        mv_tower_free(tower);
        mv_thread_pool_free(pool);
    }
}

void run_towers(const char* path, std::vector<std::vector<float>>& portable) {
    // eps; image, patch; width, layers, heads, mlp; activation; class token, kept; norms
    const mv_tower_config towers[] = {{1e-5, 20, 5, 24, 2, 3, 40, 0, 1, 0, 1, 0}, {1e-6, 33, 4, 72, 1, 3, 90, 2, 0, 0, 0, 1}};
    size_t number = 0;
    for (const mv_tower_config& c : towers)
        for (int bits : {8, 16}) {
            std::vector<float> found;
            run_tower(c, bits, path, found);
            if (portable.size() == number) portable.push_back(found);
            compare(found, portable[number++], static_cast<int>(found.size()));
        }
    std::printf("path %s, towers\n", path);
}

// Those that this processor can run, the portable one first.
std::vector<const char*> paths() {
    std::vector<const char*> names;
    for (int i = 0; const char* name = mv_path_name(i); i++) names.insert(names.begin(), name);
    if (names.empty() || std::strcmp(names[0], "portable") != 0) die("the portable path is not the last");
    return names;
}

}  // namespace

int main() {
    std::vector<std::vector<float>> layers, towers;
    const std::vector<const char*> names = paths();
    for (const char* path : names) {
        run_linears(path, layers);
        run_towers(path, towers);
    }
    const Shape shapes[] = {{50, 40, 50, 2, 5, 5, 8, 1, 0, 0},
                            {33, 48, 40, 2, 6, 2, 8, 2, 0, 0},
                            {40, 64, 40, 2, 4, 2, 16, 1, 1, 0},
                            {40, 40, 40, 2, 4, 2, 24, 1, 0, 1}};
    for (const Shape& shape : shapes)
        for (int bits : {4, 8, 16}) {
            std::vector<float> portable;
            for (const char* path : names) {
                std::vector<float> expected;
                for (int threads : {1, 2, 3}) run(shape, bits, path, threads, expected);
                if (portable.empty()) portable = expected;
                compare(expected, portable, shape.vocab);
                std::printf("path %s, %d bit\n", path, bits);
            }
        }
    return 0;
}
