// A panel of rows times activations by AVX-512 VNNI, which sums four products of 8-bit numbers into 32 bits at once. All
// sixteen rows are the lanes of one vector: an activation is fetched once for them, and half the instructions do. The sums
// are AVX2's in the same order, so the results are, bit for bit. Included by kernels_vnni.cpp only.
#pragma once

#include "panels.h"

namespace {

// The widest vectors of floats, and how many queries and vectors of an image tower's attention the registers hold.
using Wide = __m512;
constexpr int kLanes = 16, kWideQueries = 4, kWideVectors = 4;
inline Wide wide_load(const float* p) { return _mm512_loadu_ps(p); }
inline void wide_store(float* p, Wide v) { _mm512_storeu_ps(p, v); }
inline Wide wide_set1(float v) { return _mm512_set1_ps(v); }
inline Wide wide_zero() { return _mm512_setzero_ps(); }
inline Wide wide_fma(Wide a, Wide b, Wide c) { return _mm512_fmadd_ps(a, b, c); }

inline __m512 load_halves(const uint8_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline __m512i both(const uint8_t* upper, const uint8_t* lower) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(load_bytes(upper)), load_bytes(lower), 1);
}

// The weights of 16 rows x 32 columns. The instruction wants them unsigned: they are, plus `kOffset`.
template <int kBits>
struct RowPanel {
    static constexpr int kStep = 32 * kBits;  // bytes of a half
    static constexpr int kOffset = kBits == 4 ? 8 : 128;
    __m512i part[8];  // 4 columns each
    explicit RowPanel(const uint8_t* p) {
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
    // Products with 32 activations whose sum times -8 is `sum8`. Two chains, as an instruction waits for the one before it.
    __m512 dot(const int8_t* x, int32_t sum8) const {
        __m512i even = _mm512_set1_epi32(sum8 * (kOffset / 8)), odd = _mm512_setzero_si512();
MV_UNROLL
        for (int j = 0; j < 8; j += 2) {
            even = _mm512_dpbusd_epi32(even, part[j], _mm512_set1_epi32(four_bytes(x + 4 * j)));
            odd = _mm512_dpbusd_epi32(odd, part[j + 1], _mm512_set1_epi32(four_bytes(x + 4 * j + 4)));
        }
        return _mm512_cvtepi32_ps(_mm512_add_epi32(even, odd));
    }
};

template <int kTokens>
inline void emit(float* y, size_t stride, const __m512* total, bool adds) {
    for (int t = 0; t < kTokens; t++) {
        float* out = y + t * stride;
        _mm512_storeu_ps(out, adds ? _mm512_add_ps(_mm512_loadu_ps(out), total[t]) : total[t]);
    }
}

template <int kBits, int kTokens, bool kStream>
void whole(const uint8_t* tiles, int blocks, const Activations& in, float* y, size_t stride, bool adds) {
    constexpr int kTile = 32 + 2 * RowPanel<kBits>::kStep;
    __m512 total[kTokens];
    for (int t = 0; t < kTokens; t++) total[t] = _mm512_setzero_ps();
    for (int b = 0; b < blocks; b++, tiles += kTile) {
        if (kTokens == 1) prefetch_tile<kTile, kStream>(tiles + kAheadBytes);
        const __m512 weight_scale = load_halves(tiles);
        const RowPanel<kBits> weights(tiles + 32);
MV_UNROLL
        for (int t = 0; t < kTokens; t++) {
            const size_t block = static_cast<size_t>(t) * blocks + b;
            const __m512 products = weights.dot(in.values + block * kBlock, in.sums[block]);
            const __m512 scale = _mm512_mul_ps(weight_scale, _mm512_set1_ps(in.scales[block]));
            total[t] = _mm512_fmadd_ps(products, scale, total[t]);
        }
    }
    emit<kTokens>(y, stride, total, adds);
}

// The same for fp16 weights and fp32 activations. Even and odd columns are summed apart, for two chains to run at once.
template <int kTokens, bool kStream>
void whole16(const uint8_t* tiles, int blocks, const Activations& in, float* y, size_t stride, bool adds) {
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
    emit<kTokens>(y, stride, even, adds);
}

template <int kBits, int kTokens, bool kStream>
inline void panel_product(const uint8_t* tiles, int blocks, const Activations& in, float* y, size_t stride, bool adds) {
    if (kBits == 16) {
        whole16<kTokens, kStream>(tiles, blocks, in, y, stride, adds);
    } else {
        whole<kBits == 4 ? 4 : 8, kTokens, kStream>(tiles, blocks, in, y, stride, adds);
    }
}

// Two panels of 4-bit weights that lie in a cache times one token: there the kernel waits for its own instructions. Each
// activation is fetched once for both panels, high nibbles are multiplied where they are, as 16 times themselves, and none of
// these weights is asked for ahead, which the processor does as well by itself; but a line of `next` is, since memory has
// nothing to do. Alone the kernel is 15 % faster than one panel after the other, and with weights from memory, where two
// places at a time are slower than one, 10 to 40 % slower.
inline void resident_pair(const uint8_t* tiles, int blocks, const Activations& in, float* y, bool adds,
                         const uint8_t* next) {
    constexpr int kStep = RowPanel<4>::kStep, kTile = 32 + 2 * kStep;
    const size_t apart = static_cast<size_t>(kTile) * blocks;
    const __m512i low = _mm512_set1_epi8(15), high = _mm512_set1_epi8(-16);
    __m512 total[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int b = 0; b < blocks; b++, tiles += kTile) {
        const int8_t* x = in.values + b * kBlock;
        if (next != nullptr) _mm_prefetch(reinterpret_cast<const char*>(next) + b * 64, _MM_HINT_T1);
        __m512i lows[2], highs[2];
        for (int i = 0; i < 2; i++) lows[i] = highs[i] = _mm512_setzero_si512();
MV_UNROLL
        for (int j = 0; j < 4; j++) {
            const __m512i first = _mm512_set1_epi32(four_bytes(x + 8 * j));
            const __m512i second = _mm512_set1_epi32(four_bytes(x + 8 * j + 4));
            for (int i = 0; i < 2; i++) {
                const uint8_t* group = tiles + i * apart + 32 + 32 * j;
                const __m512i pairs = both(group, group + kStep);
                lows[i] = _mm512_dpbusd_epi32(lows[i], _mm512_and_si512(pairs, low), first);
                highs[i] = _mm512_dpbusd_epi32(highs[i], _mm512_and_si512(pairs, high), second);
            }
        }
        const __m512i offset = _mm512_set1_epi32(in.sums[b]);
        const __m512 scale = _mm512_set1_ps(in.scales[b]);
        for (int i = 0; i < 2; i++) {
            const __m512i sums = _mm512_add_epi32(lows[i], _mm512_srai_epi32(highs[i], 4));
            total[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(sums, offset)),
                                       _mm512_mul_ps(load_halves(tiles + i * apart), scale), total[i]);
        }
    }
    for (int i = 0; i < 2; i++) emit<1>(y + i * kRows, 0, total + i, adds);
}

// Two panels times one token.
template <int kBits, bool kStream>
inline void pair_product(const uint8_t* tiles, int blocks, const Activations& in, float* y, bool adds,
                         const uint8_t* next) {
    if (kBits == 4 && !kStream) return resident_pair(tiles, blocks, in, y, adds, next);
    for (int i = 0; i < 2; i++)
        panel_product<kBits, 1, kStream>(tiles + i * mv::tile_bytes(kBits) * blocks, blocks, in, y + i * kRows, 0, adds);
}

}  // namespace
