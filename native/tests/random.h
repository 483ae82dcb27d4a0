// Numbers that are the same on every system, other than those of <random>'s distributions.
#ifndef HYBRIDKIT_RANDOM_H
#define HYBRIDKIT_RANDOM_H

#include <cstdint>
#include <initializer_list>

namespace test {

inline uint64_t seed = 1;  // of the whole run

class Random {
 public:
  explicit Random(uint64_t stream) : state_(seed * 0x9e3779b97f4a7c15u + stream) {}

  uint64_t bits() {  // splitmix64
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  int64_t between(int64_t least, int64_t most) {
    return least + static_cast<int64_t>(bits() % static_cast<uint64_t>(most - least + 1));
  }
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

#endif
