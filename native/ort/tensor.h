/* A tensor of the runtime, borrowed. */
#ifndef HYBRIDKIT_ORT_TENSOR_H
#define HYBRIDKIT_ORT_TENSOR_H

#include "attributes.h"
#include "ort_abi.h"

namespace hybridkit::ort {

struct Tensor {
  void* data = nullptr;
  Shape shape;

  int64_t count() const { return count_of(shape); }
};

inline Shape shape_of(const OrtApi* api, const OrtTensorTypeAndShapeInfo* info) {
  size_t rank = 0;
  check(api, GetDimensionsCount(api, info, &rank));
  Shape shape(rank);
  if (rank > 0) check(api, GetDimensions(api, info, shape.data(), rank));
  return shape;
}

inline Tensor tensor_of(const OrtApi* api, const OrtValue* value) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(api, GetTensorTypeAndShape(api, value, &info));
  Tensor tensor;
  try {
    tensor.shape = shape_of(api, info);
  } catch (...) {
    ReleaseTensorTypeAndShapeInfo(api, info);
    throw;
  }
  ReleaseTensorTypeAndShapeInfo(api, info);
  check(api, GetTensorMutableData(api, const_cast<OrtValue*>(value), &tensor.data));
  return tensor;
}

}  // namespace hybridkit::ort
#endif
