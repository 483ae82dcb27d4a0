// Rows of tiled codes as numbers, and what is refused.
#include <limits>
#include <string>
#include <vector>

#include "harness.h"
#include "hybridkit_kernels.h"
#include "reference.h"

namespace {

TEST(gather_gives_the_codes_of_rows) {
  test::Random random(31);
  for (int i = 0; i < 100 * test::cases(); ++i) {
    const auto codec = random.one_of<int32_t>(
        {HYBRIDKIT_TERNARY, HYBRIDKIT_BINARY, HYBRIDKIT_NBIT1, HYBRIDKIT_NBIT2, HYBRIDKIT_NBIT4, HYBRIDKIT_NBIT8});
    const int64_t N = random.between(1, 40), K = random.between(1, 100), count = random.between(0, 5);
    const auto layer = reference::random_layer(random, codec, N, K);
    const auto tiled = reference::tiled(layer);
    std::vector<int64_t> rows;
    for (int64_t row = 0; row < count; ++row) rows.push_back(random.between(-N, N - 1));
    constexpr float untouched = 1e9f;
    std::vector<float> y(count * K + 1, untouched);
    const char* wrong = hybridkit_gather(codec, tiled.data(), tiled.size(), N, K, rows.data(), count, y.data());
    CHECK(wrong == nullptr, "%s", wrong);
    for (int64_t row = 0; row < count; ++row) {
      const int64_t n = rows[row] < 0 ? rows[row] + N : rows[row];
      for (int64_t k = 0; k < K; ++k)
        CHECK(y[row * K + k] == layer.code(n, k), "codec %d N %lld K %lld row %lld column %lld", codec,
              static_cast<long long>(N), static_cast<long long>(K), static_cast<long long>(n), static_cast<long long>(k));
    }
    CHECK(y.back() == untouched, "wrote beyond y");
  }
}

TEST(gather_refuses_nonsense) {
  const std::vector<uint8_t> codes(64);
  std::vector<float> y(16, 7);
  constexpr int64_t most = std::numeric_limits<int64_t>::max();
  const auto gathers = [&](int32_t codec, int64_t N, int64_t K, int64_t row, int64_t count = 1, size_t bytes = 64) {
    return hybridkit_gather(codec, codes.data(), bytes, N, K, &row, count, y.data()) == nullptr;
  };
  CHECK(!gathers(HYBRIDKIT_SPARSE34, 4, 16, 0) && !gathers(HYBRIDKIT_BASE3, 4, 16, 0) && !gathers(-1, 4, 16, 0) &&
            !gathers(8, 4, 16, 0), "codec");
  CHECK(!gathers(0, 0, 16, 0) && !gathers(0, 4, 0, 0) && !gathers(0, most, 16, 0), "sizes");
  CHECK(!gathers(0, 4, 16, 4) && !gathers(0, 4, 16, -5) && !gathers(0, 4, 16, most) && !gathers(0, 4, 16, -most), "row");
  CHECK(!gathers(0, 4, 16, 0, -1) && !gathers(0, 4, 16, 0, most), "count");
  CHECK(!gathers(0, 4, 16, 0, 1, 63) && !gathers(0, 40, 16, 0), "bytes");
  const int64_t row = 0;
  CHECK(hybridkit_gather(0, nullptr, 64, 4, 16, &row, 1, y.data()) != nullptr, "codes");
  CHECK(hybridkit_gather(0, codes.data(), 64, 4, 16, nullptr, 1, y.data()) != nullptr, "rows");
  CHECK(hybridkit_gather(0, codes.data(), 64, 4, 16, &row, 1, nullptr) != nullptr, "y");
  CHECK(y == std::vector<float>(16, 7), "wrote");
  CHECK(hybridkit_gather(0, codes.data(), 64, 4, 16, nullptr, 0, nullptr) == nullptr, "no rows");
  CHECK(gathers(0, 4, 16, -4), "what is right");
}

}  // namespace
