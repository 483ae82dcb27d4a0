// What the fuzz target and our driver of it share.
#ifndef HYBRIDKIT_FUZZ_H
#define HYBRIDKIT_FUZZ_H

#include <cstddef>
#include <cstdint>

// One case: what `data` stands for is run under every instruction set and compared with the reference, or refused.
// Aborts where that does not happen. The signature is libFuzzer's.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace fuzz {

// How cases ended: a fuzz target that only ever skips finds nothing.
struct Tally {
  int64_t compared, refused, too_large;
};
inline Tally tally{};

}  // namespace fuzz

#endif
