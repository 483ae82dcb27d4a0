// NEON with dot product (ARMv8.2): sdot multiplies signed codes and activations, 16 at a time, into four 32-bit sums.
#include <arm_neon.h>
#include <string.h>

#include "attention.h"
#include "half.h"
#include "isa.h"
#include "plain.h"
#include "processor.h"

namespace hybridkit {
namespace {

constexpr int kPanel = 4;         // rows of a register tile: 4 x 16 sums in 16 of 32 registers
constexpr int kFloatPanel = 4;
constexpr int64_t kFloatChunk = 128;  // columns that are unpacked at a time: 8 KiB

// Plane p of 16 packed bytes as signed codes.
template <int bits, int p>
inline int8x16_t plane(uint8x16_t packed) {
  constexpr int shift = bits * p;
  uint8x16_t digits = packed;
  if constexpr (shift > 0) digits = vshrq_n_u8(packed, shift == 0 ? 1 : shift);
  if constexpr (shift + bits < 8) digits = vandq_u8(digits, vdupq_n_u8((1 << bits) - 1));
  const int8x16_t digit = vreinterpretq_s8_u8(digits), one = vdupq_n_s8(1);
  return vsubq_s8(bits == 2 ? digit : vaddq_s8(digit, digit), one);
}

template <int rows>
struct Sums {
  int32x4_t of[rows][4];
};

// Four planes of a block, which are one granule of activations: lane i of the granule holds plane i's four.
template <int bits, int first, int rows>
inline void add_granule(const uint8x16_t (&packed)[4], const int8x16_t (&x)[rows], Sums<rows>& sum) {
  for (int v = 0; v < 4; ++v) {
    const int8x16_t a = plane<bits, first>(packed[v]), b = plane<bits, first + 1>(packed[v]);
    const int8x16_t c = plane<bits, first + 2>(packed[v]), d = plane<bits, first + 3>(packed[v]);
    for (int m = 0; m < rows; ++m) {
      int32x4_t s = sum.of[m][v];
      s = vdotq_laneq_s32(s, a, x[m], 0);
      s = vdotq_laneq_s32(s, b, x[m], 1);
      s = vdotq_laneq_s32(s, c, x[m], 2);
      sum.of[m][v] = vdotq_laneq_s32(s, d, x[m], 3);
    }
  }
}

template <int rows>
inline void load_granule(const int8_t* x, int8x16_t (&to)[rows]) {
  for (int m = 0; m < rows; ++m) to[m] = vld1q_s8(x + m * kGranule);
}

void finish(const Int8Work& work, int64_t row, int64_t first, int32x4_t sums) {
  const int64_t columns = work.columns - first;
  if (columns <= 0) return;
  float* y = work.y + row * work.stride + first;
  const float32x4_t sum = vcvtq_f32_s32(sums);
  if (columns >= 4) {
    const float32x4_t scale = vmulq_n_f32(vld1q_f32(work.scale + first), work.x_scale[row]);
    vst1q_f32(y, vaddq_f32(vmulq_f32(sum, scale), vld1q_f32(work.bias + first)));
    return;
  }
  float lane[4];
  vst1q_f32(lane, sum);
  for (int64_t n = 0; n < columns; ++n) {
    const float scale = work.x_scale[row] * work.scale[first + n];
    y[n] = lane[n] * scale + work.bias[first + n];
  }
}

// `rows` rows of a panel times one tile; a weight is unpacked in registers where it is used.
template <int bits, int rows>
void multiply(const Int8Work& work, const int8_t* x, int64_t tile, int64_t row) {
  const uint8_t* codes = work.codes + tile * work.blocks * kBlockBytes;
  Sums<rows> sum;
  for (auto& of_row : sum.of)
    for (auto& s : of_row) s = vdupq_n_s32(0);
  for (int64_t block = 0; block < work.blocks; ++block, codes += kBlockBytes) {
    uint8x16_t packed[4];
    for (int v = 0; v < 4; ++v) packed[v] = vld1q_u8(codes + 16 * v);
    int8x16_t granule[rows];
    load_granule<rows>(x, granule);
    x += rows * kGranule;
    add_granule<bits, 0, rows>(packed, granule, sum);
    if constexpr (bits == 1) {
      load_granule<rows>(x, granule);
      x += rows * kGranule;
      add_granule<bits, 4, rows>(packed, granule, sum);
    }
  }
  for (int m = 0; m < rows; ++m)
    for (int v = 0; v < 4; ++v) finish(work, row + m, tile * kTileRows + 4 * v, sum.of[m][v]);
}

template <int bits>
void products(const Int8Work& work) {
  const int64_t padded = work.blocks * block_columns(bits);
  for (int64_t tile = 0; tile < work.tiles; ++tile) {
    for (int64_t row = 0; row < work.rows; row += work.panel) {
      const int8_t* x = work.x + row * padded;
      switch (work.rows - row < work.panel ? work.rows - row : work.panel) {
        case 1: multiply<bits, 1>(work, x, tile, row); break;
        case 2: multiply<bits, 2>(work, x, tile, row); break;
        case 3: multiply<bits, 3>(work, x, tile, row); break;
        default: multiply<bits, 4>(work, x, tile, row);
      }
    }
  }
}

void int8(const Int8Work& work) { work.bits == 2 ? products<2>(work) : products<1>(work); }

// Columns [first, first + count) of a tile as floats [count][16].
template <int bits>
void unpack_floats(const FloatWork& work, int64_t tile, int64_t first, int64_t count, float* out) {
  constexpr int planes = 8 / bits;
  const int32x4_t mask = vdupq_n_s32((1 << bits) - 1), one = vdupq_n_s32(1);
  for (int64_t k = first; k < first + count; ++k, out += kTileRows) {
    const int64_t block = k / (4 * planes), within = k % (4 * planes);
    const uint8_t* codes = work.codes + (tile * work.blocks + block) * kBlockBytes;
    const int32x4_t shift = vdupq_n_s32(-static_cast<int>(within % 4 * 8 + within / 4 * bits));
    for (int v = 0; v < 4; ++v) {
      const uint32x4_t packed = vreinterpretq_u32_u8(vld1q_u8(codes + 16 * v));
      const int32x4_t digit = vandq_s32(vreinterpretq_s32_u32(vshlq_u32(packed, shift)), mask);
      const int32x4_t code = vsubq_s32(bits == 2 ? digit : vaddq_s32(digit, digit), one);
      vst1q_f32(out + 4 * v, vcvtq_f32_s32(code));
    }
  }
}

// sums [rows][16] (+)= x [rows][count] times weights [count][16]
template <int rows>
void multiply_floats(const float* x, int64_t stride, const float* weights, int64_t count, bool add, float* sums) {
  float32x4_t sum[rows][4];
  for (int m = 0; m < rows; ++m)
    for (int v = 0; v < 4; ++v) sum[m][v] = add ? vld1q_f32(sums + m * kTileRows + 4 * v) : vdupq_n_f32(0);
  for (int64_t k = 0; k < count; ++k) {
    float32x4_t weight[4];
    for (int v = 0; v < 4; ++v) weight[v] = vld1q_f32(weights + k * kTileRows + 4 * v);
    for (int m = 0; m < rows; ++m)
      for (int v = 0; v < 4; ++v) sum[m][v] = vfmaq_n_f32(sum[m][v], weight[v], x[m * stride + k]);
  }
  for (int m = 0; m < rows; ++m)
    for (int v = 0; v < 4; ++v) vst1q_f32(sums + m * kTileRows + 4 * v, sum[m][v]);
}

// sums [rows][16] (+)= columns [first, first + count) of all rows times weights [count][16]
void multiply_rows(const FloatWork& work, int64_t first, int64_t count, const float* weights, float* sums) {
  for (int64_t row = 0; row < work.rows; row += kFloatPanel) {
    const float* x = work.x + row * work.x_stride + first;
    float* to = sums + row * kTileRows;
    switch (work.rows - row) {
      case 1: multiply_floats<1>(x, work.x_stride, weights, count, first > 0, to); break;
      case 2: multiply_floats<2>(x, work.x_stride, weights, count, first > 0, to); break;
      case 3: multiply_floats<3>(x, work.x_stride, weights, count, first > 0, to); break;
      default: multiply_floats<4>(x, work.x_stride, weights, count, first > 0, to);
    }
  }
}

template <int bits>
void float_products(const FloatWork& work) {
  alignas(64) float weights[kFloatChunk * kTileRows];
  alignas(64) float sums[kBlockRows * kTileRows];
  for (int64_t tile = 0; tile < work.tiles; ++tile) {
    for (int64_t first = 0; first < work.K; first += kFloatChunk) {
      const int64_t count = work.K - first < kFloatChunk ? work.K - first : kFloatChunk;
      unpack_floats<bits>(work, tile, first, count, weights);
      multiply_rows(work, first, count, weights, sums);
    }
    const int64_t column = tile * kTileRows;
    for (int64_t row = 0; row < work.rows; ++row) {
      for (int64_t n = 0; n < kTileRows && column + n < work.columns; ++n) {
        work.y[row * work.stride + column + n] =
            sums[row * kTileRows + n] * work.scale[column + n] + work.bias[column + n];
      }
    }
  }
}

void floats(const FloatWork& work) { work.bits == 2 ? float_products<2>(work) : float_products<1>(work); }

// Plane p of 16 packed bytes of n-bit codes, signed: the sums need nothing taken back.
template <int bits>
inline int8x16_t nbit_plane(uint8x16_t packed, int p) {
  if constexpr (bits == 8) return vreinterpretq_s8_u8(veorq_u8(packed, vdupq_n_u8(0x80)));
  const uint8x16_t shifted = vshlq_u8(packed, vdupq_n_s8(static_cast<int8_t>(-bits * p)));
  const uint8x16_t digits = vandq_u8(shifted, vdupq_n_u8((1 << bits) - 1));
  const uint8x16_t steps = bits == 1 ? vaddq_u8(digits, digits) : digits;
  return vsubq_s8(vreinterpretq_s8_u8(steps), vdupq_n_s8(static_cast<int8_t>(1 << (bits - 1))));
}

inline float32x4_t group_scale(const Groups& groups, int64_t tile, int64_t group, int v) {
  const int64_t first = (tile * groups.count + group) * kTileRows + 4 * v;
  if (!groups.half) return vld1q_f32(static_cast<const float*>(groups.scale) + first);
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(static_cast<const uint16_t*>(groups.scale) + first)));
}

