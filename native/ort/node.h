/* What kernels of all operators need of the runtime. */
#ifndef HYBRIDKIT_ORT_NODE_H
#define HYBRIDKIT_ORT_NODE_H

#include <exception>
#include <optional>
#include <string>

#include "hybridkit_kernels.h"
#include "tensor.h"

namespace hybridkit::ort {

inline std::string node_name(const OrtApi* api, const OrtKernelInfo* info) {
  size_t size = 0;
  check(api, KernelInfo_GetNodeName(api, info, nullptr, &size));
  std::string name(size, '\0');
  if (size > 0) check(api, KernelInfo_GetNodeName(api, info, name.data(), &size));
  return name.c_str();  // without the final zero
}

inline Tensor input_of(const OrtApi* api, const OrtKernelContext* context, size_t index, const char* name) {
  const OrtValue* value = nullptr;
  check(api, KernelContext_GetInput(api, context, index, &value));
  if (value == nullptr) throw std::runtime_error(std::string("input ") + name + " is missing");
  return tensor_of(api, value);
}

// An input that is a constant of the model.
inline std::optional<Tensor> constant_of(const OrtApi* api, const OrtKernelInfo* info, size_t index) {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  check(api, KernelInfoGetConstantInput_tensor(api, info, index, &is_constant, &value));
  if (is_constant == 0 || value == nullptr) return std::nullopt;
  return tensor_of(api, value);
}

// The shape of an input that the model states; [] where it states none.
inline Shape stated_shape(const OrtApi* api, const OrtKernelInfo* info, size_t index) {
  OrtTypeInfo* type = nullptr;
  check(api, KernelInfo_GetInputTypeInfo(api, info, index, &type));
  Shape shape;
  try {
    const OrtTensorTypeAndShapeInfo* tensor = nullptr;
    check(api, CastTypeInfoToTensorInfo(api, type, &tensor));
    if (tensor != nullptr) shape = shape_of(api, tensor);
  } catch (...) {
    ReleaseTypeInfo(api, type);
    throw;
  }
  ReleaseTypeInfo(api, type);
  return shape;
}

inline void* output_of(const OrtApi* api, OrtKernelContext* context, size_t index, const Shape& shape) {
  OrtValue* value = nullptr;
  void* data = nullptr;
  check(api, KernelContext_GetOutput(api, context, index, shape.data(), shape.size(), &value));
  check(api, GetTensorMutableData(api, value, &data));
  return data;
}

// The runtime's own threads, while a kernel runs.
class Threads {
 public:
  Threads(const OrtApi* api, const OrtKernelContext* context) : api_(api), context_(context) {}

  hybridkit_parallel parallel() { return {run, this}; }

 private:
  static void run(void* pool, void (*task)(void*, size_t), void* state, size_t count) {
    const auto* self = static_cast<const Threads*>(pool);
    if (count > 1) {
      // 0 batches: the runtime gives out single tasks. With a number of batches one thread may take them all.
      OrtStatus* status = KernelContext_ParallelFor(self->api_, self->context_, task, count, 0, state);
      if (status == nullptr) return;
      ReleaseStatus(self->api_, status);  // nothing has run
    }
    for (size_t i = 0; i < count; i++) task(state, i);
  }

  const OrtApi* api_;
  const OrtKernelContext* context_;
};

// Calls `body`; what it throws becomes a status that names the layer.
template <typename Body>
OrtStatus* guarded(const OrtApi* api, const char* name, const std::string& node, Body body) {
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    const std::string layer = std::string("hybridkit.") + name + (node.empty() ? "" : " '" + node + "'");
    return CreateStatus(api, kInvalidArgument, (layer + ": " + error.what()).c_str());
  }
}

}  // namespace hybridkit::ort
#endif
