// Eight lanes by NEON with the dot products of Armv8.2. Included by kernels_neon.cpp only, which sets the target.
#pragma once

#include "unroll.h"

namespace {

struct F8 {
    float32x4_t a, b;
};

inline F8 load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
inline void store(float* p, F8 v) {
    vst1q_f32(p, v.a);
    vst1q_f32(p + 4, v.b);
}
inline F8 set1(float v) { return {vdupq_n_f32(v), vdupq_n_f32(v)}; }
inline F8 zero() { return set1(0.0f); }
inline F8 add(F8 x, F8 y) { return {vaddq_f32(x.a, y.a), vaddq_f32(x.b, y.b)}; }
inline F8 sub(F8 x, F8 y) { return {vsubq_f32(x.a, y.a), vsubq_f32(x.b, y.b)}; }
inline F8 mul(F8 x, F8 y) { return {vmulq_f32(x.a, y.a), vmulq_f32(x.b, y.b)}; }
inline F8 div(F8 x, F8 y) { return {vdivq_f32(x.a, y.a), vdivq_f32(x.b, y.b)}; }
inline F8 vmax(F8 x, F8 y) { return {vmaxq_f32(x.a, y.a), vmaxq_f32(x.b, y.b)}; }
inline F8 vmin(F8 x, F8 y) { return {vminq_f32(x.a, y.a), vminq_f32(x.b, y.b)}; }
inline F8 fma(F8 x, F8 y, F8 z) { return {vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b)}; }
inline F8 load_half(const uint16_t* p) {
    const float16x8_t half = vreinterpretq_f16_u16(vld1q_u16(p));
    return {vcvt_f32_f16(vget_low_f16(half)), vcvt_high_f32_f16(half)};
}
inline F8 load_whole(const int8_t* p) {
    const int16x8_t wide = vmovl_s8(vld1_s8(p));
    return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide))), vcvtq_f32_s32(vmovl_high_s16(wide))};
}
inline void store_half(uint16_t* p, F8 v) {
    vst1q_u16(p, vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(v.a), v.b)));
}
inline F8 absolute(F8 v) { return {vabsq_f32(v.a), vabsq_f32(v.b)}; }
inline F8 nearest(F8 v) { return {vrndnq_f32(v.a), vrndnq_f32(v.b)}; }
inline F8 power_of_two(F8 n) {
    const int32x4_t bias = vdupq_n_s32(127);
    return {vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n.a), bias), 23)),
            vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n.b), bias), 23))};
}
inline float sum(F8 v) {  // in the order of the other paths
    const float32x4_t h = vaddq_f32(v.a, v.b);
    const float32x2_t pairs = vadd_f32(vget_low_f32(h), vget_high_f32(h));
    return vget_lane_f32(pairs, 0) + vget_lane_f32(pairs, 1);
}
inline float maximum(F8 v) { return vmaxvq_f32(vmaxq_f32(v.a, v.b)); }
inline void prefetch_once(const void* p) { __builtin_prefetch(p, 0, 0); }
inline void prefetch_keep(const void* p) { __builtin_prefetch(p, 0, 3); }

// Thirty-two floats times `inverse`, rounded to 8 bits; returns their sum. A number that is none becomes 0.
inline int32_t round_block(const float* x, float inverse, int8_t* out) {
    int32x4_t all = vdupq_n_s32(0);
    for (int i = 0; i < 32; i += 16) {
        int16x8_t half[2];
        for (int j = 0; j < 2; j++) {
            const F8 scaled = mul(load(x + i + 8 * j), set1(inverse));
            const int32x4_t a = vcvtnq_s32_f32(scaled.a), b = vcvtnq_s32_f32(scaled.b);
            all = vaddq_s32(all, vaddq_s32(a, b));
            half[j] = vcombine_s16(vqmovn_s32(a), vqmovn_s32(b));
        }
        vst1q_s8(out + i, vcombine_s8(vqmovn_s16(half[0]), vqmovn_s16(half[1])));
    }
    return vaddvq_s32(all);
}

inline int8x16_t four(const int8_t* p) {  // the same four bytes in every lane
    int32_t value;
    memcpy(&value, p, 4);
    return vreinterpretq_s8_s32(vdupq_n_s32(value));
}

// The weights of 8 rows x 32 columns, unpacked once for several tokens: rows 0 to 3 and 4 to 7 apart, 4 columns each.
struct Weights {
    int8x16_t upper[8], lower[8];
};

struct Half4 : Weights {
    static constexpr int kStep = 128;
    explicit Half4(const uint8_t* p) {
        const uint8x16_t low = vdupq_n_u8(15);
MV_UNROLL
        for (int j = 0; j < 4; j++) {
            const uint8x16_t a = vld1q_u8(p + 32 * j), b = vld1q_u8(p + 32 * j + 16);
            upper[2 * j] = vreinterpretq_s8_u8(vandq_u8(a, low));
            upper[2 * j + 1] = vreinterpretq_s8_u8(vshrq_n_u8(a, 4));
            lower[2 * j] = vreinterpretq_s8_u8(vandq_u8(b, low));
            lower[2 * j + 1] = vreinterpretq_s8_u8(vshrq_n_u8(b, 4));
        }
    }
};

struct Half8 : Weights {
    static constexpr int kStep = 256;
    explicit Half8(const uint8_t* p) {
MV_UNROLL
        for (int j = 0; j < 8; j++) {
            upper[j] = vreinterpretq_s8_u8(vld1q_u8(p + 32 * j));
            lower[j] = vreinterpretq_s8_u8(vld1q_u8(p + 32 * j + 16));
        }
    }
};

// `start` and the products with 32 activations, as one whole number a row.
inline F8 dot_from(int32_t start, const Weights& w, const int8_t* x) {
    int32x4_t a = vdupq_n_s32(start), b = a;
MV_UNROLL
    for (int j = 0; j < 8; j++) {
        const int8x16_t values = four(x + 4 * j);
        a = vdotq_s32(a, w.upper[j], values);
        b = vdotq_s32(b, w.lower[j], values);
    }
    return {vcvtq_f32_s32(a), vcvtq_f32_s32(b)};
}
inline F8 dot(const Half4& w, const int8_t* x, int32_t sum8) { return dot_from(sum8, w, x); }
inline F8 dot(const Half8& w, const int8_t* x, int32_t) { return dot_from(0, w, x); }

}  // namespace
