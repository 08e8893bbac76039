// Kernels of pyramid_fuse as __global__ functions, the choice among them, and their launches.
// `nvcc -cubin -arch=sm_75 csrc/cuda/pyramid_fuse.cu` compiles it alone.
#include "launch.cuh"
#include "pyramid_fuse.cuh"
#include "pyramid_fuse.h"
#include "pyramid_fuse_three_bands.cuh"

#include <algorithm>
#include <cstddef>
#include <type_traits>

namespace ffmef::cuda::pyramid {
namespace {

// Tiles are large where there are enough to fill a GPU; float64 needs twice the shared memory per pixel.
using Small = Tile<32, 32>;
template <class S> using Large = std::conditional_t<std::is_same_v<S, double>, Small, Tile<64, 64>>;
template <class S> using Backward = std::conditional_t<std::is_same_v<S, double>, Small, Tile<32, 64>>;
constexpr int64_t kBlocksThatFill = 256;  // two per multiprocessor of the largest GPU known

template <class S> constexpr int kRegisters = std::is_same_v<S, double> ? 168 : 128;
// Three large tiles per multiprocessor, or ten small ones.
template <class Shape, class S> constexpr int kThreeBandsRegisters = std::is_same_v<S, double> ? 168
                                                                     : Shape::kThreads < 256   ? 96
                                                                                               : 80;
constexpr int kCellThreads = 256;

// ---- kernels --------------------------------------------------------------------------------------------------------

template <class Shape, bool Vectors, class S, class W>
__global__ void __launch_bounds__(Shape::kThreads, resident_blocks(Shape::kThreads, kRegisters<S>))
    fuse_kernel(const __grid_constant__ Problem<S, W> p) {
  FFMEF_DYNAMIC_SHARED(shared);
  fuse<Shape, Vectors>(p, reinterpret_cast<Accumulate<S>*>(shared));
}

template <class Shape, bool Vectors, class S, class W>
__global__ void __launch_bounds__(Shape::kThreads, resident_blocks(Shape::kThreads, kThreeBandsRegisters<Shape, S>))
    fuse_three_bands_kernel(const __grid_constant__ Problem<S, W> p) {
  FFMEF_DYNAMIC_SHARED(shared);
  fuse_three_bands<Shape, Vectors>(p, reinterpret_cast<Accumulate<S>*>(shared));
}

template <class Shape, bool Vectors, class S, class W>
__global__ void __launch_bounds__(Shape::kThreads, resident_blocks(Shape::kThreads, kRegisters<S>))
    weights_gradient_kernel(const __grid_constant__ Problem<S, W> p) {
  FFMEF_DYNAMIC_SHARED(shared);
  weights_gradient<Shape, Vectors>(p, reinterpret_cast<Accumulate<S>*>(shared));
}

template <class Shape, bool Vectors, class S, class W>
__global__ void __launch_bounds__(Shape::kThreads, resident_blocks(Shape::kThreads, kRegisters<S>))
    images_gradient_kernel(const __grid_constant__ Problem<S, W> p) {
  FFMEF_DYNAMIC_SHARED(shared);
  images_gradient<Shape, Vectors>(p, reinterpret_cast<Accumulate<S>*>(shared));
}

__device__ __forceinline__ int64_t index_of_thread() {
  return static_cast<int64_t>(blockIdx.x) * kCellThreads + threadIdx.x;
}

template <class Shape, class S, class W>
__global__ void __launch_bounds__(kCellThreads, resident_blocks(kCellThreads, 64))
    sum_tiles_kernel(const __grid_constant__ Problem<S, W> p) {
  const int64_t grid = static_cast<int64_t>(p.cells_down) * p.cells_across;
  const int64_t index = index_of_thread();
  if (index < grid * p.image_count * (p.bands + 1) * p.batch)
    sum_tiles<Shape>(p, index, p.weights_gradient != nullptr, p.base_gradient != nullptr);
}

template <class S, class W> __global__ void __launch_bounds__(kCellThreads, resident_blocks(kCellThreads, 64))
    reduce_kernel(const __grid_constant__ Problem<S, W> p, int64_t count, Accumulate<S>* target) {
  const int64_t index = index_of_thread();
  if (index < count) reduce(p, index, target);
}

// ---- problems -------------------------------------------------------------------------------------------------------

// A pyramid of more than three bands is two problems: `upper` has three bands and stands on the fused result of
// `lower`, whose images are the upper one's level 3. Neither needs a plane of more than 1/64 of the pixels.
template <class T> struct Split {
  using A = Accumulate<T>;
  Problem<T, T> upper;
  Problem<A, T> lower;
  bool has_lower;
};

template <class S, class W> void set_grid(Problem<S, W>& p, const ffmef_pyramid& f, int first_band, int bands) {
  const int64_t* w = f.weight_strides;
  p.weights = static_cast<const W*>(f.weights) + first_band * w[1];
  std::copy(w, w + 5, p.weight_strides);
  p.base = static_cast<const W*>(f.base);
  std::copy(f.base_strides, f.base_strides + 4, p.base_strides);
  p.batch = static_cast<int>(f.batch);
  p.image_count = static_cast<int>(f.image_count);
  p.channels = static_cast<int>(f.channels);
  p.height = levels_size(static_cast<int>(f.height), first_band);
  p.width = levels_size(static_cast<int>(f.width), first_band);
  p.bands = bands;
  p.scale = f.scale >> first_band;
  while ((1 << p.scale_shift) < p.scale) ++p.scale_shift;
  p.cells_per_pixel = 1 / static_cast<Accumulate<S>>(p.scale);
  p.cells_down = static_cast<int>(divide_up(f.height, f.scale));
  p.cells_across = static_cast<int>(divide_up(f.width, f.scale));
}

template <class T> Split<T> split(const ffmef_pyramid& f) {
  Split<T> s = {};
  s.has_lower = f.bands > kBandsPerLaunch;
  set_grid(s.upper, f, 0, std::min(f.bands, kBandsPerLaunch));
  s.upper.images = static_cast<const T*>(f.images);
  std::copy(f.image_strides, f.image_strides + 5, s.upper.image_strides);
  if (!s.has_lower) return s;
  s.upper.base = nullptr;
  set_grid(s.lower, f, kBandsPerLaunch, f.bands - kBandsPerLaunch);
  const int64_t width = s.lower.width, plane = width * s.lower.height;
  const int64_t strides[5] = {f.image_count * f.channels * plane, f.channels * plane, plane, width, 1};
  std::copy(strides, strides + 5, s.lower.image_strides);
  return s;
}

template <class S, class W> int64_t pixels(const Problem<S, W>& p) {
  return static_cast<int64_t>(p.batch) * p.channels * p.height * p.width;
}

template <class Shape, class S, class W> int64_t set_tiles(Problem<S, W>& p, int64_t planes) {
  p.tiles_down = static_cast<int>(divide_up(p.height, Shape::kRows));
  p.tiles_across = static_cast<int>(divide_up(p.width, Shape::kColumns));
  return planes * p.tiles_down * p.tiles_across;
}

template <class Shape, class S, class W> int64_t partials_of(const Problem<S, W>& p) {
  const int64_t tiles = divide_up(p.height, Shape::kRows) * divide_up(p.width, Shape::kColumns) * p.batch;
  return tiles * p.image_count * (p.bands + 1) * cells_of_tile<Shape>(p.scale);
}

// Whether four neighbours of a plane can be read or written at once.
template <class S> bool allows_vectors(const void* data, int width, const int64_t* strides, int outer) {
  if (width % kPatch != 0 || !aligned(data, alignof(Four<S>))) return false;
  if (strides == nullptr) return true;
  for (int axis = 0; axis < outer; ++axis)
    if (strides[axis] % kPatch != 0) return false;
  return strides[outer] == 1;
}

template <class S, class W> bool images_allow_vectors(const Problem<S, W>& p) {
  return allows_vectors<S>(p.images, p.width, p.image_strides, 4);
}

// ---- launches -------------------------------------------------------------------------------------------------------

template <class Shape, class S, class W> cudaError_t launch_fuse(Problem<S, W>& p, cudaStream_t stream) {
  const int64_t blocks = set_tiles<Shape>(p, static_cast<int64_t>(p.batch) * p.channels);
  const bool vectors = images_allow_vectors(p) && allows_vectors<S>(p.output, p.width, nullptr, 0);
  if (p.bands == kBandsPerLaunch)  // cells have 2^3 pixels or more
    return launch(vectors ? fuse_three_bands_kernel<Shape, true, S, W> : fuse_three_bands_kernel<Shape, false, S, W>,
                  blocks, Shape::kThreads, sizeof(Accumulate<S>) * ThreeBands<Shape>::kElements, stream, p);
  const size_t shared = sizeof(Accumulate<S>) * kFuseElements<Shape>;
  return launch(vectors ? fuse_kernel<Shape, true, S, W> : fuse_kernel<Shape, false, S, W>, blocks, Shape::kThreads,
                shared, stream, p);
}

template <class S, class W> cudaError_t fuse_problem(Problem<S, W>& p, cudaStream_t stream) {
  const int64_t blocks = set_tiles<Large<S>>(p, static_cast<int64_t>(p.batch) * p.channels);
  return blocks < kBlocksThatFill ? launch_fuse<Small>(p, stream) : launch_fuse<Large<S>>(p, stream);
}

template <class T> cudaError_t make_lower_images(const Split<T>& s, Accumulate<T>* target, cudaStream_t stream) {
  const int64_t count = pixels(s.lower) * s.lower.image_count, blocks = divide_up(count, kCellThreads);
  if (blocks == 0) return cudaSuccess;
  if (blocks > INT_MAX) return cudaErrorInvalidConfiguration;
  FFMEF_LAUNCH((reduce_kernel<T, T>), static_cast<unsigned>(blocks), kCellThreads, 0, stream, s.upper, count, target);
  return cudaGetLastError();
}

template <class T> int64_t forward_workspace(const ffmef_pyramid& f) {
  const Split<T> s = split<T>(f);
  return s.has_lower ? static_cast<int64_t>(sizeof(Accumulate<T>)) * pixels(s.lower) * (s.lower.image_count + 1) : 0;
}

template <class T> cudaError_t forward(const ffmef_pyramid& f, void* output, void* workspace, cudaStream_t stream) {
  Split<T> s = split<T>(f);
  s.upper.output = static_cast<T*>(output);
  if (s.has_lower) {
    auto* images = static_cast<Accumulate<T>*>(workspace);
    auto* fused = images + pixels(s.lower) * s.lower.image_count;
    if (const cudaError_t error = make_lower_images(s, images, stream); error != cudaSuccess) return error;
    s.lower.images = images;
    s.lower.output = fused;
    s.upper.coarse = fused;
    if (const cudaError_t error = fuse_problem(s.lower, stream); error != cudaSuccess) return error;
  }
  return fuse_problem(s.upper, stream);
}

// Where everything lies in the workspace of the backward pass.
template <class T> struct Workspace {
  using A = Accumulate<T>;
  int64_t images = 0, gradient = 0, images_gradient = 0, partials = 0, lower_partials = 0, elements = 0;

  Workspace(const Split<T>& s, const ffmef_pyramid_gradients& g) {
    const bool grid = g.weights != nullptr || g.base != nullptr;
    if (s.has_lower) {
      const int64_t plane = pixels(s.lower), all = plane * s.lower.image_count;
      if (grid) images = take(all);
      gradient = take(plane);
      if (g.images != nullptr) images_gradient = take(all);
      if (grid) lower_partials = take(partials_of<Backward<A>>(s.lower));
    }
    if (grid) partials = take(partials_of<Backward<T>>(s.upper));
  }
  int64_t take(int64_t count) {
    const int64_t first = elements;
    elements += divide_up(count, 4) * 4;
    return first;
  }
};

template <class T> int64_t backward_workspace(const ffmef_pyramid& f, const ffmef_pyramid_gradients& g) {
  return Workspace<T>(split<T>(f), g).elements * static_cast<int64_t>(sizeof(Accumulate<T>));
}

template <class S, class W> cudaError_t launch_weights_gradient(Problem<S, W>& p, cudaStream_t stream) {
  using Shape = Backward<S>;
  const int64_t blocks = set_tiles<Shape>(p, p.batch);
  const size_t shared = sizeof(Accumulate<S>) * weights_gradient_elements<Shape>(p.scale);
  cudaError_t error = launch(images_allow_vectors(p) ? weights_gradient_kernel<Shape, true, S, W>
                                                     : weights_gradient_kernel<Shape, false, S, W>,
                             blocks, Shape::kThreads, shared, stream, p);
  if (error != cudaSuccess || p.partials == nullptr) return error;
  const int64_t cells = static_cast<int64_t>(p.cells_down) * p.cells_across * p.image_count * (p.bands + 1) * p.batch;
  return launch(sum_tiles_kernel<Shape, S, W>, divide_up(cells, kCellThreads), kCellThreads, 0, stream, p);
}

template <class S, class W> cudaError_t launch_images_gradient(Problem<S, W>& p, cudaStream_t stream) {
  using Shape = Backward<S>;
  const int64_t blocks = set_tiles<Shape>(p, static_cast<int64_t>(p.batch) * p.channels);
  return launch(allows_vectors<S>(p.images_gradient, p.width, nullptr, 0) ? images_gradient_kernel<Shape, true, S, W>
                                                                          : images_gradient_kernel<Shape, false, S, W>,
                blocks, Shape::kThreads, sizeof(Accumulate<S>) * kImagesGradientElements<Shape>, stream, p);
}

template <class T>
cudaError_t backward(const ffmef_pyramid& f, const ffmef_pyramid_gradients& g, void* workspace, cudaStream_t stream) {
  using A = Accumulate<T>;
  Split<T> s = split<T>(f);
  const Workspace<T> places(s, g);
  A* const memory = static_cast<A*>(workspace);
  const bool grid = g.weights != nullptr || g.base != nullptr;
  const int64_t cells = static_cast<int64_t>(s.upper.cells_down) * s.upper.cells_across;

  s.upper.gradient = static_cast<const T*>(g.output);
  std::copy(g.output_strides, g.output_strides + 4, s.upper.gradient_strides);
  s.upper.weights_gradient = static_cast<T*>(g.weights);
  s.upper.weights_gradient_batch = f.bands * f.image_count * cells;
  s.upper.images_gradient = static_cast<T*>(g.images);
  if (grid) s.upper.partials = memory + places.partials;
  cudaError_t error = cudaSuccess;
  if (!s.has_lower) {
    s.upper.base_gradient = static_cast<T*>(g.base);
    if (grid) error = launch_weights_gradient(s.upper, stream);
  } else {
    s.upper.coarse_gradient = memory + places.gradient;
    error = launch_weights_gradient(s.upper, stream);
    if (error != cudaSuccess) return error;
    const int64_t plane = static_cast<int64_t>(s.lower.height) * s.lower.width;
    const int64_t strides[4] = {s.lower.channels * plane, plane, s.lower.width, 1};
    s.lower.gradient = s.upper.coarse_gradient;
    std::copy(strides, strides + 4, s.lower.gradient_strides);
    if (grid) {
      error = make_lower_images(s, memory + places.images, stream);
      if (error != cudaSuccess) return error;
      s.lower.images = memory + places.images;
      s.lower.partials = memory + places.lower_partials;
      s.lower.weights_gradient =
          g.weights == nullptr ? nullptr : static_cast<T*>(g.weights) + kBandsPerLaunch * f.image_count * cells;
      s.lower.weights_gradient_batch = s.upper.weights_gradient_batch;
      s.lower.base_gradient = static_cast<T*>(g.base);
      error = launch_weights_gradient(s.lower, stream);
      if (error != cudaSuccess) return error;
    }
    if (g.images != nullptr) {
      s.lower.images_gradient = memory + places.images_gradient;
      error = launch_images_gradient(s.lower, stream);
      s.upper.coarse_images_gradient = s.lower.images_gradient;
    }
  }
  if (error != cudaSuccess || g.images == nullptr) return error;
  return launch_images_gradient(s.upper, stream);
}

}  // namespace
}  // namespace ffmef::cuda::pyramid

