// Products of 8-bit numbers by AVX2, which sums pairs of them in 16 bits. Included by kernels_avx2.cpp only.
#pragma once

namespace {

inline __m256i four(const int8_t* p) { return _mm256_set1_epi32(four_bytes(p)); }  // the same four bytes in every lane

// The weights of 8 rows x 32 columns, unpacked once for several tokens.
struct Half4 {
    static constexpr int kStep = 128;
    __m256i part[8];  // 4 columns each, 0 to 15
    explicit Half4(const uint8_t* p) {
        const __m256i low = _mm256_set1_epi8(15);
MV_UNROLL
        for (int j = 0; j < 4; j++) {
            const __m256i both = load_bytes(p + 32 * j);
            part[2 * j] = _mm256_and_si256(both, low);
            part[2 * j + 1] = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
        }
    }
};

struct Half8 {
    static constexpr int kStep = 256;
    __m256i part[8];  // 4 columns each, signed
    explicit Half8(const uint8_t* p) {
MV_UNROLL
        for (int j = 0; j < 8; j++) part[j] = load_bytes(p + 32 * j);
    }
};

// Products with 32 activations, one whole number a row. Eight of at most 2 * 15 * 127 are summed in 16 bits: 30480.
inline F8 dot(const Half4& w, const int8_t* x, int32_t sum8) {
    __m256i even = _mm256_maddubs_epi16(w.part[0], four(x)), odd = _mm256_maddubs_epi16(w.part[1], four(x + 4));
MV_UNROLL
    for (int j = 1; j < 4; j++) {
        even = _mm256_add_epi16(even, _mm256_maddubs_epi16(w.part[2 * j], four(x + 8 * j)));
        odd = _mm256_add_epi16(odd, _mm256_maddubs_epi16(w.part[2 * j + 1], four(x + 8 * j + 4)));
    }
    const __m256i all = _mm256_madd_epi16(_mm256_add_epi16(even, odd), _mm256_set1_epi16(1));
    return _mm256_cvtepi32_ps(_mm256_add_epi32(all, _mm256_set1_epi32(sum8)));
}

// The instruction takes one unsigned operand: the weight's sign goes to the activation. 2 * 128 * 127 fits 16 bits.
inline F8 dot(const Half8& w, const int8_t* x, int32_t) {
    __m256i all = _mm256_setzero_si256();
MV_UNROLL
    for (int j = 0; j < 8; j++) {
        const __m256i pairs =
            _mm256_maddubs_epi16(_mm256_abs_epi8(w.part[j]), _mm256_sign_epi8(four(x + 4 * j), w.part[j]));
        all = _mm256_add_epi32(all, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    return _mm256_cvtepi32_ps(all);
}

}  // namespace