void write_total(const Work& work, int64_t row, int64_t first, float32x4_t total) {
  const int64_t columns = work.columns - first;
  if (columns <= 0) return;
  float* y = work.y + row * work.stride + first;
  if (columns >= 4) {
    vst1q_f32(y, vaddq_f32(total, vld1q_f32(work.bias + first)));
    return;
  }
  float lane[4];
  vst1q_f32(lane, total);
  for (int64_t n = 0; n < columns; ++n) y[n] = lane[n] + work.bias[first + n];
}

template <int bits, int rows>
void multiply_groups(const Int8Work& work, const int8_t* x, int64_t tile, int64_t row) {
  constexpr int planes = 8 / bits, step = static_cast<int>(padding_of(bits)) / kGranule;  // granules at a time
  const uint8_t* codes = work.codes + tile * work.blocks * kBlockBytes;
  const int64_t count = work.groups.count;
  float32x4_t total[rows][4];
  for (auto& of_row : total)
    for (auto& part : of_row) part = vdupq_n_f32(0);
  int64_t left = work.blocks * kBlockBytes / step_bytes(bits) * step;
  for (int64_t group = 0; group < count; ++group) {
    Sums<rows> sum;
    for (auto& of_row : sum.of)
      for (auto& s : of_row) s = vdupq_n_s32(0);
    const int64_t granules = work.groups.granules < left ? work.groups.granules : left;
    left -= granules;
    for (int64_t g = 0; g < granules; g += step, codes += step_bytes(bits), x += step * rows * kGranule) {
#pragma GCC unroll 8
      for (int four = 0; four < 4 * step; ++four) {
        for (int v = 0; v < 4; ++v) {
          const int8x16_t code = nbit_plane<bits>(vld1q_u8(codes + four / planes * kBlockBytes + 16 * v), four % planes);
          for (int m = 0; m < rows; ++m) {
            int32_t activations;
            memcpy(&activations, x + (four / 4 * rows + m) * kGranule + four % 4 * 4, sizeof activations);
            sum.of[m][v] = vdotq_s32(sum.of[m][v], code, vreinterpretq_s8_s32(vdupq_n_s32(activations)));
          }
        }
      }
    }
    for (int v = 0; v < 4; ++v) {
      const float32x4_t scale = group_scale(work.groups, tile, group, v);
      for (int m = 0; m < rows; ++m) {
        const float32x4_t both = vmulq_n_f32(scale, work.x_scale[(row + m) * count + group]);
        total[m][v] = vaddq_f32(total[m][v], vmulq_f32(vcvtq_f32_s32(sum.of[m][v]), both));
      }
    }
  }
  for (int m = 0; m < rows; ++m)
    for (int v = 0; v < 4; ++v) write_total(work, row + m, tile * kTileRows + 4 * v, total[m][v]);
}

