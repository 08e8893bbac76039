// Binds the CUDA kernels to torch: unpacks tensors, allocates results with torch's allocator, launches on its stream.
// Nothing here waits for the GPU, so that calls can be captured in a CUDA graph.
#include "../common/padding.h"
#include "adaptive_fuse.h"
#include "ffmef_forward.h"
#include "picture_colour.h"
#include "predict_and_fuse.h"
#include "pyramid_fuse.h"
#include "pyramid_pictures.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace ffmef {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

int dtype_of(const Tensor& images) {
  switch (images.scalar_type()) {
    case ScalarType::Float: return FFMEF_FLOAT32;
    case ScalarType::Half: return FFMEF_FLOAT16;
    case ScalarType::BFloat16: return FFMEF_BFLOAT16;
    case ScalarType::Double: return FFMEF_FLOAT64;
    default: STD_TORCH_CHECK(false, "images must be float64, float32, float16 or bfloat16"); return -1;
  }
}

int padding_of(const std::string& name) {
  Padding mode = Padding::zeros;
  STD_TORCH_CHECK(find_padding(name.c_str(), mode), "padding_mode is not known: '", name, "'");
  return static_cast<int>(mode);
}

void* current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return stream;
}

void check_launch(int error, const char* name) {
  STD_TORCH_CHECK(error == 0, name, " could not be launched: ", ffmef_cuda_error_text(error));
}

// torch::stable::to and new_empty find their operator by its name at every call, which takes microseconds each. These
// two do the same without.
Tensor as_type(const Tensor& tensor, ScalarType type) {
  return tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type);
}

Tensor make_empty(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t axis = sizes.size(); axis-- > 1;) strides[axis - 1] = strides[axis] * (sizes[axis] > 1 ? sizes[axis] : 1);
  int32_t device_type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle made = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                                                  torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)),
                                                  device_type, like.get_device_index(), &made));
  return Tensor(made);
}

Tensor make_empty(const Tensor& like, const std::vector<int64_t>& sizes) {
  return make_empty(like, sizes, like.scalar_type());
}

// Memory for the duration of the call; torch's allocator keeps it until the stream is done with it.
Tensor workspace_of(const Tensor& tensor, int64_t bytes) { return make_empty(tensor, {bytes}, ScalarType::Byte); }

bool not_refused(const char* variable) {
  const char* value = std::getenv(variable);
  return value == nullptr || std::strcmp(value, "0") != 0;
}

int side_of(int64_t taps, const char* name, size_t level) {
  int size = 1;
  while (static_cast<int64_t>(size) * size < taps) size += 2;
  STD_TORCH_CHECK(static_cast<int64_t>(size) * size == taps && size <= 31, name, "[", level,
                  "] must have k*k taps with k odd and at most 31, got ", taps);
  return size;
}

// The widest dtype among images and filters, as torch promotes them: these kernels read a single dtype. (The CPU's read
// several.)
ScalarType common_type(const Tensor& images, const std::vector<Tensor>& filters) {
  ScalarType type = images.scalar_type();
  for (const Tensor& f : filters) {
    STD_TORCH_CHECK((f.scalar_type() == ScalarType::Double) == (images.scalar_type() == ScalarType::Double),
                    "filters may be float64 with float64 images alone");
    if (f.scalar_type() != type) type = ScalarType::Float;
  }
  return type;
}

std::vector<Tensor> all_to(const std::vector<Tensor>& tensors, ScalarType type) {
  std::vector<Tensor> cast;
  for (const Tensor& tensor : tensors) cast.push_back(as_type(tensor, type));
  return cast;
}

// The arguments as the kernels take them; keeps pointers into the tensors, and the alphas it may have converted.
struct Call {
  std::vector<int> sizes;
  std::vector<const void*> filters;
  std::vector<std::array<int64_t, 5>> strides;
  std::vector<std::array<int64_t, 2>> grids;
  Tensor alphas;
  ffmef_fusion fusion = {};

