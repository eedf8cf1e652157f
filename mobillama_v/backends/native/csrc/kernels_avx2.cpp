// The kernels for x86 processors with AVX2, FMA and F16C. The target is set here, for this file's own functions alone:
// with a compiler option, what the standard headers define could reach processors without AVX2 through the linker.
#include "kernels.h"

#if defined(MV_HAVE_X86)
#include <cmath>
#include <cstring>
#include <type_traits>

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#elif defined(__GNUC__)
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#include "simd_x86.h"
#include "dots_avx2.h"
#include "panels_halves.h"
#include "panels_avx2.h"
#include "kernels.inc"

#if defined(__clang__)
#pragma clang attribute pop
#elif defined(__GNUC__)
#pragma GCC pop_options
#endif

namespace mv {
const Kernels kAvx2 = kTable;
}
#endif
