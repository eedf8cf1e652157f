// Panels of rows times many tokens by AVX-512 VNNI. Included by kernels_vnni.cpp only, below panels_vnni.h.
#pragma once

namespace {

// Blocks of one or two panels that are unpacked together: with their activations they stay in the first-level cache. Two
// panels share what is loaded of the activations, for loads are what the kernel waits for.
template <int kPanels>
struct Unpacked {
    static constexpr int kSpan = 32 / kPanels;
    __m512i weights[kSpan][8][kPanels];  // as in a RowPanel
    __m512 scales[kSpan][kPanels];
};

// `blocks` of what was unpacked times several tokens, whose activations lie `apart` blocks from each other. `totals` goes on
// from span to span.
template <int kBits, int kPanels, int kTokens>
inline void span_product(const Unpacked<kPanels>& span, int blocks, const Activations& in, int apart,
                         __m512 (*totals)[kPanels]) {
    __m512 total[kTokens][kPanels];
    for (int t = 0; t < kTokens; t++)
        for (int p = 0; p < kPanels; p++) total[t][p] = totals[t][p];
    const size_t columns = static_cast<size_t>(apart) * kBlock;
    for (int b = 0; b < blocks; b++) {
        const int8_t* x = in.values + b * kBlock;
        __m512i sums[kTokens][kPanels];
MV_UNROLL
        for (int t = 0; t < kTokens; t++) {
            const __m512i sum8 = _mm512_set1_epi32(in.sums[static_cast<size_t>(t) * apart + b]);
            for (int p = 0; p < kPanels; p++) sums[t][p] = kBits == 4 ? sum8 : _mm512_slli_epi32(sum8, 4);
        }
MV_UNROLL
        for (int j = 0; j < 8; j++)
MV_UNROLL
            for (int t = 0; t < kTokens; t++) {
                const __m512i each = _mm512_set1_epi32(four_bytes(x + t * columns + 4 * j));
                for (int p = 0; p < kPanels; p++) sums[t][p] = _mm512_dpbusd_epi32(sums[t][p], span.weights[b][j][p], each);
            }
MV_UNROLL
        for (int t = 0; t < kTokens; t++) {
            const __m512 scale = _mm512_set1_ps(in.scales[static_cast<size_t>(t) * apart + b]);
            for (int p = 0; p < kPanels; p++)
                total[t][p] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[t][p]), _mm512_mul_ps(span.scales[b][p], scale),
                                              total[t][p]);
        }
    }
    for (int t = 0; t < kTokens; t++)
        for (int p = 0; p < kPanels; p++) totals[t][p] = total[t][p];
}

// Panels times up to kTokenTile tokens: they are unpacked once for all of them.
template <int kBits, int kPanels>
void unpacked_times_tokens(const uint8_t* tiles, int blocks, const Activations& in, int tokens, float* y, size_t stride,
                           bool adds) {
    constexpr int kTile = 32 + 2 * RowPanel<kBits>::kStep, kSpan = Unpacked<kPanels>::kSpan;
    Unpacked<kPanels> span;
    __m512 totals[mv::kTokenTile][kPanels];
    for (int t = 0; t < tokens; t++)
        for (int p = 0; p < kPanels; p++) totals[t][p] = _mm512_setzero_ps();
    for (int start = 0; start < blocks; start += kSpan) {
        const int here = blocks - start < kSpan ? blocks - start : kSpan;
        for (int p = 0; p < kPanels; p++) {
            const uint8_t* tile = tiles + (static_cast<size_t>(p) * blocks + start) * kTile;
            for (int b = 0; b < here; b++, tile += kTile) {
                const RowPanel<kBits> weights(tile + 32);
                for (int j = 0; j < 8; j++) span.weights[b][j][p] = weights.part[j];
                span.scales[b][p] = load_halves(tile);
            }
        }
        const Activations from{in.values + start * kBlock, in.scales + start, in.sums + start, nullptr};
        in_groups<8 / kPanels>(tokens, [&](auto count, int first) {
            span_product<kBits, kPanels, decltype(count)::value>(span, here, activations_from(from, blocks, first), blocks,
                                                                 totals + first);
        });
    }
    for (int t = 0; t < tokens; t++)
        for (int p = 0; p < kPanels; p++) emit<1>(y + t * stride + p * kRows, 0, &totals[t][p], adds);
}

// One or two panels times up to kTokenTile tokens.
template <int kBits, int kPanels>
inline void panels_times_tokens(const uint8_t* tiles, int blocks, const Activations& in, int tokens, float* y, size_t stride,
                                bool adds) {
    if constexpr (kBits != 16) {
        unpacked_times_tokens<kBits, kPanels>(tiles, blocks, in, tokens, y, stride, adds);
    } else {
        for (int p = 0; p < kPanels; p++)
            in_groups<8>(tokens, [&](auto count, int first) {
                whole16<decltype(count)::value, false>(tiles + mv::tile_bytes(16) * blocks * p, blocks,
                                                       activations_from(in, blocks, first),
                                                       y + first * stride + p * kRows, stride, adds);
            });
    }
}

}  // namespace
