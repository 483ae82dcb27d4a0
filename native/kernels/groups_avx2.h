// n-bit codes in groups with AVX2, shared by the x86 instruction sets without AVX-512.
#ifndef HYBRIDKIT_GROUPS_AVX2_H
#define HYBRIDKIT_GROUPS_AVX2_H

#include <immintrin.h>

#include "activations_avx2.h"
#include "floats_avx2.h"
#include "isa.h"

namespace hybridkit {
namespace {

// Half `h` of the scales of a tile's rows.
inline __m256 group_scale(const Groups& groups, int64_t tile, int64_t group, int h) {
  const int64_t first = (tile * groups.count + group) * kTileRows + 8 * h;
  if (!groups.half) return _mm256_loadu_ps(static_cast<const float*>(groups.scale) + first);
  const uint16_t* halves = static_cast<const uint16_t*>(groups.scale) + first;
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves)));
}

// Half `h` of a tile's outputs.
inline void write_half(const Work& work, int64_t row, int64_t tile, int h, __m256 total) {
  const int64_t first = tile * kTileRows + 8 * h, columns = work.columns - first;
  if (columns <= 0) return;
  const __m256i mask = first_lanes(columns);
  const __m256 bias = _mm256_maskload_ps(work.bias + first, mask);
  _mm256_maskstore_ps(work.y + row * work.stride + first, mask, _mm256_add_ps(total, bias));
}

// Columns [first, first + count) of a tile as floats [count][16], scaled; `first` begins a granule.
template <int bits>
void unpack_groups(const FloatWork& work, int64_t tile, int64_t first, int64_t count, float* out) {
  constexpr int64_t columns = block_columns(bits);
  const int64_t size = work.groups.granules * kGranule;
  __m256 scale[2] = {group_scale(work.groups, tile, first / size, 0), group_scale(work.groups, tile, first / size, 1)};
  for (int64_t k = first; k < first + count; k += columns) {
    const uint8_t* codes = work.codes + (tile * work.blocks + k / columns) * kBlockBytes;
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
    const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + 32));
    if (k % size == 0) {
      for (int h = 0; h < 2; ++h) scale[h] = group_scale(work.groups, tile, k / size, h);
    }
#pragma GCC unroll 8
    for (int p = 0; p < 8 / bits; ++p) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j, out += kTileRows) {
        const __m256i packed[2] = {low, high};
        for (int h = 0; h < 2; ++h) {
          const __m256 code = value_of<bits, true>(_mm256_srli_epi32(packed[h], 8 * j + bits * p));
          _mm256_store_ps(out + 8 * h, _mm256_mul_ps(code, scale[h]));
        }
      }
    }
  }
}

// A chunk of a tile is unpacked once and multiplied with all rows.
template <int bits>
void groups_of_floats(const FloatWork& work) {
  alignas(64) float weights[kFloatChunk * kTileRows];
  alignas(64) float sums[kBlockRows * kTileRows];
  for (int64_t tile = 0; tile < work.tiles; ++tile) {
    for (int64_t first = 0; first < work.K; first += kFloatChunk) {
      const int64_t count = work.K - first < kFloatChunk ? work.K - first : kFloatChunk;
      unpack_groups<bits>(work, tile, first, count, weights);
      multiply_rows(work, first, count, weights, sums, kTileRows);
    }
    for (int64_t row = 0; row < work.rows; ++row)
      for (int h = 0; h < 2; ++h) write_half(work, row, tile, h, _mm256_load_ps(sums + row * kTileRows + 8 * h));
  }
}

// Few rows: a weight is unpacked where it is used, and the sums of a group are scaled as a whole.
template <int bits, int rows>
void stream_groups(const FloatWork& work, int64_t tile, int64_t row) {
  constexpr int columns = static_cast<int>(block_columns(bits)), chains = rows == 1 ? 4 : rows == 2 ? 2 : 1;
  const uint8_t* codes = work.codes + tile * work.blocks * kBlockBytes;
  const float* x = work.x + row * work.x_stride;
  const int64_t size = work.groups.granules * kGranule;
  __m256 total[rows][2];
  for (auto& of_row : total) of_row[0] = of_row[1] = _mm256_setzero_ps();
  int64_t left = work.K;
  for (int64_t group = 0; group < work.groups.count; ++group) {
    __m256 sum[chains][rows][2];
    for (auto& chain : sum)
      for (auto& of_row : chain) of_row[0] = of_row[1] = _mm256_setzero_ps();
    for (int64_t k = 0; k < size && left > 0; k += columns, left -= columns, codes += kBlockBytes, x += columns) {
      _mm_prefetch(reinterpret_cast<const char*>(codes + 1024), _MM_HINT_T0);
      const int count = left < columns ? static_cast<int>(left) : columns;
      if (count == columns) {
        stream_block<bits, true, rows, chains>(codes, x, work.x_stride, columns, sum);
      } else {
        stream_block<bits, true, rows, chains>(codes, x, work.x_stride, count, sum);
      }
    }
    for (int h = 0; h < 2; ++h) {
      const __m256 scale = group_scale(work.groups, tile, group, h);
      for (int m = 0; m < rows; ++m) {
        for (int c = 1; c < chains; ++c) sum[0][m][h] = _mm256_add_ps(sum[0][m][h], sum[c][m][h]);
        total[m][h] = _mm256_fmadd_ps(sum[0][m][h], scale, total[m][h]);
      }
    }
  }
  for (int m = 0; m < rows; ++m)
    for (int h = 0; h < 2; ++h) write_half(work, row + m, tile, h, total[m][h]);
}

inline void group_floats(const FloatWork& work) {
  with_bits(work, [&](auto bits) {
    if (work.rows > kFloatStreamRows) return groups_of_floats<bits>(work);
    in_stream_panels(work, [&](auto rows, int64_t tile, int64_t row) { stream_groups<bits, rows>(work, tile, row); });
  });
}

}  // namespace
}  // namespace hybridkit
#endif
