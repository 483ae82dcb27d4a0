#include "reference.h"

#include <cmath>
#include <cstring>
#include <limits>

namespace reference {
namespace {

constexpr double kUnit = 1.0 / (1 << 24);  // half a unit in the last place of 1, in float32

int bits_of(int32_t codec) {
  constexpr int bits[] = {2, 1, 1, 2, 4, 8, 2, 2};
  return bits[codec];
}

int bits_of(const Layer& layer) { return bits_of(layer.codec); }

int digit_of(const Layer& layer, int64_t n, int64_t k) {
  const int code = layer.code(n, k);
  if (bits_of(layer) == 1) return (code + 1) / 2;
  return layer.codec == HYBRIDKIT_TERNARY ? code + 1 : code + (1 << (bits_of(layer) - 1));
}

// Of 3:4-sparse codes: the field of four columns, of which the first is there.
int field_of(const Layer& layer, int64_t n, int64_t first) {
  int zero = 4, field = 0;
  for (int place = 3; place >= 0; --place) {
    const bool there = first + place < layer.K;
    if (there ? layer.code(n, first + place) == 0 : zero == 4 || zero > place) zero = place;
  }
  for (int place = 0; place < 4 && first + place < layer.K; ++place) {
    if (place != zero && layer.code(n, first + place) == 1) field |= 1 << (place - (place > zero ? 1 : 0));
  }
  return field | zero << 3;
}

// Its fields as bits, each in five of them, the lowest first.
std::vector<bool> field_bits(const Layer& layer, int64_t n, int64_t fields) {
  std::vector<bool> bits;
  for (int64_t i = 0; i < fields; ++i) {
    const int field = 4 * i < layer.K ? field_of(layer, n, 4 * i) : 0;
    for (int bit = 0; bit < 5; ++bit) bits.push_back(field >> bit & 1);
  }
  return bits;
}

// In base 3: the digit of column k; beyond K it is 0.
int base3_digit(const Layer& layer, int64_t n, int64_t k) { return k < layer.K ? layer.code(n, k) + 1 : 0; }

std::vector<uint8_t> base3_rows(const Layer& layer) {
  std::vector<uint8_t> bytes;
  for (int64_t n = 0; n < layer.N; ++n) {
    for (int64_t first = 0; first < layer.K; first += 5) {
      int sum = 0;
      for (int64_t p = 4; p >= 0; --p) sum = 3 * sum + base3_digit(layer, n, first + p);
      bytes.push_back(static_cast<uint8_t>(sum));
    }
  }
  return bytes;
}

std::vector<uint8_t> base3_tiles(const Layer& layer) {
  const int64_t lines = (layer.K + 79) / 80 * 4;
  std::vector<uint8_t> bytes((layer.N + 15) / 16 * lines * 64);
  for (int64_t n = 0; n < layer.N; ++n) {
    for (int64_t line = 0; line < lines; ++line) {
      for (int64_t j = 0; j < 4; ++j) {
        int v = 0;
        for (int64_t p = 0; p < 5; ++p) v = 3 * v + base3_digit(layer, n, 20 * line + 4 * p + j);
        const double third = std::ceil(256.0 * v / 243);
        bytes[((n / 16 * lines + line) * 16 + n % 16) * 4 + j] = static_cast<uint8_t>(third);
      }
    }
  }
  return bytes;
}

// float16 has 5 bits of exponent and 10 of mantissa, bfloat16 8 and 7.
struct Half {
  int mantissa, bias;
};

Half half_of(int32_t dtype) { return dtype == HYBRIDKIT_F16 ? Half{10, 15} : Half{7, 127}; }

double half_value(Half half, uint16_t bits) {
  const int exponents = 1 << (15 - half.mantissa), exponent = bits >> half.mantissa & (exponents - 1);
  const int mantissa = bits & ((1 << half.mantissa) - 1);
  const double sign = bits >> 15 ? -1 : 1;
  if (exponent == exponents - 1) {
    return mantissa ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
  }
  const int implied = exponent ? 1 << half.mantissa : 0;
  return sign * std::ldexp(implied + mantissa, (exponent ? exponent : 1) - half.bias - half.mantissa);
}

// The nearest half, halves to even: the positive halves are ordered as their bits are, so that bisection finds it.
uint16_t half_bits(Half half, double value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0, infinity = 0x7fff >> half.mantissa << half.mantissa;
  const double size = std::fabs(value);
  if (std::isnan(value)) return static_cast<uint16_t>(sign | infinity | 1 << (half.mantissa - 1));
  uint16_t low = 0, high = infinity;  // value(low) <= size < value(high), or high is infinity
  while (high - low > 1) {
    const auto middle = static_cast<uint16_t>((low + high) / 2);
    (half_value(half, middle) <= size ? low : high) = middle;
  }
  // beyond the largest number the next one is where another exponent would have put it
  const double above = high == infinity ? std::ldexp(1.0, half.bias + 1) : half_value(half, high);
  const double to_low = size - half_value(half, low), to_high = above - size;
  const bool up = to_high < to_low || (to_high == to_low && (low & 1));
  return static_cast<uint16_t>(sign | (up ? high : low));
}

float half_unit(int32_t dtype) {  // half a unit in the last place of 1
  return dtype == HYBRIDKIT_F32 ? 0.0f : std::ldexp(1.0f, -half_of(dtype).mantissa - 1);
}

float row_scale(const float* x, int64_t n) {
  float largest = 1e-5f;
  for (int64_t i = 0; i < n; ++i) {
    if (!std::isfinite(x[i])) return std::numeric_limits<float>::quiet_NaN();
    largest = std::fmax(largest, std::fabs(x[i]));
  }
  return largest / 127.0f;
}

int64_t activation_code(float x, float s) {
  return static_cast<int64_t>(std::fmin(std::fmax(std::nearbyint(x / s), -127.0f), 127.0f));
}

// One output as the sum over (activation, code) pairs that `visit` hands out.
template <class Visit>
Expected output(const Layer& layer, int64_t n, int32_t activations, float s, const Visit& visit) {
  const float scale = layer.scale[n], bias = layer.bias[n];
  if (activations == HYBRIDKIT_INT8) {
    if (std::isnan(s)) return {std::numeric_limits<double>::quiet_NaN(), 0};
    int64_t sum = 0;
    visit([&](float x, int8_t code) { sum += activation_code(x, s) * code; });
    const volatile float factor = s * scale;  // volatile: every step rounds to float32
    const volatile float product = static_cast<float>(sum) * factor;
    return {product + bias, 0};
  }
  double sum = 0, sizes = 0;
  int64_t terms = 0;
  visit([&](float x, int8_t code) {
    sum += static_cast<double>(x) * code;
    sizes += std::fabs(x);
    ++terms;
  });
  // |error| <= gamma * sum |x q| for any order of summation, then one rounding each for the scale and the bias
  const double product = sum * scale, gamma = static_cast<double>(terms) * kUnit * 1.01;
  const double slack = gamma * sizes * std::fabs(scale) + 2 * kUnit * (std::fabs(product) + std::fabs(bias)) + 1e-44;
  return {product + bias, slack};
}

// The same where every group of a row has a scale. `visit` hands out (activation, code) pairs of a group.
template <class Visit>
Expected group_output(const Layer& layer, int64_t n, int32_t activations, const std::vector<float>& s,
                      const Visit& visit) {
  const float bias = layer.bias[n];
  volatile float total = 0;  // volatile: every step rounds to float32
  double exact = 0, sizes = 0;
  int64_t terms = 0;
  for (int64_t g = 0; g < layer.groups(); ++g) {
    const float scale = layer.scale[n * layer.groups() + g];
    int64_t sum = 0;
    double float_sum = 0, float_sizes = 0;
    visit(g, [&](float x, int8_t code) {
      if (activations != HYBRIDKIT_FLOAT && !std::isnan(s[g])) sum += activation_code(x, s[g]) * code;
      float_sum += static_cast<double>(x) * code;
      float_sizes += std::fabs(static_cast<double>(x) * code);
      ++terms;
    });
    const volatile float factor = s[g] * scale;
    const volatile float product = static_cast<float>(sum) * factor;
    total = total + product;
    exact += float_sum * scale;
    sizes += float_sizes * std::fabs(scale);
  }
  if (activations != HYBRIDKIT_FLOAT) return {total + bias, 0};
  // any order of summation, a rounding for every scale, then one for the bias
  const double gamma = static_cast<double>(terms + layer.groups() + 2) * kUnit * 1.01;
  return {exact + bias, gamma * sizes + 2 * kUnit * (std::fabs(exact) + std::fabs(bias)) + 1e-42};
}

}  // namespace

Layer random_layer(test::Random& random, int32_t codec, int64_t N, int64_t K, int64_t group_size) {
  Layer layer{codec, N, K, {}, {}, {}, group_size};
  const int half = 1 << (bits_of(codec) - 1);
  const bool nbit = codec >= HYBRIDKIT_NBIT2 && codec <= HYBRIDKIT_NBIT8, extreme = random.chance(10);
  for (int64_t i = 0; i < N * K; ++i) {
    const auto draw = nbit ? random.between(-half, half - 1) : random.between(0, 2);
    const auto code = codec == HYBRIDKIT_TERNARY || codec == HYBRIDKIT_BASE3 ? draw - 1 : bits_of(codec) == 1 ? draw % 2 * 2 - 1 : draw;
    layer.codes.push_back(static_cast<int8_t>(nbit && extreme ? (draw < 0 ? -half : half - 1) : code));
  }
  for (int64_t n = 0; layer.sparse() && n < N; ++n) {
    for (int64_t first = 0; first < K; first += 4) {
      const int64_t zero = first + random.between(0, 3);
      for (int64_t k = first; k < first + 4 && k < K; ++k) {
        layer.codes[n * K + k] = static_cast<int8_t>(k == zero ? 0 : random.chance(50) ? 1 : -1);
      }
    }
  }
  for (int64_t n = 0; n < N; ++n) {
    for (int64_t g = 0; g < layer.groups(); ++g) {
      layer.scale.push_back(random.chance(5) ? 0.0f : random.real(2.0f));
    }
    layer.bias.push_back(random.chance(30) ? 0.0f : random.real(1.0f));
  }
  return layer;
}

std::vector<uint8_t> row_major(const Layer& layer) {
  if (layer.base3()) return base3_rows(layer);
  if (layer.sparse()) {
    const int64_t fields = (layer.K + 3) / 4, row = (5 * fields + 7) / 8;
    std::vector<uint8_t> bytes(layer.N * row);
    for (int64_t n = 0; n < layer.N; ++n) {
      const auto bits = field_bits(layer, n, fields);
      for (size_t i = 0; i < bits.size(); ++i) bytes[n * row + i / 8] |= static_cast<uint8_t>(bits[i] << i % 8);
    }
    return bytes;
  }
  const int bits = bits_of(layer), digits = 8 / bits;
  const int64_t row = (layer.K + digits - 1) / digits;
  std::vector<uint8_t> bytes(layer.N * row);
  for (int64_t n = 0; n < layer.N; ++n) {
    for (int64_t k = 0; k < layer.K; ++k) {
      bytes[n * row + k / digits] |= static_cast<uint8_t>(digit_of(layer, n, k) << (k % digits * bits));
    }
  }
  return bytes;
}

std::vector<uint8_t> tiled(const Layer& layer, int64_t group, int64_t taps) {
  if (layer.base3()) return base3_tiles(layer);
  if (layer.sparse()) {
    const int64_t units = (layer.K + 31) / 32;
    std::vector<uint8_t> bytes((layer.N + 15) / 16 * units * 80);
    for (int64_t n = 0; n < layer.N; ++n) {
      const auto bits = field_bits(layer, n, 8 * units);
      for (size_t i = 0; i < bits.size(); ++i) {
        const size_t unit = i / 40, byte = i % 40 / 8, row = n % 16;
        uint8_t* to = bytes.data() + (n / 16 * units + unit) * 80;
        to[byte < 4 ? 4 * row + byte : 64 + row] |= static_cast<uint8_t>(bits[i] << i % 8);
      }
    }
    return bytes;
  }
  const int bits = bits_of(layer), P = 8 / bits, step = bits == 1 ? 32 : 16;
  const int64_t rows = layer.N / group, channels = layer.K / taps;
  const int64_t tiles = (rows + 15) / 16, blocks = (layer.K + step - 1) / step * step / (4 * P);
  std::vector<uint8_t> bytes(group * tiles * blocks * 64);
  for (int64_t n = 0; n < layer.N; ++n) {
    for (int64_t channel = 0; channel < channels; ++channel) {
      for (int64_t tap = 0; tap < taps; ++tap) {
        const int64_t k = tap * channels + channel, row = n % rows;
        const int64_t t = n / rows * tiles + row / 16, b = k / (4 * P), p = k / 4 % P;
        bytes[((t * blocks + b) * 16 + row % 16) * 4 + k % 4] |=
            static_cast<uint8_t>(digit_of(layer, n, channel * taps + tap) << (p * bits));
      }
    }
  }
  return bytes;
}

std::vector<uint8_t> tiled_scales(Layer& layer, int32_t dtype) {
  const Array given = array_of(dtype, layer.scale);
  layer.scale = given.values;
  const size_t size = dtype == HYBRIDKIT_F32 ? 4 : 2;
  const int64_t groups = layer.groups();
  std::vector<uint8_t> bytes(static_cast<size_t>((layer.N + 15) / 16 * groups * 16) * size);
  for (int64_t n = 0; n < layer.N; ++n) {
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t to = (n / 16 * groups + g) * 16 + n % 16;
      std::memcpy(bytes.data() + to * size, given.bytes.data() + (n * groups + g) * size, size);
    }
  }
  return bytes;
}

