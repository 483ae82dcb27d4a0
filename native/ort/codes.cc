#include "codes.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>
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

// Row-major codes of a matrix, checked, to tiles, some rows after the others: those that are done need not be in memory
// while the next ones are read, so that a large matrix is never there twice.
const char* tile_matrix(int32_t codec, const Attributes& a, const uint8_t* codes, uint8_t* out) {
  constexpr size_t slice = size_t{4} << 20;
  const size_t row = hybridkit_code_bytes(codec, kRowMajor, 1, a.K);
  const int64_t step = std::max<int64_t>(static_cast<int64_t>(slice / row) / HYBRIDKIT_TILE_ROWS, 1) * HYBRIDKIT_TILE_ROWS;
  for (int64_t first = 0; first < a.N; first += step) {
    const int64_t rows = std::min(step, a.N - first);
    const size_t bytes = static_cast<size_t>(rows) * row;
    if (const char* wrong = hybridkit_check_codes(codec, kRowMajor, codes, bytes, rows, a.K)) return wrong;
    if (const char* wrong = hybridkit_tile(codec, codes, rows, a.K, out)) return wrong;
    give_up(codes, bytes);
    codes += bytes;
    out += hybridkit_code_bytes(codec, kTiled, rows, a.K);
  }
  return nullptr;
}

const char* tile(int32_t codec, const Attributes& a, const uint8_t* codes, size_t bytes, uint8_t* out) {
  if (!a.convolution) return tile_matrix(codec, a, codes, out);
  if (const char* wrong = problem(codec, a, codes, bytes)) return wrong;
  const int64_t taps = a.K / (a.convolution->channels / a.group());
  if (const char* wrong = hybridkit_conv_tile(codec, codes, a.N, a.K, a.group(), taps, out)) return wrong;
  give_up(codes, bytes);
  return nullptr;
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

// By address, and then by content: another session's may lie where one that is just going had its own.
std::shared_ptr<const Codes> Codes::constant(int32_t codec, const Attributes& a, const Tensor& tensor) {
  using Key = std::tuple<const void*, int32_t, int64_t, int64_t>;
  static auto& known = *new std::map<Key, std::weak_ptr<const Codes>>;
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  const Key key{tensor.data, codec, a.N, a.K};
  if (a.layout == kTiled) {
    const auto found = known.find(key);
    const std::shared_ptr<const Codes> codes = found == known.end() ? nullptr : found->second.lock();
    if (codes != nullptr && codes->is_copy_of(a, codec, tensor)) return codes;
  }
  auto codes = std::make_shared<Codes>(codec, a, tensor);
  codes->settle();
  if (a.layout != kTiled || codes->own_ == nullptr) return codes;
  for (auto i = known.begin(); i != known.end();) i = i->second.expired() ? known.erase(i) : std::next(i);
  known[key] = codes;
  return codes;
}

bool Codes::is_copy_of(const Attributes& a, int32_t codec, const Tensor& tensor) const {
  check_shape(codec, a, tensor.shape);
  return equal(data_, static_cast<const uint8_t*>(tensor.data), bytes_);
}

Codes::Codes(int32_t codec, const Attributes& attributes, const Tensor& tensor)
    : codec_(codec), data_(static_cast<const uint8_t*>(tensor.data)), bytes_(native_bytes(codec, attributes)) {
  check_shape(codec, attributes, tensor.shape);
  const size_t given = bytes_in_layout(codec, attributes);
  if (attributes.layout != kRowMajor) {
    if (const char* wrong = problem(codec, attributes, data_, given)) throw std::runtime_error(wrong);
    return;
  }
  std::shared_ptr<uint8_t> tiles = allocate_codes(bytes_);
  if (const char* wrong = tile(codec, attributes, data_, given, tiles.get())) throw std::runtime_error(wrong);
  data_ = tiles.get();
  own_ = std::move(tiles);
  if (!hybridkit_reads_tiles(codec, attributes.N, attributes.K)) expand(attributes);
}

void Codes::expand(const Attributes& attributes) {
  const size_t bytes = native_bytes(HYBRIDKIT_TERNARY, attributes);
  std::shared_ptr<uint8_t> tiles = allocate_codes(bytes);
  if (const char* wrong = hybridkit_expand(codec_, data_, attributes.N, attributes.K, tiles.get())) throw std::runtime_error(wrong);
  codec_ = HYBRIDKIT_TERNARY;
  bytes_ = bytes;
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
