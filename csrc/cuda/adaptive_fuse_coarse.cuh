// Kernels of adaptive_fuse for calls in which the filters of some level are on a coarser grid than the images.
// Bodies are device functions; adaptive_fuse.cu wraps them in kernels and chooses among them.
//
//   fuse_coarse_tiled       all levels, coarse or full, k in {1, 3, 5, 7}; images through shared memory
//   fuse_coarse             the same for any odd k, any size
//   images_gradient_coarse  the same, by gather
//   cells_gradient          one coarse level's filters, gathered over the pixels that each cell reaches, and its alpha
// Index is int where places on the grids fit in 32 bits. Coarse filters are few: the four per tap come from the cache.
#pragma once

#include "../common/interpolation.h"
#include "adaptive_fuse.cuh"

namespace ffmef::cuda {

struct LevelGrid {
  int down, across;
  bool coarse;
};

template <class T> struct CoarseProblem {
  Problem<T> all;
  LevelGrid grids[kLevelsPerLaunch];
  int tiles_across, tiles_down;  // of pixels, or of cells for their gradient
};

// Where a pixel reads a level's taps: between two rows and two columns of cells, or at its own place.
template <class A> struct Reading {
  int64_t upper, lower, left, right;  // offsets in elements
  A down, across;                     // shares of the lower row and of the right column
  bool coarse;
};

template <class Index, class T>
__device__ __forceinline__ Reading<Accumulate<T>> reading_at(const CoarseProblem<T>& q, int l, int row, int column) {
  using A = Accumulate<T>;
  const LevelView<T>& level = q.all.levels[l];
  const LevelGrid& grid = q.grids[l];
  if (!grid.coarse) return {row * level.row, 0, column * level.column, 0, A(0), A(0), false};
  const Tap<Index, A> down = tap_of<A>(spanning<Index>(grid.down, q.all.height), static_cast<Index>(row));
  const Tap<Index, A> across = tap_of<A>(spanning<Index>(grid.across, q.all.width), static_cast<Index>(column));
  return {down.first * level.row,
          down.second * level.row,
          across.first * level.column,
          across.second * level.column,
          down.share,
          across.share,
          true};
}

template <class T, class A> __device__ __forceinline__ A read_tap(const T* filters, const Reading<A>& at) {
  if (!at.coarse) return widen(filters[at.upper + at.left]);
  const A near_share = A(1) - at.across;
  const A upper = widen(filters[at.upper + at.left]) * near_share + widen(filters[at.upper + at.right]) * at.across;
  const A lower = widen(filters[at.lower + at.left]) * near_share + widen(filters[at.lower + at.right]) * at.across;
  return upper * (A(1) - at.down) + lower * at.down;
}

// Interpolation is linear, so a pixel's responses to four cells' filters are mixed rather than the taps.
template <int K, class T>
__device__ __forceinline__ Accumulate<T> coarse_response(const Accumulate<T>* tile, int pitch, const T* filters,
                                                         const Reading<Accumulate<T>>& at, int tap_stride) {
  using A = Accumulate<T>;
  const int corners[4] = {static_cast<int>(at.upper + at.left), static_cast<int>(at.upper + at.right),
                          static_cast<int>(at.lower + at.left), static_cast<int>(at.lower + at.right)};
  A sums[4] = {};
#pragma unroll kRowsUnrolled < K>
  for (int i = 0; i < K; ++i) {
    A window[K], taps[K][4];
    load_window<K / 2, 1>(tile + i * pitch, window);
#pragma unroll
    for (int j = 0; j < K; ++j)
#pragma unroll
      for (int c = 0; c < 4; ++c) taps[j][c] = widen(filters[(i * K + j) * tap_stride + corners[c]]);
#pragma unroll
    for (int j = 0; j < K; ++j)
#pragma unroll
      for (int c = 0; c < 4; ++c) sums[c] += taps[j][c] * window[j];
  }
  const A near_share = A(1) - at.across;
  const A upper = sums[0] * near_share + sums[1] * at.across, lower = sums[2] * near_share + sums[3] * at.across;
  return upper * (A(1) - at.down) + lower * at.down;
}

// One channel per block: the filters are few, and the other channels find them in the cache.
template <class T, class Index>
__device__ __forceinline__ void fuse_coarse_tiled(const CoarseProblem<T>& q, Accumulate<T>* tile) {
  using A = Accumulate<T>;
  using Shape = Tile<T, 1>;
  const Problem<T>& p = q.all;
  const Position at = position_of_thread<Shape, 1>(q);
  const int batch = at.plane / p.channels, channel = at.plane % p.channels;
  const int tile_row = static_cast<int>(threadIdx.x) / Shape::kThreadsAcross;
  const int tile_column = static_cast<int>(threadIdx.x) % Shape::kThreadsAcross;
  const int plane = (Shape::kHeight + 2 * p.halo_rows) * Shape::kPitch;
  const bool inside = at.row < p.height && at.column < p.width;

  A result[1][1][1] = {};
  for (int n = 0; n < p.image_count; ++n) {
    A* buffer = tile + n % kBuffers<1> * plane;
    load_tile<Shape, 1>(p, buffer, batch, n, channel, at.row - tile_row, at.column - tile_column);
    __syncthreads();
    if (!inside) continue;
    for (int l = 0; l < p.level_count; ++l) {
      const LevelView<T>& level = p.levels[l];
      const Reading<A> reading = reading_at<Index>(q, l, at.row, at.column);
      const T* filters = level.filters + batch * level.batch + n * level.image;
      const A weight = p.alphas[l * p.alpha_stride];
      const int tap_stride = static_cast<int>(level.tap);
      with_size<false>(level.size, [&](auto size) {
        constexpr int K = decltype(size)::value;
        const A* origin = buffer + (tile_row + p.halo_rows - K / 2) * Shape::kPitch + tile_column;
        if (reading.coarse) {
          result[0][0][0] += weight * coarse_response<K>(origin, Shape::kPitch, filters, reading, tap_stride);
          return;
        }
        const Rows<1> rows(at.row, p.height, 0);
        fuse_level<K, 1, 1, 1>(origin, plane, Shape::kPitch, filters + (reading.upper + reading.left), rows, tap_stride,
                               weight, result);
      });
    }
  }
  if (!inside) return;
  store_result<1>(p.output + (static_cast<int64_t>(at.plane) * p.height + at.row) * p.width + at.column, p.add_result,
                  result[0][0]);
}

template <class T, class Index> __device__ __forceinline__ void fuse_coarse(const CoarseProblem<T>& q) {
  using Shape = Tile<T, 1>;
  constexpr int C = kChannelsAtOnce;
  const Problem<T>& p = q.all;
  const int groups = (p.channels + C - 1) / C;
  const Position at = position_of_thread<Shape, 1>(q);
  const int batch = at.plane / groups, first_channel = at.plane % groups * C;
  if (at.row >= p.height || at.column >= p.width) return;

  // In the order of fuse_tiled, image by image: a full level adds the same bits with or without a coarse one beside it.
  Accumulate<T> result[C][1] = {};
  for (int n = 0; n < p.image_count; ++n) {
    const T* image = p.images.data + batch * p.images.batch + n * p.images.image + first_channel * p.images.channel;
    for (int l = 0; l < p.level_count; ++l) {
      const LevelView<T>& level = p.levels[l];
      const Reading<Accumulate<T>> reading = reading_at<Index>(q, l, at.row, at.column);
      const int radius = level.size / 2;
      const T* filters = level.filters + batch * level.batch + n * level.image;
      Accumulate<T> sum[C] = {};
      for (int i = -radius; i <= radius; ++i) {
        const int row = padded_index(at.row + i, p.height, p.padding);
        for (int j = -radius; j <= radius; ++j, filters += level.tap) {
          const int column = padded_index(at.column + j, p.width, p.padding);
          const Accumulate<T> tap = read_tap(filters, reading);
          const bool shown = row >= 0 && column >= 0;
          const T* pixel = image + (shown ? row * p.images.row + column * p.images.column : 0);
#pragma unroll
          for (int c = 0; c < C; ++c) {
            // Zero padding is a value like any other: a tap that is not finite must show.
            if (first_channel + c < p.channels)
              sum[c] += tap * (shown ? widen(pixel[c * p.images.channel]) : Accumulate<T>(0));
          }
        }
      }
      const Accumulate<T> weight = p.alphas[l * p.alpha_stride];
#pragma unroll
      for (int c = 0; c < C; ++c) result[c][0] += weight * sum[c];
    }
  }
#pragma unroll
  for (int c = 0; c < C; ++c) {
    if (first_channel + c >= p.channels) break;
    const int64_t row = (static_cast<int64_t>(batch) * p.channels + first_channel + c) * p.height + at.row;
    store_result<1>(p.output + row * p.width + at.column, p.add_result, result[c]);
  }
}

template <class T, class Index> __device__ __forceinline__ void images_gradient_coarse(const CoarseProblem<T>& q) {
  using Shape = Tile<T, 1>;
  constexpr int C = kChannelsAtOnce;
  const Problem<T>& p = q.all;
  const int groups = (p.channels + C - 1) / C;
  const Position at = position_of_thread<Shape, 1>(q);
  const int first_channel = at.plane % groups * C, plane = at.plane / groups;
  const int batch = plane / p.image_count, image = plane % p.image_count;
  if (at.row >= p.height || at.column >= p.width) return;

  const T* gradient = p.gradient.data + batch * p.gradient.batch + first_channel * p.gradient.channel;
  Accumulate<T> result[C] = {};
  for (int l = 0; l < p.level_count; ++l) {
    const LevelView<T>& level = p.levels[l];
    const T* filters = level.filters + batch * level.batch + image * level.image;
    const int size = level.size, radius = size / 2;
    const Places rows{at.row, p.height, radius, p.padding}, columns{at.column, p.width, radius, p.padding};
    Accumulate<T> sum[C] = {};
    for (int r = 0; r < rows.count(); ++r) {
      if (!rows.shows(r)) continue;
      for (int s = 0; s < columns.count(); ++s) {
        if (!columns.shows(s)) continue;
        for (int tap = 0; tap < size * size; ++tap) {
          const int row = rows[r] + radius - tap / size, column = columns[s] + radius - tap % size;
          if (row < 0 || row >= p.height || column < 0 || column >= p.width) continue;
          const Accumulate<T> value = read_tap(filters + tap * level.tap, reading_at<Index>(q, l, row, column));
          const T* at_output = gradient + (row * p.gradient.row + column * p.gradient.column);
#pragma unroll
          for (int c = 0; c < C; ++c)
            if (first_channel + c < p.channels) sum[c] += value * widen(at_output[c * p.gradient.channel]);
        }
      }
    }
    const Accumulate<T> weight = p.alphas[l * p.alpha_stride];
#pragma unroll
    for (int c = 0; c < C; ++c) result[c] += weight * sum[c];
  }
#pragma unroll
  for (int c = 0; c < C; ++c) {
    if (first_channel + c >= p.channels) break;
    Accumulate<T> value[1] = {result[c]};
    const int64_t row = (static_cast<int64_t>(plane) * p.channels + first_channel + c) * p.height + at.row;
    store_result<1>(p.images_gradient + row * p.width + at.column, p.add_result, value);
  }
}

// A thread computes one tap of one cell of the problem's only level. Interpolation is linear: the sums over pixels
// behind each cell's gradient, times that cell, add up to the gradient of alpha.
template <class T, class Index>
__device__ __forceinline__ void cells_gradient(const CoarseProblem<T>& q, Accumulate<T>* sums) {
  using Shape = Tile<T, 1>;
  const Problem<T>& p = q.all;
  const LevelView<T>& level = p.levels[0];
  const LevelGrid& grid = q.grids[0];
  const Position at = position_of_thread<Shape, 1>(q);
  const int taps = level.size * level.size, tap = at.plane % taps, picture = at.plane / taps;
  const int batch = picture / p.image_count, image = picture % p.image_count;
  const LevelSums<Shape::kThreads, Accumulate<T>> level_sums{sums};
  if (p.partials != nullptr) level_sums.clear(1);

  Accumulate<T> for_alpha = 0;
  if (at.row < grid.down && at.column < grid.across) {
    const Interpolation<Index> rows = spanning<Index>(grid.down, p.height);
    const Interpolation<Index> columns = spanning<Index>(grid.across, p.width);
    const Span<Index> down = span_of(rows, static_cast<Index>(at.row), static_cast<Index>(p.height));
    const Span<Index> across = span_of(columns, static_cast<Index>(at.column), static_cast<Index>(p.width));
    const T* gradient = p.gradient.data + batch * p.gradient.batch;
    const T* source = p.images.data + batch * p.images.batch + image * p.images.image;
    const int dy = tap / level.size - level.size / 2, dx = tap % level.size - level.size / 2;
    Accumulate<T> total = 0;
    for (int y = static_cast<int>(down.first); y < down.last; ++y) {
      const int row = padded_index(y + dy, p.height, p.padding);
      if (row < 0) continue;
      Accumulate<T> in_row = 0;
      for (int x = static_cast<int>(across.first); x < across.last; ++x) {
        const int column = padded_index(x + dx, p.width, p.padding);
        if (column < 0) continue;
        const T* at_output = gradient + (y * p.gradient.row + x * p.gradient.column);
        const T* pixel = source + (row * p.images.row + column * p.images.column);
        Accumulate<T> product = 0;
        for (int c = 0; c < p.channels; ++c)
          product += widen(at_output[c * p.gradient.channel]) * widen(pixel[c * p.images.channel]);
        in_row += share_of<Accumulate<T>>(columns, static_cast<Index>(at.column), static_cast<Index>(x)) * product;
      }
      total += share_of<Accumulate<T>>(rows, static_cast<Index>(at.row), static_cast<Index>(y)) * in_row;
    }
    if (p.partials != nullptr)
      for_alpha = total * widen(level.filters[batch * level.batch + image * level.image + tap * level.tap +
                                              at.row * level.row + at.column * level.column]);
    if (level.gradient != nullptr) {
      const int64_t row = static_cast<int64_t>(at.plane) * grid.down + at.row;
      level.gradient[row * grid.across + at.column] = narrow<T>(p.alphas[0] * total);
    }
  }
  if (p.partials == nullptr) return;
  level_sums.add(0, for_alpha);
  level_sums.finish(1, p.partials);
}

}  // namespace ffmef::cuda
