// What the binding of windowed statistics hands to its kernel: contiguous float64 planes.
#pragma once
#include <cstdint>

#include "../base/isa.h"

namespace ffmef {

struct WindowMomentsArgs {
  int64_t height, width;          // of the maps; windows lie inside them
  const double* maps;             // [M][H][W]
  const double* taps;             // [size], odd and symmetric: the window's taps in both directions
  const int64_t *first, *second;  // [pairs], maps
  int64_t count, pairs, size;     // maps, pairs, taps
};

struct WindowMomentsKernels {
  // result is [M + pairs][H - size + 1][W - size + 1]: weighted means, and covariances of the pairs.
  void (*moments)(const WindowMomentsArgs&, double* result);
};

FFMEF_DECLARE_KERNELS(WindowMomentsKernels, window_moments_kernels)

}  // namespace ffmef
