// Stands in for the compiler's header where AMX, AVX-512 VNNI and AVX-VNNI are emulated: SIMDe's portable functions under
// the names of the intrinsics, so that the kernels' logic can be tested on any processor. Added, lane by lane: what
// SIMDe 0.7.4 lacks, and masked loads, since SIMDe reads the lanes that the mask leaves out.
#ifndef HYBRIDKIT_EMULATION_H
#define HYBRIDKIT_EMULATION_H

#define SIMDE_NO_INLINE // inlined, they take the compiler minutes
#define SIMDE_NO_NATIVE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx2.h>
#include <simde/x86/avx512/add.h>
#include <simde/x86/avx512/and.h>
#include <simde/x86/avx512/avg.h>
#include <simde/x86/avx512/blend.h>
#include <simde/x86/avx512/dpbusd.h>
#include <simde/x86/avx512/fmadd.h>
#include <simde/x86/avx512/load.h>
#include <simde/x86/avx512/loadu.h>
#include <simde/x86/avx512/mov_mask.h>
#include <simde/x86/avx512/mul.h>
#include <simde/x86/avx512/or.h>
#include <simde/x86/avx512/permutex2var.h>
#include <simde/x86/avx512/permutexvar.h>
#include <simde/x86/avx512/set.h>
#include <simde/x86/avx512/set1.h>
#include <simde/x86/avx512/setr.h>
#include <simde/x86/avx512/setzero.h>
#include <simde/x86/avx512/slli.h>
#include <simde/x86/avx512/srli.h>
#include <simde/x86/avx512/store.h>
#include <simde/x86/avx512/storeu.h>
#include <simde/x86/avx512/sub.h>
#include <simde/x86/avx512/xor.h>
#include <simde/x86/fma.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#include "half.h"

