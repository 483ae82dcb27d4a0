// Vectors of 512 bits, a tile of 16 rows in each, as int8_vnni.h and groups_vnni.h use them.
#ifndef HYBRIDKIT_VECTOR_AVX512_H
#define HYBRIDKIT_VECTOR_AVX512_H

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC's own AVX-512 header, GCC bug 105593
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#include <string.h>

#include "avx512.h"
#include "isa.h"

namespace hybridkit {
namespace {

inline __mmask16 first_columns(int64_t n) { return static_cast<__mmask16>(n >= 16 ? 0xffff : (1 << n) - 1); }

struct Vector {
  using Int = __m512i;
  using Float = __m512;
  static constexpr int lanes = 16, bytes = 64;
  static constexpr int panel = 12, tiles = 2;  // 12 x 2 sums of 32 registers
  static constexpr int stream_sums = 16;  // of one row
  static constexpr int group_panel = 8;   // 8 x 2 sums, and as many floats in the stack

  static Int zero() { return _mm512_setzero_si512(); }
  static Float nothing() { return _mm512_setzero_ps(); }
  static Int load(const uint8_t* from) { return _mm512_loadu_si512(from); }
  static Float load(const float* from) { return _mm512_loadu_ps(from); }
  static Float widened(const uint16_t* halves) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)));
  }
  static Int all(int32_t value) { return _mm512_set1_epi32(value); }
  static Float all(float value) { return _mm512_set1_ps(value); }
  static Float times(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Int byte(char value) { return _mm512_set1_epi8(value); }
  static Int both(Int a, Int b) { return _mm512_and_si512(a, b); }
  static Int add(Int a, Int b) { return _mm512_add_epi32(a, b); }
  static Int four(const int8_t* x) {  // four activations to every lane
    int32_t four;
    memcpy(&four, x, sizeof four);
    return _mm512_set1_epi32(four);
  }
  static Int dot(Int sum, Int digits, Int fours) { return _mm512_dpbusd_epi32(sum, digits, fours); }
  static Int dot(Int sum, Int digits, const int8_t* x) {
#if defined(__GNUC__) && !defined(HYBRIDKIT_EMULATED)
    // The broadcast is part of the instruction; written as an intrinsic, GCC 12 makes three of it.
    typedef int32_t __attribute__((may_alias, aligned(1))) Four;
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(digits), "m"(*reinterpret_cast<const Four*>(x)));
    return sum;
#else
    return dot(sum, digits, four(x));
#endif
  }
  template <int bits>
  static Int shifted16(Int packed, int plane) {
    return plane == 0 ? packed : _mm512_srli_epi16(packed, static_cast<unsigned>(bits * plane));
  }
  template <int bits>
  static Int shifted_down(Int sum, int plane) {
    return _mm512_srai_epi32(sum, static_cast<unsigned>(bits * plane));
  }
  static Float add_scaled(Float total, Int sum, Float scale) {
    return _mm512_add_ps(total, _mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale));
  }
  static void write(const Int8Work& work, int64_t row, int64_t first, Float total) {
    if (work.columns <= first) return;
    const __mmask16 mask = first_columns(work.columns - first);
    const Float bias = _mm512_maskz_loadu_ps(mask, work.bias + first);
    _mm512_mask_storeu_ps(work.y + row * work.stride + first, mask, _mm512_add_ps(total, bias));
  }
  template <int bits>
  static void finish(const Int8Work& work, int64_t row, int64_t first, Int sums) {
    if (work.columns <= first) return;
    const Int digits = bits == 2 ? sums : _mm512_add_epi32(sums, sums);
    const __m512 sum = _mm512_cvtepi32_ps(_mm512_sub_epi32(digits, _mm512_set1_epi32(work.x_sum[row])));
    const __m512 x_scale = _mm512_set1_ps(work.x_scale[row]);
    const __mmask16 mask = first_columns(work.columns - first);
    const __m512 scale = _mm512_mul_ps(x_scale, _mm512_maskz_loadu_ps(mask, work.scale + first));
    const __m512 bias = _mm512_maskz_loadu_ps(mask, work.bias + first);
    _mm512_mask_storeu_ps(work.y + row * work.stride + first, mask, _mm512_add_ps(_mm512_mul_ps(sum, scale), bias));
  }
};

// A weight is unpacked where it is used, for every number of rows: shuffles run beside multiplications, and a panel of
// rows that stays in the caches is read faster than weights that were unpacked into memory.
template <class Tile>
void panels_of_floats(FloatWork work, const Tile& tile) {
  const int64_t rows = work.rows, panels = (rows + kFloatRows - 1) / kFloatRows, panel = (rows + panels - 1) / panels;
  for (int64_t row = 0; row < rows; row += panel, work.x += panel * work.x_stride, work.y += panel * work.stride) {
    work.rows = rows - row < panel ? rows - row : panel;
    for (int64_t t = 0; t < work.tiles;) t += tile(work, t);
  }
}

// Sums of a tile, scaled and with the bias, to where they belong.
template <int rows>
void write_floats(const FloatWork& work, int64_t tile, const __m512 (&sum)[rows]) {
  const int64_t first = tile * kTileRows;
  const __mmask16 mask = first_columns(work.columns - first);
  const __m512 scale = _mm512_maskz_loadu_ps(mask, work.scale + first), bias = _mm512_maskz_loadu_ps(mask, work.bias + first);
  for (int m = 0; m < rows; ++m) {
    _mm512_mask_storeu_ps(work.y + m * work.stride + first, mask, _mm512_add_ps(_mm512_mul_ps(sum[m], scale), bias));
  }
}

}  // namespace
}  // namespace hybridkit
#endif
