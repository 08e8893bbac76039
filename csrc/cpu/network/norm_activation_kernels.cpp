// Instance norm and activation in as few passes over a plane as its statistics allow: three forwards, two backwards.
#include "norm_activation.h"

#include <cmath>

#include "../base/vec.h"

namespace ffmef {
namespace FFMEF_ISA {
namespace {

constexpr int kLanes = lanes<float>;
constexpr int64_t kPart = 256 * kLanes;  // values that are summed in float32 before the sum goes on in float64

inline FloatVec activated(FloatVec x, float slope) { return x > 0.0f ? x : x * slope; }

// Calls work(x, count) for every vector of [begin, end); the last may have fewer pixels than lanes.
template <class Work>
inline __attribute__((always_inline)) void over_vectors(int64_t begin, int64_t end, const Work& work) {
  int64_t x = begin;
  for (; x + kLanes <= end; x += kLanes) work(x, int64_t(kLanes));
  if (x < end) work(x, end - x);
}

inline FloatVec load_upto(const float* p, int64_t count) { return count < kLanes ? load_part(p, count) : load(p); }
inline void store_upto(float* p, FloatVec v, int64_t count) {
  count < kLanes ? store_part<float>(p, v, count) : store(p, v);
}

// Two sums over a plane: term(x, count, a, b) adds to both.
template <class Term>
inline __attribute__((always_inline)) void sum_plane(int64_t pixels, double& first, double& second, const Term& term) {
  first = second = 0;
  for (int64_t begin = 0; begin < pixels; begin += kPart) {
    const int64_t end = pixels - begin < kPart ? pixels : begin + kPart;
    FloatVec a{}, b{};
    over_vectors(begin, end, [&](int64_t x, int64_t count) __attribute__((always_inline)) { term(x, count, a, b); });
    first += sum_lanes(a);
    second += sum_lanes(b);
  }
}

// Keeps lanes below `count` and zeroes the rest.
inline FloatVec within(FloatVec v, int64_t count) {
  if (count >= kLanes) return v;
  IntVec index;
  for (int i = 0; i < kLanes; ++i) index[i] = i;
  return (FloatVec)((IntVec)v & (index < int32_t(count)));
}

void forward(const NormActivationArgs& a, float eps, float* out, float* statistics, int64_t begin, int64_t end) {
  for (int64_t p = begin; p < end; ++p) {
    const float* from = a.input + p * a.pixels;
    float* to = out + p * a.pixels;
    const int64_t b = p / a.channels, c = p % a.channels;
    float scale = 1, shift = 0;
    if (c < a.normed) {
      double sum, none, squares;
      sum_plane(a.pixels, sum, none,
                [&](int64_t x, int64_t count, FloatVec& total, FloatVec&)
                    __attribute__((always_inline)) { total += load_upto(from + x, count); });
      const float mean = float(sum / double(a.pixels));
      sum_plane(a.pixels, sum, squares,
                [&](int64_t x, int64_t count, FloatVec& rest, FloatVec& total) __attribute__((always_inline)) {
                  const FloatVec d = within(load_upto(from + x, count) - mean, count);
                  rest += d;
                  total += d * d;
                });
      // Corrects the rounding error that the float32 mean left.
      const double rest = sum / double(a.pixels), variance = squares / double(a.pixels) - rest * rest;
      const double inverse = 1 / std::sqrt(variance + double(eps));
      statistics[(b * a.normed + c) * 2] = float(mean + rest);
      statistics[(b * a.normed + c) * 2 + 1] = float(inverse);
      scale = float(a.weight[c] * inverse);
      shift = float(a.bias[c] - (mean + rest) * a.weight[c] * inverse);
    }
    over_vectors(0, a.pixels, [&](int64_t x, int64_t count) __attribute__((always_inline)) {
      store_upto(to + x, activated(load_upto(from + x, count) * scale + shift, a.slope), count);
    });
  }
}

void backward(const NormActivationArgs& a, const float* grad, const float* statistics, float* input_grad,
              float* affine_grad, int64_t begin, int64_t end) {
  for (int64_t p = begin; p < end; ++p) {
    const float *from = a.input + p * a.pixels, *slopes = grad + p * a.pixels;
    float* to = input_grad + p * a.pixels;
    const int64_t b = p / a.channels, c = p % a.channels;
    if (c >= a.normed) {
      over_vectors(0, a.pixels, [&](int64_t x, int64_t count) __attribute__((always_inline)) {
        const FloatVec g = load_upto(slopes + x, count);
        store_upto(to + x, load_upto(from + x, count) > 0.0f ? g : g * a.slope, count);
      });
      continue;
    }
    const int64_t at = (b * a.normed + c) * 2;
    const float mean = statistics[at], inverse = statistics[at + 1], weight = a.weight[c], bias = a.bias[c];
    // grad before the activation, zero beyond `count`
    auto inner = [&](FloatVec normalised, int64_t x, int64_t count) __attribute__((always_inline)) {
      const FloatVec g = load_upto(slopes + x, count);
      return normalised * weight + bias > 0.0f ? g : g * a.slope;
    };
    double sum, product;
    sum_plane(a.pixels, sum, product,
              [&](int64_t x, int64_t count, FloatVec& s, FloatVec& t) __attribute__((always_inline)) {
                const FloatVec normalised = (load_upto(from + x, count) - mean) * inverse;
                const FloatVec g = inner(normalised, x, count);
                s += g;
                t += g * normalised;
              });
    affine_grad[at] = float(product);
    affine_grad[at + 1] = float(sum);
    const float scale = weight * inverse, offset = float(sum / double(a.pixels)),
                tilt = float(product / double(a.pixels));
    over_vectors(0, a.pixels, [&](int64_t x, int64_t count) __attribute__((always_inline)) {
      const FloatVec normalised = (load_upto(from + x, count) - mean) * inverse;
      store_upto(to + x, (inner(normalised, x, count) - offset - normalised * tilt) * scale, count);
    });
  }
}

}  // namespace

extern const NormActivationKernels norm_activation_kernels;
const NormActivationKernels norm_activation_kernels = {.forward = forward, .backward = backward};

}  // namespace FFMEF_ISA
}  // namespace ffmef