template <int bits>
void group_products(const Int8Work& work) {
  const int64_t padded = work.blocks * block_columns(bits);
  for (int64_t tile = 0; tile < work.tiles; ++tile) {
    for (int64_t row = 0; row < work.rows; row += work.panel) {
      const int8_t* x = work.x + row * padded;
      switch (work.rows - row < work.panel ? work.rows - row : work.panel) {
        case 1: multiply_groups<bits, 1>(work, x, tile, row); break;
        case 2: multiply_groups<bits, 2>(work, x, tile, row); break;
        case 3: multiply_groups<bits, 3>(work, x, tile, row); break;
        default: multiply_groups<bits, 4>(work, x, tile, row);
      }
    }
  }
}

void group_int8(const Int8Work& work) {
  with_bits(work, [&](auto bits) { group_products<bits>(work); });
}

// Columns [first, first + count) of a tile as floats [count][16], scaled.
template <int bits>
void unpack_groups(const FloatWork& work, int64_t tile, int64_t first, int64_t count, float* out) {
  constexpr int64_t columns = block_columns(bits);
  const int64_t size = work.groups.granules * kGranule;
  const uint32x4_t mask = vdupq_n_u32((1 << bits) - 1);
  const int32x4_t zero = vdupq_n_s32(1 << (bits - 1));
  for (int64_t k = first; k < first + count; ++k, out += kTileRows) {
    const uint8_t* codes = work.codes + (tile * work.blocks + k / columns) * kBlockBytes;
    const int32x4_t shift = vdupq_n_s32(-static_cast<int>(k % 4 * 8 + k % columns / 4 * bits));
    for (int v = 0; v < 4; ++v) {
      const uint32x4_t packed = vreinterpretq_u32_u8(vld1q_u8(codes + 16 * v));
      const uint32x4_t digit = vandq_u32(vshlq_u32(packed, shift), mask);
      const uint32x4_t steps = bits == 1 ? vaddq_u32(digit, digit) : digit;
      const int32x4_t code = vsubq_s32(vreinterpretq_s32_u32(steps), zero);
      vst1q_f32(out + 4 * v, vmulq_f32(vcvtq_f32_s32(code), group_scale(work.groups, tile, k / size, v)));
    }
  }
}

