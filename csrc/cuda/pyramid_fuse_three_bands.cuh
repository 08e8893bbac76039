// The forward pass of pyramid_fuse with three bands, the most common one. It uses few instructions per pixel, because
// instructions, not memory, bound the general kernel.
//
// A patch of the finest level, 4 x 4 pixels, is 2 x 2 places of level 1 and one place of level 2; four patches are one
// place of level 3. A thread computes all of that for its own patch, and for at most one of the patches around the
// tile. No centre of a cell lies inside a patch, as cells have 8 pixels or more, so it needs the same four cells on
// every level. The cells of a tile lie in shared memory with one more around them, where the grid's border is repeated.
// Places beyond the picture are filled with its border's values, so reads need no clamping.
#pragma once

#include "pyramid_fuse.cuh"

namespace ffmef::cuda::pyramid {

// Units around a tile of Down x Across units, one deep, counted row by row above and below, then beside it.
template <int Down, int Across> struct Ring {
  static constexpr int kLine = Across + 2, kCount = 2 * kLine + 2 * Down;

  static __device__ __forceinline__ void unit(int i, int& down, int& across) {
    if (i < 2 * kLine) {
      down = i < kLine ? -1 : Down;
      across = (i < kLine ? i : i - kLine) - 1;
      return;
    }
    i -= 2 * kLine;
    down = i >> 1;
    across = i & 1 ? Across : -1;
  }
};

template <class A> struct alignas(2 * sizeof(A)) Pair {
  A x, y;
};

template <class Shape> struct ThreeBands {
  static constexpr int kGroupsDown = Shape::kPatchesDown / 2, kGroupsAcross = Shape::kPatchesAcross / 2;
  // Places of levels 1 to 3 kept around the tile: what two rings of patches give.
  static __host__ __device__ constexpr int margin(int level) { return level < 3 ? 2 : 1; }
  static __host__ __device__ constexpr int rows(int level) { return (Shape::kRows >> level) + 2 * margin(level); }
  // Level 1 is read by pairs from rows two apart, which should not meet in the banks.
  static __host__ __device__ constexpr int pitch(int level) {
    return (Shape::kColumns >> level) + 2 * margin(level) + (level == 1 ? 4 : 0);
  }
  static __host__ __device__ constexpr int start(int level) {
    return level == 1 ? 0 : start(level - 1) + rows(level - 1) * pitch(level - 1);
  }
  static constexpr int kLevels = start(3) + rows(3) * pitch(3);
  // Cells of 8 pixels: one before the tile's first, and two beyond its last.
  static constexpr int kCellsDown = Shape::kRows / 8 + 3, kCellsAcross = Shape::kColumns / 8 + 3;
  static constexpr int kCells = kCellsDown * kCellsAcross;
  using Groups = Ring<kGroupsDown, kGroupsAcross>;
  using Patches = Ring<Shape::kPatchesDown, Shape::kPatchesAcross>;
  // Two images' levels and cells, so that one barrier per image suffices; the sums of the patches around the tile.
  static constexpr int kRingSums = 2 * kLevels + 2 * (kBandsPerLaunch + 1) * kCells;
  static constexpr int kElements = kRingSums + 5 * Patches::kCount;
  static_assert(kLevels % 2 == 0 && Patches::kCount <= Shape::kThreads);
  static_assert(rows(3) * pitch(3) <= Shape::kThreads && Shape::kThreads % 32 == 0);
};

// The place (row, column) of a level, counted from the tile's own first.
template <class Shape, int Number, class A> __device__ __forceinline__ A* place_of(A* levels, int row, int column) {
  using T = ThreeBands<Shape>;
  constexpr int kStart = T::start(Number), kPitch = T::pitch(Number), kAround = T::margin(Number);
  return levels + kStart + (row + kAround) * kPitch + column + kAround;
}

// Which of a tile's cells a place takes first, and the share of the next.
template <class A> struct CellTap {
  int first;
  A share;
};

template <int Number, class P>
__device__ __forceinline__ CellTap<typename P::A> cell_tap(const P& p, int place, int first_cell) {
  using A = typename P::A;
  const int shift = p.scale_shift - Number, half_pixels = 2 * place + 1 - (1 << shift);
  return {(half_pixels >> (shift + 1)) - first_cell,
          A(half_pixels & ((2 << shift) - 1)) * (p.cells_per_pixel * A(1 << Number) * A(0.5))};
}

// Calls visit(i, j, weight) for Side x Side neighbours between the same four cells.
template <class Shape, int Side, class A, class Visit>
__device__ __forceinline__ void each_weight_of(const A* cells, const CellTap<A>& row, const CellTap<A>& column, A step,
                                               int next, const Visit& visit) {
  constexpr int kAcross = ThreeBands<Shape>::kCellsAcross;
  const A* upper = cells + row.first * kAcross + column.first;
  const A* lower = upper + next * kAcross;
  const A left = upper[0], right = upper[next], left_rise = lower[0] - left, right_rise = lower[next] - right;
#pragma unroll
  for (int i = 0; i < Side; ++i) {
    const A share = row.share + A(i) * step;
    const A first = left + left_rise * share, rise = right + right_rise * share - first;
#pragma unroll
    for (int j = 0; j < Side; ++j) visit(i, j, first + rise * (column.share + A(j) * step));
  }
}

// Adds `sign` times the level below to a patch (Side = 4) or to the places of level 1 (2) or 2 (1) under it. `below`
// points to the first place above and to the left of those that the patch covers there.
template <int Side, class A> __device__ __forceinline__ void add_expanded(const A (&below)[Side / 2 + 2][Side / 2 + 2],
                                                                          A sign, A (&values)[Side][Side]) {
  constexpr int kBelow = Side / 2 + 2;
  const A near = A(0.75) * sign, far = A(0.25) * sign;
  A lines[kBelow][Side];
#pragma unroll
  for (int i = 0; i < kBelow; ++i)
#pragma unroll
    for (int j = 0; j < Side; ++j) {
      const int own = (j + 2) / 2, other = j % 2 == 0 ? own - 1 : own + 1;
      lines[i][j] = A(0.75) * below[i][own] + A(0.25) * below[i][other];
    }
#pragma unroll
  for (int i = 0; i < Side; ++i) {
    const int own = (i + 2) / 2, other = i % 2 == 0 ? own - 1 : own + 1;
#pragma unroll
    for (int j = 0; j < Side; ++j) values[i][j] = values[i][j] + near * lines[own][j] + far * lines[other][j];
  }
}

template <class Shape, class A> __device__ __forceinline__ void add_first_level(const A* levels, int down, int across,
                                                                                A sign, A (&values)[kPatch][kPatch]) {
  A below[4][4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const auto* line = reinterpret_cast<const Pair<A>*>(place_of<Shape, 1>(levels, 2 * down - 1 + i, 2 * across - 2));
    const Pair<A> left = line[0], middle = line[1], right = line[2];
    below[i][0] = left.y, below[i][1] = middle.x, below[i][2] = middle.y, below[i][3] = right.x;
  }
  add_expanded<kPatch>(below, sign, values);
}

template <class Shape, class A>
__device__ __forceinline__ void add_second_level(const A* levels, int down, int across, A sign, A (&values)[2][2]) {
  A below[3][3];
#pragma unroll
  for (int i = 0; i < 3; ++i)
#pragma unroll
    for (int j = 0; j < 3; ++j) below[i][j] = *place_of<Shape, 2>(levels, down - 1 + i, across - 1 + j);
  add_expanded<2>(below, sign, values);
}

// `down` and `across` are a place of level 2.
template <class Shape, class A> __device__ __forceinline__ A third_level_at(const A* levels, int down, int across) {
  const int row = down >> 1, column = across >> 1;
  const int other_row = row + (down & 1 ? 1 : -1), other_column = column + (across & 1 ? 1 : -1);
  const A near =
      A(0.75) * *place_of<Shape, 3>(levels, row, column) + A(0.25) * *place_of<Shape, 3>(levels, row, other_column);
  const A far = A(0.75) * *place_of<Shape, 3>(levels, other_row, column) +
                A(0.25) * *place_of<Shape, 3>(levels, other_row, other_column);
  return A(0.75) * near + A(0.25) * far;
}

// A patch of the tile or of the ring around it, counted in patches from the tile's first one.
struct NumberedPatch {
  int down, across;
  bool inside;  // the picture
};

// What the images have contributed so far to the levels under a patch.
template <class A> struct LowerSums {
  A first[2][2] = {}, second = A(0);
};

// Fills the places of a level beyond the picture with the picture's border.
template <class Shape, int Number, class A, class P>
__device__ __forceinline__ void repeat_border(const P& p, const Place& tile, A* levels) {
  using T = ThreeBands<Shape>;
  constexpr int kAround = T::margin(Number), kAcross = (Shape::kColumns >> Number) + 2 * kAround;
  constexpr int kCount = T::rows(Number) * kAcross;
  const int first_row = tile.row >> Number, first_column = tile.column >> Number;
  const int height = levels_size(p.height, Number), width = levels_size(p.width, Number);
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < kCount; i += Shape::kThreads) {
    const int row = i / kAcross - kAround, column = i % kAcross - kAround;
    const int shown_row = clamped(first_row + row, height) - first_row;
    const int shown_column = clamped(first_column + column, width) - first_column;
    if (row != shown_row || column != shown_column)
      *place_of<Shape, Number>(levels, row, column) = *place_of<Shape, Number>(levels, shown_row, shown_column);
  }
}

