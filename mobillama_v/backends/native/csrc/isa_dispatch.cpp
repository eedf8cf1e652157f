// ISA dispatch: the kernel paths that this library was compiled with, and which of them this processor can run.
#include <string>

#include "kernels.h"
#include "model.h"

#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
#endif

#if defined(MV_HAVE_NEON) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace mv {
namespace {

#if defined(MV_HAVE_X86)
#if defined(_MSC_VER) && !defined(__clang__)
bool has_avx2() {
    int leaf[4];
    __cpuid(leaf, 0);
    if (leaf[0] < 7) return false;
    __cpuid(leaf, 1);
    const int wanted = 1 << 12 | 1 << 27 | 1 << 28 | 1 << 29;  // FMA, saved by the system, AVX, F16C
    if ((leaf[2] & wanted) != wanted || (_xgetbv(0) & 6) != 6) return false;
    __cpuidex(leaf, 7, 0);
    return (leaf[1] & 1 << 5) != 0;
}
bool has_vnni() {
    if (!has_avx2() || (_xgetbv(0) & 0xe6) != 0xe6) return false;
    int leaf[4];
    __cpuidex(leaf, 7, 0);
    const uint32_t wanted = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;  // AVX-512 F, DQ, BW and VL
    return (static_cast<uint32_t>(leaf[1]) & wanted) == wanted && (leaf[2] & 1 << 11) != 0;
}
#else
// Every processor with AVX2 and FMA has F16C, which older compilers do not know by name.
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
bool has_vnni() {
    return has_avx2() && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
}
#endif
#endif

#if defined(MV_HAVE_NEON)
bool has_neon() {
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & 1ul << 20) != 0;  // HWCAP_ASIMDDP
#elif defined(__APPLE__)
    return true;
#else
    return false;
#endif
}
#endif

bool always() { return true; }

// The fastest first: a model takes the first one that its processor can run, unless it names another.
const KernelPath kPaths[] = {
#if defined(MV_HAVE_X86)
    {"vnni", has_vnni, &kVnni},
    {"avx2", has_avx2, &kAvx2},
#endif
#if defined(MV_HAVE_NEON)
    {"neon", has_neon, &kNeon},
#endif
    {"portable", always, &kPortable},
};

}  // namespace

const KernelPath* supported_path(int index) {
    for (const KernelPath& path : kPaths)
        if (path.supported() && index-- == 0) return &path;
    return nullptr;
}

const KernelPath& choose_path(const char* name) {
    if (name == nullptr) return *supported_path(0);
    for (int i = 0; const KernelPath* path = supported_path(i); i++)
        if (name == std::string(path->name)) return *path;
    fail("this processor cannot run the kernel path " + std::string(name));
}

}  // namespace mv