template <int bits>
void groups_of_floats(const FloatWork& work) {
  alignas(64) float weights[kFloatChunk * kTileRows];
  alignas(64) float sums[kBlockRows * kTileRows];
  for (int64_t tile = 0; tile < work.tiles; ++tile) {
    for (int64_t first = 0; first < work.K; first += kFloatChunk) {
      const int64_t count = work.K - first < kFloatChunk ? work.K - first : kFloatChunk;
      unpack_groups<bits>(work, tile, first, count, weights);
      multiply_rows(work, first, count, weights, sums);
    }
    for (int64_t row = 0; row < work.rows; ++row)
      for (int v = 0; v < 4; ++v) {
        write_total(work, row, tile * kTileRows + 4 * v, vld1q_f32(sums + row * kTileRows + 4 * v));
      }
  }
}

void group_floats(const FloatWork& work) {
  with_bits(work, [&](auto bits) { groups_of_floats<bits>(work); });
}

uint32_t magnitude(const float* x, int64_t n) {
  const uint32x4_t absolute = vdupq_n_u32(0x7fffffffu);
  uint32x4_t largest = vdupq_n_u32(0);
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) largest = vmaxq_u32(largest, vandq_u32(vreinterpretq_u32_f32(vld1q_f32(x + i)), absolute));
  uint32_t most = vmaxvq_u32(largest);
  for (; i < n; ++i) {
    uint32_t bits;
    memcpy(&bits, x + i, sizeof bits);
    bits &= 0x7fffffffu;
    most = bits > most ? bits : most;
  }
  return most;
}

