// Kernels of pyramid_fuse: Laplacian pyramids fused band by band with weights from a coarse grid, and the gradients.
// Bodies are device functions over a Problem; pyramid_fuse.cu wraps them in kernels and launches them.
//
//   fuse              up to two bands in one pass: a tile's pyramids live in registers and shared memory
//   fuse_three_bands  three bands: pyramid_fuse_three_bands.cuh
//   weights_gradient  each tile's sums for the cells that it touches, for the weights of every band and of the base
//   sum_tiles         second stage of the above: adds the tiles in a fixed order
//   images_gradient   by gather
//   reduce            the level that a fourth band starts from
//
// A tile of the finest level has a margin of eight pixels. They give its own part of levels 1 to 3, and one place
// around it, without anything from neighbouring tiles. There are no atomics: the order of summation is fixed.
#pragma once

#include "../common/interpolation.h"
#include "common.cuh"

namespace ffmef::cuda::pyramid {

constexpr int kBandsPerLaunch = 3;
constexpr int kMargin = 1 << kBandsPerLaunch;
constexpr int kPatch = 4;        // a thread's pixels of the finest level: 4 x 4, so that they give four means
constexpr int kSmoothShift = 3;  // from cells of 8 pixels on, one set of four cells is enough for a patch

// S is the type of images and results, W that of weights and base. They differ if a launch works on another's sums.
template <class S, class W> struct Problem {
  using A = Accumulate<S>;
  const S* images;
  int64_t image_strides[5];  // batch, image, channel, row, column
  const S* gradient;         // of the output
  int64_t gradient_strides[4];
  const W* weights;           // of this launch's first band
  int64_t weight_strides[5];  // batch, band, image, row, column
  const W* base;              // null: `coarse` is what lies below the last band
  int64_t base_strides[4];
  // The fused level `bands`, (batch, channels, rows, columns), and its gradient, written if not null; the gradient of
  // the images' level `bands`, (batch, images, channels, rows, columns).
  const A *coarse, *coarse_images_gradient;
  A* coarse_gradient;
  S *output, *images_gradient;
  A* partials;          // (tiles, images, bands + 1, cells of a tile)
  W* weights_gradient;  // (batch, band, image, row, column), from this launch's first band on
  int64_t weights_gradient_batch;
  W* base_gradient;
  int batch, image_count, channels, height, width;
  int bands, scale, scale_shift;  // scale = 2^scale_shift: pixels of this launch's finest level along a side of a cell
  A cells_per_pixel;              // 1 / scale
  int cells_down, cells_across;
  int tiles_down, tiles_across;
};

template <int Rows, int Columns> struct Tile {
  static constexpr int kRows = Rows, kColumns = Columns;
  static constexpr int kPatchesDown = Rows / kPatch, kPatchesAcross = Columns / kPatch;
  static constexpr int kThreads = kPatchesDown * kPatchesAcross;
  static __host__ __device__ constexpr int pitch(int level) { return (Columns + 2 * kMargin) >> level; }
  static __host__ __device__ constexpr int size(int level) { return ((Rows + 2 * kMargin) >> level) * pitch(level); }
  // Elements of levels 1 to 3.
  static constexpr int kLevels = size(1) + size(2) + size(3);

  // The same for planes that need only one place around the tile's own, and none at level 3.
  static __host__ __device__ constexpr int narrow_margin(int level) { return level < kBandsPerLaunch ? 1 : 0; }
  static __host__ __device__ constexpr int narrow_pitch(int level) {
    return (Columns >> level) + 2 * narrow_margin(level);
  }
  static __host__ __device__ constexpr int narrow_size(int level) {
    return ((Rows >> level) + 2 * narrow_margin(level)) * narrow_pitch(level);
  }
  static constexpr int kNarrow = narrow_size(0) + narrow_size(1) + narrow_size(2) + narrow_size(3);
};

// The part of a level that a tile and its margin see, in shared memory; places are those of the whole picture.
template <class A> struct Level {
  A* data;
  int pitch, first_row, first_column;
  int height, width;  // of the whole level

  __device__ __forceinline__ A& at(int row, int column) const {
    return data[(row - first_row) * pitch + (column - first_column)];
  }
  __device__ __forceinline__ bool has(int row, int column) const {
    return row >= 0 && row < height && column >= 0 && column < width;
  }
};

struct Place {
  int plane, row, column;  // row and column of the tile's first pixel
};

template <class Shape, class P> __device__ __forceinline__ Place place_of_block(const P& p) {
  const unsigned across = static_cast<unsigned>(p.tiles_across), down = static_cast<unsigned>(p.tiles_down);
  const unsigned rest = blockIdx.x / across;
  return {static_cast<int>(rest / down), static_cast<int>(rest % down) * Shape::kRows,
          static_cast<int>(blockIdx.x % across) * Shape::kColumns};
}

__host__ __device__ __forceinline__ int levels_size(int size, int level) { return (size + (1 << level) - 1) >> level; }

// A level's place in `memory`, which holds levels 0 or 1 to 3 one after another.
template <class Shape, class A, class P>
__device__ __forceinline__ Level<A> level_of(const P& p, const Place& tile, A* memory, int level, int first_level = 1) {
  for (int l = first_level; l < level; ++l) memory += Shape::size(l);
  return {memory,
          Shape::pitch(level),
          (tile.row - kMargin) >> level,
          (tile.column - kMargin) >> level,
          levels_size(p.height, level),
          levels_size(p.width, level)};
}

template <class Shape, class A, class P>
__device__ __forceinline__ Level<A> narrow_level_of(const P& p, const Place& tile, A* memory, int level) {
  for (int l = 0; l < level; ++l) memory += Shape::narrow_size(l);
  const int margin = Shape::narrow_margin(level);
  return {memory,
          Shape::narrow_pitch(level),
          (tile.row >> level) - margin,
          (tile.column >> level) - margin,
          levels_size(p.height, level),
          levels_size(p.width, level)};
}

// Calls visit(row, column) for the places of level `level` on the tile and `around` it, inside the picture.
template <class Shape, class A, class Visit>
__device__ __forceinline__ void each_place(const Level<A>& level, const Place& tile, int number, int around,
                                           const Visit& visit) {
  const int across = (Shape::kColumns >> number) + 2 * around, count = ((Shape::kRows >> number) + 2 * around) * across;
  const int first_row = (tile.row >> number) - around, first_column = (tile.column >> number) - around;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += Shape::kThreads) {
    const int row = first_row + i / across, column = first_column + i % across;
    if (level.has(row, column)) visit(row, column);
  }
}

