#include "scales.h"

#include <cstring>
#include <stdexcept>
#include <vector>

#include "memory.h"

namespace hybridkit::ort {

Scales::Scales(const Attributes& a, const void* scale, int32_t dtype) {
  std::vector<uint8_t> tiles;
  const char* wrong = nullptr;
  for (const hybridkit_dtype used : {HYBRIDKIT_F16, HYBRIDKIT_F32}) {
    tiles.resize(hybridkit_scale_bytes(used, a.N, a.K, a.group_size));
    dtype_ = used;
    wrong = hybridkit_tile_scales(scale, dtype, a.N, a.K, a.group_size, used, tiles.data());
    if (wrong == nullptr) break;
  }
  if (wrong != nullptr) throw std::runtime_error(wrong);
  std::shared_ptr<uint8_t> kept = allocate_codes(tiles.size());
  std::memcpy(kept.get(), tiles.data(), tiles.size());
  own_ = std::move(kept);
  const size_t given = static_cast<size_t>(count_of(a.scale_shape())) * (dtype == HYBRIDKIT_F32 ? 4 : 2);
  give_up(reinterpret_cast<const uint8_t*>(scale), given);
}

}  // namespace hybridkit::ort
