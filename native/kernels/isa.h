// What an instruction set provides. Kernels see one shape of work: whole tiles of 16 rows of the matrix times a block
// of activation rows, into float32. Cutting, threads, types and convolutions are the drivers' business.
#ifndef HYBRIDKIT_ISA_H
#define HYBRIDKIT_ISA_H

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace hybridkit {

constexpr int kTileRows = 16;
constexpr int kBlockBytes = 64;
constexpr int kGranule = 16;       // activations of one row that lie together: [K / 16][rows][16] in a panel
constexpr int kBlockRows = 192;    // most activation rows that one call multiplies
constexpr float kLeastMax = 1e-5f; // s_x = max(max|x|, kLeastMax) / 127

// Columns of a block, and to a multiple of what K is rounded up: whole blocks and granules.
constexpr int64_t block_columns(int bits) { return 4 * (8 / bits); }
constexpr int64_t padding_of(int bits) { return bits == 1 ? 2 * kGranule : kGranule; }
constexpr int64_t padded_columns(int bits, int64_t K) {
  return (K + padding_of(bits) - 1) / padding_of(bits) * padding_of(bits);
}
constexpr int64_t blocks_of(int bits, int64_t K) { return padded_columns(bits, K) / block_columns(bits); }
// Ternary codes in fewer than two bits: what a tile is made of, and how many blocks of two-bit codes that becomes.
struct Unit {
  int bytes, blocks;

  constexpr int columns() const { return 16 * blocks; }
  constexpr int64_t of(int64_t K) const { return (K + columns() - 1) / columns(); }  // units of a tile
};
constexpr Unit kSparse{80, 2}, kBase3{256, 5};
constexpr int64_t step_bytes(int bits) { return padding_of(bits) / block_columns(bits) * kBlockBytes; }
constexpr int64_t groups_of(int64_t K, int64_t group_size) { return (K + group_size - 1) / group_size; }
constexpr int64_t tiles_of(int64_t N) { return (N + kTileRows - 1) / kTileRows; }

// Of n-bit codes: columns that share a scale.
struct Groups {
  int64_t count;      // of a row
  int64_t granules;   // of each but the last
  const void* scale;  // [tiles][count][16]
  bool half;          // whether scales are float16
};

struct Work {
  int bits;              // 2 ternary, 1 binary; 1, 2, 4 or 8 with groups
  const uint8_t* codes;  // [tiles][blocks][64]
  int64_t tiles, blocks;
  int64_t columns;       // of the output that exist, 16 tiles or up to 15 fewer
  const float* scale;    // [columns], where there are no groups
  const float* bias;     // [columns]
  Groups groups;
  int64_t rows;          // of the activations, 1 ... kBlockRows
  float* y;              // [rows][columns], `stride` floats from row to row
  int64_t stride;
};

struct Int8Work : Work {
  const int8_t* x;       // panels of `panel` rows, the last may have fewer, each [Kp / 16][rows][16] with
                         // Kp = blocks * block_columns, zeros beyond K
  int64_t panel;
  int64_t row_bytes;     // from row to row, where panels have one
  const float* x_scale;  // [rows] or [rows][groups], s_x; NaN where it is of numbers that are not finite
  const int32_t* x_sum;  // [rows], the sum of the row's codes, or [rows][groups], the group's times -2^(bits - 1)
};

// Calls `kernel` with the bits of codes in groups as a constant: kernel(std::integral_constant<int, bits>).
template <class Kernel>
void with_bits(const Work& work, const Kernel& kernel) {
  switch (work.bits) {
    case 1: return kernel(std::integral_constant<int, 1>());
    case 2: return kernel(std::integral_constant<int, 2>());
    case 4: return kernel(std::integral_constant<int, 4>());
    default: return kernel(std::integral_constant<int, 8>());
  }
}

struct FloatWork : Work {
  const float* x;        // [rows][K], `x_stride` floats from row to row
  int64_t x_stride;
  int64_t K;
};

// A convolution of each channel by itself, on one image. Codes come as floats, too: their sums are exact.
struct DepthwiseWork {
  const float* image;       // the first output position's first tap; channels last
  const int64_t* taps;      // [count], how far from there each tap is
  const float* weights;     // [count][channels], -1, 0 or 1
  int64_t count, channels;
  int64_t positions, step;  // outputs side by side, and how far apart their inputs are
  float* sums;              // [positions][channels]
};

// Queries that share keys and values: `heads` rows for each token, one token after the other. What they see of the keys
// from ... to - 1, and of those the last `window` up to their own place.
constexpr int64_t kKeyBlock = 64;  // keys whose scores are together
constexpr int64_t padded_head(int64_t size) { return (size + 15) / 16 * 16; }
struct AttentionWork {
  const float* queries;  // [rows][head_size], scaled
  int64_t rows, heads, head_size;
  const float* keys;     // [...][head_size]
  const float* values;
  int64_t place;         // of the first token
  int64_t from, to, window;
  float softcap;         // of scores; 0: none
  float* maximum;        // [rows], of the scores
  float* total;          // [rows], sum of e^(score - maximum)
  float* sums;           // [rows][padded_head(head_size)], of values times the same
  float* scratch;        // [attention_scratch(rows, head_size)]
};
constexpr int64_t attention_scratch(int64_t rows, int64_t head_size) {
  return kKeyBlock * (head_size + padded_head(head_size) + rows);
}

// Of ternary codes in fewer than two bits. Work has units in the place of so many blocks each.
struct DenseKernels {
  void (*int8)(const Int8Work&);      // of panels; null: units are expanded
  void (*floats)(const FloatWork&);   // null: they are expanded
  // So many units of a tile as blocks of two-bit codes.
  void (*expand)(const uint8_t* units, int64_t count, uint8_t* blocks);
};

struct Isa {
  const char* name;
  bool (*supported)();
  int panel_rows;    // activation rows of an int8 panel at most
  int group_panel_rows;
  int stream_rows;   // up to so many rows int8 is one pass over the packed weights
  int stream_rows_float;
  int matrix_rows;   // from so many rows on int8 takes panels of one row (Panels in work.h); 0: never
  int group_matrix_rows;
  void (*int8)(const Int8Work&);
  void (*floats)(const FloatWork&);
  void (*group_int8)(const Int8Work&);
  void (*group_floats)(const FloatWork&);
  // The largest |x| as its bits, so that NaN > infinity > every finite number.
  uint32_t (*magnitude)(const float* x, int64_t n);
  // Codes of n activations under scale s, in granules of 16 that are `stride` bytes apart; the last granule is
  // filled up with zeros. Returns the sum of the codes.
  int32_t (*quantize)(const float* x, int64_t n, float s, int8_t* codes, int64_t stride);
  // Codes of a patch, n of them and a multiple of 16, into granules that are `stride` bytes apart; returns their sum.
  int32_t (*place)(const int8_t* patch, int64_t n, int8_t* codes, int64_t stride);
  // [rows][columns] to [columns][rows], `stride` floats from row to row of each
  void (*transpose)(const float* from, int64_t from_stride, int64_t rows, int64_t columns, float* to, int64_t to_stride);
  void (*depthwise)(const DepthwiseWork&);
  DenseKernels sparse, base3;
  void (*attend)(const AttentionWork&);
};

extern const Isa kScalar, kAvx2, kAvxVnni, kAvx512Vnni, kAmx, kNeon;

const Isa& isa();  // the one in use

}  // namespace hybridkit
#endif
