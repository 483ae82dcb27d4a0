// A test harness in one page, so that the tests build wherever the kernels do.
//
//   TEST(name) { CHECK(a == b, "shape %d x %d", n, k); }
//
// A failed check prints where and what, and the test goes on; the program's exit status is 1.
#ifndef HYBRIDKIT_HARNESS_H
#define HYBRIDKIT_HARNESS_H

#include <cstdint>
#include <vector>

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

// Numbers that are the same on every system, other than those of <random>'s distributions.
class Random {
 public:
  explicit Random(uint64_t stream);
  uint64_t bits();
  int64_t between(int64_t least, int64_t most);
  bool chance(int percent) { return between(0, 99) < percent; }
  float real(float most) { return most * (static_cast<float>(between(-(1 << 20), 1 << 20)) / (1 << 20)); }
  template <class T>
  T one_of(std::initializer_list<T> values) {
    return values.begin()[between(0, static_cast<int64_t>(values.size()) - 1)];
  }

 private:
  uint64_t state_;
};

}  // namespace test

#define TEST(name)                                              \
  static void test_##name();                                    \
  static const test::Registration registration_##name(#name, test_##name); \
  static void test_##name()

#define CHECK(condition, ...) test::check((condition), __FILE__, __LINE__, #condition, __VA_ARGS__)

#endif
