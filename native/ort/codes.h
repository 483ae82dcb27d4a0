/* The packed codes of a layer, checked and in the order that the kernels read. */
#ifndef HYBRIDKIT_ORT_CODES_H
#define HYBRIDKIT_ORT_CODES_H

#include <memory>

#include "attributes.h"
#include "tensor.h"

namespace hybridkit::ort {

/* Codes in the kernels' own layout are used where they are; row-major ones are copied into tiles. */
class Codes {
 public:
  /* Reads every byte. std::runtime_error says what is wrong with them. */
  Codes(int32_t codec, const Attributes& attributes, const Tensor& tensor);

  const uint8_t* data() const { return data_; }

 private:
  struct Free {
    void operator()(uint8_t* memory) const;
  };
  std::unique_ptr<uint8_t, Free> own_;
  const uint8_t* data_;
};

}  // namespace hybridkit::ort
#endif