  // The public function explains mistakes; these checks only keep memory safe when the dispatcher is called directly.
  Call(const Tensor& images, const std::vector<Tensor>& levels, const Tensor& given_alphas,
       const std::string& padding_mode)
      : alphas(as_type(given_alphas,
                       images.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float)) {
    STD_TORCH_CHECK(images.dim() == 5, "images must be (B, N, C, H, W), got ", images.dim(), " dimensions");
    STD_TORCH_CHECK(alphas.is_cuda() && alphas.get_device_index() == images.get_device_index() && alphas.dim() == 1 &&
                        alphas.size(0) == static_cast<int64_t>(levels.size()),
                    "alphas must have one value for each of the ", levels.size(), " levels, on the images' device");
    fusion.dtype = dtype_of(images);
    fusion.padding = padding_of(padding_mode);
    fusion.batch = images.size(0);
    fusion.image_count = images.size(1);
    fusion.channels = images.size(2);
    fusion.height = images.size(3);
    fusion.width = images.size(4);
    fusion.images = images.const_data_ptr();
    for (int axis = 0; axis < 5; ++axis) fusion.image_strides[axis] = images.stride(axis);
    for (size_t l = 0; l < levels.size(); ++l) {
      const Tensor& f = levels[l];
      STD_TORCH_CHECK(
          f.is_cuda() && f.get_device_index() == images.get_device_index() && f.dim() == 5 &&
              f.scalar_type() == images.scalar_type() && f.size(0) == images.size(0) && f.size(1) == images.size(1) &&
              fits(f.size(3), images.size(3)) && fits(f.size(4), images.size(4)),
          "filters[", l, "] must be (B, N, k*k, h, w) of the images' dtype, device and sizes or a coarser grid's");
      sizes.push_back(side_of(f.size(2), "filters", l));
      filters.push_back(f.const_data_ptr());
      strides.push_back({f.stride(0), f.stride(1), f.stride(2), f.stride(3), f.stride(4)});
      grids.push_back({f.size(3), f.size(4)});
    }
    fusion.level_count = static_cast<int>(levels.size());
    fusion.sizes = sizes.data();
    fusion.filters = filters.data();
    fusion.filter_strides = reinterpret_cast<const int64_t (*)[5]>(strides.data());
    fusion.filter_grids = reinterpret_cast<const int64_t (*)[2]>(grids.data());
    fusion.alphas = alphas.const_data_ptr();
    fusion.alpha_stride = alphas.stride(0);
  }
  Call(const Call&) = delete;

  static bool fits(int64_t cells, int64_t pixels) { return cells == pixels || (cells > 0 && cells < pixels); }
};

Tensor adaptive_fuse_cuda(const Tensor& given_images, const std::vector<Tensor>& given_filters, const Tensor& alphas,
                          const std::string& padding_mode) {
  const torch::stable::accelerator::DeviceGuard guard(given_images.get_device_index());
  const ScalarType type = common_type(given_images, given_filters);
  const Tensor images = as_type(given_images, type);
  const std::vector<Tensor> filters = all_to(given_filters, type);
  const Call call(images, filters, alphas, padding_mode);
  const ffmef_fusion& f = call.fusion;
  Tensor output = make_empty(images, {f.batch, f.channels, f.height, f.width});
  check_launch(ffmef_cuda_adaptive_fuse(&f, output.mutable_data_ptr(), current_stream(images)), "adaptive_fuse");
  return output;
}

// The gradients of images, every level's filters and alphas.
std::vector<Tensor> adaptive_fuse_backward_cuda(const Tensor& grad, const Tensor& given_images,
                                                const std::vector<Tensor>& given_filters, const Tensor& alphas,
                                                const std::string& padding_mode, bool need_images,
                                                const std::vector<int64_t>& need_filters, bool need_alphas) {
  const torch::stable::accelerator::DeviceGuard guard(given_images.get_device_index());
  const ScalarType type = common_type(given_images, given_filters);
  const Tensor images = as_type(given_images, type);
  const std::vector<Tensor> filters = all_to(given_filters, type);
  const Call call(images, filters, alphas, padding_mode);
  const ffmef_fusion& f = call.fusion;
  STD_TORCH_CHECK(grad.is_cuda() && grad.get_device_index() == images.get_device_index() && grad.dim() == 4 &&
                      grad.scalar_type() == images.scalar_type() && grad.size(0) == f.batch &&
                      grad.size(1) == f.channels && grad.size(2) == f.height && grad.size(3) == f.width,
                  "grad must be (B, C, H, W) of the images' sizes, dtype and device");
  STD_TORCH_CHECK(need_filters.size() == filters.size(), "need_filters must have one value for each level");

  // A gradient that is not needed is an empty tensor: it costs nothing and keeps the schema simple.
  Tensor image_grad = need_images ? make_empty(images, {f.batch, f.image_count, f.channels, f.height, f.width})
                                  : make_empty(images, {0});
  Tensor alpha_grad = make_empty(call.alphas, {need_alphas ? call.alphas.size(0) : 0});
  std::vector<Tensor> gradients{image_grad};
  std::vector<void*> filter_grad_data;
  for (size_t l = 0; l < filters.size(); ++l) {
    const Tensor& level = filters[l];
    gradients.push_back(
        need_filters[l] ? make_empty(level, {level.size(0), level.size(1), level.size(2), level.size(3), level.size(4)})
                        : make_empty(level, {0}));
    filter_grad_data.push_back(need_filters[l] ? gradients.back().mutable_data_ptr() : nullptr);
  }

  if (filters.empty()) return {torch::stable::zero_(image_grad), alpha_grad};

  ffmef_fusion_gradients g = {};
  g.output = grad.const_data_ptr();
  for (int axis = 0; axis < 4; ++axis) g.output_strides[axis] = grad.stride(axis);
  g.images = need_images ? image_grad.mutable_data_ptr() : nullptr;
  g.filters = filter_grad_data.data();
  g.alphas = need_alphas ? alpha_grad.mutable_data_ptr() : nullptr;
  Tensor workspace = workspace_of(images, ffmef_cuda_adaptive_fuse_workspace(&f, &g));
  g.workspace = workspace.mutable_data_ptr();
  check_launch(ffmef_cuda_adaptive_fuse_backward(&f, &g, current_stream(images)), "adaptive_fuse");
  gradients[0] = as_type(gradients[0], given_images.scalar_type());
  for (size_t l = 0; l < filters.size(); ++l)
    gradients[l + 1] = as_type(gradients[l + 1], given_filters[l].scalar_type());
  gradients.push_back(as_type(alpha_grad, alphas.scalar_type()));
  return gradients;
}