// The same, each thread on one column, so that what depends on the column is computed once. For levels that are narrow
// compared with the number of threads.
template <class Shape, class A, class Visit>
__device__ __forceinline__ void each_place_by_column(const Level<A>& level, const Place& tile, int number, int around,
                                                     const Visit& visit) {
  const int across = (Shape::kColumns >> number) + 2 * around, down = (Shape::kRows >> number) + 2 * around;
  const int lines = Shape::kThreads / across, thread = static_cast<int>(threadIdx.x);
  const int column = (tile.column >> number) - around + thread % across;
  if (thread >= lines * across || column < 0 || column >= level.width) return;
  for (int i = thread / across; i < down; i += lines) {
    const int row = (tile.row >> number) - around + i;
    if (row >= 0 && row < level.height) visit(row, column);
  }
}

// ---- interpolation between levels: a pixel takes 3/4 of the coarser one that it lies in and 1/4 of the next ---------

__device__ __forceinline__ int clamped(int i, int size) { return i < 0 ? 0 : i < size ? i : size - 1; }

template <class A> __device__ __forceinline__ A expanded_at(const Level<A>& coarse, int row, int column) {
  const int r = row >> 1, c = column >> 1;
  const int far_r = clamped(row & 1 ? r + 1 : r - 1, coarse.height);
  const int far_c = clamped(column & 1 ? c + 1 : c - 1, coarse.width);
  const A near = A(0.75) * coarse.at(r, c) + A(0.25) * coarse.at(r, far_c);
  const A far = A(0.75) * coarse.at(far_r, c) + A(0.25) * coarse.at(far_r, far_c);
  return A(0.75) * near + A(0.25) * far;
}

// Four values between which two pixels lie -> four pixels.
template <class A> __device__ __forceinline__ void expand_four(const A (&coarse)[4], A (&fine)[kPatch]) {
  fine[0] = A(0.25) * coarse[0] + A(0.75) * coarse[1];
  fine[1] = A(0.75) * coarse[1] + A(0.25) * coarse[2];
  fine[2] = A(0.25) * coarse[1] + A(0.75) * coarse[2];
  fine[3] = A(0.75) * coarse[2] + A(0.25) * coarse[3];
}

// Calls visit(i, j, value) for the pixels of a patch.
template <class A, class Visit>
__device__ __forceinline__ void each_expanded(const Level<A>& coarse, int row, int column, const Visit& visit) {
  int columns[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) columns[j] = clamped(column / 2 - 1 + j, coarse.width);
  A mixed[kPatch][4];  // by pixel column, then coarse row
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int r = clamped(row / 2 - 1 + i, coarse.height);
    A values[4], line[kPatch];
#pragma unroll
    for (int j = 0; j < 4; ++j) values[j] = coarse.at(r, columns[j]);
    expand_four(values, line);
#pragma unroll
    for (int j = 0; j < kPatch; ++j) mixed[j][i] = line[j];
  }
#pragma unroll
  for (int j = 0; j < kPatch; ++j) {
    A line[kPatch];
    expand_four(mixed[j], line);
#pragma unroll
    for (int i = 0; i < kPatch; ++i) visit(i, j, line[i]);
  }
}

// The adjoint along one axis: what a coarse place takes of the four pixels 2 i - 1 to 2 i + 2.
template <class A> __device__ __forceinline__ void adjoint_shares(int i, int size, int fine_size, A (&shares)[4]) {
  shares[0] = i > 0 ? A(0.25) : A(0);
  shares[1] = i > 0 ? A(0.75) : A(1);
  shares[2] = 2 * i + 1 >= fine_size ? A(0) : i < size - 1 ? A(0.75) : A(1);
  shares[3] = 2 * i + 2 >= fine_size ? A(0) : A(0.25);
}

