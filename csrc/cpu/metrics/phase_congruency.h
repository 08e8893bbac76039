// What the binding of phase congruency hands to its kernel.
#pragma once
#include <cstdint>

#include "../base/isa.h"

namespace ffmef {

constexpr int64_t kPhaseCongruencyTile = 16;  // columns; a multiple of every vector's length

// Tiles of the columns up to the middle one.
constexpr int64_t phase_congruency_tiles(int64_t width) { return width / 2 / kPhaseCongruencyTile + 1; }

struct PhaseCongruencyArgs {
  int64_t height, width;
  // [table][mirrored][tile][H][kPhaseCongruencyTile]: for the frequencies x = 0, 1, ... or, mirrored, W - x, the radial
  // factor of the smallest scale, its ratio from scale to scale (apart from decay), and the angle.
  const double* tables;
  const double* decay;  // [scales]
  double angular_deviation;
  const double* noise_gains;  // [orientations]
  int scales, orientations;
};

constexpr int kMostScales = 8;

// In grey levels. If the noise threshold is above this, float computes the same maps: its rounding (about 1e-5) stays
// below the threshold and is cut off. A picture that is more than half flat gives no estimate of noise.
constexpr double kLeastThreshold = 1e-2;

struct PhaseCongruencyKernels {
  // For one picture, [H][W]. maps is [3][H][W]: phase congruency, maximum moment, minimum moment. Returns false if
  // rounding would show.
  bool (*in_float)(const PhaseCongruencyArgs&, const uint8_t* levels, float* maps);
  bool (*in_double)(const PhaseCongruencyArgs&, const uint8_t* levels, float* maps);
};

FFMEF_DECLARE_KERNELS(PhaseCongruencyKernels, phase_congruency_kernels)

}  // namespace ffmef
