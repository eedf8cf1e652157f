// Image towers: vision transformers with learned positions and layer norms before attention and network.
#pragma once

#include <memory>
#include <vector>

#include "linear.h"

namespace mv {

struct LayerNorm {
    Buffer<float> weight, bias;
};
// A linear layer with bias, of `rows` outputs.
struct TowerLinear {
    Weights weights;
    Buffer<float> bias;
    int rows = 0;
};
struct TowerBlock {
    LayerNorm attention_norm, ffn_norm;
    TowerLinear qkv, out, up, down;
};
// Inputs of matrices of 8 and of 16 bits.
struct TowerInputs {
    ActivationBuffer quantized, floats;
    const ActivationBuffer& of(const Weights& weights) const { return weights.bits == 16 ? floats : quantized; }
};
// Of one thread.
struct TowerScratch {
    Buffer<float> row, sums, queries, keys, values, scores, attended;
};

}  // namespace mv

struct mv_tower {
    // Checks a configuration and its tensors; throws what fail() throws, or std::bad_alloc.
    mv_tower(mv_thread_pool* pool, const mv_tower_config& config, const mv_span* tensors, int count);

    // What mv_tower_encode() does.
    void encode(const float* pixels, int images, float* features);

   private:
    struct Run;  // one thread's work on some images

    const mv_tower_config config_;
    mv_thread_pool& pool_;
    int side_, patches_, tokens_, width_, padded_, value_width_, together_;  // padded_: tokens
    mv::Weights patch_;
    mv::Buffer<float> positions_;
    mv::LayerNorm pre_norm_, final_norm_;
    std::vector<mv::TowerBlock> blocks_;
    mv::Buffer<float> x_, qkv_, attended_;
    mv::TowerInputs inputs_, inner_;  // those that are made while `inputs_` are read: of the network's second layer
    std::vector<mv::TowerScratch> scratch_;
};
