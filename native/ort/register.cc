// RegisterCustomOps: what ONNX Runtime calls when it is given this library.
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "attention.h"
#include "gather.h"
#include "operator.h"

namespace hybridkit::ort {
namespace {

const Operator& self(const OrtCustomOp* op) { return *static_cast<const Operator*>(op); }

ElementType element_type(int32_t dtype) {
  return dtype == HYBRIDKIT_F32 ? kFloat32 : dtype == HYBRIDKIT_F16 ? kFloat16 : kBFloat16;
}

struct Domain {
  explicit Domain(const OrtApi* api) : attention(api) {}

  std::list<Operator> operators;
  std::list<GatherOperator> gathers;
  AttentionOperator attention;
  OrtCustomOpDomain* handle = nullptr;
};

constexpr struct {
  const char* name;
  hybridkit_codec codec;
  hybridkit_activations activations;
  bool convolution;
} kOperators[] = {
    {"TernaryMatMulInt8", HYBRIDKIT_TERNARY, HYBRIDKIT_INT8, false},
    {"TernaryMatMulFloat", HYBRIDKIT_TERNARY, HYBRIDKIT_FLOAT, false},
    {"BinaryMatMulInt8", HYBRIDKIT_BINARY, HYBRIDKIT_INT8, false},
    {"BinaryMatMulFloat", HYBRIDKIT_BINARY, HYBRIDKIT_FLOAT, false},
    {"NBit1MatMulInt8", HYBRIDKIT_NBIT1, HYBRIDKIT_INT8, false},
    {"NBit1MatMulInt8Blocks", HYBRIDKIT_NBIT1, HYBRIDKIT_INT8_BLOCKS, false},
    {"NBit1MatMulFloat", HYBRIDKIT_NBIT1, HYBRIDKIT_FLOAT, false},
    {"NBit2MatMulInt8", HYBRIDKIT_NBIT2, HYBRIDKIT_INT8, false},
    {"NBit2MatMulInt8Blocks", HYBRIDKIT_NBIT2, HYBRIDKIT_INT8_BLOCKS, false},
    {"NBit2MatMulFloat", HYBRIDKIT_NBIT2, HYBRIDKIT_FLOAT, false},
    {"NBit4MatMulInt8", HYBRIDKIT_NBIT4, HYBRIDKIT_INT8, false},
    {"NBit4MatMulInt8Blocks", HYBRIDKIT_NBIT4, HYBRIDKIT_INT8_BLOCKS, false},
    {"NBit4MatMulFloat", HYBRIDKIT_NBIT4, HYBRIDKIT_FLOAT, false},
    {"NBit8MatMulInt8", HYBRIDKIT_NBIT8, HYBRIDKIT_INT8, false},
    {"NBit8MatMulInt8Blocks", HYBRIDKIT_NBIT8, HYBRIDKIT_INT8_BLOCKS, false},
    {"NBit8MatMulFloat", HYBRIDKIT_NBIT8, HYBRIDKIT_FLOAT, false},
    {"Sparse34MatMulInt8", HYBRIDKIT_SPARSE34, HYBRIDKIT_INT8, false},
    {"Sparse34MatMulFloat", HYBRIDKIT_SPARSE34, HYBRIDKIT_FLOAT, false},
    {"Base3MatMulInt8", HYBRIDKIT_BASE3, HYBRIDKIT_INT8, false},
    {"TernaryConvInt8", HYBRIDKIT_TERNARY, HYBRIDKIT_INT8, true},
    {"TernaryConvFloat", HYBRIDKIT_TERNARY, HYBRIDKIT_FLOAT, true},
    {"BinaryConvInt8", HYBRIDKIT_BINARY, HYBRIDKIT_INT8, true},
    {"BinaryConvFloat", HYBRIDKIT_BINARY, HYBRIDKIT_FLOAT, true},
};

constexpr struct {
  const char* name;
  hybridkit_codec codec;
} kGathers[] = {
    {"TernaryGather", HYBRIDKIT_TERNARY}, {"BinaryGather", HYBRIDKIT_BINARY}, {"NBit1Gather", HYBRIDKIT_NBIT1},
    {"NBit2Gather", HYBRIDKIT_NBIT2},     {"NBit4Gather", HYBRIDKIT_NBIT4},   {"NBit8Gather", HYBRIDKIT_NBIT8},
};

std::unique_ptr<Domain> make_domain(const OrtApi* api) {
  auto domain = std::make_unique<Domain>(api);
  check(api, CreateCustomOpDomain(api, "hybridkit", &domain->handle));
  for (const auto& op : kOperators)
    for (hybridkit_dtype dtype : {HYBRIDKIT_F32, HYBRIDKIT_F16, HYBRIDKIT_BF16})
      for (hybridkit_dtype scale_dtype : {HYBRIDKIT_F32, HYBRIDKIT_F16}) {
        const Operator made(api, op.name, op.codec, op.activations, op.convolution, dtype, scale_dtype);
        if (scale_dtype != HYBRIDKIT_F32 && !made.nbit()) continue;
        domain->operators.push_back(made);
        check(api, CustomOpDomain_Add(api, domain->handle, &domain->operators.back()));
      }
  for (const auto& op : kGathers) {
    domain->gathers.emplace_back(api, op.name, op.codec);
    check(api, CustomOpDomain_Add(api, domain->handle, &domain->gathers.back()));
  }
  check(api, CustomOpDomain_Add(api, domain->handle, &domain->attention));
  return domain;
}

// Sessions point to their domain, and nobody says when the last one has gone: one domain for each runtime in
// the process (two copies of ONNX Runtime have two tables of functions) lives as long as the library.
OrtCustomOpDomain* domain_of(const OrtApi* api) {
  static auto& domains = *new std::map<const OrtApi*, std::unique_ptr<Domain>>;
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  std::unique_ptr<Domain>& domain = domains[api];
  if (domain == nullptr) domain = make_domain(api);
  return domain->handle;
}

// Operators that are there twice fail when a session is made, so the options remember that they have them.
constexpr char kRegistered[] = "hybridkit.registered";

void add_once(const OrtApi* api, OrtSessionOptions* options) {
  int found = 0;
  check(api, HasSessionConfigEntry(api, options, kRegistered, &found));
  if (found != 0) return;
  check(api, AddCustomOpDomain(api, options, domain_of(api)));
  check(api, AddSessionConfigEntry(api, options, kRegistered, "1"));
}

OrtStatus* too_old(const OrtApiBase* base) {
  const OrtApi* api = base->GetApi(1);  // any version can make a status
  const std::string message = std::string("hybridkit's operators need ONNX Runtime 1.17 or newer, this is ") +
                              base->GetVersionString() + "; without them a model runs its portable bodies";
  return CreateStatus(api, kFail, message.c_str());
}

}  // namespace

Operator::Operator(const OrtApi* api, const char* name, hybridkit_codec codec,
                   hybridkit_activations activations, bool convolution, hybridkit_dtype dtype,
                   hybridkit_dtype scale_dtype)
    : api(api),
      name(name),
      codec(codec),
      activations(activations),
      convolution(convolution),
      dtype(dtype),
      scale_dtype(scale_dtype) {
  GetName = [](const OrtCustomOp* op) { return self(op).name; };
  GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };  // the CPU
  GetInputTypeCount = [](const OrtCustomOp*) { return size_t{kInputs}; };
  GetInputType = [](const OrtCustomOp* op, size_t index) {
    const Operator& o = self(op);
    return index == kX       ? element_type(o.dtype)
           : index == kCodes ? kUint8
           : index == kScale ? element_type(o.scale_dtype)
                             : kFloat32;
  };
  GetOutputTypeCount = [](const OrtCustomOp*) { return size_t{1}; };
  GetOutputType = [](const OrtCustomOp* op, size_t) { return element_type(self(op).dtype); };
  set_required(*this);
  CreateKernelV2 = create_kernel;
  KernelComputeV2 = run_kernel;
  KernelDestroy = destroy_kernel;
  InferOutputShapeFn = infer_shape;
}

}  // namespace hybridkit::ort

extern "C" HYBRIDKIT_API hybridkit::ort::OrtStatus* RegisterCustomOps(
    hybridkit::ort::OrtSessionOptions* options, const hybridkit::ort::OrtApiBase* base) {
  using namespace hybridkit::ort;
  const OrtApi* api = base->GetApi(kApiVersion);
  if (api == nullptr) return too_old(base);
  try {
    add_once(api, options);
    return nullptr;
  } catch (const std::exception& error) {
    return CreateStatus(api, kFail, error.what());
  }
}
