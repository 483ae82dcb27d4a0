// Rows of tiled codes as numbers. A few rows a call, each a small part of the matrix: nothing here is worth an
// instruction set of its own.
#include <algorithm>

#include "door.h"
#include "hybridkit_kernels.h"
#include "isa.h"

namespace hybridkit {
namespace {

// Of a digit: the code is step * digit + offset.
struct Values {
  float step, offset;
};

Values values_of(int32_t codec) {
  if (codec == HYBRIDKIT_TERNARY) return {1, -1};
  if (bits_of(codec) == 1) return {2, -1};
  return {1, -static_cast<float>(1 << (bits_of(codec) - 1))};
}

// `row`: the first byte of a row in its tile.
void unpack_row(int bits, Values values, const uint8_t* row, int64_t K, float* y) {
  const int mask = (1 << bits) - 1;
  for (int64_t first = 0; first < K; row += kBlockBytes) {
    for (int shift = 0; shift < 8 && first < K; shift += bits, first += 4) {
      const int64_t columns = std::min<int64_t>(4, K - first);
      for (int64_t j = 0; j < columns; ++j)
        y[first + j] = values.step * static_cast<float>(row[j] >> shift & mask) + values.offset;
    }
  }
}

}  // namespace
}  // namespace hybridkit

using namespace hybridkit;

extern "C" const char* hybridkit_gather(int32_t codec, const uint8_t* codes, size_t code_bytes, int64_t N, int64_t K,
                                        const int64_t* rows, int64_t count, float* y) {
  if (is_dense(codec)) return "rows of codes in fewer than two bits cannot be gathered";
  if (const char* wrong = problem_with_sizes(codec, N, K)) return wrong;
  if (const char* wrong = problem_with_codes(codes, code_bytes, hybridkit_code_bytes(codec, 1, N, K))) return wrong;
  if (count < 0) return "a negative number of rows";
  if (const char* wrong = problem_with_tensor(y, {count, K})) return wrong;
  if (rows == nullptr && count > 0) return "the numbers of the rows are a null pointer";
  for (int64_t i = 0; i < count; ++i) {
    if (!between(rows[i], -N, N - 1)) return "the number of a row is out of range";
  }
  const int bits = bits_of(codec);
  const int64_t tile_bytes = blocks_of(bits, K) * kBlockBytes;
  for (int64_t i = 0; i < count; ++i, y += K) {
    const int64_t n = rows[i] < 0 ? rows[i] + N : rows[i];
    unpack_row(bits, values_of(codec), codes + n / kTileRows * tile_bytes + n % kTileRows * 4, K, y);
  }
  return nullptr;
}
