// The network's parameters in the layouts that the kernels read.
#pragma once
#include <vector>

#include "ffmef_forward.h"

namespace ffmef {

struct Network {
  Convolution stem;
  ResidualWeights encode_1, encode_2, bottom, decode_2, decode_1, merge_2, merge_1;
  StepWeights down_1, down_2, up_2, up_1;
  PointMixWeights skip_1, skip_2, skip_3, skip_4, skip_5, skip_6;
  std::vector<HeadWeights> heads;

  // Reads `parameters` in the order of the Python model's `parameters()`.
  Network(const float* parameters, int channels, const std::vector<int64_t>& kernel_sizes);
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;

  static int64_t parameter_count(int channels, const std::vector<int64_t>& kernel_sizes);

 private:
  std::vector<std::vector<float>> storage_;
  friend struct NetworkReader;
};

// The norm of `channels` channels from the moments of all items, merged in order.
Norm norm_of(const Affine& affine, const Moments* moments, int64_t items, int channels);

}  // namespace ffmef
