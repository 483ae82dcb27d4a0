/* Products of packed matrices with dense activations: the C interface of the kernels.
 *
 *   int8:   s_x = max(max|x|, 1e-5) / 127            per row of x (matmul), per sample (convolution)
 *           x^  = clip(round_half_even(x / s_x), -127, 127)
 *           y   = float(x^ . q) * (s_x * scale) + bias
 *   float:  y   = (x . q) * scale + bias
 *
 * with the codes q in {-1, 0, 1} (ternary, base 3, 3:4-sparse) or {-1, 1} (binary). The integer sums are exact for K <= 2^22, so
 * int8 gives the same bits on every instruction set. A row (sample) that holds a NaN or an infinity gives NaN in all of
 * its outputs under int8; float behaves as a float32 matmul.
 *
 * n-bit codes, q from -2^(bits - 1) to 2^(bits - 1) - 1 with bits 2, 4 or 8 and -1 or 1 with one bit, have a scale for
 * every group g of group_size columns (the last group of a row may be shorter), and y is a sum over the groups, in
 * float32, rounded after every step:
 *
 *   int8:         y = 0 + p_0 + p_1 + ... + bias,  p_g = float(x^_g . q_g) * (s_x * scale_g),  s_x per row of x
 *   int8 blocks:  the same with an s_x for every group of a row of x: of the activations in that group
 *   float:        y = sum over g of (x_g . q_g) * scale_g, in any order, + bias
 *
 * Orders of the codes ("layout"), `bits` = 8, 4, 2 or 1, P = 8 / bits digits in a byte, lowest bits first:
 *   0  row-major: [N, ceil(K / P)]; byte i of row n holds the digits of k = P i ... P i + P - 1
 *   1  tiled: [ceil(N / 16), ceil(K / 4P), 16, 4]; digit p of byte [t, b, r, j] is row n = 16 t + r,
 *      column k = 4 P b + 4 p + j. What lies beyond N and K is digit 0. K is rounded up to a multiple of 16, of 32
 *      for bits = 1.
 *   2  tiled, for convolutions: as 1, but the columns of a row are in the order (kernel, channel) where layout 0
 *      has ONNX's (channel, kernel): k' = tap * channels + channel. The rows of each group are tiled on their own,
 *      group after group. A patch of an image in channels-last order is then a few contiguous runs.
 * A digit d stands for d - 1 (ternary), 2 d - 1 (one bit) or d - 2^(bits - 1) (other n-bit); the ternary digit 3 is
 * invalid.
 * hybridkit_matmul reads layout 1, hybridkit_conv layout 2. One block [16, 4] is 64 bytes, which every instruction set
 * takes as one sequential stream: lanes are rows, so that sums need no reduction across lanes, and four neighbours in k make one dot product.
 *
 * 3:4-sparse codes are ternary ones of which one in every four columns is 0 and the others are not. Four are a field of
 * five bits: bits 0 to 2 are the signs of the others in their order, 1 for +1, bits 3 and 4 say which is 0.
 *   0  row-major: [N, ceil(5 ceil(K / 4) / 8)]; field i of a row is its bits 5 i ... 5 i + 4, lowest first
 *   1  tiled: [ceil(N / 16), ceil(K / 32), 80]; the five bytes of a row's fields 8 u ... 8 u + 7 are bytes 4 r ... 4 r + 3
 *      and 64 + r of [t, u], for row n = 16 t + r. What lies beyond N and K is whatever field 0 stands for.
 *
 * Ternary codes in base 3, five digits q + 1 in a byte:
 *   0  row-major: [N, ceil(K / 5)]; byte i of row n is the sum of 3^p d(5 i + p), p = 0 ... 4
 *   1  tiled: [ceil(N / 16), ceil(K / 80), 4, 16, 4]; byte [t, u, l, r, j] is ceil(256 v / 243), v the sum of
 *      3^(4 - p) d(80 u + 20 l + 4 p + j) of row n = 16 t + r. Three times the byte is digit 0 times 256, and the byte
 *      of the digits behind it. What lies beyond N and K is digit 0.
 *
 * Functions that can fail return NULL or a static message that says what is wrong.
 * Every size and attribute is checked before anything is allocated, read or written, whatever its value. What cannot be
 * checked: that codes, scale, bias, x and y have the sizes that follow from them.
 * All functions may be called from several threads at once.
 */
