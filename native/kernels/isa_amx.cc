// AMX: products of 16 rows of int8 activations, 64 columns and 16 rows of the matrix in one instruction, where there are
// enough rows; else AVX-512 VNNI.
//
// An AMX tile of weights has a row for every four columns, 16 x 4 bytes in each: a block of the packed codes, once its
// digits are bytes. Steps of 64 columns, or what a group has of them, are unpacked for a tile or two of the matrix and
// multiplied with all rows of activations. Those lie row after row; what an AMX tile reads of them beyond a group meets
// weights of 0, and what it reads beyond the last row is not used.
#include <immintrin.h>
#include <string.h>

#include "activations_avx2.h"
#include "avx512.h"
#include "groups_vnni.h"
#include "isa.h"
#include "plain.h"
#include "processor.h"
#include "vector_avx512.h"

namespace hybridkit {
namespace {

constexpr int kStepColumns = 64, kTileBytes = 1024, kNumbers = 256;  // of an AMX tile
constexpr int kSteps = 16;       // of two tiles of the matrix: 32 KiB
constexpr int kWideGroup = 512;  // columns of a group from which on what becomes of its sums takes little of the time

// Intel's manual, volume 1, 18.3. Tiles have 16 rows of 64 bytes; those of activations (4, 5) and weights (6, 7) only
// what `width` columns need, so that activations of narrow groups are not read across cache lines.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
  explicit TileConfig(int64_t width) {
    for (int i = 0; i < 8; ++i) {
      row_bytes[i] = static_cast<uint16_t>(i == 4 || i == 5 ? width : 64);
      rows[i] = static_cast<uint8_t>(i == 6 || i == 7 ? width / 4 : 16);
    }
  }
};

// The compiler does not see that AMX reads memory and writes it.
inline void memory_is_settled() { __asm__ volatile("" ::: "memory"); }
inline void is_written(int32_t (&sums)[kNumbers]) { __asm__ volatile("" : "+m"(sums)); }

// `blocks` blocks of codes as `rows` rows of bytes, digit by digit: digits themselves, or what n-bit ones stand for.
template <int bits, bool nbit>
inline void unpack(const uint8_t* codes, int64_t blocks, int64_t rows, uint8_t* out) {
  constexpr int planes = 8 / bits;
  const __m512i mask = Vector::byte(static_cast<char>((1 << bits) - 1));
  const __m512i middle = Vector::byte(static_cast<char>(1 << (bits - 1)));
  for (int64_t b = 0; b < blocks; ++b, codes += kBlockBytes) {
    const __m512i packed = Vector::load(codes);
#pragma GCC unroll 8
    for (int p = 0; p < planes; ++p, out += kBlockBytes) {
      if constexpr (bits == 8) {  // the same as below, in one step
        _mm512_store_si512(out, _mm512_xor_si512(packed, middle));
        continue;
      }
      __m512i digits = Vector::both(Vector::shifted16<bits>(packed, p), mask);
      if constexpr (nbit && bits == 1) digits = _mm512_add_epi8(digits, digits);
      _mm512_store_si512(out, nbit ? _mm512_sub_epi8(digits, middle) : digits);
    }
  }
  for (int64_t row = blocks * planes; row < rows; ++row, out += kBlockBytes) _mm512_store_si512(out, Vector::zero());
}

// Sums (+)= `steps` steps of `a` x 16 rows of activations times `b` tiles of weights, [b][16 rows][16] for every 16 rows.
template <bool nbit, int a, int b>
inline void multiply(const int8_t* x, int64_t row_bytes, const uint8_t* weights, int64_t steps, bool add, int32_t* sums) {
  constexpr bool both = a == 2 && b == 2;
  if (add) {
    _tile_loadd(0, sums, 64);
    if constexpr (b == 2) _tile_loadd(1, sums + kNumbers, 64);
    if constexpr (a == 2) _tile_loadd(2, sums + b * kNumbers, 64);
    if constexpr (both) _tile_loadd(3, sums + 3 * kNumbers, 64);
  } else {
    _tile_zero(0);
    if constexpr (b == 2) _tile_zero(1);
    if constexpr (a == 2) _tile_zero(2);
    if constexpr (both) _tile_zero(3);
  }
  for (; steps > 0; --steps, x += kStepColumns, weights += b * kTileBytes) {
    _tile_loadd(6, weights, 64);
    if constexpr (b == 2) _tile_loadd(7, weights + kTileBytes, 64);
    _tile_loadd(4, x, row_bytes);
    if constexpr (a == 2) _tile_loadd(5, x + 16 * row_bytes, row_bytes);
    if constexpr (nbit) {  // signed times signed
      _tile_dpbssd(0, 4, 6);
      if constexpr (b == 2) _tile_dpbssd(1, 4, 7);
      if constexpr (a == 2) _tile_dpbssd(2, 5, 6);
      if constexpr (both) _tile_dpbssd(3, 5, 7);
    } else {
      _tile_dpbsud(0, 4, 6);
      if constexpr (b == 2) _tile_dpbsud(1, 4, 7);
      if constexpr (a == 2) _tile_dpbsud(2, 5, 6);
      if constexpr (both) _tile_dpbsud(3, 5, 7);
    }
  }
  _tile_stored(0, sums, 64);
  if constexpr (b == 2) _tile_stored(1, sums + kNumbers, 64);
  if constexpr (a == 2) _tile_stored(2, sums + b * kNumbers, 64);
  if constexpr (both) _tile_stored(3, sums + 3 * kNumbers, 64);
}

// Integer sums, and what is added up of groups: [rows / 16][tiles][16 rows][16].
struct Sums {
  alignas(64) int32_t of_group[kBlockRows * 2 * kTileRows];
  alignas(64) float total[kBlockRows * 2 * kTileRows];
};

// The end of a group for up to 32 rows from `row` on.
template <int bits, bool nbit, int b>
inline void end_group(const Int8Work& work, int64_t tile, int64_t row, int64_t group, Sums& sums) {
  const int64_t end = work.rows - row < 32 ? work.rows : row + 32, count = nbit ? work.groups.count : 1;
  __m512 scale[b];
  for (int t = 0; t < b; ++t) scale[t] = nbit ? scales_of<Vector>(work.groups, tile + t, group) : Vector::nothing();
  for (; row < end; ++row)
    for (int t = 0; t < b; ++t) {
      const int64_t place = ((row / 16 * b + t) * 16 + row % 16) * kTileRows, column = (tile + t) * kTileRows;
      const __m512i sum = _mm512_load_si512(sums.of_group + place);
      if constexpr (!nbit) {
        Vector::finish<bits>(work, row, column, sum);
      } else {
        const __m512 before = group == 0 ? Vector::nothing() : Vector::load(sums.total + place);
        const __m512 factor = Vector::times(Vector::all(work.x_scale[row * count + group]), scale[t]);
        const __m512 total = Vector::add_scaled(before, sum, factor);
        if (group + 1 < count) {
          _mm512_store_ps(sums.total + place, total);
        } else {
          Vector::write(work, row, column, total);
        }
      }
    }
}

// The processor fetches where `rows` rows of the output begin in a tile, to write there.
inline void fetch_output(const Int8Work& work, int64_t tile, int64_t row, int64_t rows) {
  const int64_t end = work.rows - row < rows ? work.rows : row + rows;
  for (; row < end; ++row) __builtin_prefetch(work.y + row * work.stride + tile * kTileRows, 1);
}

// A group of columns, or all of them, at a time.
template <int bits, bool nbit, int b>
void tiles_of_wide_groups(const Int8Work& work, int64_t tile, Sums& sums) {
  constexpr int64_t columns = block_columns(bits);
  alignas(64) uint8_t weights[kSteps * b * kTileBytes];
  const int64_t all = work.blocks * columns, count = nbit ? work.groups.count : 1;
  const int64_t size = nbit ? work.groups.granules * kGranule : all;
  const uint8_t* codes = work.codes + tile * work.blocks * kBlockBytes;
  for (int64_t group = 0; group < count; ++group) {
    const int64_t begin = group * size, end = begin + size < all ? begin + size : all;
    for (int64_t first = begin, steps = 0; first < end; first += steps * kStepColumns) {
      steps = 0;
      for (int64_t column = first; steps < kSteps && column < end; ++steps, column += kStepColumns) {
        const int64_t width = end - column < kStepColumns ? end - column : kStepColumns;
        for (int t = 0; t < b; ++t) {
          unpack<bits, nbit>(codes + (t * work.blocks + column / columns) * kBlockBytes, width / columns, 16,
                             weights + (b * steps + t) * kTileBytes);
        }
      }
      memory_is_settled();
      for (int64_t row = 0; row < work.rows; row += 32) {
        const int8_t* x = work.x + row * work.row_bytes + first;
        int32_t* to = sums.of_group + row * b * kTileRows;
        const bool last = first + steps * kStepColumns >= end;
        if (last) fetch_output(work, tile, row, 32);
        if (last && b == 2) fetch_output(work, tile + 1, row, 32);
        work.rows - row > 16 ? multiply<nbit, 2, b>(x, work.row_bytes, weights, steps, first > begin, to)
                             : multiply<nbit, 1, b>(x, work.row_bytes, weights, steps, first > begin, to);
        memory_is_settled();
        if (last) end_group<bits, nbit, b>(work, tile, row, group, sums);
      }
    }
  }
}

// What groups add up to for `rows` rows, in registers: a struct of structs, since GCC keeps an array in memory here.
template <int rows>
struct Totals {
  Totals<rows - 1> before;
  __m512 last;

