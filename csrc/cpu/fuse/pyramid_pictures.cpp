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

// Contiguous pictures and masks of one size, (H, W, ...) each or (B, H, W, ...), of B brackets. The public function
// explains mistakes.
struct Unpacked {
  std::vector<Tensor> kept;
  std::vector<const uint8_t*> pictures, masks;
  std::vector<int64_t> sizes;  // (H, W) or (B, H, W)
  int64_t batch = 1, height = 0, width = 0;

  Unpacked(const std::vector<Tensor>& tensors, const std::vector<Tensor>& validity) {
    STD_TORCH_CHECK(!tensors.empty(), "pictures must hold at least one picture");
    const int64_t axes = tensors[0].dim() - 1;  // all but that of the channels
    STD_TORCH_CHECK(axes == 2 || axes == 3, "pictures must be uint8 (H, W, 3) or (B, H, W, 3)");
    for (int64_t axis = 0; axis < axes; ++axis) sizes.push_back(tensors[0].size(axis));
    if (axes == 3) batch = sizes[0];
    height = sizes[axes - 2], width = sizes[axes - 1];
    STD_TORCH_CHECK(height > 0 && width > 0, "pictures must not be empty");
    for (const Tensor& picture : tensors) {
      STD_TORCH_CHECK(picture.dim() == axes + 1 && picture.size(axes) == 3 && fits(picture),
                      "pictures must be uint8 (H, W, 3) or (B, H, W, 3) of one size");
      pictures.push_back(keep(picture));
    }
    STD_TORCH_CHECK(validity.empty() || validity.size() == tensors.size(), "validity must hold a map for each picture");
    for (const Tensor& map : validity) {
      STD_TORCH_CHECK(map.dim() == axes && fits(map), "validity must be uint8 of the pictures' height and width");
      masks.push_back(keep(map));
    }
  }
  bool fits(const Tensor& tensor) const {
    if (tensor.scalar_type() != ScalarType::Byte) return false;
    for (size_t axis = 0; axis < sizes.size(); ++axis)
      if (tensor.size(int64_t(axis)) != sizes[axis]) return false;
    return true;
  }
  const uint8_t* keep(const Tensor& tensor) {
    kept.push_back(torch::stable::contiguous(tensor));
    return static_cast<const uint8_t*>(kept.back().data_ptr());
  }
  Exposures bracket(int64_t number) const {
    Exposures exposures{{Sample::u8, height, width, {}}, {}};
    const int64_t pixels = height * width;
    for (const uint8_t* picture : pictures) exposures.pictures.views.push_back({picture + number * pixels * 3, 3});
    for (const uint8_t* mask : masks) exposures.validity.push_back(mask + number * pixels);
    return exposures;
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
  const Unpacked unpacked(tensors, validity);
  const UnpackedNetwork network(parameters, channels, stem);
  STD_TORCH_CHECK(octaves >= 0 && octaves <= kMostOctaves, "octaves must be 0 to ", kMostOctaves, ", got ", octaves);
  STD_TORCH_CHECK(adjust.size() == 4, "adjust must be brightness, contrast, saturation and prefer");
  const Adjustments changes{adjust[0], adjust[1], adjust[2], adjust[3]};
  std::vector<int64_t> sizes = unpacked.sizes;
  sizes.push_back(3);
  Tensor out = result_like(tensors[0], sizes, ScalarType::Byte);
  uint8_t* const data = static_cast<uint8_t*>(out.data_ptr());
  const int64_t bytes = unpacked.height * unpacked.width * 3;
  Team::run(torch_crew(), [&](Team& team) {
    for (int64_t b = 0; b < unpacked.batch; ++b)
      fuse_exposures(network.net, unpacked.bracket(b), int(octaves), changes, data + b * bytes, team);
  });
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