#ifndef HYBRIDKIT_KERNELS_H
#define HYBRIDKIT_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define HYBRIDKIT_API __declspec(dllexport)
#else
#define HYBRIDKIT_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum { HYBRIDKIT_TILE_ROWS = 16, HYBRIDKIT_BLOCK_BYTES = 64 };

/* The largest K, the largest N and other sizes, and the largest padded sample of a convolution, in pixels, that may be
 * more than eight times the sample itself. */
enum { HYBRIDKIT_MAX_K = 1 << 22, HYBRIDKIT_MAX_SIZE = 0x7fffffff, HYBRIDKIT_MAX_PADDED = 1 << 22 };

/* The largest group of n-bit codes, and what its size is a multiple of; of one bit twice that. */
enum { HYBRIDKIT_MAX_GROUP = 1 << 16, HYBRIDKIT_GROUP_STEP = 16 };

/* The most heads of attention, and the largest head. */
enum { HYBRIDKIT_MAX_HEADS = 1 << 16 };

typedef enum {
  HYBRIDKIT_TERNARY = 0,
  HYBRIDKIT_BINARY = 1,
  HYBRIDKIT_NBIT1 = 2,
  HYBRIDKIT_NBIT2 = 3,
  HYBRIDKIT_NBIT4 = 4,
  HYBRIDKIT_NBIT8 = 5,
  HYBRIDKIT_SPARSE34 = 6,
  HYBRIDKIT_BASE3 = 7
} hybridkit_codec;
typedef enum { HYBRIDKIT_INT8 = 0, HYBRIDKIT_FLOAT = 1, HYBRIDKIT_INT8_BLOCKS = 2 } hybridkit_activations;
typedef enum { HYBRIDKIT_F32 = 0, HYBRIDKIT_F16 = 1, HYBRIDKIT_BF16 = 2 } hybridkit_dtype;

/* A packed matrix [N, K] in layout 1. Nothing is owned. `codes` needs no alignment (64 bytes is fastest). */
typedef struct {
  int32_t codec;       /* hybridkit_codec */
  int32_t activations; /* hybridkit_activations */
  int64_t N, K;        /* 1 to HYBRIDKIT_MAX_SIZE, 1 to HYBRIDKIT_MAX_K */
  const uint8_t* codes;
  const float* scale; /* [N]; null for n-bit codes */
  const float* bias;  /* [N] */
  size_t code_bytes;  /* of the codes; other than N and K need is an error, whatever N and K are */
  int64_t group_size; /* of n-bit codes, a multiple of HYBRIDKIT_GROUP_STEP (one bit: twice that) up to
                       * HYBRIDKIT_MAX_GROUP; else 0 */
  const void* group_scale; /* [ceil(N / 16), ceil(K / group_size), 16] of scale_dtype; null where group_size is 0 */
  int32_t scale_dtype;     /* of group_scale: HYBRIDKIT_F32 or HYBRIDKIT_F16 */
} hybridkit_matrix;

/* Who runs tasks in parallel: `run` calls task(state, 0 .. count - 1), in any order, and returns when all are done.
 * A null pointer to this struct means the calling thread alone. */
typedef struct {
  void (*run)(void* pool, void (*task)(void* state, size_t index), void* state, size_t count);
  void* pool;
} hybridkit_parallel;

/* Bytes of the codes in a layout; 0 if layout, N or K is out of range. */
HYBRIDKIT_API size_t hybridkit_code_bytes(int32_t codec, int32_t layout, int64_t N, int64_t K);

/* NULL, or what is wrong with codes of `bytes` bytes: a wrong size or an invalid digit. Reads all of them. */
HYBRIDKIT_API const char* hybridkit_check_codes(int32_t codec, int32_t layout, const uint8_t* codes, size_t bytes,
                                                int64_t N, int64_t K);

