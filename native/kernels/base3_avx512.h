// Codes in base 3 with AVX-512. The digit that three times a byte holds above itself comes of two averages, which round
// up: that of the byte and 253, and of the byte and that, has it, one larger, in its two highest bits. What is left of
// the product is the byte for the next digit.
#ifndef HYBRIDKIT_BASE3_AVX512_H
#define HYBRIDKIT_BASE3_AVX512_H

#include "avx512.h"
#include "isa.h"
#include "processor.h"
#include "vector_avx512.h"

namespace hybridkit {
namespace {

constexpr int kLineColumns = 20, kDigits = 5;  // of one row in 64 bytes of a tile
constexpr int kLines = kBase3.bytes / kBlockBytes;
constexpr int64_t kUnitsOfSum = 1 << 12;  // 32-bit sums of digits masked in place hold so many

// The next digit of every byte of a line, plus 1, in the two highest bits; below them is something.
struct Line {
  __m512i bytes;

  __m512i digits() const { return _mm512_avg_epu8(bytes, _mm512_avg_epu8(bytes, Vector::byte(static_cast<char>(253)))); }
  void next() { bytes = _mm512_add_epi8(bytes, _mm512_add_epi8(bytes, bytes)); }
};

// Digits are one larger than the kernels' others, for which Vector::finish knows the sum of the activations.
inline void finish_base3(const Int8Work& work, int64_t row, int64_t tile, __m512i sum) {
  const __m512i digits = _mm512_sub_epi32(sum, _mm512_set1_epi32(work.x_sum[row]));
  Vector::finish<2>(work, row, tile * kTileRows, digits);
}

// By a byte, its digits 1 to 4, plus 1, in two bits each.
struct Base3Table {
  alignas(64) uint8_t of[256] = {};
  constexpr Base3Table() {
    for (int byte = 0; byte < 256; ++byte) {
      int left = 3 * byte;
      for (int p = 1; p < kDigits; ++p) {
        left = left % 256 * 3;
        of[byte] = static_cast<uint8_t>(of[byte] | (left / 256 + 1) << (2 * (p - 1)));
      }
    }
  }
};
constexpr Base3Table kBase3Table;

#if defined(HYBRIDKIT_EMULATED)
#define HYBRIDKIT_VBMI
#else
#define HYBRIDKIT_VBMI __attribute__((target("avx512vbmi")))
#endif

// One row of activations times a tile, for processors with VBMI: four digits of a byte are looked up in half the time
// that averages take. Digits are masked where they are; what digit p counts too much is taken back from its own sum.
HYBRIDKIT_VBMI inline void base3_row(const Int8Work& work, int64_t tile) {
  constexpr int places[kDigits] = {6, 0, 2, 4, 6}, chains = 2;
  const int64_t units = work.blocks / kBase3.blocks;
  const uint8_t* codes = work.codes + tile * units * kBase3.bytes;
  const int8_t* x = work.x;
  __m512i table[4], total = Vector::zero();
  for (int i = 0; i < 4; ++i) table[i] = Vector::load(kBase3Table.of + 64 * i);
  const int64_t ahead = stream_ahead();
  for (int64_t left = units; left > 0;) {
    __m512i sum[chains][kDigits];
    for (auto& chain : sum)
      for (auto& of_digit : chain) of_digit = Vector::zero();
    int64_t count = left < kUnitsOfSum ? left : kUnitsOfSum;
    left -= count;
    for (; count > 0; --count) {
#pragma GCC unroll 4
      for (int l = 0; l < kLines; ++l, codes += kBlockBytes, x += kLineColumns) {
        _mm_prefetch(reinterpret_cast<const char*>(codes + ahead), _MM_HINT_T0);
        const Line line{Vector::load(codes)};
        const __m512i low = _mm512_permutex2var_epi8(table[0], line.bytes, table[1]);
        const __m512i high = _mm512_permutex2var_epi8(table[2], line.bytes, table[3]);
        const __m512i others = _mm512_mask_blend_epi8(_mm512_movepi8_mask(line.bytes), low, high);
#pragma GCC unroll 5
        for (int p = 0; p < kDigits; ++p) {
          const __m512i digits = Vector::both(p == 0 ? line.digits() : others, Vector::byte(static_cast<char>(3 << places[p])));
          sum[l % chains][p] = Vector::dot(sum[l % chains][p], digits, x + 4 * p);
        }
      }
    }
    for (int p = 0; p < kDigits; ++p) {
      const __m512i of_digit = Vector::add(sum[0][p], sum[1][p]);
      total = Vector::add(total, _mm512_srai_epi32(of_digit, static_cast<unsigned>(places[p])));
    }
  }
  finish_base3(work, 0, tile, total);
}

// `rows` rows of a panel times a tile.
template <int rows>
void base3_panel(const Int8Work& work, const int8_t* x, int64_t tile, int64_t row) {
  const __m512i mask = Vector::byte(3);
  const int64_t units = work.blocks / kBase3.blocks;
  const uint8_t* codes = work.codes + tile * units * kBase3.bytes;
  __m512i sum[rows];
  for (auto& of_row : sum) of_row = Vector::zero();
  for (int64_t unit = 0; unit < units; ++unit, x += kBase3.blocks * rows * kGranule) {
#pragma GCC unroll 4
    for (int l = 0; l < kLines; ++l, codes += kBlockBytes) {
      _mm_prefetch(reinterpret_cast<const char*>(codes + stream_ahead()), _MM_HINT_T0);
      Line line{Vector::load(codes)};
#pragma GCC unroll 5
      for (int p = 0; p < kDigits; ++p, line.next()) {
        const __m512i digits = Vector::both(_mm512_srli_epi16(line.digits(), 6), mask);
        const int fours = l * kDigits + p;
        const int8_t* of_rows = x + fours / 4 * rows * kGranule + fours % 4 * 4;
#pragma GCC unroll 16
        for (int m = 0; m < rows; ++m) sum[m] = Vector::dot(sum[m], digits, of_rows + m * kGranule);
      }
    }
  }
  for (int m = 0; m < rows; ++m) finish_base3(work, row + m, tile, sum[m]);
}

inline void base3_rows(const Int8Work& work, const int8_t* x, int64_t tile, int64_t row, int64_t rows) {
  switch (rows) {
    case 1: base3_panel<1>(work, x, tile, row); break;
    case 2: base3_panel<2>(work, x, tile, row); break;
    case 3: base3_panel<3>(work, x, tile, row); break;
    case 4: base3_panel<4>(work, x, tile, row); break;
    case 5: base3_panel<5>(work, x, tile, row); break;
    case 6: base3_panel<6>(work, x, tile, row); break;
    case 7: base3_panel<7>(work, x, tile, row); break;
    case 8: base3_panel<8>(work, x, tile, row); break;
    case 9: base3_panel<9>(work, x, tile, row); break;
    case 10: base3_panel<10>(work, x, tile, row); break;
    case 11: base3_panel<11>(work, x, tile, row); break;
    default: base3_panel<12>(work, x, tile, row);
  }
}

}  // namespace

namespace avx512 {

void base3_int8(const Int8Work& work) {
  for (int64_t tile = 0; tile < work.tiles; ++tile) {
    if (work.rows == 1 && has_vbmi()) {
      base3_row(work, tile);
      continue;
    }
    for (int64_t row = 0; row < work.rows; row += work.panel) {
      const int64_t rows = work.rows - row < work.panel ? work.rows - row : work.panel;
      base3_rows(work, work.x + row * work.row_bytes, tile, row, rows);
    }
  }
}

void expand_base3(const uint8_t* units, int64_t count, uint8_t* blocks) {
  constexpr int planes = 4;
  const __m512i mask = Vector::byte(static_cast<char>(0xc0)), more = Vector::byte(0x55);
  for (; count > 0; --count, units += kBase3.bytes, blocks += kBase3.blocks * kBlockBytes) {
    __m512i block[kBase3.blocks];
    for (auto& digits : block) digits = Vector::zero();
#pragma GCC unroll 4
    for (int l = 0; l < kLines; ++l) {
      Line line{Vector::load(units + l * kBlockBytes)};
#pragma GCC unroll 5
      for (int p = 0; p < kDigits; ++p, line.next()) {
        const int fours = l * kDigits + p, down = 6 - 2 * (fours % planes);
        const __m512i digits = _mm512_srli_epi16(Vector::both(line.digits(), mask), static_cast<unsigned>(down));
        block[fours / planes] = _mm512_or_si512(block[fours / planes], digits);
      }
    }
    for (int b = 0; b < kBase3.blocks; ++b) _mm512_storeu_si512(blocks + b * kBlockBytes, _mm512_sub_epi8(block[b], more));
  }
}

}  // namespace avx512
}  // namespace hybridkit
#endif
