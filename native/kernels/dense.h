// Ternary codes in fewer than two bits, by codec.
#ifndef HYBRIDKIT_DENSE_H
#define HYBRIDKIT_DENSE_H

#include "hybridkit_kernels.h"
#include "isa.h"

namespace hybridkit {

constexpr Unit unit_of(int32_t codec) { return codec == HYBRIDKIT_BASE3 ? kBase3 : kSparse; }

inline const DenseKernels& dense_kernels_of(const Isa& isa, int32_t codec) {
  return codec == HYBRIDKIT_BASE3 ? isa.base3 : isa.sparse;
}

}  // namespace hybridkit
#endif
