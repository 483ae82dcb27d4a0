// Orders of the codes: sizes, checks, and from row-major to tiled.
#include <cstring>

#include "door.h"
#include "half.h"
#include "hybridkit_kernels.h"
#include "isa.h"

namespace hybridkit {
namespace {

size_t tiled_bytes(int bits, int64_t N, int64_t K) {
  return static_cast<size_t>(tiles_of(N) * blocks_of(bits, K) * kBlockBytes);
}

size_t sparse_bytes(int64_t N, int64_t K) { return static_cast<size_t>(tiles_of(N) * units_of(K) * kUnitBytes); }

int64_t sparse_row_bytes(int64_t K) { return ((K + 3) / 4 * 5 + 7) / 8; }

int64_t row_bytes(int bits, int64_t K) { return (K * bits + 7) / 8; }

// Both bits of a digit are set in the digit 3 only. Eight bytes at a time; no early exit, so that it vectorises.
bool has_digit_three(const uint8_t* codes, size_t bytes) {
  uint64_t seen = 0;
  size_t i = 0;
  for (; i + 8 <= bytes; i += 8) {
    uint64_t word;
    std::memcpy(&word, codes + i, 8);
    seen |= word & (word >> 1);
  }
  for (; i < bytes; ++i) seen |= codes[i] & (codes[i] >> 1);
  return (seen & 0x5555555555555555u) != 0;
}

const char* check(int32_t codec, const uint8_t* codes, size_t bytes, size_t expected) {
  if (const char* wrong = problem_with_codes(codes, bytes, expected)) return wrong;
  if (codec == HYBRIDKIT_TERNARY && has_digit_three(codes, bytes)) return "the codes hold an invalid ternary digit";
  return nullptr;
}

// One row of the matrix into its place in a tile, digit by digit. `column(k)` is where the source's column k goes.
template <class Column>
void tile_row(int bits, const uint8_t* source, int64_t K, uint8_t* row, Column column) {
  const int planes = 8 / bits, mask = (1 << bits) - 1;
  for (int64_t k = 0; k < K; ++k) {
    const int digit = (source[k / planes] >> (k % planes * bits)) & mask;
    const int64_t to = column(k), block = to / (4 * planes), plane = to / 4 % planes, j = to % 4;
    row[block * kBlockBytes + j] |= static_cast<uint8_t>(digit << (plane * bits));
  }
}

// The same for columns that stay where they are, four digits of each plane at a time: they are neighbours in the
// source, and the four bytes of the row in the block take one each.
template <int bits>
void tile_row_in_order(const uint8_t* source, int64_t K, uint8_t* row) {
  constexpr int planes = 8 / bits, group_bits = 4 * bits;  // a group of four digits is half a byte to four bytes
  constexpr uint32_t mask = (1u << bits) - 1, group_mask = bits == 8 ? ~0u : (1u << group_bits % 32) - 1;
  const int64_t whole = K / (4 * planes);
  for (int64_t block = 0; block < whole; ++block, source += 4, row += kBlockBytes) {
    uint32_t packed = 0, tiled = 0;
    for (int i = 0; i < 4; ++i) packed |= static_cast<uint32_t>(source[i]) << (8 * i);
    for (int p = 0; p < planes; ++p) {
      const uint32_t group = packed >> (group_bits * p) & group_mask;
      for (int j = 0; j < 4; ++j) tiled |= (group >> (bits * j) & mask) << (8 * j + bits * p);
    }
    for (int j = 0; j < 4; ++j) row[j] = static_cast<uint8_t>(tiled >> (8 * j));
  }
  tile_row(bits, source, K - whole * 4 * planes, row, [](int64_t k) { return k; });
}

// All rows of a matrix, each by `place(source, first byte of the row in its tile)`.
template <class Place>
void tile_rows(int bits, const uint8_t* codes, int64_t N, int64_t K, uint8_t* out, Place place) {
  std::memset(out, 0, tiled_bytes(bits, N, K));
  for (int64_t n = 0; n < N; ++n) {
    uint8_t* tile = out + n / kTileRows * blocks_of(bits, K) * kBlockBytes;
    place(codes + n * row_bytes(bits, K), tile + n % kTileRows * 4);
  }
}

// The five bytes of eight fields lie together in a row, four of them and one in a tile.
void tile_sparse(const uint8_t* codes, int64_t N, int64_t K, uint8_t* out) {
  const int64_t bytes = sparse_row_bytes(K), units = units_of(K);
  std::memset(out, 0, sparse_bytes(N, K));
  for (int64_t n = 0; n < N; ++n, codes += bytes) {
    uint8_t* tile = out + n / kTileRows * units * kUnitBytes;
    const int64_t row = n % kTileRows;
    for (int64_t i = 0; i < bytes; ++i) tile[i / 5 * kUnitBytes + (i % 5 < 4 ? 4 * row + i % 5 : kBlockBytes + row)] = codes[i];
  }
}

}  // namespace
}  // namespace hybridkit

using namespace hybridkit;

