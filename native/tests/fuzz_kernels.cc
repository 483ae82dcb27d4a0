// The C interface with shapes, attributes, layouts, types, pointers and contents at random: what the header allows must
// give what the reference gives, under every instruction set; everything else must be refused, at once and untouched.
//
// What is allowed is written down here a second time, in 128-bit arithmetic. A case of more than kMostWork products is
// not run, so that each takes milliseconds whatever the fuzzer finds; its codes are then of another size than it needs,
// and the call must refuse them.
#include "fuzz.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>

#include "attentions.h"

// More than any case needs: a size that comes through the door unchecked fails in the allocator.
extern "C" const char* __asan_default_options() { return "max_allocation_size_mb=64"; }

// The first failed check ends the program, which is what drivers of fuzz targets wait for.
bool test::check(bool good, const char* file, int line, const char* what, const char* format, ...) {
  if (good) return true;
  std::fprintf(stderr, "%s:%d: %s: ", file, line, what);
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fputc('\n', stderr);
  std::abort();
}

namespace {

using namespace products;
using fuzz::tally;

__extension__ typedef __int128 Wide;

constexpr int64_t kMostWork = 1 << 17;     // products of numbers, padding included
constexpr int64_t kMostNumbers = 1 << 14;  // of x and of y
constexpr int64_t kLargest = 0x7fffffff, kLargestK = 1 << 22, kLargestPadded = 1 << 22;
constexpr Wide kAddressable = Wide{1} << 60;

// Numbers out of the fuzzer's bytes; zeros beyond their end.
class Source {
 public:
  Source(const uint8_t* data, size_t size) : data_(data), left_(size) {}

  uint64_t bytes(int count) {
    uint64_t value = 0;
    for (; count > 0; --count) value = value << 8 | next();
    return value;
  }
  int64_t between(int64_t least, int64_t most) { return least + static_cast<int64_t>(bytes(2)) % (most - least + 1); }
  bool chance(int of_256) { return static_cast<int>(bytes(1)) >= 256 - of_256; }
  template <class T>
  T one_of(std::initializer_list<T> values) {
    return values.begin()[bytes(1) % values.size()];
  }
  // A number that nobody expects, most often one at which something overflows.
  int64_t hostile() {
    constexpr int64_t most = std::numeric_limits<int64_t>::max();
    const int64_t value = one_of<int64_t>({0, 1, 2, 16, 1 << 16, kLargestK, kLargest, kLargest + 1, int64_t{1} << 32,
                                           int64_t{1} << 40, int64_t{1} << 61, int64_t{1} << 62, most, 0, 0});
    const int64_t near = value > most - 2 ? value - between(0, 2) : value + between(-2, 2);
    if (chance(32)) return static_cast<int64_t>(bytes(8));
    return chance(64) ? -near : near;
  }
  int32_t type(int32_t count) {  // of an enumeration of `count`, seldom something else
    return chance(8) ? static_cast<int32_t>(hostile()) : static_cast<int32_t>(bytes(1)) % count;
  }
  // Replaces some of the numbers of every other case.
  void damage(std::initializer_list<int64_t*> numbers) {
    if (chance(128)) return;
    for (int64_t left = between(1, 3); left > 0; --left) *numbers.begin()[bytes(1) % numbers.size()] = hostile();
  }

 private:
  uint64_t next() { return left_ == 0 ? 0 : (--left_, *data_++); }

