// Helpers for the CPU bindings to unpack tensors: dtypes, numbers, strides, and results to fill.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "results.h"
#include "scalar.h"

namespace ffmef {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Scalar scalar_of(const Tensor& tensor, const char* name = "images") {
  switch (tensor.scalar_type()) {
    case ScalarType::Double: return Scalar::f64;
    case ScalarType::Float: return Scalar::f32;
    case ScalarType::Half: return Scalar::f16;
    case ScalarType::BFloat16: return Scalar::bf16;
    default: STD_TORCH_CHECK(false, name, " must be float64, float32, float16 or bfloat16"); return Scalar::f32;
  }
}

inline int64_t bytes_of(Scalar scalar) { return scalar == Scalar::f64 ? 8 : scalar == Scalar::f32 ? 4 : 2; }

inline ScalarType type_of(Scalar scalar) {
  switch (scalar) {
    case Scalar::f64: return ScalarType::Double;
    case Scalar::f32: return ScalarType::Float;
    case Scalar::f16: return ScalarType::Half;
    default: return ScalarType::BFloat16;
  }
}

inline int64_t bytes_of(ScalarType type) {
  switch (type) {
    case ScalarType::Double: return 8;
    case ScalarType::Float: return 4;
    case ScalarType::Byte: return 1;
    default: return 2;
  }
}

// The dtype of sums.
inline ScalarType wide_of(Scalar scalar) { return scalar == Scalar::f64 ? ScalarType::Double : ScalarType::Float; }

// The elements of a contiguous float32 tensor with `dims` dimensions, or an error that names it.
inline const float* floats(const Tensor& tensor, const char* name, int dims) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float && tensor.dim() == dims && tensor.is_contiguous(), name,
                  " must be contiguous float32 of ", dims, " dimensions");
  return static_cast<const float*>(tensor.data_ptr());
}

// The values of a one-dimensional floating tensor. Read here: on small tensors, torch's conversion took longer than the
// kernels.
inline std::vector<double> numbers_of(const Tensor& tensor, const char* name) {
  const Scalar scalar = scalar_of(tensor, name);
  const void* data = tensor.data_ptr();
  const int64_t stride = tensor.stride(0);
  std::vector<double> numbers(size_t(tensor.numel()));
  for (size_t i = 0; i < numbers.size(); ++i) {
    const int64_t at = int64_t(i) * stride;
    switch (scalar) {
      case Scalar::f64: numbers[i] = static_cast<const double*>(data)[at]; break;
      case Scalar::f32: numbers[i] = double(static_cast<const float*>(data)[at]); break;
      case Scalar::f16: numbers[i] = double(float(static_cast<const torch::headeronly::Half*>(data)[at])); break;
      case Scalar::bf16: numbers[i] = double(float(static_cast<const torch::headeronly::BFloat16*>(data)[at])); break;
    }
  }
  return numbers;
}

// Writes numbers to a contiguous floating tensor of as many elements.
inline void write_numbers(const Tensor& tensor, const std::vector<double>& numbers) {
  void* data = tensor.data_ptr();
  const Scalar scalar = scalar_of(tensor);
  for (size_t i = 0; i < numbers.size(); ++i) {
    switch (scalar) {
      case Scalar::f64: static_cast<double*>(data)[i] = numbers[i]; break;
      case Scalar::f32: static_cast<float*>(data)[i] = float(numbers[i]); break;
      case Scalar::f16: static_cast<torch::headeronly::Half*>(data)[i] = float(numbers[i]); break;
      case Scalar::bf16: static_cast<torch::headeronly::BFloat16*>(data)[i] = float(numbers[i]); break;
    }
  }
}

template <size_t Rank> void strides_of(const Tensor& tensor, int64_t (&strides)[Rank]) {
  for (size_t d = 0; d < Rank; ++d) strides[d] = tensor.stride(int64_t(d));
}

// An uninitialised contiguous result on the CPU.
inline Tensor result_like(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type) {
  int64_t values = 1;
  std::vector<int64_t> strides(sizes.size());
  for (size_t d = sizes.size(); d-- > 0; values *= sizes[d]) strides[d] = values;
  const int64_t bytes = values * bytes_of(type);
  if (bytes < kLargeResult) {
    AtenTensorHandle made = nullptr;  // past the dispatcher, which takes longer than small kernels
    TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
        int64_t(sizes.size()), sizes.data(), strides.data(),
        torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)), aoti_torch_device_type_cpu(), 0, &made));
    return Tensor(made);
  }
  ResultBlock block(bytes);
  void* const data = block.data;
  // The block lives as long as the tensor: torch calls and then destroys the deleter.
  return torch::stable::from_blob(data, sizes, strides, like.device(), type,
                                  [owned = std::move(block)](void*) { (void)owned; });
}
inline Tensor result_like(const Tensor& like, const std::vector<int64_t>& sizes) {
  return result_like(like, sizes, like.scalar_type());
}

}  // namespace ffmef