extern "C" {

size_t hybridkit_code_bytes(int32_t codec, int32_t layout, int64_t N, int64_t K) {
  if (problem_with_sizes(codec, N, K) != nullptr) return 0;
  if (layout == 0) return static_cast<size_t>(N * (is_sparse(codec) ? sparse_row_bytes(K) : row_bytes(bits_of(codec), K)));
  if (layout == 1 && is_sparse(codec)) return sparse_bytes(N, K);
  return layout == 1 ? tiled_bytes(bits_of(codec), N, K) : 0;
}

const char* hybridkit_check_codes(int32_t codec, int32_t layout, const uint8_t* codes, size_t bytes, int64_t N,
                                  int64_t K) {
  if (const char* wrong = problem_with_sizes(codec, N, K)) return wrong;
  if (layout != 0 && layout != 1) return "unknown layout";
  return check(codec, codes, bytes, hybridkit_code_bytes(codec, layout, N, K));
}

const char* hybridkit_tile(int32_t codec, const uint8_t* codes, int64_t N, int64_t K, uint8_t* out) {
  if (const char* wrong = problem_with_sizes(codec, N, K)) return wrong;
  if (is_sparse(codec)) {
    tile_sparse(codes, N, K, out);
    return nullptr;
  }
  const int bits = bits_of(codec);
  tile_rows(bits, codes, N, K, out, [=](const uint8_t* source, uint8_t* row) {
    switch (bits) {
      case 1: return tile_row_in_order<1>(source, K, row);
      case 2: return tile_row_in_order<2>(source, K, row);
      case 4: return tile_row_in_order<4>(source, K, row);
      default: return tile_row_in_order<8>(source, K, row);
    }
  });
  return nullptr;
}

int hybridkit_reads_tiles(int32_t codec) {
  return is_sparse(codec) ? isa().sparse_int8 != nullptr : between(codec, HYBRIDKIT_TERNARY, HYBRIDKIT_NBIT8);
}

const char* hybridkit_expand(const uint8_t* codes, int64_t N, int64_t K, uint8_t* out) {
  if (const char* wrong = problem_with_sizes(HYBRIDKIT_SPARSE34, N, K)) return wrong;
  const int64_t units = units_of(K), blocks = blocks_of(2, K);
  uint8_t last[2 * kBlockBytes];
  for (int64_t tile = 0; tile < tiles_of(N); ++tile, codes += units * kUnitBytes, out += blocks * kBlockBytes) {
    isa().expand(codes, blocks / 2, out);
    if (blocks % 2 == 0) continue;  // else the last unit has columns that ternary tiles do not
    isa().expand(codes + blocks / 2 * kUnitBytes, 1, last);
    std::memcpy(out + (blocks - 1) * kBlockBytes, last, kBlockBytes);
  }
  return nullptr;
}

size_t hybridkit_scale_bytes(int32_t scale_dtype, int64_t N, int64_t K, int64_t group_size) {
  if (problem_with_sizes(HYBRIDKIT_NBIT2, N, K) != nullptr || problem_with_group_size(2, group_size) != nullptr) return 0;
  if (!between(scale_dtype, HYBRIDKIT_F32, HYBRIDKIT_F16)) return 0;
  return static_cast<size_t>(tiles_of(N) * groups_of(K, group_size) * kTileRows * size_of(scale_dtype));
}

const char* hybridkit_tile_scales(const void* scale, int32_t dtype, int64_t N, int64_t K, int64_t group_size,
                                  int32_t scale_dtype, void* out) {
  const size_t bytes = hybridkit_scale_bytes(scale_dtype, N, K, group_size);
  if (bytes == 0 || (dtype != HYBRIDKIT_F32 && dtype != HYBRIDKIT_F16))
    return "N, K, group_size or a dtype is out of range";
  const int64_t groups = groups_of(K, group_size);
  std::memset(out, 0, bytes);
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t from = n * groups + g;
      const float value = dtype == HYBRIDKIT_F32 ? static_cast<const float*>(scale)[from]
                                                 : half::from_f16(static_cast<const uint16_t*>(scale)[from]);
      const int64_t to = (n / kTileRows * groups + g) * kTileRows + n % kTileRows;
      if (scale_dtype == HYBRIDKIT_F32) {
        static_cast<float*>(out)[to] = value;
        continue;
      }
      const uint16_t rounded = half::to_f16(value);
      if (half::bits_of(half::from_f16(rounded)) != half::bits_of(value)) return "a scale is no float16 number";
      static_cast<uint16_t*>(out)[to] = rounded;
    }
  }
  return nullptr;
}

size_t hybridkit_conv_code_bytes(int32_t codec, int64_t N, int64_t K, int64_t group) {
  if (problem_with_conv_sizes(codec, N, K, group) != nullptr) return 0;
  return static_cast<size_t>(group) * tiled_bytes(bits_of(codec), N / group, K);
}

const char* hybridkit_check_conv_codes(int32_t codec, const uint8_t* codes, size_t bytes, int64_t N, int64_t K,
                                       int64_t group) {
  if (const char* wrong = problem_with_conv_sizes(codec, N, K, group)) return wrong;
  return check(codec, codes, bytes, hybridkit_conv_code_bytes(codec, N, K, group));
}

const char* hybridkit_conv_tile(int32_t codec, const uint8_t* codes, int64_t N, int64_t K, int64_t group, int64_t taps,
                                uint8_t* out) {
  if (const char* wrong = problem_with_conv_sizes(codec, N, K, group)) return wrong;
  if (taps < 1 || K % taps != 0) return "K is not a multiple of the kernel's size";
  const int bits = bits_of(codec);
  const int64_t rows = N / group, channels = K / taps;
  for (int64_t g = 0; g < group; ++g) {
    tile_rows(bits, codes + g * rows * row_bytes(bits, K), rows, K, out + g * tiled_bytes(bits, rows, K),
              [=](const uint8_t* source, uint8_t* row) {
                tile_row(bits, source, K, row, [=](int64_t k) { return k % taps * channels + k / taps; });
              });
  }
  return nullptr;
}

}  // extern "C"
