#pragma once

// Loops whose turns live in registers of their own.
#if defined(__GNUC__)
#define MV_UNROLL _Pragma("GCC unroll 8")
#else
#define MV_UNROLL
#endif
