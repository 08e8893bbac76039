// Gradients of adaptive_fuse for calls in which the filters of some level are on a coarser grid than the images.
//
//   images_gradient_coarse_tiled  all levels, k in {1, 3, 5, 7}: the output's gradient through shared memory
//   images_gradient_coarse        the same for any odd k, any size, by gather
//   cells_gradient_by_lanes       one coarse level's filters, k in {1, 3, 5, 7}, and its alpha: a lane per column
//   cells_gradient                the same for any odd k, any size: a thread per tap of a cell
#pragma once

#include "adaptive_fuse_coarse.cuh"

namespace ffmef::cuda {

// Adds what all outputs that see a pixel through a level's taps give to its gradient, for `channels` of C channels.
template <class Index, int C, class T>
__device__ __forceinline__ void gather_coarse_gradient(const CoarseProblem<T>& q, int l, const T* filters,
                                                       const T* gradient, int channels, const Places& rows,
                                                       const Places& columns, Accumulate<T> (&sum)[C]) {
  const Problem<T>& p = q.all;
  const LevelView<T>& level = p.levels[l];
  const int size = level.size, radius = size / 2;
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
          if (c < channels) sum[c] += value * widen(at_output[c * p.gradient.channel]);
      }
    }
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
    const int radius = level.size / 2;
    const Places rows{at.row, p.height, radius, p.padding}, columns{at.column, p.width, radius, p.padding};
    Accumulate<T> sum[C] = {};
    gather_coarse_gradient<Index>(q, l, filters, gradient, p.channels - first_channel, rows, columns, sum);
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

// ---- the images' gradient by tiles ----------------------------------------------------------------------------------

// Where the rows and columns of a tile, halo included, read a level: shared memory, filled for one level after another.
template <class A> struct PlaceOnGrid {
  int first, second;  // offsets in elements
  A share;            // of the second
};

template <class T> struct GradientTile {
  using Shape = Tile<T, 1>;
  static constexpr int kRows = Shape::kHeight + 2 * kHalo;
  Accumulate<T> gradient[kRows * Shape::kPitch];
  PlaceOnGrid<Accumulate<T>> rows[kRows], columns[Shape::kPitch];
};

// Fills the tables of places. Places outside the picture are never read.
template <class Index, class T> __device__ __forceinline__ void find_places(const CoarseProblem<T>& q, int l,
                                                                            int first_row, int first_column,
                                                                            GradientTile<T>& tile) {
  using A = Accumulate<T>;
  using Shape = Tile<T, 1>;
  const LevelView<T>& level = q.all.levels[l];
  for (int i = static_cast<int>(threadIdx.x); i < GradientTile<T>::kRows + Shape::kPitch; i += Shape::kThreads) {
    const bool down = i < GradientTile<T>::kRows;
    const int place = down ? first_row - kHalo + i : first_column - kHalo + i - GradientTile<T>::kRows;
    const int size = down ? q.all.height : q.all.width;
    if (place < 0 || place >= size) continue;
    const int stride = static_cast<int>(down ? level.row : level.column);
    const Tap<Index, A> tap =
        tap_of<A>(spanning<Index>(down ? q.grids[l].down : q.grids[l].across, size), static_cast<Index>(place));
    const PlaceOnGrid<A> found = {static_cast<int>(tap.first) * stride, static_cast<int>(tap.second) * stride,
                                  tap.share};
    if (down)
      tile.rows[i] = found;
    else
      tile.columns[i - GradientTile<T>::kRows] = found;
  }
}

