// float32 activations with AVX2 and FMA, shared by the x86 instruction sets without AVX-512.
#ifndef HYBRIDKIT_FLOATS_AVX2_H
#define HYBRIDKIT_FLOATS_AVX2_H

#include <immintrin.h>

#include "isa.h"

namespace hybridkit {
namespace {

constexpr int kFloatPanel = 6;       // rows of a register tile: 6 x 16 sums
constexpr int kFloatStreamRows = 8;   // unpacking twice in registers beats storing floats once up to here
constexpr int kFloatStreamPanel = 4; // rows at a time: 4 x 16 sums
constexpr int64_t kFloatChunk = 256; // columns that are unpacked at a time, 16 KiB

// What the lowest digit of each lane stands for. vpermilps looks at two bits of an index and no others, so that a
// digit of one or two needs no mask.
template <int bits, bool nbit = false>
inline __m256 value_of(__m256i digits) {
  if constexpr (bits > 2) {
    const __m256i digit = _mm256_and_si256(digits, _mm256_set1_epi32((1 << bits) - 1));
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(digit, _mm256_set1_epi32(1 << (bits - 1))));
  }
  const __m256 two_bits = nbit ? _mm256_setr_ps(-2, -1, 0, 1, -2, -1, 0, 1) : _mm256_setr_ps(-1, 0, 1, 0, -1, 0, 1, 0);
  return _mm256_permutevar_ps(bits == 2 ? two_bits : _mm256_setr_ps(-1, 1, -1, 1, -1, 1, -1, 1), digits);
}

template <int rows>
inline void finish(const FloatWork& work, int64_t tile, int64_t row, const __m256 (&sum)[rows][2]) {
  const int64_t first = tile * kTileRows, columns = work.columns - first;
  for (int m = 0; m < rows; ++m) {
    float* y = work.y + (row + m) * work.stride + first;
    for (int h = 0; h < 2 && 8 * h < columns; ++h) {
      if (columns - 8 * h >= 8) {
        const __m256 scaled = _mm256_mul_ps(sum[m][h], _mm256_loadu_ps(work.scale + first + 8 * h));
        _mm256_storeu_ps(y + 8 * h, _mm256_add_ps(scaled, _mm256_loadu_ps(work.bias + first + 8 * h)));
      } else {
        alignas(32) float lane[8];
        _mm256_store_ps(lane, sum[m][h]);
        for (int64_t n = 0; n < columns - 8 * h; ++n) {
          y[8 * h + n] = lane[n] * work.scale[first + 8 * h + n] + work.bias[first + 8 * h + n];
        }
      }
    }
  }
}

// One block of a tile times `rows` rows, of which the first `count` columns exist. `chains` independent sums per output
// hide the latency of FMA.
template <int bits, bool nbit, int rows, int chains>
inline void stream_block(const uint8_t* codes, const float* x, int64_t stride, int count,
                         __m256 (&sum)[chains][rows][2]) {
  constexpr int columns = static_cast<int>(block_columns(bits));
  const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
  const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + 32));
#pragma GCC unroll 32
  for (int k = 0; k < columns; ++k) {
    if (k >= count) break;
    const int shift = k % 4 * 8 + bits * (k / 4);
    const __m256 a = value_of<bits, nbit>(_mm256_srli_epi32(low, shift));
    const __m256 b = value_of<bits, nbit>(_mm256_srli_epi32(high, shift));
    for (int m = 0; m < rows; ++m) {
      const __m256 factor = _mm256_broadcast_ss(x + m * stride + k);
      sum[k % chains][m][0] = _mm256_fmadd_ps(a, factor, sum[k % chains][m][0]);
      sum[k % chains][m][1] = _mm256_fmadd_ps(b, factor, sum[k % chains][m][1]);
    }
  }
}

// Few rows: a weight is unpacked where it is used.
template <int bits, int rows>
void stream_tile(const FloatWork& work, int64_t tile, int64_t row) {
  constexpr int columns = static_cast<int>(block_columns(bits)), chains = rows == 1 ? 4 : rows == 2 ? 2 : 1;
  const uint8_t* codes = work.codes + tile * work.blocks * kBlockBytes;
  const float* x = work.x + row * work.x_stride;
  __m256 sum[chains][rows][2];
  for (auto& chain : sum)
    for (auto& of_row : chain) of_row[0] = of_row[1] = _mm256_setzero_ps();
  for (int64_t left = work.K; left > 0; left -= columns, codes += kBlockBytes, x += columns) {
    _mm_prefetch(reinterpret_cast<const char*>(codes + 1024), _MM_HINT_T0);
    if (left >= columns) {
      stream_block<bits, false, rows, chains>(codes, x, work.x_stride, columns, sum);
    } else {
      stream_block<bits, false, rows, chains>(codes, x, work.x_stride, static_cast<int>(left), sum);
    }
  }
  for (int c = 1; c < chains; ++c)
    for (int m = 0; m < rows; ++m)
      for (int h = 0; h < 2; ++h) sum[0][m][h] = _mm256_add_ps(sum[0][m][h], sum[c][m][h]);
  finish<rows>(work, tile, row, sum[0]);
}

// panel(rows as a constant, tile, first row) for all tiles, in panels of rows that are nearly equal.
template <class Panel>
void in_stream_panels(const FloatWork& work, const Panel& panel) {
  const int64_t panels = (work.rows + kFloatStreamPanel - 1) / kFloatStreamPanel;
  const int64_t most = (work.rows + panels - 1) / panels;
  for (int64_t tile = 0; tile < work.tiles; ++tile) {
    for (int64_t row = 0; row < work.rows; row += most) {
      switch (work.rows - row < most ? work.rows - row : most) {
        case 1: panel(std::integral_constant<int, 1>(), tile, row); break;
        case 2: panel(std::integral_constant<int, 2>(), tile, row); break;
        case 3: panel(std::integral_constant<int, 3>(), tile, row); break;
        default: panel(std::integral_constant<int, 4>(), tile, row);
      }
    }
  }
}

