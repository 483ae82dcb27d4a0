/* The operators of the domain `hybridkit` that have kernels. */
#ifndef HYBRIDKIT_ORT_OPERATOR_H
#define HYBRIDKIT_ORT_OPERATOR_H

#include "hybridkit_kernels.h"
#include "ort_abi.h"

namespace hybridkit::ort {

enum Input : size_t { kX, kCodes, kScale, kBias, kInputs };

/* One operator for one type of activations and one of scales, which may be float16 with n-bit codes: several operators of a name together are the runtime's schema. */
struct Operator : OrtCustomOp {
  const OrtApi* api;
  const char* name;
  int32_t codec, activations;
  bool convolution;
  int32_t dtype, scale_dtype;

  bool nbit() const { return codec >= HYBRIDKIT_NBIT1 && codec <= HYBRIDKIT_NBIT8; }

  Operator(const OrtApi* api, const char* name, hybridkit_codec codec, hybridkit_activations activations,
           bool convolution, hybridkit_dtype dtype, hybridkit_dtype scale_dtype);
};

/* What OrtCustomOp points to (kernel.cc, inference.cc). None lets an exception through. */
OrtStatus* create_kernel(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** kernel);
OrtStatus* run_kernel(void* kernel, OrtKernelContext* context);
void destroy_kernel(void* kernel);
OrtStatus* infer_shape(const OrtCustomOp* op, OrtShapeInferContext* context);

}  // namespace hybridkit::ort
#endif