// ---- predict_and_fuse ----------------------------------------------------------------------------------------------

Tensor predict_and_fuse_cuda(const std::vector<Tensor>& hidden, const std::vector<Tensor>& weight,
                             const std::vector<Tensor>& bias, const Tensor& images, const Tensor& given_alphas,
                             const std::string& padding_mode) {
  const torch::stable::accelerator::DeviceGuard guard(images.get_device_index());
  const Tensor alphas =
      as_type(given_alphas, images.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float);
  const size_t levels = hidden.size();
  STD_TORCH_CHECK(images.dim() == 5, "images must be (B, N, C, H, W), got ", images.dim(), " dimensions");
  STD_TORCH_CHECK(weight.size() == levels && bias.size() == levels,
                  "weight and bias must have a tensor for each of the ", levels, " levels of hidden");
  const auto fits = [&](const Tensor& t) {
    return t.is_cuda() && t.get_device_index() == images.get_device_index() && t.scalar_type() == images.scalar_type();
  };
  STD_TORCH_CHECK(alphas.is_cuda() && alphas.get_device_index() == images.get_device_index() && alphas.dim() == 1 &&
                      alphas.size(0) == static_cast<int64_t>(levels),
                  "alphas must have one value for each of the ", levels, " levels, on the images' device");
  std::vector<int> sizes, maps;
  std::vector<const void*> hidden_data, weight_data, bias_data;
  std::vector<std::array<int64_t, 5>> strides;
  std::vector<Tensor> dense;  // keeps contiguous copies alive
  for (size_t l = 0; l < levels; ++l) {
    const Tensor &h = hidden[l], &w = weight[l], &b = bias[l];
    STD_TORCH_CHECK(fits(h) && h.dim() == 5 && h.size(0) == images.size(0) && h.size(1) == images.size(1) &&
                        h.size(3) == images.size(3) && h.size(4) == images.size(4),
                    "hidden[", l, "] must be (B, N, M, H, W) of the images' sizes, dtype and device");
    STD_TORCH_CHECK(fits(w) && w.dim() == 2 && w.size(1) == h.size(2) && w.size(1) <= 1 << 20, "weight[", l,
                    "] must be (k*k, M) of the images' dtype and device, with hidden's M");
    STD_TORCH_CHECK(fits(b) && b.dim() == 1 && b.size(0) == w.size(0), "bias[", l,
                    "] must be (k*k,) of the images' dtype and device");
    sizes.push_back(side_of(w.size(0), "weight", l));
    maps.push_back(static_cast<int>(h.size(2)));
    hidden_data.push_back(h.const_data_ptr());
    strides.push_back({h.stride(0), h.stride(1), h.stride(2), h.stride(3), h.stride(4)});
    dense.push_back(torch::stable::contiguous(w));
    weight_data.push_back(dense.back().const_data_ptr());
    dense.push_back(torch::stable::contiguous(b));
    bias_data.push_back(dense.back().const_data_ptr());
  }
  ffmef_prediction p = {};
  p.dtype = dtype_of(images);
  p.padding = padding_of(padding_mode);
  p.batch = images.size(0);
  p.image_count = images.size(1);
  p.channels = images.size(2);
  p.height = images.size(3);
  p.width = images.size(4);
  p.images = images.const_data_ptr();
  for (int axis = 0; axis < 5; ++axis) p.image_strides[axis] = images.stride(axis);
  p.level_count = static_cast<int>(levels);
  p.sizes = sizes.data();
  p.maps = maps.data();
  p.hidden = hidden_data.data();
  p.hidden_strides = reinterpret_cast<const int64_t (*)[5]>(strides.data());
  p.weight = weight_data.data();
  p.bias = bias_data.data();
  p.alphas = alphas.const_data_ptr();
  p.alpha_stride = alphas.stride(0);
  Tensor output = make_empty(images, {p.batch, p.channels, p.height, p.width});
  check_launch(ffmef_cuda_predict_and_fuse(&p, output.mutable_data_ptr(), current_stream(images)), "predict_and_fuse");
  return output;
}

