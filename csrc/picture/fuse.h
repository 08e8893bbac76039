// Pictures fused by PyramidFFMEF: predictor, pyramid and colour. It knows nothing of torch or Python; both bind it.
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

// A layer's parameter: where its elements lie, and how many.
struct Parameter {
  const float* data;
  int64_t size;
};

// The predictor whose weights and biases these are, in the order of the model's own parameters() (the first design:
// CoarsePredictor's). It points at them. Throws std::invalid_argument where sizes or numbers do not fit.
PredictNetwork network_of(const std::vector<Parameter>& parameters, const std::vector<int64_t>& channels, int64_t stem,
                          int64_t bands, bool first);

// half: (count, down, across).
void half_luminance(const Pictures&, float* half, Team&);

// PyramidFFMEF from pictures to a picture. Its result depends on the pictures alone, not on their order.
struct Exposures {
  Pictures pictures;
  std::vector<const uint8_t*> validity;  // (height, width) of each picture or null for all of it; empty where all are
};
// What is to be different (ffmef/adjust.py); 0 for nothing.
struct Adjustments {
  double brightness = 0, contrast = 0, saturation = 0, prefer = 0;
};
// out: a picture of the same depth, with 3 channels if any picture has. The network has 3 bands.
void fuse_exposures(const PredictNetwork&, const Exposures&, int octaves, const Adjustments&, void* out, Team&);

// --- the first design -------------------------------------------------------------------------------------------------

// half (count, height, width) -> weights (bands, count, h, w) and base (count, h, w), h = ceil(height / 4).
void predict_first(const PredictNetwork&, const float* half, int64_t count, int64_t height, int64_t width,
                   float* weights, float* base, Team&);

// out: a picture of the same depth, with 3 channels if any picture has. 1 <= bands, scale >= 2^bands.
void fuse_bands(const Pictures&, const float* half, const float* weights, const float* base, int bands, int scale,
                void* out, Team&);

// All three.
void fuse_pictures(const PredictNetwork&, const Pictures&, void* out, Team&);

}  // namespace ffmef
