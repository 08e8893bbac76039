// Direct convolution of few channels: pixels in the vector's lanes, a block of outputs in registers, no column matrix.
#include "thin_convolution.h"

#include <cstring>

#include "blocks.h"
#include "vec.h"

namespace ffmef {
namespace FFMEF_ISA {
namespace {

constexpr int kLanes = lanes<float>;
constexpr int kAhead = 4;  // vectors along a row

// Planes with a border of zeros; rows end on a whole vector, so that none is cut.
struct Padded {
  int64_t stride, plane;
  Padded(int64_t height, int64_t width, int border)
      : stride(round_up(width + 2 * border) + kLanes), plane((height + 2 * border) * stride) {}
};

void pad(const float* from, float* to, int64_t planes, int64_t height, int64_t width, int border, const Padded& size) {
  std::memset(to, 0, sizeof(float) * size_t(planes * size.plane));
  for (int64_t c = 0; c < planes; ++c)
    for (int64_t y = 0; y < height; ++y)
      std::memcpy(to + c * size.plane + (y + border) * size.stride + border, from + (c * height + y) * width,
                  sizeof(float) * size_t(width));
}

int64_t scratch(const ThinConvolutionArgs& a) {
  const int border = a.size / 2;
  return a.inputs * Padded(a.height, a.width, border).plane + a.outputs * Padded(a.height, a.width, 0).plane;
}

// OUT outputs at V vectors of one row, the first of which may reach `count` pixels only.
template <int OUT, int V>
void tile(const float* rows, const Padded& size, int64_t inputs, int k, const float* weight, const float* bias,
          float* out, int64_t out_plane, int64_t count) {
  FloatVec sums[OUT][V];
  for (int o = 0; o < OUT; ++o)
    for (int v = 0; v < V; ++v) sums[o][v] = splat(bias ? bias[o] : 0.0f);
  for (int64_t i = 0; i < inputs; ++i)
    for (int dy = 0; dy < k; ++dy) {
      const float* row = rows + i * size.plane + dy * size.stride;
      const float* taps = weight + (i * k + dy) * k;
      for (int dx = 0; dx < k; ++dx) {
        FloatVec pixels[V];
        for (int v = 0; v < V; ++v) pixels[v] = load(row + dx + v * kLanes);
        for (int o = 0; o < OUT; ++o) {
          const float w = taps[o * inputs * k * k + dx];
          for (int v = 0; v < V; ++v) sums[o][v] += w * pixels[v];
        }
      }
    }
  for (int o = 0; o < OUT; ++o) {
    if (count < kLanes) {
      store_part<float>(out + o * out_plane, sums[o][0], count);
      continue;
    }
    for (int v = 0; v < V; ++v) store(out + o * out_plane + v * kLanes, sums[o][v]);
  }
}

template <int OUT>
void block(const ThinConvolutionArgs& a, const float* padded, const Padded& size, const float* weight, const float* bias,
           float* out) {
  const int64_t plane = a.height * a.width;
  for (int64_t y = 0; y < a.height; ++y) {
    const float* rows = padded + y * size.stride;
    float* target = out + y * a.width;
    int64_t x = 0;
    for (; x + kAhead * kLanes <= a.width; x += kAhead * kLanes)
      tile<OUT, kAhead>(rows + x, size, a.inputs, a.size, weight, bias, target + x, plane, kLanes);
    for (; x < a.width; x += kLanes)
      tile<OUT, 1>(rows + x, size, a.inputs, a.size, weight, bias, target + x, plane, a.width - x);
  }
}

void forward(const ThinConvolutionArgs& a, const float* weight, const float* bias, float* out, float* scratch,
             int64_t begin, int64_t end) {
  const int border = a.size / 2;
  const Padded size(a.height, a.width, border);
  const int64_t plane = a.height * a.width, taps = a.inputs * a.size * a.size;
  for (int64_t b = begin; b < end; ++b) {
    pad(a.input + b * a.inputs * plane, scratch, a.inputs, a.height, a.width, border, size);
    float* target = out + b * a.outputs * plane;
    in_blocks(a.outputs, [&]<int OUT>(int64_t o) {
      block<OUT>(a, scratch, size, weight + o * taps, bias ? bias + o : nullptr, target + o * plane);
    });
  }
}

// sums[o][dy][dx] += grad_o . input shifted, for OUT outputs and one input.
template <int OUT, int K>
void correlate(const ThinConvolutionArgs& a, const float* padded, const Padded& size, const float* grad,
               const Padded& grad_size, float* sums) {
  for (int dy = 0; dy < K; ++dy) {
    FloatVec totals[OUT][K] = {};
    for (int64_t y = 0; y < a.height; ++y) {
      const float* row = padded + (y + dy) * size.stride;
      const float* slope = grad + y * grad_size.stride;
      for (int64_t x = 0; x < a.width; x += kLanes) {
        FloatVec slopes[OUT];
        for (int o = 0; o < OUT; ++o) slopes[o] = load(slope + o * grad_size.plane + x);
        for (int dx = 0; dx < K; ++dx) {
          const FloatVec pixels = load(row + x + dx);
          for (int o = 0; o < OUT; ++o) totals[o][dx] += slopes[o] * pixels;
        }
      }
    }
    for (int o = 0; o < OUT; ++o)
      for (int dx = 0; dx < K; ++dx) sums[o * a.inputs * K * K + dy * K + dx] = float(sum_lanes(totals[o][dx]));
  }
}

template <int K>
void weight_grad_of(const ThinConvolutionArgs& a, const float* padded, const Padded& size, const float* grad,
                    const Padded& grad_size, float* sums) {
  in_blocks(a.outputs, [&]<int OUT>(int64_t o) {
    for (int64_t i = 0; i < a.inputs; ++i)
      correlate<OUT, K>(a, padded + i * size.plane, size, grad + o * grad_size.plane, grad_size,
                        sums + (o * a.inputs + i) * K * K);
  });
}

// The same for k = 1, where a single tap would use each loaded slope once: blocks of inputs share them instead.
void point_weight_grad(const ThinConvolutionArgs& a, const float* input, const float* grad, const Padded& size,
                       float* sums) {
  in_blocks(a.outputs, [&]<int OUT>(int64_t o) {
    in_blocks(a.inputs, [&]<int IN>(int64_t i) {
      FloatVec totals[OUT][IN] = {};
      for (int64_t at = 0; at < a.height * size.stride; at += kLanes) {
        FloatVec slopes[OUT];
        for (int u = 0; u < OUT; ++u) slopes[u] = load(grad + (o + u) * size.plane + at);
        for (int v = 0; v < IN; ++v) {
          const FloatVec pixels = load(input + (i + v) * size.plane + at);
          for (int u = 0; u < OUT; ++u) totals[u][v] += slopes[u] * pixels;
        }
      }
      for (int u = 0; u < OUT; ++u)
        for (int v = 0; v < IN; ++v) sums[(o + u) * a.inputs + i + v] = float(sum_lanes(totals[u][v]));
    });
  });
}

void weight_grad(const ThinConvolutionArgs& a, const float* grad, float* sums, float* scratch, int64_t begin,
                 int64_t end) {
  const int border = a.size / 2;
  const Padded size(a.height, a.width, border), grad_size(a.height, a.width, 0);
  const int64_t plane = a.height * a.width;
  float* padded_grad = scratch + a.inputs * size.plane;
  for (int64_t b = begin; b < end; ++b) {
    pad(a.input + b * a.inputs * plane, scratch, a.inputs, a.height, a.width, border, size);
    pad(grad + b * a.outputs * plane, padded_grad, a.outputs, a.height, a.width, 0, grad_size);
    float* target = sums + b * a.outputs * a.inputs * a.size * a.size;
    switch (a.size) {
      case 1: point_weight_grad(a, scratch, padded_grad, size, target); break;
      case 3: weight_grad_of<3>(a, scratch, size, padded_grad, grad_size, target); break;
      case 5: weight_grad_of<5>(a, scratch, size, padded_grad, grad_size, target); break;
      default: weight_grad_of<7>(a, scratch, size, padded_grad, grad_size, target); break;
    }
  }
}

}  // namespace

extern const ThinConvolutionKernels thin_convolution_kernels;
const ThinConvolutionKernels thin_convolution_kernels = {scratch, forward, weight_grad};

}  // namespace FFMEF_ISA
}  // namespace ffmef
