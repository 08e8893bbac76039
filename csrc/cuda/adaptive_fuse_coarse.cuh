// Kernels of adaptive_fuse for calls in which the filters of some level are on a coarser grid than the images.
// Bodies are device functions; adaptive_fuse.cu wraps them in kernels and chooses among them.
//
//   fuse_coarse_tiled  all levels, coarse or full, k in {1, 3, 5, 7}; images through shared memory
//   fuse_coarse        the same for any odd k, any size
// The gradients are in adaptive_fuse_coarse_gradients.cuh.
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
  int lanes_per_cell;            // of cells_gradient_by_lanes
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
// R rows between the same cells share what they read of the filters; `at` are their readings.
template <int K, int R, class T>
__device__ __forceinline__ void coarse_responses(const Accumulate<T>* tile, int pitch, const T* filters,
                                                 const Reading<Accumulate<T>> (&at)[R], int tap_stride,
                                                 Accumulate<T> (&responses)[R]) {
  using A = Accumulate<T>;
  const int corners[4] = {static_cast<int>(at[0].upper + at[0].left), static_cast<int>(at[0].upper + at[0].right),
                          static_cast<int>(at[0].lower + at[0].left), static_cast<int>(at[0].lower + at[0].right)};
  A sums[R][4] = {};
#pragma unroll kRowsUnrolled < K>
  for (int i = 0; i < K; ++i) {
    A windows[R][K], taps[K][4];
#pragma unroll
    for (int r = 0; r < R; ++r) load_window<K / 2, 1>(tile + (i + r) * pitch, windows[r]);
#pragma unroll
    for (int j = 0; j < K; ++j)
#pragma unroll
      for (int c = 0; c < 4; ++c) taps[j][c] = widen(filters[(i * K + j) * tap_stride + corners[c]]);
#pragma unroll
    for (int j = 0; j < K; ++j)
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int c = 0; c < 4; ++c) sums[r][c] += taps[j][c] * windows[r][j];
  }
  const A near_share = A(1) - at[0].across;
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const A upper = sums[r][0] * near_share + sums[r][1] * at[0].across;
    const A lower = sums[r][2] * near_share + sums[r][3] * at[0].across;
    responses[r] = upper * (A(1) - at[r].down) + lower * at[r].down;
  }
}

// Four rows lie between the same two rows of cells nearly everywhere, and read their filters once.
template <class T> constexpr int kCoarseRows = sizeof(T) <= 4 ? 4 : 1;

template <int K, class Index, int R, class T>
__device__ __forceinline__ void fuse_coarse_level(const CoarseProblem<T>& q, int l, const Position& at,
                                                  const Accumulate<T>* tile, int pitch, const T* filters,
                                                  Accumulate<T> weight, Accumulate<T> (&result)[R]) {
  using A = Accumulate<T>;
  const int last = q.all.height - 1, tap_stride = static_cast<int>(q.all.levels[l].tap);
  Reading<A> readings[R];
  bool together = true;
#pragma unroll
  for (int r = 0; r < R; ++r) {
    // A row below the picture reads as the last one does, and is not stored.
    readings[r] = reading_at<Index>(q, l, at.row + r < last ? at.row + r : last, at.column);
    together = together && readings[r].upper == readings[0].upper && readings[r].lower == readings[0].lower;
  }
  if (together) {
    A responses[R];
    coarse_responses<K>(tile, pitch, filters, readings, tap_stride, responses);
#pragma unroll
    for (int r = 0; r < R; ++r) result[r] += weight * responses[r];
    return;
  }
#pragma unroll 1
  for (int row = 0; row < R; ++row) {
    const Reading<A> reading[1] = {reading_at<Index>(q, l, at.row + row < last ? at.row + row : last, at.column)};
    A response[1];
    coarse_responses<K>(tile + row * pitch, pitch, filters, reading, tap_stride, response);
#pragma unroll
    for (int r = 0; r < R; ++r)
      if (r == row) result[r] += weight * response[0];
  }
}

// One channel per block: the filters are few, and the other channels find them in the cache.
template <class T, class Index>
__device__ __forceinline__ void fuse_coarse_tiled(const CoarseProblem<T>& q, Accumulate<T>* tile) {
  using A = Accumulate<T>;
  constexpr int R = kCoarseRows<T>;
  using Shape = Tile<T, 1, R>;
  const Problem<T>& p = q.all;
  const Position at = position_of_thread<Shape, 1>(q);
  const int batch = at.plane / p.channels, channel = at.plane % p.channels;
  const int tile_row = static_cast<int>(threadIdx.x) / Shape::kThreadsAcross * R;
  const int tile_column = static_cast<int>(threadIdx.x) % Shape::kThreadsAcross;
  const int plane = (Shape::kHeight + 2 * p.halo_rows) * Shape::kPitch;
  const bool inside = at.row < p.height && at.column < p.width;

  A result[1][R][1] = {};
  for (int n = 0; n < p.image_count; ++n) {
    A* buffer = tile + n % kBuffers<1> * plane;
    load_tile<Shape, 1>(p, buffer, batch, n, channel, at.row - tile_row, at.column - tile_column);
    __syncthreads();
    if (!inside) continue;
    for (int l = 0; l < p.level_count; ++l) {
      const LevelView<T>& level = p.levels[l];
      const T* filters = level.filters + batch * level.batch + n * level.image;
      const A weight = p.alphas[l * p.alpha_stride];
      with_size<false>(level.size, [&](auto size) {
        constexpr int K = decltype(size)::value;
        const A* origin = buffer + (tile_row + p.halo_rows - K / 2) * Shape::kPitch + tile_column;
        if (q.grids[l].coarse) {
          A fused[R];
#pragma unroll
          for (int r = 0; r < R; ++r) fused[r] = result[0][r][0];
          fuse_coarse_level<K, Index>(q, l, at, origin, Shape::kPitch, filters, weight, fused);
#pragma unroll
          for (int r = 0; r < R; ++r) result[0][r][0] = fused[r];
          return;
        }
        const Rows<R> rows(at.row, p.height, static_cast<int>(level.row));
        const int own = at.row * static_cast<int>(level.row) + at.column * static_cast<int>(level.column);
        fuse_level<K, 1, R, 1>(origin, plane, Shape::kPitch, filters + own, rows, static_cast<int>(level.tap), weight,
                               result);
      });
    }
  }
  if (!inside) return;
  const int64_t row = static_cast<int64_t>(at.plane) * p.height + at.row;
#pragma unroll
  for (int r = 0; r < R; ++r)
    if (at.row + r < p.height) store_result<1>(p.output + (row + r) * p.width + at.column, p.add_result, result[0][r]);
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

}  // namespace ffmef::cuda
