// What the processor and the operating system offer, asked without the help of the compiler's runtime library: not
// every one of them knows.
#ifndef HYBRIDKIT_PROCESSOR_H
#define HYBRIDKIT_PROCESSOR_H

#include <cstdint>

namespace hybridkit {

bool has_avx2();        // with FMA and F16C
bool has_avxvnni();     // has_avx2() with AVX-VNNI
bool has_avx512vnni();  // has_avx2() with AVX-512 F, BW, DQ, VL and VNNI
bool has_vbmi();        // of AVX-512: bytes by index
bool has_amx();         // asks the system for its registers
bool has_neon_dot();    // NEON with dot products

// How many bytes ahead of its use one row of activations asks for the stream of codes: 0 where the processor sees by
// itself that it is one, and asking takes longer.
int64_t stream_ahead();

}  // namespace hybridkit
#endif