/* Layout 0 to layout 1. `out` takes hybridkit_code_bytes(codec, 1, N, K) bytes. */
HYBRIDKIT_API const char* hybridkit_tile(int32_t codec, const uint8_t* codes, int64_t N, int64_t K, uint8_t* out);

/* Whether tiles of such a matrix are better kept as they are than expanded once: the instruction set in use has int8
 * products of them, and a matrix in base 3 is large. Otherwise they may be expanded at every call. */
HYBRIDKIT_API int hybridkit_reads_tiles(int32_t codec, int64_t N, int64_t K);

/* 3:4-sparse codes or such in base 3, in layout 1, to ternary ones in layout 1. `out` takes
 * hybridkit_code_bytes(HYBRIDKIT_TERNARY, 1, N, K) bytes. */
HYBRIDKIT_API const char* hybridkit_expand(int32_t codec, const uint8_t* codes, int64_t N, int64_t K, uint8_t* out);

/* Rows of codes in layout 1, other than 3:4-sparse ones and such in base 3, as numbers q: y [count, K]. A negative
 * number of a row counts from the end, as in ONNX's Gather. */
HYBRIDKIT_API const char* hybridkit_gather(int32_t codec, const uint8_t* codes, size_t code_bytes, int64_t N, int64_t K,
                                           const int64_t* rows, int64_t count, float* y);

/* Scales [N, ceil(K / group_size)] of `dtype`, HYBRIDKIT_F32 or HYBRIDKIT_F16, to the order of group_scale, whose bytes
 * hybridkit_scale_bytes tells (0 if something is out of range). `scale_dtype` HYBRIDKIT_F16 is refused where one of the
 * scales is no float16 number. */
HYBRIDKIT_API size_t hybridkit_scale_bytes(int32_t scale_dtype, int64_t N, int64_t K, int64_t group_size);
HYBRIDKIT_API const char* hybridkit_tile_scales(const void* scale, int32_t dtype, int64_t N, int64_t K,
                                                int64_t group_size, int32_t scale_dtype, void* out);

/* x [M, K] -> y [M, N], both of `dtype` and contiguous; M >= 0. */
HYBRIDKIT_API const char* hybridkit_matmul(const hybridkit_matrix* matrix, int32_t dtype, const void* x, int64_t M,
                                           void* y, const hybridkit_parallel* parallel);

/* A convolution over 1 to 3 spatial axes; attributes as ONNX has them. */
typedef struct {
  int32_t axes;     /* 1 to 3 */
  int64_t channels; /* C, a multiple of group */
  int64_t group;    /* N is a multiple of it, too */
  int64_t size[3], kernel[3], stride[3], dilation[3], pad_begin[3], pad_end[3];
} hybridkit_geometry;

/* The spatial sizes of the output, or what is wrong with the geometry (a kernel larger than the padded input,
 * a stride below 1, channels that do not divide, padding beyond HYBRIDKIT_MAX_PADDED). An input of no pixels is
 * right where padding makes an output of it. */
HYBRIDKIT_API const char* hybridkit_conv_shape(const hybridkit_geometry* geometry, int64_t N, int64_t out_size[3]);

/* Bytes of convolution codes in layout 2; 0 if codec, N, K or group is out of range. */
HYBRIDKIT_API size_t hybridkit_conv_code_bytes(int32_t codec, int64_t N, int64_t K, int64_t group);

/* NULL, or what is wrong with layout-2 codes of `bytes` bytes. Reads all of them. */
HYBRIDKIT_API const char* hybridkit_check_conv_codes(int32_t codec, const uint8_t* codes, size_t bytes, int64_t N,
                                                     int64_t K, int64_t group);

/* Layout 0 to layout 2; `taps` is the kernel's size, prod(kernel), a divisor of K. */
HYBRIDKIT_API const char* hybridkit_conv_tile(int32_t codec, const uint8_t* codes, int64_t N, int64_t K, int64_t group,
                                              int64_t taps, uint8_t* out);

