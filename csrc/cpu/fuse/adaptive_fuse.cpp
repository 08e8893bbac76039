// Binds the operator's CPU kernels to torch: unpacks tensors, allocates results, spreads items over threads.
#include "adaptive_fuse.h"
#include "../base/tensors.h"
#include "../base/torch_crew.h"

#include <torch/csrc/stable/library.h>

#include <cstring>
#include <string>
#include <tuple>
#include <vector>

namespace ffmef {
namespace {

Padding padding_of(const std::string& name) {
  Padding mode = Padding::zeros;
  STD_TORCH_CHECK(find_padding(name.c_str(), mode), "padding_mode is not known: '", name, "'");
  return mode;
}

// The arguments as the kernels take them. Keeps only pointers, so it must not outlive the tensors.
struct Call {
  std::vector<LevelView> levels;
  AdaptiveFuseArgs args;
  bool any_coarse = false;

  // The public function explains mistakes. These checks only keep memory safe when the dispatcher is called directly.
  Call(const Tensor& images, const std::vector<Tensor>& filters, const Tensor& alphas,
       const std::string& padding_mode) {
    STD_TORCH_CHECK(images.dim() == 5, "images must be (B, N, C, H, W), got ", images.dim(), " dimensions");
    STD_TORCH_CHECK(alphas.dim() == 1 && alphas.size(0) == int64_t(filters.size()),
                    "alphas must have one value for each of the ", filters.size(), " levels");
    const Scalar scalar = scalar_of(images);
    args.result = scalar;
    args.padding = padding_of(padding_mode);
    args.images = {images.data_ptr(), scalar,         images.size(0), images.size(1),
                   images.size(2),    images.size(3), images.size(4), {}};
    strides_of(images, args.images.stride);
    const std::vector<double> alpha = numbers_of(alphas);
    for (size_t l = 0; l < filters.size(); ++l) {
      const Tensor& f = filters[l];
      STD_TORCH_CHECK(
          f.dim() == 5 && (scalar_of(f) == Scalar::f64) == (scalar == Scalar::f64) && f.size(0) == images.size(0) &&
              f.size(1) == images.size(1) && fits(f.size(3), images.size(3)) && fits(f.size(4), images.size(4)),
          "filters[", l,
          "] must be (B, N, k*k, h, w) of the images' sizes or a coarser grid's; float64 with float64 images alone");
      // The dtype to which torch promotes the tensors. Two half-precision dtypes promote to float32.
      if (scalar_of(f) != args.result) args.result = Scalar::f32;
      int size = 1;
      while (int64_t(size) * size < f.size(2)) size += 2;
      STD_TORCH_CHECK(int64_t(size) * size == f.size(2) && size <= kMaxFilterSize, "filters[", l,
                      "] must have k*k taps with k odd and at most 31, got ", f.size(2));
      const bool coarse = f.size(3) != images.size(3) || f.size(4) != images.size(4);
      levels.push_back({f.data_ptr(), scalar_of(f), {}, f.size(3), f.size(4), size, alpha[l], coarse});
      strides_of(f, levels.back().stride);
    }
    args.levels = levels.data();
    args.level_count = int(levels.size());
    for (const LevelView& level : levels) any_coarse = any_coarse || level.coarse;
  }

  static bool fits(int64_t cells, int64_t pixels) { return cells == pixels || (cells > 0 && cells < pixels); }
};

Tensor run_forward(const Call& call, const Tensor& images, Tensor* responses) {
  const ImagesView& im = call.args.images;
  Tensor out = result_like(images, {im.batch, im.channels, im.height, im.width}, type_of(call.args.result));
  if (out.numel() == 0) return out;
  if (im.count == 0 || call.levels.empty()) {
    if (responses != nullptr) torch::stable::zero_(*responses);
    return torch::stable::zero_(out);
  }
  const AdaptiveFuseKernels& kernels = FFMEF_KERNELS(adaptive_fuse_kernels);
  const auto forward = call.any_coarse ? FFMEF_KERNELS(adaptive_fuse_coarse_kernels).forward : kernels.forward;
  void* data = out.data_ptr();
  void* response_data = responses != nullptr ? responses->data_ptr() : nullptr;
  parallel_for(kernels.forward_items(call.args), 1,
               [&](int64_t begin, int64_t end) { forward(call.args, data, response_data, begin, end); });
  return out;
}

Tensor adaptive_fuse_cpu(const Tensor& images, const std::vector<Tensor>& filters, const Tensor& alphas,
                         const std::string& padding_mode) {
  const Call call(images, filters, alphas, padding_mode);
  return run_forward(call, images, nullptr);
}

std::tuple<Tensor, Tensor> adaptive_fuse_responses_cpu(const Tensor& images, const std::vector<Tensor>& filters,
                                                       const Tensor& alphas, const std::string& padding_mode) {
  const Call call(images, filters, alphas, padding_mode);
  const ImagesView& im = call.args.images;
  Tensor responses = result_like(images, {int64_t(filters.size()), im.batch, im.channels, im.height, im.width},
                                 wide_of(call.args.result));
  const Tensor out = run_forward(call, images, &responses);
  return {out, responses};
}

// The gradients of images, every level's filters and alphas.
std::vector<Tensor> adaptive_fuse_backward_cpu(const Tensor& grad, const Tensor& images,
                                               const std::vector<Tensor>& filters, const Tensor& alphas,
                                               const std::string& padding_mode, bool need_images,
                                               const std::vector<int64_t>& need_filters, bool need_alphas) {
  const Call call(images, filters, alphas, padding_mode);
  const ImagesView& im = call.args.images;
  STD_TORCH_CHECK(grad.dim() == 4 && grad.scalar_type() == type_of(call.args.result) && grad.size(0) == im.batch &&
                      grad.size(1) == im.channels && grad.size(2) == im.height && grad.size(3) == im.width,
                  "grad must be (B, C, H, W) of the images' sizes and the result's dtype");
  STD_TORCH_CHECK(need_filters.size() == filters.size(), "need_filters must have one value for each level");
  GradView grad_view{grad.data_ptr(), {}};
  strides_of(grad, grad_view.stride);

  // A gradient that is not needed is an empty tensor, which costs nothing and keeps the schema simple.
  Tensor image_grad = need_images ? result_like(images, {im.batch, im.count, im.channels, im.height, im.width})
                                  : torch::stable::new_empty(images, {0});
  Tensor alpha_grad = torch::stable::new_zeros(alphas, {need_alphas ? int64_t(filters.size()) : 0});
  std::vector<Tensor> gradients{image_grad};
  std::vector<void*> filter_grad_data(filters.size(), nullptr);
  bool any_filter = false, any_fine = false;
  for (size_t l = 0; l < filters.size(); ++l) {
    const Tensor& f = filters[l];
    gradients.push_back(need_filters[l] ? result_like(f, {f.size(0), f.size(1), f.size(2), f.size(3), f.size(4)})
                                        : torch::stable::new_empty(f, {0}));
    if (need_filters[l]) filter_grad_data[l] = gradients.back().data_ptr();
    any_fine = any_fine || !call.levels[l].coarse;
    any_filter = any_filter || (need_filters[l] && !call.levels[l].coarse);
  }
  gradients.push_back(alpha_grad);
  if (grad.numel() == 0 || im.count == 0) {
    for (Tensor& g : gradients) torch::stable::zero_(g);
    return gradients;
  }

  const AdaptiveFuseKernels& kernels = FFMEF_KERNELS(adaptive_fuse_kernels);
  const AdaptiveFuseCoarseKernels& coarse = FFMEF_KERNELS(adaptive_fuse_coarse_kernels);
  std::vector<double> alpha_sums(filters.size(), 0.0);
  if (any_fine && (any_filter || need_alphas)) {
    const int64_t items = kernels.forward_items(call.args);
    std::vector<double> sums(need_alphas ? size_t(items) * filters.size() : 0);
    parallel_for(items, 1, [&](int64_t begin, int64_t end) {
      kernels.backward_filters(call.args, grad_view, filter_grad_data.data(), need_alphas ? sums.data() : nullptr,
                               begin, end);
    });
    for (size_t i = 0; i < sums.size(); ++i) alpha_sums[i % filters.size()] += sums[i];
  }
  for (size_t l = 0; l < filters.size(); ++l) {
    if (!call.levels[l].coarse || !(need_filters[l] || need_alphas)) continue;
    const int64_t items = coarse.filter_items(call.args, int(l));
    std::vector<double> sums(need_alphas ? size_t(items) : 0);
    parallel_for(items, 1, [&](int64_t begin, int64_t end) {
      coarse.backward_filters(call.args, grad_view, int(l), filter_grad_data[l], need_alphas ? sums.data() : nullptr,
                              begin, end);
    });
    for (double sum : sums) alpha_sums[l] += sum;
  }
  if (need_alphas) {
    Tensor wide = torch::stable::to(alpha_grad, ScalarType::Double);
    std::memcpy(wide.data_ptr(), alpha_sums.data(), alpha_sums.size() * sizeof(double));
    torch::stable::copy_(alpha_grad, wide);
  }
  if (need_images) {
    const auto backward_images = call.any_coarse ? coarse.backward_images : kernels.backward_images;
    void* data = image_grad.data_ptr();
    parallel_for(kernels.image_items(call.args), 1,
                 [&](int64_t begin, int64_t end) { backward_images(call.args, grad_view, data, begin, end); });
  }
  return gradients;
}

}  // namespace
}  // namespace ffmef

STABLE_TORCH_LIBRARY_IMPL(ffmef, CPU, m) {
  m.impl("adaptive_fuse", TORCH_BOX(&ffmef::adaptive_fuse_cpu));
  m.impl("adaptive_fuse_responses", TORCH_BOX(&ffmef::adaptive_fuse_responses_cpu));
  m.impl("adaptive_fuse_backward", TORCH_BOX(&ffmef::adaptive_fuse_backward_cpu));
}