// Stores what a patch contributes to levels 1 to 3. All threads of a warp get here, with the four patches of one place
// of level 3 beside each other; those outside the picture contribute nothing.
template <class Shape, class A, class P>
__device__ __forceinline__ void put_levels(const P& p, const Place& tile, const NumberedPatch& patch, bool border,
                                           const A (&values)[kPatch][kPatch], A* levels) {
  const int row = (tile.row >> 2) + patch.down, column = (tile.column >> 2) + patch.across;  // on level 2
  A means[2][2];
  means_of_patch(values, means);
  if (border) {
    if (2 * row + 1 >= levels_size(p.height, 1)) means[1][0] = means[0][0], means[1][1] = means[0][1];
    if (2 * column + 1 >= levels_size(p.width, 1)) means[0][1] = means[0][0], means[1][1] = means[1][0];
  }
  const A second = mean_of_means(means);
  A right = __shfl_down_sync(0xffffffffu, second, 1);
  if (border && column + 1 >= levels_size(p.width, 2)) right = second;
  const A line = second + right;
  A lower = __shfl_down_sync(0xffffffffu, line, 2);
  if (border && row + 1 >= levels_size(p.height, 2)) lower = line;
  if (!patch.inside) return;
  const bool beside = static_cast<unsigned>(patch.down + 1) <= Shape::kPatchesDown + 1u &&
                      static_cast<unsigned>(patch.across + 1) <= Shape::kPatchesAcross + 1u;
#pragma unroll
  for (int i = 0; beside && i < 2; ++i)
    *reinterpret_cast<Pair<A>*>(place_of<Shape, 1>(levels, 2 * patch.down + i, 2 * patch.across)) = {means[i][0],
                                                                                                     means[i][1]};
  *place_of<Shape, 2>(levels, patch.down, patch.across) = second;
  if ((threadIdx.x & 3) == 0)
    *place_of<Shape, 3>(levels, patch.down >> 1, patch.across >> 1) = (line + lower) * A(0.25);
}

