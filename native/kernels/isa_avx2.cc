// AVX2. vpmaddubsw multiplies unsigned digits with signed activations and adds pairs, in 16 bits: 2 * 2 * 127 = 508 a
// time for digits up to 2, so that 64 of them fit. Digits are q + 1 (ternary) or (q + 1) / 2 (binary); the sum of the
// activations takes the difference back at the end.
#include <immintrin.h>

#include "activations_avx2.h"
#include "attention_avx2.h"
#include "floats_avx2.h"
#include "groups_avx2.h"
#include "isa.h"
#include "plain.h"
#include "processor.h"

namespace hybridkit {
namespace {

constexpr int kPanel = 6;          // rows of a register tile: 6 x 16 sums of 16 bits
constexpr int kGroupPanel = 4;     // of n-bit codes: 4 x 16 sums, and as many floats in the stack
constexpr int kGroupTileRows = 8;  // above them codes of one and two bits are unpacked for all rows at once
constexpr int kStreamRows = 2;
constexpr int64_t kChunk = 256;    // columns until sums of 16 bits are full: 64 products of 4

inline __m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

// sum + product, in this order: GCC would add up products first, and run out of registers over it.
inline __m256i accumulated(__m256i sum, __m256i product) {
  sum = _mm256_add_epi16(sum, product);
#if defined(__GNUC__)
  __asm__("" : "+x"(sum));
#endif
  return sum;
}

inline __m256i widened(__m256i sum16) { return _mm256_madd_epi16(sum16, _mm256_set1_epi16(1)); }

// Sums of 16 columns of digits for row `row` into y.
template <int bits>
inline void finish(const Int8Work& work, int64_t tile, int64_t row, __m256i low, __m256i high) {
  const int64_t first = tile * kTileRows, columns = work.columns - first;
  const __m256i x_sum = _mm256_set1_epi32(work.x_sum[row]);
  const __m256 x_scale = _mm256_set1_ps(work.x_scale[row]);
  float* y = work.y + row * work.stride + first;
  const __m256i sums[2] = {low, high};
  for (int h = 0; h < 2 && 8 * h < columns; ++h) {
    const __m256i digits = bits == 2 ? sums[h] : _mm256_add_epi32(sums[h], sums[h]);
    const __m256 sum = _mm256_cvtepi32_ps(_mm256_sub_epi32(digits, x_sum));
    if (columns - 8 * h >= 8) {
      const __m256 scale = _mm256_mul_ps(x_scale, _mm256_loadu_ps(work.scale + first + 8 * h));
      const __m256 bias = _mm256_loadu_ps(work.bias + first + 8 * h);
      _mm256_storeu_ps(y + 8 * h, _mm256_add_ps(_mm256_mul_ps(sum, scale), bias));
    } else {
      const __m256i mask = first_lanes(columns - 8 * h);
      const __m256 scale = _mm256_mul_ps(x_scale, _mm256_maskload_ps(work.scale + first + 8 * h, mask));
      const __m256 bias = _mm256_maskload_ps(work.bias + first + 8 * h, mask);
      _mm256_maskstore_ps(y + 8 * h, mask, _mm256_add_ps(_mm256_mul_ps(sum, scale), bias));
    }
  }
}

// One or two rows of a panel, straight from the packed stream. Digits are not shifted down but masked in place: digit
// q of a half byte counts 2^(bits q) times too much, which is taken back from the sums, every 8 blocks because 16
// bits are full then.
template <int bits, int rows>
void stream_tile(const Int8Work& work, int64_t tile, int64_t row) {
  constexpr int planes = 8 / bits, digits = 4 / bits, granules = planes / 4;
  const uint8_t* codes = work.codes + tile * work.blocks * kBlockBytes;
  const int8_t* x = work.x + row * kGranule;
  const int64_t granule = work.rows * kGranule;
  __m256i total[rows][2];
  for (auto& of_row : total) of_row[0] = of_row[1] = _mm256_setzero_si256();
  for (int64_t block = 0; block < work.blocks;) {
    __m256i sum[rows][2];
    for (auto& of_row : sum) of_row[0] = of_row[1] = _mm256_setzero_si256();
    for (int part = 0; part < 2; ++part) {
      __m256i scaled[digits][rows][2];
      for (auto& of_digit : scaled)
        for (auto& of_row : of_digit) of_row[0] = of_row[1] = _mm256_setzero_si256();
      const int64_t end = block + 8 < work.blocks ? block + 8 : work.blocks;
      for (; block < end; ++block, codes += kBlockBytes, x += granules * granule) {
        _mm_prefetch(reinterpret_cast<const char*>(codes + 1024), _MM_HINT_T0);
        for (int h = 0; h < 2; ++h) {
          const __m256i lower = load(codes + 32 * h), upper = _mm256_srli_epi16(lower, 4);
#pragma GCC unroll 4
          for (int q = 0; q < digits; ++q) {
            const __m256i mask = _mm256_set1_epi8(static_cast<char>(((1 << bits) - 1) << (bits * q)));
            const __m256i a = _mm256_and_si256(lower, mask), b = _mm256_and_si256(upper, mask);
            for (int m = 0; m < rows; ++m) {
              const int p = q, r = q + digits;
              const __m256i low = broadcast4(x + p / 4 * granule + m * kGranule + p % 4 * 4);
              const __m256i high = broadcast4(x + r / 4 * granule + m * kGranule + r % 4 * 4);
              scaled[q][m][h] = accumulated(scaled[q][m][h], _mm256_maddubs_epi16(a, low));
              scaled[q][m][h] = accumulated(scaled[q][m][h], _mm256_maddubs_epi16(b, high));
            }
          }
        }
      }
#pragma GCC unroll 4
      for (int q = 0; q < digits; ++q)
        for (int m = 0; m < rows; ++m)
          for (int h = 0; h < 2; ++h)
            sum[m][h] = _mm256_add_epi16(sum[m][h], _mm256_srai_epi16(scaled[q][m][h], bits * q));
    }
    for (int m = 0; m < rows; ++m)
      for (int h = 0; h < 2; ++h) total[m][h] = _mm256_add_epi32(total[m][h], widened(sum[m][h]));
  }
  for (int m = 0; m < rows; ++m) finish<bits>(work, tile, row + m, total[m][0], total[m][1]);
}

template <int bits>
void stream(const Int8Work& work) {
  for (int64_t tile = 0; tile < work.tiles; ++tile) {
    int64_t row = 0;
    for (; row + 2 <= work.rows; row += 2) stream_tile<bits, 2>(work, tile, row);
    if (row < work.rows) stream_tile<bits, 1>(work, tile, row);
  }
}

// `count` blocks as digits [4 columns][16 rows][4], 64 bytes for four columns.
template <int bits>
void unpack(const uint8_t* codes, int64_t count, uint8_t* digits) {
  constexpr int planes = 8 / bits;
  const __m256i mask = _mm256_set1_epi8((1 << bits) - 1);
  for (int64_t block = 0; block < count; ++block, codes += kBlockBytes) {
    const __m256i low = load(codes), high = load(codes + 32);
#pragma GCC unroll 8
    for (int p = 0; p < planes; ++p, digits += kBlockBytes) {
      _mm256_store_si256(reinterpret_cast<__m256i*>(digits), _mm256_and_si256(_mm256_srli_epi16(low, bits * p), mask));
      _mm256_store_si256(reinterpret_cast<__m256i*>(digits + 32),
                         _mm256_and_si256(_mm256_srli_epi16(high, bits * p), mask));
    }
  }
}

// sums [rows][16] (+)= `granules` granules of activations times digits
template <int rows>
void multiply(const int8_t* x, const uint8_t* digits, int64_t granules, bool add, int32_t* sums) {
  __m256i sum[rows][2];
  for (auto& of_row : sum) of_row[0] = of_row[1] = _mm256_setzero_si256();
  for (int64_t g = 0; g < granules; ++g, x += rows * kGranule) {
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p, digits += kBlockBytes) {
      const __m256i low = _mm256_load_si256(reinterpret_cast<const __m256i*>(digits));
      const __m256i high = _mm256_load_si256(reinterpret_cast<const __m256i*>(digits + 32));
      for (int m = 0; m < rows; ++m) {
        const __m256i four = broadcast4(x + m * kGranule + 4 * p);
        sum[m][0] = accumulated(sum[m][0], _mm256_maddubs_epi16(low, four));
        sum[m][1] = accumulated(sum[m][1], _mm256_maddubs_epi16(high, four));
      }
    }
  }
  for (int m = 0; m < rows; ++m) {
    for (int h = 0; h < 2; ++h) {
      __m256i* to = reinterpret_cast<__m256i*>(sums + m * kTileRows + 8 * h);
      const __m256i wide = widened(sum[m][h]);
      _mm256_store_si256(to, add ? _mm256_add_epi32(_mm256_load_si256(to), wide) : wide);
    }
  }
}

inline void multiply(int64_t rows, const int8_t* x, const uint8_t* digits, int64_t granules, bool add, int32_t* sums) {
  switch (rows) {
    case 1: return multiply<1>(x, digits, granules, add, sums);
    case 2: return multiply<2>(x, digits, granules, add, sums);
    case 3: return multiply<3>(x, digits, granules, add, sums);
    case 4: return multiply<4>(x, digits, granules, add, sums);
    case 5: return multiply<5>(x, digits, granules, add, sums);
    default: return multiply<6>(x, digits, granules, add, sums);
  }
}

// Many rows: a chunk of a tile is unpacked once and multiplied with all panels.
template <int bits>
void tiles(const Int8Work& work) {
  constexpr int64_t chunk_blocks = kChunk / block_columns(bits), block_granules = block_columns(bits) / kGranule;
  alignas(64) uint8_t digits[kChunk * kTileRows];
  alignas(64) int32_t sums[kBlockRows * kTileRows];
  const int64_t padded = work.blocks * block_columns(bits);
  for (int64_t tile = 0; tile < work.tiles; ++tile) {
    for (int64_t block = 0; block < work.blocks; block += chunk_blocks) {
      const int64_t count = work.blocks - block < chunk_blocks ? work.blocks - block : chunk_blocks;
      unpack<bits>(work.codes + (tile * work.blocks + block) * kBlockBytes, count, digits);
      for (int64_t row = 0; row < work.rows; row += work.panel) {
        const int64_t rows = work.rows - row < work.panel ? work.rows - row : work.panel;
        const int8_t* x = work.x + row * padded + block * block_granules * rows * kGranule;
        const int64_t granules = count * block_granules;
        int32_t* to = sums + row * kTileRows;
        multiply(rows, x, digits, granules, block > 0, to);
      }
    }
    for (int64_t row = 0; row < work.rows; ++row) {
      const int32_t* from = sums + row * kTileRows;
      finish<bits>(work, tile, row, load(from), load(from + 8));
    }
  }
}

void int8(const Int8Work& work) {
  const bool few = work.rows <= kStreamRows;
  if (work.bits == 2) {
    few ? stream<2>(work) : tiles<2>(work);
  } else {
    few ? stream<1>(work) : tiles<1>(work);
  }
}

// So many granules of n-bit codes fit into sums of 16 bits: 2 with 8 products of 2 * 15 * 127, 8 of two bits with 32 of
// 2 * 3 * 127, 16 of one bit with 64 of 2 * 127. Codes of 8 bits are two digits of 4, each with sums of its own.
constexpr int64_t granules_of_16_bits(int bits) { return bits == 1 ? 16 : bits == 2 ? 8 : 2; }

template <int bits, int rows>
inline void add_granules(const uint8_t* codes, const int8_t* x, int64_t granules, __m256i (&sum)[rows][2]) {
  constexpr int planes = 8 / bits, step = static_cast<int>(padding_of(bits)) / kGranule, halves = bits == 8 ? 2 : 1;
  constexpr int blocks = static_cast<int>(step_bytes(bits)) / kBlockBytes;
  __m256i sum16[halves][rows][2];
  for (auto& half : sum16)
    for (auto& of_row : half) of_row[0] = of_row[1] = _mm256_setzero_si256();
  const __m256i mask = _mm256_set1_epi8(bits == 8 ? 15 : (1 << bits) - 1);
  for (int64_t g = 0; g < granules; g += step, x += step * rows * kGranule) {
#pragma GCC unroll 4
    for (int b = 0; b < blocks; ++b, codes += kBlockBytes) {
      for (int h = 0; h < 2; ++h) {
        const __m256i packed = load(codes + 32 * h);
#pragma GCC unroll 8
        for (int p = 0; p < planes; ++p) {
          const int four_columns = b * planes + p;
#pragma GCC unroll 2
          for (int half = 0; half < halves; ++half) {
            const __m256i digits = _mm256_and_si256(_mm256_srli_epi16(packed, bits * p + 4 * half), mask);
            for (int m = 0; m < rows; ++m) {
              const int64_t granule = four_columns / 4 * rows + m;
              const __m256i four = broadcast4(x + granule * kGranule + four_columns % 4 * 4);
              sum16[half][m][h] = accumulated(sum16[half][m][h], _mm256_maddubs_epi16(digits, four));
            }
          }
        }
      }
    }
  }
  for (int m = 0; m < rows; ++m)
    for (int h = 0; h < 2; ++h) {
      sum[m][h] = _mm256_add_epi32(sum[m][h], widened(sum16[0][m][h]));
      if constexpr (halves == 2) {
        const __m256i high = _mm256_madd_epi16(sum16[halves - 1][m][h], _mm256_set1_epi16(16));
        sum[m][h] = _mm256_add_epi32(sum[m][h], high);
      }
    }
}

template <int bits, int rows>
void multiply_groups(const Int8Work& work, const int8_t* x, int64_t tile, int64_t row) {
  constexpr int64_t step = padding_of(bits) / kGranule, most = granules_of_16_bits(bits);
  const uint8_t* codes = work.codes + tile * work.blocks * kBlockBytes;
  const int64_t count = work.groups.count;
  __m256 total[rows][2];
  for (auto& of_row : total) of_row[0] = of_row[1] = _mm256_setzero_ps();
  int64_t left = work.blocks * kBlockBytes / step_bytes(bits) * step;
  for (int64_t group = 0; group < count; ++group) {
    __m256i sum[rows][2];
    for (int m = 0; m < rows; ++m) {
      const int32_t less = bits == 1 ? 0 : work.x_sum[(row + m) * count + group];  // of one bit at the end
      sum[m][0] = sum[m][1] = _mm256_set1_epi32(less);
    }
    const int64_t granules = work.groups.granules < left ? work.groups.granules : left;
    left -= granules;
    for (int64_t g = 0; g < granules; g += most) {
      const int64_t some = granules - g < most ? granules - g : most;
      add_granules<bits, rows>(codes, x, some, sum);
      codes += some / step * step_bytes(bits);
      x += some * rows * kGranule;
    }
    if constexpr (bits == 1) {  // digits count twice, and one less
      for (int m = 0; m < rows; ++m)
        for (int h = 0; h < 2; ++h) {
          const __m256i less = _mm256_set1_epi32(work.x_sum[(row + m) * count + group]);
          sum[m][h] = _mm256_add_epi32(_mm256_add_epi32(sum[m][h], sum[m][h]), less);
        }
    }
    for (int h = 0; h < 2; ++h) {
      const __m256 scale = group_scale(work.groups, tile, group, h);
      for (int m = 0; m < rows; ++m) {
        const __m256 both = _mm256_mul_ps(_mm256_set1_ps(work.x_scale[(row + m) * count + group]), scale);
        total[m][h] = _mm256_add_ps(total[m][h], _mm256_mul_ps(_mm256_cvtepi32_ps(sum[m][h]), both));
      }
    }
  }
  for (int m = 0; m < rows; ++m)
    for (int h = 0; h < 2; ++h) write_half(work, row + m, tile, h, total[m][h]);
}

// Sums of a group, [rows][16], made floats and added to what the groups before gave.
template <int bits>
inline void end_group(const Int8Work& work, int64_t tile, int64_t group, const int32_t* sums, float* totals) {
  const bool first = group == 0, last = group + 1 == work.groups.count;
  const __m256 scale[2] = {group_scale(work.groups, tile, group, 0), group_scale(work.groups, tile, group, 1)};
  const float* x_scale = work.x_scale + group;
  const int32_t* x_sum = work.x_sum + group;
  for (int64_t row = 0; row < work.rows; ++row, x_scale += work.groups.count, x_sum += work.groups.count) {
    const __m256i less = _mm256_set1_epi32(*x_sum);
    const __m256 factor = _mm256_set1_ps(*x_scale);
    for (int h = 0; h < 2; ++h, sums += 8, totals += 8) {
      const __m256i digits = _mm256_load_si256(reinterpret_cast<const __m256i*>(sums));
      const __m256i sum = _mm256_add_epi32(bits == 1 ? _mm256_add_epi32(digits, digits) : digits, less);
      const __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(sum), _mm256_mul_ps(factor, scale[h]));
      const __m256 total = _mm256_add_ps(first ? _mm256_setzero_ps() : _mm256_load_ps(totals), product);
      last ? write_half(work, row, tile, h, total) : _mm256_store_ps(totals, total);
    }
  }
}

