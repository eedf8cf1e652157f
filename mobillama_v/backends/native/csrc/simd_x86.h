// Eight lanes by AVX2, FMA and F16C. Included by the kernels_*.cpp of x86 processors, which set the target.
#pragma once

#include "unroll.h"

namespace {

using F8 = __m256;

inline F8 load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, F8 v) { _mm256_storeu_ps(p, v); }
inline F8 set1(float v) { return _mm256_set1_ps(v); }
inline F8 zero() { return _mm256_setzero_ps(); }
inline F8 add(F8 a, F8 b) { return _mm256_add_ps(a, b); }
inline F8 sub(F8 a, F8 b) { return _mm256_sub_ps(a, b); }
inline F8 mul(F8 a, F8 b) { return _mm256_mul_ps(a, b); }
inline F8 div(F8 a, F8 b) { return _mm256_div_ps(a, b); }
inline F8 vmax(F8 a, F8 b) { return _mm256_max_ps(a, b); }
inline F8 vmin(F8 a, F8 b) { return _mm256_min_ps(a, b); }
inline F8 fma(F8 a, F8 b, F8 c) { return _mm256_fmadd_ps(a, b, c); }
inline F8 load_half(const uint16_t* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline F8 load_whole(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline void store_half(uint16_t* p, F8 v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
inline F8 absolute(F8 v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }
inline F8 nearest(F8 v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// 2 to the power of whole numbers between -126 and 127
inline F8 power_of_two(F8 n) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}
inline float sum(F8 v) {
    __m128 h = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    h = _mm_add_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_add_ss(h, _mm_movehdup_ps(h)));
}
inline float maximum(F8 v) {
    __m128 h = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    h = _mm_max_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_max_ss(h, _mm_movehdup_ps(h)));
}
inline void prefetch_once(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_NTA); }
inline void prefetch_keep(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }

// Thirty-two floats times `inverse`, rounded to 8 bits; returns their sum.
inline int32_t round_block(const float* x, float inverse, int8_t* out) {
    const F8 scale = set1(inverse);
    __m256i a = _mm256_cvtps_epi32(mul(load(x), scale)), b = _mm256_cvtps_epi32(mul(load(x + 8), scale));
    __m256i c = _mm256_cvtps_epi32(mul(load(x + 16), scale)), d = _mm256_cvtps_epi32(mul(load(x + 24), scale));
    const __m256i all = _mm256_add_epi32(_mm256_add_epi32(a, b), _mm256_add_epi32(c, d));
    __m128i total = _mm_add_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
    total = _mm_hadd_epi32(total, total);
    total = _mm_hadd_epi32(total, total);
    a = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));  // four bytes of each in each half
    a = _mm256_permutevar8x32_epi32(a, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), a);
    return _mm_cvtsi128_si32(total);
}

inline __m256i load_bytes(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline int32_t four_bytes(const int8_t* p) {
    int32_t value;
    memcpy(&value, p, 4);
    return value;
}

}  // namespace