// Reads the cells that a tile needs: all bands' and the base's, the grid's border repeated.
template <class Shape, class S, class W>
__device__ __forceinline__ void load_cells(const Problem<S, W>& p, int batch, int image, int first_row,
                                           int first_column, Accumulate<S>* cells) {
  using T = ThreeBands<Shape>;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < T::kCells; i += Shape::kThreads) {
    const int row = clamped(first_row + i / T::kCellsAcross, p.cells_down);
    const int column = clamped(first_column + i % T::kCellsAcross, p.cells_across);
    const W* weight = p.weights + batch * p.weight_strides[0] + image * p.weight_strides[2] +
                      row * p.weight_strides[3] + column * p.weight_strides[4];
#pragma unroll
    for (int level = 0; level < kBandsPerLaunch; ++level) {
      cells[level * T::kCells + i] = widen(*weight);
      weight += p.weight_strides[1];
    }
    if (p.base != nullptr)
      cells[kBandsPerLaunch * T::kCells + i] = widen(p.base[batch * p.base_strides[0] + image * p.base_strides[1] +
                                                            row * p.base_strides[2] + column * p.base_strides[3]]);
  }
}

// The same number, hidden from the compiler so that it cannot tell that every pass of a loop has the same one. What
// follows from it is then computed in the loop. On some architectures, keeping that in registers would spill others.
__device__ __forceinline__ int computed_again(int value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ > 800 && __CUDA_ARCH__ != 900
  asm volatile("" : "+r"(value));
#endif
  return value;
}

