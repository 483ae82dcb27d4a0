#include "attention.h"

#include <algorithm>
#include <utility>

#include "inference.h"
#include "node.h"

namespace hybridkit::ort {
namespace {

enum Input : size_t { kQuery, kKey, kValue, kPastKey, kPastValue, kLast, kTotal, kInputs };
constexpr const char* kInputNames[kInputs] = {"query", "key", "value", "past_key", "past_value", "last", "total"};
enum Output : size_t { kY, kPresentKey, kPresentValue, kOutputs };
constexpr const char* kName = "CachedAttention";

const AttentionOperator& self(const OrtCustomOp* op) { return *static_cast<const AttentionOperator*>(op); }

int64_t integer(const OrtApi* api, const OrtKernelInfo* info, const char* name) {
  int64_t value = 0;
  check(api, KernelInfoGetAttribute_int64(api, info, name, &value));
  return value;
}

float number(const OrtApi* api, const OrtKernelInfo* info, const char* name) {
  float value = 0;
  check(api, KernelInfoGetAttribute_float(api, info, name, &value));
  return value;
}

class AttentionKernel {
 public:
  AttentionKernel(const OrtApi* api, const OrtKernelInfo* info, std::string node) : api_(api), node_(std::move(node)) {
    attributes_.heads = integer(api, info, "num_heads");
    attributes_.kv_heads = integer(api, info, "kv_num_heads");
    attributes_.window = integer(api, info, "local_window_size");
    attributes_.scale = number(api, info, "scale");
    attributes_.softcap = number(api, info, "softcap");
    if (attributes_.heads < 1 || attributes_.kv_heads < 1 || attributes_.heads % attributes_.kv_heads != 0)
      throw std::runtime_error("attribute num_heads must be a multiple of kv_num_heads");
  }

  void run(OrtKernelContext* context) const {
    Tensor given[kInputs];
    for (size_t i = 0; i < kInputs; i++) given[i] = input_of(api_, context, i, kInputNames[i]);
    hybridkit_attention call = attributes_;
    take_sizes(given, call);
    const Shape present = {call.batch, call.kv_heads, call.room, call.head_size};
    call.present_keys = static_cast<float*>(output_of(api_, context, kPresentKey, present));
    call.present_values = static_cast<float*>(output_of(api_, context, kPresentValue, present));
    call.y = static_cast<float*>(output_of(api_, context, kY, given[kQuery].shape));
    Threads threads(api_, context);
    const hybridkit_parallel parallel = threads.parallel();
    if (const char* wrong = hybridkit_attend(&call, &parallel)) throw std::runtime_error(wrong);
  }

  const OrtApi* api() const { return api_; }
  const std::string& node() const { return node_; }

 private:
  // Sizes and addresses of inputs whose shapes fit together.
  void take_sizes(const Tensor (&given)[kInputs], hybridkit_attention& call) const {
    const Shape& query = given[kQuery].shape;
    if (query.size() != 3 || query[2] % call.heads != 0 || query[2] == 0)
      fail(given, kQuery, "[batch, tokens, " + std::to_string(call.heads) + " heads]");
    call.batch = query[0], call.tokens = query[1], call.head_size = query[2] / call.heads;
    for (size_t i : {kKey, kValue})
      expect(given, i, Shape{call.batch, call.tokens, call.kv_heads * call.head_size});
    const Shape& past = given[kPastKey].shape;
    call.past_room = past.size() == 4 ? past[2] : 0;
    for (size_t i : {kPastKey, kPastValue}) expect(given, i, Shape{call.batch, call.kv_heads, call.past_room, call.head_size});
    if (given[kLast].count() != call.batch) fail(given, kLast, "[" + std::to_string(call.batch) + "]");
    if (given[kTotal].count() != 1) fail(given, kTotal, "[]");
    call.total = *static_cast<const int32_t*>(given[kTotal].data);
    if (call.total < call.tokens) throw std::runtime_error("total is less than the new tokens");
    call.room = std::max(call.past_room, call.total);
    call.last = static_cast<const int32_t*>(given[kLast].data);
    const auto floats = [&given](size_t i) { return static_cast<const float*>(given[i].data); };
    call.queries = floats(kQuery), call.keys = floats(kKey), call.values = floats(kValue);
    call.past_keys = floats(kPastKey), call.past_values = floats(kPastValue);
  }

  static void expect(const Tensor (&given)[kInputs], size_t input, const Shape& shape) {
    if (given[input].shape != shape) fail(given, input, to_string(shape));
  }

  [[noreturn]] static void fail(const Tensor (&given)[kInputs], size_t input, const std::string& expected) {
    throw std::runtime_error(std::string(kInputNames[input]) + " must have the shape " + expected + ", got " +
                             to_string(given[input].shape));
  }

  const OrtApi* api_;
  std::string node_;
  hybridkit_attention attributes_{};  // what comes with the inputs is filled in at every run
};

OrtStatus* create(const OrtCustomOp* op, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
  const OrtApi* api = self(op).api;
  std::string node;
  return guarded(api, kName, node, [&] {
    node = node_name(api, info);
    *kernel = new AttentionKernel(api, info, node);
  });
}

OrtStatus* run(void* kernel, OrtKernelContext* context) {
  const auto& self = *static_cast<const AttentionKernel*>(kernel);
  return guarded(self.api(), kName, self.node(), [&] { self.run(context); });
}

// The first output has the shape of the query; the others' third size depends on a number.
OrtStatus* infer(const OrtCustomOp* op, OrtShapeInferContext* context) {
  try {
    const InferredInput query(self(op).api, context, kQuery);
    if (!query.shape.empty()) set_first_output(self(op).api, context, query, query.shape, query.shape.size());
  } catch (const std::exception&) {  // the runtime would neither report nor release a status
  }
  return nullptr;
}

}  // namespace

AttentionOperator::AttentionOperator(const OrtApi* api) : api(api) {
  GetName = [](const OrtCustomOp*) { return kName; };
  GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };  // the CPU
  GetInputTypeCount = [](const OrtCustomOp*) { return size_t{kInputs}; };
  GetInputType = [](const OrtCustomOp*, size_t index) { return index >= kLast ? kInt32 : kFloat32; };
  GetOutputTypeCount = [](const OrtCustomOp*) { return size_t{kOutputs}; };
  GetOutputType = [](const OrtCustomOp*, size_t) { return kFloat32; };
  set_required(*this);
  CreateKernelV2 = create;
  KernelComputeV2 = run;
  KernelDestroy = [](void* kernel) { delete static_cast<AttentionKernel*>(kernel); };
  InferOutputShapeFn = infer;
}

}  // namespace hybridkit::ort