template <class A>
__device__ __forceinline__ A adjoint_at(const Level<A>& fine, const Level<A>& coarse, int row, int column) {
  A down[4], across[4];
  adjoint_shares(row, coarse.height, fine.height, down);
  adjoint_shares(column, coarse.width, fine.width, across);
  A sum = A(0);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int r = clamped(2 * row - 1 + i, fine.height);
    A line = A(0);
#pragma unroll
    for (int j = 0; j < 4; ++j) line += across[j] * fine.at(r, clamped(2 * column - 1 + j, fine.width));
    sum += down[i] * line;
  }
  return sum;
}

// The mean of 2 x 2 places, an odd border repeated; and what one place gets back from its mean's gradient.
template <class A> __device__ __forceinline__ A mean_at(const Level<A>& fine, int row, int column) {
  const int r = 2 * row, c = 2 * column;
  const int next_r = r + 1 < fine.height ? r + 1 : r, next_c = c + 1 < fine.width ? c + 1 : c;
  return ((fine.at(r, c) + fine.at(r, next_c)) + (fine.at(next_r, c) + fine.at(next_r, next_c))) * A(0.25);
}

template <class A> __device__ __forceinline__ A share_of_mean(int row, int column, int height, int width) {
  const bool last_row = row == height - 1 && height % 2 == 1, last_column = column == width - 1 && width % 2 == 1;
  return (last_row ? A(1) : A(0.5)) * (last_column ? A(1) : A(0.5));
}

// ---- weights --------------------------------------------------------------------------------------------------------

// The cells of one batch element, band and image under one level.
template <class W> struct Cells {
  const W* data;
  int64_t row, column;      // strides
  int down, across, shift;  // of 2^shift pixels

  using A = Accumulate<W>;
  __device__ __forceinline__ A cell(int i, int j) const { return widen(data[i * row + j * column]); }
  __device__ __forceinline__ Tap<int, A> row_tap(int i) const { return tap_of_power<A>(down, shift, i); }
  __device__ __forceinline__ Tap<int, A> column_tap(int j) const { return tap_of_power<A>(across, shift, j); }
  __device__ __forceinline__ A between(const Tap<int, A>& r, const Tap<int, A>& c) const {
    const A upper = mix(cell(r.first, c.first), cell(r.first, c.second), c.share);
    return mix(upper, mix(cell(r.second, c.first), cell(r.second, c.second), c.share), r.share);
  }
  __device__ __forceinline__ A at(int i, int j) const { return between(row_tap(i), column_tap(j)); }
  static __device__ __forceinline__ A mix(A a, A b, A share) { return a + (b - a) * share; }
};

template <class S, class W>
__device__ __forceinline__ Cells<W> cells_of(const Problem<S, W>& p, int batch, int level, int image) {
  if (level == p.bands)
    return {p.base + batch * p.base_strides[0] + image * p.base_strides[1],
            p.base_strides[2],
            p.base_strides[3],
            p.cells_down,
            p.cells_across,
            p.scale_shift - level};
  return {p.weights + batch * p.weight_strides[0] + level * p.weight_strides[1] + image * p.weight_strides[2],
          p.weight_strides[3],
          p.weight_strides[4],
          p.cells_down,
          p.cells_across,
          p.scale_shift - level};
}

// Calls visit(i, j, weight) for the pixels of a patch.
template <class W, class Visit>
__device__ __forceinline__ void each_weight(const Cells<W>& cells, int row, int column, const Visit& visit) {
  using A = Accumulate<W>;
  if (cells.shift >= kSmoothShift) {
    // No centre of a cell lies inside the patch.
    const Tap<int, A> r = cells.row_tap(row), c = cells.column_tap(column);
    const A upper_left = cells.cell(r.first, c.first), upper_right = cells.cell(r.first, c.second);
    const A lower_left = cells.cell(r.second, c.first), lower_right = cells.cell(r.second, c.second);
    const A step = A(1) / A(1 << cells.shift);
#pragma unroll
    for (int i = 0; i < kPatch; ++i) {
      const A down = r.share + A(i) * step;
      const A left = Cells<W>::mix(upper_left, lower_left, down), right = Cells<W>::mix(upper_right, lower_right, down);
#pragma unroll
      for (int j = 0; j < kPatch; ++j) visit(i, j, Cells<W>::mix(left, right, c.share + A(j) * step));
    }
    return;
  }
  // Small cells are rare: they go pixel by pixel, so they cost the others no registers.
#pragma unroll 1
  for (int pixel = 0; pixel < kPatch * kPatch; ++pixel) {
    const A weight = cells.at(row + pixel / kPatch, column + pixel % kPatch);
#pragma unroll
    for (int i = 0; i < kPatch; ++i)
#pragma unroll
      for (int j = 0; j < kPatch; ++j)
        if (pixel == i * kPatch + j) visit(i, j, weight);
  }
}

