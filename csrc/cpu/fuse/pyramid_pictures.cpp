// Binds csrc/picture to torch: checks, unpacks tensors, allocates results, lends torch's threads.
#include <torch/csrc/stable/library.h>

#include <stdexcept>
#include <vector>

#include "../../picture/fuse.h"
#include "../base/tensors.h"
#include "../base/torch_crew.h"

namespace ffmef {
namespace {

constexpr int64_t kExposureBands = 3, kMostOctaves = 16;

// Contiguous pictures of one size. The public function explains mistakes.
struct Unpacked {
  std::vector<Tensor> kept;
  Pictures pictures;

  explicit Unpacked(const std::vector<Tensor>& tensors) {
    STD_TORCH_CHECK(!tensors.empty(), "pictures must hold at least one picture");
    pictures = {Sample::u8, tensors[0].size(0), tensors[0].size(1), {}};
    for (const Tensor& picture : tensors) {
      STD_TORCH_CHECK(picture.dim() == 3 && picture.size(2) == 3 && picture.scalar_type() == ScalarType::Byte &&
                          picture.size(0) == pictures.height && picture.size(1) == pictures.width &&
                          picture.size(0) > 0 && picture.size(1) > 0,
                      "pictures must be uint8 (H, W, 3) of one size");
      kept.push_back(torch::stable::contiguous(picture));
      pictures.views.push_back({kept.back().data_ptr(), 3});
    }
  }
};

struct UnpackedNetwork {
  std::vector<Tensor> kept;
  PredictNetwork net;

  UnpackedNetwork(const std::vector<Tensor>& parameters, const std::vector<int64_t>& channels, int64_t stem) {
    std::vector<Parameter> plain;
    for (const Tensor& parameter : parameters) {
      STD_TORCH_CHECK(parameter.scalar_type() == ScalarType::Float, "parameters must be float32");
      kept.push_back(torch::stable::contiguous(parameter));
      plain.push_back({static_cast<const float*>(kept.back().data_ptr()), parameter.numel()});
    }
    try {
      net = network_of(plain, channels, stem, kExposureBands);
    } catch (const std::invalid_argument& error) { STD_TORCH_CHECK(false, error.what()); }
  }
};

Tensor pyramid_exposures_cpu(const std::vector<Tensor>& tensors, const std::vector<Tensor>& validity,
                             const std::vector<Tensor>& parameters, const std::vector<int64_t>& channels, int64_t stem,
                             int64_t octaves, const std::vector<double>& adjust) {
  Unpacked unpacked(tensors);
  const UnpackedNetwork network(parameters, channels, stem);
  STD_TORCH_CHECK(octaves >= 0 && octaves <= kMostOctaves, "octaves must be 0 to ", kMostOctaves, ", got ", octaves);
  STD_TORCH_CHECK(validity.empty() || validity.size() == tensors.size(), "validity must hold a map for each picture");
  STD_TORCH_CHECK(adjust.size() == 4, "adjust must be brightness, contrast, saturation and prefer");
  const Adjustments changes{adjust[0], adjust[1], adjust[2], adjust[3]};
  Exposures exposures{unpacked.pictures, {}};
  for (const Tensor& map : validity) {
    STD_TORCH_CHECK(map.scalar_type() == ScalarType::Byte && map.dim() == 2 &&
                        map.size(0) == exposures.pictures.height && map.size(1) == exposures.pictures.width,
                    "validity must be uint8 (H, W) of the pictures' size");
    unpacked.kept.push_back(torch::stable::contiguous(map));
    exposures.validity.push_back(static_cast<const uint8_t*>(unpacked.kept.back().data_ptr()));
  }
  Tensor out = result_like(tensors[0], {exposures.pictures.height, exposures.pictures.width, 3}, ScalarType::Byte);
  void* data = out.data_ptr();
  Team::run(torch_crew(),
            [&](Team& team) { fuse_exposures(network.net, exposures, int(octaves), changes, data, team); });
  return out;
}

Tensor pyramid_luminance_cpu(const Tensor& luminance_, const std::vector<Tensor>& parameters,
                             const std::vector<int64_t>& channels, int64_t stem, int64_t octaves) {
  const Tensor luminance = torch::stable::contiguous(luminance_);
  STD_TORCH_CHECK(luminance.dim() == 4 && luminance.scalar_type() == ScalarType::Float && luminance.numel() > 0,
                  "luminance must be (B, N, H, W), float32");
  const UnpackedNetwork network(parameters, channels, stem);
  STD_TORCH_CHECK(octaves >= 0 && octaves <= kMostOctaves, "octaves must be 0 to ", kMostOctaves, ", got ", octaves);
  const int64_t batch = luminance.size(0), count = luminance.size(1), height = luminance.size(2),
                width = luminance.size(3), size = height * width;
  Tensor out = result_like(luminance, {batch, 1, height, width}, ScalarType::Float);
  const float* in = static_cast<const float*>(luminance.data_ptr());
  float* data = static_cast<float*>(out.data_ptr());
  Team::run(torch_crew(), [&](Team& team) {
    for (int64_t b = 0; b < batch; ++b) {
      Exposures exposures{{Sample::luminance, height, width, {}}, {}};
      for (int64_t n = 0; n < count; ++n) exposures.pictures.views.push_back({in + (b * count + n) * size, 1});
      fuse_exposures(network.net, exposures, int(octaves), {}, data + b * size, team);
    }
  });
  return out;
}

}  // namespace
}  // namespace ffmef

STABLE_TORCH_LIBRARY_IMPL(ffmef, CPU, m) {
  m.impl("pyramid_exposures", TORCH_BOX(&ffmef::pyramid_exposures_cpu));
  m.impl("pyramid_luminance", TORCH_BOX(&ffmef::pyramid_luminance_cpu));
}
