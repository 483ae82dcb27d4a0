#include "gather.h"

#include <memory>
#include <optional>
#include <utility>

#include "attributes.h"
#include "codes.h"
#include "inference.h"
#include "node.h"

namespace hybridkit::ort {
namespace {

enum Input : size_t { kRows, kCodes, kInputs };
constexpr const char* kInputNames[kInputs] = {"x", "codes"};

const GatherOperator& self(const OrtCustomOp* op) { return *static_cast<const GatherOperator*>(op); }

Shape shape_of_rows(const Attributes& attributes, Shape x) {
  x.push_back(attributes.K);
  return x;
}

class GatherKernel {
 public:
  GatherKernel(const GatherOperator& op, const OrtKernelInfo* info, std::string node)
      : op_(op), node_(std::move(node)), attributes_(read_matrix(KernelAttributes{op.api, info})) {
    if (const Shape codes = stated_shape(op.api, info, kCodes); !codes.empty())
      Codes::check_shape(op.codec, attributes_, codes);
    if (auto tensor = constant_of(op.api, info, kCodes)) codes_ = Codes::constant(op.codec, attributes_, *tensor);
  }

  void run(OrtKernelContext* context) const {
    const Tensor x = input_of(op_.api, context, kRows, kInputNames[kRows]);
    std::optional<Codes> passed;
    if (codes_ == nullptr)
      passed.emplace(op_.codec, attributes_, input_of(op_.api, context, kCodes, kInputNames[kCodes]));
    const Codes& codes = codes_ != nullptr ? *codes_ : *passed;
    void* y = output_of(op_.api, context, 0, shape_of_rows(attributes_, x.shape));
    if (const char* wrong =
            hybridkit_gather(op_.codec, codes.data(), codes.bytes(), attributes_.N, attributes_.K,
                             static_cast<const int64_t*>(x.data), x.count(), static_cast<float*>(y)))
      throw std::runtime_error(wrong);
  }

  const GatherOperator& op() const { return op_; }
  const std::string& node() const { return node_; }

 private:
  const GatherOperator& op_;
  std::string node_;
  Attributes attributes_;
  std::shared_ptr<const Codes> codes_;  // null: passed at every run
};

OrtStatus* create(const OrtCustomOp* op, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
  const GatherOperator& gather = self(op);
  std::string node;
  return guarded(gather.api, gather.name, node, [&] {
    node = node_name(gather.api, info);
    *kernel = new GatherKernel(gather, info, node);
  });
}

OrtStatus* run(void* kernel, OrtKernelContext* context) {
  const auto& self = *static_cast<const GatherKernel*>(kernel);
  return guarded(self.op().api, self.op().name, self.node(), [&] { self.run(context); });
}

OrtStatus* infer(const OrtCustomOp* op, OrtShapeInferContext* context) {
  try {
    const OrtApi* api = self(op).api;
    const InferredInput x(api, context, kRows);
    if (x.shape.empty()) return nullptr;  // no shape is known
    const Attributes attributes = read_matrix(InferenceAttributes{api, context});
    set_first_output(api, context, x, shape_of_rows(attributes, x.shape), x.shape.size(), kFloat32);
  } catch (const std::exception&) {  // the runtime would neither report nor release a status
  }
  return nullptr;
}

}  // namespace

GatherOperator::GatherOperator(const OrtApi* api, const char* name, int32_t codec) : api(api), name(name), codec(codec) {
  GetName = [](const OrtCustomOp* op) { return self(op).name; };
  GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };  // the CPU
  GetInputTypeCount = [](const OrtCustomOp*) { return size_t{kInputs}; };
  GetInputType = [](const OrtCustomOp*, size_t index) { return index == kRows ? kInt64 : kUint8; };
  GetOutputTypeCount = [](const OrtCustomOp*) { return size_t{1}; };
  GetOutputType = [](const OrtCustomOp*, size_t) { return kFloat32; };
  set_required(*this);
  CreateKernelV2 = create;
  KernelComputeV2 = run;
  KernelDestroy = [](void* kernel) { delete static_cast<GatherKernel*>(kernel); };
  InferOutputShapeFn = infer;
}

}  // namespace hybridkit::ort
