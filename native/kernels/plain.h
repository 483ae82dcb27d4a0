// Loops that every instruction set has in common: each includes them, and the compiler vectorises them with its flags.
#ifndef HYBRIDKIT_PLAIN_H
#define HYBRIDKIT_PLAIN_H

#include <string.h>

#include "isa.h"
#if defined(__AVX2__)
#include "transpose_avx2.h"
#endif

namespace hybridkit {
namespace {

inline int32_t place(const int8_t* patch, int64_t n, int8_t* codes, int64_t stride) {
  int32_t sum = 0;
  for (int64_t k = 0; k < n; k += kGranule, codes += stride) {
    int16_t part = 0;  // 16 codes of at most 127
    for (int i = 0; i < kGranule; ++i) part = static_cast<int16_t>(part + patch[k + i]);
    memcpy(codes, patch + k, kGranule);
    sum += part;
  }
  return sum;
}

inline void transpose(const float* from, int64_t from_stride, int64_t rows, int64_t columns, float* to,
                      int64_t to_stride) {
  constexpr int64_t edge = 8;
  for (int64_t column = 0; column < columns; column += edge) {
    const int64_t width = columns - column < edge ? columns - column : edge;
    for (int64_t row = 0; row < rows; row += edge) {
      const int64_t height = rows - row < edge ? rows - row : edge;
      const float* source = from + row * from_stride + column;
      float* target = to + column * to_stride + row;
#if defined(__AVX2__)
      if (width == edge && height == edge) {
        transpose_8x8(source, from_stride, target, to_stride);
        continue;
      }
#endif
      for (int64_t c = 0; c < width; ++c)
        for (int64_t r = 0; r < height; ++r) target[c * to_stride + r] = source[r * from_stride + c];
    }
  }
}

// Channels in blocks as vectors of GCC and Clang, whose sums stay in registers over all taps.
inline void depthwise(const DepthwiseWork& work) {
  constexpr int lanes = 8, vectors = 2, block = lanes * vectors;
  typedef float Sums __attribute__((vector_size(lanes * sizeof(float))));
  typedef float Lanes __attribute__((vector_size(lanes * sizeof(float)), aligned(4), may_alias));
  for (int64_t position = 0; position < work.positions; ++position) {
    const float* image = work.image + position * work.step;
    float* sums = work.sums + position * work.channels;
    int64_t c = 0;
    for (; c + block <= work.channels; c += block) {
      Sums sum[vectors] = {};
      for (int64_t t = 0; t < work.count; ++t) {
        const float* x = image + work.taps[t] + c;
        const float* weight = work.weights + t * work.channels + c;
        for (int v = 0; v < vectors; ++v) {
          sum[v] += *reinterpret_cast<const Lanes*>(x + v * lanes) * *reinterpret_cast<const Lanes*>(weight + v * lanes);
        }
      }
      for (int v = 0; v < vectors; ++v) *reinterpret_cast<Lanes*>(sums + c + v * lanes) = sum[v];
    }
    for (; c < work.channels; ++c) {
      float sum = 0;
      for (int64_t t = 0; t < work.count; ++t) sum += image[work.taps[t] + c] * work.weights[t * work.channels + c];
      sums[c] = sum;
    }
  }
}

// Four digits, a byte each, by the field of five bits that holds them.
struct SparseDigits {
  uint32_t of[32] = {};
  constexpr SparseDigits() {
    for (int field = 0; field < 32; ++field) {
      for (int place = 0, sign = 0; place < 4; ++place) {
        const int digit = place == field >> 3 ? 1 : (field >> sign++ & 1) * 2;
        of[field] |= static_cast<uint32_t>(digit) << (8 * place);
      }
    }
  }
};
constexpr SparseDigits kSparseDigits;

inline void expand_sparse(const uint8_t* units, int64_t count, uint8_t* blocks) {
  for (; count > 0; --count, units += kSparse.bytes, blocks += kSparse.blocks * kBlockBytes) {
    for (int row = 0; row < kTileRows; ++row) {
      uint64_t fields = units[kBlockBytes + row];
      for (int byte = 3; byte >= 0; --byte) fields = fields << 8 | units[4 * row + byte];
      for (int half = 0; half < 2; ++half) {
        uint32_t digits = 0;
        for (int p = 0; p < 4; ++p, fields >>= 5) digits |= kSparseDigits.of[fields & 31] << (2 * p);
        memcpy(blocks + half * kBlockBytes + 4 * row, &digits, sizeof digits);
      }
    }
  }
}

// Three times a byte of base 3 is a digit and, below it, the byte of the digits that follow.
inline void expand_base3(const uint8_t* units, int64_t count, uint8_t* blocks) {
  constexpr int digits_of_byte = 5, planes = 4;
  for (; count > 0; --count, units += kBase3.bytes, blocks += kBase3.blocks * kBlockBytes) {
    memset(blocks, 0, kBase3.blocks * kBlockBytes);
    for (int i = 0; i < kBase3.bytes; ++i) {
      uint32_t byte = units[i];
      for (int p = 0; p < digits_of_byte; ++p) {
        byte *= 3;
        const int fours = i / kBlockBytes * digits_of_byte + p;
        blocks[fours / planes * kBlockBytes + i % kBlockBytes] |= static_cast<uint8_t>(byte >> 8 << (2 * (fours % planes)));
        byte &= 0xff;
      }
    }
  }
}

// Where units have no products of their own.
[[maybe_unused]] constexpr DenseKernels kSparseExpanded = {nullptr, nullptr, expand_sparse};
[[maybe_unused]] constexpr DenseKernels kBase3Expanded = {nullptr, nullptr, expand_base3};

}  // namespace
}  // namespace hybridkit
#endif
