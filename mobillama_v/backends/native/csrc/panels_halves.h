// A panel of rows times activations, each half of it by itself: eight lanes and the registers of most processors hold no
// more. Needs a simd_*.h and, above it, the products of 8-bit numbers.
#pragma once

#include "panels.h"

namespace {

// The widest vectors of floats, and how many queries and vectors of an image tower's attention the registers hold.
using Wide = F8;
constexpr int kLanes = 8, kWideQueries = 4, kWideVectors = 2;
inline Wide wide_load(const float* p) { return load(p); }
inline void wide_store(float* p, Wide v) { store(p, v); }
inline Wide wide_set1(float v) { return set1(v); }
inline Wide wide_zero() { return zero(); }
inline Wide wide_fma(Wide a, Wide b, Wide c) { return fma(a, b, c); }

inline void emit(float* y, F8 value, bool adds) {
    store(y, adds ? add(load(y), value) : value);
}

// Products of `kPanels` tiles, whose weights begin at tiles[0] and so on, with one token's activations: for each tile those
// of the upper and the lower half.
template <typename Half, int kPanels>
inline void dot_tiles(const uint8_t* const* tiles, const int8_t* x, int32_t sum8, F8* out) {
    for (int i = 0; i < kPanels; i++) {
        out[2 * i] = dot(Half(tiles[i]), x, sum8);
        out[2 * i + 1] = dot(Half(tiles[i] + Half::kStep), x, sum8);
    }
}

// `kPanels` panels times one token, in step.
template <typename Half, int kPanels, bool kStream>
void one_token(const uint8_t* tiles, int blocks, const Activations& in, float* y, bool adds) {
    constexpr int kTile = 32 + 2 * Half::kStep, kAhead = kAheadBytes / kTile;
    const size_t panel_bytes = static_cast<size_t>(blocks) * kTile;
    F8 total[2 * kPanels];
    for (F8& each : total) each = zero();
    for (int b = 0; b < blocks; b++, tiles += kTile) {
        const uint8_t* panel[kPanels];
        const uint8_t* weights[kPanels];
        // Behind the end of these panels lie the next ones.
        const uint8_t* later = tiles + kAhead * kTile + (b + kAhead < blocks ? 0 : (kPanels - 1) * panel_bytes);
        for (int i = 0; i < kPanels; i++) {
            panel[i] = tiles + i * panel_bytes;
            weights[i] = panel[i] + 32;
            prefetch_tile<kTile, kStream>(later + i * panel_bytes);
        }
        F8 products[2 * kPanels];
        dot_tiles<Half, kPanels>(weights, in.values + b * kBlock, in.sums[b], products);
        const F8 scale = set1(in.scales[b]);
        for (int i = 0; i < 2 * kPanels; i++) {
            const F8 each = load_half(reinterpret_cast<const uint16_t*>(panel[i / 2]) + 8 * (i % 2));
            total[i] = fma(products[i], mul(each, scale), total[i]);
        }
    }
    for (int i = 0; i < 2 * kPanels; i++) emit(y + 8 * i, total[i], adds);
}

// One panel times `kTokens` tokens whose activations are 8-bit.
template <typename Half, int kTokens, bool kStream>
void half_by_half(const uint8_t* tiles, int blocks, const Activations& in, float* y, size_t stride, bool adds) {
    if (kTokens == 1) return one_token<Half, 1, kStream>(tiles, blocks, in, y, adds);
    constexpr int kTile = 32 + 2 * Half::kStep;
    const size_t columns = static_cast<size_t>(blocks) * kBlock;
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
        for (int t = 0; t < kTokens; t++) emit(y + t * stride + 8 * half, total[t], adds);
    }
}

// The same for fp16 weights and fp32 activations. Even and odd columns are summed apart, for two chains to run at once.
template <int kTokens, bool kStream>
void half_by_half16(const uint8_t* tiles, int blocks, const Activations& in, float* y, size_t stride, bool adds) {
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
        for (int t = 0; t < kTokens; t++) emit(y + t * stride + 8 * half, add(even[t], odd[t]), adds);
    }
}

template <int kBits, int kTokens, bool kStream>
inline void panel_product(const uint8_t* tiles, int blocks, const Activations& in, float* y, size_t stride, bool adds) {
    if (kBits == 4) half_by_half<Half4, kTokens, kStream>(tiles, blocks, in, y, stride, adds);
    if (kBits == 8) half_by_half<Half8, kTokens, kStream>(tiles, blocks, in, y, stride, adds);
    if (kBits == 16) half_by_half16<kTokens, kStream>(tiles, blocks, in, y, stride, adds);
}

// One or two panels times up to kTokenTile tokens.
template <int kBits, int kPanels>
inline void panels_times_tokens(const uint8_t* tiles, int blocks, const Activations& in, int tokens, float* y, size_t stride,
                                bool adds) {
    for (int p = 0; p < kPanels; p++)
        in_groups<4>(tokens, [&](auto count, int first) {
            panel_product<kBits, decltype(count)::value, false>(tiles + mv::tile_bytes(kBits) * blocks * p, blocks,
                                                                activations_from(in, blocks, first),
                                                                y + first * stride + p * kRows, stride, adds);
        });
}

// Two panels times one token: what is fetched of its activations serves both. Nothing is gained by asking for what comes next.
template <int kBits, bool kStream>
inline void pair_product(const uint8_t* tiles, int blocks, const Activations& in, float* y, bool adds,
                         const uint8_t*) {
    if (kBits == 4) return one_token<Half4, 2, kStream>(tiles, blocks, in, y, adds);
    for (int i = 0; i < 2; i++)
        panel_product<kBits, 1, kStream>(tiles + i * mv::tile_bytes(kBits) * blocks, blocks, in, y + i * kRows, 0, adds);
}

}  // namespace
