// The kernels for Arm processors with dot products (Armv8.2, in phones since 2018 and in every Apple silicon).
#include "kernels.h"

#if defined(MV_HAVE_NEON)
#include <cmath>
#include <cstring>
#include <type_traits>

#include <arm_neon.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif

#include "simd_neon.h"
#include "panels_halves.h"
#include "kernels.inc"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace mv {
const Kernels kNeon = kTable;
}
#endif
