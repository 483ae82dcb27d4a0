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

/* The first output has the first `through` sizes of `x`, and its type. */
void set_first_output(const OrtApi* api, OrtShapeInferContext* context, const InferredInput& x, const Shape& shape,
                      size_t through);
void set_first_output(const OrtApi* api, OrtShapeInferContext* context, const InferredInput& x, const Shape& shape,
                      size_t through, ElementType type);

}  // namespace hybridkit::ort
#endif
