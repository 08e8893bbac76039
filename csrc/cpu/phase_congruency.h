// What the binding of phase congruency hands to its kernel: contiguous float64 planes.
#pragma once
#include <cstdint>

#include "isa.h"

namespace ffmef {

struct PhaseCongruencyArgs {
  int64_t height, width;
  const double* spectrum_re;  // [H][W]
  const double* spectrum_im;
  const double* first;        // [H][W], radial factor of the smallest scale
  const double* ratio;        // [H][W], what the radial factor is multiplied with from scale to scale ...
  const double* decay;        // [scales], ... besides this number
  const double* direction;    // [H][W], angle of the frequency
  double angular_deviation;
  const double* noise_gains;  // [orientations]
  int scales, orientations;
};

constexpr int kMostScales = 8;
constexpr int64_t kLargestPrimeFactor = 151;  // of a side: the transform of a prime length is direct

struct PhaseCongruencyKernels {
  // maps is [3][H][W]: phase congruency, maximum moment, minimum moment. False if memory is short.
  bool (*maps)(const PhaseCongruencyArgs&, double* maps);
};

FFMEF_DECLARE_KERNELS(PhaseCongruencyKernels, phase_congruency_kernels)

}  // namespace ffmef