// ---- patches of the finest level ------------------------------------------------------------------------------------

// Four neighbours in one access (two of 16 bytes for float64), or one by one.
template <class S> struct alignas(sizeof(S) < 8 ? 4 * sizeof(S) : 16) Four {
  S values[kPatch];
};

// Reads a patch; places beyond the picture repeat its border. `Stepped` goes from row to row of a patch that begins
// inside the picture, which takes fewer instructions and more registers.
template <bool Vectors, bool Stepped = false, class S>
__device__ __forceinline__ void load_patch(const S* plane, int64_t row_stride, int64_t column_stride, int height,
                                           int width, int row, int column, Accumulate<S> (&values)[kPatch][kPatch]) {
  const S* line = plane + clamped(row, height) * row_stride;
#pragma unroll
  for (int i = 0; i < kPatch; ++i) {
    if constexpr (Stepped) {
      if (i > 0 && row + i < height) line += row_stride;
    } else {
      line = plane + clamped(row + i, height) * row_stride;
    }
    if constexpr (Vectors) {
      const Four<S> four = *reinterpret_cast<const Four<S>*>(line + column);
#pragma unroll
      for (int j = 0; j < kPatch; ++j) values[i][j] = widen(four.values[j]);
    } else {
#pragma unroll
      for (int j = 0; j < kPatch; ++j) values[i][j] = widen(line[clamped(column + j, width) * column_stride]);
    }
  }
}

template <bool Vectors, class S>
__device__ __forceinline__ void store_patch(S* plane, int height, int width, int row, int column,
                                            const Accumulate<S> (&values)[kPatch][kPatch]) {
#pragma unroll
  for (int i = 0; i < kPatch; ++i) {
    if (row + i >= height) break;
    S* line = plane + static_cast<int64_t>(row + i) * width + column;
    if constexpr (Vectors) {
      Four<S> four;
#pragma unroll
      for (int j = 0; j < kPatch; ++j) four.values[j] = narrow<S>(values[i][j]);
      *reinterpret_cast<Four<S>*>(line) = four;
    } else {
#pragma unroll
      for (int j = 0; j < kPatch; ++j)
        if (column + j < width) line[j] = narrow<S>(values[i][j]);
    }
  }
}

// The patches of the margin, counted around the tile's own: `rings` of them.
template <class Shape> struct Margin {
  int rings;

  __device__ __forceinline__ int count() const {
    return 2 * rings * (Shape::kPatchesAcross + 2 * rings) + 2 * rings * Shape::kPatchesDown;
  }
  __device__ __forceinline__ void patch(int i, int& down, int& across) const {
    const int line = Shape::kPatchesAcross + 2 * rings, above = rings * line;
    if (i < 2 * above) {
      down = i < above ? i / line - rings : Shape::kPatchesDown + (i - above) / line;
      across = i % line - rings;
      return;
    }
    i -= 2 * above;
    down = i / (2 * rings);
    across = i % (2 * rings);
    across = across < rings ? across - rings : Shape::kPatchesAcross + across - rings;
  }
};

__device__ __forceinline__ int rings_of(int bands) { return bands == 0 ? 0 : bands < kBandsPerLaunch ? 1 : 2; }

// Where a thread's own patch lies.
struct Patch {
  int row, column;
  bool inside;
};

template <class Shape, class P> __device__ __forceinline__ Patch patch_of_thread(const P& p, const Place& tile) {
  const int thread = static_cast<int>(threadIdx.x);
  const int row = tile.row + thread / Shape::kPatchesAcross * kPatch;
  const int column = tile.column + thread % Shape::kPatchesAcross * kPatch;
  return {row, column, row < p.height && column < p.width};
}

// A patch's four means of 2 x 2 pixels.
template <class A> __device__ __forceinline__ void means_of_patch(const A (&values)[kPatch][kPatch], A (&means)[2][2]) {
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const A upper = values[2 * i][2 * j] + values[2 * i][2 * j + 1];
      means[i][j] = (upper + (values[2 * i + 1][2 * j] + values[2 * i + 1][2 * j + 1])) * A(0.25);
    }
}

// The mean of a patch's four means.
template <class A> __device__ __forceinline__ A mean_of_means(const A (&means)[2][2]) {
  return ((means[0][0] + means[0][1]) + (means[1][0] + means[1][1])) * A(0.25);
}

// Writes a patch's four means, and their mean, to levels 1 and 2.
template <class A> __device__ __forceinline__ void put_means(const A (&values)[kPatch][kPatch], int row, int column,
                                                             int bands, const Level<A>& first, const Level<A>& second) {
  A means[2][2];
  means_of_patch(values, means);
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 2; ++j) first.at(row / 2 + i, column / 2 + j) = means[i][j];
  if (bands < 2) return;
  if (row / 2 + 1 >= first.height) means[1][0] = means[0][0], means[1][1] = means[0][1];
  if (column / 2 + 1 >= first.width) means[0][1] = means[0][0], means[1][1] = means[1][0];
  second.at(row / 4, column / 4) = mean_of_means(means);
}

