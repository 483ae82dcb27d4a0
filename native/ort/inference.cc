// The shape of an operator's output, for the runtime's graph: sizes and names of dimensions.
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
                                         const Shape& y, bool convolution) {
  static std::atomic<unsigned> unknown{0};
  std::vector<const char*> given(y.size(), "");
  check(api, GetSymbolicDimensions(api, x, given.data(), y.size()));
  std::vector<std::string> names(y.size());
  const size_t through = convolution ? 1 : y.size() - 1;
  for (size_t i = 0; i < y.size(); i++) {
    if (i < through) names[i] = given[i];
    if (y[i] < 0 && names[i].empty()) names[i] = "unknown_size_" + std::to_string(unknown++);
  }
  return names;
}

void infer(const Operator& op, OrtShapeInferContext* context) {
  const OrtApi* api = op.api;
  OrtTensorTypeAndShapeInfo* x = nullptr;  // the runtime's
  check(api, ShapeInferContext_GetInputTypeShape(api, context, kX, &x));
  const Shape given = shape_of(api, x);
  if (given.empty()) return;  // no shape is known
  const Shape shape = output_shape(read_attributes(InferenceAttributes{api, context}, op), given);
  const std::vector<std::string> names = names_of_output(api, x, shape, op.convolution);
  std::vector<const char*> pointers;
  for (const std::string& name : names) pointers.push_back(name.c_str());
  ElementType type;
  check(api, GetTensorElementType(api, x, &type));

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

}  // namespace

/* Never a status: the runtime would neither report nor release it. The kernel's maker says what is wrong. */
OrtStatus* infer_shape(const OrtCustomOp* op, OrtShapeInferContext* context) {
  try {
    infer(*static_cast<const Operator*>(op), context);
  } catch (const std::exception&) {
  }
  return nullptr;
}

}  // namespace hybridkit::ort
