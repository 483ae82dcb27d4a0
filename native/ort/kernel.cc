// A node of a session: made from its attributes and constant inputs, run with the runtime's own threads.
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "attributes.h"
#include "codes.h"
#include "node.h"
#include "operator.h"
#include "scales.h"
#include "tensor.h"

namespace hybridkit::ort {
namespace {

constexpr const char* kInputNames[kInputs] = {"x", "codes", "scale", "bias"};

// Of scale or bias.
void check_vector(const Attributes& attributes, Input input, const Shape& shape) {
  const Shape expected = input == kScale ? attributes.scale_shape() : Shape{attributes.N};
  bool agrees = shape.size() == expected.size();
  for (size_t i = 0; agrees && i < shape.size(); i++) agrees = shape[i] == expected[i] || shape[i] < 0;
  if (agrees) return;
  throw std::runtime_error(std::string(kInputNames[input]) + " must have the shape " + to_string(expected) +
                           ", got " + to_string(shape));
}

const void* vector_of(const Attributes& attributes, Input input, const Tensor& tensor) {
  check_vector(attributes, input, tensor.shape);
  return tensor.data;
}

// Shapes that the model states are checked when the session is made, not when it first runs.
void check_stated_shapes(const Operator& op, const OrtKernelInfo* info, const Attributes& attributes) {
  if (const Shape x = stated_shape(op.api, info, kX); !x.empty()) output_shape(attributes, x);
  if (const Shape codes = stated_shape(op.api, info, kCodes); !codes.empty())
    Codes::check_shape(op.codec, attributes, codes);
  for (Input input : {kScale, kBias})
    if (const Shape shape = stated_shape(op.api, info, input); !shape.empty())
      check_vector(attributes, input, shape);
}

class Kernel {
 public:
  Kernel(const Operator& op, const OrtKernelInfo* info, std::string node)
      : op_(op), api_(op.api), node_(std::move(node)) {
    const OrtApi* api = op.api;
    attributes_ = read_attributes(KernelAttributes{api, info}, op);
    check_stated_shapes(op, info, attributes_);
    if (auto tensor = constant_of(api, info, kCodes)) codes_ = Codes::constant(op.codec, attributes_, *tensor);
    if (auto tensor = constant_of(api, info, kScale)) scale_ = vector_of(attributes_, kScale, *tensor);
    if (auto tensor = constant_of(api, info, kBias)) bias_ = vector_of(attributes_, kBias, *tensor);
    if (scale_ != nullptr && op.nbit()) scales_.emplace(attributes_, scale_, op.scale_dtype);
  }

  void run(OrtKernelContext* context) const {
    const Tensor x = input(context, kX);
    const Shape shape = output_shape(attributes_, x.shape);
    std::optional<Codes> passed;  // codes that are no constant are checked and tiled at every run
    if (codes_ == nullptr) passed.emplace(op_.codec, attributes_, input(context, kCodes));
    const Codes& codes = codes_ != nullptr ? *codes_ : *passed;
    const void* scale = scale_ ? scale_ : vector_of(attributes_, kScale, input(context, kScale));
    std::optional<Scales> arranged;
    if (op_.nbit() && !scales_) arranged.emplace(attributes_, scale, op_.scale_dtype);
    const void* bias = bias_ ? bias_ : vector_of(attributes_, kBias, input(context, kBias));
    const Scales* scales = scales_ ? &*scales_ : arranged ? &*arranged : nullptr;
    const hybridkit_matrix matrix = {codes.codec(),
                                     op_.activations,
                                     attributes_.N,
                                     attributes_.K,
                                     codes.data(),
                                     op_.nbit() ? nullptr : static_cast<const float*>(scale),
                                     static_cast<const float*>(bias),
                                     codes.bytes(),
                                     attributes_.group_size,
                                     scales ? scales->data() : nullptr,
                                     scales ? scales->dtype() : HYBRIDKIT_F32};
    void* y = output_of(api_, context, 0, shape);  // only now that everything fits: N may be anything in a damaged model
    Threads threads(api_, context);
    const hybridkit_parallel parallel = threads.parallel();
    if (const char* wrong = multiply(matrix, x, y, parallel)) throw std::runtime_error(wrong);
  }

  const Operator& op() const { return op_; }
  const std::string& node() const { return node_; }

 private:
  const char* multiply(const hybridkit_matrix& matrix, const Tensor& x, void* y,
                       const hybridkit_parallel& parallel) const {
    if (!attributes_.convolution)
      return hybridkit_matmul(&matrix, op_.dtype, x.data, x.count() / attributes_.K, y, &parallel);
    const hybridkit_geometry geometry = sized(attributes_, x.shape);
    return hybridkit_conv(&matrix, &geometry, op_.dtype, x.data, x.shape[0], y, &parallel);
  }

  Tensor input(const OrtKernelContext* context, Input index) const {
    return input_of(api_, context, index, kInputNames[index]);
  }

  const Operator& op_;
  const OrtApi* api_;
  std::string node_;
  Attributes attributes_;
  std::shared_ptr<const Codes> codes_;  // null: passed at every run
  std::optional<Scales> scales_;  // of n-bit codes, where they are constant
  const void* scale_ = nullptr;  // null: passed at every run
  const void* bias_ = nullptr;
};

}  // namespace

OrtStatus* create_kernel(const OrtCustomOp* op, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
  const auto& self = *static_cast<const Operator*>(op);
  std::string node;
  return guarded(self.api, self.name, node, [&] {
    node = node_name(self.api, info);
    *kernel = new Kernel(self, info, node);
  });
}

OrtStatus* run_kernel(void* kernel, OrtKernelContext* context) {
  const auto& self = *static_cast<const Kernel*>(kernel);
  return guarded(self.op().api, self.op().name, self.node(), [&] { self.run(context); });
}

void destroy_kernel(void* kernel) { delete static_cast<Kernel*>(kernel); }

}  // namespace hybridkit::ort
