// The kernels for x86 processors with AVX-512 VNNI. The target is set here, for this file's own functions alone:
// with a compiler option, what the standard headers define could reach processors without it through the linker.
#include "kernels.h"

#if defined(MV_HAVE_X86)
#include <cmath>
#include <cstring>
#include <type_traits>

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512vl,avx512bw,avx512dq,avx512vnni"))), apply_to = function)
#elif defined(__GNUC__)
#pragma GCC push_options
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // of <immintrin.h>'s own undefined vectors
#pragma GCC target("avx2,fma,f16c,avx512f,avx512vl,avx512bw,avx512dq,avx512vnni")
#endif

#include "simd_x86.h"
#include "panels_vnni.h"
#include "spans_vnni.h"
#include "kernels.inc"

#if defined(__clang__)
#pragma clang attribute pop
#elif defined(__GNUC__)
#pragma GCC pop_options
#endif

namespace mv {
const Kernels kVnni = kTable;
}
#endif
