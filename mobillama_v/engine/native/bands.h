// What all products of bands share. Needs a simd_*.h above it.
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

// How far ahead weights are asked for: what a processor waits for memory, and no less for a cache that others use too.
// Measured (two threads): 2 KB, enough where nobody else does, left the shared network's products a fifth slower than 4 KB.
constexpr int kAhead = 8192;

// Ask for the weights of a later tile; `scales` are those of this one. Only with one token does memory set the pace.
template <int kTile, bool kStream>
inline void prefetch_tile(const uint8_t* scales) {
    for (int line = 0; line < kTile; line += 64) prefetch<kStream>(scales + kAhead + line);
}

}  // namespace
