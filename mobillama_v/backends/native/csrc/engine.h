/* The C interface of the CPU engine: the only thing that is exported, and what Python calls through ctypes.
 *
 * Where things are, from here inwards: engine.cpp (this interface), model.h and model.cpp (what a model holds),
 * forward.cpp (a decoder's layers), tower.h (image towers), linear.h (single layers), thread_pool.h, kernels.h (what a kernel path offers, and
 * how matrices lie in memory), isa_dispatch.cpp (the table of paths), kernels.inc (the kernels, compiled once a path).
 *
 * To add a kernel path:
 *   1. write kernels_NAME.cpp after kernels_avx2.cpp: set the compiler's target, include the eight lanes (a simd_*.h), the
 *      products of row panels (a panels_*.h) and kernels.inc, and define kName;
 *   2. declare kName in kernels.h, where its processors are known to the compiler;
 *   3. give it a line in the table of isa_dispatch.cpp, with a function that asks the processor.
 * Python and the tests ask the library for the names.
 *
 * A model is made once from tensors that the caller keeps alive (they may be memory-mapped); a sequence holds the keys
 * and values of one conversation. Every function that can fail returns NULL or a negative number, and mv_error() then
 * tells the calling thread why. All functions may be called from any thread; calls on one model take turns.
 */
#ifndef MOBILLAMA_V_ENGINE_H
#define MOBILLAMA_V_ENGINE_H

#include <stdint.h>

#if defined(_WIN32)
#define MV_API __declspec(dllexport)
#else
#define MV_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define MV_ABI 8 /* raised whenever anything below changes */

typedef struct {
    double eps;          /* of the root-mean-square norms */
    int32_t vocab, hidden, ffn, layers, heads, kv_heads, head_width, context;
    int32_t ffn_count;   /* 1: one feed-forward network for all layers; else as many as layers */
    int32_t qkv_bias;    /* 1: queries, keys and values have a bias */
    int32_t qk_norm;     /* 1: each head's queries and keys are normalized */
    int32_t bits;        /* of the matrices: 4, 8 or 16 */
    int32_t threads;     /* the caller's included */
    const char* path;    /* name of a kernel path, or NULL for the fastest */
} mv_config;

typedef struct {
    const void* data;
    uint64_t bytes;
} mv_span;

typedef struct mv_model mv_model;
typedef struct mv_sequence mv_sequence;

MV_API int32_t mv_abi(void);
MV_API const char* mv_error(void);

/* Names of the kernel paths that this processor can run, the fastest first; NULL after the last. */
MV_API const char* mv_path_name(int32_t index);

/* Tensors, in this order: embeddings [vocab, hidden] fp16; head; final norm [hidden] fp32; for every feed-forward
 * network gate_up, down; for every layer qkv, its bias fp32 if there is one, the norms of queries and of keys if there
 * are, [2, head_width] fp32, out, the norm before attention and the one before the feed-forward network, [hidden] fp32
 * each; the rotary frequencies, radians a position, fp32 [head_width / 2]. Matrices are packed as kernels.h describes. The size of each is checked. */
MV_API mv_model* mv_model_new(const mv_config* config, const mv_span* tensors, int32_t count);
MV_API void mv_model_free(mv_model* model);
MV_API const char* mv_model_path(const mv_model* model);

/* Bytes that one token of decoding reads: from memory, and (the shared network, every layer) from the cache. */
MV_API void mv_model_traffic(const mv_model* model, uint64_t* streamed, uint64_t* cached);

/* Allocates the keys and values of `capacity` positions, at most the context. */
MV_API mv_sequence* mv_sequence_new(mv_model* model, int32_t capacity);
MV_API void mv_sequence_free(mv_sequence* sequence);

/* Give an empty sequence the first `length` positions of another one of its model. */
MV_API int32_t mv_sequence_copy(mv_sequence* sequence, const mv_sequence* source, int32_t length);

/* Append to `count` different sequences of this model: counts[i] positions to sequences[i]. `embeddings` [sum of
 * counts, hidden] fp32, or, where it is NULL, `tokens` [sum of counts]. `logits` [count, vocab rounded up to 16] fp32
 * takes those after the last position of each sequence. On failure no sequence has changed its length. */
MV_API int32_t mv_forward(mv_model* model, mv_sequence* const* sequences, const int32_t* counts, int32_t count,
                          const float* embeddings, const int32_t* tokens, float* logits);

/* Layers outside the decoder. A thread pool has threads (the caller's included) and the memory that they share; calls
 * on one pool take turns. */
typedef struct mv_thread_pool mv_thread_pool;
MV_API mv_thread_pool* mv_thread_pool_new(int32_t threads, const char* path);
MV_API void mv_thread_pool_free(mv_thread_pool* pool);
MV_API const char* mv_thread_pool_path(const mv_thread_pool* pool);

/* y [count, rows] = x [count, columns] times the transposed matrix [rows, columns] of 8 or 16 bits, plus bias [rows] where
 * it is not NULL; x, bias and y are fp32. The size of `weights` is checked, and says how many bits they have. */
MV_API int32_t mv_linear(mv_thread_pool* pool, const mv_span* weights, int32_t rows, int32_t columns, const float* bias,
                         const float* x, int32_t count, float* y);

/* An activation of `count` numbers in place: 0 is QuickGELU, 1 GELU, 2 GELU by tanh. */
MV_API int32_t mv_activate(mv_thread_pool* pool, int32_t kind, float* x, int64_t count);

/* Image towers: vision transformers (arXiv 2010.11929) with learned positions. */
typedef struct {
    double eps; /* of the layer norms */
    int32_t image, patch; /* their sides in pixels */
    int32_t width, layers, heads, mlp;
    int32_t activation;  /* as in mv_activate() */
    int32_t class_token; /* 1: one stands before the patches */
    int32_t keep_class;  /* 1: and is given out with them */
    int32_t pre_norm, final_norm; /* 1: there is a norm before the blocks; after them */
} mv_tower_config;

typedef struct mv_tower mv_tower;

/* Tensors, in this order: the patch embedding [width, 3 * patch * patch]; positions [tokens, width], to which the class
 * token and the bias of the embedding were added; the norm before the blocks; for every block the norm before attention,
 * qkv, out, the norm before the network, up, down; the norm after the blocks. A norm is its scale and its shift [width], a
 * layer its matrix and its bias. Matrices are packed to 8 or 16 bits, which their sizes say; all else is fp32. `pool` must
 * outlive the tower. */
MV_API mv_tower* mv_tower_new(mv_thread_pool* pool, const mv_tower_config* config, const mv_span* tensors, int32_t count);
MV_API void mv_tower_free(mv_tower* tower);

/* Features [images, tokens given out, width] of pixels [images, 3, image, image]. */
MV_API int32_t mv_tower_encode(mv_tower* tower, const float* pixels, int32_t images, float* features);

#ifdef __cplusplus
}
#endif
#endif
