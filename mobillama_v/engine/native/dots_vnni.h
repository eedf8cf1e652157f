// Products of 8-bit numbers by AVX-512 VNNI, which sums four of them into 32 bits at once: the same whole numbers as
// AVX2's, by one instruction for three. Vectors have 256 bits, as all lanes do. Included by kernels_vnni.cpp only.
#pragma once

namespace {

// Two chains, as an instruction waits for the one before it.
inline F8 dot(const Half4& w, const int8_t* x, int32_t sum8) {
    __m256i even = _mm256_set1_epi32(-sum8), odd = _mm256_setzero_si256();
MV_UNROLL
    for (int j = 0; j < 8; j += 2) {
        even = _mm256_dpbusd_epi32(even, w.part[j], four(x + 4 * j));
        odd = _mm256_dpbusd_epi32(odd, w.part[j + 1], four(x + 4 * j + 4));
    }
    return _mm256_cvtepi32_ps(_mm256_add_epi32(even, odd));
}

// The instruction takes one unsigned operand: the weight's sign goes to the activation.
inline __m256i add_products(__m256i total, __m256i weights, __m256i x) {
    return _mm256_dpbusd_epi32(total, _mm256_abs_epi8(weights), _mm256_sign_epi8(x, weights));
}
inline F8 dot(const Half8& w, const int8_t* x, int32_t) {
    __m256i even = _mm256_setzero_si256(), odd = even;
MV_UNROLL
    for (int j = 0; j < 8; j += 2) {
        even = add_products(even, w.part[j], four(x + 4 * j));
        odd = add_products(odd, w.part[j + 1], four(x + 4 * j + 4));
    }
    return _mm256_cvtepi32_ps(_mm256_add_epi32(even, odd));
}

}  // namespace