  inline __attribute__((always_inline)) void load(const float* from) {
    before.load(from);
    last = _mm512_load_ps(from + (rows - 1) * kTileRows);
  }
  inline __attribute__((always_inline)) void store(float* to) const {
    before.store(to);
    _mm512_store_ps(to + (rows - 1) * kTileRows, last);
  }
  inline __attribute__((always_inline)) void write(const Int8Work& work, int64_t tile, int64_t row) const {
    before.write(work, tile, row);
    if (row + rows - 1 < work.rows) Vector::write(work, row + rows - 1, tile * kTileRows, last);
  }
  // x_scale: of the group, `stride` floats from row to row.
  inline __attribute__((always_inline)) void add(const int32_t* sums, const float* x_scale, int64_t stride, __m512 scale) {
    before.add(sums, x_scale, stride, scale);
    const __m512 factor = Vector::times(Vector::all(x_scale[(rows - 1) * stride]), scale);
    last = Vector::add_scaled(last, _mm512_load_si512(sums + (rows - 1) * 16), factor);
  }
};
template <>
struct Totals<0> {
  void load(const float*) {}
  void store(float*) const {}
  void write(const Int8Work&, int64_t, int64_t) const {}
  void add(const int32_t*, const float*, int64_t, __m512) {}
};

// `count` groups of `steps` steps each times one tile of the matrix, for 16 rows of activations or 8; 16 are read.
// The sums of a group are written, and only after the next group's products are under way made floats of.
template <int rows>
inline void multiply_groups(const Int8Work& work, int64_t tile, int64_t row, int64_t first, int64_t count, int64_t steps,
                            const uint8_t* weights, float* totals) {
  alignas(64) int32_t sums[2][kNumbers];
  const int64_t size = work.groups.granules * kGranule, stride = work.groups.count;
  const int8_t* x = work.x + row * work.row_bytes + first * size;
  const float* x_scale = work.x_scale + row * stride + first;
  const int64_t columns = work.blocks * block_columns(work.bits) - first * size;
  const auto multiply_one = [&](int64_t group) {
    _tile_zero(0);
    const int64_t left = columns - group * size;  // fewer than a group's in the last one
    for (int64_t s = 0; s < steps && s * kStepColumns < left; ++s) {
      _tile_loadd(6, weights + (group * steps + s) * kTileBytes, 64);
      _tile_loadd(4, x + group * size + s * kStepColumns, work.row_bytes);
      _tile_dpbssd(0, 4, 6);
    }
    _tile_stored(0, sums[group % 2], 64);
    is_written(sums[group % 2]);
  };
  Totals<rows> total;
  total.load(totals);
  if (first + count == stride) fetch_output(work, tile, row, rows);
  multiply_one(0);
  for (int64_t group = 1; group < count; ++group) {
    multiply_one(group);
    const __m512 scale = scales_of<Vector>(work.groups, tile, first + group - 1);
    total.add(sums[(group - 1) % 2], x_scale + group - 1, stride, scale);
  }
  const __m512 scale = scales_of<Vector>(work.groups, tile, first + count - 1);
  total.add(sums[(count - 1) % 2], x_scale + count - 1, stride, scale);
  if (first + count < stride) return total.store(totals);
  total.write(work, tile, row);
}

template <int bits>
void tile_of_narrow_groups(const Int8Work& work, int64_t tile, float* totals) {
  constexpr int64_t columns = block_columns(bits);
  alignas(64) uint8_t weights[kSteps * kTileBytes];
  const int64_t all = work.blocks * columns, size = work.groups.granules * kGranule;
  const int64_t steps = (size + kStepColumns - 1) / kStepColumns, most = kSteps / steps;
  const int64_t rows = size < kStepColumns ? size / 4 : 16;
  const uint8_t* codes = work.codes + tile * work.blocks * kBlockBytes;
  memset(totals, 0, static_cast<size_t>(work.rows + 15) / 16 * 16 * kTileRows * sizeof *totals);
  for (int64_t first = 0; first < work.groups.count; first += most) {
    const int64_t count = work.groups.count - first < most ? work.groups.count - first : most;
    uint8_t* out = weights;
    for (int64_t group = first; group < first + count; ++group) {
      const int64_t end = (group + 1) * size < all ? (group + 1) * size : all;
      int64_t column = group * size;
      for (int64_t s = 0; s < steps; ++s, out += kTileBytes) {
        const int64_t left = end - column < 0 ? 0 : end - column, width = left < kStepColumns ? left : kStepColumns;
        unpack<bits, true>(codes + column / columns * kBlockBytes, width / columns, rows, out);
        column += width;
      }
    }
    memory_is_settled();
    for (int64_t row = 0; row < work.rows; row += 16) {
      float* to = totals + row * kTileRows;
      work.rows - row > 8 ? multiply_groups<16>(work, tile, row, first, count, steps, weights, to)
                          : multiply_groups<8>(work, tile, row, first, count, steps, weights, to);
    }
  }
}

template <int bits, bool nbit>
void all_tiles(const Int8Work& work) {
  const int64_t size = work.groups.granules * kGranule;
  const bool narrow = nbit && work.groups.count > 1 && size < kWideGroup;
  const TileConfig config(narrow && size < kStepColumns ? size : kStepColumns);
  Sums sums;
  _tile_loadconfig(&config);
  if (narrow) {
    if constexpr (nbit) {
      for (int64_t tile = 0; tile < work.tiles; ++tile) tile_of_narrow_groups<bits>(work, tile, sums.total);
    }
  } else {
    for (int64_t tile = 0; tile < work.tiles; tile += 2) {
      work.tiles - tile > 1 ? tiles_of_wide_groups<bits, nbit, 2>(work, tile, sums)
                            : tiles_of_wide_groups<bits, nbit, 1>(work, tile, sums);
    }
  }
  _tile_release();
}

// Panels of one row are what the driver makes where there are `matrix_rows` of them.
bool is_for_tiles(const Int8Work& work) { return work.panel == 1 && work.rows > 1; }

void int8(const Int8Work& work) {
  if (!is_for_tiles(work)) return avx512::int8(work);
  work.bits == 2 ? all_tiles<2, false>(work) : all_tiles<1, false>(work);
}

void group_int8(const Int8Work& work) {
  if (!is_for_tiles(work)) return avx512::group_int8(work);
  with_bits(work, [&](auto bits) { all_tiles<bits, true>(work); });
}

}  // namespace

const Isa kAmx = {"amx", has_amx, Vector::panel, Vector::group_panel, Vector::panel, kFloatRows, 10, 16,
                  int8, avx512::floats, group_int8, avx512::group_floats, magnitude, quantize, place, transpose, depthwise,
                   avx512::kSparseKernels, avx512::kBase3Kernels, avx512::attend};

}  // namespace hybridkit
