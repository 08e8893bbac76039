// Binds predict_and_fuse's CPU kernels to torch: checks what memory safety needs, allocates, spreads bands over
// threads.
#include "predict_and_fuse.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../base/buffer.h"
#include "../base/tensors.h"
#include "../base/torch_crew.h"

namespace ffmef {
namespace {

PredictAndFuseArgs args_of(const Tensor& hidden, const Tensor& kernels, const Tensor& padded) {
  PredictAndFuseArgs a{floats(hidden, "hidden", 5),
                       floats(kernels, "kernels", 3),
                       floats(padded, "padded", 4),
                       hidden.size(0),
                       hidden.size(1),
                       hidden.size(2),
                       hidden.size(3),
                       hidden.size(4),
                       int(kernels.size(1))};
  STD_TORCH_CHECK(
      a.size % 2 == 1 && a.size <= kMaxPredictedSize && kernels.size(2) == a.size && kernels.size(0) == a.maps + 1,
      "kernels must be (", a.maps + 1, ", k, k) with k 1, 3, 5 or 7");
  STD_TORCH_CHECK(padded.size(0) == a.batch && padded.size(1) == a.images && padded.size(2) == a.height + a.size - 1 &&
                      padded.size(3) == a.width + a.size - 1,
                  "padded must be (", a.batch, ", ", a.images, ", ", a.height + a.size - 1, ", ", a.width + a.size - 1,
                  ")");
  return a;
}

template <class Work> void over_items(const PredictAndFuseArgs& a, const Work& work) {
  const int64_t floats = FFMEF_KERNELS(predict_and_fuse_kernels).scratch(a);
  parallel_for(a.items(), 1, [&](int64_t begin, int64_t end) {
    const Buffer<float> scratch(floats);
    work(scratch, begin, end);
  });
}

Tensor predict_and_fuse_level_cpu(const Tensor& hidden, const Tensor& kernels, const Tensor& padded) {
  const PredictAndFuseArgs a = args_of(hidden, kernels, padded);
  Tensor out = a.images == 0 ? torch::stable::new_zeros(hidden, {a.batch, a.height, a.width})
                             : result_like(hidden, {a.batch, a.height, a.width});
  if (out.numel() == 0 || a.images == 0) return out;
  float* data = static_cast<float*>(out.data_ptr());
  over_items(a, [&](float* scratch, int64_t begin, int64_t end) {
    FFMEF_KERNELS(predict_and_fuse_kernels).forward(a, data, scratch, begin, end);
  });
  return out;
}

std::tuple<Tensor, Tensor> predict_and_fuse_level_backward_cpu(const Tensor& grad, const Tensor& hidden,
                                                               const Tensor& kernels, const Tensor& padded,
                                                               bool need_hidden, bool need_kernels) {
  const PredictAndFuseArgs a = args_of(hidden, kernels, padded);
  const float* slopes = floats(grad, "grad", 3);
  STD_TORCH_CHECK(grad.size(0) == a.batch && grad.size(1) == a.height && grad.size(2) == a.width,
                  "grad must have the batch, height and width of hidden");
  Tensor hidden_grad = need_hidden ? result_like(hidden, {a.batch, a.images, a.maps, a.height, a.width})
                                   : torch::stable::new_empty(hidden, {0});
  // One sum per band, added in order, so the result does not depend on the number of threads.
  Tensor kernel_grad = need_kernels ? torch::stable::new_empty(hidden, {a.items(), a.maps + 1, a.size, a.size})
                                    : torch::stable::new_empty(hidden, {0});
  if (grad.numel() == 0) return {hidden_grad, kernel_grad};
  float* hidden_data = need_hidden ? static_cast<float*>(hidden_grad.data_ptr()) : nullptr;
  float* kernel_data = need_kernels ? static_cast<float*>(kernel_grad.data_ptr()) : nullptr;
  over_items(a, [&](float* scratch, int64_t begin, int64_t end) {
    FFMEF_KERNELS(predict_and_fuse_kernels).backward(a, slopes, hidden_data, kernel_data, scratch, begin, end);
  });
  return {hidden_grad, kernel_grad};
}

}  // namespace
}  // namespace ffmef

STABLE_TORCH_LIBRARY_IMPL(ffmef, CPU, m) {
  m.impl("predict_and_fuse_level", TORCH_BOX(&ffmef::predict_and_fuse_level_cpu));
  m.impl("predict_and_fuse_level_backward", TORCH_BOX(&ffmef::predict_and_fuse_level_backward_cpu));
}