// Away from the border, as images_gradient_inside; `row` and `column` count inside the tile.
template <int K, class T>
__device__ __forceinline__ Accumulate<T> coarse_gradient_inside(const GradientTile<T>& tile, int row, int column,
                                                                const T* filters, int tap_stride) {
  using A = Accumulate<T>;
  A sum = 0;
#pragma unroll 1
  for (int i = 0; i < K; ++i) {
    const PlaceOnGrid<A> down = tile.rows[row + K / 2 - i];
    const A* seen = tile.gradient + (row + K / 2 - i) * Tile<T, 1>::kPitch + column + K / 2;
    const PlaceOnGrid<A>* across = tile.columns + column + K / 2;
    A taps[K][4];
#pragma unroll
    for (int j = 0; j < K; ++j) {
      const T* of_tap = filters + (i * K + j) * tap_stride;
      taps[j][0] = widen(of_tap[down.first + across[-j].first]);
      taps[j][1] = widen(of_tap[down.first + across[-j].second]);
      taps[j][2] = widen(of_tap[down.second + across[-j].first]);
      taps[j][3] = widen(of_tap[down.second + across[-j].second]);
    }
#pragma unroll
    for (int j = 0; j < K; ++j) {
      const A share = across[-j].share, near_share = A(1) - share;
      const A upper = taps[j][0] * near_share + taps[j][1] * share;
      const A lower = taps[j][2] * near_share + taps[j][3] * share;
      sum += (upper * (A(1) - down.share) + lower * down.share) * seen[-j];
    }
  }
  return sum;
}

// The same for a level of full size.
template <int K, class T> __device__ __forceinline__ Accumulate<T> full_gradient_inside(const Accumulate<T>* seen,
                                                                                        const T* filters,
                                                                                        const LevelView<T>& level) {
  const int tap_stride = static_cast<int>(level.tap), row_stride = static_cast<int>(level.row),
            column_stride = static_cast<int>(level.column);
  Accumulate<T> sum = 0;
#pragma unroll kRowsUnrolled < K>
  for (int i = 0; i < K; ++i) {
    Accumulate<T> taps[K][1];
#pragma unroll
    for (int j = 0; j < K; ++j)
      load_once<1>(filters + ((i * K + j) * tap_stride + (K / 2 - i) * row_stride + (K / 2 - j) * column_stride),
                   taps[j]);
#pragma unroll
    for (int j = 0; j < K; ++j) sum += taps[j][0] * seen[(K / 2 - i) * Tile<T, 1>::kPitch + K / 2 - j];
  }
  return sum;
}

// One channel per block.
template <class T, class Index>
__device__ __forceinline__ void images_gradient_coarse_tiled(const CoarseProblem<T>& q, GradientTile<T>& tile) {
  using A = Accumulate<T>;
  using Shape = Tile<T, 1>;
  const Problem<T>& p = q.all;
  const Position at = position_of_thread<Shape, 1>(q);
  const int channel = at.plane % p.channels, picture = at.plane / p.channels;
  const int batch = picture / p.image_count, image = picture % p.image_count;
  const int tile_row = static_cast<int>(threadIdx.x) / Shape::kThreadsAcross;
  const int tile_column = static_cast<int>(threadIdx.x) % Shape::kThreadsAcross;
  const int first_row = at.row - tile_row, first_column = at.column - tile_column;
  const bool inside = at.row < p.height && at.column < p.width;

  const T* gradient = p.gradient.data + batch * p.gradient.batch + channel * p.gradient.channel;
  for (int i = static_cast<int>(threadIdx.x); i < GradientTile<T>::kRows * Shape::kPitch; i += Shape::kThreads) {
    const int row = first_row - kHalo + i / Shape::kPitch, column = first_column - kHalo + i % Shape::kPitch;
    const bool shown = row >= 0 && row < p.height && column >= 0 && column < p.width;
    tile.gradient[i] = shown ? widen(gradient[row * p.gradient.row + column * p.gradient.column]) : A(0);
  }

  A result = 0;
  for (int l = 0; l < p.level_count; ++l) {
    const LevelView<T>& level = p.levels[l];
    const bool coarse = q.grids[l].coarse;
    if (coarse) {
      if (l > 0) __syncthreads();  // every thread is done with the previous level's places
      find_places<Index>(q, l, first_row, first_column, tile);
    }
    if (coarse || l == 0) __syncthreads();
    if (!inside) continue;
    const T* filters = level.filters + batch * level.batch + image * level.image;
    const int radius = level.size / 2;
    const Places rows{at.row, p.height, radius, p.padding}, columns{at.column, p.width, radius, p.padding};
    A sum[1] = {};
    if (rows.at_border() || columns.at_border()) {
      gather_coarse_gradient<Index>(q, l, filters, gradient, 1, rows, columns, sum);
    } else {
      with_size<false>(level.size, [&](auto size) {
        constexpr int K = decltype(size)::value;
        if (coarse) {
          sum[0] = coarse_gradient_inside<K>(tile, tile_row + kHalo, tile_column + kHalo, filters,
                                             static_cast<int>(level.tap));
          return;
        }
        const int own = at.row * static_cast<int>(level.row) + at.column * static_cast<int>(level.column);
        const A* seen = tile.gradient + (tile_row + kHalo) * Shape::kPitch + tile_column + kHalo;
        sum[0] = full_gradient_inside<K>(seen, filters + own, level);
      });
    }
    result += p.alphas[l * p.alpha_stride] * sum[0];
  }
  if (!inside) return;
  A value[1] = {result};
  const int64_t row = static_cast<int64_t>(at.plane) * p.height + at.row;
  store_result<1>(p.images_gradient + row * p.width + at.column, p.add_result, value);
}

