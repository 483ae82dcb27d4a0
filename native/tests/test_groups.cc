// n-bit codes in groups under every instruction set against the naive product.
#include <array>

#include "products.h"

namespace {

using namespace products;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Case {
  int32_t codec, activations, dtype, scale_dtype;
  int64_t M, N, K, group_size;
};

void check_case(test::Random& random, const Case& c, const std::vector<float>& given, const hybridkit_parallel* host) {
  auto layer = reference::random_layer(random, c.codec, c.N, c.K, c.group_size);
  const auto scales = reference::tiled_scales(layer, c.scale_dtype);
  const reference::Array x = reference::array_of(c.dtype, given);
  const auto expected = reference::matmul(layer, c.activations, x.values, c.M);
  const size_t offset = static_cast<size_t>(random.between(0, 3));
  const auto codes = shifted(reference::tiled(layer), offset);
  const hybridkit_matrix matrix =
      matrix_of(layer, c.activations, codes.data() + offset, scales.data(), c.scale_dtype);
  for_every_isa([&](const char* isa) {
    Output y(c.dtype, c.M * c.N);
    const char* error = hybridkit_matmul(&matrix, c.dtype, x.bytes.data(), c.M, y.memory.data(), host);
    std::string first;
    const int64_t wrong = reference::mismatches(expected, c.activations, c.dtype, y.memory.data(), &first);
    CHECK(error == nullptr && wrong == 0 && y.guard_holds(),
          "%s %s codec %d dtype %d M %lld N %lld K %lld group %lld: %s, %lld wrong, %s", isa,
          name_of(c.codec, c.activations), c.codec, c.dtype, static_cast<long long>(c.M), static_cast<long long>(c.N),
          static_cast<long long>(c.K), static_cast<long long>(c.group_size), error ? error : "no error",
          static_cast<long long>(wrong), first.c_str());
  });
}

Case random_case(test::Random& random, int64_t M, int64_t N, int64_t K) {
  const auto codec = random.one_of<int32_t>({HYBRIDKIT_NBIT1, HYBRIDKIT_NBIT2, HYBRIDKIT_NBIT4, HYBRIDKIT_NBIT8});
  return {codec,
          random.one_of<int32_t>({HYBRIDKIT_INT8, HYBRIDKIT_INT8_BLOCKS, HYBRIDKIT_FLOAT}),
          random.one_of<int32_t>({HYBRIDKIT_F32, HYBRIDKIT_F32, HYBRIDKIT_F16, HYBRIDKIT_BF16}),
          random.one_of<int32_t>({HYBRIDKIT_F32, HYBRIDKIT_F16}),
          M,
          N,
          K,
          codec == HYBRIDKIT_NBIT1 ? random.one_of<int64_t>({32, 32, 64, 96, 128, 160, 480, 544, 65536})
                                   : random.one_of<int64_t>({16, 32, 32, 48, 64, 80, 128, 256, 496, 65536})};
}

void check_random(test::Random& random, int64_t M, int64_t N, int64_t K) {
  const Case c = random_case(random, M, N, K);
  check_case(random, c, random_activations(random, M * K, K), random_host(random));
}

TEST(groups_random_shapes) {
  test::Random random(41);
  for (int i = 0; i < 150 * test::cases(); ++i) {
    check_random(random, random.between(1, 20), random.between(1, 70), random.between(1, random.one_of({20, 90, 300})));
  }
}

TEST(groups_every_row_count) {
  test::Random random(42);
  for (int64_t M = 1; M <= 26; ++M) {
    for (int i = 0; i < 2 * test::cases(); ++i) check_random(random, M, random.between(17, 50), random.between(60, 150));
  }
}

TEST(groups_every_column_count) {
  test::Random random(43);
  for (int64_t K = 1; K <= 80; ++K) check_random(random, random.one_of<int64_t>({1, 2, 4, 6, 17}), random.between(1, 40), K);
}

TEST(groups_large) {  // several tasks, panels and blocks of rows
  test::Random random(44);
  for (const int32_t activations : {HYBRIDKIT_INT8, HYBRIDKIT_INT8_BLOCKS, HYBRIDKIT_FLOAT}) {
    for (const int32_t codec : {HYBRIDKIT_NBIT1, HYBRIDKIT_NBIT2, HYBRIDKIT_NBIT4, HYBRIDKIT_NBIT8}) {
      for (const auto& [M, N, K, group_size] : std::vector<std::array<int64_t, 4>>{
               {205, 100, 333, 64},
               {40, 40, 1300, 32},
               {40, 50, 1300, 576},
               {23, 20, 2100, 65536},
               {16, 3, 512, codec == HYBRIDKIT_NBIT1 ? 480 : 496}}) {
        const Case c{codec, activations, HYBRIDKIT_F32, HYBRIDKIT_F16, M, N, K, group_size};
        check_case(random, c, random_activations(random, c.M * c.K, c.K), hybridkit_thread_pool(2));
      }
    }
  }
}

TEST(groups_extremes_are_exact) {  // the largest sums there are
  test::Random random(45);
  for (const int32_t codec : {HYBRIDKIT_NBIT1, HYBRIDKIT_NBIT2, HYBRIDKIT_NBIT4, HYBRIDKIT_NBIT8}) {
    for (const int64_t M : {1, 5, 17}) {
      const Case c{codec, HYBRIDKIT_INT8, HYBRIDKIT_F32, HYBRIDKIT_F32, M, 3, 65536 + 40, HYBRIDKIT_MAX_GROUP};
      check_case(random, c, std::vector<float>(static_cast<size_t>(M * c.K), -3.0f), nullptr);
    }
  }
}

TEST(groups_special_values) {  // spoil their row, and nothing else
  test::Random random(46);
  for (const float value : {kNaN, kInfinity, -kInfinity, -0.0f, 1e-41f, 9e-6f}) {
    for (int i = 0; i < 8 * test::cases(); ++i) {
      const Case c = random_case(random, random.between(1, 12), random.between(1, 40), random.between(1, 120));
      auto x = random_activations(random, c.M * c.K, c.K);
      x[static_cast<size_t>(random.between(0, c.M * c.K - 1))] = value;
      check_case(random, c, x, random_host(random));
    }
  }
}

TEST(groups_refuse_nonsense) {
  test::Random random(47);
  auto layer = reference::random_layer(random, HYBRIDKIT_NBIT4, 3, 40, 32);
  const auto scales = reference::tiled_scales(layer, HYBRIDKIT_F32);
  const auto codes = reference::tiled(layer);
  const std::vector<float> x(40, 1.0f);
  const hybridkit_matrix good = matrix_of(layer, HYBRIDKIT_INT8, codes.data(), scales.data(), HYBRIDKIT_F32);
  const auto refused = [&](const auto& spoil) {
    hybridkit_matrix matrix = good;
    spoil(matrix);
    std::vector<float> y(3, 42.0f);
    const char* error = hybridkit_matmul(&matrix, HYBRIDKIT_F32, x.data(), 1, y.data(), nullptr);
    return error != nullptr && y == std::vector<float>(3, 42.0f);
  };
  CHECK(!refused([](hybridkit_matrix&) {}), "a good call");
  for (const int64_t size : {int64_t{0}, int64_t{-16}, int64_t{8}, int64_t{40}, int64_t{65552}, int64_t{1} << 62}) {
    CHECK(refused([&](hybridkit_matrix& m) { m.group_size = size; }), "group_size %lld", static_cast<long long>(size));
  }
  CHECK(refused([](hybridkit_matrix& m) {
          m.codec = HYBRIDKIT_NBIT1;
          m.group_size = 48;
          m.code_bytes = hybridkit_code_bytes(HYBRIDKIT_NBIT1, 1, 3, 40);
        }),
        "48 columns of one bit");
  CHECK(refused([](hybridkit_matrix& m) { m.group_scale = nullptr; }), "scales");
  CHECK(refused([](hybridkit_matrix& m) { m.bias = nullptr; }), "bias");
  CHECK(refused([](hybridkit_matrix& m) { m.scale_dtype = HYBRIDKIT_BF16; }), "scale_dtype");
  CHECK(refused([](hybridkit_matrix& m) { m.activations = 3; }), "activations");
  CHECK(refused([](hybridkit_matrix& m) { m.codec = 6; }), "codec");
  CHECK(refused([](hybridkit_matrix& m) { m.codec = HYBRIDKIT_TERNARY; }), "groups of ternary codes");
  CHECK(refused([](hybridkit_matrix& m) { m.code_bytes -= 1; }), "bytes");
}

TEST(groups_scales_in_tiles) {
  test::Random random(48);
  for (int i = 0; i < 20 * test::cases(); ++i) {
    const int64_t N = random.between(1, 40), K = random.between(1, 100), size = random.one_of<int64_t>({16, 48, 64});
    auto layer = reference::random_layer(random, HYBRIDKIT_NBIT2, N, K, size);
    for (const int32_t dtype : {HYBRIDKIT_F32, HYBRIDKIT_F16}) {
      const auto expected = reference::tiled_scales(layer, dtype);
      CHECK(hybridkit_scale_bytes(dtype, N, K, size) == expected.size(), "bytes");
      std::vector<uint8_t> tiled(expected.size());
      const char* error = hybridkit_tile_scales(layer.scale.data(), HYBRIDKIT_F32, N, K, size, dtype, tiled.data());
      CHECK(error == nullptr && tiled == expected, "%s", error ? error : "another order");
    }
    const auto halves = reference::array_of(HYBRIDKIT_F16, layer.scale);
    for (const int32_t dtype : {HYBRIDKIT_F32, HYBRIDKIT_F16}) {
      const auto expected = reference::tiled_scales(layer, dtype);
      std::vector<uint8_t> tiled(expected.size());
      const char* error = hybridkit_tile_scales(halves.bytes.data(), HYBRIDKIT_F16, N, K, size, dtype,
                                                tiled.data());
      CHECK(error == nullptr && tiled == expected, "%s", error ? error : "others of float16");
    }
    layer.scale[0] = 1.0f + std::ldexp(1.0f, -12);
    std::vector<uint8_t> tiled(hybridkit_scale_bytes(HYBRIDKIT_F16, N, K, size));
    const char* error =
        hybridkit_tile_scales(layer.scale.data(), HYBRIDKIT_F32, N, K, size, HYBRIDKIT_F16, tiled.data());
    CHECK(error != nullptr, "rounded");
  }
  CHECK(hybridkit_scale_bytes(HYBRIDKIT_BF16, 1, 1, 16) == 0 && hybridkit_scale_bytes(0, 1, 1, 15) == 0, "nonsense");
}

}  // namespace
