// What a kernel path offers, and how matrices lie in memory.
//
// A matrix [rows, cols] is padded with zeros to multiples of 16 and 32 and cut into tiles of 16 rows x 32 columns,
// those of one row panel (16 rows) after another. A path works on a panel at a time: its 16 sums stay in registers, the
// weights come in the order in which they lie, and no sum crosses a lane.
//
//   4 bit   288 bytes: 16 fp16 scales (one a row), then for each half of 8 rows four groups of 32 bytes: byte 4r+c of
//           group j holds columns 8j+c (low nibble) and 8j+4+c (high nibble) of row r, as value + 8.
//   8 bit   544 bytes: 16 fp16 scales, then for each half of 8 rows eight groups of 32 bytes: byte 4r+c of group j is
//           column 4j+c of row r, signed.
//   16 bit  1024 bytes: fp16, column by column, 16 rows each.
//
// Four neighboring columns of a row lie together because the multiply-add instructions of x86 sum groups of four bytes
// into one of eight lanes: the eight rows of a half.
//
// Activations are quantized to 8 bits in blocks of 32 with an fp32 scale, except for 16-bit matrices, which take fp32.
// Every output is summed in the same order whatever the number of rows, tokens and threads, so that prefill, step by
// step decoding, and any number of threads agree bit for bit.
#pragma once

#include <cstddef>
#include <cstdint>

namespace mv {

constexpr int kRows = 16, kBlock = 32;
constexpr int kTokenTile = 64;  // tokens whose activations stay in the second-level cache during a product
constexpr int kQueries = 4;     // queries of one head that attend together
constexpr int kTowerQueries = 16;  // the same in an image tower

constexpr size_t tile_bytes(int bits) { return bits == 4 ? 288 : bits == 8 ? 544 : 1024; }
constexpr int round_up(int n, int to) { return (n + to - 1) / to * to; }

struct Matrix {
    const uint8_t* data = nullptr;
    int panels = 0, blocks = 0;  // rows / 16, columns / 32
    bool stream = false;        // read once a token: keep it out of the cache
    // Where a thread goes on reading after its part of this matrix: kernels that wait for themselves ask for its first bytes
    // meanwhile, which are to stay in the second-level cache until then.
    const uint8_t* next = nullptr;
};
constexpr size_t kNextBytes = 768 << 10;

// Activations of consecutive tokens, each of blocks * 32 columns.
struct Activations {
    int8_t* values;   // [tokens, columns]
    float* scales;    // [tokens, blocks]
    int32_t* sums;    // [tokens, blocks]: -8 times the sum of the values, which takes the 8 out of 4-bit weights
    float* floats;    // [tokens, columns], for 16-bit matrices
};

// Keys and values of one key/value head. Keys lie in groups of 8 positions, [capacity / 8, width, 8], so that a query
// meets eight at once; values are [capacity, width]. Both are fp16, or, where there are scales, whole numbers of 8 bits
// with an fp32 scale a position: decoding after a long prompt reads little else from memory.
struct HeadCache {
    void* keys;
    void* values;
    float* key_scales;    // [capacity], or null
    float* value_scales;  // the same
};

// Queries of one head of an image tower, which attend to all `count` positions of their image. Keys are [width, padded],
// values [count, value_width] and queries [kTowerQueries, width], scaled; `padded` and `value_width` are multiples of 16, and
// what pads them is zero.
struct HeadBlock {
    const float *queries, *keys, *values;
    float* scores;  // scratch, [kTowerQueries, padded]
    float* out;     // [kTowerQueries, value_width]
    int count, padded, width, value_width;
};

// Activations of image towers, as engine.h numbers them.
constexpr int kQuickGelu = 0, kGelu = 1, kGeluTanh = 2;

struct Kernels {
    // Blocks [from, to) of x (root-mean-square normalized with `weight` where that is not null) to activations; `width`
    // of x are real and the rest are zeros.
    void (*quantize)(const float* x, const float* weight, float eps, int width, int from, int to, bool floats,
                     const Activations& out);
    // The same of silu(gate) * up, where panels of 16 of gate and up alternate.
    void (*swiglu)(const float* gate_up, int from, int to, bool floats, const Activations& out);
    // Panels [from, to) of matrix x activations, to y [tokens, stride]; `add` adds to it.
    void (*product)(int bits, const Matrix& matrix, const Activations& in, int tokens, float* y, size_t stride,
                    bool add, int from, int to);
    // Rotate a head's vector by its position and multiply by `scale`.
    void (*rotate)(float* x, const float* cosines, const float* sines, int width, float scale);
    void (*store)(const HeadCache& cache, int position, int width, const float* key, const float* value);
    // `queries` (1 to kQueries) of consecutive positions from `position` attend to everything up to themselves. Those
    // of one head lie `query_stride` apart. `scratch` has room for kQueries times the `padded` number of positions.
    void (*attend)(const HeadCache& cache, int position, int queries, int width, const float* query,
                   size_t query_stride, float* out, size_t out_stride, float* scratch, int padded);
    void (*widen)(const uint16_t* half, float* out, int count);
    // Layer normalization of x [width] to y, which may be x.
    void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, int width, float* y);
    void (*activate)(int kind, float* x, int count);  // in place; `count` is a multiple of 8
    // The first `queries` of a block attend; those that fill up a group are computed too, and mean nothing.
    void (*attend_all)(const HeadBlock& head, int queries);
};

extern const Kernels kPortable;
#if defined(__x86_64__) || defined(_M_X64)
#define MV_HAVE_X86 1
extern const Kernels kAvx2, kVnni;
#elif defined(__aarch64__) && defined(__GNUC__)
#define MV_HAVE_NEON 1
extern const Kernels kNeon;
#endif

// A kernel path: all kernels, compiled for one instruction set. The table of them is in isa_dispatch.cpp.
struct KernelPath {
    const char* name;
    bool (*supported)();  // by this processor
    const Kernels* kernels;
};

// The paths that this processor can run, the fastest first; null after the last.
const KernelPath* supported_path(int index);
// The one of that name, or the fastest where it is null; throws what fail() throws.
const KernelPath& choose_path(const char* name);

}  // namespace mv