// Makes the pyramid of one image's channel: the thread's own patch in registers, levels 1 to `bands` in shared memory.
// Level 3 can be read after the next barrier, the others at once.
template <class Shape, bool Vectors, class S, class W>
__device__ __forceinline__ void load_pyramid(const Problem<S, W>& p, const Place& tile, const Patch& own, int batch,
                                             int image, int channel, Accumulate<S>* memory,
                                             Accumulate<S> (&values)[kPatch][kPatch]) {
  using A = Accumulate<S>;
  const int64_t* strides = p.image_strides;
  const S* plane = p.images + batch * strides[0] + image * strides[1] + channel * strides[2];
  const Level<A> first = level_of<Shape>(p, tile, memory, 1), second = level_of<Shape>(p, tile, memory, 2);
  if (own.inside) {
    load_patch<Vectors>(plane, strides[3], strides[4], p.height, p.width, own.row, own.column, values);
    if (p.bands > 0) put_means(values, own.row, own.column, p.bands, first, second);
  }
  const Margin<Shape> margin{rings_of(p.bands)};
  for (int i = static_cast<int>(threadIdx.x); i < margin.count(); i += Shape::kThreads) {
    int down, across;
    margin.patch(i, down, across);
    const int row = tile.row + down * kPatch, column = tile.column + across * kPatch;
    if (row < 0 || row >= p.height || column < 0 || column >= p.width) continue;
    A around[kPatch][kPatch];
    load_patch<Vectors>(plane, strides[3], strides[4], p.height, p.width, row, column, around);
    put_means(around, row, column, p.bands, first, second);
  }
  __syncthreads();
  if (p.bands < kBandsPerLaunch) return;
  const Level<A> third = level_of<Shape>(p, tile, memory, 3);
  each_place<Shape>(third, tile, 3, 1,
                    [&](int row, int column) { third.at(row, column) = mean_at(second, row, column); });
}

// ---- forward, up to two bands: pyramid_fuse_three_bands.cuh has three -----------------------------------------------

template <class Shape> constexpr int kFuseElements = 2 * Shape::kLevels;

template <class Shape, bool Vectors, class S, class W>
__device__ __forceinline__ void fuse(const Problem<S, W>& p, Accumulate<S>* shared) {
  using A = Accumulate<S>;
  A *const images = shared, *const sums = shared + Shape::kLevels;
  const Place tile = place_of_block<Shape>(p);
  const Patch own = patch_of_thread<Shape>(p, tile);
  const int batch = tile.plane / p.channels, channel = tile.plane % p.channels;

  A total[kPatch][kPatch] = {};
  for (int n = 0; n < p.image_count; ++n) {
    if (n > 0) __syncthreads();  // every thread is done with the image before
    A values[kPatch][kPatch];
    load_pyramid<Shape, Vectors>(p, tile, own, batch, n, channel, images, values);

    if (own.inside) {
      if (p.bands > 0)
        each_expanded(level_of<Shape>(p, tile, images, 1), own.row, own.column,
                      [&](int i, int j, A below) { values[i][j] -= below; });
      each_weight(cells_of(p, batch, 0, n), own.row, own.column,
                  [&](int i, int j, A weight) { total[i][j] += weight * values[i][j]; });
    }
    for (int l = 1; l <= p.bands; ++l) {
      const Level<A> level = level_of<Shape>(p, tile, images, l), sum = level_of<Shape>(p, tile, sums, l);
      const Level<A> below = level_of<Shape>(p, tile, images, l + 1 <= p.bands ? l + 1 : l);
      const Cells<W> cells = cells_of(p, batch, l, n);
      each_place_by_column<Shape>(level, tile, l, 1, [&](int row, int column) {
        const A value = level.at(row, column) - (l < p.bands ? expanded_at(below, row, column) : A(0));
        sum.at(row, column) = (n > 0 ? sum.at(row, column) : A(0)) + cells.at(row, column) * value;
      });
    }
  }

  for (int l = p.bands - 1; l >= 1; --l) {
    __syncthreads();
    const Level<A> sum = level_of<Shape>(p, tile, sums, l), below = level_of<Shape>(p, tile, sums, l + 1);
    each_place_by_column<Shape>(sum, tile, l, 1,
                                [&](int row, int column) { sum.at(row, column) += expanded_at(below, row, column); });
  }
  __syncthreads();
  if (!own.inside) return;
  if (p.bands > 0)
    each_expanded(level_of<Shape>(p, tile, sums, 1), own.row, own.column,
                  [&](int i, int j, A below) { total[i][j] += below; });
  store_patch<Vectors>(p.output + static_cast<int64_t>(tile.plane) * p.height * p.width, p.height, p.width, own.row,
                       own.column, total);
}

// ---- what both gradients start from ---------------------------------------------------------------------------------

