// Which of the kernel paths this processor can run.
#include <initializer_list>

#include "engine.h"
#include "kernels.h"

#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
#endif

#if defined(MV_HAVE_NEON) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace mv {

int best_path() {
    for (int path : {MV_VNNI, MV_AVX2, MV_NEON})
        if (has_path(path)) return path;
    return MV_PORTABLE;
}

bool has_path(int path) {
    if (path == MV_PORTABLE) return true;
#if defined(MV_HAVE_AVX2)
#if defined(_MSC_VER) && !defined(__clang__)
    if (path == MV_AVX2) {
        int leaf[4];
        __cpuid(leaf, 0);
        if (leaf[0] < 7) return false;
        __cpuid(leaf, 1);
        const int wanted = 1 << 12 | 1 << 27 | 1 << 28 | 1 << 29;  // FMA, saved by the system, AVX, F16C
        if ((leaf[2] & wanted) != wanted || (_xgetbv(0) & 6) != 6) return false;
        __cpuidex(leaf, 7, 0);
        return (leaf[1] & 1 << 5) != 0;
    }
    if (path == MV_VNNI) {
        if (!has_path(MV_AVX2) || (_xgetbv(0) & 0xe6) != 0xe6) return false;
        int leaf[4];
        __cpuidex(leaf, 7, 0);
        const uint32_t wanted = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;  // AVX-512 F, DQ, BW and VL
        return (static_cast<uint32_t>(leaf[1]) & wanted) == wanted && (leaf[2] & 1 << 11) != 0;
    }
#else
    // Every processor with AVX2 and FMA has F16C, which older compilers do not know by name.
    if (path == MV_AVX2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (path == MV_VNNI)
        return has_path(MV_AVX2) && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
#endif
#endif
#if defined(MV_HAVE_NEON)
#if defined(__linux__)
    if (path == MV_NEON) return (getauxval(AT_HWCAP) & 1ul << 20) != 0;  // HWCAP_ASIMDDP
#elif defined(__APPLE__)
    if (path == MV_NEON) return true;
#endif
#endif
    return false;
}

const Kernels& kernels_of(int path) {
#if defined(MV_HAVE_AVX2)
    if (path == MV_AVX2) return kAvx2;
    if (path == MV_VNNI) return kVnni;
#endif
#if defined(MV_HAVE_NEON)
    if (path == MV_NEON) return kNeon;
#endif
    (void)path;
    return kPortable;
}

}  // namespace mv
