// hybridkit_conv under every instruction set against the naive convolution.
#include "products.h"

namespace {

using namespace products;

int64_t product(const int64_t* sizes, int axes) {
  int64_t result = 1;
  for (int axis = 0; axis < axes; ++axis) result *= sizes[axis];
  return result;
}

// Any attributes that fit: sizes grow until the kernel fits into the padded input.
hybridkit_geometry random_geometry(test::Random& random) {
  hybridkit_geometry g{};
  g.axes = static_cast<int32_t>(random.between(1, 3));
  g.group = random.chance(60) ? 1 : random.between(2, 4);
  g.channels = g.group * random.between(1, random.chance(20) ? 20 : 5);
  const int64_t widest = g.axes == 1 ? 30 : g.axes == 2 ? 9 : 5;
  for (int axis = 0; axis < g.axes; ++axis) {
    g.kernel[axis] = random.between(1, g.axes == 3 ? 2 : 4);
    g.stride[axis] = random.between(1, 3);
    g.dilation[axis] = random.between(1, 3);
    g.pad_begin[axis] = random.chance(50) ? 0 : random.between(0, 4);
    g.pad_end[axis] = random.chance(50) ? g.pad_begin[axis] : random.between(0, 4);
    const int64_t extent = g.dilation[axis] * (g.kernel[axis] - 1) + 1;
    const int64_t least = std::max<int64_t>(extent - g.pad_begin[axis] - g.pad_end[axis], 1);
    g.size[axis] = random.between(least, std::max(least, widest));
  }
  return g;
}

void check_conv(const reference::Layer& layer, const hybridkit_geometry& g, int32_t activations, int32_t dtype,
                const std::vector<float>& given, int64_t batch, const hybridkit_parallel* host) {
  const int64_t taps = product(g.kernel, g.axes);
  int64_t out[3] = {1, 1, 1};
  const char* wrong_shape = hybridkit_conv_shape(&g, layer.N, out);
  if (!CHECK(wrong_shape == nullptr, "%s", wrong_shape)) return;
  const reference::Array x = reference::array_of(dtype, given);
  const auto expected = reference::conv(layer, g, activations, x.values, batch);
  const int64_t count = batch * layer.N * product(out, g.axes);
  if (!CHECK(count == static_cast<int64_t>(expected.size()), "%lld outputs", static_cast<long long>(count))) return;
  const std::vector<uint8_t> codes = reference::tiled(layer, g.group, taps);
  const hybridkit_matrix matrix = matrix_of(layer, activations, codes.data(), g.group);
  for_every_isa([&](const char* isa) {
    Output y(dtype, count);
    const char* error = hybridkit_conv(&matrix, &g, dtype, x.bytes.data(), batch, y.memory.data(), host);
    std::string first;
    const int64_t wrong = reference::mismatches(expected, activations, dtype, y.memory.data(), &first);
    CHECK(error == nullptr && wrong == 0 && y.guard_holds(),
          "%s %s dtype %d batch %lld N %lld C %lld group %lld axes %d size %lld... kernel %lld... stride %lld...: "
          "%s, %lld of %lld wrong, %s",
          isa, name_of(layer.codec, activations), dtype, static_cast<long long>(batch),
          static_cast<long long>(layer.N), static_cast<long long>(g.channels), static_cast<long long>(g.group), g.axes,
          static_cast<long long>(g.size[0]), static_cast<long long>(g.kernel[0]), static_cast<long long>(g.stride[0]),
          error ? error : "no error", static_cast<long long>(wrong), static_cast<long long>(count), first.c_str());
  });
}

reference::Layer layer_for(test::Random& random, const hybridkit_geometry& g, int64_t outputs_per_group) {
  const auto codec = random.one_of<int32_t>({HYBRIDKIT_TERNARY, HYBRIDKIT_BINARY});
  return reference::random_layer(random, codec, g.group * outputs_per_group,
                                 g.channels / g.group * product(g.kernel, g.axes));
}

TEST(conv_random_attributes) {
  test::Random random(30);
  for (int i = 0; i < 120 * test::cases(); ++i) {
    const hybridkit_geometry g = random_geometry(random);
    const auto layer = layer_for(random, g, random.between(1, random.chance(20) ? 36 : 6));
    const int64_t batch = random.between(0, 3), sample = g.channels * product(g.size, g.axes);
    const auto activations = random.one_of<int32_t>({HYBRIDKIT_INT8, HYBRIDKIT_FLOAT});
    const auto dtype = random.one_of<int32_t>({HYBRIDKIT_F32, HYBRIDKIT_F32, HYBRIDKIT_F16, HYBRIDKIT_BF16});
    check_conv(layer, g, activations, dtype, random_activations(random, batch * sample, sample), batch,
               random_host(random));
  }
}

TEST(conv_as_networks_have_them) {
  test::Random random(31);
  const hybridkit_geometry image = {2, 16, 1, {20, 20}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, {1, 1}};
  const hybridkit_geometry strided = {2, 3, 1, {29, 29}, {7, 7}, {2, 2}, {1, 1}, {3, 3}, {3, 3}};
  const hybridkit_geometry pointwise = {2, 40, 1, {9, 9}, {1, 1}, {1, 1}, {1, 1}, {0, 0}, {0, 0}};
  const hybridkit_geometry depthwise = {2, 18, 18, {10, 10}, {3, 3}, {1, 1}, {1, 1}, {1, 1}, {1, 1}};
  const hybridkit_geometry causal = {1, 24, 1, {50}, {3}, {1}, {4}, {8}, {0}};
  for (const hybridkit_geometry& g : {image, strided, pointwise, depthwise, causal}) {
    const auto layer = layer_for(random, g, g.group == g.channels ? 1 : 20);
    const int64_t sample = g.channels * product(g.size, g.axes);
    const auto x = random_activations(random, 2 * sample, sample);
    for (const int32_t activations : {HYBRIDKIT_INT8, HYBRIDKIT_FLOAT}) {
      check_conv(layer, g, activations, HYBRIDKIT_F32, x, 2, hybridkit_thread_pool(3));
    }
  }
}

TEST(conv_special_values) {  // a NaN or an infinity spoils its own sample only
  test::Random random(32);
  constexpr float infinity = std::numeric_limits<float>::infinity();
  for (const float value : {std::numeric_limits<float>::quiet_NaN(), infinity, -infinity, 1e-41f, -0.0f}) {
    for (int i = 0; i < 8 * test::cases(); ++i) {
      const hybridkit_geometry g = random_geometry(random);
      const auto layer = layer_for(random, g, random.between(1, 6));
      const int64_t sample = g.channels * product(g.size, g.axes);
      auto x = random_activations(random, 3 * sample, sample);
      x[random.between(0, 3 * sample - 1)] = value;
      for (const int32_t activations : {HYBRIDKIT_INT8, HYBRIDKIT_FLOAT}) {
        check_conv(layer, g, activations, HYBRIDKIT_F32, x, 3, random_host(random));
      }
    }
  }
}

TEST(conv_extremes_are_exact) {
  const hybridkit_geometry g = {1, 65536, 1, {3}, {1}, {1}, {1}, {0}, {0}};
  reference::Layer layer{HYBRIDKIT_TERNARY, 2, 65536, std::vector<int8_t>(2 * 65536, 1), {1, 1}, {0, 0}};
  check_conv(layer, g, HYBRIDKIT_INT8, HYBRIDKIT_F32, std::vector<float>(3 * 65536, 7.0f), 1, nullptr);
  std::fill(layer.codes.begin(), layer.codes.end(), int8_t{-1});
  check_conv(layer, g, HYBRIDKIT_INT8, HYBRIDKIT_F32, std::vector<float>(3 * 65536, 7.0f), 1, nullptr);
}

TEST(conv_of_any_bytes_stays_in_bounds) {
  test::Random random(33);
  for (int i = 0; i < 40 * test::cases(); ++i) {
    const hybridkit_geometry g = random_geometry(random);
    const auto layer = layer_for(random, g, random.between(1, 20));
    std::vector<uint8_t> codes(hybridkit_conv_code_bytes(layer.codec, layer.N, layer.K, g.group));
    for (uint8_t& byte : codes) byte = static_cast<uint8_t>(random.bits());
    const std::vector<float> x = random_activations(random, g.channels * product(g.size, g.axes), 1);
    int64_t out[3] = {1, 1, 1};
    hybridkit_conv_shape(&g, layer.N, out);
    for (const int32_t activations : {HYBRIDKIT_INT8, HYBRIDKIT_FLOAT}) {
      const hybridkit_matrix matrix = matrix_of(layer, activations, codes.data(), g.group);
      for_every_isa([&](const char* isa) {
        Output y(HYBRIDKIT_F32, layer.N * product(out, g.axes));
        const char* error = hybridkit_conv(&matrix, &g, HYBRIDKIT_F32, x.data(), 1, y.memory.data(), nullptr);
        CHECK(error == nullptr && y.guard_holds(), "%s: %s", isa, error ? error : "wrote beyond y");
      });
    }
  }
}

TEST(conv_of_an_empty_input) {  // samples of no pixels, at a null pointer, of which padding makes outputs
  test::Random random(34);
  for (const int64_t group : {1, 4}) {
    const hybridkit_geometry g = {2, 4, group, {0, 3}, {1, 2}, {1, 1}, {1, 1}, {1, 0}, {1, 1}};
    const auto layer = layer_for(random, g, group == 4 ? 1 : 5);
    for (const int32_t activations : {HYBRIDKIT_INT8, HYBRIDKIT_FLOAT}) {
      for (const int32_t dtype : {HYBRIDKIT_F32, HYBRIDKIT_F16, HYBRIDKIT_BF16}) {
        for (const int64_t batch : {0, 1, 3}) check_conv(layer, g, activations, dtype, {}, batch, nullptr);
      }
    }
  }
}

// What a tiny input would be padded to is looked at before it is: with these pads it kept the scalar kernels busy for
// many minutes, or asked for more memory than there is, or its size overflowed and less was taken than written to.
TEST(conv_refuses_padding_beyond_measure) {
  int64_t out[3];
  const std::vector<float> x(64, 1.0f), scale(1, 1.0f), bias(1);
  const std::vector<uint8_t> codes(64);
  std::vector<float> y(64, 42.0f);
  const hybridkit_matrix matrix = {0, HYBRIDKIT_INT8, 1, 1, codes.data(), scale.data(), bias.data(), codes.size(), 0, nullptr, 0};
  for (const int64_t pad : {int64_t{1} << 22, int64_t{1} << 30, int64_t{HYBRIDKIT_MAX_SIZE}}) {
    for (const int32_t axes : {1, 2, 3}) {
      const hybridkit_geometry g = {axes, 1, 1, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {pad, pad, pad}, {0, 0, 0}};
      CHECK(hybridkit_conv_shape(&g, 1, out) != nullptr, "%d axes, pad %lld", axes, static_cast<long long>(pad));
      const char* error = hybridkit_conv(&matrix, &g, HYBRIDKIT_F32, x.data(), 1, y.data(), nullptr);
      CHECK(error != nullptr && y[0] == 42.0f, "%d axes, pad %lld", axes, static_cast<long long>(pad));
    }
  }
  const hybridkit_geometry wide = {1, 1, 1, {1}, {1}, {1}, {1}, {HYBRIDKIT_MAX_PADDED - 1}, {0}};
  CHECK(hybridkit_conv_shape(&wide, 1, out) == nullptr && out[0] == HYBRIDKIT_MAX_PADDED, "as much as is allowed");
  const hybridkit_geometry large = {1, 1, 1, {HYBRIDKIT_MAX_PADDED}, {1}, {1}, {1}, {HYBRIDKIT_MAX_PADDED}, {0}};
  CHECK(hybridkit_conv_shape(&large, 1, out) == nullptr, "twice a large input");
}

TEST(conv_refuses_products_that_overflow) {
  int64_t out[3];
  const int64_t most = HYBRIDKIT_MAX_SIZE, half = int64_t{1} << 22;
  const hybridkit_geometry sizes = {3, 1, 1, {most, most, most}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {}, {}};
  CHECK(hybridkit_conv_shape(&sizes, 1, out) != nullptr, "an input of 2^93 pixels");
  // 2^66 taps are 4 in 64 bits, if K says so
  const hybridkit_geometry taps = {3, 1, 1, {half, half, half}, {half, half, half}, {1, 1, 1}, {1, 1, 1}, {}, {}};
  const std::vector<float> one(64, 1.0f);
  const std::vector<uint8_t> codes(64);
  std::vector<float> y(64, 42.0f);
  for (const int64_t K : {1, 4, 16}) {
    const hybridkit_matrix matrix = {0, HYBRIDKIT_INT8, 1, K, codes.data(), one.data(), one.data(), codes.size(), 0, nullptr, 0};
    CHECK(hybridkit_conv(&matrix, &taps, HYBRIDKIT_F32, one.data(), 1, y.data(), nullptr) != nullptr, "K");
  }
  const hybridkit_geometry point = {1, 1, 1, {4}, {1}, {1}, {1}, {}, {}};
  const hybridkit_matrix matrix = {0, HYBRIDKIT_INT8, 1, 1, codes.data(), one.data(), one.data(), codes.size(), 0, nullptr, 0};
  for (const int64_t batch : {int64_t{1} << 60, int64_t{1} << 62, std::numeric_limits<int64_t>::max()}) {
    CHECK(hybridkit_conv(&matrix, &point, HYBRIDKIT_F32, one.data(), batch, y.data(), nullptr) != nullptr, "batch");
  }
}

TEST(conv_refuses_nonsense) {
  const hybridkit_geometry good = {2, 4, 2, {5, 5}, {3, 3}, {1, 1}, {1, 1}, {0, 0}, {0, 0}};
  int64_t out[3];
  CHECK(hybridkit_conv_shape(&good, 6, out) == nullptr && out[0] == 3 && out[1] == 3, "a good geometry");
  const auto refused = [&](auto change, int64_t N = 6) {
    hybridkit_geometry g = good;
    change(g);
    const char* error = hybridkit_conv_shape(&g, N, out);
    const std::vector<float> x(100), scale(6, 1.0f), bias(6);
    const std::vector<uint8_t> codes(2 * 2 * 64);
    std::vector<float> y(6 * 9, 42.0f);
    const hybridkit_matrix matrix = {HYBRIDKIT_TERNARY, HYBRIDKIT_INT8, N, 18, codes.data(), scale.data(),
                                     bias.data(), codes.size(), 0, nullptr, 0};
    const char* call = hybridkit_conv(&matrix, &g, HYBRIDKIT_F32, x.data(), 1, y.data(), nullptr);
    return error != nullptr && call != nullptr && y == std::vector<float>(6 * 9, 42.0f);
  };
  constexpr int64_t most = std::numeric_limits<int64_t>::max(), least = std::numeric_limits<int64_t>::min();
  for (const int64_t value : {int64_t{0}, int64_t{-1}, least, most}) {
    CHECK(refused([=](auto& g) { g.stride[0] = value; }), "stride");
    CHECK(refused([=](auto& g) { g.dilation[1] = value; }), "dilation");
    CHECK(refused([=](auto& g) { g.kernel[1] = value; }), "kernel");
    CHECK(refused([=](auto& g) { g.group = value; }), "group");
    CHECK(refused([=](auto& g) { g.channels = value; }), "channels");
  }
  for (const int64_t value : {int64_t{-1}, least, most}) {
    CHECK(refused([=](auto& g) { g.size[0] = value; }), "size");
    CHECK(refused([=](auto& g) { g.pad_begin[0] = value; }), "pad");
    CHECK(refused([=](auto& g) { g.pad_end[1] = value; }), "pad");
  }
  CHECK(refused([](auto& g) { g.axes = 0; }) && refused([](auto& g) { g.axes = 4; }), "axes");
  CHECK(refused([](auto& g) { g.kernel[0] = 6; }), "a kernel larger than the input");
  CHECK(refused([](auto& g) { g.channels = 5; }), "channels that do not divide");
  CHECK(refused([](auto&) {}, 5), "outputs that do not divide");
}

}  // namespace