// ---- pyramid_fuse ---------------------------------------------------------------------------------------------------

ffmef_pyramid pyramid_of(const Tensor& images, const Tensor& weights, const Tensor& base, int64_t scale) {
  STD_TORCH_CHECK(images.dim() == 5 && weights.dim() == 5 && base.dim() == 4,
                  "images must be (B, N, C, H, W), weights (B, L, N, h, w) and base (B, N, h, w)");
  for (const Tensor* tensor : {&weights, &base})
    STD_TORCH_CHECK(tensor->is_cuda() && tensor->get_device_index() == images.get_device_index() &&
                        tensor->scalar_type() == images.scalar_type(),
                    "weights and base must have the images' dtype and device");
  ffmef_pyramid p = {};
  p.dtype = dtype_of(images);
  p.batch = images.size(0);
  p.image_count = images.size(1);
  p.channels = images.size(2);
  p.height = images.size(3);
  p.width = images.size(4);
  const int64_t bands = weights.size(1);
  STD_TORCH_CHECK(
      scale >= 1 && scale <= 64 && (scale & (scale - 1)) == 0 && bands < 7 && (int64_t(1) << bands) <= scale,
      "scale must be a power of two from 2^L to 64, got ", scale);
  STD_TORCH_CHECK(p.image_count > 0 && p.channels > 0 && p.height > 0 && p.width > 0, "images must not be empty");
  const int64_t down = (p.height + scale - 1) / scale, across = (p.width + scale - 1) / scale;
  STD_TORCH_CHECK(weights.size(0) == p.batch && weights.size(2) == p.image_count && weights.size(3) == down &&
                      weights.size(4) == across,
                  "weights must be (B, L, N, ceil(H / scale), ceil(W / scale))");
  STD_TORCH_CHECK(
      base.size(0) == p.batch && base.size(1) == p.image_count && base.size(2) == down && base.size(3) == across,
      "base must be (B, N, ceil(H / scale), ceil(W / scale))");
  p.bands = static_cast<int>(bands);
  p.scale = static_cast<int>(scale);
  p.images = images.const_data_ptr();
  p.weights = weights.const_data_ptr();
  p.base = base.const_data_ptr();
  for (int axis = 0; axis < 5; ++axis)
    p.image_strides[axis] = images.stride(axis), p.weight_strides[axis] = weights.stride(axis);
  for (int axis = 0; axis < 4; ++axis) p.base_strides[axis] = base.stride(axis);
  return p;
}

Tensor pyramid_fuse_cuda(const Tensor& images, const Tensor& weights, const Tensor& base, int64_t scale) {
  const torch::stable::accelerator::DeviceGuard guard(images.get_device_index());
  const ffmef_pyramid p = pyramid_of(images, weights, base, scale);
  Tensor output = make_empty(images, {p.batch, p.channels, p.height, p.width});
  Tensor workspace = workspace_of(images, ffmef_cuda_pyramid_fuse_workspace(&p));
  check_launch(
      ffmef_cuda_pyramid_fuse(&p, output.mutable_data_ptr(), workspace.mutable_data_ptr(), current_stream(images)),
      "pyramid_fuse");
  return output;
}

std::vector<Tensor> pyramid_fuse_backward_cuda(const Tensor& grad, const Tensor& images, const Tensor& weights,
                                               const Tensor& base, int64_t scale, bool need_images, bool need_weights,
                                               bool need_base) {
  const torch::stable::accelerator::DeviceGuard guard(images.get_device_index());
  const ffmef_pyramid p = pyramid_of(images, weights, base, scale);
  STD_TORCH_CHECK(grad.is_cuda() && grad.get_device_index() == images.get_device_index() && grad.dim() == 4 &&
                      grad.scalar_type() == images.scalar_type() && grad.size(0) == p.batch &&
                      grad.size(1) == p.channels && grad.size(2) == p.height && grad.size(3) == p.width,
                  "grad must be (B, C, H, W) of the images' sizes, dtype and device");
  const auto gradient_of = [](const Tensor& tensor, bool needed) {
    if (!needed) return make_empty(tensor, {0});
    std::vector<int64_t> sizes;
    for (int64_t axis = 0; axis < tensor.dim(); ++axis) sizes.push_back(tensor.size(axis));
    return make_empty(tensor, sizes);
  };
  Tensor image_grad = gradient_of(images, need_images), weight_grad = gradient_of(weights, need_weights);
  Tensor base_grad = gradient_of(base, need_base);
  ffmef_pyramid_gradients g = {};
  g.output = grad.const_data_ptr();
  for (int axis = 0; axis < 4; ++axis) g.output_strides[axis] = grad.stride(axis);
  g.images = need_images ? image_grad.mutable_data_ptr() : nullptr;
  g.weights = need_weights ? weight_grad.mutable_data_ptr() : nullptr;
  g.base = need_base ? base_grad.mutable_data_ptr() : nullptr;
  Tensor workspace = workspace_of(images, ffmef_cuda_pyramid_fuse_backward_workspace(&p, &g));
  check_launch(ffmef_cuda_pyramid_fuse_backward(&p, &g, workspace.mutable_data_ptr(), current_stream(images)),
               "pyramid_fuse");
  return {image_grad, weight_grad, base_grad};
}

