// 3:4-sparse codes with AVX-512: vpermi2d looks up the four digits of a field of five bits, vpermi2ps a column of it.
#ifndef HYBRIDKIT_SPARSE_AVX512_H
#define HYBRIDKIT_SPARSE_AVX512_H

#include "avx512.h"
#include "isa.h"
#include "plain.h"
#include "vector_avx512.h"

namespace hybridkit {
namespace {

constexpr int kFields = kSparse.columns() / 4;

// A unit of a tile: 16 rows in the lanes, their 40 bits in two parts.
struct SparseUnit {
  __m512i low, high;

  explicit SparseUnit(const uint8_t* codes)
      : low(_mm512_loadu_si512(codes)),
        high(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + kBlockBytes)))) {}

  // In the lowest five bits of the lanes; what is above them look-ups do not see. The seventh lies in both parts.
  __m512i field(int i) const {
    if (i < 6) return _mm512_srli_epi32(low, static_cast<unsigned>(5 * i));
    if (i == 6) return _mm512_or_si512(_mm512_srli_epi32(low, 30), _mm512_slli_epi32(high, 2));
    return _mm512_srli_epi32(high, 3);
  }
};

// Codes of some units later. A unit is a line and a quarter, and takes so many instructions that the processor itself
// does not look far enough ahead: from DRAM one row takes 0.8 of the time without.
inline void ask_for(const uint8_t* codes) {
  _mm_prefetch(reinterpret_cast<const char*>(codes + 2048), _MM_HINT_T0);
  _mm_prefetch(reinterpret_cast<const char*>(codes + 2048 + kBlockBytes), _MM_HINT_T0);
}

struct DigitTable {
  __m512i first = _mm512_loadu_si512(kSparseDigits.of), second = _mm512_loadu_si512(kSparseDigits.of + 16);
  __m512i digits(__m512i field) const { return _mm512_permutex2var_epi32(first, field, second); }
};

// As floats, a column after the other.
struct ColumnTable {
  __m512 first[4], second[4];

  ColumnTable() {
    const DigitTable table;
    for (int column = 0; column < 4; ++column) {
      first[column] = column_of(table.first, column);
      second[column] = column_of(table.second, column);
    }
  }
  static __m512 column_of(__m512i digits, int column) {
    const __m512i digit = _mm512_and_si512(_mm512_srli_epi32(digits, static_cast<unsigned>(8 * column)), _mm512_set1_epi32(3));
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(digit, _mm512_set1_epi32(1)));
  }
  __m512 weights(__m512i field, int column) const {
    return _mm512_permutex2var_ps(first[column], field, second[column]);
  }
};

// One row of activations times a tile. Four sums side by side are enough: a shift and a look-up stand before each
// product.
inline void sparse_row(const Int8Work& work, const DigitTable& table, int64_t tile) {
  const uint8_t* codes = work.codes + tile * work.blocks / kSparse.blocks * kSparse.bytes;
  const int8_t* x = work.x;
  __m512i sum[4] = {Vector::zero(), Vector::zero(), Vector::zero(), Vector::zero()};
  for (int64_t left = work.blocks; left > 0; left -= kSparse.blocks, codes += kSparse.bytes, x += kSparse.columns()) {
    ask_for(codes);
    const SparseUnit unit(codes);
#pragma GCC unroll 8
    for (int i = 0; i < kFields; ++i) sum[i % 4] = Vector::dot(sum[i % 4], table.digits(unit.field(i)), x + 4 * i);
  }
  Vector::finish<2>(work, 0, tile * kTileRows, Vector::add(Vector::add(sum[0], sum[1]), Vector::add(sum[2], sum[3])));
}

// `rows` rows of a panel times `tiles` tiles.
template <int rows, int tiles>
void sparse_panel(const Int8Work& work, const DigitTable& table, const int8_t* x, int64_t tile, int64_t row) {
  const int64_t next_tile = work.blocks / kSparse.blocks * kSparse.bytes;
  const uint8_t* codes = work.codes + tile * next_tile;
  __m512i sum[rows][tiles];
  for (auto& of_row : sum)
    for (auto& part : of_row) part = Vector::zero();
  for (int64_t left = work.blocks; left > 0; left -= kSparse.blocks, codes += kSparse.bytes, x += rows * kSparse.columns()) {
    for (int t = 0; t < tiles; ++t) ask_for(codes + t * next_tile);
    const SparseUnit unit[2] = {SparseUnit(codes), SparseUnit(codes + (tiles - 1) * next_tile)};
#pragma GCC unroll 8
    for (int i = 0; i < kFields; ++i) {
      __m512i digits[tiles];
      for (int t = 0; t < tiles; ++t) digits[t] = table.digits(unit[t].field(i));
      const int8_t* fours = x + i / 4 * rows * kGranule + i % 4 * 4;
#pragma GCC unroll 16
      for (int m = 0; m < rows; ++m) {
        const __m512i four = Vector::four(fours + m * kGranule);
        for (int t = 0; t < tiles; ++t) sum[m][t] = Vector::dot(sum[m][t], digits[t], four);
      }
    }
  }
  for (int m = 0; m < rows; ++m)
    for (int t = 0; t < tiles; ++t) Vector::finish<2>(work, row + m, (tile + t) * kTileRows, sum[m][t]);
}