namespace emulation {

// The numbers in a vector. A vector is as large as its lanes are many.
template <class T, int count>
struct Lanes {
  T of[count];
  template <class V>
  static Lanes from(V vector) {
    static_assert(sizeof(V) == sizeof of);
    Lanes lanes;
    std::memcpy(lanes.of, &vector, sizeof lanes.of);
    return lanes;
  }
  template <class V>
  V to() const {
    static_assert(sizeof(V) == sizeof of);
    V vector;
    std::memcpy(&vector, of, sizeof of);
    return vector;
  }
};

// Lanes that the mask leaves out are zero and touch no memory.
template <class T, int count, class Mask>
Lanes<T, count> load_where(Mask in_mask, const void* from) {
  Lanes<T, count> lanes{};
  for (int i = 0; i < count; ++i) {
    if (in_mask(i)) std::memcpy(lanes.of + i, static_cast<const T*>(from) + i, sizeof(T));
  }
  return lanes;
}

inline __m512 mm512_maskz_loadu_ps(uint16_t mask, const void* from) {
  return load_where<float, 16>([=](int i) { return mask >> i & 1; }, from).to<__m512>();
}

inline __m256 mm256_maskload_ps(const float* from, __m256i mask) {
  const auto signs = Lanes<int32_t, 8>::from(mask);
  return load_where<float, 8>([&](int i) { return signs.of[i] < 0; }, from).to<__m256>();
}

inline __m256i mm256_maskload_epi32(const int32_t* from, __m256i mask) {
  const auto signs = Lanes<int32_t, 8>::from(mask);
  return load_where<int32_t, 8>([&](int i) { return signs.of[i] < 0; }, from).to<__m256i>();
}

inline void mm512_mask_storeu_ps(void* to, uint16_t mask, __m512 vector) {
  const auto lanes = Lanes<float, 16>::from(vector);
  for (int i = 0; i < 16; ++i) {
    if (mask >> i & 1) std::memcpy(static_cast<float*>(to) + i, lanes.of + i, sizeof(float));
  }
}

inline __m512i mm512_srai_epi32(__m512i vector, unsigned count) {
  auto lanes = Lanes<int32_t, 16>::from(vector);
  for (int32_t& lane : lanes.of) lane >>= count < 32 ? count : 31;
  return lanes.to<__m512i>();
}

// SIMDe adds signed bytes, whose overflow the sanitizer sees. `sign` is 1, or -1 to subtract.
inline __m512i mm512_add_epi8(__m512i a, __m512i b, int sign) {
  auto lanes = Lanes<uint8_t, 64>::from(a);
  const auto more = Lanes<uint8_t, 64>::from(b);
  for (int i = 0; i < 64; ++i) lanes.of[i] = static_cast<uint8_t>(lanes.of[i] + sign * more.of[i]);
  return lanes.to<__m512i>();
}

inline __m512 mm512_cvtepi32_ps(__m512i vector) {
  const auto from = Lanes<int32_t, 16>::from(vector);
  Lanes<float, 16> lanes;
  for (int i = 0; i < 16; ++i) lanes.of[i] = static_cast<float>(from.of[i]);
  return lanes.to<__m512>();
}

inline __m512i mm512_cvtepu8_epi32(__m128i vector) {
  const auto from = Lanes<uint8_t, 16>::from(vector);
  Lanes<int32_t, 16> lanes;
  for (int i = 0; i < 16; ++i) lanes.of[i] = from.of[i];
  return lanes.to<__m512i>();
}

inline __m512 mm512_max_ps(__m512 a, __m512 b) {
  const auto from = Lanes<float, 16>::from(a);
  auto lanes = Lanes<float, 16>::from(b);
  for (int i = 0; i < 16; ++i) lanes.of[i] = from.of[i] > lanes.of[i] ? from.of[i] : lanes.of[i];
  return lanes.to<__m512>();
}

inline __m512i mm512_cvtps_epi32(__m512 vector) {
  const auto from = Lanes<float, 16>::from(vector);
  Lanes<int32_t, 16> lanes;
  for (int i = 0; i < 16; ++i) {
    lanes.of[i] = std::fabs(from.of[i]) < 2147483648.0f ? static_cast<int32_t>(std::nearbyintf(from.of[i])) : INT32_MIN;
  }
  return lanes.to<__m512i>();
}

// Every other number of T in each quarter of a and b, the lower or the upper half of them, in turns.
template <class T, class V>
V unpack(V a, V b, bool upper) {
  constexpr int count = 64 / sizeof(T), quarter = 16 / sizeof(T);
  const auto left = Lanes<T, count>::from(a), right = Lanes<T, count>::from(b);
  Lanes<T, count> lanes;
  for (int i = 0; i < count; i += 2) {
    const int at = i / quarter * quarter + i % quarter / 2 + (upper ? quarter / 2 : 0);
    lanes.of[i] = left.of[at], lanes.of[i + 1] = right.of[at];
  }
  return lanes.template to<V>();
}

inline __m512 mm512_shuffle_f32x4(__m512 a, __m512 b, int quarters) {
  const auto left = Lanes<float, 16>::from(a), right = Lanes<float, 16>::from(b);
  Lanes<float, 16> lanes;
  for (int i = 0; i < 16; ++i) lanes.of[i] = (i < 8 ? left : right).of[(quarters >> i / 4 * 2 & 3) * 4 + i % 4];
  return lanes.to<__m512>();
}

inline __m256 mm512_extractf32x8_ps(__m512 vector, int half) {
  const auto from = Lanes<float, 16>::from(vector);
  Lanes<float, 8> lanes;
  for (int i = 0; i < 8; ++i) lanes.of[i] = from.of[8 * half + i];
  return lanes.to<__m256>();
}

template <int count, class Halves, class Floats>
Floats cvtph_ps(Halves vector) {
  const auto from = Lanes<uint16_t, count>::from(vector);
  Lanes<float, count> lanes;
  for (int i = 0; i < count; ++i) lanes.of[i] = hybridkit::half::from_f16(from.of[i]);
  return lanes.template to<Floats>();
}

// AMX. A tile is what was loaded into it; memory is read and written only where the configuration says.
struct Amx {
  uint8_t config[64];
  uint8_t tiles[8][16][64];
  int rows(int t) const { return config[48 + t]; }
  int bytes(int t) const { return config[16 + 2 * t] | config[17 + 2 * t] << 8; }
};

inline Amx& amx() {
  thread_local Amx state;
  return state;
}

inline void tile_loadconfig(const void* config) { std::memcpy(amx().config, config, 64); }
inline void tile_zero(int t) { std::memset(amx().tiles[t], 0, sizeof amx().tiles[t]); }

inline void tile_loadd(int t, const void* from, int64_t stride) {
  tile_zero(t);
  for (int row = 0; row < amx().rows(t); ++row) {
    std::memcpy(amx().tiles[t][row], static_cast<const char*>(from) + row * stride, amx().bytes(t));
  }
}

inline void tile_stored(int t, void* to, int64_t stride) {
  for (int row = 0; row < amx().rows(t); ++row) {
    std::memcpy(static_cast<char*>(to) + row * stride, amx().tiles[t][row], amx().bytes(t));
  }
}

// Signed a times b, whose numbers are of the type B.
template <class B>
void tile_dpbs(int sum, int a, int b) {
  Amx& state = amx();
  for (int m = 0; m < state.rows(sum); ++m)
    for (int n = 0; n < state.bytes(sum) / 4; ++n) {
      int32_t total;
      std::memcpy(&total, state.tiles[sum][m] + 4 * n, sizeof total);
      for (int k = 0; k < state.bytes(a); ++k) {
        const auto left = static_cast<int8_t>(state.tiles[a][m][k]);
        total += left * static_cast<B>(state.tiles[b][k / 4][4 * n + k % 4]);
      }
      std::memcpy(state.tiles[sum][m] + 4 * n, &total, sizeof total);
    }
}

inline __m256 mm256_cvtph_ps(__m128i vector) { return cvtph_ps<8, __m128i, __m256>(vector); }
inline __m512 mm512_cvtph_ps(__m256i vector) { return cvtph_ps<16, __m256i, __m512>(vector); }

}  // namespace emulation

