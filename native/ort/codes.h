/* The packed codes of a layer, checked and in the order that the kernels read. */
#ifndef HYBRIDKIT_ORT_CODES_H
#define HYBRIDKIT_ORT_CODES_H

#include <memory>

#include "attributes.h"
#include "tensor.h"

namespace hybridkit::ort {

/* Codes in the kernels' own layout are used as they are; row-major ones are copied into tiles, and 3:4-sparse ones that
 * this processor's kernels do not read become ternary. */
class Codes {
 public:
  /* std::runtime_error if codes of that shape do not fit the attributes; unknown sizes may be anything. */
  static void check_shape(int32_t codec, const Attributes& attributes, const Shape& shape);

  /* Reads every byte. std::runtime_error says what is wrong with them. */
  Codes(int32_t codec, const Attributes& attributes, const Tensor& tensor);

  /* Constant codes of a matrix, settled: nodes that read the same tiles share one copy of them. */
  static std::shared_ptr<const Codes> constant(int32_t codec, const Attributes& attributes, const Tensor& tensor);

  const uint8_t* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  int32_t codec() const { return codec_; }  // as the kernels have them

 private:
  /* Moves codes that stay for the session's life to where they are read fastest. */
  void settle();
  bool is_copy_of(const Attributes& attributes, int32_t codec, const Tensor& tensor) const;
  void expand(const Attributes& attributes);

  int32_t codec_;
  std::shared_ptr<const uint8_t> own_;  // null: the runtime's
  const uint8_t* data_;
  size_t bytes_;
};

}  // namespace hybridkit::ort
#endif
