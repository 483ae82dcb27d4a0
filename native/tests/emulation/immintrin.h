// Stands in for the compiler's header where AVX-512 VNNI and AVX-VNNI are emulated: SIMDe's portable functions under
// the names of the intrinsics, so that the kernels' logic can be tested on any processor. What SIMDe 0.7.4 lacks is
// added, lane by lane.
#ifndef HYBRIDKIT_EMULATION_H
#define HYBRIDKIT_EMULATION_H

#define SIMDE_NO_INLINE // inlined, they take the compiler minutes
#define SIMDE_NO_NATIVE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx2.h>
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>

#include <cstdint>
#include <cstring>

namespace emulation {

template <class T>
struct Lanes {  // of a vector of 512 bits
  T of[64 / sizeof(T)];
  template <class V>
  static Lanes from(V vector) {
    Lanes lanes;
    std::memcpy(lanes.of, &vector, sizeof lanes.of);
    return lanes;
  }
  template <class V>
  V to() const {
    V vector;
    std::memcpy(&vector, of, sizeof of);
    return vector;
  }
};

// Lanes that the mask leaves out touch no memory.
inline __m512 maskz_loadu_ps(uint16_t mask, const void* from) {
  Lanes<float> lanes{};
  for (int i = 0; i < 16; ++i) {
    if (mask >> i & 1) std::memcpy(lanes.of + i, static_cast<const float*>(from) + i, sizeof(float));
  }
  return lanes.to<__m512>();
}

inline void mask_storeu_ps(void* to, uint16_t mask, __m512 vector) {
  const auto lanes = Lanes<float>::from(vector);
  for (int i = 0; i < 16; ++i) {
    if (mask >> i & 1) std::memcpy(static_cast<float*>(to) + i, lanes.of + i, sizeof(float));
  }
}

inline __m512i srai_epi32(__m512i vector, unsigned count) {
  auto lanes = Lanes<int32_t>::from(vector);
  for (int32_t& lane : lanes.of) lane >>= count < 32 ? count : 31;
  return lanes.to<__m512i>();
}

inline __m512 cvtepi32_ps(__m512i vector) {
  const auto from = Lanes<int32_t>::from(vector);
  Lanes<float> lanes;
  for (int i = 0; i < 16; ++i) lanes.of[i] = static_cast<float>(from.of[i]);
  return lanes.to<__m512>();
}

}  // namespace emulation

using __mmask16 = uint16_t;
#define _mm512_maskz_loadu_ps(mask, from) emulation::maskz_loadu_ps(mask, from)
#define _mm512_mask_storeu_ps(to, mask, vector) emulation::mask_storeu_ps(to, mask, vector)
#define _mm512_srai_epi32(vector, count) emulation::srai_epi32(vector, count)
#define _mm512_cvtepi32_ps(vector) emulation::cvtepi32_ps(vector)
#define _mm256_dpbusd_avx_epi32(sum, a, b) simde_mm256_dpbusd_epi32(sum, a, b)

#endif
