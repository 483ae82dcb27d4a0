#include "inference.h"

#include <atomic>
#include <exception>
#include <string>
#include <vector>

#include "attributes.h"
#include "operator.h"
#include "tensor.h"

namespace hybridkit::ort {
namespace {

/* Dimensions that pass through keep their names; "" is no name. An unknown size needs one, or the runtime
 * takes its -1 for the size; two unknown sizes need not be equal, so each has a name of its own. */
std::vector<std::string> names_of_output(const OrtApi* api, const OrtTensorTypeAndShapeInfo* x,
                                         const Shape& y, size_t through) {
  static std::atomic<unsigned> unknown{0};
  std::vector<const char*> given(y.size(), "");
  check(api, GetSymbolicDimensions(api, x, given.data(), y.size()));
  std::vector<std::string> names(y.size());
  for (size_t i = 0; i < y.size(); i++) {
    if (i < through) names[i] = given[i];
    if (y[i] < 0 && names[i].empty()) names[i] = "unknown_size_" + std::to_string(unknown++);
  }
  return names;
}

void infer(const Operator& op, OrtShapeInferContext* context) {
  const InferredInput x(op.api, context, kX);
  if (x.shape.empty()) return;  // no shape is known
  const Shape shape = output_shape(read_attributes(InferenceAttributes{op.api, context}, op), x.shape);
  set_first_output(op.api, context, x, shape, op.convolution ? 1 : shape.size() - 1);
}

}  // namespace

InferredInput::InferredInput(const OrtApi* api, OrtShapeInferContext* context, size_t index) {
  check(api, ShapeInferContext_GetInputTypeShape(api, context, index, &info));
  shape = shape_of(api, info);
}

void set_first_output(const OrtApi* api, OrtShapeInferContext* context, const InferredInput& x, const Shape& shape,
                      size_t through) {
  ElementType type;
  check(api, GetTensorElementType(api, x.info, &type));
  set_first_output(api, context, x, shape, through, type);
}

void set_first_output(const OrtApi* api, OrtShapeInferContext* context, const InferredInput& x, const Shape& shape,
                      size_t through, ElementType type) {
  const std::vector<std::string> names = names_of_output(api, x.info, shape, through);
  std::vector<const char*> pointers;
  for (const std::string& name : names) pointers.push_back(name.c_str());

  OrtTensorTypeAndShapeInfo* y = nullptr;
  check(api, CreateTensorTypeAndShapeInfo(api, &y));
  try {
    check(api, SetTensorElementType(api, y, type));
    check(api, SetDimensions(api, y, shape.data(), shape.size()));
    check(api, SetSymbolicDimensions(api, y, pointers.data(), pointers.size()));
    check(api, ShapeInferContext_SetOutputTypeShape(api, context, 0, y));
  } catch (...) {
    ReleaseTensorTypeAndShapeInfo(api, y);
    throw;
  }
  ReleaseTensorTypeAndShapeInfo(api, y);
}

/* Never a status: the runtime would neither report nor release it. The kernel's maker says what is wrong. */
OrtStatus* infer_shape(const OrtCustomOp* op, OrtShapeInferContext* context) {
  try {
    infer(*static_cast<const Operator*>(op), context);
  } catch (const std::exception&) {
  }
  return nullptr;
}

}  // namespace hybridkit::ort
