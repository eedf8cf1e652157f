// The kernels for any processor.
#include <cmath>
#include <cstring>
#include <type_traits>

#include "kernels.h"
#include "simd_portable.h"
#include "panels_halves.h"
#include "kernels.inc"

namespace mv {
const Kernels kPortable = kTable;
}
