// The reference: the arithmetic of the header, as obvious as it can be. Every other instruction set is tested
// against it.
#include <cmath>
#include <cstring>

#include "attention.h"
#include "half.h"
#include "isa.h"
#include "plain.h"

namespace hybridkit {
namespace {

bool supported() { return true; }

int digit_at(const Work& work, int64_t row, int64_t k) {
  const int planes = 8 / work.bits;
  const int64_t block = k / (4 * planes), plane = k / 4 % planes, j = k % 4;
  const uint8_t byte =
      work.codes[((row / kTileRows) * work.blocks + block) * kBlockBytes + row % kTileRows * 4 + j];
  return (byte >> (plane * work.bits)) & ((1 << work.bits) - 1);
}

int code_at(const Work& work, int64_t row, int64_t k) {
  const int digit = digit_at(work, row, k);
  return work.bits == 2 ? digit - 1 : 2 * digit - 1;
}

int nbit_code_at(const Work& work, int64_t row, int64_t k) {
  const int digit = digit_at(work, row, k);
  return work.bits == 1 ? 2 * digit - 1 : digit - (1 << (work.bits - 1));
}

float group_scale_at(const Work& work, int64_t row, int64_t group) {
  const int64_t place = (row / kTileRows * work.groups.count + group) * kTileRows + row % kTileRows;
  if (work.groups.half) return half::from_f16(static_cast<const uint16_t*>(work.groups.scale)[place]);
  return static_cast<const float*>(work.groups.scale)[place];
}

int8_t activation_at(const Int8Work& work, int64_t row, int64_t k) {
  const int64_t first = row / work.panel * work.panel;
  const int64_t rows = first + work.panel <= work.rows ? work.panel : work.rows - first;
  const int64_t padded = work.blocks * block_columns(work.bits);
  return work.x[first * padded + (k / kGranule * rows + row - first) * kGranule + k % kGranule];
}

void int8(const Int8Work& work) {
  for (int64_t m = 0; m < work.rows; ++m) {
    for (int64_t n = 0; n < work.columns; ++n) {
      int64_t sum = 0;
      for (int64_t k = 0; k < work.blocks * block_columns(work.bits); ++k) {
        sum += activation_at(work, m, k) * code_at(work, n, k);
      }
      work.y[m * work.stride + n] =
          static_cast<float>(sum) * (work.x_scale[m] * work.scale[n]) + work.bias[n];
    }
  }
}

void floats(const FloatWork& work) {
  for (int64_t m = 0; m < work.rows; ++m) {
    for (int64_t n = 0; n < work.columns; ++n) {
      float sum = 0;
      for (int64_t k = 0; k < work.K; ++k) {
        sum += work.x[m * work.x_stride + k] * static_cast<float>(code_at(work, n, k));
      }
      work.y[m * work.stride + n] = sum * work.scale[n] + work.bias[n];
    }
  }
}

void group_int8(const Int8Work& work) {
  const int64_t columns = work.blocks * block_columns(work.bits), size = work.groups.granules * kGranule;
  for (int64_t m = 0; m < work.rows; ++m) {
    for (int64_t n = 0; n < work.columns; ++n) {
      float total = 0;
      for (int64_t g = 0; g < work.groups.count; ++g) {
        int64_t sum = 0;
        for (int64_t k = g * size; k < columns && k < (g + 1) * size; ++k) {
          sum += activation_at(work, m, k) * nbit_code_at(work, n, k);
        }
        const float scale = work.x_scale[m * work.groups.count + g] * group_scale_at(work, n, g);
        total += static_cast<float>(sum) * scale;
      }
      work.y[m * work.stride + n] = total + work.bias[n];
    }
  }
}

void group_floats(const FloatWork& work) {
  const int64_t size = work.groups.granules * kGranule;
  for (int64_t m = 0; m < work.rows; ++m) {
    for (int64_t n = 0; n < work.columns; ++n) {
      float total = 0;
      for (int64_t g = 0; g < work.groups.count; ++g) {
        float sum = 0;
        for (int64_t k = g * size; k < work.K && k < (g + 1) * size; ++k) {
          sum += work.x[m * work.x_stride + k] * static_cast<float>(nbit_code_at(work, n, k));
        }
        total += sum * group_scale_at(work, n, g);
      }
      work.y[m * work.stride + n] = total + work.bias[n];
    }
  }
}

uint32_t magnitude(const float* x, int64_t n) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    bits &= 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  }
  return largest;
}

int32_t quantize(const float* x, int64_t n, float s, int8_t* codes, int64_t stride) {
  int32_t sum = 0;
  for (int64_t first = 0; first < n; first += kGranule, codes += stride) {
    for (int64_t i = 0; i < kGranule; ++i) {
      // nearbyint rounds halves to even; |x / s| rounds to 127 at most, so that nothing is left to clip
      const int code = first + i < n ? static_cast<int>(std::nearbyintf(x[first + i] / s)) : 0;
      codes[i] = static_cast<int8_t>(code);
      sum += code;
    }
  }
  return sum;
}

struct OneFloat {
  using Float = float;
  static constexpr int lanes = 1, rows = 6, vectors = 1, unturned = 8;

  static Float load(const float* from) { return *from; }
  static void store(float* to, Float x) { *to = x; }
  static Float all(float value) { return value; }
  static Float plus(Float a, Float b) { return a + b; }
  static Float times(Float a, Float b) { return a * b; }
  static Float most(Float a, Float b) { return a > b ? a : b; }
  static Float add_product(Float sum, Float a, Float b) { return sum + a * b; }
  static Float nearest(Float x) { return std::nearbyintf(x); }
  static Float two_to(Float whole) { return whole < -126 ? 0.0f : std::ldexp(1.0f, static_cast<int>(whole)); }
  static Float sums_of(const Float (&x)[1]) { return x[0]; }
  static float largest(Float x) { return x; }
  static float sum(Float x) { return x; }
};

void attend(const AttentionWork& work) { attend_with<OneFloat>(work); }

}  // namespace

const Isa kScalar = {"scalar", supported, 1, 1, 1 << 30, 1 << 30, 0, 0, int8, floats, group_int8, group_floats, magnitude, quantize, place, transpose, depthwise,
                   kSparseExpanded, kBase3Expanded, attend};

}  // namespace hybridkit