  const uint8_t* data_;
  size_t left_;
};

bool is_size(int64_t value) { return value >= 1 && value <= kLargest; }
bool is_nbit(int32_t codec) { return codec >= HYBRIDKIT_NBIT1 && codec <= HYBRIDKIT_NBIT8; }
bool allowed(int32_t codec, int64_t N, int64_t K, int64_t group = 1) {
  return codec >= 0 && codec <= 7 && is_size(N) && K >= 1 && K <= kLargestK && group >= 1 && N % group == 0;
}
bool is_group_size(int32_t codec, int64_t size) {
  return size >= 16 && size <= 65536 && size % (codec == HYBRIDKIT_NBIT1 ? 32 : 16) == 0;
}
bool is_sparse(int32_t codec) { return codec == HYBRIDKIT_SPARSE34; }
bool is_base3(int32_t codec) { return codec == HYBRIDKIT_BASE3; }
bool is_dense(int32_t codec) { return is_sparse(codec) || is_base3(codec); }
bool is_one_bit(int32_t codec) { return codec == HYBRIDKIT_BINARY || codec == HYBRIDKIT_NBIT1; }
int64_t bits_of(int32_t codec) {
  return is_one_bit(codec) ? 1 : codec == HYBRIDKIT_NBIT4 ? 4 : codec == HYBRIDKIT_NBIT8 ? 8 : 2;
}

// The header's definitions of the layouts; 0 for what is not allowed.
Wide row_major_bytes(int32_t codec, int64_t N, int64_t K) {
  if (!allowed(codec, N, K)) return 0;
  if (is_base3(codec)) return Wide{N} * ((K + 4) / 5);
  return Wide{N} * ((is_sparse(codec) ? (K + 3) / 4 * 5 + 7 : K * bits_of(codec) + 7) / 8);
}
Wide tile_bytes(int32_t codec, int64_t N, int64_t K, int64_t group = 1) {
  if (!allowed(codec, N, K, group)) return 0;
  if (is_sparse(codec)) return Wide{(N + 15) / 16} * ((K + 31) / 32) * 80;
  if (is_base3(codec)) return Wide{(N + 15) / 16} * ((K + 79) / 80) * 256;
  const int64_t columns = is_one_bit(codec) ? 32 : 16;
  return Wide{group} * ((N / group + 15) / 16) * ((K + columns - 1) / columns) * columns * 2 * bits_of(codec);
}
Wide conv_bytes(int32_t codec, int64_t N, int64_t K, int64_t group) {
  return is_nbit(codec) || is_dense(codec) ? Wide{0} : tile_bytes(codec, N, K, group);
}

// Codes, scale, bias, x and y of a call, and what it is given of them.
struct Call {
  hybridkit_matrix matrix;
  int32_t dtype;
  std::vector<uint8_t> codes, scales;  // scales of groups
  reference::Layer layer;
  reference::Array x;
  int64_t outputs;
  const void* given_x;
  bool null_y;
  bool comparable;  // the codes are valid digits
};

bool types_are_right(const Call& call) {
  const hybridkit_matrix& m = call.matrix;
  const bool grouped = is_nbit(m.codec);
  if (grouped && (!is_group_size(m.codec, m.group_size) || m.scale_dtype < 0 || m.scale_dtype > 1)) return false;
  if (!grouped && m.group_size != 0) return false;
  return m.activations >= 0 && m.activations <= (grouped ? 2 : 1) && call.dtype >= 0 && call.dtype <= 2;
}

// Fills in contents for a call that can run: a layer of `inputs` activations and `outputs` results.
void fill(Source& source, Call& call, int64_t inputs, int64_t row, int64_t outputs, int64_t group, int64_t taps) {
  test::Random random(source.bytes(4));
  hybridkit_matrix& m = call.matrix;
  call.layer = reference::random_layer(random, m.codec, m.N, m.K, m.group_size);
  if (call.layer.grouped()) call.scales = reference::tiled_scales(call.layer, m.scale_dtype);
  call.codes = reference::tiled(call.layer, group, taps);
  call.comparable = !source.chance(32);
  if (!call.comparable) {
    for (uint8_t& byte : call.codes) byte = static_cast<uint8_t>(random.bits());
  }
  std::vector<float> x = random_activations(random, inputs, std::max<int64_t>(row, 1));
  if (!x.empty() && source.chance(32)) {
    constexpr float infinity = std::numeric_limits<float>::infinity();
    x[random.between(0, inputs - 1)] = source.one_of<float>({std::nanf(""), infinity, -infinity, -0.0f, 1e-41f});
  }
  call.x = reference::array_of(call.dtype, x);
  call.outputs = outputs;
  m.codes = call.codes.data();
  m.code_bytes = call.codes.size();
  m.scale = call.layer.grouped() ? nullptr : call.layer.scale.data();
  m.group_scale = call.layer.grouped() ? call.scales.data() : nullptr;
  m.bias = call.layer.bias.data();
  call.given_x = call.x.bytes.empty() ? nullptr : call.x.bytes.data();  // as NumPy and torch have empty tensors
  call.null_y = outputs == 0;
}

// A call that cannot run: everything is there, but small.
void fill_small(Call& call) {
  call.codes.assign(64, 0);
  call.layer.scale.assign(16, 1.0f);
  call.layer.bias = call.layer.scale;
  call.x = reference::array_of(HYBRIDKIT_F32, std::vector<float>(16, 1.0f));
  call.outputs = 16;
  call.matrix.codes = call.codes.data();
  call.matrix.code_bytes = call.codes.size();
  call.matrix.scale = call.layer.scale.data();
  call.matrix.group_scale = call.layer.scale.data();
  call.matrix.bias = call.layer.bias.data();
  call.given_x = call.x.bytes.data();
  call.null_y = false;
  call.comparable = false;
}

// Takes away one of the pointers of a call, or one byte of its codes; true if it can no longer run.
bool spoil(Source& source, Call& call) {
  if (!source.chance(24)) return false;
  switch (source.bytes(1) % 6) {
    case 0: return call.matrix.codes = nullptr, true;
    case 1: return call.matrix.scale = nullptr, call.matrix.group_scale = nullptr, true;
    case 2: return call.matrix.bias = nullptr, true;
    case 3: return call.given_x = nullptr, !call.x.bytes.empty();
    case 4: return call.null_y = true, call.outputs > 0;
    default: return call.matrix.code_bytes += source.one_of<size_t>({1, static_cast<size_t>(-1), size_t{1} << 63}), true;
  }
}

// run(y, host) under every instruction set: right, or refused without a byte written.
template <class Run>
void try_call(Source& source, const Call& call, bool right, const std::vector<reference::Expected>& expected,
              const Run& run) {
  const auto host = source.one_of<const hybridkit_parallel*>({nullptr, nullptr, backwards(), hybridkit_thread_pool(2)});
  for_every_isa([&](const char* isa) {
    Output y(right ? call.dtype : HYBRIDKIT_F32, call.outputs);
    const std::vector<uint8_t> before = y.memory;
    const char* error = run(call.null_y ? nullptr : y.memory.data(), host);
    CHECK((error == nullptr) == right, "%s: %s", isa, error ? error : "not refused");
    CHECK(right || (*error != '\0' && y.memory == before), "%s: refused, but wrote to y", isa);
    CHECK(y.guard_holds(), "%s: wrote beyond y", isa);
    if (!right || !call.comparable) return;
    std::string first;
    const int64_t wrong =
        reference::mismatches(expected, call.matrix.activations, call.dtype, y.memory.data(), &first);
    CHECK(wrong == 0, "%s %s dtype %d: %lld wrong, %s", isa, name_of(call.matrix.codec, call.matrix.activations),
          call.dtype, static_cast<long long>(wrong), first.c_str());
  });
  ++(right ? tally.compared : tally.refused);
}

void tells_kernel_and_tasks(const hybridkit_matrix& matrix, int64_t M) {
  const bool groups = is_nbit(matrix.codec) ? is_group_size(matrix.codec, matrix.group_size) : matrix.group_size == 0;
  const bool right = allowed(matrix.codec, matrix.N, matrix.K) && groups && M >= 0;
  CHECK((hybridkit_tasks(&matrix, M) >= 1) == right, "tasks");
  CHECK((hybridkit_kernel(&matrix, M) != nullptr) == right, "kernel");
}

void multiply(Source& source) {
  Call call{};
  hybridkit_matrix& m = call.matrix;
  m.codec = source.type(8);
  m.activations = source.type(is_nbit(m.codec) ? 3 : 2);
  call.dtype = source.type(3);
  m.N = source.between(1, source.one_of<int64_t>({8, 20, 70}));
  m.K = source.between(1, source.one_of<int64_t>({8, 40, 300}));
  m.group_size = is_nbit(m.codec) ? source.one_of<int64_t>({16, 32, 48, 64, 128, 65536}) : 0;
  m.scale_dtype = is_nbit(m.codec) ? source.type(2) : 0;
  int64_t M = source.between(0, source.one_of<int64_t>({1, 4, 16, 200}));
  source.damage({&m.N, &m.K, &m.group_size, &M});
  tells_kernel_and_tasks(m, M);

  const Wide bytes = tile_bytes(m.codec, m.N, m.K);
  bool right = bytes > 0 && types_are_right(call) && M >= 0;
  const Wide inputs = Wide{M} * m.K, outputs = Wide{M} * m.N;
  const bool small = right && (Wide{M} + 1) * bytes * 4 <= kMostWork && inputs <= kMostNumbers && outputs <= kMostNumbers;
  std::vector<reference::Expected> expected;
  if (small) {
    fill(source, call, static_cast<int64_t>(inputs), m.K, static_cast<int64_t>(outputs), 1, 1);
    right = !spoil(source, call);
    if (right && call.comparable) expected = reference::matmul(call.layer, m.activations, call.x.values, M);
  } else {
    fill_small(call);
    right = right && bytes == 64 && inputs <= kAddressable && outputs <= kAddressable;
    if (right) return void(++tally.too_large);  // only M is large
  }
  try_call(source, call, right, expected, [&](void* y, const hybridkit_parallel* host) {
    return hybridkit_matmul(&m, call.dtype, call.given_x, M, y, host);
  });
}

Wide product(const int64_t* sizes, int axes) {
  Wide result = 1;
  for (int axis = 0; axis < axes; ++axis) result *= sizes[axis];
  return result;
}

hybridkit_geometry geometry_from(Source& source) {
  hybridkit_geometry g{};
  g.axes = source.chance(8) ? static_cast<int32_t>(source.hostile()) : static_cast<int32_t>(source.between(1, 3));
  g.group = source.chance(160) ? 1 : source.between(2, 4);
  g.channels = g.group * source.between(1, source.one_of<int64_t>({1, 3, 5, 20}));
  for (int axis = 0; axis < 3; ++axis) {
    g.kernel[axis] = source.between(1, g.axes == 3 ? 2 : 4);
    g.stride[axis] = source.between(1, 3);
    g.dilation[axis] = source.between(1, 3);
    g.pad_begin[axis] = source.chance(128) ? 0 : source.between(0, 4);
    g.pad_end[axis] = source.chance(128) ? g.pad_begin[axis] : source.between(0, 4);
    const int64_t extent = g.dilation[axis] * (g.kernel[axis] - 1) + 1;
    const int64_t least = std::max<int64_t>(extent - g.pad_begin[axis] - g.pad_end[axis], source.chance(32) ? 0 : 1);
    g.size[axis] = least + source.between(0, g.axes == 1 ? 20 : g.axes == 2 ? 6 : 3);
  }
  return g;
}

// The sizes of the output, by the header; false for what it does not allow.
bool shape_of(const hybridkit_geometry& g, int64_t N, int64_t out[3]) {
  if (g.axes < 1 || g.axes > 3 || !is_size(g.channels) || !is_size(N) || g.group < 1) return false;
  if (g.channels % g.group != 0 || N % g.group != 0) return false;
  Wide image = 1;
  for (int axis = 0; axis < g.axes; ++axis) {
    if (!is_size(g.kernel[axis]) || g.kernel[axis] > kLargestK) return false;
    if (!is_size(g.stride[axis]) || !is_size(g.dilation[axis])) return false;
    for (const int64_t value : {g.size[axis], g.pad_begin[axis], g.pad_end[axis]}) {
      if (value != 0 && !is_size(value)) return false;
    }
    const Wide padded = Wide{g.size[axis]} + g.pad_begin[axis] + g.pad_end[axis];
    const Wide extent = Wide{g.dilation[axis]} * (g.kernel[axis] - 1) + 1;
    if (padded < extent) return false;
    out[axis] = static_cast<int64_t>((padded - extent) / g.stride[axis] + 1);
    image *= padded;
  }
  return image * g.channels <= kAddressable &&
         image <= std::max<Wide>(kLargestPadded, 8 * product(g.size, g.axes));
}

void convolve(Source& source) {
  Call call{};
  hybridkit_matrix& m = call.matrix;
  hybridkit_geometry g = geometry_from(source);
  m.codec = source.type(2);
  m.activations = source.type(2);
  call.dtype = source.type(3);
  m.N = g.group * source.between(1, source.one_of<int64_t>({1, 4, 20}));
  m.K = g.channels / g.group;
  for (int axis = 0; axis < g.axes && axis < 3; ++axis) m.K *= g.kernel[axis];
  int64_t batch = source.between(0, 3);
  source.damage({&m.N, &m.K, &batch, &g.channels, &g.group, &g.size[0], &g.size[1], &g.size[2], &g.kernel[0],
                 &g.kernel[1], &g.kernel[2], &g.stride[0], &g.stride[1], &g.dilation[0], &g.dilation[1],
                 &g.pad_begin[0], &g.pad_begin[1], &g.pad_begin[2], &g.pad_end[0], &g.pad_end[1], &g.pad_end[2]});

  int64_t out[3] = {1, 1, 1}, found[3] = {1, 1, 1};
  bool right = shape_of(g, m.N, out);
  const char* wrong_shape = hybridkit_conv_shape(&g, m.N, found);
  CHECK((wrong_shape == nullptr) == right, "shape: %s", wrong_shape ? wrong_shape : "not refused");
  CHECK(!right || std::equal(out, out + 3, found), "shape");

  const Wide bytes = right ? conv_bytes(m.codec, m.N, m.K, g.group) : Wide{0};
  right = bytes > 0 && types_are_right(call) && batch >= 0 && m.K == g.channels / g.group * product(g.kernel, g.axes);
  Wide positions = 0, inputs = 0, outputs = 0, image = 0;
  if (right) {
    positions = product(out, g.axes);
    inputs = Wide{batch} * g.channels * product(g.size, g.axes);
    outputs = Wide{batch} * m.N * positions;
    image = Wide{batch} * g.channels;
    for (int axis = 0; axis < g.axes; ++axis) image *= g.size[axis] + g.pad_begin[axis] + g.pad_end[axis];
  }
  const bool small = right && (Wide{batch} * positions + 1) * bytes * 4 <= kMostWork && image <= kMostNumbers &&
                     inputs <= kMostNumbers && outputs <= kMostNumbers;
  std::vector<reference::Expected> expected;
  if (small) {
    const auto taps = static_cast<int64_t>(product(g.kernel, g.axes));
    const auto sample = static_cast<int64_t>(g.channels * product(g.size, g.axes));
    fill(source, call, static_cast<int64_t>(inputs), sample, static_cast<int64_t>(outputs), g.group, taps);
    right = !spoil(source, call);
    if (right && call.comparable) {
      expected = reference::conv(call.layer, g, m.activations, call.x.values, batch);
      CHECK(static_cast<Wide>(expected.size()) == outputs, "the reference has %zu outputs", expected.size());
    }
  } else {
    fill_small(call);
    right = right && bytes == 64 && inputs <= kAddressable && outputs <= kAddressable;
    if (right) return void(++tally.too_large);
  }
  try_call(source, call, right, expected, [&](void* y, const hybridkit_parallel* host) {
    return hybridkit_conv(&m, &g, call.dtype, call.given_x, batch, y, host);
  });
}

// Whether no codes have such a byte.
bool is_wrong(int32_t codec, int32_t layout, uint8_t byte) {
  if (codec == HYBRIDKIT_TERNARY) return (byte & byte >> 1 & 0x55) != 0;
  if (!is_base3(codec)) return false;
  return layout == 0 ? byte >= 243 : (256 * (byte * 243 / 256) + 242) / 243 != byte;
}

// What a check says about good codes, and about damaged ones.
template <class Check>
void try_check(Source& source, int32_t codec, int32_t layout, std::vector<uint8_t> codes, const Check& check) {
  CHECK(check(codes.data(), codes.size()) == nullptr, "good codes are refused");
  CHECK(check(nullptr, codes.size()) != nullptr, "null codes");
  const size_t at = source.bytes(3) % codes.size();
  CHECK(check(codes.data(), at) != nullptr, "truncated codes");
  codes[at] |= static_cast<uint8_t>(3 << 2 * (source.bytes(1) % 4));
  CHECK((check(codes.data(), codes.size()) != nullptr) == is_wrong(codec, layout, codes[at]), "another byte");
}

void lay_out(Source& source) {
  const int32_t codec = source.type(8), layout = source.type(2);
  int64_t group = source.between(1, 4), taps = source.between(1, 9);
  int64_t N = group * source.between(1, 40), K = taps * source.between(1, 40);
  source.damage({&N, &K, &group, &taps});
  const Wide plain = row_major_bytes(codec, N, K), tiles = tile_bytes(codec, N, K), conv = conv_bytes(codec, N, K, group);
  CHECK(hybridkit_code_bytes(codec, 0, N, K) == plain && hybridkit_code_bytes(codec, 1, N, K) == tiles, "bytes");
  CHECK(hybridkit_code_bytes(codec, layout, N, K) == (layout == 0 ? plain : layout == 1 ? tiles : Wide{0}), "bytes");
  CHECK(hybridkit_conv_code_bytes(codec, N, K, group) == conv, "bytes of a convolution");

  std::vector<uint8_t> few(64, 0), out(64, kUntouched);
  const std::vector<uint8_t> before = out;
  if (plain != 64) CHECK(hybridkit_check_codes(codec, 0, few.data(), 64, N, K) != nullptr, "few codes");
  if (tiles != 64) CHECK(hybridkit_check_codes(codec, 1, few.data(), 64, N, K) != nullptr, "few codes");
  if (conv != 64) CHECK(hybridkit_check_conv_codes(codec, few.data(), 64, N, K, group) != nullptr, "few codes");
  if (plain == 0) CHECK(hybridkit_tile(codec, few.data(), N, K, out.data()) != nullptr, "nonsense is tiled");
  const bool tiled_conv = conv > 0 && taps >= 1 && K % taps == 0;
  if (!tiled_conv) CHECK(hybridkit_conv_tile(codec, few.data(), N, K, group, taps, out.data()) != nullptr, "nonsense");
  CHECK(out == before, "refused, but wrote");
  if (plain == 0 || !tiled_conv) ++tally.refused;
  if (plain == 0 || std::max(tiles, conv) > kMostWork / 2) return void(tally.too_large += plain > 0);

  test::Random random(source.bytes(4));
  const auto layer = reference::random_layer(random, codec, N, K);
  const auto codes = reference::row_major(layer), expected = reference::tiled(layer);
  out.assign(expected.size(), kUntouched);
  CHECK(hybridkit_tile(codec, codes.data(), N, K, out.data()) == nullptr && out == expected, "tile");
  for (const int32_t given : {0, 1}) {
    try_check(source, codec, given, given == 0 ? codes : expected, [&](const uint8_t* from, size_t bytes) {
      return hybridkit_check_codes(codec, given, from, bytes, N, K);
    });
  }
  if (!is_dense(codec)) {
    const bool there = !source.chance(64);
    const int64_t row = there ? source.between(-N, N - 1) : source.hostile();
    std::vector<float> found(static_cast<size_t>(K), 1e9f);
    const char* wrong = hybridkit_gather(codec, expected.data(), expected.size(), N, K, &row, 1, found.data());
    CHECK((wrong == nullptr) == (row >= -N && row < N), "row %lld", static_cast<long long>(row));
    for (int64_t k = 0; k < K && wrong == nullptr; ++k)
      CHECK(found[k] == layer.code(row < 0 ? row + N : row, k), "gathered row %lld", static_cast<long long>(row));
  }
  ++tally.compared;
  if (!tiled_conv) return;
  const auto convolution = reference::tiled(layer, group, taps);
  out.assign(convolution.size(), kUntouched);
  CHECK(hybridkit_conv_tile(codec, codes.data(), N, K, group, taps, out.data()) == nullptr && out == convolution,
        "tile of a convolution");
  try_check(source, codec, 2, convolution, [&](const uint8_t* from, size_t bytes) {
    return hybridkit_check_conv_codes(codec, from, bytes, N, K, group);
  });
}

// Whether the header allows a call, apart from its pointers and places.
bool sizes_are_right(const hybridkit_attention& a) {
  const auto fits = [](std::initializer_list<int64_t> sizes) {
    Wide numbers = 1;
    for (const int64_t size : sizes) numbers = numbers > kAddressable ? numbers : numbers * size;
    return numbers <= kAddressable || std::find(sizes.begin(), sizes.end(), 0) != sizes.end();
  };
  return a.heads >= 1 && a.heads <= 65536 && a.kv_heads >= 1 && a.kv_heads <= a.heads && a.heads % a.kv_heads == 0 &&
         a.head_size >= 1 && a.head_size <= 65536 && a.batch >= 0 && a.batch <= kLargest && a.tokens >= 0 &&
         a.tokens <= a.total && a.total <= a.room && a.room <= kLargest && a.past_room >= 0 && a.past_room <= kLargest &&
         (a.window == -1 || is_size(a.window)) && std::isfinite(a.scale) && std::isfinite(a.softcap) && a.softcap >= 0 &&
         fits({a.batch, a.tokens, a.heads, a.head_size}) &&
         fits({a.batch, std::max(a.room, a.past_room), a.kv_heads, a.head_size});
}

void attend(Source& source) {
  attentions::Sizes sizes{};
  sizes.batch = source.between(1, 2);
  sizes.tokens = source.between(source.chance(16) ? 0 : 1, source.one_of<int64_t>({1, 6, 60}));
  sizes.kv_heads = source.between(1, 3);
  sizes.heads = sizes.kv_heads * source.between(1, source.one_of<int64_t>({2, 100}));
  sizes.head_size = source.between(1, source.one_of<int64_t>({8, 40}));
  sizes.window = source.chance(128) ? -1 : source.between(1, 80);
  sizes.softcap = source.chance(200) ? 0.0f : 3.0f;
  sizes.shared = source.chance(128);
  const int64_t past = source.chance(64) ? 0 : source.between(1, source.one_of<int64_t>({5, 300}));
  for (int64_t i = 0; i < sizes.batch; ++i) sizes.past.push_back(past == 0 ? 0 : source.between(1, past));
  if (Wide{sizes.batch} * sizes.tokens * sizes.heads * sizes.head_size * (past + sizes.tokens) > kMostWork)
    return void(++tally.too_large);

  test::Random random(source.bytes(4));
  attentions::Call call(random, sizes, source.between(0, 3));
  hybridkit_attention& a = call.call;
  const hybridkit_attention before = a;
  source.damage({&a.batch, &a.tokens, &a.total, &a.heads, &a.kv_heads, &a.head_size, &a.past_room, &a.room, &a.window});
  if (source.chance(16)) (source.chance(128) ? a.scale : a.softcap) = source.one_of<float>({NAN, INFINITY, -INFINITY});
  bool right = sizes_are_right(a);
  const bool same = std::memcmp(&a, &before, sizeof a) == 0;
  if (right && !same) return void(++tally.too_large);  // of memory that is not there
  std::vector<int32_t> places(a.last, a.last + sizes.batch);
  if (right && source.chance(16)) {
    places[0] = source.one_of<int32_t>({-2, static_cast<int32_t>(a.total), 0x7fffffff, -0x7fffffff - 1});
    a.last = places.data();
    right = a.total == a.tokens;  // without a past nobody looks
  }
  if (right && source.chance(24)) {
    for (const float** pointer : {source.one_of<const float**>({&a.queries, &a.keys, &a.values})}) *pointer = nullptr;
    right = sizes.tokens == 0;  // there are none to read
  }
  const auto host = source.one_of<const hybridkit_parallel*>({nullptr, backwards(), hybridkit_thread_pool(2)});
  for_every_isa([&](const char* isa) {
    Output y(HYBRIDKIT_F32, static_cast<int64_t>(call.expected.size()));
    const std::vector<uint8_t> untouched = y.memory;
    const char* error = call.run(host, y.memory.data());
    CHECK((error == nullptr) == right, "%s: %s", isa, error ? error : "not refused");
    CHECK(right || (*error != '\0' && y.memory == untouched), "%s: refused, but wrote to y", isa);
    CHECK(y.guard_holds(), "%s: wrote beyond y", isa);
    if (!right) return;
    CHECK(call.cache_is_right(), "%s: the cache", isa);
    std::string first;
    const int64_t wrong =
        reference::mismatches(call.expected, HYBRIDKIT_FLOAT, HYBRIDKIT_F32, y.memory.data(), &first);
    CHECK(wrong == 0, "%s: %lld wrong, %s", isa, static_cast<long long>(wrong), first.c_str());
  });
  ++(right ? tally.compared : tally.refused);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Source source(data, size);
  const auto kind = source.one_of<void (*)(Source&)>({multiply, convolve, convolve, lay_out, attend});
  kind(source);
  return 0;
}
