// attention.h in vectors of 256 bits, and how such vectors are reduced.
#ifndef HYBRIDKIT_ATTENTION_AVX2_H
#define HYBRIDKIT_ATTENTION_AVX2_H

#include <immintrin.h>

#include "attention.h"

namespace hybridkit {
namespace {

inline float largest_of_8(__m256 x) {
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_shuffle_ps(four, four, 1)));
}

inline float sum_of_8(__m256 x) {
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_shuffle_ps(four, four, 1)));
}

struct Floats8 {
  using Float = __m256;
  static constexpr int lanes = 8, rows = 6, vectors = 2, unturned = 8;  // 6 x 2 sums of 16 registers

  static Float load(const float* from) { return _mm256_loadu_ps(from); }
  static void store(float* to, Float x) { _mm256_storeu_ps(to, x); }
  static Float all(float value) { return _mm256_set1_ps(value); }
  static Float plus(Float a, Float b) { return _mm256_add_ps(a, b); }
  static Float times(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Float most(Float a, Float b) { return _mm256_max_ps(a, b); }
  static Float add_product(Float sum, Float a, Float b) { return _mm256_fmadd_ps(a, b, sum); }
  static Float nearest(Float x) { return _mm256_cvtepi32_ps(_mm256_cvtps_epi32(x)); }
  static Float two_to(Float whole) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
  }
  // The sum of each of 8 vectors, in its lane.
  static Float sums_of(const Float (&x)[8]) {
    Float fours[2];
    for (int i = 0; i < 2; ++i) {
      const Float a = _mm256_hadd_ps(x[4 * i], x[4 * i + 1]), b = _mm256_hadd_ps(x[4 * i + 2], x[4 * i + 3]);
      fours[i] = _mm256_hadd_ps(a, b);
    }
    return _mm256_add_ps(_mm256_permute2f128_ps(fours[0], fours[1], 0x20), _mm256_permute2f128_ps(fours[0], fours[1], 0x31));
  }
  static float largest(Float x) { return largest_of_8(x); }
  static float sum(Float x) { return sum_of_8(x); }
};

}  // namespace
}  // namespace hybridkit
#endif
