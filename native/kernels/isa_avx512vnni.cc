// AVX-512 VNNI: vectors of 512 bits, a tile of 16 rows in each.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC's own AVX-512 header, GCC bug 105593
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>
#include <string.h>

#include "activations_avx2.h"
#include "int8_vnni.h"
#include "isa.h"
#include "plain.h"
#include "processor.h"

namespace hybridkit {
namespace {

__mmask16 first_columns(int64_t n) { return static_cast<__mmask16>(n >= 16 ? 0xffff : (1 << n) - 1); }

struct Vector {
  using Int = __m512i;
  static constexpr int lanes = 16, bytes = 64;
  static constexpr int panel = 12, tiles = 2;  // 12 x 2 sums of 32 registers
  static constexpr int stream_rows = 1;

  static Int zero() { return _mm512_setzero_si512(); }
  static Int load(const uint8_t* from) { return _mm512_loadu_si512(from); }
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

// What the lowest digit of each lane stands for: vpermps looks at four bits of an index, two or one of which are the
// digit's; the table repeats itself over the others.
template <int bits>
__m512 value_of(__m512i digits) {
  const __m512 table = bits == 2 ? _mm512_setr_ps(-1, 0, 1, 0, -1, 0, 1, 0, -1, 0, 1, 0, -1, 0, 1, 0)
                                 : _mm512_setr_ps(-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1);
  return _mm512_permutexvar_ps(digits, table);
}

constexpr int kFloatStreamRows = 8;  // unpacking in registers beats storing floats once up to here
constexpr int kFloatPanel = 12;
constexpr int64_t kFloatChunk = 128;  // columns that are unpacked at a time: 8 KiB per tile

// One block of a tile times `rows` rows, of which the first `count` columns exist. `chains` independent sums per output
// hide the latency of FMA.
template <int bits, int rows, int chains>
inline void stream_block(const uint8_t* codes, const float* x, int64_t stride, int count, __m512 (&sum)[chains][rows]) {
  constexpr int columns = static_cast<int>(block_columns(bits));
  const __m512i packed = _mm512_loadu_si512(codes);
#pragma GCC unroll 32
  for (int k = 0; k < columns; ++k) {
    if (k >= count) break;
    const __m512 weight = value_of<bits>(_mm512_srli_epi32(packed, static_cast<unsigned>(k % 4 * 8 + bits * (k / 4))));
    for (int m = 0; m < rows; ++m) {
      sum[k % chains][m] = _mm512_fmadd_ps(weight, _mm512_set1_ps(x[m * stride + k]), sum[k % chains][m]);
    }
  }
}

// Few rows: a weight is unpacked where it is used.
template <int bits, int rows>
void stream_tile_floats(const FloatWork& work, int64_t tile) {
  constexpr int columns = static_cast<int>(block_columns(bits)), chains = rows == 1 ? 8 : rows == 2 ? 4 : rows <= 4 ? 2 : 1;
  const uint8_t* codes = work.codes + tile * work.blocks * kBlockBytes;
  const float* x = work.x;
  __m512 sum[chains][rows];
  for (auto& chain : sum)
    for (auto& of_row : chain) of_row = _mm512_setzero_ps();
  for (int64_t left = work.K; left > 0; left -= columns, codes += kBlockBytes, x += columns) {
    _mm_prefetch(reinterpret_cast<const char*>(codes + 1536), _MM_HINT_T0);
    if (left >= columns) {
      stream_block<bits, rows, chains>(codes, x, work.x_stride, columns, sum);
    } else {
      stream_block<bits, rows, chains>(codes, x, work.x_stride, static_cast<int>(left), sum);
    }
  }
  const int64_t first = tile * kTileRows;
  const __mmask16 mask = first_columns(work.columns - first);
  for (int m = 0; m < rows; ++m) {
    for (int c = 1; c < chains; ++c) sum[0][m] = _mm512_add_ps(sum[0][m], sum[c][m]);
    const __m512 scaled = _mm512_mul_ps(sum[0][m], _mm512_maskz_loadu_ps(mask, work.scale + first));
    _mm512_mask_storeu_ps(work.y + m * work.stride + first, mask,
                          _mm512_add_ps(scaled, _mm512_maskz_loadu_ps(mask, work.bias + first)));
  }
}

template <int bits>
void stream_floats(const FloatWork& work) {
  for (int64_t tile = 0; tile < work.tiles; ++tile) {
    switch (work.rows) {
      case 1: stream_tile_floats<bits, 1>(work, tile); break;
      case 2: stream_tile_floats<bits, 2>(work, tile); break;
      case 3: stream_tile_floats<bits, 3>(work, tile); break;
      case 4: stream_tile_floats<bits, 4>(work, tile); break;
      case 5: stream_tile_floats<bits, 5>(work, tile); break;
      case 6: stream_tile_floats<bits, 6>(work, tile); break;
      case 7: stream_tile_floats<bits, 7>(work, tile); break;
      default: stream_tile_floats<bits, 8>(work, tile);
    }
  }
}

// Columns [first, first + count) of a tile as floats [count][16]; `first` begins a block.
template <int bits>
void unpack_floats(const FloatWork& work, int64_t tile, int64_t first, int64_t count, float* out) {
  constexpr int planes = 8 / bits;
  const int64_t begin = first / (4 * planes), end = begin + (count + 4 * planes - 1) / (4 * planes);
  for (int64_t block = begin; block < end; ++block) {
    const __m512i packed = _mm512_loadu_si512(work.codes + (tile * work.blocks + block) * kBlockBytes);
#pragma GCC unroll 8
    for (int p = 0; p < planes; ++p) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j, out += kTileRows) {
        _mm512_store_ps(out, value_of<bits>(_mm512_srli_epi32(packed, static_cast<unsigned>(8 * j + bits * p))));
      }
    }
  }
}

// sums [rows][16 tiles] (+)= x [rows][count] times weights [tiles][kFloatChunk][16]; `mask` of the last tile's columns
template <int rows, int tiles>
void multiply_floats(const float* x, int64_t stride, const float* weights, int64_t count, bool add, float* sums,
                     int64_t sum_stride, __mmask16 mask) {
  __m512 sum[rows][tiles];
  for (int m = 0; m < rows; ++m)
    for (int t = 0; t < tiles; ++t)
      sum[m][t] = add ? _mm512_maskz_loadu_ps(t + 1 == tiles ? mask : 0xffff, sums + m * sum_stride + t * kTileRows)
                      : _mm512_setzero_ps();
  for (int64_t k = 0; k < count; ++k) {
    __m512 weight[tiles];
    for (int t = 0; t < tiles; ++t) weight[t] = _mm512_load_ps(weights + (t * kFloatChunk + k) * kTileRows);
#pragma GCC unroll 12
    for (int m = 0; m < rows; ++m) {
      const __m512 factor = _mm512_set1_ps(x[m * stride + k]);
      for (int t = 0; t < tiles; ++t) sum[m][t] = _mm512_fmadd_ps(weight[t], factor, sum[m][t]);
    }
  }
  for (int m = 0; m < rows; ++m)
    for (int t = 0; t < tiles; ++t)
      _mm512_mask_storeu_ps(sums + m * sum_stride + t * kTileRows, t + 1 == tiles ? mask : 0xffff, sum[m][t]);
}

template <int tiles>
void multiply_rows(const FloatWork& work, int64_t tile, int64_t first, int64_t count, const float* weights) {
  const __mmask16 mask = first_columns(work.columns - (tile + tiles - 1) * kTileRows);
  const int64_t panels = (work.rows + kFloatPanel - 1) / kFloatPanel, panel = (work.rows + panels - 1) / panels;
  for (int64_t row = 0; row < work.rows; row += panel) {
    const float* x = work.x + row * work.x_stride + first;
    float* to = work.y + row * work.stride + tile * kTileRows;
    const auto run = [&](auto multiply) { multiply(x, work.x_stride, weights, count, first > 0, to, work.stride, mask); };
    switch (work.rows - row < panel ? work.rows - row : panel) {
      case 1: run(multiply_floats<1, tiles>); break;
      case 2: run(multiply_floats<2, tiles>); break;
      case 3: run(multiply_floats<3, tiles>); break;
      case 4: run(multiply_floats<4, tiles>); break;
      case 5: run(multiply_floats<5, tiles>); break;
      case 6: run(multiply_floats<6, tiles>); break;
      case 7: run(multiply_floats<7, tiles>); break;
      case 8: run(multiply_floats<8, tiles>); break;
      case 9: run(multiply_floats<9, tiles>); break;
      case 10: run(multiply_floats<10, tiles>); break;
      case 11: run(multiply_floats<11, tiles>); break;
      default: run(multiply_floats<12, tiles>);
    }
  }
}

// Many rows: a chunk of two tiles is unpacked once and multiplied with all rows; sums stay in y until they are whole.
template <int bits>
void tile_floats(const FloatWork& work) {
  alignas(64) float weights[2 * kFloatChunk * kTileRows];
  for (int64_t first = 0; first < work.K; first += kFloatChunk) {
    const int64_t count = work.K - first < kFloatChunk ? work.K - first : kFloatChunk;
    for (int64_t tile = 0; tile < work.tiles; tile += 2) {
      unpack_floats<bits>(work, tile, first, count, weights);
      if (tile + 1 == work.tiles) {
        multiply_rows<1>(work, tile, first, count, weights);
      } else {
        unpack_floats<bits>(work, tile + 1, first, count, weights + kFloatChunk * kTileRows);
        multiply_rows<2>(work, tile, first, count, weights);
      }
    }
  }
  for (int64_t row = 0; row < work.rows; ++row) {
    float* y = work.y + row * work.stride;
    for (int64_t n = 0; n < work.columns; ++n) y[n] = y[n] * work.scale[n] + work.bias[n];
  }
}

void floats(const FloatWork& work) {
  const bool few = work.rows <= kFloatStreamRows;
  if (work.bits == 2) {
    few ? stream_floats<2>(work) : tile_floats<2>(work);
  } else {
    few ? stream_floats<1>(work) : tile_floats<1>(work);
  }
}

}  // namespace

const Isa kAvx512Vnni = {"avx512vnni", has_avx512vnni, Vector::panel, Vector::panel, kFloatStreamRows,
                         int8_products<Vector>, floats, magnitude, quantize, place, transpose, depthwise};

}  // namespace hybridkit
