// Binds the thin convolution's CPU kernels to torch: checks what memory safety needs, allocates, spreads the batch.
#include "thin_convolution.h"

#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "../base/buffer.h"
#include "../base/tensors.h"
#include "../base/torch_crew.h"

namespace ffmef {
namespace {

ThinConvolutionArgs args_of(const Tensor& input, const Tensor& weight, double slope) {
  const int64_t size = weight.size(2);
  STD_TORCH_CHECK(size % 2 == 1 && size >= 1 && size <= kMaxThinSize, "the kernel's side must be 1, 3, 5 or 7, got ",
                  size);
  STD_TORCH_CHECK(weight.size(1) == input.size(1) && weight.size(3) == size, "weight must be (O, ", input.size(1),
                  ", k, k)");
  return {input.size(0), input.size(1), weight.size(0), input.size(2), input.size(3), int(size), float(slope)};
}

template <class Work> void over_batch(const ThinConvolutionArgs& args, const Work& work) {
  const int64_t floats = FFMEF_KERNELS(thin_convolution_kernels).scratch(args);
  parallel_for(args.batch, 1, [&](int64_t begin, int64_t end) {
    const Buffer<float> scratch(floats);
    work(scratch, begin, end);
  });
}

Tensor thin_convolution_cpu(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias,
                            double slope) {
  const float *pixels = floats(input, "input", 4), *weights = floats(weight, "weight", 4);
  const ThinConvolutionArgs args = args_of(input, weight, slope);
  const float* offsets = bias ? floats(*bias, "bias", 1) : nullptr;
  STD_TORCH_CHECK(!bias || bias->size(0) == args.outputs, "bias must have ", args.outputs, " values");
  Tensor out = result_like(input, {args.batch, args.outputs, args.height, args.width});
  if (out.numel() == 0) return out;
  float* data = static_cast<float*>(out.data_ptr());
  over_batch(args, [&](float* scratch, int64_t begin, int64_t end) {
    FFMEF_KERNELS(thin_convolution_kernels).forward(args, pixels, weights, offsets, data, scratch, begin, end);
  });
  return out;
}

// The adjoint of a convolution is a convolution with the kernel flipped and its channels swapped.
std::vector<float> turned(const float* weight, const ThinConvolutionArgs& a) {
  const int64_t taps = a.size * a.size;
  std::vector<float> result(size_t(a.outputs * a.inputs * taps));
  for (int64_t o = 0; o < a.outputs; ++o)
    for (int64_t i = 0; i < a.inputs; ++i)
      for (int64_t t = 0; t < taps; ++t) result[size_t((i * a.outputs + o) * taps + taps - 1 - t)] = *weight++;
  return result;
}

std::tuple<Tensor, Tensor, Tensor> thin_convolution_backward_cpu(const Tensor& grad, const Tensor& input,
                                                                 const Tensor& weight, const std::optional<Tensor>& out,
                                                                 double slope, bool need_input, bool need_weight) {
  const float *slopes = floats(grad, "grad", 4), *pixels = floats(input, "input", 4);
  const ThinConvolutionArgs a = args_of(input, weight, slope);
  const std::vector<float> adjoint = turned(floats(weight, "weight", 4), a);
  auto check = [&](const Tensor& tensor, const char* name) {
    STD_TORCH_CHECK(tensor.size(0) == a.batch && tensor.size(1) == a.outputs && tensor.size(2) == a.height &&
                        tensor.size(3) == a.width,
                    name, " must be (", a.batch, ", ", a.outputs, ", ", a.height, ", ", a.width, ")");
  };
  check(grad, "grad");
  const float* behind = nullptr;
  if (a.slope != 1) {
    STD_TORCH_CHECK(out.has_value(), "out must be given where slope is not 1");
    behind = floats(*out, "out", 4);
    check(*out, "out");
  }
  auto wanted = [&](bool needed, const std::vector<int64_t>& sizes) {
    return torch::stable::new_zeros(input, needed ? sizes : std::vector<int64_t>{0});
  };
  const bool computed = grad.numel() > 0 && input.numel() > 0;
  Tensor input_grad = need_input && computed ? result_like(input, {a.batch, a.inputs, a.height, a.width})
                                             : wanted(need_input, {a.batch, a.inputs, a.height, a.width});
  // One sum per batch element, added in order, so the result does not depend on the number of threads.
  Tensor weight_grad = wanted(need_weight, {a.batch, a.outputs, a.inputs, a.size, a.size});
  Tensor bias_grad = wanted(need_weight, {a.batch, a.outputs});
  if (!computed) return {input_grad, weight_grad, bias_grad};
  auto data = [](const Tensor& tensor, bool needed) {
    return needed ? static_cast<float*>(tensor.data_ptr()) : nullptr;
  };
  float *to_input = data(input_grad, need_input), *to_weight = data(weight_grad, need_weight),
        *to_bias = data(bias_grad, need_weight);
  over_batch(a, [&](float* scratch, int64_t begin, int64_t end) {
    FFMEF_KERNELS(thin_convolution_kernels)
        .backward(a, slopes, pixels, adjoint.data(), behind, to_input, to_weight, to_bias, scratch, begin, end);
  });
  return {input_grad, weight_grad, bias_grad};
}

}  // namespace
}  // namespace ffmef

STABLE_TORCH_LIBRARY_IMPL(ffmef, CPU, m) {
  m.impl("thin_convolution", TORCH_BOX(&ffmef::thin_convolution_cpu));
  m.impl("thin_convolution_backward", TORCH_BOX(&ffmef::thin_convolution_backward_cpu));
}
