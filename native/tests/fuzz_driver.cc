// fuzz_kernels [--seed N] [--first N] [--cases N] [FILE...]: random cases by number, the same everywhere; or the cases in
// files, as libFuzzer writes them. For compilers that have no libFuzzer; where there is one, it is the driver.
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <vector>

#include "fuzz.h"
#include "random.h"

extern "C" void __sanitizer_set_death_callback(void (*callback)()) __attribute__((weak));

namespace {

unsigned long long current = 0;

void say_which() {
  std::fprintf(stderr, "this was: fuzz_kernels --seed %llu --first %llu --cases 1\n",
               static_cast<unsigned long long>(test::seed), current);
}

void run_random(unsigned long long number) {
  constexpr int64_t most_bytes = 160;  // more than any case reads
  current = number;
  test::Random random(number);
  std::vector<uint8_t> data(static_cast<size_t>(random.between(0, most_bytes)));
  for (uint8_t& byte : data) byte = static_cast<uint8_t>(random.bits());
  LLVMFuzzerTestOneInput(data.data(), data.size());
}

bool run_file(const char* path) {
  std::ifstream file(path, std::ios::binary);
  const std::vector<char> data((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file) return std::fprintf(stderr, "cannot read %s\n", path), false;
  LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(data.data()), data.size());
  return true;
}

}  // namespace

int main(int count, char** arguments) {
  unsigned long long first = 0, cases = 1000;
  std::vector<const char*> files;
  for (int i = 1; i < count; ++i) {
    const auto option = [&](const char* name) { return std::strcmp(arguments[i], name) == 0 && i + 1 < count; };
    if (option("--seed")) {
      test::seed = std::strtoull(arguments[++i], nullptr, 10);
    } else if (option("--first")) {
      first = std::strtoull(arguments[++i], nullptr, 10);
    } else if (option("--cases")) {
      cases = std::strtoull(arguments[++i], nullptr, 10);
    } else {
      files.push_back(arguments[i]);
    }
  }
  for (const char* path : files) {
    if (!run_file(path)) return 1;
  }
  if (!files.empty()) return 0;
  if (__sanitizer_set_death_callback != nullptr) __sanitizer_set_death_callback(say_which);
  std::signal(SIGABRT, [](int) { say_which(); });
  for (unsigned long long i = 0; i < cases; ++i) run_random(first + i);
  const fuzz::Tally& t = fuzz::tally;
  std::printf("%llu cases: %lld results compared, %lld calls refused, %lld too large to run\n", cases,
              static_cast<long long>(t.compared), static_cast<long long>(t.refused),
              static_cast<long long>(t.too_large));
  const bool idle = cases >= 1000 && (t.compared == 0 || t.refused == 0);
  if (idle) std::fprintf(stderr, "cases of a kind are missing\n");
  return idle;
}
