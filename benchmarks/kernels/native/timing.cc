// The kernels alone, called through their C interface: no runtime around them, and a loop that costs nothing.
#include <chrono>
#include <cstdint>

#include "hybridkit_kernels.h"

using Matmul = const char* (*)(const hybridkit_matrix*, int32_t, const void*, int64_t, void*,
                               const hybridkit_parallel*);

extern "C" {

// Nanoseconds of each of `calls` calls; `matrices` take turns, from number `first` on. NULL, or the kernel's message.
const char* bench_matmul(Matmul matmul, const hybridkit_matrix* matrices, int64_t count, int64_t first,
                         const float* x, int64_t M, float* y, const hybridkit_parallel* parallel, int64_t calls,
                         double* nanoseconds) {
  for (int64_t i = 0; i < calls; ++i) {
    const auto start = std::chrono::steady_clock::now();
    const char* error = matmul(&matrices[(first + i) % count], HYBRIDKIT_F32, x, M, y, parallel);
    nanoseconds[i] = std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - start).count();
    if (error != nullptr) return error;
  }
  return nullptr;
}

// Valid codes for `bytes` bytes: `valid` [count] are the bytes to choose from (xorshift, Marsaglia 2003).
void bench_fill(uint8_t* codes, int64_t bytes, const uint8_t* valid, int64_t count, uint64_t seed) {
  uint64_t state = seed * 2685821657736338717u + 1;
  for (int64_t i = 0; i < bytes; ++i) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    codes[i] = valid[(state >> 32) * static_cast<uint64_t>(count) >> 32];
  }
}
}
