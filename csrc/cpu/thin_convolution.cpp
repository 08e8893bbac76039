// Binds the thin convolution's CPU kernels to torch: checks what memory safety needs, allocates, spreads the batch.
#include "thin_convolution.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <memory>
#include <optional>
#include <vector>

namespace ffmef {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

const float* floats(const Tensor& tensor, const char* name, int dims) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float && tensor.dim() == dims && tensor.is_contiguous(), name,
                  " must be contiguous float32 of ", dims, " dimensions");
  return static_cast<const float*>(tensor.data_ptr());
}

ThinConvolutionArgs args_of(const Tensor& input, int64_t outputs, int64_t size) {
  STD_TORCH_CHECK(size % 2 == 1 && size >= 1 && size <= kMaxThinSize, "the kernel's side must be 1, 3, 5 or 7, got ", size);
  return {floats(input, "input", 4), input.size(0), input.size(1), outputs, input.size(2), input.size(3), int(size)};
}

template <class Work> void over_batch(const ThinConvolutionArgs& args, const Work& work) {
  const int64_t floats = FFMEF_KERNELS(thin_convolution_kernels).scratch(args);
  torch::stable::parallel_for(0, args.batch, 1, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<float[]> scratch(new float[size_t(floats)]);
    work(scratch.get(), begin, end);
  });
}

Tensor thin_convolution_cpu(const Tensor& input, const Tensor& weight, const std::optional<Tensor>& bias) {
  const float* weights = floats(weight, "weight", 4);
  const ThinConvolutionArgs args = args_of(input, weight.size(0), weight.size(2));
  STD_TORCH_CHECK(weight.size(1) == args.inputs && weight.size(3) == args.size, "weight must be (O, ", args.inputs, ", k, k)");
  const float* offsets = bias ? floats(*bias, "bias", 1) : nullptr;
  STD_TORCH_CHECK(!bias || bias->size(0) == args.outputs, "bias must have ", args.outputs, " values");
  Tensor out = torch::stable::new_empty(input, {args.batch, args.outputs, args.height, args.width});
  if (out.numel() == 0) return out;
  float* data = static_cast<float*>(out.data_ptr());
  over_batch(args, [&](float* scratch, int64_t begin, int64_t end) {
    FFMEF_KERNELS(thin_convolution_kernels).forward(args, weights, offsets, data, scratch, begin, end);
  });
  return out;
}

Tensor thin_convolution_weight_grad_cpu(const Tensor& input, const Tensor& grad, int64_t size) {
  const float* slopes = floats(grad, "grad", 4);
  const ThinConvolutionArgs args = args_of(input, grad.size(1), size);
  STD_TORCH_CHECK(grad.size(0) == args.batch && grad.size(2) == args.height && grad.size(3) == args.width,
                  "grad must have the batch, height and width of input");
  // One sum for each batch element, added in their order: the result does not depend on the number of threads.
  Tensor sums = torch::stable::new_zeros(input, {args.batch, args.outputs, args.inputs, size, size});
  float* data = static_cast<float*>(sums.data_ptr());
  over_batch(args, [&](float* scratch, int64_t begin, int64_t end) {
    FFMEF_KERNELS(thin_convolution_kernels).weight_grad(args, slopes, data, scratch, begin, end);
  });
  return sums;
}

}  // namespace
}  // namespace ffmef

STABLE_TORCH_LIBRARY_IMPL(ffmef, CPU, m) {
  m.impl("thin_convolution", TORCH_BOX(&ffmef::thin_convolution_cpu));
  m.impl("thin_convolution_weight_grad", TORCH_BOX(&ffmef::thin_convolution_weight_grad_cpu));
}
