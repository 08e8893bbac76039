// Kernels of adaptive_fuse: out = sum_l alpha_l sum_n sum_taps filter_l * padded image, and its gradients.
// Bodies are device functions over a Problem; adaptive_fuse.cu wraps them in kernels and chooses among them.
//
//   fuse_tiled              k in {1, 3, 5, 7}; images through shared memory, 16 bytes of filters per load
//   fuse_direct             any odd k, any size; images through the cache
//   filters_gradient_tiled  as fuse_tiled, for at most kChannelsAtOnce channels
//   filters_gradient_shifted  the same for one channel without 16-byte stores
//   filters_gradient_direct any odd k, any number of channels
//   images_gradient         any odd k, by gather: no atomics, one order of summation
//   sum_level_partials      second stage of the alpha gradient
#pragma once

#include "common.cuh"

namespace ffmef::cuda {

constexpr int kLevelsPerLaunch = 16;
constexpr int kChannelsAtOnce = 4;  // channels that share one read of the filters
constexpr int kHalo = 4;            // tile columns on each side: keeps 16-byte groups aligned, enough for k <= 7
constexpr int kWarp = 32;

template <class T> struct ImageView {
  const T* data;
  int64_t batch, image, channel, row, column;  // strides in elements
};

template <class T> struct LevelView {
  const T* filters;
  T* gradient;                             // contiguous, or null
  int64_t batch, image, tap, row, column;  // strides of the filters in elements
  int size;                                // k
};

// Everything a launch needs, passed by value so that no launch copies anything to the device.
template <class T> struct Problem {
  ImageView<T> images;
  ImageView<T> gradient;  // of the output; no image axis
  LevelView<T> levels[kLevelsPerLaunch];
  const Accumulate<T>* alphas;
  int64_t alpha_stride;
  T* output;                // (B, C, H, W), contiguous
  T* images_gradient;       // (B, N, C, H, W), contiguous
  Accumulate<T>* partials;  // (levels, blocks) sums of the alpha gradient, or null
  int level_count, batch, image_count, channels, height, width;
  Padding padding;
  int halo_rows;  // largest k / 2
  int tiles_across, tiles_down;
  bool add_result;  // a further launch of a problem with more than kLevelsPerLaunch levels
};

// R rows of V pixels per thread.
template <class T, int V, int R = 1, int Width = V == 1 ? 32 : 64> struct Tile {
  static constexpr int kRows = R;
  static constexpr int kWidth = Width;
  static constexpr int kThreadsAcross = kWidth / V;
  static constexpr int kThreads = V == 8 ? 128 : 256;
  static constexpr int kHeight = kThreads / kThreadsAcross * R;
  static constexpr int kLeft = kHalo;  // columns of the halo before the tile's own
  static constexpr int kPitch = kWidth + kLeft + kHalo;
};

// Without 16-byte loads, a thread's pixels lie below each other: a warp's loads stay contiguous whatever the width, and
// several of them are in flight. With several channels, the sums need those registers.
template <class T, int V, int C> constexpr int kRowsOfThread = V == 1 && C == 1 ? 8 / static_cast<int>(sizeof(T)) : 1;

// Offsets of a thread's rows from its first. A row below the picture reads the last one and is not stored.
template <int R> struct Rows {
  int count;
  int offsets[R];

  __device__ __forceinline__ Rows(int first, int height, int stride) : count(height - first < R ? height - first : R) {
#pragma unroll
    for (int r = 0; r < R; ++r) offsets[r] = r == 0 ? 0 : (r < count ? r : count - 1) * stride;
  }
};

// One channel needs so little shared memory that the next image can be fetched while this one is used.
template <int C> constexpr int kBuffers = C == 1 ? 2 : 1;

struct Position {
  int plane, row, column;  // plane counts whatever else the kernel splits into blocks
};

template <class Shape, int V, class AnyProblem>
__device__ __forceinline__ Position position_of_thread(const AnyProblem& p) {
  const unsigned block = blockIdx.x, rest = block / static_cast<unsigned>(p.tiles_across);
  const int thread = static_cast<int>(threadIdx.x);
  return {static_cast<int>(rest / static_cast<unsigned>(p.tiles_down)),
          static_cast<int>(rest % static_cast<unsigned>(p.tiles_down)) * Shape::kHeight +
              thread / Shape::kThreadsAcross * Shape::kRows,
          static_cast<int>(block % static_cast<unsigned>(p.tiles_across)) * Shape::kWidth +
              thread % Shape::kThreadsAcross * V};
}

// Fills C planes of shared memory with one image's channels around the block's tile, padding resolved.
template <class Shape, int C, class AnyProblem, class A>
__device__ __forceinline__ void load_tile(const AnyProblem& p, A* tile, int batch, int image, int first_channel,
                                          int first_row, int first_column) {
  const int rows = Shape::kHeight + 2 * p.halo_rows, plane = rows * Shape::kPitch;
  const auto* source = p.images.data + batch * p.images.batch + image * p.images.image;
  const int row_stride = static_cast<int>(p.images.row), column_stride = static_cast<int>(p.images.column);
  for (int i = static_cast<int>(threadIdx.x); i < plane; i += Shape::kThreads) {
    const int row = padded_index(first_row - p.halo_rows + i / Shape::kPitch, p.height, p.padding);
    const int column = padded_index(first_column - Shape::kLeft + i % Shape::kPitch, p.width, p.padding);
    const bool shown = row >= 0 && column >= 0;
    const auto* pixel = source + (shown ? row * row_stride + column * column_stride : 0);
#pragma unroll
    for (int c = 0; c < C; ++c) {
      const bool read = shown && first_channel + c < p.channels;
      tile[c * plane + i] = read ? widen(pixel[(first_channel + c) * p.images.channel]) : A(0);
    }
  }
}

// Reads from the tile what V pixels see in one row of a filter of radius R.
template <int R, int V, class A> __device__ __forceinline__ void load_window(const A* row, A (&window)[V + 2 * R]) {
  if constexpr (V == 1) {
#pragma unroll
    for (int i = 0; i < 1 + 2 * R; ++i) window[i] = row[kHalo - R + i];
  } else {
    constexpr int kGroup = 16 / static_cast<int>(sizeof(A));
    constexpr int kFirst = (kHalo - R) / kGroup, kLast = (kHalo + R + V - 1) / kGroup;
#pragma unroll
    for (int g = kFirst; g <= kLast; ++g) {
      const uint4 raw = *reinterpret_cast<const uint4*>(row + g * kGroup);
      A values[kGroup];
      memcpy(values, &raw, sizeof(raw));
#pragma unroll
      for (int v = 0; v < kGroup; ++v) {
        const int i = g * kGroup + v - (kHalo - R);
        if (i >= 0 && i < V + 2 * R) window[i] = values[v];
      }
    }
  }
}

// Calls visit(k as a compile-time constant) for the sizes that have kernels of their own, visit(0) for others.
template <int K> struct Size {
  static constexpr int value = K;
};

template <bool AnySize, class Visit> __device__ __forceinline__ void with_size(int size, const Visit& visit) {
  switch (size) {
    case 1: return visit(Size<1>());
    case 3: return visit(Size<3>());
    case 5: return visit(Size<5>());
    case 7: return visit(Size<7>());
    default:
      if constexpr (AnySize) visit(Size<0>());
  }
}

// One row of taps of a large filter keeps enough loads in flight; more would only cost registers.
template <int K> constexpr int kRowsUnrolled = K == 3 ? 3 : 1;

// ---- forward ------------------------------------------------------------------------------------------------------

template <int K, int V, int R, int C, class T>
__device__ __forceinline__ void fuse_level(const Accumulate<T>* tile, int plane, int pitch, const T* filters,
                                           const Rows<R>& rows, int tap_stride, Accumulate<T> alpha,
                                           Accumulate<T> (&result)[C][R][V]) {
  Accumulate<T> sum[C][R][V] = {};
#pragma unroll kRowsUnrolled < K>
  for (int i = 0; i < K; ++i) {
    Accumulate<T> window[C][R][V + K - 1];
#pragma unroll
    for (int c = 0; c < C; ++c)
#pragma unroll
      for (int r = 0; r < R; ++r) load_window<K / 2, V>(tile + c * plane + (i + r) * pitch, window[c][r]);
#pragma unroll
    for (int j = 0; j < K; ++j) {
#pragma unroll
      for (int r = 0; r < R; ++r) {
        Accumulate<T> taps[V];
        load_once<V>(filters + ((i * K + j) * tap_stride + rows.offsets[r]), taps);
#pragma unroll
        for (int c = 0; c < C; ++c)
#pragma unroll
          for (int v = 0; v < V; ++v) sum[c][r][v] += taps[v] * window[c][r][j + v];
      }
    }
  }
#pragma unroll
  for (int c = 0; c < C; ++c)
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int v = 0; v < V; ++v) result[c][r][v] += alpha * sum[c][r][v];
}

