// A band of 8-bit weights times several tokens by AVX2. Here instructions are what is short, not memory: both halves of
// the band run together, so that an activation is fetched once for sixteen rows, and the weights of four columns are
// read and their signs taken off once for all tokens. The sums are those of bands_halves.h in the same order. Included
// by kernels_avx2.cpp only, below bands_halves.h.
#pragma once

namespace {

template <int kTokens, bool kAdd>
inline void both_halves(const uint8_t* tiles, int blocks, const Activations& in, float* y, size_t stride) {
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
        emit<kAdd>(y + t * stride, upper[t]);
        emit<kAdd>(y + t * stride + 8, lower[t]);
    }
}

#define MV_TOGETHER(tokens, adds)                                                                               \
    template <>                                                                                                 \
    inline void half_by_half<Half8, tokens, adds, false>(const uint8_t* tiles, int blocks, const Activations& in, \
                                                         float* y, size_t stride) {                             \
        both_halves<tokens, adds>(tiles, blocks, in, y, stride);                                                \
    }
MV_TOGETHER(2, false)
MV_TOGETHER(2, true)
MV_TOGETHER(3, false)
MV_TOGETHER(3, true)
MV_TOGETHER(4, false)
MV_TOGETHER(4, true)
#undef MV_TOGETHER

}  // namespace
