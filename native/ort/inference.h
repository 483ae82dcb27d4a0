/* Shapes of outputs for the runtime's graph: sizes and names of dimensions. */
#ifndef HYBRIDKIT_ORT_INFERENCE_H
#define HYBRIDKIT_ORT_INFERENCE_H

#include "tensor.h"

namespace hybridkit::ort {

/* What is known of an input; [] where that is no shape. */
struct InferredInput {
  InferredInput(const OrtApi* api, OrtShapeInferContext* context, size_t index);
  OrtTensorTypeAndShapeInfo* info = nullptr;  // the runtime's
  Shape shape;
};

/* The first output has the type of `x`, and its first `through` sizes. */
void set_first_output(const OrtApi* api, OrtShapeInferContext* context, const InferredInput& x, const Shape& shape,
                      size_t through);

}  // namespace hybridkit::ort
#endif