// The gradient of the fused levels 0 to `bands` on the tile, and the places around it that the levels below need.
template <class Shape, class S, class W>
__device__ __forceinline__ void load_gradients(const Problem<S, W>& p, const Place& tile, int batch, int channel,
                                               Accumulate<S>* memory) {
  using A = Accumulate<S>;
  const S* plane = p.gradient + batch * p.gradient_strides[0] + channel * p.gradient_strides[1];
  const Level<A> finest = level_of<Shape>(p, tile, memory, 0, 0);
  each_place<Shape>(finest, tile, 0, p.bands == 0 ? 0 : kMargin - 1, [&](int row, int column) {
    finest.at(row, column) = widen(plane[row * p.gradient_strides[2] + column * p.gradient_strides[3]]);
  });
  __syncthreads();
  for (int l = 1; l <= p.bands; ++l) {
    const Level<A> fine = level_of<Shape>(p, tile, memory, l - 1, 0), coarse = level_of<Shape>(p, tile, memory, l, 0);
    each_place<Shape>(coarse, tile, l, (kMargin >> l) - 1,
                      [&](int row, int column) { coarse.at(row, column) = adjoint_at(fine, coarse, row, column); });
    __syncthreads();
  }
}

template <class Shape, class A>
__device__ __forceinline__ void read_patch(const Level<A>& level, const Patch& own, A (&values)[kPatch][kPatch]) {
#pragma unroll
  for (int i = 0; i < kPatch; ++i)
#pragma unroll
    for (int j = 0; j < kPatch; ++j)
      values[i][j] = level.has(own.row + i, own.column + j) ? level.at(own.row + i, own.column + j) : A(0);
}

// ---- gradient of the weights ----------------------------------------------------------------------------------------

// A tile touches the cells first to first + cells_along(..) - 1 along an axis, the outermost of which may not exist.
// `start` is the tile's first place on the level and `factor` the cell's size there.
__host__ __device__ __forceinline__ int cells_along(int tile_size, int scale) { return tile_size / scale + 2; }
__device__ __forceinline__ int first_cell(int start, int factor) {
  const int place = start - factor / 2;
  return place >= 0 ? place / factor : -1;
}

template <class Shape> __host__ __device__ __forceinline__ int cells_of_tile(int scale) {
  return cells_along(Shape::kRows, scale) * cells_along(Shape::kColumns, scale);
}

// Levels 0 to 3 of the gradient (level 0 is the products' place later), levels 1 to 3 of an image, and sums along rows.
template <class Shape> __host__ __device__ __forceinline__ int weights_gradient_elements(int scale) {
  return Shape::size(0) + 2 * Shape::kLevels + Shape::kRows * cells_along(Shape::kColumns, scale);
}

// Adds a level's products to the tile's cells: along rows first, then down.
template <class Shape, class A, class P> __device__ __forceinline__ void collect(const P& p, const Place& tile,
                                                                                 const Level<A>& products, int level,
                                                                                 A* row_sums, A* partials, bool add) {
  const int factor = p.scale >> level, shift = p.scale_shift - level, across = cells_along(Shape::kColumns, p.scale);
  const int down = cells_along(Shape::kRows, p.scale);
  const int start_row = tile.row >> level, start_column = tile.column >> level;
  const int rows = Shape::kRows >> level, columns = Shape::kColumns >> level;
  const Interpolation<int> vertical = with_cells_of(factor, p.cells_down),
                           horizontal = with_cells_of(factor, p.cells_across);
  const int top = first_cell(start_row, factor), left = first_cell(start_column, factor);
  const auto shared_part = [](const Span<int>& span, int start, int size) -> Span<int> {
    return {span.first > start ? span.first : start, span.last < start + size ? span.last : start + size};
  };
  for (int i = static_cast<int>(threadIdx.x); i < rows * across; i += Shape::kThreads) {
    const int row = start_row + i / across, cell = left + i % across;
    A sum = A(0);
    if (row < products.height && cell >= 0 && cell < p.cells_across) {
      const Span<int> span = shared_part(span_of(horizontal, cell, products.width), start_column, columns);
      for (int column = span.first; column < span.last; ++column)
        sum += share_of_power<A>(p.cells_across, shift, cell, column) * products.at(row, column);
    }
    row_sums[i] = sum;
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < down * across; i += Shape::kThreads) {
    const int cell = top + i / across;
    A sum = add ? partials[i] : A(0);
    if (cell >= 0 && cell < p.cells_down) {
      const Span<int> span = shared_part(span_of(vertical, cell, products.height), start_row, rows);
      for (int row = span.first; row < span.last; ++row)
        sum += share_of_power<A>(p.cells_down, shift, cell, row) * row_sums[(row - start_row) * across + i % across];
    }
    partials[i] = sum;
  }
  __syncthreads();
}