/* Of ternary and binary codes. x [batch, C, size...] -> y [batch, N, out_size...]; matrix.K is C / group * prod(kernel), its codes layout 2. */
HYBRIDKIT_API const char* hybridkit_conv(const hybridkit_matrix* matrix, const hybridkit_geometry* geometry,
                                         int32_t dtype, const void* x, int64_t batch, void* y,
                                         const hybridkit_parallel* parallel);

/* Attention with a cache, as ONNX Runtime's GroupQueryAttention: in float32, to round-off the same on every instruction
 * set, and the same for every number of threads.
 *
 *   y = softmax(scale * q . k [capped: c tanh(s / c) with c = softcap > 0]) . v
 *
 * over the keys of a sample up to the query's own place, and of those over the last `window`. heads / kv_heads heads
 * of queries share a head of keys and values. Of the past of a sample the first last[sample] + 1 - tokens tokens count;
 * where total == tokens there is no past, and samples may be shorter than `tokens`: what they are filled up with is
 * taken as tokens. Past and present may be the same memory, which is then of the same room. */
typedef struct {
  int64_t batch, tokens, total; /* tokens that are new; total: with the past, of the longest sample */
  int64_t heads, kv_heads, head_size;
  int64_t past_room, room; /* tokens that past and present are memory for */
  int64_t window;          /* -1: all */
  float scale, softcap;
  const int32_t* last;              /* [batch], the place of the last token */
  const float* queries;             /* [batch, tokens, heads, head_size] */
  const float *keys, *values;       /* [batch, tokens, kv_heads, head_size] */
  const float *past_keys, *past_values;    /* [batch, kv_heads, past_room, head_size] */
  float *present_keys, *present_values;    /* [batch, kv_heads, room, head_size] */
  float* y;                         /* [batch, tokens, heads, head_size] */
} hybridkit_attention;

HYBRIDKIT_API const char* hybridkit_attend(const hybridkit_attention* attention, const hybridkit_parallel* parallel);

/* The instruction set in use: "scalar", "avx2", "avxvnni", "avx512vnni", "amx" or "neon". The best that the
 * processor has, unless the environment variable HYBRIDKIT_ISA named another one that it has when the library was first
 * used. */
HYBRIDKIT_API const char* hybridkit_isa(void);

/* The instruction sets of this build that this processor has, best first; NULL beyond the last. */
HYBRIDKIT_API const char* hybridkit_isa_available(int index);

/* Switches (for tests and benchmarks); NULL, or a message if this processor or build lacks it. */
HYBRIDKIT_API const char* hybridkit_set_isa(const char* name);

/* What was wrong with HYBRIDKIT_ISA (it is then ignored), or NULL. */
HYBRIDKIT_API const char* hybridkit_isa_warning(void);

/* Which kernel hybridkit_matmul takes for M rows: "stream" (one pass over the packed weights, few rows) or "tile"
 * (some tiles after others, each group for a block of many rows). Only the types and sizes of the matrix are looked at;
 * NULL if one is out of range or M is negative. */
HYBRIDKIT_API const char* hybridkit_kernel(const hybridkit_matrix* matrix, int64_t M);

/* Into how many parallel tasks hybridkit_matmul cuts M rows (the first of them, where M is so large that it takes some
 * after others): 1 means that more threads do not help, 0 that something is out of range as for hybridkit_kernel. */
HYBRIDKIT_API int64_t hybridkit_tasks(const hybridkit_matrix* matrix, int64_t M);

/* A pool of `threads` threads (the caller is one of them) for hosts that have none. Made once per number of threads
 * and kept; survives fork() of the process. Never NULL; threads <= 1 gives one that runs in the caller. */
HYBRIDKIT_API const hybridkit_parallel* hybridkit_thread_pool(int threads);

/* "0.1.0" */
HYBRIDKIT_API const char* hybridkit_version(void);

#ifdef __cplusplus
}
#endif
#endif
