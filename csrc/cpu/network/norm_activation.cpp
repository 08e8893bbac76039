// Binds norm_activation's CPU kernels to torch: checks what memory safety needs,
// allocates, spreads planes over threads.
#include "norm_activation.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../base/tensors.h"
#include "../base/torch_crew.h"

namespace ffmef {
namespace {

NormActivationArgs args_of(const Tensor& input, const Tensor& weight, const Tensor& bias, double slope) {
  NormActivationArgs a{floats(input, "input", 4),
                       floats(weight, "weight", 1),
                       floats(bias, "bias", 1),
                       input.size(0),
                       input.size(1),
                       weight.size(0),
                       input.size(2) * input.size(3),
                       float(slope)};
  STD_TORCH_CHECK(a.normed <= a.channels && bias.size(0) == a.normed, "weight and bias must have one length, at most ",
                  a.channels);
  return a;
}

std::tuple<Tensor, Tensor> norm_activation_cpu(const Tensor& input, const Tensor& weight, const Tensor& bias,
                                               double slope, double eps) {
  const NormActivationArgs a = args_of(input, weight, bias, slope);
  Tensor out = result_like(input, {a.batch, a.channels, input.size(2), input.size(3)});
  Tensor statistics = torch::stable::new_zeros(input, {a.batch, a.normed, 2});
  if (a.pixels == 0) return {out, statistics};
  float *to = static_cast<float*>(out.data_ptr()), *found = static_cast<float*>(statistics.data_ptr());
  parallel_for(a.planes(), 1, [&](int64_t begin, int64_t end) {
    FFMEF_KERNELS(norm_activation_kernels).forward(a, float(eps), to, found, begin, end);
  });
  return {out, statistics};
}

std::tuple<Tensor, Tensor> norm_activation_backward_cpu(const Tensor& grad, const Tensor& input, const Tensor& weight,
                                                        const Tensor& bias, const Tensor& statistics, double slope) {
  const NormActivationArgs a = args_of(input, weight, bias, slope);
  const float *slopes = floats(grad, "grad", 4), *known = floats(statistics, "statistics", 3);
  for (int d = 0; d < 4; ++d) STD_TORCH_CHECK(grad.size(d) == input.size(d), "grad must have the shape of input");
  STD_TORCH_CHECK(statistics.size(0) == a.batch && statistics.size(1) == a.normed && statistics.size(2) == 2,
                  "statistics must be (", a.batch, ", ", a.normed, ", 2)");
  Tensor input_grad = result_like(input, {a.batch, a.channels, input.size(2), input.size(3)});
  // One sum per picture, added in order, so the result does not depend on the number of threads.
  Tensor affine_grad = torch::stable::new_zeros(input, {a.batch, a.normed, 2});
  if (a.pixels == 0) return {input_grad, affine_grad};
  float *to = static_cast<float*>(input_grad.data_ptr()), *shares = static_cast<float*>(affine_grad.data_ptr());
  parallel_for(a.planes(), 1, [&](int64_t begin, int64_t end) {
    FFMEF_KERNELS(norm_activation_kernels).backward(a, slopes, known, to, shares, begin, end);
  });
  return {input_grad, affine_grad};
}

}  // namespace
}  // namespace ffmef

STABLE_TORCH_LIBRARY_IMPL(ffmef, CPU, m) {
  m.impl("norm_activation", TORCH_BOX(&ffmef::norm_activation_cpu));
  m.impl("norm_activation_backward", TORCH_BOX(&ffmef::norm_activation_backward_cpu));
}