template <int V, class T>
__device__ __forceinline__ void store_result(T* target, bool add, Accumulate<T> (&values)[V]) {
  if (add) {
#pragma unroll
    for (int v = 0; v < V; ++v) values[v] += widen(target[v]);
  }
  store<V>(target, values);
}

template <class T, int V, int C> __device__ __forceinline__ void fuse_tiled(const Problem<T>& p, Accumulate<T>* tile) {
  constexpr int R = kRowsOfThread<T, V, C>;
  using Shape = Tile<T, V, R>;
  const int groups = (p.channels + C - 1) / C;
  const Position at = position_of_thread<Shape, V>(p);
  const int batch = at.plane / groups, first_channel = at.plane % groups * C;
  const int tile_row = static_cast<int>(threadIdx.x) / Shape::kThreadsAcross * R;
  const int tile_column = static_cast<int>(threadIdx.x) % Shape::kThreadsAcross * V;
  const int plane = (Shape::kHeight + 2 * p.halo_rows) * Shape::kPitch;
  const bool inside = at.row < p.height && at.column < p.width;

  Accumulate<T> result[C][R][V] = {};
  for (int n = 0; n < p.image_count; ++n) {
    Accumulate<T>* buffer = tile + n % kBuffers<C> * (C * plane);
    if (kBuffers<C> == 1 && n > 0) __syncthreads();  // every thread is done with the previous image
    load_tile<Shape, C>(p, buffer, batch, n, first_channel, at.row - tile_row, at.column - tile_column);
    __syncthreads();
    if (!inside) continue;
    for (int l = 0; l < p.level_count; ++l) {
      const LevelView<T>& level = p.levels[l];
      const T* filters = level.filters + batch * level.batch + n * level.image +
                         (at.row * static_cast<int>(level.row) + at.column * static_cast<int>(level.column));
      const Rows<R> rows(at.row, p.height, static_cast<int>(level.row));
      const Accumulate<T> alpha = p.alphas[l * p.alpha_stride];
      with_size<false>(level.size, [&](auto size) {
        constexpr int K = decltype(size)::value;
        const Accumulate<T>* origin = buffer + (tile_row + p.halo_rows - K / 2) * Shape::kPitch + tile_column;
        fuse_level<K, V, R, C>(origin, plane, Shape::kPitch, filters, rows, static_cast<int>(level.tap), alpha, result);
      });
    }
  }
  if (!inside) return;
#pragma unroll
  for (int c = 0; c < C; ++c) {
    if (first_channel + c >= p.channels) break;
    const int64_t row = (static_cast<int64_t>(batch) * p.channels + first_channel + c) * p.height + at.row;
#pragma unroll
    for (int r = 0; r < R; ++r)
      if (at.row + r < p.height)
        store_result<V>(p.output + (row + r) * p.width + at.column, p.add_result, result[c][r]);
  }
}

