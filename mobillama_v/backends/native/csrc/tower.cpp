#include "tower.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <mutex>
#include <string>

#include "model.h"
#include "tensor_reader.h"
#include "units.h"

namespace mv {
namespace {

constexpr int kTokensAtOnce = 1024;  // of several images that pass a layer together, for its weights to be read once
constexpr int kRowsAtOnce = 8;       // of a unit of work on single tokens

void check(const mv_tower_config& c) {
    within("image", c.image, 1, 1 << 13);
    within("patch", c.patch, 1, c.image);
    within("width", c.width, 1, 1 << 14);
    within("layers", c.layers, 1, 1 << 10);
    within("heads", c.heads, 1, c.width);
    within("mlp", c.mlp, 1, 1 << 16);
    within("class_token", c.class_token, 0, 1);
    within("activation", c.activation, 0, 2);
    within("pre_norm", c.pre_norm, 0, 1);
    within("final_norm", c.final_norm, 0, 1);
    within("keep_class", c.keep_class, 0, c.class_token);
    const int64_t side = c.image / c.patch;
    within("tokens", side * side, 1, 1 << 16);
    if (c.width % c.heads) fail("the width must be a multiple of the heads");
    if (!(c.eps >= 0)) fail("eps must be positive");
}

}  // namespace
}  // namespace mv

mv_tower::mv_tower(mv_thread_pool* pool, const mv_tower_config& config, const mv_span* tensors, int count)
    : config_(config), pool_(*pool) {
    using mv::Buffer;
    using mv::round_up;
    mv::check(config);
    const mv_tower_config& c = config_;
    side_ = c.image / c.patch;
    patches_ = side_ * side_;
    tokens_ = patches_ + c.class_token;
    width_ = round_up(c.width, mv::kBlock);
    padded_ = round_up(tokens_, 16);
    value_width_ = round_up(c.width / c.heads, 16);
    together_ = std::max(1, mv::kTokensAtOnce / tokens_);

    mv::TensorReader reader(tensors, count);
    const size_t all = static_cast<size_t>(together_) * tokens_;
    int inputs[2] = {0, 0}, inner[2] = {0, 0};  // columns at most, quantized and fp32
    const auto matrix = [&](int rows, int columns, int* widest) {
        const mv::Weights weights = mv::checked_weights(reader.next(), rows, columns);
        int& most = widest[weights.bits == 16];
        most = std::max(most, weights.blocks * mv::kBlock);
        return weights;
    };
    const auto linear = [&](int rows, int columns, int* widest) {
        mv::TowerLinear out;
        out.weights = matrix(rows, columns, widest);
        out.bias = reader.floats(rows);
        out.rows = rows;
        return out;
    };
    const auto norm = [&] {
        mv::LayerNorm out;
        out.weight = reader.floats(c.width);
        out.bias = reader.floats(c.width);
        return out;
    };
    patch_ = matrix(c.width, 3 * c.patch * c.patch, inputs);
    positions_ = Buffer<float>(static_cast<size_t>(tokens_) * c.width, false);
    std::memcpy(positions_.get(), reader.next(uint64_t{4} * tokens_ * c.width), sizeof(float) * tokens_ * c.width);
    if (c.pre_norm) pre_norm_ = norm();
    for (int i = 0; i < c.layers; i++) {
        mv::TowerBlock block;
        block.attention_norm = norm();
        block.qkv = linear(3 * c.width, c.width, inputs);
        block.out = linear(c.width, c.width, inputs);
        block.ffn_norm = norm();
        block.up = linear(c.mlp, c.width, inputs);
        block.down = linear(c.width, c.mlp, inner);
        blocks_.push_back(std::move(block));
    }
    if (c.final_norm) final_norm_ = norm();
    reader.end();

    x_ = Buffer<float>(all * width_);
    qkv_ = Buffer<float>(all * 3 * c.width, false);
    attended_ = Buffer<float>(all * width_);
    inputs_ = {mv::ActivationBuffer(all, inputs[0], false), mv::ActivationBuffer(all, inputs[1], true)};
    inner_ = {mv::ActivationBuffer(all, inner[0], false), mv::ActivationBuffer(all, inner[1], true)};
    const size_t head = c.width / c.heads, queries = mv::kTowerQueries;
    scratch_.resize(static_cast<size_t>(pool_.pool.threads()));
    for (mv::TowerScratch& scratch : scratch_) {
        scratch.row = Buffer<float>(std::max(width_, patch_.blocks * mv::kBlock));
        scratch.sums = Buffer<float>(mv::kUnitSums);
        scratch.queries = Buffer<float>(queries * head);
        scratch.keys = Buffer<float>(head * padded_);
        scratch.values = Buffer<float>(static_cast<size_t>(tokens_) * value_width_);
        scratch.scores = Buffer<float>(queries * padded_);
        scratch.attended = Buffer<float>(queries * value_width_);
    }
}

