// Prediction and fusion without filters: each hidden map times its response to the image. Responses stay in registers.
#include "predict_and_fuse.h"

#include <cstring>

#include "../base/blocks.h"
#include "../base/vec.h"

namespace ffmef {
namespace FFMEF_ISA {
namespace {

constexpr int kLanes = lanes<float>;
constexpr int kAhead = 4;  // vectors processed together along a row

// A band of one padded image. Rows are whole vectors apart, so no load is cut short and zeros follow each row.
struct Band {
  const float* rows;
  int64_t stride;
};

int64_t band_stride(const PredictAndFuseArgs& a) { return round_up(a.width + a.size - 1) + kLanes; }
int64_t band_floats(const PredictAndFuseArgs& a) { return (a.kBandRows + a.size - 1) * band_stride(a); }

// Rows whose products with grad are kept for the kernels' gradient: few enough for the first-level cache.
int64_t rows_at_a_time(const PredictAndFuseArgs& a) {
  const int64_t rows = 1024 / (a.width + 1);
  return rows < 1 ? 1 : rows > 8 ? 8 : rows;
}

int64_t scratch(const PredictAndFuseArgs& a) {
  const int64_t received = 5 * rows_at_a_time(a) * round_up(a.width);
  const int64_t totals = (a.maps + 1) * a.size * a.size * kLanes;
  return band_floats(a) + received + totals;
}

Band band_of(const PredictAndFuseArgs& a, int64_t image, int64_t top, int64_t rows, float* scratch) {
  const int64_t stride = band_stride(a), width = a.width + a.size - 1, height = a.height + a.size - 1;
  const float* from = a.padded + (image * height + top) * width;
  for (int64_t y = 0; y < rows + a.size - 1; ++y) {
    std::memcpy(scratch + y * stride, from + y * width, size_t(width) * sizeof(float));
    std::memset(scratch + y * stride + width, 0, size_t(stride - width) * sizeof(float));
  }
  return {scratch, stride};
}

template <int OUT, int V> struct Responses {
  FloatVec at[OUT][V];
};

// The responses of OUT kernels at V vectors. `rows` points at the pixel under the first tap.
template <int K, int OUT, int V>
inline __attribute__((always_inline)) Responses<OUT, V> responses(const float* rows, int64_t stride,
                                                                  const float* kernels) {
  Responses<OUT, V> sums;
#pragma GCC unroll 8
  for (int o = 0; o < OUT; ++o)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sums.at[o][v] = FloatVec{};
  for (int dy = 0; dy < K; ++dy)
#pragma GCC unroll 8
    for (int dx = 0; dx < K; ++dx) {
      FloatVec pixels[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) pixels[v] = load(rows + dy * stride + dx + v * kLanes);
#pragma GCC unroll 8
      for (int o = 0; o < OUT; ++o) {
        const FloatVec w = splat(kernels[o * K * K + dy * K + dx]);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sums.at[o][v] += w * pixels[v];
      }
    }
  return sums;
}

inline FloatVec load_upto(const float* p, int64_t count) { return count < kLanes ? load_part(p, count) : load(p); }
inline void store_upto(float* p, FloatVec v, int64_t count) {
  count < kLanes ? store_part<float>(p, v, count) : store(p, v);
}

// Calls work.template operator()<V>(x, count) along a row. The last vector holds `count` pixels; all others are full.
template <class Work> inline __attribute__((always_inline)) void along(int64_t width, const Work& work) {
  int64_t x = 0;
  for (; x + kAhead * kLanes <= width; x += kAhead * kLanes) work.template operator()<kAhead>(x, kLanes);
  for (; x < width; x += kLanes) work.template operator()<1>(x, width - x);
}

template <int K>
void forward_band(const PredictAndFuseArgs& a, int64_t b, int64_t top, int64_t rows, float* out, float* scratch) {
  const int64_t plane = a.height * a.width;
  for (int64_t n = 0; n < a.images; ++n) {
    const int64_t image = b * a.images + n;
    const Band band = band_of(a, image, top, rows, scratch);
    for (int64_t y = 0; y < rows; ++y) {
      const float* pixels = band.rows + y * band.stride;
      const float* hidden = a.hidden + image * a.maps * plane + (top + y) * a.width;
      float* row = out + b * plane + (top + y) * a.width;
      along(a.width, [&]<int V>(int64_t x, int64_t count) __attribute__((always_inline)) {
        Responses<1, V> total = responses<K, 1, V>(pixels + x, band.stride, a.kernels + a.maps * K * K);
        in_blocks(a.maps, [&]<int OUT>(int64_t o) __attribute__((always_inline)) {
          const Responses<OUT, V> r = responses<K, OUT, V>(pixels + x, band.stride, a.kernels + o * K * K);
#pragma GCC unroll 8
          for (int u = 0; u < OUT; ++u)
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v)
              total.at[0][v] += load_upto(hidden + (o + u) * plane + x + v * kLanes, count) * r.at[u][v];
        });
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) {
          float* at = row + x + v * kLanes;
          store_upto(at, n == 0 ? total.at[0][v] : load_upto(at, count) + total.at[0][v], count);
        }
      });
    }
  }
}

// For OUT maps and some rows: hidden_grad = grad * response, and received = grad * hidden for the kernels' gradient.
template <int K, int OUT> void backward_rows(const PredictAndFuseArgs& a, const Band& band, int64_t y, int64_t rows,
                                             const float* grad, const float* hidden, const float* kernels,
                                             float* hidden_grad, float* received) {
  const int64_t plane = a.height * a.width, pitch = round_up(a.width);
  for (int64_t r = 0; r < rows; ++r) {
    const float* pixels = band.rows + (y + r) * band.stride;
    along(a.width, [&]<int V>(int64_t x, int64_t count) __attribute__((always_inline)) {
      const int64_t at = r * a.width + x;
      FloatVec slopes[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) slopes[v] = load_upto(grad + at + v * kLanes, count);
      if (hidden_grad != nullptr) {
        const Responses<OUT, V> response = responses<K, OUT, V>(pixels + x, band.stride, kernels);
#pragma GCC unroll 8
        for (int o = 0; o < OUT; ++o)
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v)
            store_upto(hidden_grad + o * plane + at + v * kLanes, slopes[v] * response.at[o][v], count);
      }
      if (received != nullptr)
#pragma GCC unroll 8
        for (int o = 0; o < OUT; ++o)
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) {
            const FloatVec s =
                hidden == nullptr ? slopes[v] : slopes[v] * load_upto(hidden + o * plane + at + v * kLanes, count);
            store(received + (o * rows + r) * pitch + x + v * kLanes, s);
          }
    });
  }
}

