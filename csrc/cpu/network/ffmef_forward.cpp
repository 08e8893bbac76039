// The whole-network operator: memory, the order of the passes, and threads. The kernels do the arithmetic.
#include "ffmef_forward.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <vector>

#include "../base/scratch.h"
#include "../base/tensors.h"
#include "../base/torch_crew.h"
#include "ffmef_forward_network.h"

namespace ffmef {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kBandRows = 32;
constexpr int64_t kTileColumns = 768;

int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

Geometry geometry_of(int64_t height, int64_t width) {
  Geometry g;
  g.height = height;
  g.width = width;
  g.pitch = divided_up(width, kPitchUnit) * kPitchUnit;
  // Items of nearly equal size instead of a sliver at the end.
  g.tile_columns = divided_up(divided_up(g.pitch, divided_up(g.pitch, kTileColumns)), kPitchUnit) * kPitchUnit;
  g.tiles = divided_up(g.pitch, g.tile_columns);
  const int64_t bands = divided_up(height, kBandRows);
  // A multiple of four, so that two or four threads share them evenly.
  g.band_rows = divided_up(height, bands < 4 ? bands : divided_up(bands, 4) * 4);
  g.bands = divided_up(height, g.band_rows);
  return g;
}

const FfmefForwardKernels& kernels_for(int64_t channels) {
  STD_TORCH_CHECK(channels == 4 || channels == 8 || channels == 16, "channels must be 4, 8 or 16, got ", channels);
  if (channels == 4) return FFMEF_KERNELS(ffmef_forward_kernels_4);
  if (channels == 8) return FFMEF_KERNELS(ffmef_forward_kernels_8);
  return FFMEF_KERNELS(ffmef_forward_kernels_16);
}

// Hands out maps in slots of `floats` each. A slot that is given back is reused.
class MapPool {
 public:
  // Seven for the extractor, and three that wait for the other image.
  static constexpr int kSlots = 10;

  MapPool(float* data, int64_t floats) {
    for (int slot = kSlots - 1; slot >= 0; --slot) free_.push_back(data + slot * floats);
  }
  float* take() {
    STD_TORCH_CHECK(!free_.empty(), "the pool of maps is too small");
    float* map = free_.back();
    free_.pop_back();
    return map;
  }
  void give_back(float* map) { free_.push_back(map); }

 private:
  std::vector<float*> free_;
};

struct ExtractedMaps {
  float *bottom, *up2, *up1;
};

// Runs the extractor for one image, pass by pass.
class Extractor {
 public:
  Extractor(const Network& network, const FfmefForwardKernels& kernels, int channels, const ImageView& image,
            MapPool& maps, Team& team)
      : network_(network),
        kernels_(kernels),
        channels_(channels),
        image_(image),
        maps_(maps),
        team_(team),
        moments_(size_t(image.geometry.items() * kMaxChannels)) {}

  ExtractedMaps run() {
    const Network& w = network_;

    float* raw = maps_.take();
    Norm norm = entry({nullptr, nullptr, 0, {}}, nullptr, nullptr, w.encode_1, raw);
    float *e1 = maps_.take(), *next = maps_.take();
    norm = residual(w.encode_1, raw, norm, {nullptr, nullptr}, e1, w.down_1, next);
    std::swap(raw, next);

    Mixture mixture{raw, &norm, 0, {}};
    Norm mix_1 = point(mixture, w.skip_1, nullptr);
    add(mixture, w.skip_1, nullptr, mix_1);
    float* d1 = maps_.take();
    Norm norm_2 = entry(mixture, d1, nullptr, w.encode_2, next);
    std::swap(raw, next);
    float* e2 = maps_.take();
    norm = residual(w.encode_2, raw, norm_2, {d1, nullptr}, e2, w.down_2, next);
    std::swap(raw, next);

    mixture = {raw, &norm, 0, {}};
    mix_1 = point(mixture, w.skip_2, d1);
    add(mixture, w.skip_2, d1, mix_1);
    const Norm mix_2 = point(mixture, w.skip_3, nullptr);
    add(mixture, w.skip_3, nullptr, mix_2);
    float* d2 = maps_.take();
    norm_2 = entry(mixture, d2, nullptr, w.bottom, next);
    std::swap(raw, next);
    float* bottom = d1;  // d1 is not read again
    norm = residual(w.bottom, raw, norm_2, {d2, nullptr}, bottom, w.up_2, next);
    std::swap(raw, next);

    mixture = {raw, &norm, 0, {}};
    mix_1 = point(mixture, w.skip_4, bottom);
    add(mixture, w.skip_4, bottom, mix_1);
    float* u2 = d2;
    norm_2 = entry(mixture, u2, nullptr, w.decode_2, next);
    std::swap(raw, next);
    float *decoded = next, *merged = maps_.take();
    norm = residual_entry(w.decode_2, raw, norm_2, {u2, nullptr}, decoded, e2, w.merge_2, merged);
    // raw and u2 are free now
    float* up2 = u2;
    norm = residual(w.merge_2, merged, norm, {e2, decoded}, up2, w.up_1, raw);
    next = merged;

    mixture = {raw, &norm, 0, {}};
    mix_1 = point(mixture, w.skip_5, up2);
    add(mixture, w.skip_5, up2, mix_1);
    float* u1 = e2;
    norm_2 = entry(mixture, u1, nullptr, w.decode_1, next);
    norm = residual_point(w.decode_1, next, norm_2, {u1, nullptr}, decoded, bottom, w.skip_6);
    mixture = {decoded, nullptr, 0, {}};
    add(mixture, w.skip_6, bottom, norm);
    norm_2 = entry(mixture, u1, e1, w.merge_1, next);
    float* up1 = decoded;
    residual_last(w.merge_1, next, norm_2, {e1, u1}, up1);

    for (float* map : {raw, next, e1, u1}) maps_.give_back(map);
    return {bottom, up2, up1};
  }

