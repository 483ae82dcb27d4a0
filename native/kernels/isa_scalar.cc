// The reference: the arithmetic of the header, as obvious as it can be. Every other instruction set is tested
// against it.
#include <cmath>
#include <cstring>

#include "isa.h"
#include "plain.h"

namespace hybridkit {
namespace {

bool supported() { return true; }

int code_at(const Work& work, int64_t row, int64_t k) {
  const int planes = 8 / work.bits;
  const int64_t block = k / (4 * planes), plane = k / 4 % planes, j = k % 4;
  const uint8_t byte =
      work.codes[((row / kTileRows) * work.blocks + block) * kBlockBytes + row % kTileRows * 4 + j];
  const int digit = (byte >> (plane * work.bits)) & ((1 << work.bits) - 1);
  return work.bits == 2 ? digit - 1 : 2 * digit - 1;
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

}  // namespace

const Isa kScalar = {"scalar", supported, 1, 1 << 30, 1 << 30, int8, floats, magnitude, quantize, place, transpose, depthwise};

}  // namespace hybridkit
