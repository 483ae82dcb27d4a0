// float16 and bfloat16 to float32 and back, rounding to nearest even. Plain integer arithmetic without branches, so
// that any compiler vectorises the loops around it.
#ifndef HYBRIDKIT_HALF_H
#define HYBRIDKIT_HALF_H

#include <cstdint>
#include <cstring>

#include "hybridkit_kernels.h"

namespace hybridkit {
namespace half {

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float from_f16(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16, rest = static_cast<uint32_t>(half & 0x7fffu) << 13;
  // The exponent is 112 too small; a product by 2^112 mends that and normalises subnormal numbers on the way.
  const uint32_t finite = bits_of(float_of(rest) * float_of(0x77800000u));
  return float_of(sign | (rest >= 0x0f800000u ? rest | 0x70000000u : finite));
}

inline uint16_t to_f16(float value) {
  const uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
  // Normal results: the mantissa loses 13 bits. Subnormal ones: adding 0.5 leaves the number's bits at the end.
  const uint32_t normal = (rest - 0x38000000u + 0xfffu + (rest >> 13 & 1u)) >> 13;
  const uint32_t subnormal = bits_of(float_of(rest) + 0.5f) - 0x3f000000u;
  const uint32_t special = rest > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const uint32_t finite = rest < 0x38800000u ? subnormal : normal;
  return static_cast<uint16_t>(sign | (rest >= 0x477ff000u ? special : finite));
}

inline float from_bf16(uint16_t half) { return float_of(static_cast<uint32_t>(half) << 16); }

inline uint16_t to_bf16(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16 | 0x40u) : rounded);
}

}  // namespace half

inline int64_t size_of(int32_t dtype) { return dtype == HYBRIDKIT_F32 ? 4 : 2; }

// `count` numbers of `dtype` from element `first` of x, which may be null where there are none.
inline void to_floats(int32_t dtype, const void* x, int64_t first, int64_t count, float* out) {
  if (count == 0) return;
  if (dtype == HYBRIDKIT_F32) {
    std::memcpy(out, static_cast<const float*>(x) + first, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  const uint16_t* from = static_cast<const uint16_t*>(x) + first;
  if (dtype == HYBRIDKIT_F16) {
    for (int64_t i = 0; i < count; ++i) out[i] = half::from_f16(from[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) out[i] = half::from_bf16(from[i]);
  }
}

inline void from_floats(int32_t dtype, const float* x, int64_t count, void* y, int64_t first) {
  if (dtype == HYBRIDKIT_F32) {
    std::memcpy(static_cast<float*>(y) + first, x, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  uint16_t* to = static_cast<uint16_t*>(y) + first;
  if (dtype == HYBRIDKIT_F16) {
    for (int64_t i = 0; i < count; ++i) to[i] = half::to_f16(x[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = half::to_bf16(x[i]);
  }
}

}  // namespace hybridkit
#endif
