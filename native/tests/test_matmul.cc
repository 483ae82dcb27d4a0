// hybridkit_matmul under every instruction set against the naive product.
#include <thread>

#include "products.h"

namespace {

using namespace products;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Multiplies under every instruction set and compares. `offset` shifts the codes away from any alignment.
void check_product(const reference::Layer& layer, int32_t activations, int32_t dtype, const std::vector<float>& given,
                   int64_t M, const hybridkit_parallel* host, size_t offset = 0) {
  const reference::Array x = reference::array_of(dtype, given);
  const auto expected = reference::matmul(layer, activations, x.values, M);
  const std::vector<uint8_t> codes = shifted(reference::tiled(layer), offset);
  const hybridkit_matrix matrix = matrix_of(layer, activations, codes.data() + offset);
  for_every_isa([&](const char* isa) {
    Output y(dtype, M * layer.N);
    const char* error = hybridkit_matmul(&matrix, dtype, x.bytes.data(), M, y.memory.data(), host);
    std::string first;
    const int64_t wrong = reference::mismatches(expected, activations, dtype, y.memory.data(), &first);
    CHECK(error == nullptr && wrong == 0 && y.guard_holds(), "%s %s dtype %d M %lld N %lld K %lld: %s, %lld wrong, %s",
          isa, name_of(layer.codec, activations), dtype, static_cast<long long>(M), static_cast<long long>(layer.N),
          static_cast<long long>(layer.K), error ? error : "no error", static_cast<long long>(wrong), first.c_str());
  });
}

void check_random(test::Random& random, int64_t M, int64_t N, int64_t K) {
  const auto codec = random.one_of<int32_t>({HYBRIDKIT_TERNARY, HYBRIDKIT_BINARY, HYBRIDKIT_SPARSE34, HYBRIDKIT_BASE3});
  const auto activations = random.one_of<int32_t>({HYBRIDKIT_INT8, HYBRIDKIT_FLOAT});
  const auto dtype = random.one_of<int32_t>({HYBRIDKIT_F32, HYBRIDKIT_F32, HYBRIDKIT_F16, HYBRIDKIT_BF16});
  check_product(reference::random_layer(random, codec, N, K), activations, dtype,
                random_activations(random, M * K, K), M, random_host(random), random.between(0, 3));
}

TEST(matmul_random_shapes) {
  test::Random random(1);
  for (int i = 0; i < 120 * test::cases(); ++i) {
    const int64_t widest = random.one_of<int64_t>({5, 40, 300});
    check_random(random, random.between(1, 40), random.between(1, 70), random.between(1, widest));
  }
}

TEST(matmul_between_the_regimes) {
  test::Random random(2);
  for (const int64_t M : {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 16, 17, 31, 32, 33, 63, 65, 191, 192, 193, 385}) {
    for (int i = 0; i < test::cases(); ++i) check_random(random, M, random.between(1, 40), random.between(1, 200));
  }
}

TEST(matmul_every_column_count) {  // of a block and around it
  test::Random random(3);
  for (int64_t K = 1; K <= 70; ++K) check_random(random, random.between(1, 9), random.between(1, 20), K);
}

TEST(matmul_every_row_count) {
  test::Random random(4);
  for (int64_t N = 1; N <= 66; ++N) check_random(random, random.between(1, 9), N, random.between(1, 80));
}

TEST(matmul_large) {  // several tasks, panels and blocks of rows
  test::Random random(5);
  check_random(random, 1, 1000, 777);
  check_random(random, 9, 384, 384);
  check_random(random, 200, 100, 333);
  check_random(random, 420, 33, 129);
}

TEST(matmul_without_rows) {
  test::Random random(6);
  const auto layer = reference::random_layer(random, HYBRIDKIT_TERNARY, 5, 7);
  for (const int32_t activations : {HYBRIDKIT_INT8, HYBRIDKIT_FLOAT}) {
    check_product(layer, activations, HYBRIDKIT_F32, {}, 0, nullptr);
    check_product(layer, activations, HYBRIDKIT_F16, {}, 0, hybridkit_thread_pool(2));
  }
}

reference::Layer constant_layer(int32_t codec, int64_t N, int64_t K, int8_t code) {
  return {codec, N, K, std::vector<int8_t>(static_cast<size_t>(N * K), code),
          std::vector<float>(static_cast<size_t>(N), 1.0f), std::vector<float>(static_cast<size_t>(N), 0.0f)};
}

TEST(matmul_extremes_are_exact) {  // every weight and every activation of the same sign: the largest sums there are
  for (const int32_t codec : {HYBRIDKIT_TERNARY, HYBRIDKIT_BINARY, HYBRIDKIT_BASE3}) {
    for (const float value : {3.0f, -3.0f}) {
      for (const int64_t M : {1, 9, 40}) {
        const auto K = int64_t{65536}, N = M == 1 ? int64_t{17} : int64_t{1};
        const std::vector<float> x(static_cast<size_t>(M * K), value);
        check_product(constant_layer(codec, N, K, 1), HYBRIDKIT_INT8, HYBRIDKIT_F32, x, M, nullptr);
        if (M < 40) check_product(constant_layer(codec, N, K, -1), HYBRIDKIT_INT8, HYBRIDKIT_F32, x, M, nullptr);
      }
    }
  }
}

TEST(matmul_largest_K) {
  const int64_t K = HYBRIDKIT_MAX_K;
  const std::vector<float> x(static_cast<size_t>(K), -1.0f);
  check_product(constant_layer(HYBRIDKIT_TERNARY, 1, K, 1), HYBRIDKIT_INT8, HYBRIDKIT_F32, x, 1, nullptr);
  check_product(constant_layer(HYBRIDKIT_BINARY, 1, K, -1), HYBRIDKIT_INT8, HYBRIDKIT_F32, x, 1, nullptr);
  check_product(constant_layer(HYBRIDKIT_BASE3, 1, K, 1), HYBRIDKIT_INT8, HYBRIDKIT_F32, x, 1, nullptr);
}

TEST(matmul_special_values) {
  test::Random random(7);
  const float denormal = 1e-41f, tiny = std::numeric_limits<float>::min(), huge = 3e38f;
  for (const float value : {kNaN, -kNaN, kInfinity, -kInfinity, -0.0f, denormal, -denormal, tiny, 1e-5f, 9e-6f, huge}) {
    for (int i = 0; i < 6 * test::cases(); ++i) {
      const int64_t M = random.between(1, 20), N = random.between(1, 40), K = random.between(1, 120);
      const auto codec = random.one_of<int32_t>({HYBRIDKIT_TERNARY, HYBRIDKIT_BINARY, HYBRIDKIT_SPARSE34, HYBRIDKIT_BASE3});
      auto x = random_activations(random, M * K, K);
      x[random.between(0, M * K - 1)] = value;
      if (i % 3 == 0) std::fill(x.begin(), x.end(), value);
      const auto layer = reference::random_layer(random, codec, N, K);
      check_product(layer, HYBRIDKIT_INT8, HYBRIDKIT_F32, x, M, random_host(random));
      // sums of huge numbers may pass through infinity in float32
      if (value != huge) check_product(layer, HYBRIDKIT_FLOAT, HYBRIDKIT_F32, x, M, random_host(random));
      const auto dtype = random.one_of<int32_t>({HYBRIDKIT_F16, HYBRIDKIT_BF16});
      check_product(layer, HYBRIDKIT_INT8, dtype, x, M, random_host(random));
    }
  }
}

TEST(matmul_extreme_scales) {  // overflow to infinity, NaN and nothing at all, in the outputs alone
  test::Random random(8);
  for (int i = 0; i < 30 * test::cases(); ++i) {
    auto layer = reference::random_layer(random, HYBRIDKIT_TERNARY, random.between(1, 40), random.between(1, 90));
    for (auto* values : {&layer.scale, &layer.bias}) {
      for (float& value : *values) {
        if (random.chance(50)) value = random.one_of<float>({3e38f, -1e30f, 1e-40f, -0.0f, 0.0f, kInfinity, kNaN});
      }
    }
    const int64_t M = random.between(1, 12);
    const auto dtype = random.one_of<int32_t>({HYBRIDKIT_F32, HYBRIDKIT_F16, HYBRIDKIT_BF16});
    check_product(layer, HYBRIDKIT_INT8, dtype, random_activations(random, M * layer.K, layer.K), M, nullptr);
  }
}

TEST(matmul_of_any_bytes_stays_in_bounds) {  // a host that checks nothing gets wrong numbers, no wrong access
  test::Random random(9);
  for (int i = 0; i < 40 * test::cases(); ++i) {
    const int64_t M = random.between(1, 20), N = random.between(1, 40), K = random.between(1, 120);
    const auto codec = random.one_of<int32_t>({HYBRIDKIT_TERNARY, HYBRIDKIT_BINARY, HYBRIDKIT_SPARSE34, HYBRIDKIT_BASE3});
    const auto layer = reference::random_layer(random, codec, N, K);
    std::vector<uint8_t> codes(hybridkit_code_bytes(codec, 1, N, K));
    for (uint8_t& byte : codes) byte = static_cast<uint8_t>(random.bits());
    const auto x = random_activations(random, M * K, K);
    for (const int32_t activations : {HYBRIDKIT_INT8, HYBRIDKIT_FLOAT}) {
      const hybridkit_matrix matrix = matrix_of(layer, activations, codes.data());
      for_every_isa([&](const char* isa) {
        Output y(HYBRIDKIT_F32, M * N);
        const char* error = hybridkit_matmul(&matrix, HYBRIDKIT_F32, x.data(), M, y.memory.data(), nullptr);
        CHECK(error == nullptr && y.guard_holds(), "%s: %s", isa, error ? error : "wrote beyond y");
      });
    }
  }
}

TEST(matmul_refuses_nonsense) {
  test::Random random(10);
  const auto layer = reference::random_layer(random, HYBRIDKIT_TERNARY, 3, 5);
  const auto codes = reference::tiled(layer);
  const std::vector<float> x(5, 1.0f);
  const hybridkit_matrix good = matrix_of(layer, HYBRIDKIT_INT8, codes.data());
  const auto refused = [&](const hybridkit_matrix& matrix, int32_t dtype, int64_t M) {
    std::vector<float> y(3, 42.0f);
    const char* error = hybridkit_matmul(&matrix, dtype, x.data(), M, y.data(), nullptr);
    return error != nullptr && *error != '\0' && y == std::vector<float>(3, 42.0f);
  };
  CHECK(!refused(good, HYBRIDKIT_F32, 1), "a good call");
  CHECK(refused(good, 3, 1) && refused(good, -1, 1), "dtype");
  CHECK(refused(good, HYBRIDKIT_F32, -1), "M");
  for (const int64_t size : {int64_t{0}, int64_t{-1}, std::numeric_limits<int64_t>::min(), int64_t{1} << 62}) {
    hybridkit_matrix bad = good;
    bad.K = size;
    CHECK(refused(bad, HYBRIDKIT_F32, 1), "K %lld", static_cast<long long>(size));
    bad = good;
    bad.N = size;
    CHECK(refused(bad, HYBRIDKIT_F32, 1), "N %lld", static_cast<long long>(size));
  }
  hybridkit_matrix bad = good;
  bad.codec = 5;
  CHECK(refused(bad, HYBRIDKIT_F32, 1), "codec");
  bad = good;
  bad.activations = 7;
  CHECK(refused(bad, HYBRIDKIT_F32, 1), "activations");
}

// N and K of 2^31 and more, and any that the codes do not hold, are refused before anything is allocated or read.
TEST(matmul_refuses_what_the_codes_do_not_hold) {
  const std::vector<float> values(64, 1.0f);
  const std::vector<uint8_t> codes(64);
  std::vector<float> y(64, 42.0f);
  const auto refused = [&](int64_t N, int64_t K, int64_t M = 1) {
    const hybridkit_matrix matrix = {0, HYBRIDKIT_INT8, N, K, codes.data(), values.data(), values.data(), codes.size(), 0, nullptr, 0};
    return hybridkit_matmul(&matrix, HYBRIDKIT_F16, values.data(), M, y.data(), nullptr) != nullptr;
  };
  CHECK(!refused(16, 16), "what the codes hold");
  std::fill(y.begin(), y.end(), 42.0f);
  CHECK(refused(17, 16) && refused(16, 17) && refused(1, HYBRIDKIT_MAX_K) && refused(HYBRIDKIT_MAX_SIZE, 1), "a little");
  for (int shift = 31; shift < 63; ++shift) {
    const int64_t size = int64_t{1} << shift;
    CHECK(refused(size, 16) && refused(16, size) && refused(size, size), "2^%d", shift);
  }
  for (const int64_t M : {int64_t{1} << 57, int64_t{1} << 62, std::numeric_limits<int64_t>::max()}) {
    CHECK(refused(16, 16, M), "more rows than any memory holds");
  }
  CHECK(y == std::vector<float>(64, 42.0f), "wrote to y");
}

TEST(matmul_refuses_null_pointers) {
  const std::vector<float> values(16, 1.0f);
  const std::vector<uint8_t> codes(64);
  std::vector<float> y(16);
  const hybridkit_matrix good = {0, HYBRIDKIT_INT8, 16, 16, codes.data(), values.data(), values.data(), codes.size(), 0, nullptr, 0};
  const auto refused = [&](const hybridkit_matrix& matrix, const void* x, int64_t M, void* to) {
    return hybridkit_matmul(&matrix, HYBRIDKIT_F32, x, M, to, nullptr) != nullptr;
  };
  CHECK(!refused(good, values.data(), 1, y.data()) && !refused(good, nullptr, 0, nullptr), "good calls");
  CHECK(refused(good, nullptr, 1, y.data()) && refused(good, values.data(), 1, nullptr), "x and y");
  hybridkit_matrix bad[3] = {good, good, good};
  bad[0].codes = nullptr;
  bad[1].scale = nullptr;
  bad[2].bias = nullptr;
  for (const hybridkit_matrix& one : bad) CHECK(refused(one, values.data(), 1, y.data()), "codes, scale or bias");
}

TEST(matmul_from_several_threads) {
  test::Random random(11);
  const auto layer = reference::random_layer(random, HYBRIDKIT_TERNARY, 200, 300);
  const auto codes = reference::tiled(layer);
  const auto x = random_activations(random, 20 * 300, 300);
  const auto expected = reference::matmul(layer, HYBRIDKIT_INT8, x, 20);
  const hybridkit_matrix matrix = matrix_of(layer, HYBRIDKIT_INT8, codes.data());
  std::vector<std::string> problems(4);
  std::vector<std::thread> callers;
  for (std::string& problem : problems) {
    callers.emplace_back([&] {
      for (int i = 0; i < 20 && problem.empty(); ++i) {
        Output y(HYBRIDKIT_F32, 20 * 200);
        hybridkit_matmul(&matrix, HYBRIDKIT_F32, x.data(), 20, y.memory.data(), hybridkit_thread_pool(3));
        reference::mismatches(expected, HYBRIDKIT_INT8, HYBRIDKIT_F32, y.memory.data(), &problem);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  for (const std::string& problem : problems) CHECK(problem.empty(), "%s", problem.c_str());
}

TEST(matmul_tells_kernel_and_tasks) {
  test::Random random(12);
  const auto layer = reference::random_layer(random, HYBRIDKIT_TERNARY, 1000, 512);
  const auto codes = reference::tiled(layer);
  const hybridkit_matrix matrix = matrix_of(layer, HYBRIDKIT_INT8, codes.data());
  for_every_isa([&](const char* isa) {
    for (const int64_t M : {1, 8, 128, 512}) {
      const std::string kernel = hybridkit_kernel(&matrix, M);
      CHECK(kernel == "stream" || kernel == "tile", "%s M %lld: %s", isa, static_cast<long long>(M), kernel.c_str());
      CHECK(hybridkit_tasks(&matrix, M) >= 1, "%s M %lld", isa, static_cast<long long>(M));
    }
    CHECK(std::string(hybridkit_kernel(&matrix, 1)) == "stream", "%s", isa);
    CHECK(hybridkit_tasks(&matrix, 512) > 1, "%s", isa);
  });
}

}  // namespace