// ---- the whole network ----------------------------------------------------------------------------------------------

Tensor ffmef_forward_cuda(const Tensor& luminance, const std::vector<Tensor>& parameters, int64_t channels,
                          const std::vector<int64_t>& kernel_sizes) {
  STD_TORCH_CHECK(luminance.dim() == 4 && luminance.size(1) == 2 && luminance.scalar_type() == ScalarType::Float,
                  "luminance must be (B, 2, H, W) in float32");
  STD_TORCH_CHECK(channels == 4, "channels must be 4, got ", channels);
  STD_TORCH_CHECK(!kernel_sizes.empty() && kernel_sizes.size() <= 4, "kernel_sizes must be 1 to 4, got ",
                  int64_t(kernel_sizes.size()));
  std::vector<int> sizes;
  for (const int64_t size : kernel_sizes) {
    STD_TORCH_CHECK(size == 1 || size == 3 || size == 5 || size == 7, "kernel_sizes must be 1, 3, 5 or 7, got ", size);
    sizes.push_back(static_cast<int>(size));
  }
  const torch::stable::accelerator::DeviceGuard guard(luminance.get_device_index());
  std::vector<Tensor> dense;  // keeps alive what is read
  std::vector<const float*> pointers;
  std::vector<int64_t> values;
  int64_t held = 0;
  dense.reserve(parameters.size() + 1);
  for (const Tensor& parameter : parameters) {
    STD_TORCH_CHECK(parameter.scalar_type() == ScalarType::Float, "parameters must be float32");
    STD_TORCH_CHECK(parameter.is_cuda() && parameter.get_device_index() == luminance.get_device_index(),
                    "parameters must be on luminance's device");
    dense.push_back(parameter.is_contiguous() ? parameter : torch::stable::contiguous(parameter));
    pointers.push_back(static_cast<const float*>(dense.back().const_data_ptr()));
    values.push_back(parameter.numel());
    held += values.back();
  }
  dense.push_back(luminance.is_contiguous() ? luminance : torch::stable::contiguous(luminance));
  const ffmef_network n = {luminance.size(0),
                           luminance.size(2),
                           luminance.size(3),
                           static_cast<const float*>(dense.back().const_data_ptr()),
                           static_cast<int64_t>(pointers.size()),
                           pointers.data(),
                           values.data(),
                           static_cast<int>(sizes.size()),
                           sizes.data(),
                           not_refused("FFMEF_CUDA_EARLY_LAUNCHES")};
  const int64_t expected = ffmef_cuda_ffmef_forward_values(n.level_count, n.sizes);
  STD_TORCH_CHECK(held == expected, "parameters must hold ", expected, " values for channels ", channels,
                  " and these kernel_sizes, got ", held);
  STD_TORCH_CHECK(ffmef_cuda_ffmef_forward_fits(&n), "parameters must hold every weight and bias in one piece");
  STD_TORCH_CHECK(
      n.height < (int64_t(1) << 31) && n.width < (int64_t(1) << 31) && n.height * n.width < (int64_t(1) << 31),
      "luminance must have fewer than 2**31 pixels on GPUs, got ", n.height, " x ", n.width);
  Tensor output = make_empty(luminance, {n.batch, 1, n.height, n.width});
  if (output.numel() == 0) return output;
  Tensor workspace = workspace_of(luminance, ffmef_cuda_ffmef_forward_workspace(&n));
  check_launch(ffmef_cuda_ffmef_forward(&n, static_cast<float*>(output.mutable_data_ptr()),
                                        workspace.mutable_data_ptr(), current_stream(luminance)),
               "ffmef_forward");
  return output;
}

// ---- pyramid_exposures and pyramid_luminance ------------------------------------------------------------------------

// The arguments of PyramidFFMEF as the kernels take them; keeps pointers into the tensors.
struct PicturesCall {
  std::vector<Tensor> kept;
  std::vector<const void*> pictures;
  std::vector<const uint8_t*> validity;
  std::vector<const float*> parameters;
  std::vector<int> channels;
  ffmef_pictures fusion = {};

