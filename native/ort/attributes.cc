#include "attributes.h"

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "operator.h"

namespace hybridkit::ort {
namespace {

constexpr int64_t kLargest = HYBRIDKIT_MAX_SIZE;  // products of two such numbers fit into 64 bits

[[noreturn]] void fail(const std::string& message) { throw std::runtime_error(message); }

void check_range(const char* name, int64_t value, int64_t low, int64_t high) {
  if (value < low || value > high)
    fail(std::string("attribute ") + name + " must be from " + std::to_string(low) + " to " +
         std::to_string(high) + ", got " + std::to_string(value));
}

template <typename Source>
void read_axes(const Source& source, const char* name, int64_t low, size_t count, int64_t* out) {
  const std::vector<int64_t> values = source.integers(name);
  if (values.size() != count)
    fail(std::string("attribute ") + name + " must have " + std::to_string(count) + " numbers, got " +
         to_string(values));
  for (int64_t value : values) check_range(name, value, low, kLargest);
  std::copy(values.begin(), values.end(), out);
}

template <typename Source>
hybridkit_geometry read_geometry(const Source& source, int64_t N, int64_t K) {
  hybridkit_geometry geometry = {};
  const size_t axes = source.integers("kernel_shape").size();
  if (axes < 1 || axes > 3)
    fail("attribute kernel_shape must have 1 to 3 numbers, got " + std::to_string(axes));
  int64_t pads[6];
  read_axes(source, "kernel_shape", 1, axes, geometry.kernel);
  read_axes(source, "strides", 1, axes, geometry.stride);
  read_axes(source, "dilations", 1, axes, geometry.dilation);
  read_axes(source, "pads", 0, 2 * axes, pads);
  std::copy(pads, pads + axes, geometry.pad_begin);
  std::copy(pads + axes, pads + 2 * axes, geometry.pad_end);
  geometry.axes = static_cast<int32_t>(axes);

  geometry.group = source.integer("group");
  check_range("group", geometry.group, 1, kLargest);
  if (N % geometry.group != 0)
    fail("attribute group must divide N = " + std::to_string(N) + ", got " + std::to_string(geometry.group));
  int64_t per_group = K;  // ends as C / group
  for (size_t i = 0; i < axes; i++) {
    if (per_group % geometry.kernel[i] != 0)
      fail("attribute kernel_shape must divide K = " + std::to_string(K) + ", got " +
           to_string(source.integers("kernel_shape")));
    per_group /= geometry.kernel[i];
  }
  geometry.channels = per_group * geometry.group;
  if (geometry.channels > kLargest)
    fail("x would have " + std::to_string(geometry.channels) + " channels (K = " + std::to_string(K) +
         ", group = " + std::to_string(geometry.group) + "), more than " + std::to_string(kLargest));
  return geometry;
}

template <typename Source>
Attributes matrix(const Source& source, int64_t native) {
  Attributes attributes = {source.integer("N"), source.integer("K"), source.integer("layout"), std::nullopt};
  check_range("N", attributes.N, 1, kLargest);
  check_range("K", attributes.K, 1, HYBRIDKIT_MAX_K);
  if (attributes.layout != kRowMajor && attributes.layout != native)
    fail("attribute layout must be 0" + (native == kRowMajor ? "" : " or " + std::to_string(native)) + ", got " +
         std::to_string(attributes.layout) +
         "; a newer hybridkit may know it, and with HYBRIDKIT_LIBRARY=none the portable body runs");
  return attributes;
}

template <typename Source>
Attributes read(const Source& source, const Operator& op) {
  const bool convolution = op.convolution;
  const int64_t native = convolution ? kConvTiled : op.codec >= HYBRIDKIT_SPARSE34 ? kRowMajor : kTiled;
  Attributes attributes = matrix(source, native);
  if (op.nbit()) {
    attributes.group_size = source.integer("group_size");
    check_range("group_size", attributes.group_size, 1, HYBRIDKIT_MAX_GROUP);
    const int64_t step = op.codec == HYBRIDKIT_NBIT1 ? 2 * HYBRIDKIT_GROUP_STEP : HYBRIDKIT_GROUP_STEP;
    if (attributes.group_size % step != 0)
      fail("attribute group_size must be a multiple of " + std::to_string(step) + ", got " +
           std::to_string(attributes.group_size));
  }
  if (convolution) attributes.convolution = read_geometry(source, attributes.N, attributes.K);
  return attributes;
}

[[noreturn]] void missing(const char* name) {
  fail(std::string("attribute ") + name + " is missing or has another type");
}

// The runtime gives no numbers for an attribute of another type; none of ours has none.
void check_given(const char* name, size_t numbers) {
  if (numbers == 0) fail(std::string("attribute ") + name + " is missing, empty or has another type");
}

bool ok(const OrtApi* api, OrtStatus* status) {
  if (status == nullptr) return true;
  ReleaseStatus(api, status);
  return false;
}

std::string expected_shape(const Attributes& attributes) {
  if (!attributes.convolution) return "[..., " + std::to_string(attributes.K) + "]";
  std::string text = "[batch, " + std::to_string(attributes.convolution->channels);
  for (int i = 0; i < attributes.convolution->axes; i++) text += ", size";
  return text + "]";
}

}  // namespace

int64_t KernelAttributes::integer(const char* name) const {
  int64_t value = 0;
  if (!ok(api, KernelInfoGetAttribute_int64(api, info, name, &value))) missing(name);
  return value;
}

std::vector<int64_t> KernelAttributes::integers(const char* name) const {
  size_t size = 0;
  if (!ok(api, KernelInfoGetAttributeArray_int64(api, info, name, nullptr, &size))) missing(name);
  check_given(name, size);
  std::vector<int64_t> values(size);
  check(api, KernelInfoGetAttributeArray_int64(api, info, name, values.data(), &size));
  return values;
}

int64_t InferenceAttributes::integer(const char* name) const {
  const OrtOpAttr* attribute = nullptr;
  int64_t value = 0;
  size_t needed = 0;
  if (!ok(api, ShapeInferContext_GetAttribute(api, context, name, &attribute)) || attribute == nullptr)
    missing(name);
  check(api, ReadOpAttr(api, attribute, kAttributeInt, &value, sizeof value, &needed));
  return value;
}

std::vector<int64_t> InferenceAttributes::integers(const char* name) const {
  const OrtOpAttr* attribute = nullptr;
  int64_t values[8];  // more than any of our attributes has
  size_t bytes = 0;
  if (!ok(api, ShapeInferContext_GetAttribute(api, context, name, &attribute)) || attribute == nullptr)
    missing(name);
  check(api, ReadOpAttr(api, attribute, kAttributeInts, values, sizeof values, &bytes));
  check_given(name, bytes);
  return std::vector<int64_t>(values, values + bytes / sizeof(int64_t));
}

Attributes read_attributes(const KernelAttributes& source, const Operator& op) { return read(source, op); }
Attributes read_attributes(const InferenceAttributes& source, const Operator& op) { return read(source, op); }
Attributes read_matrix(const KernelAttributes& source) { return matrix(source, kTiled); }
Attributes read_matrix(const InferenceAttributes& source) { return matrix(source, kTiled); }

Shape output_shape(const Attributes& attributes, const Shape& x) {
  const auto agrees = [](int64_t size, int64_t expected) { return size == expected || size < 0; };
  if (!attributes.convolution) {
    if (x.empty() || !agrees(x.back(), attributes.K))
      fail("x must have the shape " + expected_shape(attributes) + ", got " + to_string(x));
    Shape y = x;
    y.back() = attributes.N;
    return y;
  }
  const size_t axes = static_cast<size_t>(attributes.convolution->axes);
  if (x.size() != axes + 2 || !agrees(x[1], attributes.convolution->channels))
    fail("x must have the shape " + expected_shape(attributes) + ", got " + to_string(x));
  Shape y = {x[0], attributes.N};
  y.resize(axes + 2, -1);
  if (std::any_of(x.begin() + 2, x.end(), [](int64_t size) { return size < 0; })) return y;
  const hybridkit_geometry geometry = sized(attributes, x);
  int64_t size[3];
  if (const char* wrong = hybridkit_conv_shape(&geometry, attributes.N, size))
    fail("x of shape " + to_string(x) + ": " + wrong);
  std::copy(size, size + axes, y.begin() + 2);
  return y;
}

hybridkit_geometry sized(const Attributes& attributes, const Shape& x) {
  hybridkit_geometry geometry = *attributes.convolution;
  std::copy(x.begin() + 2, x.end(), geometry.size);
  return geometry;
}

int64_t count_of(const Shape& shape) {
  constexpr int64_t most = std::numeric_limits<int64_t>::max();
  const auto least = std::min_element(shape.begin(), shape.end());
  if (least != shape.end() && *least <= 0) return *least < 0 ? -1 : 0;
  int64_t count = 1;
  for (int64_t size : shape) count = size > most / count ? most : count * size;
  return count;
}

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (int64_t size : shape) text += (text.size() > 1 ? ", " : "") + (size < 0 ? "?" : std::to_string(size));
  return text + "]";
}

}  // namespace hybridkit::ort
