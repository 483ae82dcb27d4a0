// A test harness in one page, so that the tests build wherever the kernels do.
//
//   TEST(name) { CHECK(a == b, "shape %d x %d", n, k); }
//
// A failed check prints where and what, and the test goes on; the program's exit status is 1.
#ifndef HYBRIDKIT_HARNESS_H
#define HYBRIDKIT_HARNESS_H

#include "random.h"

namespace test {

using Function = void (*)();

struct Registration {
  Registration(const char* name, Function function);
};

// Reports a failed check; returns `good`.
#if defined(__GNUC__)
__attribute__((format(printf, 5, 6)))
#endif
bool check(bool good, const char* file, int line, const char* what, const char* format, ...);

int cases();  // how many random cases a test tries: --cases N, 1 by default, is a factor

}  // namespace test

#define TEST(name)                                              \
  static void test_##name();                                    \
  static const test::Registration registration_##name(#name, test_##name); \
  static void test_##name()

#define CHECK(condition, ...) test::check((condition), __FILE__, __LINE__, #condition, __VA_ARGS__)

#endif
