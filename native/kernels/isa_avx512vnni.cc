// AVX-512 VNNI: vectors of 512 bits, a tile of 16 rows in each.
#include "avx512.h"

#include "activations_avx2.h"
#include "attention_avx2.h"
#include "base3_avx512.h"
#include "groups_vnni.h"
#include "int8_vnni.h"
#include "isa.h"
#include "plain.h"
#include "processor.h"
#include "sparse_avx512.h"
#include "vector_avx512.h"

namespace hybridkit {
namespace {

// Column k of a block. vpermps looks at four bits of an index, so that two ternary or four 1-bit digits share a shift,
// each with a table of its own.
template <int bits>
inline __m512 column_of(__m512i packed, int k) {
  const int plane = k / 4, number = plane % (4 / bits);
  const __m512i four_bits = _mm512_srli_epi32(packed, static_cast<unsigned>(k % 4 * 8 + plane * bits / 4 * 4));
  if (bits == 2) {
    const __m512 low = _mm512_setr_ps(-1, 0, 1, 0, -1, 0, 1, 0, -1, 0, 1, 0, -1, 0, 1, 0);
    const __m512 high = _mm512_setr_ps(-1, -1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0);
    return _mm512_permutexvar_ps(four_bits, number == 0 ? low : high);
  }
  const __m512 first = _mm512_setr_ps(-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1);
  const __m512 second = _mm512_setr_ps(-1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1);
  const __m512 third = _mm512_setr_ps(-1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1);
  const __m512 fourth = _mm512_setr_ps(-1, -1, -1, -1, -1, -1, -1, -1, 1, 1, 1, 1, 1, 1, 1, 1);
  return _mm512_permutexvar_ps(four_bits, number == 0 ? first : number == 1 ? second : number == 2 ? third : fourth);
}


// One block of a tile times `rows` rows, of which the first `count` columns exist. `chains` independent sums per output
// hide the latency of FMA.
template <int bits, int rows, int chains>
inline void block_of_floats(const uint8_t* codes, const float* x, int64_t stride, int count, __m512 (&sum)[chains][rows]) {
  constexpr int columns = static_cast<int>(block_columns(bits));
  const __m512i packed = _mm512_loadu_si512(codes);
#pragma GCC unroll 32
  for (int k = 0; k < columns; ++k) {
    if (k >= count) break;
    const __m512 weight = column_of<bits>(packed, k);
    for (int m = 0; m < rows; ++m) {
      sum[k % chains][m] = _mm512_fmadd_ps(weight, _mm512_set1_ps(x[m * stride + k]), sum[k % chains][m]);
    }
  }
}

template <int bits, int rows>
void tile_of_floats(const FloatWork& work, int64_t tile) {
  constexpr int columns = static_cast<int>(block_columns(bits)), chains = rows == 1 ? 8 : rows == 2 ? 4 : rows <= 4 ? 2 : 1;
  const uint8_t* codes = work.codes + tile * work.blocks * kBlockBytes;
  const float* x = work.x;
  __m512 sum[chains][rows];
  for (auto& chain : sum)
    for (auto& of_row : chain) of_row = _mm512_setzero_ps();
  for (int64_t left = work.K; left > 0; left -= columns, codes += kBlockBytes, x += columns) {
    _mm_prefetch(reinterpret_cast<const char*>(codes + 1536), _MM_HINT_T0);
    if (left >= columns) {
      block_of_floats<bits, rows, chains>(codes, x, work.x_stride, columns, sum);
    } else {
      block_of_floats<bits, rows, chains>(codes, x, work.x_stride, static_cast<int>(left), sum);
    }
  }
  for (int c = 1; c < chains; ++c)
    for (int m = 0; m < rows; ++m) sum[0][m] = _mm512_add_ps(sum[0][m], sum[c][m]);
  write_floats<rows>(work, tile, sum[0]);
}

// Column k of a step of n-bit codes, whose first block is at `codes`.
template <int bits>
inline __m512 nbit_column(const uint8_t* codes, int k) {
  constexpr int columns = static_cast<int>(block_columns(bits));
  const __m512i packed = _mm512_loadu_si512(codes + k / columns * kBlockBytes);
  const int j = k % 4, plane = k % columns / 4;
  if constexpr (bits == 1) {
    return column_of<1>(packed, k);
  } else if constexpr (bits == 8) {
    const __m512i high = _mm512_slli_epi32(packed, static_cast<unsigned>(24 - 8 * j));
    const __m512i digit = _mm512_srli_epi32(high, 24);
    return _mm512_sub_ps(_mm512_cvtepi32_ps(digit), _mm512_set1_ps(128));
  } else if constexpr (bits == 4) {
    const __m512 table = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    return _mm512_permutexvar_ps(_mm512_srli_epi32(packed, static_cast<unsigned>(8 * j + 4 * plane)), table);
  } else {
    const __m512i four_bits = _mm512_srli_epi32(packed, static_cast<unsigned>(8 * j + plane / 2 * 4));
    const __m512 low = _mm512_setr_ps(-2, -1, 0, 1, -2, -1, 0, 1, -2, -1, 0, 1, -2, -1, 0, 1);
    const __m512 high = _mm512_setr_ps(-2, -2, -2, -2, -1, -1, -1, -1, 0, 0, 0, 0, 1, 1, 1, 1);
    return _mm512_permutexvar_ps(four_bits, plane % 2 == 0 ? low : high);
  }
}

// One step of `tiles` tiles, `next_tile` bytes apart, times `rows` rows, of which the first `count` columns exist.
template <int bits, int rows, int tiles, int chains>
inline void step_of_floats(const uint8_t* codes, int64_t next_tile, const float* x, int64_t stride, int count,
                              __m512 (&sum)[chains][rows][tiles]) {
  constexpr int step = static_cast<int>(padding_of(bits));
#pragma GCC unroll 32
  for (int k = 0; k < step; ++k) {
    if (k >= count) break;
    __m512 weight[tiles];
    for (int t = 0; t < tiles; ++t) weight[t] = nbit_column<bits>(codes + t * next_tile, k);
    for (int m = 0; m < rows; ++m) {
      const __m512 factor = _mm512_set1_ps(x[m * stride + k]);
      for (int t = 0; t < tiles; ++t) sum[k % chains][m][t] = _mm512_fmadd_ps(weight[t], factor, sum[k % chains][m][t]);
    }
  }
}

// Sums of a group begin at nothing and end in `total`.
template <int bits, int rows, int tiles>
void tiles_of_groups(const FloatWork& work, int64_t tile) {
  constexpr int sums = rows * tiles, chains = sums == 1 ? 8 : sums == 2 ? 4 : sums <= 4 ? 2 : 1;
  constexpr int step = static_cast<int>(padding_of(bits));
  const int64_t next_tile = work.blocks * kBlockBytes;
  const uint8_t* codes = work.codes + tile * next_tile;
  const float* x = work.x;
  __m512 total[rows][tiles];
  for (auto& of_row : total)
    for (auto& part : of_row) part = _mm512_setzero_ps();
  int64_t left = work.K;
  for (int64_t group = 0; group < work.groups.count; ++group) {
    __m512 sum[chains][rows][tiles];
    for (auto& chain : sum)
      for (auto& of_row : chain)
        for (auto& part : of_row) part = _mm512_setzero_ps();
    for (int64_t k = 0; k < work.groups.granules * kGranule && left > 0; k += step, left -= step, x += step) {
      for (int t = 0; t < tiles; ++t) _mm_prefetch(reinterpret_cast<const char*>(codes + t * next_tile + 1536), _MM_HINT_T0);
      if (left >= step) {
        step_of_floats<bits, rows, tiles, chains>(codes, next_tile, x, work.x_stride, step, sum);
      } else {
        step_of_floats<bits, rows, tiles, chains>(codes, next_tile, x, work.x_stride, static_cast<int>(left), sum);
      }
      codes += step_bytes(bits);
    }
    for (int t = 0; t < tiles; ++t) {
      const __m512 scale = scales_of<Vector>(work.groups, tile + t, group);
      for (int m = 0; m < rows; ++m) {
        for (int c = 1; c < chains; ++c) sum[0][m][t] = _mm512_add_ps(sum[0][m][t], sum[c][m][t]);
        total[m][t] = _mm512_fmadd_ps(sum[0][m][t], scale, total[m][t]);
      }
    }
  }
  for (int t = 0; t < tiles; ++t) {
    const int64_t first = (tile + t) * kTileRows;
    const __mmask16 mask = first_columns(work.columns - first);
    const __m512 bias = _mm512_maskz_loadu_ps(mask, work.bias + first);
    for (int m = 0; m < rows; ++m) {
      _mm512_mask_storeu_ps(work.y + m * work.stride + first, mask, _mm512_add_ps(total[m][t], bias));
    }
  }
}

template <int bits>
int64_t one_tile(const FloatWork& work, int64_t tile) {
  switch (work.rows) {
    case 1: tile_of_floats<bits, 1>(work, tile); break;
    case 2: tile_of_floats<bits, 2>(work, tile); break;
    case 3: tile_of_floats<bits, 3>(work, tile); break;
    case 4: tile_of_floats<bits, 4>(work, tile); break;
    case 5: tile_of_floats<bits, 5>(work, tile); break;
    case 6: tile_of_floats<bits, 6>(work, tile); break;
    case 7: tile_of_floats<bits, 7>(work, tile); break;
    default: tile_of_floats<bits, 8>(work, tile);
  }
  return 1;
}

// From four rows on two tiles share their activations; how many tiles that were.
template <int bits, int rows>
int64_t tiles_of_rows(const FloatWork& work, int64_t tile) {
  constexpr int most = rows < 4 ? 1 : 2;
  if (tile + most <= work.tiles) {
    tiles_of_groups<bits, rows, most>(work, tile);
    return most;
  }
  tiles_of_groups<bits, rows, 1>(work, tile);
  return 1;
}

template <int bits>
int64_t tiles_with_groups(const FloatWork& work, int64_t tile) {
  switch (work.rows) {
    case 1: return tiles_of_rows<bits, 1>(work, tile);
    case 2: return tiles_of_rows<bits, 2>(work, tile);
    case 3: return tiles_of_rows<bits, 3>(work, tile);
    case 4: return tiles_of_rows<bits, 4>(work, tile);
    case 5: return tiles_of_rows<bits, 5>(work, tile);
    case 6: return tiles_of_rows<bits, 6>(work, tile);
    case 7: return tiles_of_rows<bits, 7>(work, tile);
    default: return tiles_of_rows<bits, 8>(work, tile);
  }
}

constexpr int64_t kUnpackedRows = 24;     // from here on weights are unpacked into memory
constexpr int64_t kUnpackedColumns = 128;  // of two tiles at a time: 16 KiB

// Columns [first, first + count) of a tile as floats, scaled, 2 x 16 from column to column; `first` begins a step.
template <int bits>
void unpack_groups(const FloatWork& work, int64_t tile, int64_t first, int64_t count, float* out) {
  constexpr int step = static_cast<int>(padding_of(bits));
  const uint8_t* codes = work.codes + tile * work.blocks * kBlockBytes + first / step * step_bytes(bits);
  for (int64_t k = first; k < first + count; k += step, codes += step_bytes(bits)) {
    const __m512 scale = scales_of<Vector>(work.groups, tile, k / kGranule / work.groups.granules);
#pragma GCC unroll 32
    for (int i = 0; i < step; ++i, out += 2 * kTileRows) {
      _mm512_store_ps(out, _mm512_mul_ps(nbit_column<bits>(codes, i), scale));
    }
  }
}

// sums [rows][2][16] (+)= x [rows][count] times weights [count][2][16]
template <int rows>
void multiply_unpacked(const float* x, int64_t stride, const float* weights, int64_t count, bool add, float* sums) {
  __m512 sum[rows][2];
  for (int m = 0; m < rows; ++m)
    for (int t = 0; t < 2; ++t) {
      sum[m][t] = add ? _mm512_load_ps(sums + (2 * m + t) * kTileRows) : _mm512_setzero_ps();
    }
#pragma GCC unroll 4
  for (int64_t k = 0; k < count; ++k, weights += 2 * kTileRows) {
    const __m512 a = _mm512_load_ps(weights), b = _mm512_load_ps(weights + kTileRows);
    for (int m = 0; m < rows; ++m) {
      const __m512 factor = _mm512_set1_ps(x[m * stride + k]);
      sum[m][0] = _mm512_fmadd_ps(a, factor, sum[m][0]);
      sum[m][1] = _mm512_fmadd_ps(b, factor, sum[m][1]);
    }
  }
  for (int m = 0; m < rows; ++m)
    for (int t = 0; t < 2; ++t) _mm512_store_ps(sums + (2 * m + t) * kTileRows, sum[m][t]);
}

template <int bits>
void unpacked_groups(const FloatWork& work) {
  alignas(64) float weights[kUnpackedColumns * 2 * kTileRows];
  alignas(64) float sums[kBlockRows * 2 * kTileRows];
  const int64_t panels = (work.rows + 11) / 12, panel = (work.rows + panels - 1) / panels;
  for (int64_t tile = 0; tile < work.tiles; tile += 2) {
    const int64_t tiles = work.tiles - tile < 2 ? 1 : 2;
    for (int64_t first = 0; first < work.K; first += kUnpackedColumns) {
      const int64_t count = work.K - first < kUnpackedColumns ? work.K - first : kUnpackedColumns;
      for (int64_t t = 0; t < tiles; ++t) unpack_groups<bits>(work, tile + t, first, count, weights + t * kTileRows);
      for (int64_t row = 0; row < work.rows; row += panel) {
        const float* x = work.x + row * work.x_stride + first;
        float* to = sums + row * 2 * kTileRows;
        const bool add = first > 0;
        switch (work.rows - row < panel ? work.rows - row : panel) {
          case 1: multiply_unpacked<1>(x, work.x_stride, weights, count, add, to); break;
          case 2: multiply_unpacked<2>(x, work.x_stride, weights, count, add, to); break;
          case 3: multiply_unpacked<3>(x, work.x_stride, weights, count, add, to); break;
          case 4: multiply_unpacked<4>(x, work.x_stride, weights, count, add, to); break;
          case 5: multiply_unpacked<5>(x, work.x_stride, weights, count, add, to); break;
          case 6: multiply_unpacked<6>(x, work.x_stride, weights, count, add, to); break;
          case 7: multiply_unpacked<7>(x, work.x_stride, weights, count, add, to); break;
          case 8: multiply_unpacked<8>(x, work.x_stride, weights, count, add, to); break;
          case 9: multiply_unpacked<9>(x, work.x_stride, weights, count, add, to); break;
          case 10: multiply_unpacked<10>(x, work.x_stride, weights, count, add, to); break;
          case 11: multiply_unpacked<11>(x, work.x_stride, weights, count, add, to); break;
          default: multiply_unpacked<12>(x, work.x_stride, weights, count, add, to);
        }
      }
    }
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t first = (tile + t) * kTileRows;
      const __mmask16 mask = first_columns(work.columns - first);
      const __m512 bias = _mm512_maskz_loadu_ps(mask, work.bias + first);
      for (int64_t row = 0; row < work.rows; ++row) {
        const __m512 sum = _mm512_load_ps(sums + (2 * row + t) * kTileRows);
        _mm512_mask_storeu_ps(work.y + row * work.stride + first, mask, _mm512_add_ps(sum, bias));
      }
    }
  }
}

template <int bits>
void floats_with_groups(const FloatWork& work) {
  work.rows < kUnpackedRows ? panels_of_floats(work, tiles_with_groups<bits>) : unpacked_groups<bits>(work);
}

// For attention.h: 6 x 4 sums of 32 registers.
struct Floats {
  using Float = __m512;
  static constexpr int lanes = 16, rows = 6, vectors = 4, unturned = 8;