  PicturesCall(const Tensor& like, const std::vector<Tensor>& given, const std::vector<int64_t>& grids, int64_t stem,
               int64_t octaves) {
    const int64_t count = static_cast<int64_t>(grids.size());
    STD_TORCH_CHECK(count >= 2 && count <= FFMEF_MOST_GRIDS && grids[0] == 16, "channels must be 2 to ",
                    FFMEF_MOST_GRIDS, " numbers, the first of them 16");
    for (const int64_t c : grids) STD_TORCH_CHECK(c == 16 || c == 32, "channels must be 16 or 32, got ", c);
    STD_TORCH_CHECK(stem >= 1 && stem <= 16, "stem must be 1 to 16, got ", stem);
    STD_TORCH_CHECK(octaves >= 0 && octaves <= FFMEF_MOST_OCTAVES, "octaves must be 0 to ", FFMEF_MOST_OCTAVES,
                    ", got ", octaves);
    channels.assign(grids.begin(), grids.end());
    fusion.grids = static_cast<int>(count);
    fusion.channels = channels.data();
    fusion.stem = static_cast<int>(stem);
    fusion.octaves = static_cast<int>(octaves);
    fusion.brightness = fusion.contrast = fusion.saturation = 1;
    fusion.early_launches = not_refused("FFMEF_CUDA_EARLY_LAUNCHES");
    std::vector<int64_t> sizes(static_cast<size_t>(ffmef_cuda_pyramid_pictures_parameters(&fusion, nullptr)));
    ffmef_cuda_pyramid_pictures_parameters(&fusion, sizes.data());
    STD_TORCH_CHECK(given.size() == sizes.size(), "parameters must hold ", sizes.size(), " tensors, got ",
                    given.size());
    for (size_t i = 0; i < sizes.size(); ++i) {
      STD_TORCH_CHECK(given[i].is_cuda() && given[i].get_device_index() == like.get_device_index() &&
                          given[i].scalar_type() == ScalarType::Float && given[i].numel() == sizes[i],
                      "parameters[", i, "] must be float32 with ", sizes[i], " elements on the pictures' device");
      parameters.push_back(static_cast<const float*>(keep(given[i])));
    }
    fusion.parameters = parameters.data();
  }
  PicturesCall(const PicturesCall&) = delete;

  const void* keep(const Tensor& tensor) {
    // Asking first saves a call of the dispatcher for each of some forty parameters.
    kept.push_back(tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor));
    return kept.back().const_data_ptr();
  }
  void set_size(int sample, int64_t height, int64_t width) {
    STD_TORCH_CHECK(height > 0 && width > 0 && height < (int64_t(1) << 29) && width < (int64_t(1) << 29) &&
                        height * width < (int64_t(1) << 29),
                    "pictures must have 1 to 2^29 pixels");
    fusion.sample = sample;
    fusion.height = height;
    fusion.width = width;
  }
  void set_count(int64_t count) {
    STD_TORCH_CHECK(count >= 1 && count <= FFMEF_MOST_EXPOSURES, "pictures must be 1 to ", FFMEF_MOST_EXPOSURES,
                    ", got ", count);
    fusion.count = count;
  }
  // `pictures` and `validity` hold those of one bracket after the other; `out` has `bytes` for each.
  void launch(const Tensor& like, int64_t batch, void* out, int64_t bytes) {
    std::vector<ffmef_pictures> brackets(static_cast<size_t>(batch), fusion);
    std::vector<void*> outs;
    for (int64_t b = 0; b < batch; ++b) {
      ffmef_pictures& own = brackets[static_cast<size_t>(b)];
      own.pictures = pictures.data() + b * fusion.count;
      own.validity = validity.empty() ? nullptr : validity.data() + b * fusion.count;
      outs.push_back(static_cast<unsigned char*>(out) + b * bytes);
    }
    const Tensor workspace = workspace_of(like, ffmef_cuda_pyramid_brackets_workspace(brackets.data(), batch));
    check_launch(ffmef_cuda_pyramid_brackets(brackets.data(), batch, outs.data(), workspace.mutable_data_ptr(),
                                             current_stream(like)),
                 "pyramid_exposures");
  }
};

int sample_of(const Tensor& picture) {
  switch (picture.scalar_type()) {
    case ScalarType::Byte: return FFMEF_RGB8;
    case ScalarType::UInt16: return FFMEF_RGB16;
    case ScalarType::Float: return FFMEF_RGB_FLOAT;
    default: STD_TORCH_CHECK(false, "pictures must be uint8, uint16 or float32"); return -1;
  }
}