// Many rows: what fits into sums of 16 bits of a group is unpacked once and multiplied with all panels.
template <int bits>
void group_tiles(const Int8Work& work) {
  constexpr int64_t most = granules_of_16_bits(bits), step = padding_of(bits) / kGranule;
  alignas(64) uint8_t digits[most * kGranule * kTileRows];
  alignas(64) int32_t sums[kBlockRows * kTileRows];
  alignas(64) float totals[kBlockRows * kTileRows];
  const int64_t padded = work.blocks * block_columns(bits), granules = padded / kGranule;
  for (int64_t tile = 0; tile < work.tiles; ++tile) {
    const uint8_t* codes = work.codes + tile * work.blocks * kBlockBytes;
    for (int64_t group = 0; group < work.groups.count; ++group) {
      const int64_t begin = group * work.groups.granules;
      const int64_t end = begin + work.groups.granules < granules ? begin + work.groups.granules : granules;
      for (int64_t first = begin; first < end; first += most) {
        const int64_t count = end - first < most ? end - first : most;
        const int64_t bytes = count / step * step_bytes(bits);
        unpack<bits>(codes, bytes / kBlockBytes, digits);
        codes += bytes;
        for (int64_t row = 0; row < work.rows; row += work.panel) {
          const int64_t rows = work.rows - row < work.panel ? work.rows - row : work.panel;
          const int8_t* x = work.x + row * padded + first * rows * kGranule;
          multiply(rows, x, digits, count, first > begin, sums + row * kTileRows);
        }
      }
      end_group<bits>(work, tile, group, sums, totals);
    }
  }
}