  static Float load(const float* from) { return _mm512_loadu_ps(from); }
  static void store(float* to, Float x) { _mm512_storeu_ps(to, x); }
  static Float all(float value) { return _mm512_set1_ps(value); }
  static Float plus(Float a, Float b) { return _mm512_add_ps(a, b); }
  static Float times(Float a, Float b) { return _mm512_mul_ps(a, b); }
  static Float most(Float a, Float b) { return _mm512_max_ps(a, b); }
  static Float add_product(Float sum, Float a, Float b) { return _mm512_fmadd_ps(a, b, sum); }
  static Float nearest(Float x) { return _mm512_cvtepi32_ps(_mm512_cvtps_epi32(x)); }
  static Float two_to(Float whole) {
    const __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(whole), _mm512_set1_epi32(127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23));
  }
  // The sum of each of 16 vectors, in its lane.
  static Float sums_of(const Float (&x)[16]) {
    Float pairs[8], fours[4], halves[2];
    for (int i = 0; i < 8; ++i) {
      pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]), _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]));
    }
    for (int i = 0; i < 4; ++i) {
      const __m512d a = _mm512_castps_pd(pairs[2 * i]), b = _mm512_castps_pd(pairs[2 * i + 1]);
      fours[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    for (int i = 0; i < 2; ++i) {
      const Float a = fours[2 * i], b = fours[2 * i + 1];
      halves[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
    }
    return _mm512_add_ps(_mm512_shuffle_f32x4(halves[0], halves[1], 0x88), _mm512_shuffle_f32x4(halves[0], halves[1], 0xdd));
  }
  static __m256 upper(Float x) { return _mm512_extractf32x8_ps(x, 1); }
  static float largest(Float x) { return largest_of_8(_mm256_max_ps(_mm512_castps512_ps256(x), upper(x))); }
  static float sum(Float x) { return sum_of_8(_mm256_add_ps(_mm512_castps512_ps256(x), upper(x))); }
};

}  // namespace

namespace avx512 {

void attend(const AttentionWork& work) { attend_with<Floats>(work); }

void int8(const Int8Work& work) { int8_products<Vector>(work); }
void group_int8(const Int8Work& work) { group_int8_products<Vector>(work); }

void floats(const FloatWork& work) {
  work.bits == 2 ? panels_of_floats(work, one_tile<2>) : panels_of_floats(work, one_tile<1>);
}

void group_floats(const FloatWork& work) {
  with_bits(work, [&](auto bits) { floats_with_groups<bits>(work); });
}

}  // namespace avx512

const Isa kAvx512Vnni = {"avx512vnni", has_avx512vnni, Vector::panel, Vector::group_panel, Vector::panel, kFloatRows, 0, 0,
                         avx512::int8, avx512::floats, avx512::group_int8, avx512::group_floats,
                         magnitude, quantize, place, transpose, depthwise,
                   avx512::kSparseKernels, avx512::kBase3Kernels, avx512::attend};

}  // namespace hybridkit