// Adds an image to the levels under a patch.
template <class Shape, class A, class P>
__device__ __forceinline__ void add_lower(const P& p, const Place& tile, const NumberedPatch& patch, const A* levels,
                                          const A* cells, int first_row, int first_column, LowerSums<A>& sums) {
  using T = ThreeBands<Shape>;
  const int row = (tile.row >> 2) + patch.down, column = (tile.column >> 2) + patch.across;
  A values[2][2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const Pair<A> pair =
        *reinterpret_cast<const Pair<A>*>(place_of<Shape, 1>(levels, 2 * patch.down + i, 2 * patch.across));
    values[i][0] = pair.x, values[i][1] = pair.y;
  }
  add_second_level<Shape>(levels, patch.down, patch.across, A(-1), values);
  each_weight_of<Shape, 2>(cells + T::kCells, cell_tap<1>(p, 2 * row, first_row),
                           cell_tap<1>(p, 2 * column, first_column), A(2) * p.cells_per_pixel, 1,
                           [&](int i, int j, A weight) { sums.first[i][j] += weight * values[i][j]; });
  const A value =
      *place_of<Shape, 2>(levels, patch.down, patch.across) - third_level_at<Shape>(levels, patch.down, patch.across);
  each_weight_of<Shape, 1>(cells + 2 * T::kCells, cell_tap<2>(p, row, first_row), cell_tap<2>(p, column, first_column),
                           A(0), 1, [&](int, int, A weight) { sums.second += weight * value; });
}

template <class Shape, class A>
__device__ __forceinline__ void put_fused_second(const NumberedPatch& patch, const LowerSums<A>& sums, A* levels) {
  *place_of<Shape, 2>(levels, patch.down, patch.across) =
      sums.second + third_level_at<Shape>(levels, patch.down, patch.across);
}

template <class Shape, class A>
__device__ __forceinline__ void put_fused_first(const NumberedPatch& patch, LowerSums<A> sums, A* levels) {
  add_second_level<Shape>(levels, patch.down, patch.across, A(1), sums.first);
#pragma unroll
  for (int i = 0; i < 2; ++i)
    *reinterpret_cast<Pair<A>*>(place_of<Shape, 1>(levels, 2 * patch.down + i, 2 * patch.across)) = {sums.first[i][0],
                                                                                                     sums.first[i][1]};
}

