// int8 activations times n-bit codes with vpdpbusd: as int8_vnni.h, but sums become floats at the end of every group.
#ifndef HYBRIDKIT_GROUPS_VNNI_H
#define HYBRIDKIT_GROUPS_VNNI_H

#include <immintrin.h>

#include "isa.h"
#include "processor.h"

namespace hybridkit {
namespace {

// The scales of a tile's rows, or of the part of them that a vector holds.
template <class V>
inline typename V::Float scales_of(const Groups& groups, int64_t tile, int64_t group, int part = 0) {
  const int64_t first = (tile * groups.count + group) * kTileRows + part * V::lanes;
  if (groups.half) return V::widened(static_cast<const uint16_t*>(groups.scale) + first);
  return V::load(static_cast<const float*>(groups.scale) + first);
}

// `rows` rows of a panel times `tiles` tiles. What a digit counts more than its code, 2^(bits - 1) times the sum of the
// activations, is where a group's sums begin; of one bit, whose digits count twice, where they end. One row masks digits
// in place instead of shifting them down: the digit p counts 2^(bits p) times too much, which is taken back from a sum of
// its own.
template <class V, int bits, int rows, int tiles>
void multiply_groups(const Int8Work& work, const int8_t* x, int64_t tile, int64_t row) {
  constexpr int planes = 8 / bits, step = static_cast<int>(padding_of(bits)) / kGranule;  // granules at a time
  constexpr int blocks = static_cast<int>(step_bytes(bits)) / kBlockBytes;                // of a step
  constexpr int parts = kTileRows / V::lanes, vectors = tiles * parts, places = rows == 1 ? planes : 1;
  const uint8_t* codes = work.codes + tile * work.blocks * kBlockBytes;
  const int64_t next_tile = work.blocks * kBlockBytes, count = work.groups.count;
  const int64_t ahead = rows == 1 ? stream_ahead() : 0;
  const float* x_scale = work.x_scale + row * count;
  const int32_t* x_sum = work.x_sum + row * count;
  typename V::Float total[rows][vectors];
  for (auto& of_row : total)
    for (auto& part : of_row) part = V::nothing();
  int64_t left = work.blocks / blocks * step;
  for (int64_t group = 0; group < count; ++group) {
    typename V::Int sum[rows][places][vectors];
    for (int m = 0; m < rows; ++m)
      for (int p = 0; p < places; ++p)
        for (int v = 0; v < vectors; ++v) sum[m][p][v] = bits > 1 && p == 0 ? V::all(x_sum[m * count + group]) : V::zero();
    const int64_t granules = work.groups.granules < left ? work.groups.granules : left;
    left -= granules;
    for (int64_t g = 0; g < granules; g += step, x += step * rows * kGranule) {
#pragma GCC unroll 4
      for (int b = 0; b < blocks; ++b, codes += kBlockBytes) {
        typename V::Int packed[vectors];
        if constexpr (rows == 1) _mm_prefetch(reinterpret_cast<const char*>(codes + ahead), _MM_HINT_T0);
        for (int v = 0; v < vectors; ++v) packed[v] = V::load(codes + v / parts * next_tile + v % parts * V::bytes);
#pragma GCC unroll 8
        for (int p = 0; p < planes; ++p) {
          const int four_columns = b * planes + p;
          const int8_t* fours = x + four_columns / 4 * rows * kGranule + four_columns % 4 * 4;
          if constexpr (rows == 1) {
            for (int v = 0; v < vectors; ++v) {
              const auto mask = V::byte(static_cast<char>(((1 << bits) - 1) << (bits * p)));
              const auto digits = bits == 8 ? packed[v] : V::both(packed[v], mask);
              sum[0][p % places][v] = V::dot(sum[0][p % places][v], digits, fours);
            }
          } else {
            typename V::Int digits[vectors];
            for (int v = 0; v < vectors; ++v) {
              const auto shifted = V::template shifted16<bits>(packed[v], p);
              digits[v] = bits == 8 ? shifted : V::both(shifted, V::byte(static_cast<char>((1 << bits) - 1)));
            }
#pragma GCC unroll 16
            for (int m = 0; m < rows; ++m) {
              const typename V::Int four = V::four(fours + m * kGranule);
              for (int v = 0; v < vectors; ++v) sum[m][0][v] = V::dot(sum[m][0][v], digits[v], four);
            }
          }
        }
      }
    }
    for (int v = 0; v < vectors; ++v) {
      const typename V::Float scale = scales_of<V>(work.groups, tile + v / parts, group, v % parts);
#pragma GCC unroll 16
      for (int m = 0; m < rows; ++m) {
        typename V::Int digits = sum[m][0][v];
        for (int p = 1; p < places; ++p) digits = V::add(digits, V::template shifted_down<bits>(sum[m][p][v], p));
        if constexpr (bits == 1) digits = V::add(V::add(digits, digits), V::all(x_sum[m * count + group]));
        total[m][v] = V::add_scaled(total[m][v], digits, V::times(V::all(x_scale[m * count + group]), scale));
      }
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < rows; ++m)
    for (int v = 0; v < vectors; ++v) {
      V::write(work, row + m, (tile + v / parts) * kTileRows + v % parts * V::lanes, total[m][v]);
    }
}

template <class V, int bits, int tiles>
void group_panel(const Int8Work& work, const int8_t* x, int64_t tile, int64_t row, int64_t rows) {
  switch (rows) {
    case 1: multiply_groups<V, bits, 1, 1>(work, x, tile, row); break;
    case 2: multiply_groups<V, bits, 2, tiles>(work, x, tile, row); break;
    case 3: multiply_groups<V, bits, 3, tiles>(work, x, tile, row); break;
    default:
      if constexpr (V::group_panel == 4) {
        multiply_groups<V, bits, 4, tiles>(work, x, tile, row);
      } else {
        switch (rows) {
          case 4: multiply_groups<V, bits, 4, tiles>(work, x, tile, row); break;
          case 5: multiply_groups<V, bits, 5, tiles>(work, x, tile, row); break;
          case 6: multiply_groups<V, bits, 6, tiles>(work, x, tile, row); break;
          case 7: multiply_groups<V, bits, 7, tiles>(work, x, tile, row); break;
          default: multiply_groups<V, bits, 8, tiles>(work, x, tile, row);
        }
      }
  }
}

template <class V, int bits>
void group_products(const Int8Work& work) {
  const int64_t padded = work.blocks * block_columns(bits);
  for (int64_t tile = 0; tile < work.tiles;) {
    const bool wide = work.panel > 1 && tile + V::tiles <= work.tiles;
    for (int64_t row = 0; row < work.rows; row += work.panel) {
      const int64_t rows = work.rows - row < work.panel ? work.rows - row : work.panel;
      const int8_t* x = work.x + row * padded;
      if (!wide) {
        group_panel<V, bits, 1>(work, x, tile, row, rows);
      } else if (rows > 1) {
        group_panel<V, bits, V::tiles>(work, x, tile, row, rows);
      } else {  // a last row by itself
        for (int t = 0; t < V::tiles; ++t) group_panel<V, bits, 1>(work, x, tile + t, row, 1);
      }
    }
    tile += wide ? V::tiles : 1;
  }
}

template <class V>
void group_int8_products(const Int8Work& work) {
  with_bits(work, [&](auto bits) { group_products<V, bits>(work); });
}

}  // namespace
}  // namespace hybridkit
#endif
