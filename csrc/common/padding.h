// The padding modes, and where a padded coordinate reads its image: shared by host and device code.
#pragma once
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define FFMEF_HOST_DEVICE __host__ __device__
#else
#define FFMEF_HOST_DEVICE
#endif

namespace ffmef {

// Numbers and names in the same order; ffmef/ops/adaptive_fuse.py lists the names for Python and Triton.
enum class Padding : int { zeros, replicate, reflect, circular };
constexpr const char* kPaddingNames[] = {"zeros", "replicate", "reflect", "circular"};

// Finds the mode of this name, or returns false if there is none.
static inline bool find_padding(const char* name, Padding& mode) {
  int number = 0;
  for (const char* known : kPaddingNames) {
    if (std::strcmp(name, known) == 0) {
      mode = static_cast<Padding>(number);
      return true;
    }
    ++number;
  }
  return false;
}

// Largest filter side. The largest halo is therefore kMaxFilterSize / 2.
constexpr int kMaxFilterSize = 31;

// The image coordinate that a padded coordinate reads, or -1 for a zero.
// Reflection has period 2 (size - 1) and circular padding period size, so images smaller than the filter work too.
// Int is int64_t on the CPU; GPUs count rows and columns in 32 bits.
template <class Int = int64_t> static inline FFMEF_HOST_DEVICE Int padded_index(Int position, Int size, Padding mode) {
  if (position >= 0 && position < size) return position;
  if (mode == Padding::zeros) return -1;
  if (mode == Padding::replicate) return position < 0 ? 0 : size - 1;
  if (size == 1) return 0;
  const Int period = mode == Padding::circular ? size : 2 * (size - 1);
  Int folded = position % period;
  if (folded < 0) folded += period;
  return folded < size ? folded : period - folded;
}

}  // namespace ffmef
