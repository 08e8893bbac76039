// Direct convolution of few channels: pixels in the vector's lanes, a block of outputs in registers, no im2col matrix.
#include "thin_convolution.h"

#include <cstring>

#include "../base/blocks.h"
#include "../base/vec.h"

namespace ffmef {
namespace FFMEF_ISA {
namespace {

constexpr int kLanes = lanes<float>;
constexpr int kAhead = 4;  // vectors processed together along a row

// Planes with a border of zeros, one whole vector wide at the sides. Rows begin at vector boundaries, so each load of a
// row or of the middle taps touches one cache line, and no load is cut short at the end.
struct Padded {
  int64_t left, stride, plane;
  Padded(int64_t height, int64_t width, int border)
      : left(border > 0 ? kLanes : 0), stride(left + round_up(width) + left), plane((height + 2 * border) * stride) {}
};

// The activation's slope follows from its result, which is positive where the argument was.
inline FloatVec activated(FloatVec x, float slope) { return x > 0.0f ? x : x * slope; }
void slope_row(float* to, const float* grad, const float* out, float slope, int64_t width) {
  int64_t x = 0;
  for (; x + kLanes <= width; x += kLanes) {
    const FloatVec g = load(grad + x);
    store(to + x, load(out + x) > 0.0f ? g : g * slope);
  }
  for (; x < width; ++x) to[x] = out[x] > 0 ? grad[x] : grad[x] * slope;
}

// Copies planes into a border of zeros, multiplied by the activation's slope if `out` is given.
void pad(const float* from, const float* out, float slope, float* to, int64_t planes, int64_t height, int64_t width,
         int border, const Padded& size) {
  for (int64_t c = 0; c < planes; ++c, to += size.plane) {
    const size_t rows = sizeof(float) * size_t(border * size.stride);
    std::memset(to, 0, rows);
    std::memset(to + (height + border) * size.stride, 0, rows);
    for (int64_t y = 0; y < height; ++y) {
      float* row = to + (y + border) * size.stride;
      const int64_t at = (c * height + y) * width;
      std::memset(row, 0, sizeof(float) * size_t(size.left));
      row += size.left;
      if (out == nullptr)
        std::memcpy(row, from + at, sizeof(float) * size_t(width));
      else
        slope_row(row, from + at, out + at, slope, width);
      std::memset(row + width, 0, sizeof(float) * size_t(size.stride - size.left - width));
    }
  }
}

int64_t scratch(const ThinConvolutionArgs& a) {
  return (a.inputs + a.outputs) * Padded(a.height, a.width, a.size / 2).plane;
}

// OUT outputs at V vectors of one row. A single vector may cover only `count` pixels.
template <int OUT, int V> void tile(const float* rows, const Padded& size, int64_t inputs, int k, const float* weight,
                                    const float* bias, float slope, float* out, int64_t out_plane, int64_t count) {
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
  if (slope != 1)
    for (int o = 0; o < OUT; ++o)
      for (int v = 0; v < V; ++v) sums[o][v] = activated(sums[o][v], slope);
  for (int o = 0; o < OUT; ++o) {
    if (count < kLanes) {
      store_part<float>(out + o * out_plane, sums[o][0], count);
      continue;
    }
    for (int v = 0; v < V; ++v) store(out + o * out_plane + v * kLanes, sums[o][v]);
  }
}

// One batch element: `inputs` padded planes to `outputs` planes.
void convolve(const float* padded, const Padded& size, int64_t inputs, int64_t outputs, int64_t height, int64_t width,
              int k, const float* weight, const float* bias, float slope, float* out) {
  const int64_t plane = height * width, taps = inputs * k * k;
  in_blocks(outputs, [&]<int OUT>(int64_t o) {
    const float *weights = weight + o * taps, *biases = bias ? bias + o : nullptr;
    for (int64_t y = 0; y < height; ++y) {
      const float* rows = padded + y * size.stride + size.left - k / 2;
      float* target = out + o * plane + y * width;
      int64_t x = 0;
      for (; x + kAhead * kLanes <= width; x += kAhead * kLanes)
        tile<OUT, kAhead>(rows + x, size, inputs, k, weights, biases, slope, target + x, plane, kLanes);
      for (; x < width; x += kLanes)
        tile<OUT, 1>(rows + x, size, inputs, k, weights, biases, slope, target + x, plane, width - x);
    }
  });
}

// A 1x1 convolution does not depend on rows, so a picture becomes one long row if that ends on a whole vector.
ThinConvolutionArgs without_rows(ThinConvolutionArgs a) {
  if (a.size != 1 || a.height * a.width % kLanes != 0) return a;
  a.width *= a.height;
  a.height = 1;
  return a;
}

// Planes as `convolve` reads them: within a border of zeros, or as they are if that is enough.
struct Planes {
  const float* data;
  Padded size;
};

Planes planes_of(const ThinConvolutionArgs& a, const float* from, const float* out, int64_t count, float* scratch) {
  const int border = a.size / 2;
  Padded size(a.height, a.width, border);
  if (a.size == 1 && a.height == 1 && a.width % kLanes == 0 && out == nullptr) {
    size.stride = size.plane = a.width;
    return {from, size};
  }
  pad(from, out, a.slope, scratch, count, a.height, a.width, border, size);
  return {scratch, size};
}

void forward(const ThinConvolutionArgs& args, const float* input, const float* weight, const float* bias, float* out,
             float* scratch, int64_t begin, int64_t end) {
  const ThinConvolutionArgs a = without_rows(args);
  const int64_t plane = a.height * a.width;
  for (int64_t b = begin; b < end; ++b) {
    const Planes from = planes_of(a, input + b * a.inputs * plane, nullptr, a.inputs, scratch);
    convolve(from.data, from.size, a.inputs, a.outputs, a.height, a.width, a.size, weight, bias, a.slope,
             out + b * a.outputs * plane);
  }
}

// sums[o][dy][dx] += grad_o . input shifted, for OUT outputs and one input.
template <int OUT, int K> void correlate(const ThinConvolutionArgs& a, const float* padded, const Padded& size,
                                         const float* grad, const Padded& grad_size, float* sums) {
  for (int dy = 0; dy < K; ++dy) {
    FloatVec totals[OUT][K] = {};
    for (int64_t y = 0; y < a.height; ++y) {
      const float* row = padded + (y + dy) * size.stride + size.left - K / 2;
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
void weight_grad_of(const ThinConvolutionArgs& a, const Planes& input, const Planes& grad, float* sums) {
  in_blocks(a.outputs, [&]<int OUT>(int64_t o) {
    for (int64_t i = 0; i < a.inputs; ++i)
      correlate<OUT, K>(a, input.data + i * input.size.plane, input.size, grad.data + o * grad.size.plane, grad.size,
                        sums + (o * a.inputs + i) * K * K);
  });
}

// The same for k = 1. A single tap would use each loaded slope only once, so blocks of inputs share them.
void point_weight_grad(const ThinConvolutionArgs& a, const Planes& input, const Planes& grad, float* sums) {
  in_blocks(a.outputs, [&]<int OUT>(int64_t o) {
    in_blocks(a.inputs, [&]<int IN>(int64_t i) {
      FloatVec totals[OUT][IN] = {};
      for (int64_t y = 0; y < a.height; ++y)
        for (int64_t x = 0; x < a.width; x += kLanes) {
          FloatVec slopes[OUT];
          for (int u = 0; u < OUT; ++u)
            slopes[u] = load(grad.data + (o + u) * grad.size.plane + y * grad.size.stride + x);
          for (int v = 0; v < IN; ++v) {
            const FloatVec pixels = load(input.data + (i + v) * input.size.plane + y * input.size.stride + x);
            for (int u = 0; u < OUT; ++u) totals[u][v] += slopes[u] * pixels;
          }
        }
      for (int u = 0; u < OUT; ++u)
        for (int v = 0; v < IN; ++v) sums[(o + u) * a.inputs + i + v] = float(sum_lanes(totals[u][v]));
    });
  });
}

// Sums whole planes: runs of vectors in float32, then in float64.
void bias_grad_of(const ThinConvolutionArgs& a, const Planes& grad, float* sums) {
  for (int64_t o = 0; o < a.outputs; ++o) {
    double total = 0;
    for (int64_t y = 0; y < a.height; ++y) {
      const float* row = grad.data + o * grad.size.plane + y * grad.size.stride;
      for (int64_t x = 0; x < a.width;) {
        FloatVec part{};
        for (const int64_t end = x + 256 * kLanes; x < a.width && x < end; x += kLanes) part += load(row + x);
        total += sum_lanes(part);
      }
    }
    sums[o] = float(total);
  }
}

void backward(const ThinConvolutionArgs& args, const float* grad, const float* input, const float* turned,
              const float* out, float* input_grad, float* weight_grad, float* bias_grad, float* scratch, int64_t begin,
              int64_t end) {
  const ThinConvolutionArgs a = without_rows(args);
  const int64_t plane = a.height * a.width;
  for (int64_t b = begin; b < end; ++b) {
    const int64_t at = b * a.outputs * plane;
    Planes slopes = planes_of(a, grad + at, out == nullptr ? nullptr : out + at, a.outputs, scratch);
    if (input_grad != nullptr)
      convolve(slopes.data, slopes.size, a.outputs, a.inputs, a.height, a.width, a.size, turned, nullptr, 1,
               input_grad + b * a.inputs * plane);
    if (weight_grad == nullptr) continue;
    const Planes pixels =
        planes_of(a, input + b * a.inputs * plane, nullptr, a.inputs, scratch + a.outputs * slopes.size.plane);
    slopes.data +=
        a.size / 2 * slopes.size.stride + slopes.size.left;  // inside their border, where zeros follow each row too
    bias_grad_of(a, slopes, bias_grad + b * a.outputs);
    float* target = weight_grad + b * a.outputs * a.inputs * a.size * a.size;
    switch (a.size) {
      case 1: point_weight_grad(a, pixels, slopes, target); break;
      case 3: weight_grad_of<3>(a, pixels, slopes, target); break;
      case 5: weight_grad_of<5>(a, pixels, slopes, target); break;
      default: weight_grad_of<7>(a, pixels, slopes, target); break;
    }
  }
}

}  // namespace

extern const ThinConvolutionKernels thin_convolution_kernels;
const ThinConvolutionKernels thin_convolution_kernels = {.scratch = scratch, .forward = forward, .backward = backward};

}  // namespace FFMEF_ISA
}  // namespace ffmef
