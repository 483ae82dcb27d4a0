// AVX-VNNI: vpdpbusd on vectors of 256 bits.
#include <immintrin.h>

#include "activations_avx2.h"
#include "attention_avx2.h"
#include "floats_avx2.h"
#include "groups_avx2.h"
#include "groups_vnni.h"
#include "int8_vnni.h"
#include "isa.h"
#include "plain.h"
#include "processor.h"

namespace hybridkit {
namespace {

struct Vector {
  using Int = __m256i;
  using Float = __m256;
  static constexpr int lanes = 8, bytes = 32;
  static constexpr int panel = 6, tiles = 1;  // 6 x 2 sums of 16 registers
  static constexpr int stream_sums = 8;  // of one row
  static constexpr int group_panel = 4;  // 4 x 2 sums, and as many floats in the stack

  static Int zero() { return _mm256_setzero_si256(); }
  static Float nothing() { return _mm256_setzero_ps(); }
  static Float load(const float* from) { return _mm256_loadu_ps(from); }
  static Float widened(const uint16_t* halves) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves)));
  }
  static Int all(int32_t value) { return _mm256_set1_epi32(value); }
  static Float all(float value) { return _mm256_set1_ps(value); }
  static Float times(Float a, Float b) { return _mm256_mul_ps(a, b); }
  static Int load(const uint8_t* from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)); }
  static Int byte(char value) { return _mm256_set1_epi8(value); }
  static Int both(Int a, Int b) { return _mm256_and_si256(a, b); }
  static Int add(Int a, Int b) { return _mm256_add_epi32(a, b); }
  static Int four(const int8_t* x) { return broadcast4(x); }  // four activations to every lane
  static Int dot(Int sum, Int digits, Int fours) { return _mm256_dpbusd_avx_epi32(sum, digits, fours); }
  static Int dot(Int sum, Int digits, const int8_t* x) { return dot(sum, digits, four(x)); }
  template <int bits>
  static Int shifted16(Int packed, int plane) {
    return plane == 0 ? packed : _mm256_srli_epi16(packed, bits * plane);
  }
  template <int bits>
  static Int shifted_down(Int sum, int plane) {
    return _mm256_srai_epi32(sum, bits * plane);
  }
  static Float add_scaled(Float total, Int sum, Float scale) {
    return _mm256_add_ps(total, _mm256_mul_ps(_mm256_cvtepi32_ps(sum), scale));
  }
  static void write(const Int8Work& work, int64_t row, int64_t first, Float total) {
    const int64_t tile = first / kTileRows;
    write_half(work, row, tile, first % kTileRows == 0 ? 0 : 1, total);
  }
  template <int bits>
  static void finish(const Int8Work& work, int64_t row, int64_t first, Int sums) {
    const int64_t columns = work.columns - first;
    if (columns <= 0) return;
    const Int digits = bits == 2 ? sums : _mm256_add_epi32(sums, sums);
    const __m256 sum = _mm256_cvtepi32_ps(_mm256_sub_epi32(digits, _mm256_set1_epi32(work.x_sum[row])));
    const __m256 x_scale = _mm256_set1_ps(work.x_scale[row]);
    const __m256i mask = first_lanes(columns);
    const __m256 scale = _mm256_mul_ps(x_scale, _mm256_maskload_ps(work.scale + first, mask));
    const __m256 bias = _mm256_maskload_ps(work.bias + first, mask);
    _mm256_maskstore_ps(work.y + row * work.stride + first, mask, _mm256_add_ps(_mm256_mul_ps(sum, scale), bias));
  }
};

void attend(const AttentionWork& work) { attend_with<Floats8>(work); }

}  // namespace

const Isa kAvxVnni = {"avxvnni", has_avxvnni, Vector::panel, Vector::group_panel, Vector::panel, kFloatStreamRows, 0, 0,
                      int8_products<Vector>, floats, group_int8_products<Vector>, group_floats, magnitude, quantize, place, transpose, depthwise,
                   kSparseExpanded, kBase3Expanded, attend};

}  // namespace hybridkit
