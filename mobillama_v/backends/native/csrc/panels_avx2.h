// What AVX2 does otherwise than panels_halves.h, with the same sums in the same order. From the cache, and with several
// tokens, instructions are what is short: whatever is fetched or unpacked serves all that it can while it is in a register,
// and the sixteen registers are not left to the compiler. Included by kernels_avx2.cpp only, below panels_halves.h.
#pragma once

namespace {

// Keeps the compiler from summing as a tree, for which it would need more registers than there are: without this,
// products of 4-bit weights with several tokens take half as long again.
inline void in_order(__m256i& sum) {
#if defined(__GNUC__)
    asm("" : "+x"(sum));
#else
    (void)sum;
#endif
}

// One token: the halves of the tiles in step.
template <int kPanels>
inline void dot_halves(const uint8_t* const* tiles, const int8_t* x, int32_t sum8, F8* out) {
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1), offset = _mm256_set1_epi32(sum8);
    __m256i sums[2 * kPanels];
    for (__m256i& sum : sums) sum = _mm256_setzero_si256();
MV_UNROLL
    for (int j = 0; j < 4; j++) {
        const __m256i first = four(x + 8 * j), second = four(x + 8 * j + 4);
MV_UNROLL
        for (int i = 0; i < 2 * kPanels; i++) {
            const __m256i pairs = load_bytes(tiles[i / 2] + i % 2 * Half4::kStep + 32 * j);
            const __m256i upper = _mm256_and_si256(_mm256_srli_epi16(pairs, 4), low);
            sums[i] = _mm256_add_epi16(sums[i], _mm256_maddubs_epi16(_mm256_and_si256(pairs, low), first));
            sums[i] = _mm256_add_epi16(sums[i], _mm256_maddubs_epi16(upper, second));
            in_order(sums[i]);
        }
    }
    for (int i = 0; i < 2 * kPanels; i++)
        out[i] = _mm256_cvtepi32_ps(_mm256_add_epi32(_mm256_madd_epi16(sums[i], ones), offset));
}

template <>
inline void dot_tiles<Half4, 1>(const uint8_t* const* tiles, const int8_t* x, int32_t sum8, F8* out) {
    dot_halves<1>(tiles, x, sum8, out);
}
template <>
inline void dot_tiles<Half4, 2>(const uint8_t* const* tiles, const int8_t* x, int32_t sum8, F8* out) {
    dot_halves<2>(tiles, x, sum8, out);
}

// Half a panel of 4-bit weights times several tokens: weights are unpacked four columns of each nibble at a time.
template <int kTokens>
inline void half_at_once(const uint8_t* tiles, int half, int blocks, const Activations& in, float* y, size_t stride,
                         bool adds) {
    constexpr int kTile = 32 + 2 * Half4::kStep;
    const size_t columns = static_cast<size_t>(blocks) * kBlock;
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
    F8 total[kTokens];
    for (int t = 0; t < kTokens; t++) total[t] = zero();
    for (int b = 0; b < blocks; b++, tiles += kTile) {
        const uint8_t* weights = tiles + 32 + half * Half4::kStep;
        const int8_t* x = in.values + b * kBlock;
        __m256i sums[kTokens];
        for (int t = 0; t < kTokens; t++) sums[t] = _mm256_setzero_si256();
MV_UNROLL
        for (int j = 0; j < 4; j++) {
            const __m256i pairs = load_bytes(weights + 32 * j), lower = _mm256_and_si256(pairs, low);
            const __m256i upper = _mm256_and_si256(_mm256_srli_epi16(pairs, 4), low);
MV_UNROLL
            for (int t = 0; t < kTokens; t++) {
                const int8_t* at = x + t * columns + 8 * j;
                sums[t] = _mm256_add_epi16(sums[t], _mm256_maddubs_epi16(lower, four(at)));
                sums[t] = _mm256_add_epi16(sums[t], _mm256_maddubs_epi16(upper, four(at + 4)));
                in_order(sums[t]);
            }
        }
        const F8 weight_scale = load_half(reinterpret_cast<const uint16_t*>(tiles) + 8 * half);
MV_UNROLL
        for (int t = 0; t < kTokens; t++) {
            const size_t block = static_cast<size_t>(t) * blocks + b;
            const __m256i all = _mm256_add_epi32(_mm256_madd_epi16(sums[t], ones), _mm256_set1_epi32(in.sums[block]));
            total[t] = fma(_mm256_cvtepi32_ps(all), mul(weight_scale, set1(in.scales[block])), total[t]);
        }
    }
    for (int t = 0; t < kTokens; t++) emit(y + t * stride, total[t], adds);
}