 private:
  template <class Pass, class Kernel> void over_items(Kernel kernel, const Pass& pass) {
    team_.over(image_.geometry.items(), 1,
               [&](int64_t begin, int64_t end) { kernel(image_, pass, moments_.data(), begin, end); });
  }
  Norm norm(const Affine& affine, int channels) const {
    return norm_of(affine, moments_.data(), image_.geometry.items(), channels);
  }
  static void add(Mixture& mixture, const PointMixWeights& weights, const float* skip, const Norm& norm) {
    mixture.mix[mixture.mixes++] = {&weights, skip, &norm};
  }
  Norm point(Mixture mixture, const PointMixWeights& weights, const float* skip) {
    mixture.mix[mixture.mixes++] = {&weights, skip, nullptr};
    over_items(kernels_.point, PointPass{mixture});
    return norm(weights.norm, channels_);
  }
  Norm entry(const Mixture& mixture, float* mixed, const float* beside, const ResidualWeights& weights, float* raw) {
    over_items(kernels_.entry, EntryPass{mixture, mixed, beside, weights.conv_1, raw});
    return norm(weights.norm, channels_ / 2);
  }

  struct Inputs {
    const float *first, *second;
  };
  ResidualPass rest_of(const ResidualWeights& weights, const float* raw, const Norm& norm, Inputs inputs,
                       float* result) {
    ResidualPass pass{};
    pass.raw = raw;
    pass.norm = &norm;
    pass.weights = &weights;
    pass.inputs[0] = inputs.first;
    pass.inputs[1] = inputs.second;
    pass.mixed = inputs.second != nullptr;
    pass.result = result;
    return pass;
  }
  Norm residual(const ResidualWeights& weights, const float* raw, const Norm& raw_norm, Inputs inputs, float* result,
                const StepWeights& step, float* tail_raw) {
    ResidualPass pass = rest_of(weights, raw, raw_norm, inputs, result);
    pass.tail = Tail::step;
    pass.conv = step.conv;
    pass.tail_raw = tail_raw;
    over_items(kernels_.residual, pass);
    return norm(step.norm, channels_);
  }
  Norm residual_entry(const ResidualWeights& weights, const float* raw, const Norm& raw_norm, Inputs inputs,
                      float* result, const float* beside, const ResidualWeights& merge, float* tail_raw) {
    ResidualPass pass = rest_of(weights, raw, raw_norm, inputs, result);
    pass.tail = Tail::entry;
    pass.conv = merge.conv_1;
    pass.beside = beside;
    pass.tail_raw = tail_raw;
    over_items(kernels_.residual, pass);
    return norm(merge.norm, channels_ / 2);
  }
  Norm residual_point(const ResidualWeights& weights, const float* raw, const Norm& raw_norm, Inputs inputs,
                      float* result, const float* beside, const PointMixWeights& mix) {
    ResidualPass pass = rest_of(weights, raw, raw_norm, inputs, result);
    pass.tail = Tail::point;
    pass.beside = beside;
    pass.point = &mix;
    over_items(kernels_.residual, pass);
    return norm(mix.norm, channels_);
  }
  void residual_last(const ResidualWeights& weights, const float* raw, const Norm& raw_norm, Inputs inputs,
                     float* result) {
    over_items(kernels_.residual, rest_of(weights, raw, raw_norm, inputs, result));
  }