template <int bits>
void group_products(const Int8Work& work) {
  if constexpr (bits <= 2) {  // of more bits so few fit into 16 that it takes longer
    if (work.rows > kGroupTileRows) return group_tiles<bits>(work);
  }
  const int64_t padded = work.blocks * block_columns(bits);
  for (int64_t tile = 0; tile < work.tiles; ++tile) {
    for (int64_t row = 0; row < work.rows; row += work.panel) {
      const int8_t* x = work.x + row * padded;
      switch (work.rows - row < work.panel ? work.rows - row : work.panel) {
        case 1: multiply_groups<bits, 1>(work, x, tile, row); break;
        case 2: multiply_groups<bits, 2>(work, x, tile, row); break;
        case 3: multiply_groups<bits, 3>(work, x, tile, row); break;
        default: multiply_groups<bits, 4>(work, x, tile, row);
      }
    }
  }
}

void group_int8(const Int8Work& work) {
  with_bits(work, [&](auto bits) { group_products<bits>(work); });
}

void attend(const AttentionWork& work) { attend_with<Floats8>(work); }

}  // namespace

const Isa kAvx2 = {"avx2", has_avx2, kPanel, kGroupPanel, kStreamRows, kFloatStreamRows, 0, 0, int8, floats,
                   group_int8, group_floats, magnitude, quantize, place, transpose, depthwise,
                   kSparseExpanded, kBase3Expanded, attend};

}  // namespace hybridkit