template <class Shape, bool Vectors, class S, class W>
__device__ __forceinline__ void weights_gradient(const Problem<S, W>& p, Accumulate<S>* shared) {
  using A = Accumulate<S>;
  A *const gradients = shared, *const images = gradients + Shape::size(0) + Shape::kLevels;
  A* const row_sums = images + Shape::kLevels;
  const Place tile = place_of_block<Shape>(p);
  const Patch own = patch_of_thread<Shape>(p, tile);
  const int batch = tile.plane, cells = cells_of_tile<Shape>(p.scale);
  const Level<A> products = level_of<Shape>(p, tile, gradients, 0, 0);

  for (int channel = 0; channel < p.channels; ++channel) {
    if (channel > 0) __syncthreads();
    load_gradients<Shape>(p, tile, batch, channel, gradients);
    if (p.coarse_gradient != nullptr) {
      const Level<A> last = level_of<Shape>(p, tile, gradients, p.bands, 0);
      A* target = p.coarse_gradient + (static_cast<int64_t>(batch) * p.channels + channel) * last.height * last.width;
      each_place<Shape>(last, tile, p.bands, 0, [&](int row, int column) {
        target[static_cast<int64_t>(row) * last.width + column] = last.at(row, column);
      });
    }
    if (p.partials == nullptr) continue;
    A gradient[kPatch][kPatch];
    // The products take the place of the gradient: each thread reads and writes only its own patch there.
    read_patch<Shape>(products, own, gradient);

    for (int n = 0; n < p.image_count; ++n) {
      A values[kPatch][kPatch];
      load_pyramid<Shape, Vectors>(p, tile, own, batch, n, channel, images, values);
      A* partials = p.partials + (static_cast<int64_t>(blockIdx.x) * p.image_count + n) * (p.bands + 1) * cells;
      if (own.inside) {
        if (p.bands > 0)
          each_expanded(level_of<Shape>(p, tile, images, 1), own.row, own.column,
                        [&](int i, int j, A below) { values[i][j] -= below; });
#pragma unroll
        for (int i = 0; i < kPatch; ++i)
#pragma unroll
          for (int j = 0; j < kPatch; ++j)
            if (products.has(own.row + i, own.column + j))
              products.at(own.row + i, own.column + j) = gradient[i][j] * values[i][j];
      }
      __syncthreads();
      collect<Shape>(p, tile, products, 0, row_sums, partials, channel > 0);
      for (int l = 1; l <= p.bands; ++l) {
        // The products take the level's own place: the level above no longer needs it.
        const Level<A> level = level_of<Shape>(p, tile, images, l), g = level_of<Shape>(p, tile, gradients, l, 0);
        const Level<A> below = level_of<Shape>(p, tile, images, l + 1 <= p.bands ? l + 1 : l);
        each_place<Shape>(level, tile, l, 0, [&](int row, int column) {
          const A value = level.at(row, column) - (l < p.bands ? expanded_at(below, row, column) : A(0));
          level.at(row, column) = g.at(row, column) * value;
        });
        __syncthreads();
        collect<Shape>(p, tile, level, l, row_sums, partials + l * cells, channel > 0);
      }
    }
  }
}

// One thread per cell: adds up the sums of the tiles that touch it.
template <class Shape, class S, class W>
__device__ __forceinline__ void sum_tiles(const Problem<S, W>& p, int64_t index, bool with_weights, bool with_base) {
  using A = Accumulate<S>;
  const int column = static_cast<int>(index % p.cells_across),
            row = static_cast<int>(index / p.cells_across % p.cells_down);
  const int64_t plane = index / p.cells_across / p.cells_down;
  const int n = static_cast<int>(plane % p.image_count),
            level = static_cast<int>(plane / p.image_count % (p.bands + 1));
  const int batch = static_cast<int>(plane / p.image_count / (p.bands + 1));
  if (level < p.bands ? !with_weights : !with_base) return;
  const int across = cells_along(Shape::kColumns, p.scale), down = cells_along(Shape::kRows, p.scale);
  const int factor = p.scale >> level, cells = across * down;
  const Span<int> rows = span_of(with_cells_of(p.scale, p.cells_down), row, p.height);
  const Span<int> columns = span_of(with_cells_of(p.scale, p.cells_across), column, p.width);
  A sum = A(0);
  for (int i = rows.first / Shape::kRows; i <= (rows.last - 1) / Shape::kRows; ++i)
    for (int j = columns.first / Shape::kColumns; j <= (columns.last - 1) / Shape::kColumns; ++j) {
      const int y = row - first_cell((i * Shape::kRows) >> level, factor);
      const int x = column - first_cell((j * Shape::kColumns) >> level, factor);
      if (y < 0 || y >= down || x < 0 || x >= across) continue;
      const int64_t tile = (static_cast<int64_t>(batch) * p.tiles_down + i) * p.tiles_across + j;
      sum += p.partials[((tile * p.image_count + n) * (p.bands + 1) + level) * cells + y * across + x];
    }
  const int64_t grid = static_cast<int64_t>(p.cells_down) * p.cells_across,
                cell = static_cast<int64_t>(row) * p.cells_across + column;
  if (level < p.bands)
    p.weights_gradient[batch * p.weights_gradient_batch + (static_cast<int64_t>(level) * p.image_count + n) * grid +
                       cell] = narrow<W>(sum);
  else
    p.base_gradient[(static_cast<int64_t>(batch) * p.image_count + n) * grid + cell] = narrow<W>(sum);
}

// ---- gradient of the images -----------------------------------------------------------------------------------------

// Levels 0 to 3 of the gradient, and of its product with an image's weights.
template <class Shape> constexpr int kImagesGradientElements = Shape::size(0) + Shape::kLevels + Shape::kNarrow;