template <class T> __device__ __forceinline__ void fuse_direct(const Problem<T>& p) {
  using Shape = Tile<T, 1>;
  constexpr int C = kChannelsAtOnce;
  const int groups = (p.channels + C - 1) / C;
  const Position at = position_of_thread<Shape, 1>(p);
  const int batch = at.plane / groups, first_channel = at.plane % groups * C;
  if (at.row >= p.height || at.column >= p.width) return;

  Accumulate<T> result[C][1] = {};
  for (int n = 0; n < p.image_count; ++n) {
    const T* image = p.images.data + batch * p.images.batch + n * p.images.image + first_channel * p.images.channel;
    for (int l = 0; l < p.level_count; ++l) {
      const LevelView<T>& level = p.levels[l];
      const T* filters =
          level.filters + batch * level.batch + n * level.image + at.row * level.row + at.column * level.column;
      const int radius = level.size / 2;
      Accumulate<T> sum[C] = {};
      for (int i = -radius; i <= radius; ++i) {
        const int row = padded_index(at.row + i, p.height, p.padding);
        for (int j = -radius; j <= radius; ++j, filters += level.tap) {
          const int column = padded_index(at.column + j, p.width, p.padding);
          Accumulate<T> tap[1];
          load_once<1>(filters, tap);
          const bool shown = row >= 0 && column >= 0;
          const T* pixel = image + (shown ? row * p.images.row + column * p.images.column : 0);
#pragma unroll
          for (int c = 0; c < C; ++c) {
            // Zero padding is a value like any other: a tap that is not finite must show.
            if (first_channel + c < p.channels)
              sum[c] += tap[0] * (shown ? widen(pixel[c * p.images.channel]) : Accumulate<T>(0));
          }
        }
      }
      const Accumulate<T> alpha = p.alphas[l * p.alpha_stride];
#pragma unroll
      for (int c = 0; c < C; ++c) result[c][0] += alpha * sum[c];
    }
  }
#pragma unroll
  for (int c = 0; c < C; ++c) {
    if (first_channel + c >= p.channels) break;
    const int64_t row = (static_cast<int64_t>(batch) * p.channels + first_channel + c) * p.height + at.row;
    store_result<1>(p.output + row * p.width + at.column, p.add_result, result[c]);
  }
}

// ---- sums of the alpha gradient: one value per level and block, always added in the same order ----------------------

template <class A> __device__ __forceinline__ A sum_over_warp(A value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) value += __shfl_down_sync(0xffffffffu, value, distance);
  return value;
}

// `sums` is shared memory, (levels, warps). A slot belongs to the first lane of its warp until `finish`.
template <int Threads, class A> struct LevelSums {
  static constexpr int kWarps = Threads / kWarp;
  A* sums;

  __device__ __forceinline__ A& slot(int level) const { return sums[level * kWarps + threadIdx.x / kWarp]; }
  __device__ __forceinline__ bool first_lane() const { return threadIdx.x % kWarp == 0; }

  __device__ __forceinline__ void clear(int levels) const {
    if (first_lane())
      for (int l = 0; l < levels; ++l) slot(l) = A(0);
  }
  __device__ __forceinline__ void add(int level, A value) const {
    value = sum_over_warp(value);
    if (first_lane()) slot(level) += value;
  }
  __device__ __forceinline__ void finish(int levels, A* partials) const {
    __syncthreads();
    for (int l = static_cast<int>(threadIdx.x); l < levels; l += Threads) {
      A total = A(0);
      for (int w = 0; w < kWarps; ++w) total += sums[l * kWarps + w];
      partials[static_cast<int64_t>(l) * gridDim.x + blockIdx.x] = total;
    }
  }
};

constexpr int kReduceThreads = 256;