int32_t quantize(const float* x, int64_t n, float s, int8_t* codes, int64_t stride) {
  const float32x4_t scale = vdupq_n_f32(s);
  int32x4_t sum = vdupq_n_s32(0);
  for (int64_t i = 0; i < n; i += kGranule, codes += stride) {
    float rest[kGranule] = {};
    const float* from = x + i;
    if (i + kGranule > n) {
      memcpy(rest, from, static_cast<size_t>(n - i) * sizeof(float));
      from = rest;
    }
    int32x4_t code[4];
    for (int v = 0; v < 4; ++v) {
      code[v] = vcvtnq_s32_f32(vdivq_f32(vld1q_f32(from + 4 * v), scale));  // halves to even
      sum = vaddq_s32(sum, code[v]);
    }
    const int16x8_t low = vcombine_s16(vmovn_s32(code[0]), vmovn_s32(code[1]));
    const int16x8_t high = vcombine_s16(vmovn_s32(code[2]), vmovn_s32(code[3]));
    vst1q_s8(codes, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
  }
  return vaddvq_s32(sum);
}

// For attention.h: 6 x 4 sums of 32 registers.
struct Floats4 {
  using Float = float32x4_t;
  static constexpr int lanes = 4, rows = 6, vectors = 4, unturned = 8;

  static Float load(const float* from) { return vld1q_f32(from); }
  static void store(float* to, Float x) { vst1q_f32(to, x); }
  static Float all(float value) { return vdupq_n_f32(value); }
  static Float plus(Float a, Float b) { return vaddq_f32(a, b); }
  static Float times(Float a, Float b) { return vmulq_f32(a, b); }
  static Float most(Float a, Float b) { return vmaxq_f32(a, b); }
  static Float add_product(Float sum, Float a, Float b) { return vfmaq_f32(sum, a, b); }
  static Float nearest(Float x) { return vrndnq_f32(x); }
  static Float two_to(Float whole) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(whole), vdupq_n_s32(127)), 23));
  }
  static Float sums_of(const Float (&x)[4]) { return vpaddq_f32(vpaddq_f32(x[0], x[1]), vpaddq_f32(x[2], x[3])); }
  static float largest(Float x) { return vmaxvq_f32(x); }
  static float sum(Float x) { return vaddvq_f32(x); }
};

void attend(const AttentionWork& work) { attend_with<Floats4>(work); }

}  // namespace

const Isa kNeon = {"neon", has_neon_dot, kPanel, kPanel, kPanel, 0, 0, 0, int8, floats, group_int8, group_floats, magnitude, quantize, place, transpose, depthwise,
                   kSparseExpanded, kBase3Expanded, attend};

}  // namespace hybridkit