// Writes the fused levels above the third, which is already there, to `levels`.
template <class Shape, class A, class P>
__device__ __forceinline__ void put_fused(const P& p, const Place& tile, const NumberedPatch& own,
                                          const NumberedPatch& around, bool border, const LowerSums<A>& sums,
                                          const LowerSums<A>& sums_around, A* levels) {
  const auto finish = [&](int level) {
    __syncthreads();
    if (!border) return;
    if (level == 1) repeat_border<Shape, 1>(p, tile, levels);
    if (level == 2) repeat_border<Shape, 2>(p, tile, levels);
    if (level == 3) repeat_border<Shape, 3>(p, tile, levels);
    __syncthreads();
  };
  finish(3);
  if (own.inside) put_fused_second<Shape>(own, sums, levels);
  if (around.inside) put_fused_second<Shape>(around, sums_around, levels);
  finish(2);
  if (own.inside) put_fused_first<Shape>(own, sums, levels);
  if (around.inside) put_fused_first<Shape>(around, sums_around, levels);
  finish(1);
}

// One image's levels and cells to shared memory; its pixels of the thread's own patch stay in registers.
template <class Shape, bool Vectors, class S, class W>
__device__ __forceinline__ void load_image(const Problem<S, W>& p, const Place& tile, const NumberedPatch& own,
                                           bool border, const S* plane, Accumulate<S>* levels,
                                           Accumulate<S> (&values)[kPatch][kPatch]) {
  using A = Accumulate<S>;
  using Groups = typename ThreeBands<Shape>::Groups;
  const int64_t* strides = p.image_strides;
  const auto load = [&](const NumberedPatch& patch, A(&pixels)[kPatch][kPatch]) {
    if (patch.inside)
      load_patch<Vectors, Vectors>(plane, strides[3], strides[4], p.height, p.width, tile.row + patch.down * kPatch,
                                   tile.column + patch.across * kPatch, pixels);
  };
  const int thread = static_cast<int>(threadIdx.x), member = thread & 3;
  // Whole warps, for their shuffles.
#pragma unroll 1
  for (int i = thread; (i & ~31) < 4 * Groups::kCount; i += Shape::kThreads) {
    NumberedPatch patch = {0, 0, false};
    if (i < 4 * Groups::kCount) {
      Groups::unit(i >> 2, patch.down, patch.across);
      patch.down = 2 * patch.down + (member >> 1), patch.across = 2 * patch.across + (member & 1);
      const int row = tile.row + patch.down * kPatch, column = tile.column + patch.across * kPatch;
      patch.inside = row >= 0 && row < p.height && column >= 0 && column < p.width;
    }
    A around[kPatch][kPatch] = {};
    load(patch, around);
    put_levels<Shape>(p, tile, patch, border, around, levels);
  }
  load(own, values);
  put_levels<Shape>(p, tile, own, border, values, levels);
}