// ---- the gradient of cells ------------------------------------------------------------------------------------------

constexpr int kCellThreads = 256;

// What the taps of one row see of an image; hidden places are zero.
template <int K, class T> __device__ __forceinline__ void load_row_of_window(const Problem<T>& p, const T* image,
                                                                             int row, const int (&columns)[K],
                                                                             Accumulate<T> (&values)[K]) {
  const int seen = padded_index(row, p.height, p.padding), offset = seen * static_cast<int>(p.images.row);
#pragma unroll
  for (int j = 0; j < K; ++j)
    values[j] = seen < 0 || columns[j] < 0 ? Accumulate<T>(0) : widen(image[offset + columns[j]]);
}

// A lane computes all taps of a cell if their sums fit in registers, otherwise one row of them.
template <int K, class T> constexpr int kTapRows = K <= 5 && sizeof(T) <= 4 ? K : 1;

// Adds what the taps of one pixel see, `part` times. For the next pixel, their window moves down by a row.
template <int K, class T> __device__ __forceinline__ void add_window(const Problem<T>& p, const T* image, int last_row,
                                                                     const int (&columns)[K], Accumulate<T> part,
                                                                     Accumulate<T> (&window)[kTapRows<K, T>][K],
                                                                     Accumulate<T> (&sums)[kTapRows<K, T> * K]) {
  constexpr int kRows = kTapRows<K, T>;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
#pragma unroll
    for (int j = 0; i + 1 < kRows && j < K; ++j) window[i][j] = window[i + 1][j];
    if (i + 1 == kRows) load_row_of_window(p, image, last_row, columns, window[i]);
#pragma unroll
    for (int j = 0; j < K; ++j) sums[i * K + j] += part * window[i][j];
  }
}

// A lane adds up what rows [first, last) of one column give to every tap of a cell.
template <int K, class Index, class T>
__device__ __forceinline__ void add_column_of_cell(const CoarseProblem<T>& q, const T* gradient, const T* image,
                                                   const Position& cell, int first_tap, int column, int first, int last,
                                                   Accumulate<T> (&sums)[kTapRows<K, T> * K]) {
  using A = Accumulate<T>;
  const Problem<T>& p = q.all;
  const Interpolation<Index> down = spanning<Index>(q.grids[0].down, p.height);
  const A across = share_of<A>(spanning<Index>(q.grids[0].across, p.width), static_cast<Index>(cell.column),
                               static_cast<Index>(column));
  int columns[K];
#pragma unroll
  for (int j = 0; j < K; ++j) {
    const int seen = padded_index(column + j - K / 2, p.width, p.padding);
    columns[j] = seen < 0 ? -1 : seen * static_cast<int>(p.images.column);
  }
  constexpr int kRows = kTapRows<K, T>;
  const int down_to_last = first_tap + kRows - 1 - K / 2;  // from a pixel to what its last row of taps sees
  A window[kRows][K] = {};
#pragma unroll
  for (int i = 1; i < kRows; ++i) load_row_of_window(p, image, first + down_to_last - kRows + i, columns, window[i]);
#pragma unroll 1
  for (int row = first; row < last; ++row) {
    const A part = across * share_of<A>(down, static_cast<Index>(cell.row), static_cast<Index>(row)) *
                   widen(gradient[row * p.gradient.row + column * p.gradient.column]);
    add_window<K>(p, image, row + down_to_last, columns, part, window, sums);
  }
}