// One block per level. float64 costs nothing at this size and makes the result independent of the picture's size.
template <class T> __device__ __forceinline__ void sum_level_partials(const Accumulate<T>* partials, int64_t count,
                                                                      Accumulate<T>* alphas_gradient, double* sums) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kReduceThreads) sum += partials[blockIdx.x * count + i];
  const LevelSums<kReduceThreads, double> level_sums{sums};
  level_sums.clear(1);
  level_sums.add(0, sum);
  __syncthreads();
  if (threadIdx.x != 0) return;
  double total = 0;
  for (int w = 0; w < kReduceThreads / kWarp; ++w) total += sums[w];
  alphas_gradient[blockIdx.x] = static_cast<Accumulate<T>>(total);
}

// ---- gradient of the filters: alpha_l * g * shifted image -----------------------------------------------------------

template <int K, int V, int C, bool Streaming, class T>
__device__ __forceinline__ Accumulate<T> filters_gradient_level(const Accumulate<T>* tile, int plane, int pitch,
                                                                const Accumulate<T> (&gradient)[C][V],
                                                                Accumulate<T> alpha, T* target, int target_stride,
                                                                const T* filters, int tap_stride) {
  Accumulate<T> sum = 0;
#pragma unroll kRowsUnrolled < K>
  for (int i = 0; i < K; ++i) {
    Accumulate<T> window[C][V + K - 1];
#pragma unroll
    for (int c = 0; c < C; ++c) load_window<K / 2, V>(tile + c * plane + i * pitch, window[c]);
#pragma unroll
    for (int j = 0; j < K; ++j) {
      const int t = i * K + j;
      Accumulate<T> product[V] = {};
#pragma unroll
      for (int c = 0; c < C; ++c)
#pragma unroll
        for (int v = 0; v < V; ++v) product[v] += gradient[c][v] * window[c][j + v];
      if (filters != nullptr) {
        Accumulate<T> taps[V];
        load_once<V>(filters + t * tap_stride, taps);
#pragma unroll
        for (int v = 0; v < V; ++v) sum += taps[v] * product[v];
      }
      if (target != nullptr) {
#pragma unroll
        for (int v = 0; v < V; ++v) product[v] *= alpha;
        store<V, Streaming>(target + t * target_stride, product);
      }
    }
  }
  return sum;
}

template <class Shape, int V, int C, bool Streaming, class T>
__device__ __forceinline__ void filters_gradient_tiled(const Problem<T>& p, Accumulate<T>* tile) {
  const Position at = position_of_thread<Shape, V>(p);
  const int batch = at.plane;
  const int tile_row = static_cast<int>(threadIdx.x) / Shape::kThreadsAcross;
  const int tile_column = static_cast<int>(threadIdx.x) % Shape::kThreadsAcross * V;
  const int plane = (Shape::kHeight + 2 * p.halo_rows) * Shape::kPitch, pixels = p.height * p.width;
  const bool inside = at.row < p.height && at.column < p.width;
  const LevelSums<Shape::kThreads, Accumulate<T>> level_sums{tile + kBuffers<C> * C * plane};
  if (p.partials != nullptr) level_sums.clear(p.level_count);

  Accumulate<T> gradient[C][V] = {};
  if (inside) {
#pragma unroll
    for (int c = 0; c < C; ++c) {
      if (c >= p.channels) break;
      const T* source = p.gradient.data + batch * p.gradient.batch + c * p.gradient.channel + at.row * p.gradient.row +
                        at.column * p.gradient.column;
#pragma unroll
      for (int v = 0; v < V; ++v) gradient[c][v] = widen(source[v * p.gradient.column]);
    }
  }

  for (int n = 0; n < p.image_count; ++n) {
    Accumulate<T>* buffer = tile + n % kBuffers<C> * (C * plane);
    if (kBuffers<C> == 1 && n > 0) __syncthreads();  // every thread is done with the previous image
    load_tile<Shape, C>(p, buffer, batch, n, 0, at.row - tile_row, at.column - tile_column);
    __syncthreads();
    for (int l = 0; l < p.level_count; ++l) {
      const LevelView<T>& level = p.levels[l];
      if (level.gradient == nullptr && p.partials == nullptr) continue;
      Accumulate<T> sum = 0;
      if (inside) {
        const int pixel = at.row * p.width + at.column;
        const int64_t plane_of_target = (static_cast<int64_t>(batch) * p.image_count + n) * level.size * level.size;
        T* target = level.gradient == nullptr ? nullptr : level.gradient + plane_of_target * pixels + pixel;
        const T* filters =
            p.partials == nullptr
                ? nullptr
                : level.filters + batch * level.batch + n * level.image +
                      (at.row * static_cast<int>(level.row) + at.column * static_cast<int>(level.column));
        const Accumulate<T> alpha = p.alphas[l * p.alpha_stride];
        with_size<false>(level.size, [&](auto size) {
          constexpr int K = decltype(size)::value;
          const Accumulate<T>* origin = buffer + (tile_row + p.halo_rows - K / 2) * Shape::kPitch + tile_column;
          sum = filters_gradient_level<K, V, C, Streaming>(origin, plane, Shape::kPitch, gradient, alpha, target,
                                                           pixels, filters, static_cast<int>(level.tap));
        });
      }
      if (p.partials != nullptr) level_sums.add(l, sum);
    }
  }
  if (p.partials != nullptr) level_sums.finish(p.level_count, p.partials);
}

