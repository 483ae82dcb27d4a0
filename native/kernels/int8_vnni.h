// int8 activations with vpdpbusd, which adds four products of unsigned digits and signed activations to a 32-bit sum.
// `V` is a vector of the instruction set: one or two of them hold the 16 rows of a tile.
//
// A weight is unpacked in registers where it is used, for every number of rows: unpacking takes logic and shifts,
// which run beside the multiplier. A register tile is `rows` rows of activations times `vectors` vectors of weights.
#ifndef HYBRIDKIT_INT8_VNNI_H
#define HYBRIDKIT_INT8_VNNI_H

#include <immintrin.h>

#include "isa.h"
#include "processor.h"

namespace hybridkit {
namespace {

constexpr int64_t kBlocksOfSum = 1 << 14;  // 32-bit sums of digits masked in place hold so many blocks

// Sums of one row of activations over a whole tile; as for AVX2, digits are masked in place instead of shifted down,
// and what digit p counts too much, 2^(bits p), is taken back from its own sum. `chains` blocks are summed side by
// side, since the processor starts a product every cycle and ends it some cycles later: 16 sums in all take 5 % less
// time than 8 (Zen 4). That processor sees by itself that this is one sequential stream: asking for codes ahead of time
// made it slower by a sixth (from DRAM), and so did two or four tiles at a time, which share their loads of activations
// but read several streams. On a Xeon with AMX asking 4 KiB ahead takes a fifth of the time away.
template <class V, int bits>
inline __attribute__((always_inline)) void stream_tile(const Int8Work& work, int64_t tile) {
  constexpr int planes = 8 / bits, parts = kTileRows / V::lanes;
  constexpr int chains = planes * parts < V::stream_sums ? V::stream_sums / (planes * parts) : 1;
  const uint8_t* codes = work.codes + tile * work.blocks * kBlockBytes;
  const int8_t* x = work.x;
  typename V::Int sum[chains][planes][parts], total[parts];
  const auto clear = [&] {
    for (auto& chain : sum)
      for (auto& of_plane : chain)
        for (auto& part : of_plane) part = V::zero();
  };
  const int64_t ahead = stream_ahead();
  const auto add_block = [&](int chain, const uint8_t* block, const int8_t* fours) {
    _mm_prefetch(reinterpret_cast<const char*>(block + ahead), _MM_HINT_T0);
#pragma GCC unroll 2
    for (int part = 0; part < parts; ++part) {
      const typename V::Int packed = V::load(block + part * V::bytes);
#pragma GCC unroll 8
      for (int p = 0; p < planes; ++p) {
        const auto digits = V::both(packed, V::byte(static_cast<char>(((1 << bits) - 1) << (bits * p))));
        sum[chain][p][part] = V::dot(sum[chain][p][part], digits, fours + p * 4);
      }
    }
  };
  constexpr int64_t columns = block_columns(bits);
  for (auto& part : total) part = V::zero();
  for (int64_t left = work.blocks; left > 0;) {
    clear();
    int64_t count = left < kBlocksOfSum ? left : kBlocksOfSum;
    left -= count;
    for (; count >= 4; count -= 4, codes += 4 * kBlockBytes, x += 4 * columns) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) add_block(i % chains, codes + i * kBlockBytes, x + i * columns);
    }
    for (; count > 0; --count, codes += kBlockBytes, x += columns) add_block(0, codes, x);
#pragma GCC unroll 8
    for (int p = 0; p < planes; ++p)
      for (int part = 0; part < parts; ++part) {
        typename V::Int of_plane = sum[0][p][part];
#pragma GCC unroll 4
        for (int chain = 1; chain < chains; ++chain) of_plane = V::add(of_plane, sum[chain][p][part]);
        total[part] = V::add(total[part], V::template shifted_down<bits>(of_plane, p));
      }
  }
  for (int part = 0; part < parts; ++part) {
    V::template finish<bits>(work, 0, tile * kTileRows + part * V::lanes, total[part]);
  }
}