  const Network& network_;
  const FfmefForwardKernels& kernels_;
  const int channels_;
  const ImageView& image_;
  MapPool& maps_;
  Team& team_;
  std::vector<Moments> moments_;
};

void copy_plane(Team& team, float* to, const Geometry& g, const float* from, int64_t row_stride,
                int64_t column_stride) {
  team.over(g.height, 64, [&](int64_t begin, int64_t end) {
    for (int64_t y = begin; y < end; ++y) {
      float* row = to + y * g.pitch;
      for (int64_t x = 0; x < g.width; ++x) row[x] = from[y * row_stride + x * column_stride];
      for (int64_t x = g.width; x < g.pitch; ++x) row[x] = 0;
    }
  });
}

// All parameters in one vector, in order.
std::vector<float> flat(const std::vector<Tensor>& parameters) {
  std::vector<float> values;
  for (const Tensor& parameter : parameters) {
    STD_TORCH_CHECK(parameter.scalar_type() == ScalarType::Float, "parameters must be float32");
    const Tensor contiguous = torch::stable::contiguous(parameter);
    const float* data = static_cast<const float*>(contiguous.data_ptr());
    values.insert(values.end(), data, data + contiguous.numel());
  }
  return values;
}

Tensor ffmef_forward_cpu(const Tensor& luminance, const std::vector<Tensor>& parameters, int64_t channels,
                         const std::vector<int64_t>& kernel_sizes) {
  STD_TORCH_CHECK(luminance.dim() == 4 && luminance.size(1) == kImages && luminance.scalar_type() == ScalarType::Float,
                  "luminance must be (B, 2, H, W) in float32");
  const FfmefForwardKernels& kernels = kernels_for(channels);
  STD_TORCH_CHECK(!kernel_sizes.empty(), "kernel_sizes must not be empty");
  for (int64_t size : kernel_sizes)
    STD_TORCH_CHECK(size == 1 || size == 3 || size == 5 || size == 7, "kernel_sizes must be 1, 3, 5 or 7, got ", size);
  const std::vector<float> weights = flat(parameters);
  const int64_t expected = Network::parameter_count(int(channels), kernel_sizes);
  STD_TORCH_CHECK(int64_t(weights.size()) == expected, "parameters must hold ", expected, " values for channels ",
                  channels, " and these kernel_sizes, got ", int64_t(weights.size()));

  const int64_t batch = luminance.size(0), height = luminance.size(2), width = luminance.size(3);
  Tensor out = result_like(luminance, {batch, 1, height, width});
  if (out.numel() == 0) return out;

  const Network network(weights.data(), int(channels), kernel_sizes);
  const Geometry geometry = geometry_of(height, width);
  const int64_t plane_floats = height * geometry.pitch;
  const Scratch scratch((kImages + MapPool::kSlots * channels) * plane_floats * int64_t(sizeof(float)));
  MapPool maps(scratch.floats() + kImages * plane_floats, channels * plane_floats);
  Team::run(torch_crew(), [&](Team& team) {
    for (int64_t b = 0; b < batch; ++b) {
      ImageView images[kImages];
      ExtractedMaps extracted[kImages];
      for (int64_t n = 0; n < kImages; ++n) {
        float* plane = scratch.floats() + n * plane_floats;
        copy_plane(team, plane, geometry,
                   static_cast<const float*>(luminance.data_ptr()) + b * luminance.stride(0) + n * luminance.stride(1),
                   luminance.stride(2), luminance.stride(3));
        images[n] = {geometry, plane, network.stem};
        extracted[n] = Extractor(network, kernels, int(channels), images[n], maps, team).run();
      }
      float* fused = static_cast<float*>(out.data_ptr()) + b * height * width;
      for (size_t l = 0; l < kernel_sizes.size(); ++l) {
        HeadPass pass{{images[0], images[1]}, {}, &network.heads[l], fused, l > 0};
        // Small filters are predicted from the shallow maps, large ones from the deep one.
        for (int n = 0; n < kImages; ++n)
          pass.maps[n] = kernel_sizes[l] == 1   ? extracted[n].up1
                         : kernel_sizes[l] == 3 ? extracted[n].up2
                                                : extracted[n].bottom;
        team.over(geometry.items(), 1,
                  [&](int64_t begin, int64_t end) { kernels.head(pass, int(kernel_sizes[l]), begin, end); });
      }
      for (const ExtractedMaps& e : extracted)
        for (float* map : {e.bottom, e.up2, e.up1}) maps.give_back(map);
    }
  });
  return out;
}

}  // namespace
}  // namespace ffmef

STABLE_TORCH_LIBRARY_IMPL(ffmef, CPU, m) { m.impl("ffmef_forward", TORCH_BOX(&ffmef::ffmef_forward_cpu)); }
