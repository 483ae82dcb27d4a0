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
  static constexpr int stream_sums = 16;  // of one row

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

constexpr int kFloatPanel = 8;  // as many rows share the unpacking of a weight

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
  const int64_t first = tile * kTileRows;
  const __mmask16 mask = first_columns(work.columns - first);
  for (int m = 0; m < rows; ++m) {
    for (int c = 1; c < chains; ++c) sum[0][m] = _mm512_add_ps(sum[0][m], sum[c][m]);
    const __m512 scaled = _mm512_mul_ps(sum[0][m], _mm512_maskz_loadu_ps(mask, work.scale + first));
    _mm512_mask_storeu_ps(work.y + m * work.stride + first, mask,
                          _mm512_add_ps(scaled, _mm512_maskz_loadu_ps(mask, work.bias + first)));
  }
}

// A weight is unpacked where it is used, for every number of rows: shuffles run beside multiplications, and a panel of
// rows that stays in the caches is read faster than weights that were unpacked into memory.
template <int bits>
void panels_of_floats(FloatWork work) {
  const int64_t rows = work.rows, panels = (rows + kFloatPanel - 1) / kFloatPanel, panel = (rows + panels - 1) / panels;
  for (int64_t row = 0; row < rows; row += panel, work.x += panel * work.x_stride, work.y += panel * work.stride) {
    work.rows = rows - row < panel ? rows - row : panel;
    for (int64_t tile = 0; tile < work.tiles; ++tile) {
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
    }
  }
}

void floats(const FloatWork& work) { work.bits == 2 ? panels_of_floats<2>(work) : panels_of_floats<1>(work); }

}  // namespace

const Isa kAvx512Vnni = {"avx512vnni", has_avx512vnni, Vector::panel, Vector::panel, kFloatPanel,
                         int8_products<Vector>, floats, magnitude, quantize, place, transpose, depthwise};

}  // namespace hybridkit
