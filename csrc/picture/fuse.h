// Fuses pictures by PyramidFFMEF: predictor, pyramid and colour. Independent of torch and Python.
#pragma once
#include <cstdint>
#include <memory>
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

// A layer's parameter: the address of its elements, and their number.
struct Parameter {
  const float* data;
  int64_t size;
};

// Makes the predictor with these weights and biases, in the order of the model's own parameters(). It points to them.
// Throws std::invalid_argument if sizes or numbers do not fit.
PredictNetwork network_of(const std::vector<Parameter>& parameters, const std::vector<int64_t>& channels, int64_t stem,
                          int64_t bands);

// PyramidFFMEF from pictures to a picture. Its result depends on the pictures alone, not on their order.
struct Exposures {
  Pictures pictures;
  std::vector<const uint8_t*> validity;  // (height, width) of each picture or null for all of it; empty if all are null
};
// The user's adjustments (ffmef/adjust.py); 0 changes nothing.
struct Adjustments {
  double brightness = 0, contrast = 0, saturation = 0, prefer = 0;
};
// out: a picture of the same depth, with 3 channels if any picture has. The network has 3 bands.
// Throws std::domain_error where floating-point samples do not lie in [0, 1].
void fuse_exposures(const PredictNetwork&, const Exposures&, int octaves, const Adjustments&, void* out, Team&);

}  // namespace ffmef
