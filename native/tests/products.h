// What the tests of both products share: inputs worth trying, ways to run in parallel, every instruction set.
#ifndef HYBRIDKIT_PRODUCTS_H
#define HYBRIDKIT_PRODUCTS_H

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "harness.h"
#include "hybridkit_kernels.h"
#include "reference.h"

namespace products {

constexpr size_t kGuard = 64;
constexpr uint8_t kUntouched = 0xa5;

// Calls run(name) under every instruction set that this processor has.
template <class Run>
void for_every_isa(const Run& run) {
  const std::string before = hybridkit_isa();
  for (int i = 0; const char* name = hybridkit_isa_available(i); ++i) {
    CHECK(hybridkit_set_isa(name) == nullptr, "%s", name);
    run(name);
  }
  hybridkit_set_isa(before.c_str());
}

// A host whose tasks run last to first.
inline const hybridkit_parallel* backwards() {
  static const hybridkit_parallel host = {
      [](void*, void (*task)(void*, size_t), void* state, size_t count) {
        while (count > 0) task(state, --count);
      },
      nullptr};
  return &host;
}

inline const hybridkit_parallel* random_host(test::Random& random) {
  return random.one_of<const hybridkit_parallel*>({nullptr, backwards(), hybridkit_thread_pool(3)});
}

// Activations of one of several kinds. Halves of s_x land between two codes and show how the rounding goes.
inline std::vector<float> random_activations(test::Random& random, int64_t count, int64_t row) {
  const int64_t kind = random.between(0, 4);
  std::vector<float> x(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    if (kind == 0) x[i] = static_cast<float>(random.between(-254, 254)) / 2;
    if (kind == 1) x[i] = std::ldexp(random.real(1.0f), static_cast<int>(random.between(-30, 10)));
    if (kind == 2) x[i] = random.chance(90) ? 0.0f : random.real(3.0f);
    if (kind >= 3) x[i] = random.real(1.0f);
    if (kind == 0 && i % row == 0) x[i] = 127.0f;  // then s_x is 1
  }
  return x;
}

inline std::vector<uint8_t> shifted(const std::vector<uint8_t>& bytes, size_t offset) {
  std::vector<uint8_t> copy(offset + bytes.size());
  if (!bytes.empty()) std::memcpy(copy.data() + offset, bytes.data(), bytes.size());
  return copy;
}

// A place for `count` outputs, with a guard behind it that nobody may write to.
struct Output {
  Output(int32_t dtype, int64_t count)
      : bytes(static_cast<size_t>(count) * (dtype == HYBRIDKIT_F32 ? 4 : 2)), memory(bytes + kGuard, kUntouched) {}
  bool guard_holds() const {
    for (size_t i = bytes; i < memory.size(); ++i) {
      if (memory[i] != kUntouched) return false;
    }
    return true;
  }
  size_t bytes;
  std::vector<uint8_t> memory;
};

// Of tiles, by the header's definition of layouts 1 and 2.
inline size_t tiled_bytes(int32_t codec, int64_t N, int64_t K, int64_t group) {
  if (codec == HYBRIDKIT_SPARSE34) return static_cast<size_t>((N + 15) / 16 * ((K + 31) / 32) * 80);
  if (codec == HYBRIDKIT_BASE3) return static_cast<size_t>((N + 15) / 16 * ((K + 79) / 80) * 256);
  constexpr int64_t bytes_of_16[] = {4, 2, 2, 4, 8, 16};  // columns of a row, by codec
  const int64_t rows = N / group, columns = bytes_of_16[codec] == 2 ? 32 : 16;
  return static_cast<size_t>(group * ((rows + 15) / 16) * 16 * ((K + columns - 1) / columns) * (columns / 16) *
                             bytes_of_16[codec]);
}

inline hybridkit_matrix matrix_of(const reference::Layer& layer, int32_t activations, const uint8_t* codes,
                                  int64_t group = 1) {
  return {layer.codec, activations, layer.N, layer.K, codes, layer.scale.data(), layer.bias.data(),
          tiled_bytes(layer.codec, layer.N, layer.K, group), 0, nullptr, 0};
}

inline hybridkit_matrix matrix_of(const reference::Layer& layer, int32_t activations, const uint8_t* codes,
                                  const uint8_t* group_scale, int32_t scale_dtype) {
  return {layer.codec,
          activations,
          layer.N,
          layer.K,
          codes,
          nullptr,
          layer.bias.data(),
          tiled_bytes(layer.codec, layer.N, layer.K, 1),
          layer.group_size,
          group_scale,
          scale_dtype};
}

inline const char* name_of(int32_t codec, int32_t activations) {
  if (codec == HYBRIDKIT_SPARSE34) return activations == HYBRIDKIT_INT8 ? "3:4-sparse int8" : "3:4-sparse float";
  if (codec == HYBRIDKIT_BASE3) return activations == HYBRIDKIT_INT8 ? "base 3 int8" : "base 3 float";
  if (codec >= HYBRIDKIT_NBIT1) {
    return activations == HYBRIDKIT_FLOAT ? "n-bit float" : activations == HYBRIDKIT_INT8 ? "n-bit int8" : "n-bit blocks";
  }
  if (codec == HYBRIDKIT_TERNARY) return activations == HYBRIDKIT_INT8 ? "ternary int8" : "ternary float";
  return activations == HYBRIDKIT_INT8 ? "binary int8" : "binary float";
}

}  // namespace products
#endif