// totals[o][tap] += received_o . image under the tap, lane by lane.
template <int K, int OUT>
void correlate(const Band& band, int64_t y, int64_t rows, int64_t pitch, const float* received, float* totals) {
  for (int dy = 0; dy < K; ++dy) {
    FloatVec sums[OUT][K];
#pragma GCC unroll 8
    for (int o = 0; o < OUT; ++o)
#pragma GCC unroll 8
      for (int dx = 0; dx < K; ++dx) sums[o][dx] = load(totals + ((o * K + dy) * K + dx) * kLanes);
    for (int64_t r = 0; r < rows; ++r) {
      const float* row = band.rows + (y + r + dy) * band.stride;
      for (int64_t x = 0; x < pitch; x += kLanes) {
        FloatVec slopes[OUT];
#pragma GCC unroll 8
        for (int o = 0; o < OUT; ++o) slopes[o] = load(received + (o * rows + r) * pitch + x);
#pragma GCC unroll 8
        for (int dx = 0; dx < K; ++dx) {
          const FloatVec pixels = load(row + x + dx);
#pragma GCC unroll 8
          for (int o = 0; o < OUT; ++o) sums[o][dx] += slopes[o] * pixels;
        }
      }
    }
#pragma GCC unroll 8
    for (int o = 0; o < OUT; ++o)
#pragma GCC unroll 8
      for (int dx = 0; dx < K; ++dx) store(totals + ((o * K + dy) * K + dx) * kLanes, sums[o][dx]);
  }
}