// `rows` rows of a panel times `tiles` tiles.
template <class V, int bits, int rows, int tiles>
void multiply(const Int8Work& work, const int8_t* x, int64_t tile, int64_t row) {
  constexpr int planes = 8 / bits, parts = kTileRows / V::lanes, vectors = tiles * parts;
  const uint8_t* codes = work.codes + tile * work.blocks * kBlockBytes;
  const int64_t next_tile = work.blocks * kBlockBytes;
  typename V::Int sum[rows][vectors];
  for (auto& of_row : sum)
    for (auto& part : of_row) part = V::zero();
  const auto mask = V::byte((1 << bits) - 1);
  for (int64_t block = 0; block < work.blocks; ++block, codes += kBlockBytes) {
    typename V::Int packed[vectors];
    for (int v = 0; v < vectors; ++v) packed[v] = V::load(codes + v / parts * next_tile + v % parts * V::bytes);
#pragma GCC unroll 8
    for (int p = 0; p < planes; ++p) {
      typename V::Int digits[vectors];
      for (int v = 0; v < vectors; ++v) digits[v] = V::both(V::template shifted16<bits>(packed[v], p), mask);
      const int8_t* fours = x + p / 4 * rows * kGranule + p % 4 * 4;
#pragma GCC unroll 16
      for (int m = 0; m < rows; ++m) {
        const typename V::Int four = V::four(fours + m * kGranule);
        for (int v = 0; v < vectors; ++v) sum[m][v] = V::dot(sum[m][v], digits[v], four);
      }
    }
    x += planes / 4 * rows * kGranule;
  }
#pragma GCC unroll 16
  for (int m = 0; m < rows; ++m)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v)
      V::template finish<bits>(work, row + m, (tile + v / parts) * kTileRows + v % parts * V::lanes, sum[m][v]);
}

template <class V, int bits, int tiles>
void panel(const Int8Work& work, const int8_t* x, int64_t tile, int64_t row, int64_t rows) {
  switch (rows) {
    case 1: multiply<V, bits, 1, tiles>(work, x, tile, row); break;
    case 2: multiply<V, bits, 2, tiles>(work, x, tile, row); break;
    case 3: multiply<V, bits, 3, tiles>(work, x, tile, row); break;
    case 4: multiply<V, bits, 4, tiles>(work, x, tile, row); break;
    case 5: multiply<V, bits, 5, tiles>(work, x, tile, row); break;
    default:
      if constexpr (V::panel == 6) {
        multiply<V, bits, 6, tiles>(work, x, tile, row);
      } else {
        switch (rows) {
          case 6: multiply<V, bits, 6, tiles>(work, x, tile, row); break;
          case 7: multiply<V, bits, 7, tiles>(work, x, tile, row); break;
          case 8: multiply<V, bits, 8, tiles>(work, x, tile, row); break;
          case 9: multiply<V, bits, 9, tiles>(work, x, tile, row); break;
          case 10: multiply<V, bits, 10, tiles>(work, x, tile, row); break;
          case 11: multiply<V, bits, 11, tiles>(work, x, tile, row); break;
          default: multiply<V, bits, 12, tiles>(work, x, tile, row);
        }
      }
  }
}

template <class V, int bits>
void products(const Int8Work& work) {
  const int64_t padded = work.blocks * block_columns(bits);
  if (work.rows == 1) {
    for (int64_t tile = 0; tile < work.tiles; ++tile) stream_tile<V, bits>(work, tile);
    return;
  }
  for (int64_t tile = 0; tile < work.tiles; tile += V::tiles) {
    const bool wide = tile + V::tiles <= work.tiles;
    for (int64_t row = 0; row < work.rows; row += work.panel) {
      const int64_t rows = work.rows - row < work.panel ? work.rows - row : work.panel;
      const int8_t* x = work.x + row * padded;
      wide ? panel<V, bits, V::tiles>(work, x, tile, row, rows) : panel<V, bits, 1>(work, x, tile, row, rows);
    }
  }
}

template <class V>
void int8_products(const Int8Work& work) {
  work.bits == 2 ? products<V, 2>(work) : products<V, 1>(work);
}

}  // namespace
}  // namespace hybridkit
#endif
