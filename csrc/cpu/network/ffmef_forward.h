// What the whole-network operator hands to its kernels: geometry, weights in the kernels' layout, and passes.
//
// InstanceNorm needs the statistics of the whole image, so the network is a chain of passes with a barrier after each.
// A pass does everything between two norms and leaves one map that is not yet normalised, with its moments.
// docs/engine.md has a diagram.
#pragma once
#include <cstdint>

#include "../base/isa.h"

namespace ffmef {

constexpr int kImages = 2;
constexpr int kMaxChannels = 16;
// Rows of maps are padded to whole vectors of the widest instruction set.
constexpr int64_t kPitchUnit = 16;
// Columns around a tile that are recomputed: at least the radius of two successive convolutions (1 + 3).
constexpr int64_t kHalo = 16;

// One image cut into items: bands of rows within tiles of columns, tile by tile, each from top to bottom. Statistics
// are taken per item. The cut depends only on the image's size, so the statistics do not depend on the number of
// threads. A thread goes on to the item below without recomputing rows, so bands may be as narrow as an even division
// needs.
struct Geometry {
  int64_t height, width, pitch;
  int64_t tile_columns, tiles, band_rows, bands;
  int64_t items() const { return tiles * bands; }
};

// A map is [row][channel][pitch]: what one output row needs is close together.
// A convolution's weights are [block of outputs][input][tap, row-major][output of the block].
struct Convolution {
  const float* weights;
  const float* bias;
};

// How many outputs of a convolution are summed at once.
constexpr int output_block(int outputs) {
  return outputs <= 4       ? outputs
         : outputs % 8 == 0 ? 8
         : outputs % 7 == 0 ? 7
         : outputs % 5 == 0 ? 5
         : outputs % 3 == 0 ? 3
                            : 1;
}

struct Affine {
  const float *gamma, *beta;
};

// An InstanceNorm with known statistics: y = scale * x + shift.
struct Norm {
  float scale[kMaxChannels], shift[kMaxChannels];
};

// Count, mean and sum of squared deviations of one channel over one item.
struct Moments {
  double count, mean, deviations;
};

struct PointMixWeights {
  Convolution conv;  // 1x1, [skip, y] -> c
  Affine norm;
  float gain_body, gain_skip;
};

struct ResidualWeights {
  Convolution identity, conv_1, conv_2;
  Affine norm;                 // of the first half of conv_1's outputs
  float gain_body, gain_skip;  // of the mix around the block, in the two merging blocks
};

struct StepWeights {
  Convolution conv;
  Affine norm;
};

struct HeadWeights {
  Convolution squeeze, excite;  // attention
  Convolution conv, expand;
  Convolution responses;  // project and alpha, as a convolution of luminance to one response per hidden map
  Convolution offset;     // project's bias and alpha, as a convolution of luminance to one value
};

// One image as every pass sees it.
struct ImageView {
  Geometry geometry;
  const float* luminance;  // [row][pitch], zero beyond the width
  Convolution stem;        // 1x1, luminance -> c
};

// gain_body * relu(norm(conv([skip, y]))) + gain_skip * y
struct PointMix {
  const PointMixWeights* weights;
  const float* skip;  // a map; null: the stem of luminance
  const Norm* norm;
};

// A map that is cheap to compute per pixel, so it is stored only when it must be.
struct Mixture {
  const float* base;  // a map; null: the stem of luminance
  const Norm* norm;   // base is normalised and rectified first; null: base is used as it is
  int mixes;
  PointMix mix[2];
};

// Computes the moments of the convolution inside the mixture's last mix. Its norm follows from them.
struct PointPass {
  Mixture mixture;
};

// Mixture, then the first convolution of a residual block on [beside, mixture].
struct EntryPass {
  Mixture mixture;
  float* mixed;         // null: not needed again
  const float* beside;  // null: the mixture alone
  Convolution conv;
  float* raw;
};

enum class Tail { none, step, entry, point };

// The rest of a residual block, then what follows up to the next norm.
struct ResidualPass {
  const float* raw;
  const Norm* norm;
  const ResidualWeights* weights;
  const float* inputs[2];  // of the block: two maps, one map and null, or two nulls for the stem of luminance
  bool mixed;              // gain_body * block + gain_skip * inputs[1]
  float* result;
  Tail tail;
  Convolution conv;  // Tail::step: on the result, Tail::entry: on [beside, result]
  const float* beside;
  const PointMixWeights* point;  // Tail::point: moments of its convolution on [beside, result]
  float* tail_raw;
};

// One level's attention, prediction head and share of F-Fusion, for both images.
struct HeadPass {
  ImageView images[kImages];
  const float* maps[kImages];
  const HeadWeights* weights;
  float* out;  // [row][width]
  bool add;    // to the contents of out
};

// Items [begin, end); moments are [item][channel].
struct FfmefForwardKernels {
  void (*point)(const ImageView&, const PointPass&, Moments*, int64_t begin, int64_t end);
  void (*entry)(const ImageView&, const EntryPass&, Moments*, int64_t begin, int64_t end);
  void (*residual)(const ImageView&, const ResidualPass&, Moments*, int64_t begin, int64_t end);
  void (*head)(const HeadPass&, int kernel_size, int64_t begin, int64_t end);
};

FFMEF_DECLARE_KERNELS(FfmefForwardKernels, ffmef_forward_kernels_4)
FFMEF_DECLARE_KERNELS(FfmefForwardKernels, ffmef_forward_kernels_8)
FFMEF_DECLARE_KERNELS(FfmefForwardKernels, ffmef_forward_kernels_16)

}  // namespace ffmef
