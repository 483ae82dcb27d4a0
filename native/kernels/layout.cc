// Orders of the codes: sizes, checks, and from row-major to tiled.
#include <cstring>

#include "dense.h"
#include "door.h"
#include "half.h"
#include "hybridkit_kernels.h"
#include "isa.h"
#include "processor.h"

namespace hybridkit {
namespace {

// Base 3 saves bytes and costs instructions: weights of smaller matrices tend to be in a cache, where that is no bargain.
constexpr int64_t kLeastBase3 = int64_t{1} << 21;

size_t tiled_bytes(int bits, int64_t N, int64_t K) {
  return static_cast<size_t>(tiles_of(N) * blocks_of(bits, K) * kBlockBytes);
}

size_t dense_bytes(int32_t codec, int64_t N, int64_t K) {
  return static_cast<size_t>(tiles_of(N) * unit_of(codec).of(K) * unit_of(codec).bytes);
}

int64_t row_bytes(int bits, int64_t K) { return (K * bits + 7) / 8; }

int64_t dense_row_bytes(int32_t codec, int64_t K) {
  return codec == HYBRIDKIT_BASE3 ? (K + 4) / 5 : ((K + 3) / 4 * 5 + 7) / 8;
}

// A byte of layout 1 by that of layout 0, whose digits are in the other order, and which of those bytes there are.
struct Base3Bytes {
  uint8_t of[243] = {};
  bool valid[256] = {};
  constexpr Base3Bytes() {
    for (int row_major = 0; row_major < 243; ++row_major) {
      int turned = 0;
      for (int digit = 0, left = row_major; digit < 5; ++digit, left /= 3) turned = 3 * turned + left % 3;
      of[row_major] = static_cast<uint8_t>((256 * turned + 242) / 243);
      valid[of[row_major]] = true;
    }
  }
};
constexpr Base3Bytes kBase3Bytes;

bool is_base3(int32_t layout, const uint8_t* codes, size_t bytes) {
  bool valid = true;
  for (size_t i = 0; i < bytes; ++i) valid &= layout == 0 ? codes[i] < 243 : kBase3Bytes.valid[codes[i]];
  return valid;
}

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

const char* check(int32_t codec, int32_t layout, const uint8_t* codes, size_t bytes, size_t expected) {
  if (const char* wrong = problem_with_codes(codes, bytes, expected)) return wrong;
  if (codec == HYBRIDKIT_TERNARY && has_digit_three(codes, bytes)) return "the codes hold an invalid ternary digit";
  if (codec == HYBRIDKIT_BASE3 && !is_base3(layout, codes, bytes)) return "the codes hold a byte that is none of base 3";
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
  const int64_t bytes = dense_row_bytes(HYBRIDKIT_SPARSE34, K), units = kSparse.of(K);
  std::memset(out, 0, dense_bytes(HYBRIDKIT_SPARSE34, N, K));
  for (int64_t n = 0; n < N; ++n, codes += bytes) {
    uint8_t* tile = out + n / kTileRows * units * kSparse.bytes;
    const int64_t row = n % kTileRows;
    for (int64_t i = 0; i < bytes; ++i) tile[i / 5 * kSparse.bytes + (i % 5 < 4 ? 4 * row + i % 5 : kBlockBytes + row)] = codes[i];
  }
}

// 20 digits of a row are four bytes in both orders: one of each four neighbours goes into each byte of a tile.
void tile_base3(const uint8_t* codes, int64_t N, int64_t K, uint8_t* out) {
  const int64_t bytes = dense_row_bytes(HYBRIDKIT_BASE3, K), units = kBase3.of(K);
  std::memset(out, 0, dense_bytes(HYBRIDKIT_BASE3, N, K));
  for (int64_t n = 0; n < N; ++n, codes += bytes) {
    uint8_t* line = out + n / kTileRows * units * kBase3.bytes + n % kTileRows * 4;
    for (int64_t first = 0; first < bytes; first += 4, line += kBlockBytes) {
      int places[4] = {}, place = 1, column = 0;
      for (int64_t i = first; i < bytes && i < first + 4; ++i) {
        for (int digit = 0, left = codes[i]; digit < 5; ++digit, left /= 3) {
          places[column % 4] += left % 3 * place;
          if (++column % 4 == 0) place *= 3;
        }
      }
      for (int j = 0; j < 4; ++j) line[j] = kBase3Bytes.of[places[j]];
    }
  }
}

}  // namespace
}  // namespace hybridkit

using namespace hybridkit;

extern "C" {

size_t hybridkit_code_bytes(int32_t codec, int32_t layout, int64_t N, int64_t K) {
  if (problem_with_sizes(codec, N, K) != nullptr) return 0;
  if (layout == 0) return static_cast<size_t>(N * (is_dense(codec) ? dense_row_bytes(codec, K) : row_bytes(bits_of(codec), K)));
  if (layout == 1 && is_dense(codec)) return dense_bytes(codec, N, K);
  return layout == 1 ? tiled_bytes(bits_of(codec), N, K) : 0;
}

const char* hybridkit_check_codes(int32_t codec, int32_t layout, const uint8_t* codes, size_t bytes, int64_t N,
                                  int64_t K) {
  if (const char* wrong = problem_with_sizes(codec, N, K)) return wrong;
  if (layout != 0 && layout != 1) return "unknown layout";
  return check(codec, layout, codes, bytes, hybridkit_code_bytes(codec, layout, N, K));
}

const char* hybridkit_tile(int32_t codec, const uint8_t* codes, int64_t N, int64_t K, uint8_t* out) {
  if (const char* wrong = problem_with_sizes(codec, N, K)) return wrong;
  if (is_dense(codec)) {
    codec == HYBRIDKIT_BASE3 ? tile_base3(codes, N, K, out) : tile_sparse(codes, N, K, out);
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

int hybridkit_reads_tiles(int32_t codec, int64_t N, int64_t K) {
  if (problem_with_sizes(codec, N, K) != nullptr) return 0;
  if (!is_dense(codec)) return 1;
  if (dense_kernels_of(isa(), codec).int8 == nullptr) return 0;
  return codec != HYBRIDKIT_BASE3 || (has_vbmi() && N * K >= kLeastBase3);
}

const char* hybridkit_expand(int32_t codec, const uint8_t* codes, int64_t N, int64_t K, uint8_t* out) {
  if (const char* wrong = problem_with_sizes(codec, N, K)) return wrong;
  if (!is_dense(codec)) return "only codes in fewer than two bits are expanded";
  const Unit unit = unit_of(codec);
  const auto expand = dense_kernels_of(isa(), codec).expand;
  const int64_t blocks = blocks_of(2, K), whole = blocks / unit.blocks, left = blocks % unit.blocks;
  for (int64_t tile = 0; tile < tiles_of(N); ++tile, codes += unit.of(K) * unit.bytes, out += blocks * kBlockBytes) {
    expand(codes, whole, out);
    if (left == 0) continue;  // else the last unit has columns that tiles of two-bit codes do not
    uint8_t last[kBase3.blocks * kBlockBytes];
    expand(codes + whole * unit.bytes, 1, last);
    std::memcpy(out + whole * unit.blocks * kBlockBytes, last, static_cast<size_t>(left) * kBlockBytes);
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
  return check(codec, 2, codes, bytes, hybridkit_conv_code_bytes(codec, N, K, group));
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
