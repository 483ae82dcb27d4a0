// Orders of the codes: sizes, re-ordering, and what is said about damaged or truncated ones.
#include <cstring>
#include <limits>
#include <string>

#include "harness.h"
#include "hybridkit_kernels.h"
#include "products.h"
#include "reference.h"

namespace {

TEST(layout_sizes) {
  test::Random random(20);
  for (int i = 0; i < 200 * test::cases(); ++i) {
    const auto codec = random.one_of<int32_t>({HYBRIDKIT_TERNARY, HYBRIDKIT_BINARY});
    const int64_t group = random.between(1, 4), taps = random.between(1, 9);
    const int64_t N = group * random.between(1, 40), K = taps * random.between(1, 40);
    const auto layer = reference::random_layer(random, codec, N, K);
    CHECK(hybridkit_code_bytes(codec, 0, N, K) == reference::row_major(layer).size(), "row-major");
    CHECK(hybridkit_code_bytes(codec, 1, N, K) == reference::tiled(layer).size(), "tiled");
    CHECK(hybridkit_conv_code_bytes(codec, N, K, group) == reference::tiled(layer, group, taps).size(), "conv");
  }
}

TEST(layout_out_of_range_has_no_size) {
  constexpr int64_t most = std::numeric_limits<int64_t>::max(), least = std::numeric_limits<int64_t>::min();
  CHECK(hybridkit_code_bytes(HYBRIDKIT_TERNARY, 0, 1, HYBRIDKIT_MAX_K) == HYBRIDKIT_MAX_K / 4, "the largest K");
  for (const int32_t layout : {0, 1}) {
    for (const int64_t size : {int64_t{0}, int64_t{-1}, least, most, most / 2}) {
      CHECK(hybridkit_code_bytes(HYBRIDKIT_TERNARY, layout, size, 5) == 0, "N %lld", static_cast<long long>(size));
      CHECK(hybridkit_code_bytes(HYBRIDKIT_BINARY, layout, 5, size) == 0, "K %lld", static_cast<long long>(size));
    }
    CHECK(hybridkit_code_bytes(8, layout, 5, 5) == 0 && hybridkit_code_bytes(-1, layout, 5, 5) == 0, "codec");
    CHECK(hybridkit_code_bytes(0, layout, 5, HYBRIDKIT_MAX_K + 1) == 0, "K");
  }
  for (int shift = 31; shift < 63; ++shift) {  // 2^40 groups of a row of 2^22 codes have 2^64 bytes, which is 0
    const int64_t size = int64_t{1} << shift;
    CHECK(hybridkit_code_bytes(0, 0, size, 5) == 0 && hybridkit_code_bytes(0, 1, 5, size) == 0, "2^%d", shift);
    CHECK(hybridkit_conv_code_bytes(1, size, HYBRIDKIT_MAX_K, size) == 0, "2^%d", shift);
  }
  CHECK(hybridkit_conv_code_bytes(HYBRIDKIT_NBIT4, 4, 4, 1) == 0, "n-bit codes of a convolution");
  CHECK(hybridkit_conv_code_bytes(0, HYBRIDKIT_MAX_SIZE, HYBRIDKIT_MAX_K, HYBRIDKIT_MAX_SIZE) == 0x7fffffff000000, "groups");
  CHECK(hybridkit_code_bytes(0, 3, 5, 5) == 0 && hybridkit_code_bytes(0, -1, 5, 5) == 0, "layout");
  for (const int64_t group : {int64_t{0}, int64_t{-1}, least, int64_t{4}}) {
    CHECK(hybridkit_conv_code_bytes(0, 6, 5, group) == 0, "group %lld", static_cast<long long>(group));
  }
}

TEST(layout_tiling) {
  test::Random random(21);
  for (int i = 0; i < 100 * test::cases(); ++i) {
    const auto codec = random.one_of<int32_t>({HYBRIDKIT_TERNARY, HYBRIDKIT_BINARY});
    const int64_t group = random.between(1, 3), taps = random.between(1, 9);
    const int64_t N = group * random.between(1, 40), K = taps * random.between(1, 40);
    const auto layer = reference::random_layer(random, codec, N, K);
    const auto codes = reference::row_major(layer), tiled = reference::tiled(layer);
    std::vector<uint8_t> out(tiled.size(), 0xff);
    hybridkit_tile(codec, codes.data(), N, K, out.data());
    CHECK(out == tiled, "codec %d N %lld K %lld", codec, static_cast<long long>(N), static_cast<long long>(K));
    const auto conv = reference::tiled(layer, group, taps);
    out.assign(conv.size(), 0xff);
    hybridkit_conv_tile(codec, codes.data(), N, K, group, taps, out.data());
    CHECK(out == conv, "codec %d N %lld K %lld group %lld taps %lld", codec, static_cast<long long>(N),
          static_cast<long long>(K), static_cast<long long>(group), static_cast<long long>(taps));
  }
}

TEST(layout_tiling_of_nbit_codes) {
  test::Random random(23);
  for (int i = 0; i < 60 * test::cases(); ++i) {
    const auto codec = random.one_of<int32_t>({HYBRIDKIT_NBIT1, HYBRIDKIT_NBIT2, HYBRIDKIT_NBIT4, HYBRIDKIT_NBIT8});
    const int64_t N = random.between(1, 40), K = random.between(1, 90);
    const auto layer = reference::random_layer(random, codec, N, K, 32);
    const auto codes = reference::row_major(layer), tiled = reference::tiled(layer);
    CHECK(hybridkit_code_bytes(codec, 0, N, K) == codes.size(), "row-major");
    CHECK(hybridkit_code_bytes(codec, 1, N, K) == tiled.size(), "tiled");
    std::vector<uint8_t> out(tiled.size(), 0xff);
    hybridkit_tile(codec, codes.data(), N, K, out.data());
    CHECK(out == tiled, "codec %d N %lld K %lld", codec, static_cast<long long>(N), static_cast<long long>(K));
    CHECK(hybridkit_check_codes(codec, 1, out.data(), out.size(), N, K) == nullptr, "any byte is right");
    CHECK(hybridkit_check_codes(codec, 1, out.data(), out.size() - 1, N, K) != nullptr, "a byte short");
  }
}

TEST(layout_tiling_refuses_nonsense) {
  const std::vector<uint8_t> codes(64);
  std::vector<uint8_t> out(256, 7);
  const auto tiles = [&](int32_t codec, int64_t N, int64_t K) {
    return hybridkit_tile(codec, codes.data(), N, K, out.data()) == nullptr;
  };
  const auto conv = [&](int64_t N, int64_t K, int64_t group, int64_t taps) {
    return hybridkit_conv_tile(0, codes.data(), N, K, group, taps, out.data()) == nullptr;
  };
  constexpr int64_t huge = int64_t{1} << 31, least = std::numeric_limits<int64_t>::min();
  CHECK(!tiles(8, 4, 4) && !tiles(0, 0, 4) && !tiles(0, huge, 4) && !tiles(0, 4, huge) && !tiles(0, 4, -1), "tile");
  CHECK(!conv(4, 4, 0, 1) && !conv(4, 4, 3, 1) && !conv(4, 4, least, 1) && !conv(huge, 4, huge, 1), "group");
  CHECK(!conv(4, 4, 1, 0) && !conv(4, 4, 1, 3) && !conv(4, 4, 1, -1) && !conv(4, 4, 1, huge), "taps");
  CHECK(out == std::vector<uint8_t>(256, 7), "wrote");
  CHECK(tiles(0, 4, 4) && conv(4, 4, 1, 2), "what is right");
}

// One check for the three kinds of buffers.
using Check = const char* (*)(int32_t codec, const std::vector<uint8_t>& codes, int64_t N, int64_t K);

const char* check_row_major(int32_t codec, const std::vector<uint8_t>& codes, int64_t N, int64_t K) {
  return hybridkit_check_codes(codec, 0, codes.data(), codes.size(), N, K);
}
const char* check_tiled(int32_t codec, const std::vector<uint8_t>& codes, int64_t N, int64_t K) {
  return hybridkit_check_codes(codec, 1, codes.data(), codes.size(), N, K);
}
const char* check_conv(int32_t codec, const std::vector<uint8_t>& codes, int64_t N, int64_t K) {
  return hybridkit_check_conv_codes(codec, codes.data(), codes.size(), N, K, 1);
}

TEST(layout_of_dense_codes) {
  test::Random random(23);
  for (int i = 0; i < 200 * test::cases(); ++i) {
    const auto codec = random.one_of<int32_t>({HYBRIDKIT_SPARSE34, HYBRIDKIT_BASE3});
    const int64_t N = random.between(1, 40), K = random.between(1, 200);
    auto layer = reference::random_layer(random, codec, N, K);
    const auto codes = reference::row_major(layer), tiled = reference::tiled(layer);
    CHECK(hybridkit_code_bytes(codec, 0, N, K) == codes.size(), "row-major");
    CHECK(hybridkit_code_bytes(codec, 1, N, K) == tiled.size(), "tiled");
    std::vector<uint8_t> out(tiled.size(), 0xff);
    CHECK(hybridkit_tile(codec, codes.data(), N, K, out.data()) == nullptr && out == tiled, "tile");
    CHECK(check_row_major(codec, codes, N, K) == nullptr && check_tiled(codec, tiled, N, K) == nullptr, "good codes");
    out.pop_back();
    CHECK(check_tiled(codec, out, N, K) != nullptr, "truncated");
    CHECK(hybridkit_conv_code_bytes(codec, N, K, 1) == 0, "no convolutions");

    layer.codec = HYBRIDKIT_TERNARY;
    const auto expected = reference::tiled(layer);
    products::for_every_isa([&](const char* isa) {
      std::vector<uint8_t> ternary(expected.size(), 0xff);
      CHECK(hybridkit_expand(codec, tiled.data(), N, K, ternary.data()) == nullptr, "expand");
      // digits beyond N and K are any: what they meet is 0, or not used
      for (int64_t n = 0; n < N; ++n) {
        for (int64_t k = 0; k < K; ++k) {
          const int64_t at = ((n / 16 * ((K + 15) / 16) + k / 16) * 16 + n % 16) * 4 + k % 4;
          const int shift = k % 16 / 4 * 2;
          CHECK((ternary[at] >> shift & 3) == (expected[at] >> shift & 3), "%s codec %d N %lld K %lld", isa, codec,
                static_cast<long long>(N), static_cast<long long>(K));
        }
      }
    });
  }
  CHECK(hybridkit_expand(HYBRIDKIT_BASE3, nullptr, 0, 4, nullptr) != nullptr, "no rows");
  CHECK(hybridkit_expand(HYBRIDKIT_TERNARY, nullptr, 4, 4, nullptr) != nullptr, "two bits");
  CHECK(hybridkit_reads_tiles(8, 4, 4) == 0 && hybridkit_reads_tiles(HYBRIDKIT_TERNARY, 4, 0) == 0, "nonsense");
}

TEST(layout_of_base3_knows_its_bytes) {
  for (int row_major = 0; row_major < 256; ++row_major) {
    const std::vector<uint8_t> codes(4, static_cast<uint8_t>(row_major));
    CHECK((check_row_major(HYBRIDKIT_BASE3, codes, 1, 20) == nullptr) == (row_major < 243), "%d", row_major);
    std::vector<uint8_t> tiled(256);
    tiled[5] = static_cast<uint8_t>(row_major);  // every byte that tiling gives, and no other
    bool given = false;
    for (int v = 0; v < 243; ++v) given |= (256 * v + 242) / 243 == row_major;
    CHECK((check_tiled(HYBRIDKIT_BASE3, tiled, 1, 20) == nullptr) == given, "%d", row_major);
  }
}

TEST(layout_small_matrices_in_base3_are_expanded) {
  products::for_every_isa([&](const char* isa) {
    CHECK(hybridkit_reads_tiles(HYBRIDKIT_BASE3, 384, 384) == 0, "%s", isa);
    CHECK(hybridkit_reads_tiles(HYBRIDKIT_TERNARY, 384, 384) == 1, "%s", isa);
    CHECK(hybridkit_reads_tiles(HYBRIDKIT_BASE3, 4096, 4096) == hybridkit_reads_tiles(HYBRIDKIT_SPARSE34, 384, 384), "%s", isa);
  });
}

TEST(layout_checks_find_damage) {
  test::Random random(22);
  for (int i = 0; i < 100 * test::cases(); ++i) {
    const auto codec = random.one_of<int32_t>({HYBRIDKIT_TERNARY, HYBRIDKIT_BINARY});
    const int64_t N = random.between(1, 40), K = random.between(1, 100);
    const auto layer = reference::random_layer(random, codec, N, K);
    for (const Check check : {check_row_major, check_tiled, check_conv}) {
      const auto good = check == check_row_major ? reference::row_major(layer) : reference::tiled(layer);
      CHECK(check(codec, good, N, K) == nullptr, "good codes");
      auto damaged = good;
      damaged.resize(static_cast<size_t>(random.between(0, static_cast<int64_t>(good.size()) - 1)));
      CHECK(check(codec, damaged, N, K) != nullptr, "%zu of %zu bytes", damaged.size(), good.size());
      damaged = good;
      damaged.resize(good.size() + static_cast<size_t>(random.between(1, 70)));
      CHECK(check(codec, damaged, N, K) != nullptr, "%zu bytes for %zu", damaged.size(), good.size());
      damaged = good;
      damaged[random.between(0, static_cast<int64_t>(good.size()) - 1)] |= 3 << 2 * random.between(0, 3);
      CHECK((check(codec, damaged, N, K) != nullptr) == (codec == HYBRIDKIT_TERNARY), "a digit 3");
      CHECK(check(8, good, N, K) != nullptr && check(codec, good, 0, K) != nullptr, "nonsense");
      CHECK(check(codec, good, N, -1) != nullptr, "nonsense");
    }
  }
  CHECK(hybridkit_check_codes(HYBRIDKIT_TERNARY, 0, nullptr, 0, 1, 1) != nullptr, "no codes");
  CHECK(hybridkit_check_conv_codes(HYBRIDKIT_TERNARY, nullptr, 0, 4, 4, 3) != nullptr, "a group that does not divide");
}

}  // namespace
