// What the binding of filters in the Fourier domain hands to its kernel: contiguous float64 planes.
#pragma once
#include <cstdint>

#include "../base/isa.h"

namespace ffmef {

struct SpectralFilterArgs {
  int64_t count, height, width;
  const double* planes;    // [P][H][W]
  const double* response;  // [H][W / 2 + 1], by frequency; real, and mirrored beyond
};

struct SpectralFilterKernels {
  void (*filter)(const SpectralFilterArgs&, double* result);  // [P][H][W]
};

FFMEF_DECLARE_KERNELS(SpectralFilterKernels, spectral_filter_kernels)

}  // namespace ffmef
