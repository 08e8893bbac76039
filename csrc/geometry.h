// Where a padded coordinate reads its image: shared by host and device code.
#pragma once
#include <cstdint>

#if defined(__CUDACC__) || defined(FFMEF_EMULATE_CUDA)
#define FFMEF_HOST_DEVICE __host__ __device__
#else
#define FFMEF_HOST_DEVICE
#endif

namespace ffmef {

enum class Padding : int { zeros = 0, replicate = 1, reflect = 2 };

// Largest filter side, so largest halo is kMaxFilterSize / 2.
constexpr int kMaxFilterSize = 31;

// The image coordinate that a padded coordinate reads, or -1 for a zero.
// Reflection bounces with period 2 (size - 1), so that images smaller than the filter work.
static inline FFMEF_HOST_DEVICE int64_t padded_index(int64_t position, int64_t size, Padding mode) {
  if (position >= 0 && position < size) return position;
  if (mode == Padding::zeros) return -1;
  if (mode == Padding::replicate) return position < 0 ? 0 : size - 1;
  if (size == 1) return 0;
  const int64_t period = 2 * (size - 1);
  int64_t folded = position % period;
  if (folded < 0) folded += period;
  return folded < size ? folded : period - folded;
}

}  // namespace ffmef
