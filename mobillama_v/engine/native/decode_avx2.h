// Tiles of 4-bit weights times one token by AVX2, their halves in step: an activation that is fetched serves them all. As
// calls of dot() one after another, decoding from the cache takes a third longer, for the sixteen registers do not hold
// what the compiler wants to keep. Included by kernels_avx2.cpp only, below bands_halves.h.
#pragma once

namespace {

// Keeps the compiler from summing as a tree, for which it would need more registers than there are.
inline void in_order(__m256i& sum) {
#if defined(__GNUC__)
    asm("" : "+x"(sum));
#else
    (void)sum;
#endif
}

template <int kBands>
inline void dot_halves(const uint8_t* const* tiles, const int8_t* x, int32_t sum8, F8* out) {
    const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1), offset = _mm256_set1_epi32(sum8);
    __m256i sums[2 * kBands];
    for (__m256i& sum : sums) sum = _mm256_setzero_si256();
MV_UNROLL
    for (int j = 0; j < 4; j++) {
        const __m256i first = four(x + 8 * j), second = four(x + 8 * j + 4);
MV_UNROLL
        for (int i = 0; i < 2 * kBands; i++) {
            const __m256i pairs = load_bytes(tiles[i / 2] + i % 2 * Half4::kStep + 32 * j);
            const __m256i upper = _mm256_and_si256(_mm256_srli_epi16(pairs, 4), low);
            sums[i] = _mm256_add_epi16(sums[i], _mm256_maddubs_epi16(_mm256_and_si256(pairs, low), first));
            sums[i] = _mm256_add_epi16(sums[i], _mm256_maddubs_epi16(upper, second));
            in_order(sums[i]);
        }
    }
    for (int i = 0; i < 2 * kBands; i++)
        out[i] = _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_madd_epi16(sums[i], ones), offset));
}

template <>
inline void dot_tiles<Half4, 1>(const uint8_t* const* tiles, const int8_t* x, int32_t sum8, F8* out) {
    dot_halves<1>(tiles, x, sum8, out);
}
template <>
inline void dot_tiles<Half4, 2>(const uint8_t* const* tiles, const int8_t* x, int32_t sum8, F8* out) {
    dot_halves<2>(tiles, x, sum8, out);
}

}  // namespace
