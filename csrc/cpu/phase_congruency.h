// What the binding of phase congruency hands to its kernel: contiguous float64 planes.
#pragma once
#include <cstdint>

#include "isa.h"

namespace ffmef {

struct PhaseCongruencyArgs {
  int64_t height, width;
  const double* spectrum_re;  // [H][W / 2 + 1]: the other half is its conjugate mirror image
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

// In units of grey levels. Where the threshold of noise is above this, float computes the same maps: its rounding
// (about 1e-5) stays below the threshold and is cut off. A picture that is flat by more than half has no noise to tell.
constexpr double kLeastThreshold = 1e-2;

enum class PhaseCongruencyResult { done, rounding_shows, out_of_memory };

struct PhaseCongruencyKernels {
  // maps is [3][H][W]: phase congruency, maximum moment, minimum moment.
  PhaseCongruencyResult (*in_float)(const PhaseCongruencyArgs&, float* maps);
  PhaseCongruencyResult (*in_double)(const PhaseCongruencyArgs&, float* maps);
};

FFMEF_DECLARE_KERNELS(PhaseCongruencyKernels, phase_congruency_kernels)

}  // namespace ffmef