template <int tiles>
void sparse_rows(const Int8Work& work, const DigitTable& table, const int8_t* x, int64_t tile, int64_t row, int64_t rows) {
  switch (rows) {
    case 1: sparse_panel<1, tiles>(work, table, x, tile, row); break;
    case 2: sparse_panel<2, tiles>(work, table, x, tile, row); break;
    case 3: sparse_panel<3, tiles>(work, table, x, tile, row); break;
    case 4: sparse_panel<4, tiles>(work, table, x, tile, row); break;
    case 5: sparse_panel<5, tiles>(work, table, x, tile, row); break;
    case 6: sparse_panel<6, tiles>(work, table, x, tile, row); break;
    case 7: sparse_panel<7, tiles>(work, table, x, tile, row); break;
    case 8: sparse_panel<8, tiles>(work, table, x, tile, row); break;
    case 9: sparse_panel<9, tiles>(work, table, x, tile, row); break;
    case 10: sparse_panel<10, tiles>(work, table, x, tile, row); break;
    case 11: sparse_panel<11, tiles>(work, table, x, tile, row); break;
    default: sparse_panel<12, tiles>(work, table, x, tile, row);
  }
}

// One unit times `rows` rows, of which the first `count` columns exist.
template <int rows, int chains>
inline void unit_of_floats(const uint8_t* codes, const ColumnTable& table, const float* x, int64_t stride, int count,
                           __m512 (&sum)[chains][rows]) {
  const SparseUnit unit(codes);
#pragma GCC unroll 8
  for (int i = 0; i < kFields; ++i) {
    const __m512i field = unit.field(i);
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const int k = 4 * i + j;
      if (k >= count) return;
      const __m512 weight = table.weights(field, j);
      for (int m = 0; m < rows; ++m) {
        sum[k % chains][m] = _mm512_fmadd_ps(weight, _mm512_set1_ps(x[m * stride + k]), sum[k % chains][m]);
      }
    }
  }
}

template <int rows>
void sparse_tile_of_floats(const FloatWork& work, const ColumnTable& table, int64_t tile) {
  constexpr int chains = rows == 1 ? 8 : rows == 2 ? 4 : rows <= 4 ? 2 : 1;
  const uint8_t* codes = work.codes + tile * work.blocks / kSparse.blocks * kSparse.bytes;
  const float* x = work.x;
  __m512 sum[chains][rows];
  for (auto& chain : sum)
    for (auto& of_row : chain) of_row = _mm512_setzero_ps();
  for (int64_t left = work.K; left > 0; left -= kSparse.columns(), codes += kSparse.bytes, x += kSparse.columns()) {
    if (left >= kSparse.columns()) {
      unit_of_floats<rows, chains>(codes, table, x, work.x_stride, kSparse.columns(), sum);
    } else {
      unit_of_floats<rows, chains>(codes, table, x, work.x_stride, static_cast<int>(left), sum);
    }
  }
  for (int c = 1; c < chains; ++c)
    for (int m = 0; m < rows; ++m) sum[0][m] = _mm512_add_ps(sum[0][m], sum[c][m]);
  write_floats<rows>(work, tile, sum[0]);
}

inline void sparse_tile_of_rows(const FloatWork& work, const ColumnTable& table, int64_t tile) {
  switch (work.rows) {
    case 1: sparse_tile_of_floats<1>(work, table, tile); break;
    case 2: sparse_tile_of_floats<2>(work, table, tile); break;
    case 3: sparse_tile_of_floats<3>(work, table, tile); break;
    case 4: sparse_tile_of_floats<4>(work, table, tile); break;
    case 5: sparse_tile_of_floats<5>(work, table, tile); break;
    case 6: sparse_tile_of_floats<6>(work, table, tile); break;
    case 7: sparse_tile_of_floats<7>(work, table, tile); break;
    default: sparse_tile_of_floats<8>(work, table, tile);
  }
}

}  // namespace

namespace avx512 {

void sparse_int8(const Int8Work& work) {
  const DigitTable table;
  if (work.rows == 1) {
    for (int64_t tile = 0; tile < work.tiles; ++tile) sparse_row(work, table, tile);
    return;
  }
  for (int64_t tile = 0; tile < work.tiles; tile += 2) {
    for (int64_t row = 0; row < work.rows; row += work.panel) {
      const int64_t rows = work.rows - row < work.panel ? work.rows - row : work.panel;
      const int8_t* x = work.x + row * work.row_bytes;
      tile + 2 <= work.tiles ? sparse_rows<2>(work, table, x, tile, row, rows)
                             : sparse_rows<1>(work, table, x, tile, row, rows);
    }
  }
}

void sparse_floats(const FloatWork& work) {
  const ColumnTable table;
  panels_of_floats(work, [&](const FloatWork& panel, int64_t tile) {
    sparse_tile_of_rows(panel, table, tile);
    return int64_t{1};
  });
}

void expand_sparse(const uint8_t* units, int64_t count, uint8_t* blocks) {
  const DigitTable table;
  for (; count > 0; --count, units += kSparse.bytes, blocks += kSparse.blocks * kBlockBytes) {
    const SparseUnit unit(units);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      __m512i digits = table.digits(unit.field(4 * half));
#pragma GCC unroll 4
      for (int p = 1; p < 4; ++p) {
        const __m512i more = table.digits(unit.field(4 * half + p));
        digits = _mm512_or_si512(digits, _mm512_slli_epi32(more, static_cast<unsigned>(2 * p)));
      }
      _mm512_storeu_si512(blocks + half * kBlockBytes, digits);
    }
  }
}

}  // namespace avx512
}  // namespace hybridkit
#endif
