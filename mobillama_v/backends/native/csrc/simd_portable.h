// Eight lanes in plain C++, which compilers turn into whatever vectors their target always has. Included by
// kernels_portable.cpp only.
#pragma once

#define MV_UNROLL

namespace {

struct F8 {
    float lane[8];
};

template <typename Operation>
inline F8 each(Operation operation) {
    F8 out;
    for (int i = 0; i < 8; i++) out.lane[i] = operation(i);
    return out;
}

inline F8 load(const float* p) { return each([=](int i) { return p[i]; }); }
inline void store(float* p, const F8& v) {
    for (int i = 0; i < 8; i++) p[i] = v.lane[i];
}
inline F8 set1(float v) { return each([=](int) { return v; }); }
inline F8 zero() { return set1(0.0f); }
inline F8 add(const F8& a, const F8& b) { return each([&](int i) { return a.lane[i] + b.lane[i]; }); }
inline F8 sub(const F8& a, const F8& b) { return each([&](int i) { return a.lane[i] - b.lane[i]; }); }
inline F8 mul(const F8& a, const F8& b) { return each([&](int i) { return a.lane[i] * b.lane[i]; }); }
inline F8 div(const F8& a, const F8& b) { return each([&](int i) { return a.lane[i] / b.lane[i]; }); }
// As the instructions do, so that NaN in b is kept.
inline F8 vmax(const F8& a, const F8& b) {
    return each([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline F8 vmin(const F8& a, const F8& b) {
    return each([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline F8 fma(const F8& a, const F8& b, const F8& c) {
    return each([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
}

inline float from_half(uint16_t half) {
#if defined(__aarch64__)
    __fp16 value;
    memcpy(&value, &half, 2);
    return value;
#else
    // Shifted into place the exponent is 112 too small, which a multiplication mends for small numbers too.
    const uint32_t bits = static_cast<uint32_t>(half & 0x7fff) << 13;
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
    const uint32_t scale_bits = 239u << 23;
    float value, scale;
    memcpy(&value, &bits, 4);
    memcpy(&scale, &scale_bits, 4);
    value *= scale;
    uint32_t result;
    memcpy(&result, &value, 4);
    result |= sign | ((half & 0x7c00) == 0x7c00 ? 0x7f800000u : 0u);  // infinity and NaN
    memcpy(&value, &result, 4);
    return value;
#endif
}

inline uint16_t to_half(float value) {  // to nearest, ties to even; finite and within the range of fp16
#if defined(__aarch64__)
    const __fp16 half = static_cast<__fp16>(value);
    uint16_t bits;
    memcpy(&bits, &half, 2);
    return bits;
#else
    uint32_t bits;
    memcpy(&bits, &value, 4);
    const uint32_t sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
    if (bits < 0x38800000) {  // below the normal numbers: let the addition round
        const uint32_t magic_bits = 126u << 23;
        float magic, small;
        memcpy(&magic, &magic_bits, 4);
        memcpy(&small, &bits, 4);
        small += magic;
        memcpy(&bits, &small, 4);
        return static_cast<uint16_t>(sign | (bits - magic_bits));
    }
    bits += 0xc8000fff + (bits >> 13 & 1);  // rebias the exponent and round
    return static_cast<uint16_t>(sign | bits >> 13);
#endif
}

inline F8 load_half(const uint16_t* p) { return each([=](int i) { return from_half(p[i]); }); }
inline F8 load_whole(const int8_t* p) { return each([=](int i) { return static_cast<float>(p[i]); }); }
inline void store_half(uint16_t* p, const F8& v) {
    for (int i = 0; i < 8; i++) p[i] = to_half(v.lane[i]);
}
inline F8 absolute(const F8& v) { return each([&](int i) { return std::fabs(v.lane[i]); }); }
inline F8 nearest(const F8& v) { return each([&](int i) { return std::nearbyint(v.lane[i]); }); }
inline F8 power_of_two(const F8& n) {
    return each([&](int i) {
        const uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(n.lane[i]) + 127) << 23;
        float value;
        memcpy(&value, &bits, 4);
        return value;
    });
}
inline float sum(const F8& v) {  // in the order of the AVX2 path
    float h[4];
    for (int i = 0; i < 4; i++) h[i] = v.lane[i] + v.lane[i + 4];
    return (h[0] + h[2]) + (h[1] + h[3]);
}
inline float maximum(const F8& v) {
    float most = v.lane[0];
    for (int i = 1; i < 8; i++) most = v.lane[i] > most ? v.lane[i] : most;
    return most;
}
#if defined(__GNUC__)
inline void prefetch_once(const void* p) { __builtin_prefetch(p, 0, 0); }
inline void prefetch_keep(const void* p) { __builtin_prefetch(p, 0, 3); }
#else
inline void prefetch_once(const void*) {}
inline void prefetch_keep(const void*) {}
#endif

inline int32_t round_block(const float* x, float inverse, int8_t* out) {
    int32_t total = 0;
    for (int i = 0; i < 32; i++) {
        const float scaled = x[i] * inverse;
        // A number that is none, or beside one that is none is far too large, must not become an undefined conversion.
        const int32_t value = std::fabs(scaled) <= 128.0f ? static_cast<int32_t>(std::nearbyint(scaled)) : 0;
        out[i] = static_cast<int8_t>(value);
        total += value;
    }
    return total;
}

// Sums of products of groups of four columns, laid out as in kernels.h, a row a lane.
inline F8 dot_columns(const int8_t* weights, const int8_t* x, int32_t offset) {
    int32_t total[8] = {};
    for (int j = 0; j < 8; j++)
        for (int i = 0; i < 32; i++) total[i / 4] += weights[32 * j + i] * x[4 * j + i % 4];
    F8 out;
    for (int row = 0; row < 8; row++) out.lane[row] = static_cast<float>(total[row] + offset);
    return out;
}

struct Half4 {
    static constexpr int kStep = 128;
    int8_t columns[256];
    explicit Half4(const uint8_t* p) {
        for (int j = 0; j < 4; j++)
            for (int i = 0; i < 32; i++) {
                columns[64 * j + i] = static_cast<int8_t>(p[32 * j + i] & 15);
                columns[64 * j + 32 + i] = static_cast<int8_t>(p[32 * j + i] >> 4);
            }
    }
};

struct Half8 {
    static constexpr int kStep = 256;
    const int8_t* columns;
    explicit Half8(const uint8_t* p) : columns(reinterpret_cast<const int8_t*>(p)) {}
};

inline F8 dot(const Half4& w, const int8_t* x, int32_t sum8) { return dot_columns(w.columns, x, sum8); }
inline F8 dot(const Half8& w, const int8_t* x, int32_t) { return dot_columns(w.columns, x, 0); }

}  // namespace
