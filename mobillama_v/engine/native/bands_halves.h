// A band of rows times activations, each half of it by itself: eight lanes and the registers of most processors hold no
// more. Needs a simd_*.h and, above it, the products of 8-bit numbers.
#pragma once

#include "bands.h"

namespace {

template <bool kAdd>
inline void emit(float* y, F8 value) {
    store(y, kAdd ? add(load(y), value) : value);
}

// One band times `kTokens` tokens whose activations are 8-bit. With one token both halves run together.
template <typename Half, int kTokens, bool kAdd, bool kStream>
void half_by_half(const uint8_t* tiles, int blocks, const Activations& in, float* y, size_t stride) {
    constexpr int kTile = 32 + 2 * Half::kStep;
    const size_t columns = static_cast<size_t>(blocks) * kBlock;
    if (kTokens == 1) {
        F8 upper = zero(), lower = zero();
        const uint8_t* tile = tiles;
        for (int b = 0; b < blocks; b++, tile += kTile) {
            prefetch_tile<kTile, kStream>(tile);
            const uint16_t* scales = reinterpret_cast<const uint16_t*>(tile);
            const int8_t* x = in.values + b * kBlock;
            const F8 scale = set1(in.scales[b]);
            upper = fma(dot(Half(tile + 32), x, in.sums[b]), mul(load_half(scales), scale), upper);
            lower = fma(dot(Half(tile + 32 + Half::kStep), x, in.sums[b]), mul(load_half(scales + 8), scale), lower);
        }
        emit<kAdd>(y, upper);
        emit<kAdd>(y + 8, lower);
        return;
    }
    for (int half = 0; half < 2; half++) {
        F8 total[kTokens];
        for (int t = 0; t < kTokens; t++) total[t] = zero();
        const uint8_t* tile = tiles;
        for (int b = 0; b < blocks; b++, tile += kTile) {
            const F8 weight_scale = load_half(reinterpret_cast<const uint16_t*>(tile) + 8 * half);
            const Half weights(tile + 32 + half * Half::kStep);
MV_UNROLL
            for (int t = 0; t < kTokens; t++) {
                const size_t block = static_cast<size_t>(t) * blocks + b;
                const F8 products = dot(weights, in.values + t * columns + b * kBlock, in.sums[block]);
                total[t] = fma(products, mul(weight_scale, set1(in.scales[block])), total[t]);
            }
        }
        for (int t = 0; t < kTokens; t++) emit<kAdd>(y + t * stride + 8 * half, total[t]);
    }
}

// The same for fp16 weights and fp32 activations. Even and odd columns are summed apart, for two chains to run at once.
template <int kTokens, bool kAdd, bool kStream>
void half_by_half16(const uint8_t* tiles, int blocks, const Activations& in, float* y, size_t stride) {
    const size_t columns = static_cast<size_t>(blocks) * kBlock;
    for (int half = 0; half < 2; half++) {
        F8 even[kTokens], odd[kTokens];
        for (int t = 0; t < kTokens; t++) even[t] = odd[t] = zero();
        const uint16_t* weights = reinterpret_cast<const uint16_t*>(tiles) + 8 * half;
        for (size_t c = 0; c < columns; c += 2, weights += 2 * kRows) {
            if (kTokens == 1 && half == 0) prefetch<kStream>(reinterpret_cast<const uint8_t*>(weights + 1024));
            const F8 first = load_half(weights), second = load_half(weights + kRows);
MV_UNROLL
            for (int t = 0; t < kTokens; t++) {
                even[t] = fma(first, set1(in.floats[t * columns + c]), even[t]);
                odd[t] = fma(second, set1(in.floats[t * columns + c + 1]), odd[t]);
            }
        }
        for (int t = 0; t < kTokens; t++) emit<kAdd>(y + t * stride + 8 * half, add(even[t], odd[t]));
    }
}

template <int kBits, int kTokens, bool kAdd, bool kStream>
inline void band_product(const uint8_t* tiles, int blocks, const Activations& in, float* y, size_t stride) {
    if (kBits == 4) half_by_half<Half4, kTokens, kAdd, kStream>(tiles, blocks, in, y, stride);
    if (kBits == 8) half_by_half<Half8, kTokens, kAdd, kStream>(tiles, blocks, in, y, stride);
    if (kBits == 16) half_by_half16<kTokens, kAdd, kStream>(tiles, blocks, in, y, stride);
}

}  // namespace