// One function although it is long: its steps share registers and shared memory between barriers.
template <class Shape, bool Vectors, class S, class W>
__device__ __forceinline__ void fuse_three_bands(const Problem<S, W>& p, Accumulate<S>* shared) {
  using A = Accumulate<S>;
  using T = ThreeBands<Shape>;
  const Place tile = place_of_block<Shape>(p);
  const int batch = tile.plane / p.channels, thread = static_cast<int>(threadIdx.x), group = thread >> 2;
  const bool border = tile.row == 0 || tile.column == 0 || tile.row + Shape::kRows + kMargin > p.height ||
                      tile.column + Shape::kColumns + kMargin > p.width;
  const auto patch_at = [&](int down, int across) -> NumberedPatch {
    const int row = tile.row + down * kPatch, column = tile.column + across * kPatch;
    return {down, across, row >= 0 && row < p.height && column >= 0 && column < p.width};
  };
  const NumberedPatch own =
      patch_at(group / T::kGroupsAcross * 2 + (thread >> 1 & 1), group % T::kGroupsAcross * 2 + (thread & 1));
  NumberedPatch around = {0, 0, false};
  if (thread < T::Patches::kCount) {
    int down, across;
    T::Patches::unit(thread, down, across);
    around = patch_at(down, across);
  }
  const int first_row = (tile.row >> p.scale_shift) - 1, first_column = (tile.column >> p.scale_shift) - 1;
  const int third_row = thread / T::pitch(3) - 1, third_column = thread % T::pitch(3) - 1;
  const bool has_third = thread < T::rows(3) * T::pitch(3);

  const S* plane = p.images + batch * p.image_strides[0] + tile.plane % p.channels * p.image_strides[2];
  A total[kPatch][kPatch] = {}, third = A(0);
  LowerSums<A> sums;
  // Only a few threads have such a patch, so registers in every thread would be a high price.
  LowerSums<A>& sums_around = reinterpret_cast<LowerSums<A>*>(shared + T::kRingSums)[around.inside ? thread : 0];
  if (around.inside) sums_around = {};
  for (int n = 0; n < p.image_count; ++n) {
    const Place here = {tile.plane, computed_again(tile.row), tile.column};
    A* const levels = shared + (n & 1) * T::kLevels;
    A* const cells = shared + 2 * T::kLevels + (n & 1) * (kBandsPerLaunch + 1) * T::kCells;
    A values[kPatch][kPatch] = {};
    load_image<Shape, Vectors>(p, here, own, border, plane, levels, values);
    plane += p.image_strides[1];
    load_cells<Shape>(p, batch, n, first_row, first_column, cells);
    __syncthreads();
    if (border) {
      repeat_border<Shape, 1>(p, here, levels);
      repeat_border<Shape, 2>(p, here, levels);
      repeat_border<Shape, 3>(p, here, levels);
      __syncthreads();
    }
    if (own.inside) {
      add_first_level<Shape>(levels, own.down, own.across, A(-1), values);
      each_weight_of<Shape, kPatch>(cells, cell_tap<0>(p, here.row + own.down * kPatch, first_row),
                                    cell_tap<0>(p, here.column + own.across * kPatch, first_column), p.cells_per_pixel,
                                    1, [&](int i, int j, A weight) { total[i][j] += weight * values[i][j]; });
    }
    if (own.inside) add_lower<Shape>(p, here, own, levels, cells, first_row, first_column, sums);
    if (around.inside) add_lower<Shape>(p, here, around, levels, cells, first_row, first_column, sums_around);
    if (has_third && p.base != nullptr) {
      // A cell of one place is that place's weight: its neighbour does not count, whatever its value.
      const int next = p.scale_shift > kBandsPerLaunch ? 1 : 0;
      each_weight_of<Shape, 1>(
          cells + 3 * T::kCells, cell_tap<3>(p, (here.row >> 3) + third_row, first_row),
          cell_tap<3>(p, (here.column >> 3) + third_column, first_column), A(0), next,
          [&](int, int, A weight) { third += weight * *place_of<Shape, 3>(levels, third_row, third_column); });
    }
  }

  // The levels of the image before the last one are free.
  A* const fused = shared + (p.image_count & 1) * T::kLevels;
  if (has_third) {
    if (p.base == nullptr) {
      const int height = levels_size(p.height, 3), width = levels_size(p.width, 3);
      third =
          p.coarse[(static_cast<int64_t>(tile.plane) * height + clamped((tile.row >> 3) + third_row, height)) * width +
                   clamped((tile.column >> 3) + third_column, width)];
    }
    *place_of<Shape, 3>(fused, third_row, third_column) = third;
  }
  put_fused<Shape>(p, tile, own, around, border, sums, sums_around, fused);
  if (!own.inside) return;
  add_first_level<Shape>(fused, own.down, own.across, A(1), total);
  store_patch<Vectors>(p.output + static_cast<int64_t>(tile.plane) * p.height * p.width, p.height, p.width,
                       tile.row + own.down * kPatch, tile.column + own.across * kPatch, total);
}

}  // namespace ffmef::cuda::pyramid
