// Where a padded coordinate reads its image: shared by host and device code.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
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
// Int is int64_t on the CPU; GPUs count rows and columns in 32 bits.
template <class Int = int64_t> static inline FFMEF_HOST_DEVICE Int padded_index(Int position, Int size, Padding mode) {
  if (position >= 0 && position < size) return position;
  if (mode == Padding::zeros) return -1;
  if (mode == Padding::replicate) return position < 0 ? 0 : size - 1;
  if (size == 1) return 0;
  const Int period = 2 * (size - 1);
  Int folded = position % period;
  if (folded < 0) folded += period;
  return folded < size ? folded : period - folded;
}

}  // namespace ffmef