template <int bits>
void stream_floats(const FloatWork& work) {
  in_stream_panels(work, [&](auto rows, int64_t tile, int64_t row) { stream_tile<bits, rows>(work, tile, row); });
}

// Columns [first, first + count) of a tile as floats [count][16]; `first` begins a block.
template <int bits>
void unpack_floats(const FloatWork& work, int64_t tile, int64_t first, int64_t count, float* out) {
  constexpr int planes = 8 / bits;
  const int64_t begin = first / (4 * planes), end = begin + (count + 4 * planes - 1) / (4 * planes);
  for (int64_t block = begin; block < end; ++block) {
    const uint8_t* codes = work.codes + (tile * work.blocks + block) * kBlockBytes;
    const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
    const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + 32));
#pragma GCC unroll 8
    for (int p = 0; p < planes; ++p) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j, out += kTileRows) {
        _mm256_store_ps(out, value_of<bits>(_mm256_srli_epi32(low, 8 * j + bits * p)));
        _mm256_store_ps(out + 8, value_of<bits>(_mm256_srli_epi32(high, 8 * j + bits * p)));
      }
    }
  }
}

// sums [rows][16] (+)= x [rows][count] times weights [count][16]
template <int rows>
void multiply_floats(const float* x, int64_t stride, const float* weights, int64_t count, bool add, float* sums,
                     int64_t sum_stride) {
  __m256 sum[rows][2];
  for (int m = 0; m < rows; ++m) {
    sum[m][0] = add ? _mm256_loadu_ps(sums + m * sum_stride) : _mm256_setzero_ps();
    sum[m][1] = add ? _mm256_loadu_ps(sums + m * sum_stride + 8) : _mm256_setzero_ps();
  }
#pragma GCC unroll 4
  for (int64_t k = 0; k < count; ++k) {
    const __m256 a = _mm256_load_ps(weights + k * kTileRows), b = _mm256_load_ps(weights + k * kTileRows + 8);
    for (int m = 0; m < rows; ++m) {
      const __m256 factor = _mm256_broadcast_ss(x + m * stride + k);
      sum[m][0] = _mm256_fmadd_ps(a, factor, sum[m][0]);
      sum[m][1] = _mm256_fmadd_ps(b, factor, sum[m][1]);
    }
  }
  for (int m = 0; m < rows; ++m) {
    _mm256_storeu_ps(sums + m * sum_stride, sum[m][0]);
    _mm256_storeu_ps(sums + m * sum_stride + 8, sum[m][1]);
  }
}

// sums [rows][16], `stride` apart, (+)= columns [first, first + count) of all rows times weights [count][16]
inline void multiply_rows(const FloatWork& work, int64_t first, int64_t count, const float* weights, float* sums,
                          int64_t stride) {
  const int64_t panels = (work.rows + kFloatPanel - 1) / kFloatPanel, panel = (work.rows + panels - 1) / panels;
  for (int64_t row = 0; row < work.rows; row += panel) {
    const float* x = work.x + row * work.x_stride + first;
    float* to = sums + row * stride;
    switch (work.rows - row < panel ? work.rows - row : panel) {
      case 1: multiply_floats<1>(x, work.x_stride, weights, count, first > 0, to, stride); break;
      case 2: multiply_floats<2>(x, work.x_stride, weights, count, first > 0, to, stride); break;
      case 3: multiply_floats<3>(x, work.x_stride, weights, count, first > 0, to, stride); break;
      case 4: multiply_floats<4>(x, work.x_stride, weights, count, first > 0, to, stride); break;
      case 5: multiply_floats<5>(x, work.x_stride, weights, count, first > 0, to, stride); break;
      default: multiply_floats<6>(x, work.x_stride, weights, count, first > 0, to, stride);
    }
  }
}

// Many rows: a chunk of a tile is unpacked once and multiplied with all rows; sums stay in y until they are whole. A
// tile that reaches beyond the output keeps them in `edge`.
template <int bits>
void tile_floats(const FloatWork& work) {
  alignas(64) float weights[kFloatChunk * kTileRows];
  alignas(64) float edge[kBlockRows * kTileRows];
  for (int64_t first = 0; first < work.K; first += kFloatChunk) {
    const int64_t count = work.K - first < kFloatChunk ? work.K - first : kFloatChunk;
    for (int64_t tile = 0; tile < work.tiles; ++tile) {
      const bool inside = (tile + 1) * kTileRows <= work.columns;
      float* sums = inside ? work.y + tile * kTileRows : edge;
      const int64_t stride = inside ? work.stride : kTileRows;
      unpack_floats<bits>(work, tile, first, count, weights);
      multiply_rows(work, first, count, weights, sums, stride);
    }
  }
  const int64_t inside = work.columns / kTileRows * kTileRows;
  for (int64_t row = 0; row < work.rows; ++row) {
    float* y = work.y + row * work.stride;
    for (int64_t n = 0; n < inside; ++n) y[n] = y[n] * work.scale[n] + work.bias[n];
    for (int64_t n = inside; n < work.columns; ++n) {
      y[n] = edge[row * kTileRows + n - inside] * work.scale[n] + work.bias[n];
    }
  }
}

inline void floats(const FloatWork& work) {
  const bool few = work.rows <= kFloatStreamRows;
  if (work.bits == 2) {
    few ? stream_floats<2>(work) : tile_floats<2>(work);
  } else {
    few ? stream_floats<1>(work) : tile_floats<1>(work);
  }
}

}  // namespace
}  // namespace hybridkit
#endif