Array array_of(int32_t dtype, const std::vector<float>& values) {
  Array array{dtype, {}, values};
  array.bytes.resize(values.size() * (dtype == HYBRIDKIT_F32 ? 4 : 2));
  if (dtype == HYBRIDKIT_F32) {
    if (!values.empty()) std::memcpy(array.bytes.data(), values.data(), array.bytes.size());
    return array;
  }
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t bits = half_bits(half_of(dtype), values[i]);
    std::memcpy(array.bytes.data() + 2 * i, &bits, 2);
    array.values[i] = static_cast<float>(half_value(half_of(dtype), bits));
  }
  return array;
}

std::vector<float> values_of(int32_t dtype, const void* bytes, int64_t count) {
  std::vector<float> values(count);
  for (int64_t i = 0; i < count; ++i) {
    if (dtype == HYBRIDKIT_F32) {
      std::memcpy(&values[i], static_cast<const uint8_t*>(bytes) + 4 * i, 4);
    } else {
      uint16_t bits;
      std::memcpy(&bits, static_cast<const uint8_t*>(bytes) + 2 * i, 2);
      values[i] = static_cast<float>(half_value(half_of(dtype), bits));
    }
  }
  return values;
}

std::vector<Expected> matmul(const Layer& layer, int32_t activations, const std::vector<float>& x, int64_t M) {
  std::vector<Expected> expected;
  for (int64_t m = 0; m < M; ++m) {
    const float* row = x.data() + m * layer.K;
    const float s = row_scale(row, layer.K);
    std::vector<float> of_groups;
    for (int64_t g = 0; g < layer.groups(); ++g) {
      const int64_t first = g * layer.group_size, rest = layer.K - first;
      const int64_t columns = rest < layer.group_size ? rest : layer.group_size;
      of_groups.push_back(activations == HYBRIDKIT_INT8_BLOCKS ? row_scale(row + first, columns) : s);
    }
    for (int64_t n = 0; n < layer.N; ++n) {
      if (layer.grouped()) {
        expected.push_back(group_output(layer, n, activations, of_groups, [&](int64_t g, const auto& add) {
          for (int64_t k = g * layer.group_size; k < layer.K && k < (g + 1) * layer.group_size; ++k) {
            add(row[k], layer.code(n, k));
          }
        }));
        continue;
      }
      expected.push_back(output(layer, n, activations, s, [&](const auto& add) {
        for (int64_t k = 0; k < layer.K; ++k) add(row[k], layer.code(n, k));
      }));
    }
  }
  return expected;
}