Tensor pyramid_exposures_cuda(const std::vector<Tensor>& pictures, const std::vector<Tensor>& validity,
                              const std::vector<Tensor>& parameters, const std::vector<int64_t>& channels, int64_t stem,
                              int64_t octaves, const std::vector<double>& adjust) {
  STD_TORCH_CHECK(!pictures.empty(), "pictures must hold at least one picture");
  const Tensor& first = pictures[0];
  const torch::stable::accelerator::DeviceGuard guard(first.get_device_index());
  STD_TORCH_CHECK(first.dim() == 3 || first.dim() == 4, "pictures must be (H, W, 3) or (B, H, W, 3)");
  const int64_t rows = first.dim() - 3, batch = rows == 0 ? 1 : first.size(0);  // rows: the axis of rows
  PicturesCall call(first, parameters, channels, stem, octaves);
  call.set_size(sample_of(first), first.size(rows), first.size(rows + 1));
  call.set_count(static_cast<int64_t>(pictures.size()));
  const auto fits = [&](const Tensor& t) {
    if (!t.is_cuda() || t.get_device_index() != first.get_device_index()) return false;
    for (int64_t axis = 0; axis < rows + 2; ++axis)
      if (t.size(axis) != first.size(axis)) return false;
    return true;
  };
  for (const Tensor& picture : pictures)
    STD_TORCH_CHECK(picture.dim() == rows + 3 && picture.size(rows + 2) == 3 &&
                        picture.scalar_type() == first.scalar_type() && fits(picture),
                    "pictures must be (H, W, 3) or (B, H, W, 3) of one size, dtype and device");
  STD_TORCH_CHECK(validity.empty() || validity.size() == pictures.size(), "validity must hold a map for each picture");
  for (const Tensor& map : validity)
    STD_TORCH_CHECK(map.dim() == rows + 2 && map.scalar_type() == ScalarType::Byte && fits(map),
                    "validity must be uint8 (H, W) or (B, H, W) of the pictures' size and device");
  const int64_t pixels = first.size(rows) * first.size(rows + 1);
  const int64_t bytes = pixels * 3 *
                        (first.scalar_type() == ScalarType::Byte     ? 1
                         : first.scalar_type() == ScalarType::UInt16 ? 2
                                                                     : 4);
  std::vector<const unsigned char*> data, maps;
  for (const Tensor& picture : pictures) data.push_back(static_cast<const unsigned char*>(call.keep(picture)));
  for (const Tensor& map : validity) maps.push_back(static_cast<const unsigned char*>(call.keep(map)));
  for (int64_t b = 0; b < batch; ++b) {
    for (const unsigned char* picture : data) call.pictures.push_back(picture + b * bytes);
    for (const unsigned char* map : maps) call.validity.push_back(map + b * pixels);
  }
  STD_TORCH_CHECK(adjust.size() == 4, "adjust must be brightness, contrast, saturation and prefer");
  call.fusion.brightness = static_cast<float>(std::exp2(adjust[0]));
  call.fusion.contrast = static_cast<float>(1 + adjust[1]);
  call.fusion.saturation = static_cast<float>(1 + adjust[2]);
  call.fusion.prefer = static_cast<float>(adjust[3]);
  std::vector<int64_t> sizes;
  for (int64_t axis = 0; axis < first.dim(); ++axis) sizes.push_back(first.size(axis));
  Tensor output = make_empty(first, sizes);
  call.launch(first, batch, output.mutable_data_ptr(), bytes);
  return output;
}

Tensor pyramid_luminance_cuda(const Tensor& given, const std::vector<Tensor>& parameters,
                              const std::vector<int64_t>& channels, int64_t stem, int64_t octaves) {
  const torch::stable::accelerator::DeviceGuard guard(given.get_device_index());
  STD_TORCH_CHECK(given.dim() == 4 && given.scalar_type() == ScalarType::Float && given.numel() > 0,
                  "luminance must be (B, N, H, W), float32");
  const Tensor luminance = torch::stable::contiguous(given);
  const int64_t batch = given.size(0), count = given.size(1), size = given.size(2) * given.size(3);
  PicturesCall call(luminance, parameters, channels, stem, octaves);
  call.set_size(FFMEF_LUMINANCE, given.size(2), given.size(3));
  Tensor output = make_empty(luminance, {batch, 1, given.size(2), given.size(3)});
  const float* in = static_cast<const float*>(luminance.const_data_ptr());
  call.set_count(count);
  for (int64_t n = 0; n < batch * count; ++n) call.pictures.push_back(in + n * size);
  call.launch(luminance, batch, output.mutable_data_ptr(), size * static_cast<int64_t>(sizeof(float)));
  return output;
}

// ---- colour before and after a model of luminance -------------------------------------------------------------------

int samples_of(const Tensor& picture) {
  switch (picture.scalar_type()) {
    case ScalarType::Byte: return FFMEF_UINT8_SAMPLES;
    case ScalarType::UInt16: return FFMEF_UINT16_SAMPLES;
    case ScalarType::Float: return FFMEF_FLOAT32_SAMPLES;
    case ScalarType::Double: return FFMEF_FLOAT64_SAMPLES;
    default: STD_TORCH_CHECK(false, "pictures must be uint8, uint16, float32 or float64"); return -1;
  }
}