// For each cell of the problem's only level, or for each row of its taps, as many lanes of a warp as the cell reaches
// columns (a power of two, at most a warp): cells beside each other share a warp, and their gradients 32 bytes. The
// alpha's gradient comes as in cells_gradient.
template <int K, class T, class Index>
__device__ __forceinline__ void cells_gradient_by_lanes(const CoarseProblem<T>& q, Accumulate<T>* shared_sums) {
  using A = Accumulate<T>;
  constexpr int kTaps = kTapRows<K, T> * K, kGroups = K / kTapRows<K, T>;
  const Problem<T>& p = q.all;
  const LevelView<T>& level = p.levels[0];
  const LevelGrid& grid = q.grids[0];
  const int lanes = q.lanes_per_cell, lane = static_cast<int>(threadIdx.x) % lanes;
  const unsigned rest = blockIdx.x / static_cast<unsigned>(q.tiles_across);
  const Position cell = {static_cast<int>(rest / static_cast<unsigned>(q.tiles_down)),
                         static_cast<int>(rest % static_cast<unsigned>(q.tiles_down)),
                         static_cast<int>(blockIdx.x % static_cast<unsigned>(q.tiles_across)) * (kCellThreads / lanes) +
                             static_cast<int>(threadIdx.x) / lanes};
  const int first_tap = cell.plane % kGroups, picture = cell.plane / kGroups;
  const int batch = picture / p.image_count, image = picture % p.image_count;
  const LevelSums<kCellThreads, A> level_sums{shared_sums};
  if (p.partials != nullptr) level_sums.clear(1);

  A sums[kTaps] = {};
  if (cell.column < grid.across) {
    const Span<Index> down =
        span_of(spanning<Index>(grid.down, p.height), static_cast<Index>(cell.row), static_cast<Index>(p.height));
    const Span<Index> across =
        span_of(spanning<Index>(grid.across, p.width), static_cast<Index>(cell.column), static_cast<Index>(p.width));
    for (int c = 0; c < p.channels; ++c) {
      const T* gradient = p.gradient.data + batch * p.gradient.batch + c * p.gradient.channel;
      const T* source = p.images.data + batch * p.images.batch + image * p.images.image + c * p.images.channel;
      for (int x = static_cast<int>(across.first) + lane; x < across.last; x += lanes)
        add_column_of_cell<K, Index>(q, gradient, source, cell, first_tap, x, static_cast<int>(down.first),
                                     static_cast<int>(down.last), sums);
    }
  }
  // The first lane of a cell gets the cell's sum; what the others get is not used.
  for (int distance = lanes / 2; distance > 0; distance /= 2)
#pragma unroll
    for (int t = 0; t < kTaps; ++t) sums[t] += __shfl_down_sync(0xffffffffu, sums[t], distance);

  A for_alpha = 0;
  if (lane == 0 && cell.column < grid.across) {
    const T* filters = level.filters + batch * level.batch + image * level.image + first_tap * K * level.tap +
                       cell.row * level.row + cell.column * level.column;
    const int64_t pixels = static_cast<int64_t>(grid.down) * grid.across;
    const int64_t target =
        (static_cast<int64_t>(cell.plane) * kTaps * grid.down + cell.row) * grid.across + cell.column;
#pragma unroll
    for (int t = 0; t < kTaps; ++t) {
      if (p.partials != nullptr) for_alpha += sums[t] * widen(filters[t * level.tap]);
      if (level.gradient != nullptr) level.gradient[target + t * pixels] = narrow<T>(p.alphas[0] * sums[t]);
    }
  }
  if (p.partials == nullptr) return;
  level_sums.add(0, for_alpha);
  level_sums.finish(1, p.partials);
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