std::vector<Expected> conv(const Layer& layer, const hybridkit_geometry& given, int32_t activations,
                           const std::vector<float>& x, int64_t batch) {
  hybridkit_geometry g = given;  // with three axes, the missing ones of size 1
  for (int axis = g.axes; axis < 3; ++axis) {
    g.size[axis] = g.kernel[axis] = g.stride[axis] = g.dilation[axis] = 1;
    g.pad_begin[axis] = g.pad_end[axis] = 0;
  }
  int64_t out[3];
  for (int axis = 0; axis < 3; ++axis) {
    const int64_t padded = g.size[axis] + g.pad_begin[axis] + g.pad_end[axis];
    out[axis] = (padded - g.dilation[axis] * (g.kernel[axis] - 1) - 1) / g.stride[axis] + 1;
  }
  const int64_t sample = g.channels * g.size[0] * g.size[1] * g.size[2];
  const int64_t inputs = g.channels / g.group, outputs = layer.N / g.group;
  std::vector<Expected> expected;
  for (int64_t b = 0; b < batch; ++b) {
    const float s = row_scale(x.data() + b * sample, sample);
    for (int64_t n = 0; n < layer.N; ++n) {
      for (int64_t p = 0; p < out[0] * out[1] * out[2]; ++p) {
        const int64_t at[3] = {p / (out[1] * out[2]), p / out[2] % out[1], p % out[2]};
        expected.push_back(output(layer, n, activations, s, [&](const auto& add) {
          for (int64_t k = 0; k < layer.K; ++k) {
            const int64_t taps = g.kernel[0] * g.kernel[1] * g.kernel[2], tap = k % taps;
            const int64_t tap_at[3] = {tap / (g.kernel[1] * g.kernel[2]), tap / g.kernel[2] % g.kernel[1],
                                       tap % g.kernel[2]};
            int64_t index = b * g.channels + n / outputs * inputs + k / taps;
            bool inside = true;
            for (int axis = 0; axis < 3; ++axis) {
              const int64_t i = at[axis] * g.stride[axis] + tap_at[axis] * g.dilation[axis] - g.pad_begin[axis];
              inside = inside && i >= 0 && i < g.size[axis];
              index = index * g.size[axis] + i;
            }
            if (inside) add(x[index], layer.code(n, k));
          }
        }));
      }
    }
  }
  return expected;
}

