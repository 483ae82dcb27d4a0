/* The scales of n-bit codes in the order that the kernels read. */
#ifndef HYBRIDKIT_ORT_SCALES_H
#define HYBRIDKIT_ORT_SCALES_H

#include <memory>

#include "attributes.h"

namespace hybridkit::ort {

/* In float16 where that holds every scale exactly: fewer bytes to stream. */
class Scales {
 public:
  /* `scale` has the shape attributes.scale_shape() and is HYBRIDKIT_F32 or HYBRIDKIT_F16. */
  Scales(const Attributes& attributes, const void* scale, int32_t dtype);

  const void* data() const { return own_.get(); }
  int32_t dtype() const { return dtype_; }

 private:
  std::shared_ptr<const uint8_t> own_;
  int32_t dtype_;
};

}  // namespace hybridkit::ort
#endif
