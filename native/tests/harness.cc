// kernels_test [--seed N] [--cases N] [--list] [--without NAME] [NAME...]: runs the tests whose names begin with one of
// NAME, other than those that --without names.
#include "harness.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace test {
namespace {

struct Case {
  const char* name;
  Function function;
};

std::vector<Case>& registered() {
  static std::vector<Case> all;
  return all;
}

int failures = 0;
int factor = 1;

bool begins_with_one_of(const char* name, const std::vector<const char*>& prefixes) {
  for (const char* prefix : prefixes) {
    if (std::strncmp(name, prefix, std::strlen(prefix)) == 0) return true;
  }
  return false;
}

}  // namespace

Registration::Registration(const char* name, Function function) { registered().push_back({name, function}); }

bool check(bool good, const char* file, int line, const char* what, const char* format, ...) {
  if (good) return true;
  constexpr int most = 20;  // a broken kernel fails in every case; the first ones say enough
  if (++failures > most) return false;
  std::fprintf(stderr, "%s:%d: %s: ", file, line, what);
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fputc('\n', stderr);
  return false;
}

int cases() { return factor; }

}  // namespace test

int main(int count, char** arguments) {
  std::vector<const char*> wanted, unwanted;
  bool list = false;
  for (int i = 1; i < count; ++i) {
    if (std::strcmp(arguments[i], "--seed") == 0 && i + 1 < count) {
      test::seed = std::strtoull(arguments[++i], nullptr, 10);
    } else if (std::strcmp(arguments[i], "--cases") == 0 && i + 1 < count) {
      test::factor = std::atoi(arguments[++i]);
    } else if (std::strcmp(arguments[i], "--without") == 0 && i + 1 < count) {
      unwanted.push_back(arguments[++i]);
    } else if (std::strcmp(arguments[i], "--list") == 0) {
      list = true;
    } else {
      wanted.push_back(arguments[i]);
    }
  }
  int run = 0;
  for (const test::Case& one : test::registered()) {
    if (!wanted.empty() && !test::begins_with_one_of(one.name, wanted)) continue;
    if (test::begins_with_one_of(one.name, unwanted)) continue;
    ++run;
    if (list) {
      std::printf("%s\n", one.name);
      continue;
    }
    const int before = test::failures;
    one.function();
    std::printf("%s %s\n", test::failures == before ? "ok  " : "FAIL", one.name);
    std::fflush(stdout);
  }
  if (run == 0) {
    std::fprintf(stderr, "no test has such a name\n");
    return 1;
  }
  if (test::failures > 0) std::fprintf(stderr, "%d checks failed (--seed %llu)\n", test::failures,
                                       static_cast<unsigned long long>(test::seed));
  return test::failures > 0;
}