std::vector<Expected> attention(const hybridkit_attention& a, const std::vector<int64_t>& past) {
  std::vector<Expected> y;
  const int64_t size = a.head_size;
  for (int64_t sample = 0; sample < a.batch; ++sample) {
    for (int64_t token = 0; token < a.tokens; ++token) {
      for (int64_t head = 0; head < a.heads; ++head) {
        const int64_t shared = head / (a.heads / a.kv_heads), place = past[sample] + token;
        const int64_t first = a.window < 0 ? 0 : std::max<int64_t>(place - a.window + 1, 0);
        const auto row = [&](const float* of_past, const float* added, int64_t t) {
          return t < past[sample] ? of_past + ((sample * a.kv_heads + shared) * a.past_room + t) * size
                                  : added + ((sample * a.tokens + t - past[sample]) * a.kv_heads + shared) * size;
        };
        const float* query = a.queries + ((sample * a.tokens + token) * a.heads + head) * size;
        std::vector<double> scores;
        double magnitude = 0, most = -std::numeric_limits<double>::infinity(), total = 0;
        for (int64_t t = first; t <= place; ++t) {
          double score = 0, absolute = 0;
          const float* key = row(a.past_keys, a.keys, t);
          for (int64_t d = 0; d < size; ++d) {
            score += double{query[d]} * key[d] * a.scale;
            absolute += std::fabs(double{query[d]} * key[d] * a.scale);
          }
          if (a.softcap > 0) score = a.softcap * std::tanh(score / a.softcap);
          scores.push_back(score);
          magnitude = std::max(magnitude, absolute);
          most = std::max(most, score);
        }
        for (double& score : scores) total += score = std::exp(score - most);
        for (int64_t d = 0; d < size; ++d) {
          double sum = 0, largest = 0;
          for (int64_t t = first; t <= place; ++t) {
            const double value = row(a.past_values, a.values, t)[d];
            sum += scores[t - first] / total * value;
            largest = std::max(largest, std::fabs(value));
          }
          y.push_back({sum, largest * (2e-6 + 5e-7 * magnitude)});
        }
      }
    }
  }
  return y;
}

