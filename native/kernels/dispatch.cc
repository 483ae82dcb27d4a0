// Which instruction set runs: the best that the processor has, or what HYBRIDKIT_ISA names.
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "hybridkit_kernels.h"
#include "isa.h"

namespace hybridkit {
namespace {

const Isa* const kBuilt[] = {  // best first
#ifdef HYBRIDKIT_AMX
    &kAmx,
#endif
#ifdef HYBRIDKIT_AVX512VNNI
    &kAvx512Vnni,
#endif
#ifdef HYBRIDKIT_AVXVNNI
    &kAvxVnni,
#endif
#ifdef HYBRIDKIT_AVX2
    &kAvx2,
#endif
#ifdef HYBRIDKIT_NEON
    &kNeon,
#endif
    &kScalar,
};

const Isa* available(int index) {
  for (const Isa* candidate : kBuilt) {
    if (candidate->supported() && index-- == 0) return candidate;
  }
  return nullptr;
}

const Isa* find(const char* name) {
  for (int i = 0; const Isa* candidate = available(i); ++i) {
    if (std::strcmp(candidate->name, name) == 0) return candidate;
  }
  return nullptr;
}

struct Choice {
  std::atomic<const Isa*> isa;
  const char* warning;
};

Choice& choice() {
  static Choice made = [] {
    const char* wanted = std::getenv("HYBRIDKIT_ISA");
    if (wanted == nullptr || *wanted == '\0') return Choice{{available(0)}, nullptr};
    if (const Isa* named = find(wanted)) return Choice{{named}, nullptr};
    return Choice{{available(0)}, "HYBRIDKIT_ISA names an instruction set that this processor or build lacks; ignored"};
  }();
  return made;
}

}  // namespace

const Isa& isa() { return *choice().isa.load(std::memory_order_relaxed); }

}  // namespace hybridkit

using namespace hybridkit;

extern "C" {

const char* hybridkit_isa(void) { return isa().name; }

const char* hybridkit_isa_available(int index) {
  const Isa* found = index < 0 ? nullptr : available(index);
  return found == nullptr ? nullptr : found->name;
}

const char* hybridkit_set_isa(const char* name) {
  const Isa* found = name == nullptr ? nullptr : find(name);
  if (found == nullptr) return "this processor or build lacks the instruction set";
  choice().isa.store(found, std::memory_order_relaxed);
  return nullptr;
}

const char* hybridkit_isa_warning(void) { return choice().warning; }

const char* hybridkit_version(void) { return HYBRIDKIT_VERSION; }

}  // extern "C"
