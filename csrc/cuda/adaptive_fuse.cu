// Kernels of adaptive_fuse as __global__ functions, the choice among them, and their launches.
// `nvcc -cubin -arch=sm_75 csrc/cuda/adaptive_fuse.cu` compiles it alone.
#include "adaptive_fuse.cuh"
#include "adaptive_fuse.h"
#include "adaptive_fuse_coarse.cuh"
#include "adaptive_fuse_coarse_gradients.cuh"
#include "launch.cuh"

#include <algorithm>
#include <cstddef>
#include <type_traits>

namespace ffmef::cuda {
namespace {

// Registers for a thread that computes V pixels of C channels: eight pixels of four channels have 32 sums.
template <int V, int C> constexpr int kTiledRegisters = C == 1 ? 80 : V == 8 ? 160 : 128;
// Without 16-byte loads, it takes more threads to keep enough of them in flight.
template <class T, int V, int C> constexpr int kForwardRegisters =
    V == 1 && C == 1 && sizeof(T) > 2 ? 64 : kTiledRegisters<V, C>;
// For sm_75 and sm_80 the compiler needs more of them.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ <= 800
constexpr bool kUpToSm80 = true;
#else
constexpr bool kUpToSm80 = false;
#endif
template <class T> constexpr int kShiftedRegisters = sizeof(T) == 8 ? 128 : kUpToSm80 ? 80 : 64;

// ---- kernels --------------------------------------------------------------------------------------------------------

template <class T, int V, int C>
__global__ void __launch_bounds__(Tile<T, V>::kThreads,
                                  resident_blocks(Tile<T, V>::kThreads, kForwardRegisters<T, V, C>))
    fuse_tiled_kernel(const __grid_constant__ Problem<T> p) {
  FFMEF_DYNAMIC_SHARED(shared);
  fuse_tiled<T, V, C>(p, reinterpret_cast<Accumulate<T>*>(shared));
}

template <class T> __global__ void __launch_bounds__(Tile<T, 1>::kThreads, resident_blocks(Tile<T, 1>::kThreads, 80))
    fuse_direct_kernel(const __grid_constant__ Problem<T> p) {
  fuse_direct<T>(p);
}

template <class T> using WideTile = Tile<T, 4, 1, 256>;

template <class T, int V, int C>
__global__ void __launch_bounds__(Tile<T, V>::kThreads, resident_blocks(Tile<T, V>::kThreads, kTiledRegisters<V, C>))
    filters_gradient_tiled_kernel(const __grid_constant__ Problem<T> p) {
  FFMEF_DYNAMIC_SHARED(shared);
  filters_gradient_tiled<Tile<T, V>, V, C, false>(p, reinterpret_cast<Accumulate<T>*>(shared));
}

// For large pictures: a block stores 1 KB of a row of each plane, and the caches give it up first.
template <class T>
__global__ void __launch_bounds__(WideTile<T>::kThreads, resident_blocks(WideTile<T>::kThreads, kTiledRegisters<4, 1>))
    filters_gradient_wide_kernel(const __grid_constant__ Problem<T> p) {
  FFMEF_DYNAMIC_SHARED(shared);
  filters_gradient_tiled<WideTile<T>, 4, 1, true>(p, reinterpret_cast<T*>(shared));
}

template <class T>
__global__ void __launch_bounds__(Tile<T, 1>::kThreads, resident_blocks(Tile<T, 1>::kThreads, kShiftedRegisters<T>))
    filters_gradient_shifted_kernel(const __grid_constant__ Problem<T> p) {
  FFMEF_DYNAMIC_SHARED(shared);
  filters_gradient_shifted<T>(p, reinterpret_cast<Accumulate<T>*>(shared));
}

template <class T> __global__ void __launch_bounds__(Tile<T, 1>::kThreads, resident_blocks(Tile<T, 1>::kThreads, 80))
    filters_gradient_direct_kernel(const __grid_constant__ Problem<T> p) {
  FFMEF_DYNAMIC_SHARED(shared);
  filters_gradient_direct<T>(p, reinterpret_cast<Accumulate<T>*>(shared));
}

// One row of taps in flight is little, so there must be many threads; wide offsets and types leave no choice.
template <class T, class Index, int C> constexpr int kImagesGradientRegisters =
    sizeof(T) == 2 && C == 1 && kUpToSm80  ? 168
    : sizeof(Index) == 4 && sizeof(T) <= 4 ? 80
                                           : 128;

template <class T, class Index, int C>
__global__ void __launch_bounds__(Tile<T, 1>::kThreads,
                                  resident_blocks(Tile<T, 1>::kThreads, kImagesGradientRegisters<T, Index, C>))
    images_gradient_kernel(const __grid_constant__ Problem<T> p) {
  FFMEF_DYNAMIC_SHARED(shared);
  images_gradient<T, Index, C>(p, reinterpret_cast<Accumulate<T>*>(shared));
}

template <class T> __global__ void __launch_bounds__(kReduceThreads)
    sum_level_partials_kernel(const Accumulate<T>* partials, int64_t count, Accumulate<T>* alphas_gradient) {
  FFMEF_DYNAMIC_SHARED(shared);
  sum_level_partials<T>(partials, count, alphas_gradient, reinterpret_cast<double*>(shared));
}

template <class T> __global__ void __launch_bounds__(Tile<T, 1>::kThreads, resident_blocks(Tile<T, 1>::kThreads, 128))
    fuse_coarse_tiled_kernel(const __grid_constant__ CoarseProblem<T> q) {
  FFMEF_DYNAMIC_SHARED(shared);
  fuse_coarse_tiled<T, int>(q, reinterpret_cast<Accumulate<T>*>(shared));
}

template <class T, class Index>
__global__ void __launch_bounds__(Tile<T, 1>::kThreads, resident_blocks(Tile<T, 1>::kThreads, 128))
    fuse_coarse_kernel(const __grid_constant__ CoarseProblem<T> q) {
  fuse_coarse<T, Index>(q);
}

template <class T, class Index>
__global__ void __launch_bounds__(Tile<T, 1>::kThreads, resident_blocks(Tile<T, 1>::kThreads, 128))
    images_gradient_coarse_kernel(const __grid_constant__ CoarseProblem<T> q) {
  images_gradient_coarse<T, Index>(q);
}

template <class T>
__global__ void __launch_bounds__(Tile<T, 1>::kThreads,
                                  resident_blocks(Tile<T, 1>::kThreads, sizeof(T) == 8 || kUpToSm80 ? 128 : 80))
    images_gradient_coarse_tiled_kernel(const __grid_constant__ CoarseProblem<T> q) {
  FFMEF_DYNAMIC_SHARED(shared);
  images_gradient_coarse_tiled<T, int>(q, *reinterpret_cast<GradientTile<T>*>(shared));
}

template <class T, int K> __global__ void __launch_bounds__(kCellThreads, resident_blocks(kCellThreads, 128))
    cells_gradient_by_lanes_kernel(const __grid_constant__ CoarseProblem<T> q) {
  FFMEF_DYNAMIC_SHARED(shared);
  cells_gradient_by_lanes<K, T, int>(q, reinterpret_cast<Accumulate<T>*>(shared));
}

template <class T, class Index>
__global__ void __launch_bounds__(Tile<T, 1>::kThreads, resident_blocks(Tile<T, 1>::kThreads, 128))
    cells_gradient_kernel(const __grid_constant__ CoarseProblem<T> q) {
  FFMEF_DYNAMIC_SHARED(shared);
  cells_gradient<T, Index>(q, reinterpret_cast<Accumulate<T>*>(shared));
}

// ---- choice of kernel -----------------------------------------------------------------------------------------------

template <class T> Problem<T> make_problem(const ffmef_fusion& f, int first_level, int level_count) {
  Problem<T> p = {};
  const int64_t* s = f.image_strides;
  p.images = {static_cast<const T*>(f.images), s[0], s[1], s[2], s[3], s[4]};
  for (int l = 0; l < level_count; ++l) {
    const int64_t* t = f.filter_strides[first_level + l];
    p.levels[l] = {static_cast<const T*>(f.filters[first_level + l]),
                   nullptr,
                   t[0],
                   t[1],
                   t[2],
                   t[3],
                   t[4],
                   f.sizes[first_level + l]};
    p.halo_rows = std::max(p.halo_rows, f.sizes[first_level + l] / 2);
  }
  p.alphas = static_cast<const Accumulate<T>*>(f.alphas) + first_level * f.alpha_stride;
  p.alpha_stride = f.alpha_stride;
  p.level_count = level_count;
  p.batch = static_cast<int>(f.batch);
  p.image_count = static_cast<int>(f.image_count);
  p.channels = static_cast<int>(f.channels);
  p.height = static_cast<int>(f.height);
  p.width = static_cast<int>(f.width);
  p.padding = static_cast<Padding>(f.padding);
  p.add_result = first_level > 0;
  return p;
}

// Offsets inside one (batch, image) slice; the slice itself is found in 64 bits by every kernel.
bool filters_fit_32_bits(const ffmef_fusion& f) {
  for (int l = 0; l < f.level_count; ++l) {
    const int64_t* s = f.filter_strides[l];
    const int64_t taps = static_cast<int64_t>(f.sizes[l]) * f.sizes[l];
    if (!fits_32_bits((taps - 1) * s[2] + (f.height - 1) * s[3] + (f.width - 1) * s[4]) ||
        !fits_32_bits(taps * f.height * f.width))
      return false;
  }
  return true;
}

bool has_tiled_kernel(const ffmef_fusion& f) {
  for (int l = 0; l < f.level_count; ++l)
    if (f.sizes[l] > 7) return false;
  return filters_fit_32_bits(f) &&
         fits_32_bits((f.height - 1) * f.image_strides[3] + (f.width - 1) * f.image_strides[4]);
}

bool filters_allow_vectors(const ffmef_fusion& f, int vector) {
  for (int l = 0; l < f.level_count; ++l) {
    const int64_t* s = f.filter_strides[l];
    if (!aligned(f.filters[l]) || s[4] != 1) return false;
    for (int axis = 0; axis < 4; ++axis)
      if (s[axis] % vector != 0) return false;
  }
  return true;
}

bool gradients_allow_vectors(const ffmef_fusion& f, const ffmef_fusion_gradients& g) {
  for (int l = 0; g.filters != nullptr && l < f.level_count; ++l)
    if (!aligned(g.filters[l])) return false;
  return true;
}

// ---- launches -------------------------------------------------------------------------------------------------------

template <class Shape> int64_t blocks_of(const ffmef_fusion& f, int64_t planes) {
  return divide_up(f.width, Shape::kWidth) * divide_up(f.height, Shape::kHeight) * planes;
}

template <class Shape, class T> void set_tiles(Problem<T>& p) {
  p.tiles_across = static_cast<int>(divide_up(p.width, Shape::kWidth));
  p.tiles_down = static_cast<int>(divide_up(p.height, Shape::kHeight));
}

template <class Shape, int C, class T> size_t tile_bytes(const Problem<T>& p) {
  return sizeof(Accumulate<T>) * kBuffers<C> * C * (Shape::kHeight + 2 * p.halo_rows) * Shape::kPitch;
}

template <class Shape, class T> size_t sums_bytes(const Problem<T>& p) {
  return p.partials == nullptr ? 0 : sizeof(Accumulate<T>) * p.level_count * (Shape::kThreads / kWarp);
}

template <class T, int V, int C> cudaError_t launch_fuse_tiled(const ffmef_fusion& f, Problem<T>& p, cudaStream_t s) {
  using Shape = Tile<T, V, kRowsOfThread<T, V, C>>;
  set_tiles<Shape>(p);
  return launch(fuse_tiled_kernel<T, V, C>, blocks_of<Shape>(f, f.batch * divide_up(f.channels, C)), Shape::kThreads,
                tile_bytes<Shape, C>(p), s, p);
}

template <class T> cudaError_t forward(const ffmef_fusion& f, void* output, cudaStream_t stream) {
  constexpr int V = kVector<T>;
  const bool tiled = has_tiled_kernel(f);
  const bool vectors = f.width % V == 0 && aligned(output) && filters_allow_vectors(f, V);
  // Launched without levels too: the output is then zero, and still has to be written.
  for (int first = 0; first == 0 || first < f.level_count; first += kLevelsPerLaunch) {
    Problem<T> p = make_problem<T>(f, first, std::min(kLevelsPerLaunch, f.level_count - first));
    p.output = static_cast<T*>(output);
    cudaError_t error = cudaSuccess;
    if (!tiled) {
      using Shape = Tile<T, 1>;
      set_tiles<Shape>(p);
      const int64_t planes = f.batch * divide_up(f.channels, kChannelsAtOnce);
      error = launch(fuse_direct_kernel<T>, blocks_of<Shape>(f, planes), Shape::kThreads, 0, stream, p);
    } else if (f.channels == 1) {
      error = vectors ? launch_fuse_tiled<T, V, 1>(f, p, stream) : launch_fuse_tiled<T, 1, 1>(f, p, stream);
    } else {
      constexpr int C = kChannelsAtOnce;
      error = vectors ? launch_fuse_tiled<T, V, C>(f, p, stream) : launch_fuse_tiled<T, 1, C>(f, p, stream);
    }
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

// In half precision, a tap's columns take few stores, and shifting costs more than it saves: 0.075 against 0.052 ms at
// 551 x 707 on an H100. In float32 it takes 0.066 against 0.086 ms.
template <class T> constexpr bool kShifts = sizeof(T) >= 4;

// A tile that is shifted to the left leaves columns for one more tile, unless there are no columns at all.
template <class T> int64_t shifted_width(int64_t width) {
  return width == 0 ? 0 : width + ShiftedTile<T>::kLargestShift - 1;
}

template <class T> int64_t blocks_of_shifted(const ffmef_fusion& f) {
  using Shape = ShiftedTile<T>;
  return divide_up(shifted_width<T>(f.width), Shape::kWidth) * divide_up(f.height, Shape::kHeight) * f.batch;
}

// On an H200, wide tiles take 1.04 instead of 1.15 ms at 3000 x 4000, but 6 % longer at 512 x 512.
#ifndef FFMEF_CUDA_WIDE_FROM
#define FFMEF_CUDA_WIDE_FROM (int64_t(1) << 22)
#endif
constexpr int64_t kWideFromPixels = FFMEF_CUDA_WIDE_FROM;

// What the backward pass launches for the filters, and how many partial sums of the alpha gradient there are.
struct BackwardPlan {
  bool filters, partials_with_images, partials_with_filters, tiled, vectors, wide;
  bool narrow_index;  // of the images' gradient
  int64_t images_blocks, filters_blocks;
};

template <class T> BackwardPlan plan_backward(const ffmef_fusion& f, const ffmef_fusion_gradients& g) {
  BackwardPlan plan = {};
  plan.partials_with_images = g.alphas != nullptr && g.images != nullptr;
  plan.partials_with_filters = g.alphas != nullptr && g.images == nullptr;
  plan.filters = plan.partials_with_filters;
  for (int l = 0; g.filters != nullptr && l < f.level_count; ++l) plan.filters |= g.filters[l] != nullptr;
  plan.tiled = has_tiled_kernel(f) && f.channels <= kChannelsAtOnce;
  plan.vectors = f.width % kVector<T> == 0 && gradients_allow_vectors(f, g) &&
                 (!plan.partials_with_filters || filters_allow_vectors(f, kVector<T>));
  using Pixel = Tile<T, 1>;
  const int64_t images = f.batch * f.image_count;
  plan.narrow_index = filters_fit_32_bits(f) &&
                      fits_32_bits((f.height - 1) * g.output_strides[2] + (f.width - 1) * g.output_strides[3]);
  plan.images_blocks = f.channels > 1      ? blocks_of<Pixel>(f, images * divide_up(f.channels, kChannelsAtOnce))
                       : plan.narrow_index ? blocks_of<Tile<T, 1, kImagesGradientRows<T, int, 1>>>(f, images)
                                           : blocks_of<Tile<T, 1, kImagesGradientRows<T, int64_t, 1>>>(f, images);
  plan.wide = std::is_same_v<T, float> && plan.vectors && f.channels == 1 && f.height * f.width >= kWideFromPixels;
  plan.filters_blocks = !plan.tiled                     ? blocks_of<Pixel>(f, images)
                        : plan.wide                     ? blocks_of<WideTile<T>>(f, f.batch)
                        : plan.vectors                  ? blocks_of<Tile<T, kVector<T>>>(f, f.batch)
                        : kShifts<T> && f.channels == 1 ? blocks_of_shifted<T>(f)
                                                        : blocks_of<Pixel>(f, f.batch);
  return plan;
}

template <class T> int64_t workspace_bytes(const ffmef_fusion& f, const ffmef_fusion_gradients& g) {
  const BackwardPlan plan = plan_backward<T>(f, g);
  const int64_t blocks = plan.partials_with_images    ? plan.images_blocks
                         : plan.partials_with_filters ? plan.filters_blocks
                                                      : 0;
  return blocks * f.level_count * static_cast<int64_t>(sizeof(Accumulate<T>));
}

template <class T, class Index, int C>
cudaError_t launch_images_gradient(const BackwardPlan& plan, Problem<T>& p, cudaStream_t stream) {
  using Shape = Tile<T, 1, kImagesGradientRows<T, Index, C>>;
  set_tiles<Shape>(p);
  return launch(images_gradient_kernel<T, Index, C>, plan.images_blocks, Shape::kThreads, sums_bytes<Shape>(p), stream,
                p);
}

template <class T, int V, int C>
cudaError_t launch_filters_gradient(const BackwardPlan& plan, Problem<T>& p, cudaStream_t stream) {
  using Shape = Tile<T, V>;
  if constexpr (std::is_same_v<T, float> && V == 4 && C == 1) {
    if (plan.wide) {
      set_tiles<WideTile<T>>(p);
      return launch(filters_gradient_wide_kernel<T>, plan.filters_blocks, WideTile<T>::kThreads,
                    tile_bytes<WideTile<T>, 1>(p) + sums_bytes<WideTile<T>>(p), stream, p);
    }
  }
  set_tiles<Shape>(p);
  return launch(filters_gradient_tiled_kernel<T, V, C>, plan.filters_blocks, Shape::kThreads,
                tile_bytes<Shape, C>(p) + sums_bytes<Shape>(p), stream, p);
}

template <class T>
cudaError_t launch_pixelwise_filters_gradient(const BackwardPlan& plan, Problem<T>& p, cudaStream_t stream) {
  if constexpr (kShifts<T>) {
    using Shape = ShiftedTile<T>;
    set_tiles<Shape>(p);
    p.tiles_across = static_cast<int>(divide_up(shifted_width<T>(p.width), Shape::kWidth));
    const size_t gradients = sizeof(Accumulate<T>) * Shape::kHeight * Shape::kGradientPitch;
    return launch(filters_gradient_shifted_kernel<T>, plan.filters_blocks, Shape::kThreads,
                  tile_bytes<Shape, 1>(p) + gradients + sums_bytes<Shape>(p), stream, p);
  } else {
    return launch_filters_gradient<T, 1, 1>(plan, p, stream);
  }
}

template <class T> cudaError_t backward(const ffmef_fusion& f, const ffmef_fusion_gradients& g, cudaStream_t stream) {
  constexpr int V = kVector<T>, C = kChannelsAtOnce;
  const BackwardPlan plan = plan_backward<T>(f, g);
  Accumulate<T>* const workspace = static_cast<Accumulate<T>*>(g.workspace);
  cudaError_t error = cudaSuccess;

  for (int first = 0; first < f.level_count && error == cudaSuccess; first += kLevelsPerLaunch) {
    const int levels = std::min(kLevelsPerLaunch, f.level_count - first);
    Problem<T> p = make_problem<T>(f, first, levels);
    const int64_t* s = g.output_strides;
    p.gradient = {static_cast<const T*>(g.output), s[0], 0, s[1], s[2], s[3]};

    if (g.images != nullptr) {
      p.images_gradient = static_cast<T*>(g.images);
      p.partials = plan.partials_with_images ? workspace + first * plan.images_blocks : nullptr;
      if (p.channels == 1)
        error = plan.narrow_index ? launch_images_gradient<T, int, 1>(plan, p, stream)
                                  : launch_images_gradient<T, int64_t, 1>(plan, p, stream);
      else
        error = plan.narrow_index ? launch_images_gradient<T, int, C>(plan, p, stream)
                                  : launch_images_gradient<T, int64_t, C>(plan, p, stream);
      if (error != cudaSuccess) return error;
    }
    if (!plan.filters) continue;
    for (int l = 0; g.filters != nullptr && l < levels; ++l)
      p.levels[l].gradient = static_cast<T*>(g.filters[first + l]);
    p.partials = plan.partials_with_filters ? workspace + first * plan.filters_blocks : nullptr;
    if (!plan.tiled) {
      using Shape = Tile<T, 1>;
      set_tiles<Shape>(p);
      error = launch(filters_gradient_direct_kernel<T>, plan.filters_blocks, Shape::kThreads, sums_bytes<Shape>(p),
                     stream, p);
    } else if (p.channels == 1) {
      error = plan.vectors ? launch_filters_gradient<T, V, 1>(plan, p, stream)
                           : launch_pixelwise_filters_gradient<T>(plan, p, stream);
    } else {
      error = plan.vectors ? launch_filters_gradient<T, V, C>(plan, p, stream)
                           : launch_filters_gradient<T, 1, C>(plan, p, stream);
    }
  }
  if (error != cudaSuccess || g.alphas == nullptr || f.level_count == 0) return error;

  const int64_t blocks = plan.partials_with_images ? plan.images_blocks : plan.filters_blocks;
  FFMEF_LAUNCH(sum_level_partials_kernel<T>, static_cast<unsigned>(f.level_count), kReduceThreads,
               sizeof(double) * (kReduceThreads / kWarp), stream, workspace, blocks,
               static_cast<Accumulate<T>*>(g.alphas));
  return cudaGetLastError();
}

// ---- calls with filters on coarser grids ----------------------------------------------------------------------------

bool is_coarse(const ffmef_fusion& f, int level) {
  return f.filter_grids != nullptr && (f.filter_grids[level][0] != f.height || f.filter_grids[level][1] != f.width);
}

bool any_coarse(const ffmef_fusion& f) {
  for (int l = 0; l < f.level_count; ++l)
    if (is_coarse(f, l)) return true;
  return false;
}

// Whether int is wide enough for csrc/common/interpolation.h.
bool places_fit_32_bits(const ffmef_fusion& f) {
  for (int l = 0; l < f.level_count; ++l)
    if (is_coarse(f, l) && (!fits_32_bits(2 * f.height * (f.filter_grids[l][0] + 2)) ||
                            !fits_32_bits(2 * f.width * (f.filter_grids[l][1] + 2))))
      return false;
  return true;
}

template <class T> CoarseProblem<T> make_coarse_problem(const ffmef_fusion& f, int first_level, int level_count) {
  CoarseProblem<T> q = {};
  q.all = make_problem<T>(f, first_level, level_count);
  for (int l = 0; l < level_count; ++l) {
    const bool coarse = is_coarse(f, first_level + l);
    q.grids[l] = {coarse ? static_cast<int>(f.filter_grids[first_level + l][0]) : q.all.height,
                  coarse ? static_cast<int>(f.filter_grids[first_level + l][1]) : q.all.width, coarse};
  }
  return q;
}

template <class Shape, class T>
int64_t blocks_over(CoarseProblem<T>& q, int64_t height, int64_t width, int64_t planes) {
  q.tiles_across = static_cast<int>(divide_up(width, Shape::kWidth));
  q.tiles_down = static_cast<int>(divide_up(height, Shape::kHeight));
  return planes * q.tiles_across * q.tiles_down;
}

bool has_tiled_coarse_kernel(const ffmef_fusion& f) { return places_fit_32_bits(f) && has_tiled_kernel(f); }

template <class T> cudaError_t forward_coarse(const ffmef_fusion& f, void* output, cudaStream_t stream) {
  for (int first = 0; first < f.level_count; first += kLevelsPerLaunch) {
    CoarseProblem<T> q = make_coarse_problem<T>(f, first, std::min(kLevelsPerLaunch, f.level_count - first));
    q.all.output = static_cast<T*>(output);
    cudaError_t error = cudaSuccess;
    if (has_tiled_coarse_kernel(f)) {
      using Shape = Tile<T, 1, kCoarseRows<T>>;
      const int64_t blocks = blocks_over<Shape>(q, f.height, f.width, f.batch * f.channels);
      error = launch(fuse_coarse_tiled_kernel<T>, blocks, Shape::kThreads, tile_bytes<Shape, 1>(q.all), stream, q);
    } else {
      using Shape = Tile<T, 1>;
      const int64_t blocks = blocks_over<Shape>(q, f.height, f.width, f.batch * divide_up(f.channels, kChannelsAtOnce));
      error = launch(places_fit_32_bits(f) ? fuse_coarse_kernel<T, int> : fuse_coarse_kernel<T, int64_t>, blocks,
                     Shape::kThreads, 0, stream, q);
    }
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

// The same call with only one of its levels.
ffmef_fusion one_level(const ffmef_fusion& f, int level, size_t alpha_bytes) {
  ffmef_fusion one = f;
  one.level_count = 1;
  one.sizes = f.sizes + level;
  one.filters = f.filters + level;
  one.filter_strides = f.filter_strides + level;
  one.filter_grids = is_coarse(f, level) ? f.filter_grids + level : nullptr;
  one.alphas = static_cast<const char*>(f.alphas) + level * f.alpha_stride * static_cast<int64_t>(alpha_bytes);
  return one;
}

ffmef_fusion_gradients gradients_of_one_level(const ffmef_fusion_gradients& g, int level, size_t alpha_bytes) {
  ffmef_fusion_gradients one = g;
  one.images = nullptr;
  one.filters = g.filters == nullptr ? nullptr : g.filters + level;
  one.alphas = g.alphas == nullptr ? nullptr : static_cast<char*>(g.alphas) + level * alpha_bytes;
  return one;
}

// Groups of a cell's taps that one lane computes.
template <class T> int groups_of_taps(int size) {
  switch (size) {
    case 1: return 1 / kTapRows<1, T>;
    case 3: return 3 / kTapRows<3, T>;
    case 5: return 5 / kTapRows<5, T>;
    default: return 7 / kTapRows<7, T>;
  }
}

// Blocks of a coarse level's cells, and the tiles into which they divide the grid.
template <class T> int64_t blocks_of_cells(const ffmef_fusion& one, CoarseProblem<T>& q) {
  const int64_t* grid = one.filter_grids[0];
  const int64_t pictures = one.batch * one.image_count;
  if (!has_tiled_coarse_kernel(one))
    return blocks_over<Tile<T, 1>>(q, grid[0], grid[1], pictures * one.sizes[0] * one.sizes[0]);
  q.lanes_per_cell = 1;
  while (q.lanes_per_cell < kWarp && q.lanes_per_cell < divide_up(2 * one.width, grid[1])) q.lanes_per_cell *= 2;
  q.tiles_across = static_cast<int>(divide_up(grid[1], kCellThreads / q.lanes_per_cell));
  q.tiles_down = static_cast<int>(grid[0]);
  return pictures * groups_of_taps<T>(one.sizes[0]) * q.tiles_across * q.tiles_down;
}

template <class T> int64_t coarse_workspace_bytes(const ffmef_fusion& f, const ffmef_fusion_gradients& g) {
  constexpr size_t kWide = sizeof(Accumulate<T>);
  int64_t bytes = 0;
  for (int l = 0; g.alphas != nullptr && l < f.level_count; ++l) {
    const ffmef_fusion one = one_level(f, l, kWide);
    CoarseProblem<T> unused = {};
    bytes = std::max(bytes, is_coarse(f, l) ? blocks_of_cells<T>(one, unused) * static_cast<int64_t>(kWide)
                                            : workspace_bytes<T>(one, gradients_of_one_level(g, l, kWide)));
  }
  return bytes;
}

template <class T> auto cells_gradient_of(const ffmef_fusion& one) -> void (*)(CoarseProblem<T>) {
  static_assert(kCellThreads == Tile<T, 1>::kThreads);
  if (!has_tiled_coarse_kernel(one))
    return places_fit_32_bits(one) ? cells_gradient_kernel<T, int> : cells_gradient_kernel<T, int64_t>;
  switch (one.sizes[0]) {
    case 1: return cells_gradient_by_lanes_kernel<T, 1>;
    case 3: return cells_gradient_by_lanes_kernel<T, 3>;
    case 5: return cells_gradient_by_lanes_kernel<T, 5>;
    default: return cells_gradient_by_lanes_kernel<T, 7>;
  }
}

template <class T>
cudaError_t backward_coarse(const ffmef_fusion& f, const ffmef_fusion_gradients& g, cudaStream_t stream) {
  constexpr size_t kWide = sizeof(Accumulate<T>);
  const int64_t* s = g.output_strides;
  const ImageView<T> gradient = {static_cast<const T*>(g.output), s[0], 0, s[1], s[2], s[3]};
  const bool narrow_places = places_fit_32_bits(f);
  cudaError_t error = cudaSuccess;
  for (int first = 0; g.images != nullptr && first < f.level_count; first += kLevelsPerLaunch) {
    CoarseProblem<T> q = make_coarse_problem<T>(f, first, std::min(kLevelsPerLaunch, f.level_count - first));
    q.all.gradient = gradient;
    q.all.images_gradient = static_cast<T*>(g.images);
    using Shape = Tile<T, 1>;
    const int64_t pictures = f.batch * f.image_count;
    if (has_tiled_coarse_kernel(f)) {
      const int64_t blocks = blocks_over<Shape>(q, f.height, f.width, pictures * f.channels);
      error =
          launch(images_gradient_coarse_tiled_kernel<T>, blocks, Shape::kThreads, sizeof(GradientTile<T>), stream, q);
    } else {
      const int64_t blocks =
          blocks_over<Shape>(q, f.height, f.width, pictures * divide_up(f.channels, kChannelsAtOnce));
      error = launch(narrow_places ? images_gradient_coarse_kernel<T, int> : images_gradient_coarse_kernel<T, int64_t>,
                     blocks, Shape::kThreads, 0, stream, q);
    }
    if (error != cudaSuccess) return error;
  }
  for (int l = 0; l < f.level_count; ++l) {
    const ffmef_fusion one = one_level(f, l, kWide);
    const ffmef_fusion_gradients own = gradients_of_one_level(g, l, kWide);
    T* const target = own.filters == nullptr ? nullptr : static_cast<T*>(own.filters[0]);
    if (target == nullptr && own.alphas == nullptr) continue;
    if (!is_coarse(f, l)) {
      error = backward<T>(one, own, stream);
      if (error != cudaSuccess) return error;
      continue;
    }
    CoarseProblem<T> q = make_coarse_problem<T>(one, 0, 1);
    q.all.gradient = gradient;
    q.all.levels[0].gradient = target;
    q.all.partials = own.alphas == nullptr ? nullptr : static_cast<Accumulate<T>*>(g.workspace);
    const int64_t blocks = blocks_of_cells(one, q);
    error = launch(cells_gradient_of<T>(one), blocks, Tile<T, 1>::kThreads, kWide * (Tile<T, 1>::kThreads / kWarp),
                   stream, q);
    if (error != cudaSuccess) return error;
    if (own.alphas == nullptr) continue;
    const Accumulate<T>* partials = q.all.partials;
    FFMEF_LAUNCH(sum_level_partials_kernel<T>, 1u, kReduceThreads, sizeof(double) * (kReduceThreads / kWarp), stream,
                 partials, blocks, static_cast<Accumulate<T>*>(own.alphas));
    error = cudaGetLastError();
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

}  // namespace
}  // namespace ffmef::cuda

// ---- C interface ----------------------------------------------------------------------------------------------------

extern "C" int ffmef_cuda_adaptive_fuse(const ffmef_fusion* fusion, void* output, void* stream) {
  return ffmef::cuda::with_dtype(fusion->dtype, [&](auto zero) -> int {
    using T = decltype(zero);
    const auto run = ffmef::cuda::any_coarse(*fusion) ? ffmef::cuda::forward_coarse<T> : ffmef::cuda::forward<T>;
    return run(*fusion, output, static_cast<cudaStream_t>(stream));
  });
}

extern "C" int64_t ffmef_cuda_adaptive_fuse_workspace(const ffmef_fusion* fusion,
                                                      const ffmef_fusion_gradients* gradients) {
  return ffmef::cuda::with_dtype(fusion->dtype, [&](auto zero) -> int64_t {
    using T = decltype(zero);
    const auto bytes =
        ffmef::cuda::any_coarse(*fusion) ? ffmef::cuda::coarse_workspace_bytes<T> : ffmef::cuda::workspace_bytes<T>;
    return bytes(*fusion, *gradients);
  });
}

extern "C" int ffmef_cuda_adaptive_fuse_backward(const ffmef_fusion* fusion, const ffmef_fusion_gradients* gradients,
                                                 void* stream) {
  return ffmef::cuda::with_dtype(fusion->dtype, [&](auto zero) -> int {
    using T = decltype(zero);
    const auto run = ffmef::cuda::any_coarse(*fusion) ? ffmef::cuda::backward_coarse<T> : ffmef::cuda::backward<T>;
    return run(*fusion, *gradients, static_cast<cudaStream_t>(stream));
  });
}

extern "C" const char* ffmef_cuda_error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }
