// Binds the operator's CPU kernels to torch: unpacks tensors, allocates results, spreads items over threads.
#include "adaptive_fuse.h"
#include "../base/tensors.h"
#include "../base/torch_crew.h"

#include <torch/csrc/stable/library.h>

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
    const std::vector<double> alpha = numbers_of(alphas, "alphas");
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

// The gradients of images, every level's filters and alphas. One that is not needed is an empty tensor, which costs
// nothing and keeps the schema simple.
struct Gradients {
  std::vector<Tensor> tensors;
  std::vector<void*> filter_data;

  Gradients(const Call& call, const Tensor& images, const std::vector<Tensor>& filters, const Tensor& alphas,
            bool need_images, const std::vector<int64_t>& need_filters, bool need_alphas)
      : filter_data(filters.size(), nullptr) {
    STD_TORCH_CHECK(need_filters.size() == filters.size(), "need_filters must have one value for each level");
    const ImagesView& im = call.args.images;
    tensors.reserve(filters.size() + 2);
    add(images, {im.batch, im.count, im.channels, im.height, im.width}, need_images);
    for (size_t l = 0; l < filters.size(); ++l) {
      const LevelView& level = call.levels[l];
      add(filters[l], {im.batch, im.count, int64_t(level.size) * level.size, level.height, level.width},
          need_filters[l] != 0);
      if (need_filters[l]) filter_data[l] = tensors.back().data_ptr();
    }
    add(alphas, {int64_t(filters.size())}, need_alphas);
  }

 private:
  void add(const Tensor& like, const std::vector<int64_t>& sizes, bool needed) {
    tensors.push_back(result_like(like, needed ? sizes : std::vector<int64_t>{0}));
  }
};

GradView view_of_grad(const Tensor& grad, const AdaptiveFuseArgs& args) {
  const ImagesView& im = args.images;
  STD_TORCH_CHECK(grad.dim() == 4 && grad.scalar_type() == type_of(args.result) && grad.size(0) == im.batch &&
                      grad.size(1) == im.channels && grad.size(2) == im.height && grad.size(3) == im.width,
                  "grad must be (B, C, H, W) of the images' sizes and the result's dtype");
  GradView view{grad.data_ptr(), {}};
  strides_of(grad, view.stride);
  return view;
}

// Sums over the items [0, count) of what `work(sums, begin, end)` writes, `values` for each item, in order of the
// items.
template <class Work> std::vector<double> sums_of_items(int64_t count, size_t values, const Work& work) {
  std::vector<double> sums(size_t(count) * values), total(values, 0.0);
  parallel_for(count, 1, [&](int64_t begin, int64_t end) { work(sums.data(), begin, end); });
  for (size_t i = 0; i < sums.size(); ++i) total[i % values] += sums[i];
  return total;
}

// responses: what each level added before alpha, or null. With them, the alphas' gradient reads no filters.
std::vector<Tensor> run_backward(const Call& call, const Tensor& grad, const void* responses, Gradients gradients,
                                 bool need_images, bool need_alphas) {
  const AdaptiveFuseArgs& args = call.args;
  const ImagesView& im = args.images;
  const GradView grad_view = view_of_grad(grad, args);
  std::vector<Tensor>& tensors = gradients.tensors;
  if (grad.numel() == 0 || im.count == 0) {
    for (Tensor& g : tensors) torch::stable::zero_(g);
    return std::move(tensors);
  }
  const AdaptiveFuseKernels& kernels = FFMEF_KERNELS(adaptive_fuse_kernels);
  const AdaptiveFuseCoarseKernels& coarse = FFMEF_KERNELS(adaptive_fuse_coarse_kernels);
  const size_t levels = call.levels.size();
  const bool from_responses = need_alphas && responses != nullptr, from_filters = need_alphas && !from_responses;
  bool fine_filters = false;
  for (size_t l = 0; l < levels; ++l)
    if (!call.levels[l].coarse) fine_filters = fine_filters || gradients.filter_data[l] != nullptr || from_filters;
  std::vector<double> alpha_sums(levels, 0.0);
  if (from_responses || fine_filters)
    alpha_sums = sums_of_items(kernels.forward_items(args), levels, [&](double* sums, int64_t begin, int64_t end) {
      if (from_responses) kernels.backward_alphas(args, grad_view, responses, sums, begin, end);
      if (fine_filters)
        kernels.backward_filters(args, grad_view, gradients.filter_data.data(), from_filters ? sums : nullptr, begin,
                                 end);
    });
  for (size_t l = 0; l < levels; ++l) {
    if (!call.levels[l].coarse || !(gradients.filter_data[l] != nullptr || from_filters)) continue;
    const auto sum = sums_of_items(coarse.filter_items(args, int(l)), 1, [&](double* sums, int64_t begin, int64_t end) {
      coarse.backward_filters(args, grad_view, int(l), gradients.filter_data[l], from_filters ? sums : nullptr, begin,
                              end);
    });
    if (from_filters) alpha_sums[l] = sum[0];
  }
  if (need_alphas) write_numbers(tensors.back(), alpha_sums);
  if (need_images) {
    const auto backward_images = call.any_coarse ? coarse.backward_images : kernels.backward_images;
    void* data = tensors.front().data_ptr();
    parallel_for(kernels.image_items(args), 1,
                 [&](int64_t begin, int64_t end) { backward_images(args, grad_view, data, begin, end); });
  }
  return std::move(tensors);
}

std::vector<Tensor> adaptive_fuse_backward_cpu(const Tensor& grad, const Tensor& images,
                                               const std::vector<Tensor>& filters, const Tensor& alphas,
                                               const std::string& padding_mode, bool need_images,
                                               const std::vector<int64_t>& need_filters, bool need_alphas) {
  const Call call(images, filters, alphas, padding_mode);
  return run_backward(call, grad, nullptr,
                      Gradients(call, images, filters, alphas, need_images, need_filters, need_alphas), need_images,
                      need_alphas);
}

// The same with the responses of adaptive_fuse_responses.
std::vector<Tensor> adaptive_fuse_responses_backward_cpu(const Tensor& grad, const Tensor& responses,
                                                         const Tensor& images, const std::vector<Tensor>& filters,
                                                         const Tensor& alphas, const std::string& padding_mode,
                                                         bool need_images, const std::vector<int64_t>& need_filters,
                                                         bool need_alphas) {
  const Call call(images, filters, alphas, padding_mode);
  const ImagesView& im = call.args.images;
  STD_TORCH_CHECK(responses.dim() == 5 && responses.scalar_type() == wide_of(call.args.result) &&
                      responses.size(0) == int64_t(filters.size()) && responses.size(1) == im.batch &&
                      responses.size(2) == im.channels && responses.size(3) == im.height &&
                      responses.size(4) == im.width && responses.is_contiguous(),
                  "responses must be those of adaptive_fuse_responses");
  return run_backward(call, grad, responses.data_ptr(),
                      Gradients(call, images, filters, alphas, need_images, need_filters, need_alphas), need_images,
                      need_alphas);
}

}  // namespace
}  // namespace ffmef

STABLE_TORCH_LIBRARY_IMPL(ffmef, CPU, m) {
  m.impl("adaptive_fuse", TORCH_BOX(&ffmef::adaptive_fuse_cpu));
  m.impl("adaptive_fuse_responses", TORCH_BOX(&ffmef::adaptive_fuse_responses_cpu));
  m.impl("adaptive_fuse_backward", TORCH_BOX(&ffmef::adaptive_fuse_backward_cpu));
  m.impl("adaptive_fuse_responses_backward", TORCH_BOX(&ffmef::adaptive_fuse_responses_backward_cpu));
}
