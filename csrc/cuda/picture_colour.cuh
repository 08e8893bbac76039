// Samples of pictures to luminance, and fused luminance with the sources' chroma to samples, pixel by pixel. Every step
// is rounded as in ffmef/imaging/colour.py: results are the same to the bit, and so is the order of exposures.
#pragma once

#include "common.cuh"
#include "picture_colour.h"

namespace ffmef::cuda::colour {

constexpr int kThreads = 256, kPixels = 4;  // pixels per thread

// A number whose products and sums are rounded one by one; the compiler would fuse them.
template <class T> struct Rounded {
  T value;

  __device__ __forceinline__ Rounded(T given) : value(given) {}
#ifdef __CUDA_ARCH__
  static __device__ __forceinline__ float product(float a, float b) { return __fmul_rn(a, b); }
  static __device__ __forceinline__ double product(double a, double b) { return __dmul_rn(a, b); }
  static __device__ __forceinline__ float sum(float a, float b) { return __fadd_rn(a, b); }
  static __device__ __forceinline__ double sum(double a, double b) { return __dadd_rn(a, b); }
  static __device__ __forceinline__ float quotient(float a, float b) { return __fdiv_rn(a, b); }
  static __device__ __forceinline__ double quotient(double a, double b) { return __ddiv_rn(a, b); }
#else
  static __device__ __forceinline__ T product(T a, T b) { return a * b; }
  static __device__ __forceinline__ T sum(T a, T b) { return a + b; }
  static __device__ __forceinline__ T quotient(T a, T b) { return a / b; }
#endif
  friend __device__ __forceinline__ Rounded operator*(Rounded a, Rounded b) { return product(a.value, b.value); }
  friend __device__ __forceinline__ Rounded operator/(Rounded a, Rounded b) { return quotient(a.value, b.value); }
  friend __device__ __forceinline__ Rounded operator+(Rounded a, Rounded b) { return sum(a.value, b.value); }
  friend __device__ __forceinline__ Rounded operator-(Rounded a, Rounded b) { return sum(a.value, -b.value); }
};

template <class T> __device__ __forceinline__ T within(T x, T high) { return x > T(0) ? x < high ? x : high : T(0); }

// Samples to the scale 0..255 and back.
struct Byte {
  using type = uint8_t;
  using real = float;
  static __device__ __forceinline__ Rounded<float> scaled(uint8_t sample) { return static_cast<float>(sample); }
  static __device__ __forceinline__ uint8_t unscaled(Rounded<float> x) {
    return static_cast<uint8_t>(rintf(within(x.value, 255.0f)));
  }
};
struct Word {
  using type = uint16_t;
  using real = float;
  static __device__ __forceinline__ Rounded<float> scaled(uint16_t sample) {
    return Rounded<float>(static_cast<float>(sample)) / 257.0f;
  }
  static __device__ __forceinline__ uint16_t unscaled(Rounded<float> x) {
    return static_cast<uint16_t>(rintf((Rounded<float>(within(x.value, 255.0f)) * 257.0f).value));
  }
};
template <class T> struct Floating {
  using type = T;
  using real = T;
  static __device__ __forceinline__ Rounded<T> scaled(T sample) { return Rounded<T>(sample) * T(255); }
  static __device__ __forceinline__ T unscaled(Rounded<T> x) { return within((x / T(255)).value, T(1)); }
};

template <class S> struct Luminances {
  const typename S::type* samples;
  float* luminance;
  int64_t pixels;
};

template <class S> struct Colours {
  const float* fused;
  const typename S::type* sources[FFMEF_MOST_SOURCES];
  int count;
  typename S::type* out;
  int64_t pixels;
};

// The samples of four pixels, in whole words where an address allows it.
template <class S, int Channels> struct alignas(kPixels * sizeof(typename S::type)) Run {
  typename S::type samples[kPixels * Channels];
};

template <class S> using Number = Rounded<typename S::real>;

template <class S, int Channels> __device__ __forceinline__ float luminance_of(const typename S::type* pixel) {
  using T = typename S::real;
  if constexpr (Channels == 1) {
    return static_cast<float>(
        ((Number<S>(T(0.256789 + 0.504129 + 0.097906)) * S::scaled(pixel[0]) + T(16)) / T(255)).value);
  } else {
    const Number<S> r = S::scaled(pixel[0]), g = S::scaled(pixel[1]), b = S::scaled(pixel[2]);
    const Number<S> y = Number<S>(T(0.256789)) * r + Number<S>(T(0.504129)) * g + Number<S>(T(0.097906)) * b + T(16);
    return static_cast<float>((y / T(255)).value);
  }
}

template <class S, int Channels, bool Vectors>
__device__ __forceinline__ void sample_luminance(const Luminances<S>& p) {
  const int64_t first = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kPixels;
  if (first >= p.pixels) return;
  if (Vectors && first + kPixels <= p.pixels) {
    const Run<S, Channels> run = *reinterpret_cast<const Run<S, Channels>*>(p.samples + first * Channels);
    float4 found;
    found.x = luminance_of<S, Channels>(run.samples);
    found.y = luminance_of<S, Channels>(run.samples + Channels);
    found.z = luminance_of<S, Channels>(run.samples + 2 * Channels);
    found.w = luminance_of<S, Channels>(run.samples + 3 * Channels);
    *reinterpret_cast<float4*>(p.luminance + first) = found;
  } else {
    for (int64_t pixel = first; pixel < p.pixels && pixel < first + kPixels; ++pixel)
      p.luminance[pixel] = luminance_of<S, Channels>(p.samples + pixel * Channels);
  }
}

// Sums over the sources of one pixel, around no colour: of chroma times its strength, and of strengths. The chroma of
// a single source is taken as it is.
template <class S> struct Chroma {
  Number<S> blue = typename S::real(0), red = typename S::real(0);
  Number<S> blue_weight = typename S::real(0), red_weight = typename S::real(0);

  __device__ __forceinline__ void add(const typename S::type* pixel, bool single) {
    using T = typename S::real;
    const Number<S> r = S::scaled(pixel[0]), g = S::scaled(pixel[1]), b = S::scaled(pixel[2]);
    const Number<S> cb = Number<S>(T(-0.148223)) * r - Number<S>(T(0.290992)) * g + Number<S>(T(0.439215)) * b + T(128);
    const Number<S> cr = Number<S>(T(0.439215)) * r - Number<S>(T(0.367789)) * g - Number<S>(T(0.071426)) * b + T(128);
    const Number<S> from_blue = cb - T(128), from_red = cr - T(128);
    if (single) {
      blue = from_blue, red = from_red;
      return;
    }
    const Number<S> blue_size = T(fabs(from_blue.value)), red_size = T(fabs(from_red.value));
    blue = blue + from_blue * blue_size, red = red + from_red * red_size;
    blue_weight = blue_weight + blue_size, red_weight = red_weight + red_size;
  }
  static __device__ __forceinline__ Number<S> merged(Number<S> sum, Number<S> weight) {
    using T = typename S::real;
    // The definition adds 128, then takes it off again.
    return sum / (weight.value == T(0) ? Number<S>(T(1)) : weight) + T(128) - T(128);
  }
  __device__ __forceinline__ void merge() { blue = merged(blue, blue_weight), red = merged(red, red_weight); }
};

template <class S>
__device__ __forceinline__ void colour_pixel(Rounded<float> fused, const Chroma<S>& chroma, typename S::type* out) {
  using T = typename S::real;
  const Number<S> y = T((fused * 255.0f).value);
  const Number<S> grey = Number<S>(T(1.164383)) * (y - T(16));
  out[0] = S::unscaled(grey + Number<S>(T(1.596027)) * chroma.red);
  out[1] = S::unscaled(grey - Number<S>(T(0.391762)) * chroma.blue - Number<S>(T(0.812969)) * chroma.red);
  out[2] = S::unscaled(grey + Number<S>(T(2.017230)) * chroma.blue);
}

template <class S, bool Vectors> __device__ __forceinline__ void recolour(const Colours<S>& p) {
  const int64_t first = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * kPixels;
  if (first >= p.pixels) return;
  const bool single = p.count == 1;
  if (Vectors && first + kPixels <= p.pixels) {
    Chroma<S> chroma[kPixels];
    for (int n = 0; n < p.count; ++n) {
      const Run<S, 3> run = *reinterpret_cast<const Run<S, 3>*>(p.sources[n] + first * 3);
#pragma unroll
      for (int j = 0; j < kPixels; ++j) chroma[j].add(run.samples + 3 * j, single);
    }
    const float4 fused = *reinterpret_cast<const float4*>(p.fused + first);
    const float y[kPixels] = {fused.x, fused.y, fused.z, fused.w};
    Run<S, 3> out;
#pragma unroll
    for (int j = 0; j < kPixels; ++j) {
      if (!single) chroma[j].merge();
      colour_pixel<S>(y[j], chroma[j], out.samples + 3 * j);
    }
    *reinterpret_cast<Run<S, 3>*>(p.out + first * 3) = out;
  } else {
    for (int64_t pixel = first; pixel < p.pixels && pixel < first + kPixels; ++pixel) {
      Chroma<S> chroma;
      for (int n = 0; n < p.count; ++n) chroma.add(p.sources[n] + pixel * 3, single);
      if (!single) chroma.merge();
      colour_pixel<S>(p.fused[pixel], chroma, p.out + pixel * 3);
    }
  }
}

}  // namespace ffmef::cuda::colour