// Rows of odd width may begin at any address, and a store that covers only part of an aligned 32 bytes costs a read as
// well. So the tile is shifted to the left in each plane and row, by less than 32 bytes, to where its 32 bytes begin.
// This works because nothing is summed over taps; what a shifted pixel needs comes from shared memory. For one channel.
template <class T> struct ShiftedTile : Tile<T, 1> {
  static constexpr int kLargestShift = 32 / static_cast<int>(sizeof(T));  // one more than occurs
  static constexpr int kLeft = kHalo + kLargestShift;
  static constexpr int kPitch = Tile<T, 1>::kWidth + kLeft + kHalo;
  static constexpr int kGradientPitch = Tile<T, 1>::kWidth + kLargestShift;
};

// How many elements an address lies past a multiple of 32 bytes: that of a warp's first column, for the whole warp.
template <class T> __device__ __forceinline__ int shift_of(const T* address) {
  return static_cast<int>(reinterpret_cast<uintptr_t>(address) / sizeof(T) % ShiftedTile<T>::kLargestShift);
}

// All pointers point to the thread's own pixel, unshifted, except `window`, which points to what its first tap sees.
// `filters` and `target` may be null.
template <int K, class T> __device__ __forceinline__ Accumulate<T> shifted_filters_gradient_level(
    const Accumulate<T>* window, const Accumulate<T>* gradient, int column, int width, Accumulate<T> alpha, T* target,
    int target_stride, const T* filters, int tap_stride, int column_stride) {
  using Shape = ShiftedTile<T>;
  const int lane = static_cast<int>(threadIdx.x) % Shape::kThreadsAcross;
  const int first_shift = shift_of((target != nullptr ? target : filters) - lane);
  const int shift_step = (target != nullptr ? target_stride : tap_stride) % Shape::kLargestShift;
  Accumulate<T> sum = 0;
#pragma unroll kRowsUnrolled < K>
  for (int i = 0; i < K; ++i) {
    Accumulate<T> products[K], taps[K][1];
#pragma unroll
    for (int j = 0; j < K; ++j) {
      const int t = i * K + j, shift = (first_shift + t * shift_step) % Shape::kLargestShift;
      const bool inside = column >= shift && column - shift < width;
      products[j] = inside ? gradient[-shift] * window[i * Shape::kPitch + j - shift] : 0;
      taps[j][0] = 0;
      if (filters != nullptr && inside) load_once<1>(filters + (t * tap_stride - shift * column_stride), taps[j]);
      if (target != nullptr && inside) {
        const Accumulate<T> value[1] = {alpha * products[j]};
        store<1>(target + (t * target_stride - shift), value);
      }
    }
#pragma unroll
    for (int j = 0; j < K; ++j) sum += taps[j][0] * products[j];
  }
  return sum;
}

template <class T>
__device__ __forceinline__ void filters_gradient_shifted(const Problem<T>& p, Accumulate<T>* shared) {
  using A = Accumulate<T>;
  using Shape = ShiftedTile<T>;
  const Position at = position_of_thread<Shape, 1>(p);
  const int batch = at.plane;
  const int tile_row = static_cast<int>(threadIdx.x) / Shape::kThreadsAcross;
  const int tile_column = static_cast<int>(threadIdx.x) % Shape::kThreadsAcross;
  const int first_row = at.row - tile_row, first_column = at.column - tile_column;
  const int plane = (Shape::kHeight + 2 * p.halo_rows) * Shape::kPitch, pixels = p.height * p.width;
  A* const gradients = shared + kBuffers<1> * plane;
  const LevelSums<Shape::kThreads, A> level_sums{gradients + Shape::kHeight * Shape::kGradientPitch};
  if (p.partials != nullptr) level_sums.clear(p.level_count);

  const T* source = p.gradient.data + batch * p.gradient.batch;
  for (int i = static_cast<int>(threadIdx.x); i < Shape::kHeight * Shape::kGradientPitch; i += Shape::kThreads) {
    const int row = first_row + i / Shape::kGradientPitch;
    const int column = first_column - Shape::kLargestShift + i % Shape::kGradientPitch;
    const bool shown = row < p.height && column >= 0 && column < p.width;
    gradients[i] = shown ? widen(source[row * p.gradient.row + column * p.gradient.column]) : A(0);
  }

  for (int n = 0; n < p.image_count; ++n) {
    A* buffer = shared + n % kBuffers<1> * plane;
    load_tile<Shape, 1>(p, buffer, batch, n, 0, first_row, first_column);
    __syncthreads();
    for (int l = 0; l < p.level_count; ++l) {
      const LevelView<T>& level = p.levels[l];
      if (level.gradient == nullptr && p.partials == nullptr) continue;
      A sum = 0;
      if (at.row < p.height) {
        const int64_t plane_of_target = (static_cast<int64_t>(batch) * p.image_count + n) * level.size * level.size;
        T* target = level.gradient == nullptr
                        ? nullptr
                        : level.gradient + plane_of_target * pixels + (at.row * p.width + at.column);
        const int column_stride = static_cast<int>(level.column);
        const T* filters = p.partials == nullptr
                               ? nullptr
                               : level.filters + batch * level.batch + n * level.image +
                                     (at.row * static_cast<int>(level.row) + at.column * level.column);
        const A alpha = p.alphas[l * p.alpha_stride];
        with_size<false>(level.size, [&](auto size) {
          constexpr int K = decltype(size)::value;
          const A* window =
              buffer + (tile_row + p.halo_rows - K / 2) * Shape::kPitch + tile_column + Shape::kLeft - K / 2;
          const A* gradient = gradients + tile_row * Shape::kGradientPitch + tile_column + Shape::kLargestShift;
          sum = shifted_filters_gradient_level<K>(window, gradient, at.column, p.width, alpha, target, pixels, filters,
                                                  static_cast<int>(level.tap), column_stride);
        });
      }
      if (p.partials != nullptr) level_sums.add(l, sum);
    }
  }
  if (p.partials != nullptr) level_sums.finish(p.level_count, p.partials);
}

