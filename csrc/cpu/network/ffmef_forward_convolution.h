// Direct convolution of planar rows: pixels in the vector's lanes, a block of outputs times several vectors in
// registers. Only kernel files include this header; it has internal linkage for the reason given in vec.h.
#pragma once
#include "../base/vec.h"
#include "ffmef_forward.h"

#define FFMEF_INLINE inline __attribute__((always_inline))

namespace ffmef {
namespace FFMEF_ISA {
namespace {

#if defined(__AVX512F__) || defined(__ARM_NEON)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif
constexpr int kLanes = lanes<float>;

// The vectors per output for which registers hold all sums, one input per vector and one weight.
constexpr int vectors_for(int outputs) {
  const int v = (kRegisters - 1) / (outputs + 1);
  return v < 1 ? 1 : v > 6 ? 6 : v;
}

// Returns b if either is NaN: a broken image then shows instead of turning into zeros.
FFMEF_INLINE FloatVec maximum(FloatVec a, FloatVec b) { return a > b ? a : b; }
FFMEF_INLINE FloatVec rectify(FloatVec x) { return maximum(FloatVec{}, x); }
FFMEF_INLINE FloatVec leaky(FloatVec x) { return maximum(x, x * 0.2f); }

template <int OUT, int V> struct Sums {
  FloatVec at[OUT][V];
};

// A KxK convolution at V vectors from column x on. rows[dy] is input 0 of the row that tap row dy reads, `plane` is the
// distance between inputs, and the weights are those of one block of OUT outputs.
template <int K, int OUT, int V> FFMEF_INLINE Sums<OUT, V> convolve(const float* const* rows, int64_t x, int inputs,
                                                                    int64_t plane, const float* weights,
                                                                    const float* bias) {
  Sums<OUT, V> sums;
#pragma GCC unroll 8
  for (int o = 0; o < OUT; ++o)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sums.at[o][v] = splat(bias[o]);
  for (int i = 0; i < inputs; ++i)
    for (int dy = 0; dy < K; ++dy) {
      const float* row = rows[dy] + i * plane + x - K / 2;
#pragma GCC unroll 8
      for (int dx = 0; dx < K; ++dx) {
        FloatVec pixels[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) pixels[v] = load(row + dx + v * kLanes);
#pragma GCC unroll 8
        for (int o = 0; o < OUT; ++o) {
          const FloatVec w = splat(weights[o]);
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) sums.at[o][v] += w * pixels[v];
        }
        weights += OUT;
      }
    }
  return sums;
}

// Calls block.template operator()<V>(x) along [begin, end), with the largest V that fits. Both ends are multiples of a
// vector.
template <int V, class Block> FFMEF_INLINE void along_row(int64_t begin, int64_t end, const Block& block) {
  int64_t x = begin;
  for (; x + V * kLanes <= end; x += V * kLanes) block.template operator()<V>(x);
  if constexpr (V > 1) along_row<V / 2>(x, end, block);
}

// outputs[o] at one vector of pixels: a 1x1 convolution of values in registers.
template <int IN, int OUT>
FFMEF_INLINE void convolve_point(FloatVec* outputs, const FloatVec* inputs, const Convolution& conv) {
  constexpr int kBlock = output_block(OUT);
#pragma GCC unroll 16
  for (int o = 0; o < OUT; ++o) outputs[o] = splat(conv.bias[o]);
#pragma GCC unroll 2
  for (int block = 0; block < OUT / kBlock; ++block)
#pragma GCC unroll 32
    for (int i = 0; i < IN; ++i)
#pragma GCC unroll 8
      for (int o = 0; o < kBlock; ++o)
        outputs[block * kBlock + o] += splat(conv.weights[(block * IN + i) * kBlock + o]) * inputs[i];
}

// 1 / (1 + exp(-x)), to about two units in the last place.
FFMEF_INLINE FloatVec sigmoid(FloatVec x) { return 1.0f / (1.0f + exponential(-x)); }

}  // namespace
}  // namespace FFMEF_ISA
}  // namespace ffmef