// ---- C interface ----------------------------------------------------------------------------------------------------

extern "C" int64_t ffmef_cuda_pyramid_fuse_workspace(const ffmef_pyramid* pyramid) {
  return ffmef::cuda::with_dtype(pyramid->dtype, [&](auto zero) -> int64_t {
    return ffmef::cuda::pyramid::forward_workspace<decltype(zero)>(*pyramid);
  });
}

extern "C" int64_t ffmef_cuda_pyramid_fuse_backward_workspace(const ffmef_pyramid* pyramid,
                                                              const ffmef_pyramid_gradients* gradients) {
  return ffmef::cuda::with_dtype(pyramid->dtype, [&](auto zero) -> int64_t {
    return ffmef::cuda::pyramid::backward_workspace<decltype(zero)>(*pyramid, *gradients);
  });
}

extern "C" int ffmef_cuda_pyramid_fuse(const ffmef_pyramid* pyramid, void* output, void* workspace, void* stream) {
  return ffmef::cuda::with_dtype(pyramid->dtype, [&](auto zero) -> int {
    return ffmef::cuda::pyramid::forward<decltype(zero)>(*pyramid, output, workspace,
                                                         static_cast<cudaStream_t>(stream));
  });
}

extern "C" int ffmef_cuda_pyramid_fuse_backward(const ffmef_pyramid* pyramid, const ffmef_pyramid_gradients* gradients,
                                                void* workspace, void* stream) {
  return ffmef::cuda::with_dtype(pyramid->dtype, [&](auto zero) -> int {
    return ffmef::cuda::pyramid::backward<decltype(zero)>(*pyramid, *gradients, workspace,
                                                          static_cast<cudaStream_t>(stream));
  });
}