template <class T> __device__ __forceinline__ void filters_gradient_direct(const Problem<T>& p, Accumulate<T>* sums) {
  using Shape = Tile<T, 1>;
  const Position at = position_of_thread<Shape, 1>(p);
  const int batch = at.plane / p.image_count, image = at.plane % p.image_count;
  const bool inside = at.row < p.height && at.column < p.width;
  const LevelSums<Shape::kThreads, Accumulate<T>> level_sums{sums};
  if (p.partials != nullptr) level_sums.clear(p.level_count);

  const T* source = p.images.data + batch * p.images.batch + image * p.images.image;
  const T* gradient =
      p.gradient.data + batch * p.gradient.batch + at.row * p.gradient.row + at.column * p.gradient.column;
  const int64_t pixels = static_cast<int64_t>(p.height) * p.width;
  for (int l = 0; l < p.level_count; ++l) {
    const LevelView<T>& level = p.levels[l];
    if (level.gradient == nullptr && p.partials == nullptr) continue;
    Accumulate<T> sum = 0;
    if (inside) {
      const int radius = level.size / 2;
      const int64_t first_plane = static_cast<int64_t>(at.plane) * level.size * level.size;
      const int64_t first = first_plane * pixels + static_cast<int64_t>(at.row) * p.width + at.column;
      const T* filters =
          level.filters + batch * level.batch + image * level.image + at.row * level.row + at.column * level.column;
      const Accumulate<T> alpha = p.alphas[l * p.alpha_stride];
      int tap = 0;
      for (int i = -radius; i <= radius; ++i) {
        const int row = padded_index(at.row + i, p.height, p.padding);
        for (int j = -radius; j <= radius; ++j, ++tap) {
          const int column = padded_index(at.column + j, p.width, p.padding);
          Accumulate<T> product[1] = {};
          if (row >= 0 && column >= 0) {
            const T* pixel = source + row * p.images.row + column * p.images.column;
            for (int c = 0; c < p.channels; ++c)
              product[0] += widen(gradient[c * p.gradient.channel]) * widen(pixel[c * p.images.channel]);
          }
          if (p.partials != nullptr) {
            Accumulate<T> value[1];
            load_once<1>(filters + tap * level.tap, value);
            sum += value[0] * product[0];
          }
          product[0] *= alpha;
          if (level.gradient != nullptr) store<1>(level.gradient + first + tap * pixels, product);
        }
      }
    }
    if (p.partials != nullptr) level_sums.add(l, sum);
  }
  if (p.partials != nullptr) level_sums.finish(p.level_count, p.partials);
}

// ---- gradient of the images -----------------------------------------------------------------------------------------

// A pixel is seen at its own place and, under replicate and reflect padding, at places outside the picture too.
// Place 0 is its own; places 1 to 2R lie outside, and `shows` tells whether one of them shows the pixel.
struct Places {
  int own, size, radius;
  Padding padding;

  __device__ __forceinline__ bool at_border() const { return own <= radius || own >= size - 1 - radius; }
  __device__ __forceinline__ int count() const { return padding != Padding::zeros && at_border() ? 1 + 2 * radius : 1; }
  __device__ __forceinline__ int operator[](int i) const {
    if (i == 0) return own;
    return i <= radius ? i - 1 - radius : size + i - 1 - radius;
  }
  __device__ __forceinline__ bool shows(int i) const {
    return i == 0 || padded_index((*this)[i], size, padding) == own;
  }
};

// Rows of a thread that computes the images' gradient: they share what they read of the output's gradient, and their
// taps are in flight together. One channel only.
template <class T, class Index, int C> constexpr int kImagesGradientRows =
    C == 1 && sizeof(T) <= 4 && sizeof(Index) == 4 ? 2 : 1;

// Rows of 3 taps that a thread may have in flight. For sm_75 and sm_80, the compiler would spill registers for more.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ <= 800
template <class T, int R> constexpr int kRowsInFlight = sizeof(T) == 4 && R == 2 ? 2 : 4;
#else
template <class T, int R> constexpr int kRowsInFlight = 4;
#endif

