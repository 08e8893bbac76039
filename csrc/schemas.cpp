// The operators' schemas. No default values: they break the registration of autograd formulas from Python.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(ffmef, m) {
  m.def("adaptive_fuse(Tensor images, Tensor[] filters, Tensor alphas, str padding_mode) -> Tensor");
  m.def(
      "adaptive_fuse_responses(Tensor images, Tensor[] filters, Tensor alphas, str padding_mode) -> (Tensor, Tensor)");
  m.def(
      "adaptive_fuse_backward(Tensor grad, Tensor images, Tensor[] filters, Tensor alphas, str padding_mode, "
      "bool need_images, int[] need_filters, bool need_alphas) -> Tensor[]");
  m.def(
      "adaptive_fuse_responses_backward(Tensor grad, Tensor responses, Tensor images, Tensor[] filters, Tensor alphas, "
      "str padding_mode, bool need_images, int[] need_filters, bool need_alphas) -> Tensor[]");
  m.def(
      "predict_and_fuse(Tensor[] hidden, Tensor[] weight, Tensor[] bias, Tensor images, Tensor alphas, "
      "str padding_mode) -> Tensor");
  m.def(
      "predict_and_fuse_backward(Tensor grad, Tensor[] hidden, Tensor[] weight, Tensor[] bias, Tensor images, "
      "Tensor alphas, str padding_mode, int[] need_hidden, int[] need_weight, int[] need_bias, bool need_images, "
      "bool need_alphas) -> Tensor[]");
  m.def("predict_and_fuse_level(Tensor hidden, Tensor kernels, Tensor padded) -> Tensor");
  m.def(
      "predict_and_fuse_level_backward(Tensor grad, Tensor hidden, Tensor kernels, Tensor padded, bool need_hidden, "
      "bool need_kernels) -> (Tensor, Tensor)");
  m.def("ffmef_forward(Tensor luminance, Tensor[] parameters, int channels, int[] kernel_sizes) -> Tensor");
  m.def("thin_convolution(Tensor input, Tensor weight, Tensor? bias, float slope) -> Tensor");
  m.def(
      "thin_convolution_backward(Tensor grad, Tensor input, Tensor weight, Tensor? out, float slope, bool need_input, "
      "bool need_weight) -> (Tensor, Tensor, Tensor)");
  m.def("norm_activation(Tensor input, Tensor weight, Tensor bias, float slope, float eps) -> (Tensor, Tensor)");
  m.def(
      "norm_activation_backward(Tensor grad, Tensor input, Tensor weight, Tensor bias, Tensor statistics, float slope) "
      "-> (Tensor, Tensor)");
  m.def("pyramid_fuse(Tensor images, Tensor weights, Tensor base, int scale) -> Tensor");
  m.def(
      "pyramid_fuse_backward(Tensor grad, Tensor images, Tensor weights, Tensor base, int scale, "
      "bool need_images, bool need_weights, bool need_base) -> Tensor[]");
  m.def(
      "pyramid_exposures(Tensor[] pictures, Tensor[] validity, Tensor[] parameters, int[] channels, int stem, "
      "int octaves, float[] adjust) -> Tensor");
  m.def("pyramid_luminance(Tensor luminance, Tensor[] parameters, int[] channels, int stem, int octaves) -> Tensor");
  m.def(
      "phase_congruency(Tensor levels, Tensor tables, Tensor decay, float angular_deviation, Tensor noise_gains, "
      "bool always_double) -> Tensor");
  m.def("spectral_filter(Tensor planes, Tensor response) -> Tensor");
  m.def("window_moments(Tensor maps, Tensor taps, int[] first, int[] second) -> Tensor");
}
