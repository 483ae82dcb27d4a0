// The door: what a caller hands to the C interface (sizes, attributes, pointers) is checked here, once, before anything
// is allocated, looped over or pointed to. Behind it no product of sizes overflows.
#ifndef HYBRIDKIT_DOOR_H
#define HYBRIDKIT_DOOR_H

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "hybridkit_kernels.h"

namespace hybridkit {

constexpr int64_t kMostNumbers = int64_t{1} << 60;  // of a tensor: their bytes and sums of some still fit into 64 bits

constexpr bool between(int64_t value, int64_t least, int64_t most) { return value >= least && value <= most; }

// The product of factors none of which is negative, or -1 where it is more than `most`.
inline int64_t product(std::initializer_list<int64_t> factors, int64_t most) {
  int64_t result = 1;
  for (const int64_t factor : factors) {
    if (factor == 0) return 0;
  }
  for (const int64_t factor : factors) {
    if (__builtin_mul_overflow(result, factor, &result) || result > most) return -1;
  }
  return result;
}

// What is wrong with the sizes of a packed matrix whose rows are cut into `group` groups, or NULL.
inline const char* problem_with_sizes(int32_t codec, int64_t N, int64_t K, int64_t group = 1) {
  if (codec != HYBRIDKIT_TERNARY && codec != HYBRIDKIT_BINARY) return "unknown codec";
  if (!between(N, 1, HYBRIDKIT_MAX_SIZE)) return "N must be from 1 to 2147483647";
  if (!between(K, 1, HYBRIDKIT_MAX_K)) return "K must be from 1 to 4194304";
  if (group < 1 || N % group != 0) return "output channels are not a multiple of group";
  return nullptr;
}

// What is wrong with codes of `bytes` bytes where `expected` are needed, apart from their digits, or NULL.
inline const char* problem_with_codes(const uint8_t* codes, size_t bytes, size_t expected) {
  if (bytes != expected) return "the codes have another size than the layer's shape needs";
  return codes == nullptr ? "the codes are a null pointer" : nullptr;
}

// What is wrong with a matrix whose sizes are right and whose codes need `expected` bytes, or with the types, or NULL.
inline const char* problem_with_matrix(const hybridkit_matrix& matrix, size_t expected, int32_t dtype) {
  if (const char* wrong = problem_with_codes(matrix.codes, matrix.code_bytes, expected)) return wrong;
  if (matrix.scale == nullptr || matrix.bias == nullptr) return "scale or bias is a null pointer";
  if (matrix.activations != HYBRIDKIT_INT8 && matrix.activations != HYBRIDKIT_FLOAT) return "unknown activations";
  return between(dtype, HYBRIDKIT_F32, HYBRIDKIT_BF16) ? nullptr : "unknown dtype";
}

// What is wrong with a tensor of a shape whose sizes are not negative, or NULL.
inline const char* problem_with_tensor(const void* tensor, std::initializer_list<int64_t> shape) {
  const int64_t numbers = product(shape, kMostNumbers);
  if (numbers < 0) return "x or y is larger than any memory";
  return tensor == nullptr && numbers > 0 ? "x or y is a null pointer" : nullptr;
}

}  // namespace hybridkit
#endif