template <class Shape, bool Vectors, class S, class W>
__device__ __forceinline__ void images_gradient(const Problem<S, W>& p, Accumulate<S>* shared) {
  using A = Accumulate<S>;
  A *const gradients = shared, *const products = gradients + Shape::size(0) + Shape::kLevels;
  const Place tile = place_of_block<Shape>(p);
  const Patch own = patch_of_thread<Shape>(p, tile);
  const int batch = tile.plane / p.channels, channel = tile.plane % p.channels;
  load_gradients<Shape>(p, tile, batch, channel, gradients);

  for (int n = 0; n < p.image_count; ++n) {
    if (n > 0) __syncthreads();  // every thread is done with the image before
    const int64_t plane = (static_cast<int64_t>(batch) * p.image_count + n) * p.channels + channel;
    for (int l = 0; l <= p.bands; ++l) {
      const Level<A> gradient = level_of<Shape>(p, tile, gradients, l, 0),
                     product = narrow_level_of<Shape>(p, tile, products, l);
      if (l == p.bands && p.base == nullptr) {
        const A* source = p.coarse_images_gradient + plane * product.height * product.width;
        each_place<Shape>(product, tile, l, 0, [&](int row, int column) {
          product.at(row, column) = source[static_cast<int64_t>(row) * product.width + column];
        });
        continue;
      }
      const Cells<W> cells = cells_of(p, batch, l, n);
      each_place<Shape>(product, tile, l, l < p.bands ? 1 : 0, [&](int row, int column) {
        product.at(row, column) = gradient.at(row, column) * cells.at(row, column);
      });
    }
    __syncthreads();
    // From the lowest level up, a level's product turns into the gradient of the images' level, less what the band
    // above took of it by interpolation.
    for (int l = p.bands; l >= 1; --l) {
      const Level<A> finer = narrow_level_of<Shape>(p, tile, products, l - 1),
                     level = narrow_level_of<Shape>(p, tile, products, l);
      const Level<A> below = narrow_level_of<Shape>(p, tile, products, l + 1 <= p.bands ? l + 1 : l);
      each_place<Shape>(level, tile, l, 0, [&](int row, int column) {
        A value = level.at(row, column) - adjoint_at(finer, level, row, column);
        if (l < p.bands)
          value += share_of_mean<A>(row, column, level.height, level.width) * below.at(row / 2, column / 2);
        level.at(row, column) = value;
      });
      __syncthreads();
    }
    if (!own.inside) continue;
    const Level<A> product = narrow_level_of<Shape>(p, tile, products, 0),
                   below = narrow_level_of<Shape>(p, tile, products, 1);
    A values[kPatch][kPatch];
    read_patch<Shape>(product, own, values);
    if (p.bands > 0) {
#pragma unroll
      for (int i = 0; i < kPatch; ++i)
#pragma unroll
        for (int j = 0; j < kPatch; ++j) {
          const int row = own.row + i, column = own.column + j;
          if (product.has(row, column))
            values[i][j] += share_of_mean<A>(row, column, p.height, p.width) * below.at(row / 2, column / 2);
        }
    }
    store_patch<Vectors>(p.images_gradient + plane * p.height * p.width, p.height, p.width, own.row, own.column,
                         values);
  }
}

// ---- pyramids of more than three bands ------------------------------------------------------------------------------

// One pixel of level 3 from the 8 x 8 pixels under it, halved three times. Borders are repeated at every level.
template <class S, class W>
__device__ __forceinline__ void reduce(const Problem<S, W>& p, int64_t index, Accumulate<S>* target) {
  using A = Accumulate<S>;
  const int height = levels_size(p.height, kBandsPerLaunch), width = levels_size(p.width, kBandsPerLaunch);
  const int column = static_cast<int>(index % width), row = static_cast<int>(index / width % height);
  const int64_t plane = index / width / height;
  const int channel = static_cast<int>(plane % p.channels), n = static_cast<int>(plane / p.channels % p.image_count);
  const int64_t batch = plane / p.channels / p.image_count;
  const int64_t* strides = p.image_strides;
  const S* source = p.images + batch * strides[0] + n * strides[1] + channel * strides[2];
  // The pixel that part i (three bits, the coarsest halving first) of a place shows along an axis.
  const auto shown = [](int place, int part, int size) {
#pragma unroll
    for (int l = kBandsPerLaunch - 1; l >= 0; --l) {
      place = 2 * place + (part >> l & 1);
      const int last = levels_size(size, l) - 1;
      place = place < last ? place : last;
    }
    return place;
  };
  A sum = A(0);
  for (int i = 0; i < kMargin; ++i) {
    const S* line = source + shown(row, i, p.height) * strides[3];
    A part = A(0);
#pragma unroll
    for (int j = 0; j < kMargin; ++j) part += widen(line[shown(column, j, p.width) * strides[4]]);
    sum += part;
  }
  target[index] = sum / A(kMargin * kMargin);
}

}  // namespace ffmef::cuda::pyramid
