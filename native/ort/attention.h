/* The operator CachedAttention, which ONNX Runtime's GroupQueryAttention is the portable body of. */
#ifndef HYBRIDKIT_ORT_ATTENTION_H
#define HYBRIDKIT_ORT_ATTENTION_H

#include "ort_abi.h"

namespace hybridkit::ort {

struct AttentionOperator : OrtCustomOp {
  const OrtApi* api;

  explicit AttentionOperator(const OrtApi* api);
};

}  // namespace hybridkit::ort
#endif
