#include "processor.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace hybridkit {

#if defined(__x86_64__)
namespace {

// Intel's manual, volume 2, CPUID: leaf 1, and leaf 7 with subleaves 0 and 1.
struct Cpuid {
  bool intel = false;
  unsigned ecx1 = 0, ebx7 = 0, ecx7 = 0, edx7 = 0, eax7_1 = 0;
  uint64_t saved = 0;  // XCR0: which registers the operating system keeps for each thread

  Cpuid() {
    unsigned eax, ebx, ecx, edx;
    if (__get_cpuid(0, &eax, &ebx, &ecx, &edx)) intel = ebx == signature_INTEL_ebx;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx)) return;
    ecx1 = ecx;
    if (bit(ecx1, 27)) {  // OSXSAVE
      unsigned low, high;
      __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
      saved = static_cast<uint64_t>(high) << 32 | low;
    }
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return;
    ebx7 = ebx;
    ecx7 = ecx;
    edx7 = edx;
    if (eax >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx)) eax7_1 = eax;
  }

  static bool bit(unsigned word, int index) { return (word >> index & 1) != 0; }
  bool saves(uint64_t registers) const { return (saved & registers) == registers; }
};

const Cpuid& cpuid() {
  static const Cpuid read;
  return read;
}

}  // namespace

int64_t stream_ahead() { return cpuid().intel ? 4096 : 0; }

bool has_avx2() {
  constexpr uint64_t ymm = 0x6;
  const Cpuid& c = cpuid();
  const bool avx_fma_f16c = Cpuid::bit(c.ecx1, 28) && Cpuid::bit(c.ecx1, 12) && Cpuid::bit(c.ecx1, 29);
  return c.saves(ymm) && avx_fma_f16c && Cpuid::bit(c.ebx7, 5);
}

#if defined(HYBRIDKIT_EMULATED)
bool has_avxvnni() { return true; }
bool has_avx512vnni() { return true; }
bool has_vbmi() { return true; }
bool has_amx() { return true; }
#else
bool has_avxvnni() { return has_avx2() && Cpuid::bit(cpuid().eax7_1, 4); }

bool has_avx512vnni() {
  constexpr uint64_t zmm = 0xe6;
  const Cpuid& c = cpuid();
  const bool f_dq_bw_vl = Cpuid::bit(c.ebx7, 16) && Cpuid::bit(c.ebx7, 17) && Cpuid::bit(c.ebx7, 30) &&
                          Cpuid::bit(c.ebx7, 31);
  return has_avx2() && c.saves(zmm) && f_dq_bw_vl && Cpuid::bit(c.ecx7, 11);
}

bool has_vbmi() { return has_avx512vnni() && Cpuid::bit(cpuid().ecx7, 1); }

bool has_amx() {
#if defined(__linux__)
  constexpr uint64_t tiles = 0x60000;
  const Cpuid& c = cpuid();
  const bool tiles_of_int8 = Cpuid::bit(c.edx7, 24) && Cpuid::bit(c.edx7, 25);
  if (!has_avx512vnni() || !c.saves(tiles) || !tiles_of_int8) return false;
  constexpr int request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM: for all threads of the process
  static const bool granted = syscall(SYS_arch_prctl, request, tile_data) == 0;
  return granted;
#else
  return false;
#endif
}
#endif
#endif

#if !defined(__x86_64__)
bool has_vbmi() { return false; }
#endif

#if defined(__aarch64__)
bool has_neon_dot() {
#if defined(__APPLE__)
  return true;  // every 64-bit Apple processor since 2018
#elif defined(__linux__)
  constexpr unsigned long asimd_dot_product = 1ul << 20;  // HWCAP_ASIMDDP
  return (getauxval(AT_HWCAP) & asimd_dot_product) != 0;
#else
  return false;
#endif
}
#endif

}  // namespace hybridkit