using __mmask16 = uint16_t;
#undef _mm256_maskload_ps
#undef _mm256_maskload_epi32
#define _mm256_maskload_ps(from, mask) emulation::mm256_maskload_ps(from, mask)
#define _mm256_maskload_epi32(from, mask) emulation::mm256_maskload_epi32(from, mask)
#define _mm512_maskz_loadu_ps(mask, from) emulation::mm512_maskz_loadu_ps(mask, from)
#define _mm512_mask_storeu_ps(to, mask, vector) emulation::mm512_mask_storeu_ps(to, mask, vector)
#undef _mm512_add_epi8
#undef _mm512_sub_epi8
#define _mm512_add_epi8(a, b) emulation::mm512_add_epi8(a, b, 1)
#define _mm512_sub_epi8(a, b) emulation::mm512_add_epi8(a, b, -1)
#define _mm512_srai_epi32(vector, count) emulation::mm512_srai_epi32(vector, count)
#define _mm512_cvtepi32_ps(vector) emulation::mm512_cvtepi32_ps(vector)
#define _mm512_cvtepu8_epi32(vector) emulation::mm512_cvtepu8_epi32(vector)
#define _mm512_max_ps(a, b) emulation::mm512_max_ps(a, b)
#define _mm512_cvtps_epi32(vector) emulation::mm512_cvtps_epi32(vector)
#define _mm512_unpacklo_ps(a, b) emulation::unpack<float>(a, b, false)
#define _mm512_unpackhi_ps(a, b) emulation::unpack<float>(a, b, true)
#define _mm512_unpacklo_pd(a, b) emulation::unpack<double>(a, b, false)
#define _mm512_unpackhi_pd(a, b) emulation::unpack<double>(a, b, true)
#define _mm512_shuffle_f32x4(a, b, quarters) emulation::mm512_shuffle_f32x4(a, b, quarters)
#define _mm512_extractf32x8_ps(vector, half) emulation::mm512_extractf32x8_ps(vector, half)
#define _mm256_cvtph_ps(vector) emulation::mm256_cvtph_ps(vector)
#define _mm512_cvtph_ps(vector) emulation::mm512_cvtph_ps(vector)
#define _tile_loadconfig(config) emulation::tile_loadconfig(config)
#define _tile_release()
#define _tile_zero(tile) emulation::tile_zero(tile)
#define _tile_loadd(tile, from, stride) emulation::tile_loadd(tile, from, stride)
#define _tile_stored(tile, to, stride) emulation::tile_stored(tile, to, stride)
#define _tile_dpbsud(sum, a, b) emulation::tile_dpbs<uint8_t>(sum, a, b)
#define _tile_dpbssd(sum, a, b) emulation::tile_dpbs<int8_t>(sum, a, b)
#define _mm256_dpbusd_avx_epi32(sum, a, b) simde_mm256_dpbusd_epi32(sum, a, b)

#endif