// A panel of 8-bit weights times several tokens: an activation is fetched once for sixteen rows, and the weights of four
// columns are read and their signs taken off once for all tokens.
template <int kTokens>
inline void both_halves(const uint8_t* tiles, int blocks, const Activations& in, float* y, size_t stride, bool adds) {
    constexpr int kTile = 32 + 2 * Half8::kStep;
    const size_t columns = static_cast<size_t>(blocks) * kBlock;
    const __m256i ones = _mm256_set1_epi16(1);
    const auto products = [&](__m256i x, __m256i weights, __m256i sizes) {  // the sign trick of dots_avx2.h
        return _mm256_madd_epi16(_mm256_maddubs_epi16(sizes, _mm256_sign_epi8(x, weights)), ones);
    };
    F8 upper[kTokens], lower[kTokens];
    for (int t = 0; t < kTokens; t++) upper[t] = lower[t] = zero();
    for (int b = 0; b < blocks; b++, tiles += kTile) {
        __m256i above[kTokens], below[kTokens];
        for (int t = 0; t < kTokens; t++) above[t] = below[t] = _mm256_setzero_si256();
        const int8_t* x = in.values + b * kBlock;
        for (int j = 0; j < 8; j++, x += 4) {  // not unrolled: these are all registers that there are
            const __m256i first = load_bytes(tiles + 32 + 32 * j);
            const __m256i second = load_bytes(tiles + 32 + Half8::kStep + 32 * j);
            const __m256i first_size = _mm256_abs_epi8(first), second_size = _mm256_abs_epi8(second);
MV_UNROLL
            for (int t = 0; t < kTokens; t++) {
                const __m256i each = four(x + t * columns);
                above[t] = _mm256_add_epi32(above[t], products(each, first, first_size));
                below[t] = _mm256_add_epi32(below[t], products(each, second, second_size));
            }
        }
        const uint16_t* scales = reinterpret_cast<const uint16_t*>(tiles);
        const F8 first_scale = load_half(scales), second_scale = load_half(scales + 8);
MV_UNROLL
        for (int t = 0; t < kTokens; t++) {
            const F8 scale = set1(in.scales[static_cast<size_t>(t) * blocks + b]);
            upper[t] = fma(_mm256_cvtepi32_ps(above[t]), mul(first_scale, scale), upper[t]);
            lower[t] = fma(_mm256_cvtepi32_ps(below[t]), mul(second_scale, scale), lower[t]);
        }
    }
    for (int t = 0; t < kTokens; t++) {
        emit(y + t * stride, upper[t], adds);
        emit(y + t * stride + 8, lower[t], adds);
    }
}

template <typename Half, int kTokens>
inline void together(const uint8_t* tiles, int blocks, const Activations& in, float* y, size_t stride, bool adds) {
    if constexpr (Half::kStep == Half8::kStep) {
        both_halves<kTokens>(tiles, blocks, in, y, stride, adds);
    } else {
        for (int half = 0; half < 2; half++)
            half_at_once<kTokens>(tiles, half, blocks, in, y + 8 * half, stride, adds);
    }
}

#define MV_TOGETHER(Half, tokens)                                                                      \
    template <>                                                                                        \
    inline void half_by_half<Half, tokens, false>(const uint8_t* tiles, int blocks, const Activations& in, \
                                                  float* y, size_t stride, bool adds) {                \
        together<Half, tokens>(tiles, blocks, in, y, stride, adds);                                    \
    }
MV_TOGETHER(Half4, 2)
MV_TOGETHER(Half4, 3)
MV_TOGETHER(Half4, 4)
MV_TOGETHER(Half8, 2)
MV_TOGETHER(Half8, 3)
MV_TOGETHER(Half8, 4)
#undef MV_TOGETHER

}  // namespace
