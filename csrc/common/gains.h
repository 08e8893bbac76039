// How gains of PyramidFFMEF grow with the number of exposures (ffmef/models/pyramid.py): shared by host and device
// code.
#pragma once
#include <cstdint>

#include "padding.h"

namespace ffmef {

constexpr float kMoreBands = 0.3f, kMoreBase = 1.5f;  // with very many exposures: bands; base and fine octaves

// The factor of the gains of this plane: bands, base, fine octaves, further octaves. 1 for two exposures.
static inline FFMEF_HOST_DEVICE float gain_with_count(int plane, int bands, int64_t count) {
  const float more = plane < bands ? kMoreBands : plane < bands + 2 ? kMoreBase : 0.0f;
  return 1.0f + more * (1.0f - 2.0f / static_cast<float>(count));
}

}  // namespace ffmef
