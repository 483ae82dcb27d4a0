#include "codes.h"

#include <stdexcept>
#include <string>
#include <utility>

#include "memory.h"

namespace hybridkit::ort {
namespace {

size_t native_bytes(int32_t codec, const Attributes& a) {
  return a.convolution ? hybridkit_conv_code_bytes(codec, a.N, a.K, a.group())
                       : hybridkit_code_bytes(codec, kTiled, a.N, a.K);
}

size_t bytes_in_layout(int32_t codec, const Attributes& a) {
  return a.layout == kRowMajor ? hybridkit_code_bytes(codec, kRowMajor, a.N, a.K) : native_bytes(codec, a);
}

const char* problem(int32_t codec, const Attributes& a, const uint8_t* codes, size_t bytes) {
  if (a.layout == kConvTiled) return hybridkit_check_conv_codes(codec, codes, bytes, a.N, a.K, a.group());
  return hybridkit_check_codes(codec, static_cast<int32_t>(a.layout), codes, bytes, a.N, a.K);
}

const char* tile(int32_t codec, const Attributes& a, const uint8_t* codes, uint8_t* out) {
  if (!a.convolution) return hybridkit_tile(codec, codes, a.N, a.K, out);
  const int64_t taps = a.K / (a.convolution->channels / a.group());
  return hybridkit_conv_tile(codec, codes, a.N, a.K, a.group(), taps, out);
}

}  // namespace

void Codes::check_shape(int32_t codec, const Attributes& attributes, const Shape& shape) {
  const int64_t given = count_of(shape);
  const size_t expected = bytes_in_layout(codec, attributes);
  if (given >= 0 && static_cast<size_t>(given) != expected)
    throw std::runtime_error(
        "codes must have " + std::to_string(expected) + " bytes (N = " + std::to_string(attributes.N) +
        ", K = " + std::to_string(attributes.K) + ", layout " + std::to_string(attributes.layout) +
        "), got " + std::to_string(given) + " in the shape " + to_string(shape));
}

Codes::Codes(int32_t codec, const Attributes& attributes, const Tensor& tensor)
    : codec_(codec), data_(static_cast<const uint8_t*>(tensor.data)), bytes_(native_bytes(codec, attributes)) {
  check_shape(codec, attributes, tensor.shape);
  const size_t given = bytes_in_layout(codec, attributes);
  if (const char* wrong = problem(codec, attributes, data_, given)) throw std::runtime_error(wrong);
  if (attributes.layout != kRowMajor) return;
  std::shared_ptr<uint8_t> tiles = allocate_codes(bytes_);
  if (const char* wrong = tile(codec, attributes, data_, tiles.get())) throw std::runtime_error(wrong);
  give_up(data_, given);
  data_ = tiles.get();
  own_ = std::move(tiles);
  if (!hybridkit_reads_tiles(codec)) expand(attributes);
}

void Codes::expand(const Attributes& attributes) {
  codec_ = HYBRIDKIT_TERNARY;
  bytes_ = native_bytes(codec_, attributes);
  std::shared_ptr<uint8_t> tiles = allocate_codes(bytes_);
  if (const char* wrong = hybridkit_expand(data_, attributes.N, attributes.K, tiles.get())) throw std::runtime_error(wrong);
  data_ = tiles.get();
  own_ = std::move(tiles);
}

void Codes::settle() {
  if (own_ != nullptr) return;
  if (auto copy = ort::settle(data_, bytes_)) {
    data_ = copy.get();
    own_ = std::move(copy);
  }
}

}  // namespace hybridkit::ort