// Whoever computes a number, it is computed in the same order.
struct mv_tower::Run {
    mv_tower& tower;
    mv::ThreadPool& threads;
    mv::TowerScratch& scratch;
    const mv::Kernels& kernels;
    mv::UnitTaker taker;
    const int images, rows;  // rows: tokens of all images

    const mv_tower_config& config() const { return tower.config_; }
    float* x(int row) const { return tower.x_.get() + static_cast<size_t>(row) * tower.width_; }

    template <typename F>
    void each(int count, const F& f) {
        taker.run((count + mv::kRowsAtOnce - 1) / mv::kRowsAtOnce, [&](int unit) {
            const int end = std::min(count, (unit + 1) * mv::kRowsAtOnce);
            for (int i = unit * mv::kRowsAtOnce; i < end; i++) f(i);
        });
        threads.barrier();
    }
    template <typename F>
    void product(const mv::Weights& weights, const mv::Activations& in, int count, const F& f) {
        mv::multiply(taker, kernels, weights.bits, weights, in, count, scratch.sums.get(), f);
        threads.barrier();
    }
    void quantize(const float* from, const mv::Weights& weights, int row) {
        const mv::ActivationBuffer& inputs = tower.inputs_.of(weights);
        kernels.quantize(from, nullptr, 0.0f, tower.width_, 0, weights.blocks, weights.bits == 16,
                         inputs.at(row, weights.blocks));
    }
    void normalize(const mv::LayerNorm& norm, const float* from, float* to) {
        kernels.layer_norm(from, norm.weight.get(), norm.bias.get(), static_cast<float>(config().eps), config().width, to);
    }

    void embed(const float* pixels) {
        const int patch = config().patch, side = tower.side_, image = config().image;
        const mv::Weights& weights = tower.patch_;
        const mv::ActivationBuffer& inputs = tower.inputs_.of(weights);
        each(images * tower.patches_, [&](int i) {
            const int n = i / tower.patches_, top = i % tower.patches_ / side * patch, left = i % side * patch;
            float* to = scratch.row.get();
            for (int line = 0; line < 3 * patch; line++, to += patch) {
                const size_t at = (static_cast<size_t>(3 * n + line / patch) * image + top + line % patch) * image + left;
                std::memcpy(to, pixels + at, sizeof(float) * patch);
            }
            std::fill(to, scratch.row.get() + weights.blocks * mv::kBlock, 0.0f);
            kernels.quantize(scratch.row.get(), nullptr, 0.0f, 0, 0, weights.blocks, weights.bits == 16,
                             inputs.at(i, weights.blocks));
        });
        product(weights, inputs.at(0, weights.blocks), images * tower.patches_, [&](int i, int first, const float* sums) {
            const int token = config().class_token + i % tower.patches_, count = std::min(mv::kUnitRows, config().width - first);
            const float* position = tower.positions_.get() + static_cast<size_t>(token) * config().width + first;
            float* to = x(i / tower.patches_ * tower.tokens_ + token) + first;
            for (int j = 0; j < count; j++) to[j] = sums[j] + position[j];
        });
        each(rows, [&](int row) {
            if (config().class_token && row % tower.tokens_ == 0)  // whose position is its embedding too
                std::memcpy(x(row), tower.positions_.get(), sizeof(float) * config().width);
            if (config().pre_norm) normalize(tower.pre_norm_, x(row), x(row));
        });
    }

    void attend(int unit) {
        const int width = config().width, head = width / config().heads, tokens = tower.tokens_;
        const size_t stride = 3 * static_cast<size_t>(width);
        const int n = unit / config().heads, at = unit % config().heads * head;
        const float* first = tower.qkv_.get() + static_cast<size_t>(n) * tokens * stride + at;
        for (int t = 0; t < tokens; t++)
            std::memcpy(scratch.values.get() + static_cast<size_t>(t) * tower.value_width_, first + t * stride + 2 * width,
                        sizeof(float) * head);
        constexpr int kTogether = 8;  // keys, for their lines to stay in the cache until they are read to the end
        for (int start = 0; start < tokens; start += kTogether) {
            const int count = std::min(kTogether, tokens - start);
            for (int i = 0; i < head; i++) {
                float* column = scratch.keys.get() + static_cast<size_t>(i) * tower.padded_ + start;
                for (int j = 0; j < count; j++) column[j] = first[(start + j) * stride + width + i];
            }
        }
        const float scale = 1.0f / std::sqrt(static_cast<float>(head));
        const mv::HeadBlock block{scratch.queries.get(),  scratch.keys.get(), scratch.values.get(), scratch.scores.get(),
                                  scratch.attended.get(), tokens,             tower.padded_,        head,
                                  tower.value_width_};
        for (int start = 0; start < tokens; start += mv::kTowerQueries) {
            const int count = std::min(mv::kTowerQueries, tokens - start);
            for (int q = 0; q < count; q++)
                for (int i = 0; i < head; i++) scratch.queries.get()[q * head + i] = first[(start + q) * stride + i] * scale;
            kernels.attend_all(block, count);
            for (int q = 0; q < count; q++)
                std::memcpy(tower.attended_.get() + static_cast<size_t>(n * tokens + start + q) * tower.width_ + at,
                            scratch.attended.get() + q * tower.value_width_, sizeof(float) * head);
        }
    }

