// What all products of panels share. Needs a simd_*.h above it.
#pragma once

namespace {

using mv::Activations;
using mv::kBlock;
using mv::kRows;

template <bool kStream>
inline void prefetch(const uint8_t* p) {
    if (kStream) {
        prefetch_once(p);
    } else {
        prefetch_keep(p);
    }
}

// How far ahead weights are asked for: processors wait long for memory, and for a cache that others use too. Measured by
// turns, token by token (two threads): 4 KB make a token of decoding 3 % slower, 8 and 16 KB 2 %.
constexpr int kAheadBytes = 12288;

// Ask for a tile. Only with one token does memory set the pace.
template <int kTile, bool kStream>
inline void prefetch_tile(const uint8_t* tile) {
    for (int line = 0; line < kTile; line += 64) prefetch<kStream>(tile + line);
}

// Those of the tokens from `tokens` on.
inline Activations activations_from(const Activations& in, int blocks, int tokens) {
    const size_t skip = static_cast<size_t>(tokens) * blocks;
    if (in.floats != nullptr) return {nullptr, nullptr, nullptr, in.floats + skip * kBlock};
    return {in.values + skip * kBlock, in.scales + skip, in.sums + skip, nullptr};
}

// Calls f(count, first) for all of `tokens`, as many at once as the registers hold.
template <int kMost, typename F>
inline void in_groups(int tokens, const F& f) {
    int t = 0;
    for (; t + kMost <= tokens; t += kMost) f(std::integral_constant<int, kMost>(), t);
    if constexpr (kMost > 1)
        if (t < tokens) in_groups<kMost / 2>(tokens - t, [&](auto count, int first) { f(count, t + first); });
}

}  // namespace
