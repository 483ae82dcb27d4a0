// Quantising activations with AVX2: shared by the x86 instruction sets. Everything here is static: each including
// file is compiled with flags of its own, and a copy shared by the linker could be the one with the wrong flags.
#ifndef HYBRIDKIT_ACTIVATIONS_AVX2_H
#define HYBRIDKIT_ACTIVATIONS_AVX2_H

#include <immintrin.h>
#include <string.h>

#include "isa.h"

namespace hybridkit {
namespace {

// All ones in the first n (0 ... 8) of eight lanes.
inline __m256i first_lanes(int64_t n) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n < 0 ? 0 : n < 8 ? n : 8)), lane);
}

inline uint32_t magnitude(const float* x, int64_t n) {
  const __m256i absolute = _mm256_set1_epi32(0x7fffffff);
  __m256i largest[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(),
                        _mm256_setzero_si256()};
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    for (int j = 0; j < 4; ++j) {
      const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i + 8 * j));
      largest[j] = _mm256_max_epi32(largest[j], _mm256_and_si256(bits, absolute));
    }
  }
  for (; i < n; i += 8) {
    const __m256i bits = _mm256_maskload_epi32(reinterpret_cast<const int*>(x + i), first_lanes(n - i));
    largest[0] = _mm256_max_epi32(largest[0], _mm256_and_si256(bits, absolute));
  }
  const __m256i all = _mm256_max_epi32(_mm256_max_epi32(largest[0], largest[1]),
                                       _mm256_max_epi32(largest[2], largest[3]));
  __m128i half = _mm_max_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
  half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0xb1));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(half));
}

inline __m256i rounded(__m256 x, __m256 s) {
  return _mm256_cvtps_epi32(_mm256_div_ps(x, s));  // rounds halves to even, as the processor does by default
}

inline int32_t quantize(const float* x, int64_t n, float s, int8_t* codes, int64_t stride) {
  const __m256 scale = _mm256_set1_ps(s);
  __m256i sum = _mm256_setzero_si256();
  for (int64_t i = 0; i < n; i += kGranule, codes += stride) {
    __m256 low, high;
    if (i + kGranule <= n) {
      low = _mm256_loadu_ps(x + i);
      high = _mm256_loadu_ps(x + i + 8);
    } else {
      low = _mm256_maskload_ps(x + i, first_lanes(n - i));
      high = _mm256_maskload_ps(x + i + 8, first_lanes(n - i - 8));
    }
    const __m256i a = rounded(low, scale), b = rounded(high, scale);
    sum = _mm256_add_epi32(sum, _mm256_add_epi32(a, b));
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(codes), bytes);
  }
  __m128i half = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
  half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4e));
  half = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0xb1));
  return _mm_cvtsi128_si32(half);
}

inline __m256i broadcast4(const int8_t* x) {  // four activations to every lane
  int32_t four;
  memcpy(&four, x, sizeof four);
  return _mm256_set1_epi32(four);
}

}  // namespace
}  // namespace hybridkit
#endif
