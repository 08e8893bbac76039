// Fuses pictures with PyramidFFMEF: predictor, pyramid and colour. Needs neither torch nor Python.
#pragma once
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <vector>

#include "../cpu/base/team.h"
#include "../cpu/fuse/pyramid_predict.h"
#include "exposures.h"

namespace ffmef {

// Pictures of one size and depth.
struct Pictures {
  Sample sample;
  int64_t height, width;
  std::vector<PictureView> views;

  int64_t count() const { return int64_t(views.size()); }
  bool coloured() const;
  int64_t down() const { return (height + 1) / 2; }
  int64_t across() const { return (width + 1) / 2; }
};

// A parameter of a layer: the address of its elements, and their number.
struct Parameter {
  const float* data;
  int64_t size;
};

// Returns the predictor with these weights and biases, in the order of the model's parameters(). It refers to their
// elements and does not copy them. Throws std::invalid_argument if a size or the number of parameters does not fit.
PredictNetwork network_of(const std::vector<Parameter>& parameters, const std::vector<int64_t>& channels, int64_t stem,
                          int64_t bands);

// The pictures to fuse, in any order: the result does not depend on it.
struct Exposures {
  Pictures pictures;
  // Per picture (height, width), or null if all of its pixels are valid. Empty if no validity is given.
  std::vector<const uint8_t*> validity;
};
// Some floating-point samples do not lie in [0, 1], or are NaN.
struct OutOfRange : std::domain_error {
  OutOfRange() : std::domain_error("samples must lie in [0, 1]") {}
};

// The user's adjustments (ffmef/adjust.py); 0 changes nothing.
struct Adjustments {
  double brightness = 0, contrast = 0, saturation = 0, prefer = 0;
};
// Writes the fused picture to `out`, in the type of the samples, with 3 channels if any picture has 3. The network has
// 3 bands.
// Throws OutOfRange if floating-point samples do not lie in [0, 1].
void fuse_exposures(const PredictNetwork&, const Exposures&, int octaves, const Adjustments&, void* out, Team&);

}  // namespace ffmef
