/* The operators {Ternary,Binary,NBit1,NBit2,NBit4,NBit8}Gather: rows of the codes of a product, which shares them. */
#ifndef HYBRIDKIT_ORT_GATHER_H
#define HYBRIDKIT_ORT_GATHER_H

#include <cstdint>

#include "ort_abi.h"

namespace hybridkit::ort {

struct GatherOperator : OrtCustomOp {
  const OrtApi* api;
  const char* name;
  int32_t codec;

  GatherOperator(const OrtApi* api, const char* name, int32_t codec);
};

}  // namespace hybridkit::ort
#endif