// What a pixel gets through its own place, a row of taps at once. Away from the border every tap has an output that
// sees the pixel, so there is nothing to check; at the border the others count as zeros. One channel only; sums are in
// the order of images_gradient_level.
template <int K, int R, bool Border, class Index, class T>
__device__ __forceinline__ void images_gradient_own_place(const Problem<T>& p, const LevelView<T>& level,
                                                          const T* filters, const T* gradient, const Position& at,
                                                          Accumulate<T> (&sums)[R]) {
  const Index tap_stride = static_cast<Index>(level.tap), column_stride = static_cast<Index>(level.column);
  const Index gradient_column = static_cast<Index>(p.gradient.column);
  Accumulate<T> sum[R] = {};
#pragma unroll(K == 3 && !Border ? kRowsInFlight<T, R> : 1)
  for (int o = 0; o < K + R - 1; ++o) {
    // This row of outputs sees the thread's row r through tap row first + r; through tap 0, it does at `column`.
    const int first = o - (R - 1), row = at.row + K / 2 - first;
    const int column = at.column + K / 2;
    if (Border && (row < 0 || row >= p.height)) continue;
    const T* taps_of_row =
        filters + (first * K * tap_stride + row * static_cast<Index>(level.row) + column * column_stride);
    const T* seen_of_row = gradient + (row * static_cast<Index>(p.gradient.row) + column * gradient_column);
    Accumulate<T> taps[R][K][1], seen[K];
    if constexpr (Border) {  // elsewhere, zeros would take registers from loads in flight
#pragma unroll
      for (int j = 0; j < K; ++j) {
        seen[j] = 0;
#pragma unroll
        for (int r = 0; r < R; ++r) taps[r][j][0] = 0;
      }
    }
#pragma unroll
    for (int j = 0; j < K; ++j) {
      if (Border && (column - j < 0 || column - j >= p.width)) continue;
      seen[j] = widen(seen_of_row[-j * gradient_column]);
#pragma unroll
      for (int r = 0; r < R; ++r)
        if (first + r >= 0 && first + r < K)
          load_once<1>(taps_of_row + ((r * K + j) * tap_stride - j * column_stride), taps[r][j]);
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
      if (first + r < 0 || first + r >= K) continue;
#pragma unroll
      for (int j = 0; j < K; ++j) sum[r] += taps[r][j][0] * seen[j];
    }
  }
#pragma unroll
  for (int r = 0; r < R; ++r) sums[r] += sum[r];
}

// K = 0: the size is known at run time only. `OwnPlace`: also what the pixel gets through its own place.
template <int K, bool OwnPlace, class Index, int C, class T>
__device__ __forceinline__ void images_gradient_level(const Problem<T>& p, const LevelView<T>& level, const T* filters,
                                                      const T* gradient, int channels, const Position& at,
                                                      Accumulate<T> (&sum)[C]) {
  const int size = K > 0 ? K : level.size, radius = size / 2;
  const Index tap_stride = static_cast<Index>(level.tap), row_stride = static_cast<Index>(level.row),
              column_stride = static_cast<Index>(level.column);
  const Index gradient_row = static_cast<Index>(p.gradient.row),
              gradient_column = static_cast<Index>(p.gradient.column);
  const Places rows{at.row, p.height, radius, p.padding}, columns{at.column, p.width, radius, p.padding};
  for (int r = 0; r < rows.count(); ++r) {
    if (!rows.shows(r)) continue;
    for (int s = 0; s < columns.count(); ++s) {
      if (!columns.shows(s) || (!OwnPlace && r == 0 && s == 0)) continue;
#pragma unroll kRowsUnrolled < K>
      for (int i = 0; i < size; ++i) {
        const int row = rows[r] + radius - i;  // the output that sees this place through tap row i
        if (row < 0 || row >= p.height) continue;
#pragma unroll
        for (int j = 0; j < size; ++j) {
          const int column = columns[s] + radius - j;
          if (column < 0 || column >= p.width) continue;
          Accumulate<T> tap[1];
          load_once<1>(filters + ((i * size + j) * tap_stride + row * row_stride + column * column_stride), tap);
          const T* at_output = gradient + (row * gradient_row + column * gradient_column);
#pragma unroll
          for (int c = 0; c < C; ++c)
            if (c < channels) sum[c] += tap[0] * widen(at_output[c * p.gradient.channel]);
        }
      }
    }
  }
}

// All rows of a thread. `Border`: some pixel of the block may be at the border.
template <int K, bool Border, class Index, int R, int C, class T>
__device__ __forceinline__ void images_gradient_rows(const Problem<T>& p, const LevelView<T>& level, const T* filters,
                                                     const T* gradient, int channels, const Position& at,
                                                     Accumulate<T> (&sums)[R][C]) {
  constexpr bool kRowsOfTaps = K > 0 && C == 1;
  if constexpr (kRowsOfTaps) {
    constexpr int kTogether = R * K <= (Border ? 6 : 10) ? R : 1;  // more taps at once would be too many registers
#pragma unroll 1
    for (int first = 0; first < R; first += kTogether) {
      Accumulate<T> sum[kTogether] = {};
      images_gradient_own_place<K, kTogether, Border, Index>(p, level, filters, gradient,
                                                             {at.plane, at.row + first, at.column}, sum);
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int i = 0; i < kTogether; ++i)
          if (r == first + i) sums[r][0] += sum[i];
    }
    if (!Border || p.padding == Padding::zeros) return;
  }
