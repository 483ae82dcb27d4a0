// Which instruction set runs.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "harness.h"
#include "hybridkit_kernels.h"

namespace {

TEST(isa_can_be_switched) {
  CHECK(hybridkit_isa_available(-1) == nullptr, "below the first");
  const std::string before = hybridkit_isa();
  std::string last;
  int count = 0;
  for (; const char* name = hybridkit_isa_available(count); ++count) {
    last = name;
    std::printf("     has %s\n", name);
    CHECK(hybridkit_set_isa(name) == nullptr && hybridkit_isa() == last, "%s", name);
  }
  CHECK(count >= 1 && last == "scalar", "%d instruction sets, the last is %s", count, last.c_str());
  CHECK(hybridkit_isa_available(count + 1) == nullptr, "beyond the last");
  CHECK(hybridkit_set_isa("mmx") != nullptr && hybridkit_isa() == last, "an unknown name changes nothing");
  CHECK(hybridkit_set_isa("") != nullptr, "an empty name");
  hybridkit_set_isa(before.c_str());
}

TEST(isa_follows_the_environment) {  // as the runner started this program
  const char* wanted = std::getenv("HYBRIDKIT_ISA");
  const char* warning = hybridkit_isa_warning();
  if (wanted == nullptr || *wanted == '\0') {
    CHECK(warning == nullptr, "%s", warning);
    return;
  }
  bool has = false;
  for (int i = 0; const char* name = hybridkit_isa_available(i); ++i) has = has || std::string(name) == wanted;
  CHECK((warning == nullptr) == has, "%s", warning ? warning : "no warning");
  CHECK(!has || std::string(hybridkit_isa()) == wanted, "%s runs", hybridkit_isa());
  CHECK(has || std::string(hybridkit_isa()) == hybridkit_isa_available(0), "%s runs", hybridkit_isa());
}

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(HYBRIDKIT_EMULATED)
TEST(isa_is_what_the_compiler_finds) {
  const auto available = [](const std::string& wanted) {
    for (int i = 0; const char* name = hybridkit_isa_available(i); ++i) {
      if (wanted == name) return true;
    }
    return false;
  };
  CHECK(available("avx2") == (__builtin_cpu_supports("avx2") != 0), "avx2");
  CHECK(available("avxvnni") == (__builtin_cpu_supports("avxvnni") != 0), "avxvnni");
  CHECK(available("avx512vnni") == (__builtin_cpu_supports("avx512vnni") != 0), "avx512vnni");
}
#endif

TEST(isa_and_version) { CHECK(std::string(hybridkit_version()).find('.') != std::string::npos, "%s", hybridkit_version()); }

}  // namespace
