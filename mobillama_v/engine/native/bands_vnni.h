// A band of rows times activations by AVX-512 VNNI, which sums four products of 8-bit numbers into 32 bits at once. All
// sixteen rows are the lanes of one vector: an activation is fetched once for them, and half the instructions do. The sums
// are AVX2's in the same order, so the results are, bit for bit. Included by kernels_vnni.cpp only.
#pragma once

#include "bands.h"

namespace {

inline __m512 load_halves(const uint8_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline __m512i both(const uint8_t* upper, const uint8_t* lower) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(load_bytes(upper)), load_bytes(lower), 1);
}

// The weights of 16 rows x 32 columns. The instruction wants them unsigned: they are, plus `kOffset`.
template <int kBits>
struct Band {
    static constexpr int kStep = 32 * kBits;  // bytes of a half
    static constexpr int kOffset = kBits == 4 ? 8 : 128;
    __m512i part[8];  // 4 columns each
    explicit Band(const uint8_t* p) {
        if (kBits == 4) {
            const __m512i low = _mm512_set1_epi8(15);
MV_UNROLL
            for (int j = 0; j < 4; j++) {
                const __m512i pairs = both(p + 32 * j, p + kStep + 32 * j);
                part[2 * j] = _mm512_and_si512(pairs, low);
                part[2 * j + 1] = _mm512_and_si512(_mm512_srli_epi16(pairs, 4), low);
            }
        } else {
            const __m512i sign = _mm512_set1_epi8(-128);
MV_UNROLL
            for (int j = 0; j < 8; j++) part[j] = _mm512_xor_si512(both(p + 32 * j, p + kStep + 32 * j), sign);
        }
    }
    // Products with 32 activations whose sum times 8 is `sum8`. Two chains, as an instruction waits for the one before it.
    __m512 dot(const int8_t* x, int32_t sum8) const {
        __m512i even = _mm512_set1_epi32(-sum8 * (kOffset / 8)), odd = _mm512_setzero_si512();
MV_UNROLL
        for (int j = 0; j < 8; j += 2) {
            even = _mm512_dpbusd_epi32(even, part[j], _mm512_set1_epi32(four_bytes(x + 4 * j)));
            odd = _mm512_dpbusd_epi32(odd, part[j + 1], _mm512_set1_epi32(four_bytes(x + 4 * j + 4)));
        }
        return _mm512_cvtepi32_ps(_mm512_add_epi32(even, odd));
    }
};

template <int kTokens, bool kAdd>
inline void emit(float* y, size_t stride, const __m512* total) {
    for (int t = 0; t < kTokens; t++) {
        float* out = y + t * stride;
        _mm512_storeu_ps(out, kAdd ? _mm512_add_ps(_mm512_loadu_ps(out), total[t]) : total[t]);
    }
}

template <int kBits, int kTokens, bool kAdd, bool kStream>
void whole(const uint8_t* tiles, int blocks, const Activations& in, float* y, size_t stride) {
    constexpr int kTile = 32 + 2 * Band<kBits>::kStep;
    __m512 total[kTokens];
    for (int t = 0; t < kTokens; t++) total[t] = _mm512_setzero_ps();
    for (int b = 0; b < blocks; b++, tiles += kTile) {
        if (kTokens == 1) prefetch_tile<kTile, kStream>(tiles + kAheadBytes);
        const __m512 weight_scale = load_halves(tiles);
        const Band<kBits> weights(tiles + 32);
MV_UNROLL
        for (int t = 0; t < kTokens; t++) {
            const size_t block = static_cast<size_t>(t) * blocks + b;
            const __m512 products = weights.dot(in.values + block * kBlock, in.sums[block]);
            const __m512 scale = _mm512_mul_ps(weight_scale, _mm512_set1_ps(in.scales[block]));
            total[t] = _mm512_fmadd_ps(products, scale, total[t]);
        }
    }
    emit<kTokens, kAdd>(y, stride, total);
}

// The same for fp16 weights and fp32 activations. Even and odd columns are summed apart, for two chains to run at once.
template <int kTokens, bool kAdd, bool kStream>
void whole16(const uint8_t* tiles, int blocks, const Activations& in, float* y, size_t stride) {
    const size_t columns = static_cast<size_t>(blocks) * kBlock;
    __m512 even[kTokens], odd[kTokens];
    for (int t = 0; t < kTokens; t++) even[t] = odd[t] = _mm512_setzero_ps();
    for (size_t c = 0; c < columns; c += 2, tiles += 4 * kRows) {
        if (kTokens == 1) prefetch<kStream>(tiles + 2048);
        const __m512 first = load_halves(tiles), second = load_halves(tiles + 2 * kRows);
MV_UNROLL
        for (int t = 0; t < kTokens; t++) {
            even[t] = _mm512_fmadd_ps(first, _mm512_set1_ps(in.floats[t * columns + c]), even[t]);
            odd[t] = _mm512_fmadd_ps(second, _mm512_set1_ps(in.floats[t * columns + c + 1]), odd[t]);
        }
    }
    for (int t = 0; t < kTokens; t++) even[t] = _mm512_add_ps(even[t], odd[t]);
    emit<kTokens, kAdd>(y, stride, even);
}

template <int kBits, int kTokens, bool kAdd, bool kStream>
inline void band_product(const uint8_t* tiles, int blocks, const Activations& in, float* y, size_t stride) {
    if (kBits == 16) {
        whole16<kTokens, kAdd, kStream>(tiles, blocks, in, y, stride);
    } else {
        whole<kBits == 4 ? 4 : 8, kTokens, kAdd, kStream>(tiles, blocks, in, y, stride);
    }
}

// Two bands times one token.
template <int kBits, bool kAdd, bool kStream>
inline void pair_product(const uint8_t* tiles, int blocks, const Activations& in, float* y) {
    for (int i = 0; i < 2; i++)
        band_product<kBits, 1, kAdd, kStream>(tiles + i * mv::tile_bytes(kBits) * blocks, blocks, in, y + i * kRows, 0);
}

}  // namespace
