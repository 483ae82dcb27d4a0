// What the kernels must compute, written naively: the arithmetic of hybridkit_kernels.h on one number at a time.
#ifndef HYBRIDKIT_REFERENCE_H
#define HYBRIDKIT_REFERENCE_H

#include <cstdint>
#include <string>
#include <vector>

#include "harness.h"
#include "hybridkit_kernels.h"

namespace reference {

// A quantised matrix [N, K]: its codes as numbers, a bias per row, and a scale per row, or per group of a row.
struct Layer {
  int32_t codec;
  int64_t N, K;
  std::vector<int8_t> codes;
  std::vector<float> scale, bias;
  int64_t group_size = 0;  // of n-bit codes

  bool grouped() const { return group_size > 0; }
  int64_t groups() const { return grouped() ? (K + group_size - 1) / group_size : 1; }
  int8_t code(int64_t n, int64_t k) const { return codes[n * K + k]; }
  bool sparse() const { return codec == HYBRIDKIT_SPARSE34; }
  bool base3() const { return codec == HYBRIDKIT_BASE3; }
};

Layer random_layer(test::Random& random, int32_t codec, int64_t N, int64_t K, int64_t group_size = 0);

// Scales in the order of group_scale, straight from its definition; float16 rounds them in the layer, too.
std::vector<uint8_t> tiled_scales(Layer& layer, int32_t dtype);

// Layout 0, straight from its definition.
std::vector<uint8_t> row_major(const Layer& layer);
// Layout 1 (one group, one tap) and layout 2: columns in the order (tap, channel), groups tiled on their own.
std::vector<uint8_t> tiled(const Layer& layer, int64_t group = 1, int64_t taps = 1);

// Numbers of a dtype as they lie in memory, and their values.
struct Array {
  int32_t dtype;
  std::vector<uint8_t> bytes;
  std::vector<float> values;
};
Array array_of(int32_t dtype, const std::vector<float>& values);  // rounds
std::vector<float> values_of(int32_t dtype, const void* bytes, int64_t count);

// What one output may be. int8: `value` alone, bit for bit (any NaN for NaN). float: `value` +- `slack`.
struct Expected {
  double value, slack;
};

// Outputs [M, N] of x [M, K].
std::vector<Expected> matmul(const Layer& layer, int32_t activations, const std::vector<float>& x, int64_t M);

// Outputs [batch, N, out...] of x [batch, C, size...].
std::vector<Expected> conv(const Layer& layer, const hybridkit_geometry& geometry, int32_t activations,
                           const std::vector<float>& x, int64_t batch);

// Outputs [batch, tokens, heads, head_size] of attention, from its definition. `past`: tokens of each sample.
std::vector<Expected> attention(const hybridkit_attention& a, const std::vector<int64_t>& past);

// How many elements of y are not what is expected; `first` says which is the first.
int64_t mismatches(const std::vector<Expected>& expected, int32_t activations, int32_t dtype, const uint8_t* y,
                   std::string* first);

}  // namespace reference
#endif
