// Products of 8-bit numbers by AVX-512 VNNI, which sums four of them into 32 bits at once: the same whole numbers as
// AVX2's, in half the instructions. Vectors of 256 bits, so that processors keep their clock. Included by
// kernels_vnni.cpp only.
#pragma once

namespace {

// The weights of 8 rows x 32 columns, unpacked once for several tokens, and their products with 32 activations as one
// whole number a row.
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
    // Two chains, as an instruction waits for the one before it.
    F8 dot(const int8_t* x, int32_t sum8) const {
        __m256i even = _mm256_set1_epi32(-sum8), odd = _mm256_setzero_si256();
MV_UNROLL
        for (int j = 0; j < 4; j++) {
            even = _mm256_dpbusd_epi32(even, part[2 * j], four(x + 8 * j));
            odd = _mm256_dpbusd_epi32(odd, part[2 * j + 1], four(x + 8 * j + 4));
        }
        return _mm256_cvtepi32_ps(_mm256_add_epi32(even, odd));
    }
};

struct Half8 {
    static constexpr int kStep = 256;
    __m256i part[8];
    explicit Half8(const uint8_t* p) {
MV_UNROLL
        for (int j = 0; j < 8; j++) part[j] = load_bytes(p + 32 * j);
    }
    // The instruction takes one unsigned operand: the weight's sign goes to the activation.
    F8 dot(const int8_t* x, int32_t) const {
        __m256i even = _mm256_setzero_si256(), odd = _mm256_setzero_si256();
MV_UNROLL
        for (int j = 0; j < 8; j += 2) {
            even = _mm256_dpbusd_epi32(even, _mm256_abs_epi8(part[j]), _mm256_sign_epi8(four(x + 4 * j), part[j]));
            odd = _mm256_dpbusd_epi32(odd, _mm256_abs_epi8(part[j + 1]),
                                      _mm256_sign_epi8(four(x + 4 * j + 4), part[j + 1]));
        }
        return _mm256_cvtepi32_ps(_mm256_add_epi32(even, odd));
    }
};

}  // namespace