template <int K> void backward_band(const PredictAndFuseArgs& a, int64_t b, int64_t top, int64_t rows,
                                    const float* grad, float* hidden_grad, float* kernel_grad, float* scratch) {
  const int64_t plane = a.height * a.width, pitch = round_up(a.width), most = rows_at_a_time(a);
  float* received = kernel_grad == nullptr ? nullptr : scratch + band_floats(a);
  float* totals = scratch + band_floats(a) + 5 * most * pitch;
  std::memset(totals, 0, size_t((a.maps + 1) * K * K * kLanes) * sizeof(float));
  for (int64_t n = 0; n < a.images; ++n) {
    const int64_t image = b * a.images + n;
    const Band band = band_of(a, image, top, rows, scratch);
    for (int64_t y = 0; y < rows; y += most) {
      const int64_t count = rows - y < most ? rows - y : most, at = (top + y) * a.width;
      auto block = [&]<int OUT>(int64_t o, const float* hidden, float* slopes) {
        backward_rows<K, OUT>(a, band, y, count, grad + b * plane + at, hidden, a.kernels + o * K * K, slopes,
                              received);
        if (received != nullptr) correlate<K, OUT>(band, y, count, pitch, received, totals + o * K * K * kLanes);
      };
      in_blocks(a.maps, [&]<int OUT>(int64_t o) {
        const int64_t first = (image * a.maps + o) * plane + at;
        block.template operator()<OUT>(o, a.hidden + first, hidden_grad == nullptr ? nullptr : hidden_grad + first);
      });
      if (received != nullptr) block.template operator()<1>(a.maps, nullptr, nullptr);
    }
  }
  if (kernel_grad == nullptr) return;
  for (int64_t t = 0; t < (a.maps + 1) * K * K; ++t) kernel_grad[t] = float(sum_lanes(load(totals + t * kLanes)));
}

template <class Work> void over_bands(const PredictAndFuseArgs& a, int64_t begin, int64_t end, const Work& work) {
  for (int64_t item = begin; item < end; ++item) {
    const int64_t top = item % a.bands() * a.kBandRows;
    const int64_t rows = a.height - top < a.kBandRows ? a.height - top : a.kBandRows;
    switch (a.size) {
      case 1: work.template operator()<1>(item, top, rows); break;
      case 3: work.template operator()<3>(item, top, rows); break;
      case 5: work.template operator()<5>(item, top, rows); break;
      default: work.template operator()<7>(item, top, rows); break;
    }
  }
}

void forward(const PredictAndFuseArgs& a, float* out, float* scratch, int64_t begin, int64_t end) {
  over_bands(a, begin, end, [&]<int K>(int64_t item, int64_t top, int64_t rows) {
    forward_band<K>(a, item / a.bands(), top, rows, out, scratch);
  });
}

void backward(const PredictAndFuseArgs& a, const float* grad, float* hidden_grad, float* kernel_grad, float* scratch,
              int64_t begin, int64_t end) {
  const int64_t kernels = (a.maps + 1) * a.size * a.size;
  over_bands(a, begin, end, [&]<int K>(int64_t item, int64_t top, int64_t rows) {
    backward_band<K>(a, item / a.bands(), top, rows, grad, hidden_grad,
                     kernel_grad == nullptr ? nullptr : kernel_grad + item * kernels, scratch);
  });
}

}  // namespace

extern const PredictAndFuseKernels predict_and_fuse_kernels;
const PredictAndFuseKernels predict_and_fuse_kernels = {.scratch = scratch, .forward = forward, .backward = backward};

}  // namespace FFMEF_ISA
}  // namespace ffmef
