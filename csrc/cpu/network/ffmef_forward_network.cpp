// Unpacks the flat parameters into the kernels' layouts, and turns moments into norms.
#include "ffmef_forward_network.h"

#include <cmath>

namespace ffmef {

// Walks along the parameters. Everything it hands out stays alive in the network.
struct NetworkReader {
  Network& network;
  const float* at;
  int c;

  const float* keep(std::vector<float> values) {
    network.storage_.push_back(std::move(values));
    return network.storage_.back().data();
  }
  float scalar() { return *at++; }
  const float* plain(int n) {
    const float* from = at;
    at += n;
    return keep(std::vector<float>(from, from + n));
  }

  // torch's [output][input][taps] -> [block][input][taps][output of the block]
  const float* pack(const float* weights, int outputs, int inputs, int taps) {
    const int block = output_block(outputs);
    std::vector<float> packed(size_t(outputs) * inputs * taps);
    for (int o = 0; o < outputs; ++o)
      for (int i = 0; i < inputs; ++i)
        for (int t = 0; t < taps; ++t)
          packed[size_t(((o / block * inputs + i) * taps + t) * block + o % block)] =
              weights[(o * inputs + i) * taps + t];
    return keep(std::move(packed));
  }
  Convolution convolution(int outputs, int inputs, int size) {
    const float* weights = at;
    at += outputs * inputs * size * size;
    const float* packed = pack(weights, outputs, inputs, size * size);
    return {packed, plain(outputs)};
  }
  // torch's [input][output][taps] of a transposed convolution, as the equivalent convolution at stride 1
  Convolution transposed(int channels, int size) {
    const int taps = size * size;
    std::vector<float> turned(size_t(channels) * channels * taps);
    for (int i = 0; i < channels; ++i)
      for (int o = 0; o < channels; ++o)
        for (int t = 0; t < taps; ++t) turned[size_t((o * channels + i) * taps + taps - 1 - t)] = *at++;
    const float* packed = pack(turned.data(), channels, channels, taps);
    return {packed, plain(channels)};
  }
  Affine affine(int n) {
    const float* gamma = plain(n);
    return {gamma, plain(n)};
  }
  ResidualWeights residual(int inputs) {
    ResidualWeights r{};
    r.identity = convolution(c, inputs, 1);
    r.conv_1 = convolution(c, inputs, 3);
    r.norm = affine(c / 2);
    r.conv_2 = convolution(c, c, 3);
    return r;
  }
  ResidualWeights merge() {
    const float gain_body = scalar(), gain_skip = scalar();
    ResidualWeights r = residual(2 * c);
    r.gain_body = gain_body;
    r.gain_skip = gain_skip;
    return r;
  }
  StepWeights step(bool up) {
    const Convolution conv = up ? transposed(c, 3) : convolution(c, c, 3);
    return {conv, affine(c)};
  }
  PointMixWeights point_mix() {
    PointMixWeights p{};
    p.gain_body = scalar();
    p.gain_skip = scalar();
    p.conv = convolution(c, 2 * c, 1);
    p.norm = affine(c);
    return p;
  }
  // identity(stem(luminance)) as one 1x1 convolution of luminance
  Convolution identity_of_stem(const float* stem_weights, const float* stem_bias, const float* weights,
                               const float* bias) {
    std::vector<float> composed(c), composed_bias(c);
    for (int o = 0; o < c; ++o) {
      double w = 0, b = bias[o];
      for (int i = 0; i < c; ++i) {
        w += double(weights[o * c + i]) * stem_weights[i];
        b += double(weights[o * c + i]) * stem_bias[i];
      }
      composed[o] = float(w);
      composed_bias[o] = float(b);
    }
    const float* packed = pack(composed.data(), c, 1, 1);
    return {packed, keep(std::move(composed_bias))};
  }
};

Network::Network(const float* parameters, int c, const std::vector<int64_t>& kernel_sizes) {
  NetworkReader read{*this, parameters, c};
  const float* stem_weights = parameters;
  stem = read.convolution(c, 1, 1);
  const float* identity_weights = read.at;
  encode_1 = read.residual(c);
  encode_1.identity = read.identity_of_stem(stem_weights, stem_weights + c, identity_weights, identity_weights + c * c);
  down_1 = read.step(false);
  skip_1 = read.point_mix();
  encode_2 = read.residual(c);
  down_2 = read.step(false);
  skip_2 = read.point_mix();
  skip_3 = read.point_mix();
  bottom = read.residual(c);
  up_2 = read.step(true);
  skip_4 = read.point_mix();
  decode_2 = read.residual(c);
  merge_2 = read.merge();
  up_1 = read.step(true);
  skip_5 = read.point_mix();
  decode_1 = read.residual(c);
  skip_6 = read.point_mix();
  merge_1 = read.merge();

  heads.resize(kernel_sizes.size());
  for (HeadWeights& head : heads) {
    head.squeeze = read.convolution(c, kImages * c, 1);
    head.excite = read.convolution(kImages, c, 1);
  }
  const float* alphas = parameters + parameter_count(c, kernel_sizes) - kernel_sizes.size();
  for (size_t l = 0; l < heads.size(); ++l) {
    const int size = int(kernel_sizes[l]), taps = size * size;
    heads[l].conv = read.convolution(c, c, 3);
    heads[l].expand = read.convolution(taps, c, size);
    // sum_j I_j alpha (sum_i W_ji h_i + b_j) = sum_i h_i (sum_j alpha W_ji I_j) + sum_j alpha b_j I_j
    const float *project = read.at, *bias = read.at + taps * taps;
    read.at += taps * taps + taps;
    std::vector<float> turned(size_t(taps) * taps), offset(taps);
    for (int j = 0; j < taps; ++j) {
      for (int i = 0; i < taps; ++i) turned[size_t(i) * taps + j] = alphas[l] * project[j * taps + i];
      offset[j] = alphas[l] * bias[j];
    }
    const float* packed = read.pack(turned.data(), taps, 1, taps);
    heads[l].responses = {packed, read.keep(std::vector<float>(taps, 0.0f))};
    packed = read.pack(offset.data(), 1, 1, taps);
    heads[l].offset = {packed, read.keep({0.0f})};
  }
}

int64_t Network::parameter_count(int c, const std::vector<int64_t>& kernel_sizes) {
  const int64_t norm = 2 * c, conv = 9 * c * c + c, residual = c * c + c + 2 * conv + c;
  const int64_t point_mix = 2 + 2 * c * c + c + norm, merge = 2 + residual + 10 * c * c;
  int64_t total = 2 * c + 5 * residual + 4 * (conv + norm) + 6 * point_mix + 2 * merge;
  for (int64_t size : kernel_sizes) {
    const int64_t taps = size * size;
    total += kImages * c * c + c + kImages * c + kImages;         // attention
    total += conv + taps * c * taps + taps + taps * taps + taps;  // head
  }
  return total + int64_t(kernel_sizes.size());  // alphas
}

Norm norm_of(const Affine& affine, const Moments* moments, int64_t items, int channels) {
  constexpr double kEps = 1e-5;
  Norm norm{};
  for (int c = 0; c < channels; ++c) {
    Moments all{0, 0, 0};
    for (int64_t i = 0; i < items; ++i) {
      const Moments& m = moments[i * kMaxChannels + c];
      const double count = all.count + m.count, delta = m.mean - all.mean;
      all.deviations += m.deviations + delta * delta * all.count * m.count / count;
      all.mean += delta * m.count / count;
      all.count = count;
    }
    const double scale = affine.gamma[c] / std::sqrt(all.deviations / all.count + kEps);
    norm.scale[c] = float(scale);
    norm.shift[c] = float(affine.beta[c] - all.mean * scale);
  }
  return norm;
}

}  // namespace ffmef