int64_t mismatches(const std::vector<Expected>& expected, int32_t activations, int32_t dtype, const uint8_t* y,
                   std::string* first) {
  const auto count = static_cast<int64_t>(expected.size());
  const std::vector<float> got = values_of(dtype, y, count);
  int64_t wrong = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Expected& e = expected[i];
    bool good;
    if (activations != HYBRIDKIT_FLOAT) {
      const float exact = array_of(dtype, {static_cast<float>(e.value)}).values[0];
      good = std::memcmp(&exact, &got[i], sizeof exact) == 0 || (std::isnan(exact) && std::isnan(got[i]));
    } else if (std::isfinite(e.value)) {
      const double rounding = half_unit(dtype) * (std::fabs(e.value) + e.slack) * 1.01;
      const double least = dtype == HYBRIDKIT_F16 ? std::ldexp(1.0, -25) : 0;  // half of the least subnormal
      good = std::fabs(got[i] - e.value) <= e.slack + rounding + least;
      const bool too_large = dtype == HYBRIDKIT_F16 && std::fabs(e.value) + e.slack >= 65520;  // rounds to infinity
      good = good || (too_large && std::isinf(got[i]) && (got[i] > 0) == (e.value > 0));
    } else {
      good = std::isnan(e.value) ? std::isnan(got[i]) : got[i] == static_cast<float>(e.value);
    }
    if (!good && wrong++ == 0) {
      *first = "[" + std::to_string(i) + "] is " + std::to_string(got[i]) + ", not " + std::to_string(e.value);
    }
  }
  return wrong;
}

}  // namespace reference
