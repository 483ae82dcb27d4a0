// Orders of the codes: sizes, checks, and from row-major to tiled.
#include <cstring>

#include "hybridkit_kernels.h"
#include "isa.h"

namespace hybridkit {
namespace {

bool valid(int32_t codec, int64_t N, int64_t K) {
  constexpr int64_t most_rows = int64_t{1} << 40;
  return (codec == HYBRIDKIT_TERNARY || codec == HYBRIDKIT_BINARY) && N >= 1 && N <= most_rows && K >= 1 &&
         K <= HYBRIDKIT_MAX_K;
}

int bits_of(int32_t codec) { return codec == HYBRIDKIT_TERNARY ? 2 : 1; }

size_t tiled_bytes(int bits, int64_t N, int64_t K) {
  return static_cast<size_t>(tiles_of(N) * blocks_of(bits, K) * kBlockBytes);
}

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
  if (bytes != expected) return "the codes have another size than the layer's shape needs";
  if (codec == HYBRIDKIT_TERNARY && has_digit_three(codes, bytes)) return "the codes hold an invalid ternary digit";
  return nullptr;
}

// One row of the matrix into its place in a tile. `column(k)` is where the source's column k goes.
template <class Column>
void tile_row(int bits, const uint8_t* source, int64_t K, int row, uint8_t* tile, Column column) {
  const int planes = 8 / bits, mask = (1 << bits) - 1;
  for (int64_t k = 0; k < K; ++k) {
    const int digit = (source[k / planes] >> (k % planes * bits)) & mask;
    const int64_t to = column(k), block = to / (4 * planes), plane = to / 4 % planes, j = to % 4;
    tile[block * kBlockBytes + row * 4 + j] |= static_cast<uint8_t>(digit << (plane * bits));
  }
}

template <class Column>
void tile_rows(int bits, const uint8_t* codes, int64_t N, int64_t K, uint8_t* out, Column column) {
  std::memset(out, 0, tiled_bytes(bits, N, K));
  for (int64_t n = 0; n < N; ++n) {
    uint8_t* tile = out + n / kTileRows * blocks_of(bits, K) * kBlockBytes;
    tile_row(bits, codes + n * row_bytes(bits, K), K, static_cast<int>(n % kTileRows), tile, column);
  }
}

}  // namespace
}  // namespace hybridkit

using namespace hybridkit;

extern "C" {

size_t hybridkit_code_bytes(int32_t codec, int32_t layout, int64_t N, int64_t K) {
  if (!valid(codec, N, K)) return 0;
  if (layout == 0) return static_cast<size_t>(N * row_bytes(bits_of(codec), K));
  return layout == 1 ? tiled_bytes(bits_of(codec), N, K) : 0;
}

const char* hybridkit_check_codes(int32_t codec, int32_t layout, const uint8_t* codes, size_t bytes, int64_t N,
                                  int64_t K) {
  const size_t expected = hybridkit_code_bytes(codec, layout, N, K);
  if (expected == 0) return "codec, layout, N or K is out of range";
  return check(codec, codes, bytes, expected);
}

void hybridkit_tile(int32_t codec, const uint8_t* codes, int64_t N, int64_t K, uint8_t* out) {
  tile_rows(bits_of(codec), codes, N, K, out, [](int64_t k) { return k; });
}

size_t hybridkit_conv_code_bytes(int32_t codec, int64_t N, int64_t K, int64_t group) {
  if (!valid(codec, N, K) || group < 1 || N % group != 0) return 0;
  return static_cast<size_t>(group) * tiled_bytes(bits_of(codec), N / group, K);
}

const char* hybridkit_check_conv_codes(int32_t codec, const uint8_t* codes, size_t bytes, int64_t N, int64_t K,
                                       int64_t group) {
  const size_t expected = hybridkit_conv_code_bytes(codec, N, K, group);
  if (expected == 0) return "codec, group, N or K is out of range";
  return check(codec, codes, bytes, expected);
}

void hybridkit_conv_tile(int32_t codec, const uint8_t* codes, int64_t N, int64_t K, int64_t group, int64_t taps,
                         uint8_t* out) {
  const int bits = bits_of(codec);
  const int64_t rows = N / group, channels = K / taps;
  for (int64_t g = 0; g < group; ++g) {
    tile_rows(bits, codes + g * rows * row_bytes(bits, K), rows, K, out + g * tiled_bytes(bits, rows, K),
              [=](int64_t k) { return k % taps * channels + k / taps; });
  }
}

}  // extern "C"