    void add(const mv::TowerLinear& layer, const mv::TowerInputs& inputs) {
        product(layer.weights, inputs.of(layer.weights).at(0, layer.weights.blocks), rows,
                [&](int row, int first, const float* sums) {
                    float* to = x(row) + first;
                    const int count = std::min(mv::kUnitRows, layer.rows - first);
                    for (int i = 0; i < count; i++) to[i] += sums[i] + layer.bias.get()[first + i];
                });
    }

    void norm_to(const mv::LayerNorm& norm, const mv::Weights& weights) {
        float* row_of = scratch.row.get();
        std::fill(row_of + config().width, row_of + tower.width_, 0.0f);
        each(rows, [&](int row) {
            normalize(norm, x(row), row_of);
            quantize(row_of, weights, row);
        });
    }

    void run(const mv::TowerBlock& block) {
        norm_to(block.attention_norm, block.qkv.weights);
        const mv::TowerLinear &qkv = block.qkv, &up = block.up;
        product(qkv.weights, tower.inputs_.of(qkv.weights).at(0, qkv.weights.blocks), rows,
                [&](int row, int first, const float* sums) {
                    float* to = tower.qkv_.get() + static_cast<size_t>(row) * qkv.rows + first;
                    const int count = std::min(mv::kUnitRows, qkv.rows - first);
                    for (int i = 0; i < count; i++) to[i] = sums[i] + qkv.bias.get()[first + i];
                });
        taker.run(int64_t{1} * images * config().heads, [&](int unit) { attend(unit); });
        threads.barrier();
        each(rows, [&](int row) {
            quantize(tower.attended_.get() + static_cast<size_t>(row) * tower.width_, block.out.weights, row);
        });
        add(block.out, tower.inputs_);
        norm_to(block.ffn_norm, up.weights);
        const mv::Weights& down = block.down.weights;
        product(up.weights, tower.inputs_.of(up.weights).at(0, up.weights.blocks), rows,
                [&](int row, int first, const float* sums) {
                    alignas(64) float hidden[mv::kUnitRows] = {};
                    const int count = std::min(mv::kUnitRows, up.rows - first), blocks = (count + mv::kBlock - 1) / mv::kBlock;
                    for (int i = 0; i < count; i++) hidden[i] = sums[i] + up.bias.get()[first + i];
                    kernels.activate(config().activation, hidden, mv::round_up(count, 8));
                    kernels.quantize(hidden, nullptr, 0.0f, 0, 0, blocks, down.bits == 16,
                                     tower.inner_.of(down).at(row, down.blocks, first / mv::kBlock));
                });
        add(block.down, tower.inner_);
    }

    void finish(float* features) {
        const int dropped = config().class_token - config().keep_class, kept = tower.tokens_ - dropped;
        each(images * kept, [&](int i) {
            const float* from = x(i / kept * tower.tokens_ + dropped + i % kept);
            float* to = features + static_cast<size_t>(i) * config().width;
            if (config().final_norm) {
                normalize(tower.final_norm_, from, to);
            } else {
                std::memcpy(to, from, sizeof(float) * config().width);
            }
        });
    }
};

void mv_tower::encode(const float* pixels, int images, float* features) {
    if (images < 0) mv::fail("there are " + std::to_string(images) + " images");
    std::lock_guard<mv::ForkSafeMutex> lock(pool_.mutex);
    mv::ThreadPool& threads = pool_.pool.get();
    const size_t picture = size_t{3} * config_.image * config_.image;
    const size_t kept = static_cast<size_t>(patches_ + config_.keep_class) * config_.width;
    for (int first = 0; first < images; first += together_) {
        const int some = std::min(together_, images - first);
        std::atomic<int64_t> next{0};
        threads.run([&](int thread) {
            Run run{*this, threads, scratch_[static_cast<size_t>(thread)], *pool_.path.kernels, mv::UnitTaker(next), some,
                    some * tokens_};
            run.embed(pixels + first * picture);
            for (const mv::TowerBlock& block : blocks_) run.run(block);
            run.finish(features + first * kept);
        });
    }
}
