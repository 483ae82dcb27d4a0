// What the processor and the operating system offer, asked without the help of the compiler's runtime library: not
// every one of them knows.
#ifndef HYBRIDKIT_PROCESSOR_H
#define HYBRIDKIT_PROCESSOR_H

namespace hybridkit {

bool has_avx2();        // with FMA and F16C
bool has_avxvnni();     // has_avx2() with AVX-VNNI
bool has_avx512vnni();
bool has_amx();  // asks the system for its registers  // has_avx2() with AVX-512 F, BW, DQ, VL and VNNI
bool has_neon_dot();    // NEON with dot products

}  // namespace hybridkit
#endif
