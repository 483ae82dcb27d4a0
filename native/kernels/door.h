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

constexpr bool is_nbit(int32_t codec) { return between(codec, HYBRIDKIT_NBIT1, HYBRIDKIT_NBIT8); }

// Ternary ones in fewer than two bits.
constexpr bool is_dense(int32_t codec) { return between(codec, HYBRIDKIT_SPARSE34, HYBRIDKIT_BASE3); }

// Of a codec that is known, as kernels read it: those of dense codes when they are expanded.
constexpr int bits_of(int32_t codec) {
  return is_nbit(codec) ? 1 << (codec - HYBRIDKIT_NBIT1) : codec == HYBRIDKIT_BINARY ? 1 : 2;
}

// What is wrong with the sizes of a packed matrix, or NULL.
inline const char* problem_with_sizes(int32_t codec, int64_t N, int64_t K) {
  if (!between(codec, HYBRIDKIT_TERNARY, HYBRIDKIT_BASE3)) return "unknown codec";
  if (!between(N, 1, HYBRIDKIT_MAX_SIZE)) return "N must be from 1 to 2147483647";
  if (!between(K, 1, HYBRIDKIT_MAX_K)) return "K must be from 1 to 4194304";
  return nullptr;
}

// The same for a convolution, whose output channels are cut into `group` groups.
inline const char* problem_with_conv_sizes(int32_t codec, int64_t N, int64_t K, int64_t group) {
  if (is_nbit(codec) || is_dense(codec)) return "convolutions take ternary and binary codes";
  if (const char* wrong = problem_with_sizes(codec, N, K)) return wrong;
  return group < 1 || N % group != 0 ? "output channels are not a multiple of group" : nullptr;
}

// What is wrong with the columns that share a scale, or NULL.
inline const char* problem_with_group_size(int bits, int64_t group_size) {
  const int64_t step = bits == 1 ? 2 * HYBRIDKIT_GROUP_STEP : HYBRIDKIT_GROUP_STEP;
  if (between(group_size, 1, HYBRIDKIT_MAX_GROUP) && group_size % step == 0) return nullptr;
  return bits == 1 ? "group_size must be a multiple of 32 from 32 to 65536"
                   : "group_size must be a multiple of 16 from 16 to 65536";
}

// What is wrong with the sizes and groups of a matrix, or NULL.
inline const char* problem_with_shape(const hybridkit_matrix& matrix) {
  if (const char* wrong = problem_with_sizes(matrix.codec, matrix.N, matrix.K)) return wrong;
  if (is_nbit(matrix.codec)) return problem_with_group_size(bits_of(matrix.codec), matrix.group_size);
  return matrix.group_size == 0 ? nullptr : "only n-bit codes have groups";
}

// What is wrong with codes of `bytes` bytes where `expected` are needed, apart from their digits, or NULL.
inline const char* problem_with_codes(const uint8_t* codes, size_t bytes, size_t expected) {
  if (bytes != expected) return "the codes have another size than the layer's shape needs";
  return codes == nullptr ? "the codes are a null pointer" : nullptr;
}

// What is wrong with a matrix whose sizes are right and whose codes need `expected` bytes, or with the types, or NULL.
inline const char* problem_with_matrix(const hybridkit_matrix& matrix, size_t expected, int32_t dtype) {
  if (const char* wrong = problem_with_codes(matrix.codes, matrix.code_bytes, expected)) return wrong;
  const bool nbit = is_nbit(matrix.codec);
  if ((nbit ? matrix.group_scale : matrix.scale) == nullptr || matrix.bias == nullptr)
    return "scale or bias is a null pointer";
  if (nbit && !between(matrix.scale_dtype, HYBRIDKIT_F32, HYBRIDKIT_F16)) return "unknown scale_dtype";
  if (!between(matrix.activations, HYBRIDKIT_INT8, nbit ? HYBRIDKIT_INT8_BLOCKS : HYBRIDKIT_FLOAT))
    return "unknown activations";
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