#pragma unroll 1
  for (int row = 0; row < R; ++row) {
    if (at.row + row >= p.height) break;
    Accumulate<T> sum[C] = {};
    // Code for the border in every size would cost the rest registers.
    images_gradient_level<C == 1 ? 0 : K, !kRowsOfTaps, Index, C>(p, level, filters, gradient, channels,
                                                                  {at.plane, at.row + row, at.column}, sum);
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int c = 0; c < C; ++c)
        if (r == row) sums[r][c] += sum[c];
  }
}

// Whether some pixel of the block's tile is at the border for a filter of this radius, the same for all threads.
template <class Shape, class T>
__device__ __forceinline__ bool block_at_border(const Problem<T>& p, const Position& at, int radius) {
  const int thread = static_cast<int>(threadIdx.x);
  const int row = at.row - thread / Shape::kThreadsAcross * Shape::kRows;
  const int column = at.column - thread % Shape::kThreadsAcross;
  const Places first_row{row, p.height, radius, p.padding}, first_column{column, p.width, radius, p.padding};
  const Places last_row{row + Shape::kHeight - 1, p.height, radius, p.padding},
      last_column{column + Shape::kWidth - 1, p.width, radius, p.padding};
  return first_row.at_border() || last_row.at_border() || first_column.at_border() || last_column.at_border();
}

// The sums over all levels. Each value of `Border` has code of its own, so that only the border pays for its checks.
template <bool Border, class Index, int R, int C, class Sums, class T>
__device__ __forceinline__ void images_gradient_levels(const Problem<T>& p, const Position& at, const T* gradient,
                                                       int first_channel, int channels, const Sums& level_sums,
                                                       Accumulate<T> (&result)[R][C]) {
  const int batch = at.plane / p.image_count, image = at.plane % p.image_count;
  for (int l = 0; l < p.level_count; ++l) {
    const LevelView<T>& level = p.levels[l];
    Accumulate<T> for_alpha = 0;
    if (at.row < p.height && at.column < p.width) {
      Accumulate<T> sum[R][C] = {};
      const T* filters = level.filters + batch * level.batch + image * level.image;
      with_size<true>(level.size, [&](auto size) {
        images_gradient_rows<decltype(size)::value, Border, Index, R, C>(p, level, filters, gradient, channels, at,
                                                                         sum);
      });
      const Accumulate<T> alpha = p.alphas[l * p.alpha_stride];
      const T* pixel = p.images.data + batch * p.images.batch + image * p.images.image +
                       first_channel * p.images.channel + at.row * p.images.row + at.column * p.images.column;
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int c = 0; c < C; ++c) {
          result[r][c] += alpha * sum[r][c];
          // The level's share of sum(g * out) can be summed over images as well as over outputs, and the
          // filters have already been read here.
          if (p.partials != nullptr && c < channels && at.row + r < p.height)
            for_alpha += sum[r][c] * widen(pixel[r * p.images.row + c * p.images.channel]);
        }
    }
    if (p.partials != nullptr) level_sums.add(l, for_alpha);
  }
}

template <class T, class Index, int C>
__device__ __forceinline__ void images_gradient(const Problem<T>& p, Accumulate<T>* sums) {
  constexpr int R = kImagesGradientRows<T, Index, C>;
  using Shape = Tile<T, 1, R>;
  const int groups = (p.channels + C - 1) / C;
  const Position at = position_of_thread<Shape, 1>(p);
  const int first_channel = at.plane % groups * C, plane = at.plane / groups;
  const int channels = p.channels - first_channel < C ? p.channels - first_channel : C;
  const LevelSums<Shape::kThreads, Accumulate<T>> level_sums{sums};
  if (p.partials != nullptr) level_sums.clear(p.level_count);

  const T* gradient = p.gradient.data + plane / p.image_count * p.gradient.batch + first_channel * p.gradient.channel;
  Accumulate<T> result[R][C] = {};
  const Position place{plane, at.row, at.column};
  if (C > 1 || block_at_border<Shape>(p, at, p.halo_rows))
    images_gradient_levels<true, Index>(p, place, gradient, first_channel, channels, level_sums, result);
  else if constexpr (C == 1)
    images_gradient_levels<false, Index>(p, place, gradient, first_channel, channels, level_sums, result);
  if (p.partials != nullptr) level_sums.finish(p.level_count, p.partials);
  if (at.row >= p.height || at.column >= p.width) return;
#pragma unroll
  for (int r = 0; r < R; ++r)
#pragma unroll
    for (int c = 0; c < C; ++c) {
      if (c >= channels || at.row + r >= p.height) break;
      Accumulate<T> value[1] = {result[r][c]};
      const int64_t row = (static_cast<int64_t>(plane) * p.channels + first_channel + c) * p.height + at.row + r;
      store_result<1>(p.images_gradient + row * p.width + at.column, p.add_result, value);
    }
}

}  // namespace ffmef::cuda
