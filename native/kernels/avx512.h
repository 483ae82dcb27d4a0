// What AVX-512 VNNI has and instruction sets beyond it take over.
#ifndef HYBRIDKIT_AVX512_H
#define HYBRIDKIT_AVX512_H

#include "isa.h"

namespace hybridkit {
constexpr int kFloatRows = 8;  // as many rows of floats share the unpacking of a weight

namespace avx512 {

void int8(const Int8Work& work);
void group_int8(const Int8Work& work);
void floats(const FloatWork& work);
void group_floats(const FloatWork& work);
void sparse_int8(const Int8Work& work);
void sparse_floats(const FloatWork& work);
void expand_sparse(const uint8_t* units, int64_t count, uint8_t* blocks);
void base3_int8(const Int8Work& work);
void expand_base3(const uint8_t* units, int64_t count, uint8_t* blocks);
void attend(const AttentionWork& work);

constexpr DenseKernels kSparseKernels = {sparse_int8, sparse_floats, expand_sparse};
constexpr DenseKernels kBase3Kernels = {base3_int8, nullptr, expand_base3};

}  // namespace avx512
}  // namespace hybridkit
#endif
