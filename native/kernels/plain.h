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

// Sixteen channels at a time as vectors of GCC and Clang, which keep the sums in registers over all taps.
template <class T, class Sum>
void depthwise(const DepthwiseWork<T>& work) {
  constexpr int lanes = 16;
  typedef Sum Sums __attribute__((vector_size(lanes * sizeof(Sum))));
  typedef T Inputs __attribute__((vector_size(lanes * sizeof(T)), aligned(1), may_alias));
  typedef int8_t Weights __attribute__((vector_size(lanes), aligned(1), may_alias));
  for (int64_t position = 0; position < work.positions; ++position) {
    const T* image = work.image + position * work.step;
    float* sums = work.sums + position * work.channels;
    int64_t c = 0;
    for (; c + lanes <= work.channels; c += lanes) {
      Sums sum = {};
      for (int64_t t = 0; t < work.count; ++t) {
        const auto x = *reinterpret_cast<const Inputs*>(image + work.taps[t] + c);
        const auto weight = *reinterpret_cast<const Weights*>(work.weights + t * work.channels + c);
        sum += __builtin_convertvector(x, Sums) * __builtin_convertvector(weight, Sums);
      }
      for (int lane = 0; lane < lanes; ++lane) sums[c + lane] = static_cast<float>(sum[lane]);
    }
    for (; c < work.channels; ++c) {
      Sum sum = 0;
      for (int64_t t = 0; t < work.count; ++t) {
        sum += static_cast<Sum>(image[work.taps[t] + c]) * static_cast<Sum>(work.weights[t * work.channels + c]);
      }
      sums[c] = static_cast<float>(sum);
    }
  }
}

}  // namespace
}  // namespace hybridkit
#endif
