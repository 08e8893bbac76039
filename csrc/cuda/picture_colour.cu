// The kernels of picture_colour.cuh as __global__ functions, and their launches.
// `nvcc -cubin -arch=sm_90 csrc/cuda/picture_colour.cu` compiles it alone.
#include "picture_colour.h"

#include "launch.cuh"
#include "picture_colour.cuh"

namespace ffmef::cuda::colour {
namespace {

template <class S, int Channels, bool Vectors> __global__ void __launch_bounds__(kThreads)
    sample_luminance_kernel(const __grid_constant__ Luminances<S> p) {
  sample_luminance<S, Channels, Vectors>(p);
}

template <class S, bool Vectors> __global__ void __launch_bounds__(kThreads)
    recolour_kernel(const __grid_constant__ Colours<S> p) {
  recolour<S, Vectors>(p);
}

int64_t blocks_of(int64_t pixels) { return divide_up(pixels, int64_t(kThreads) * kPixels); }

template <class S> bool in_words(const void* samples) { return aligned(samples, kPixels * sizeof(typename S::type)); }

template <class S, int Channels>
cudaError_t launch_luminance(const void* samples, int64_t pixels, float* luminance, cudaStream_t stream) {
  const Luminances<S> p = {static_cast<const typename S::type*>(samples), luminance, pixels};
  return in_words<S>(samples) && aligned(luminance)
             ? launch(sample_luminance_kernel<S, Channels, true>, blocks_of(pixels), kThreads, 0, stream, p)
             : launch(sample_luminance_kernel<S, Channels, false>, blocks_of(pixels), kThreads, 0, stream, p);
}

template <class S> cudaError_t launch_recolour(const float* fused, const void* const* sources, int count,
                                               int64_t pixels, void* out, cudaStream_t stream) {
  if (count < 1 || count > FFMEF_MOST_SOURCES) return cudaErrorInvalidValue;
  Colours<S> p = {};
  p.fused = fused;
  p.count = count;
  p.out = static_cast<typename S::type*>(out);
  p.pixels = pixels;
  bool vectors = aligned(fused) && in_words<S>(out);
  for (int n = 0; n < count; ++n) {
    p.sources[n] = static_cast<const typename S::type*>(sources[n]);
    vectors = vectors && in_words<S>(sources[n]);
  }
  return vectors ? launch(recolour_kernel<S, true>, blocks_of(pixels), kThreads, 0, stream, p)
                 : launch(recolour_kernel<S, false>, blocks_of(pixels), kThreads, 0, stream, p);
}

// Calls `call` with an empty object of the type that the code names.
template <class Call> int with_samples(int sample, const Call& call) {
  switch (sample) {
    case FFMEF_UINT8_SAMPLES: return call(Byte());
    case FFMEF_UINT16_SAMPLES: return call(Word());
    case FFMEF_FLOAT32_SAMPLES: return call(Floating<float>());
    case FFMEF_FLOAT64_SAMPLES: return call(Floating<double>());
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace
}  // namespace ffmef::cuda::colour

extern "C" int ffmef_cuda_sample_luminance(const void* samples, int sample, int channels, int64_t pixels,
                                           float* luminance, void* stream) {
  using namespace ffmef::cuda::colour;
  const auto on = static_cast<cudaStream_t>(stream);
  return with_samples(sample, [&](auto kind) -> int {
    using S = decltype(kind);
    return channels == 1 ? launch_luminance<S, 1>(samples, pixels, luminance, on)
                         : launch_luminance<S, 3>(samples, pixels, luminance, on);
  });
}

extern "C" int ffmef_cuda_recoloured(const float* fused, const void* const* sources, int count, int sample,
                                     int64_t pixels, void* out, void* stream) {
  using namespace ffmef::cuda::colour;
  return with_samples(sample, [&](auto kind) -> int {
    return launch_recolour<decltype(kind)>(fused, sources, count, pixels, out, static_cast<cudaStream_t>(stream));
  });
}
