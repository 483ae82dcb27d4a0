// The shape of an operator's output, for the runtime's graph: sizes and names of dimensions.
#include <exception>
#include <vector>

#include "attributes.h"
#include "operator.h"
#include "tensor.h"

namespace hybridkit::ort {
namespace {

// Dimensions that pass through keep their names; "" is no name.
std::vector<const char*> names_of_output(const OrtApi* api, const OrtTensorTypeAndShapeInfo* x, size_t rank,
                                         bool convolution) {
  std::vector<const char*> names(rank, "");
  check(api, GetSymbolicDimensions(api, x, names.data(), rank));
  for (size_t i = convolution ? 1 : rank - 1; i < rank; i++) names[i] = "";
  return names;
}

void infer(const Operator& op, OrtShapeInferContext* context) {
  const OrtApi* api = op.api;
  OrtTensorTypeAndShapeInfo* x = nullptr;  // the runtime's
  check(api, ShapeInferContext_GetInputTypeShape(api, context, kX, &x));
  const Shape given = shape_of(api, x);
  if (given.empty()) return;  // no shape is known
  const Shape shape = output_shape(read_attributes(InferenceAttributes{api, context}, op.convolution), given);
  std::vector<const char*> names = names_of_output(api, x, shape.size(), op.convolution);
  ElementType type;
  check(api, GetTensorElementType(api, x, &type));

  OrtTensorTypeAndShapeInfo* y = nullptr;
  check(api, CreateTensorTypeAndShapeInfo(api, &y));
  try {
    check(api, SetTensorElementType(api, y, type));
    check(api, SetDimensions(api, y, shape.data(), shape.size()));
    check(api, SetSymbolicDimensions(api, y, names.data(), names.size()));
    check(api, ShapeInferContext_SetOutputTypeShape(api, context, 0, y));
  } catch (...) {
    ReleaseTensorTypeAndShapeInfo(api, y);
    throw;
  }
  ReleaseTensorTypeAndShapeInfo(api, y);
}

}  // namespace

/* Never a status: the runtime would neither report nor release it. What is wrong is said when the kernel is made. */
OrtStatus* infer_shape(const OrtCustomOp* op, OrtShapeInferContext* context) {
  try {
    infer(*static_cast<const Operator*>(op), context);
  } catch (const std::exception&) {
  }
  return nullptr;
}

}  // namespace hybridkit::ort