// Pictures (H, W, 3), and (H, W) where `grey` may be, of one size, dtype and device.
void check_pictures(const std::vector<Tensor>& pictures, const Tensor& like, bool grey) {
  for (const Tensor& picture : pictures)
    STD_TORCH_CHECK(picture.is_cuda() && picture.get_device_index() == like.get_device_index() &&
                        ((picture.dim() == 3 && picture.size(2) == 3) || (grey && picture.dim() == 2)) &&
                        picture.scalar_type() == pictures[0].scalar_type() && picture.size(0) == like.size(0) &&
                        picture.size(1) == like.size(1),
                    "pictures must have one size, dtype and device");
}

Tensor sample_luminance_cuda(const std::vector<Tensor>& pictures) {
  STD_TORCH_CHECK(!pictures.empty(), "pictures must hold at least one picture");
  const Tensor& first = pictures[0];
  const torch::stable::accelerator::DeviceGuard guard(first.get_device_index());
  check_pictures(pictures, first, true);
  const int64_t count = static_cast<int64_t>(pictures.size()), pixels = first.size(0) * first.size(1);
  Tensor planes = torch::stable::new_empty(first, {count, first.size(0), first.size(1)}, ScalarType::Float);
  float* plane = static_cast<float*>(planes.mutable_data_ptr());
  for (const Tensor& picture : pictures) {
    const Tensor dense = torch::stable::contiguous(picture);
    check_launch(ffmef_cuda_sample_luminance(dense.const_data_ptr(), samples_of(dense), dense.dim() == 3 ? 3 : 1,
                                             pixels, plane, current_stream(dense)),
                 "sample_luminance");
    plane += pixels;
  }
  return planes;
}

Tensor recoloured_cuda(const Tensor& given, const std::vector<Tensor>& sources) {
  STD_TORCH_CHECK(!sources.empty() && sources.size() <= FFMEF_MOST_SOURCES, "sources must be 1 to ",
                  static_cast<int>(FFMEF_MOST_SOURCES), ", got ", static_cast<int64_t>(sources.size()));
  STD_TORCH_CHECK(given.is_cuda() && given.dim() == 2 && given.scalar_type() == ScalarType::Float,
                  "fused must be (H, W) in float32");
  const torch::stable::accelerator::DeviceGuard guard(given.get_device_index());
  check_pictures(sources, given, false);
  const Tensor fused = torch::stable::contiguous(given);
  std::vector<Tensor> dense;  // keeps alive what is read
  std::vector<const void*> data;
  for (const Tensor& source : sources) {
    dense.push_back(torch::stable::contiguous(source));
    data.push_back(dense.back().const_data_ptr());
  }
  Tensor out = torch::stable::new_empty(dense[0], {fused.size(0), fused.size(1), 3});
  check_launch(ffmef_cuda_recoloured(static_cast<const float*>(fused.const_data_ptr()), data.data(),
                                     static_cast<int>(data.size()), samples_of(dense[0]), fused.size(0) * fused.size(1),
                                     out.mutable_data_ptr(), current_stream(fused)),
               "recoloured");
  return out;
}

}  // namespace
}  // namespace ffmef

// Called by the Python kernel of ffmef_forward, which falls back to Triton for other numbers of channels.
STABLE_TORCH_LIBRARY_FRAGMENT(ffmef, m) {
  m.def("ffmef_forward_cuda(Tensor luminance, Tensor[] parameters, int channels, int[] kernel_sizes) -> Tensor");
  // Called by ffmef/ops/picture_colour.py, which has torch operations for other devices.
  m.def("sample_luminance_cuda(Tensor[] pictures) -> Tensor");
  m.def("recoloured_cuda(Tensor fused, Tensor[] sources) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(ffmef, CUDA, m) {
  m.impl("adaptive_fuse", TORCH_BOX(&ffmef::adaptive_fuse_cuda));
  m.impl("adaptive_fuse_backward", TORCH_BOX(&ffmef::adaptive_fuse_backward_cuda));
  m.impl("predict_and_fuse", TORCH_BOX(&ffmef::predict_and_fuse_cuda));
  m.impl("ffmef_forward_cuda", TORCH_BOX(&ffmef::ffmef_forward_cuda));
  m.impl("sample_luminance_cuda", TORCH_BOX(&ffmef::sample_luminance_cuda));
  m.impl("recoloured_cuda", TORCH_BOX(&ffmef::recoloured_cuda));
  m.impl("pyramid_fuse", TORCH_BOX(&ffmef::pyramid_fuse_cuda));
  m.impl("pyramid_fuse_backward", TORCH_BOX(&ffmef::pyramid_fuse_backward_cuda));
  m.impl("pyramid_exposures", TORCH_BOX(&ffmef::pyramid_exposures_cuda));
  m.impl("pyramid_luminance", TORCH_BOX(&ffmef::pyramid_luminance_cuda));
}
