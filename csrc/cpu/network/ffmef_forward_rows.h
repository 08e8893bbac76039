// Rows in flight: rings of the last few rows of a tile, and moments accumulated row by row. Only kernel files include
// this header; it has internal linkage for the reason given in vec.h.
#pragma once
#include "../base/buffer.h"
#include "ffmef_forward_convolution.h"

namespace ffmef {
namespace FFMEF_ISA {
namespace {

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }

// Columns of one row: the item's own, or its neighbour's, which are recomputed.
struct Span {
  int64_t begin, end;
  bool own;
};

// The rows and columns of vertically adjacent items, processed from top to bottom without recomputing rows. [left,
// right) also includes the neighbours' columns that the convolutions need.
struct Tile {
  int64_t x0, x1, y0, y1, left, right;

  struct Spans {
    Span at[3];
  };
  Spans spans(int64_t y) const { return {{{left, x0, false}, {x0, x1, y >= y0 && y < y1}, {x1, right, false}}}; }
};

// The first of items [item, end) that does not lie below `item` in the same tile of columns.
inline int64_t next_tile(const Geometry& g, int64_t item, int64_t end) {
  return least(end, (item / g.bands + 1) * g.bands);
}

inline Tile tile_at(const Geometry& g, int64_t item, int64_t last) {
  const int64_t top = item / g.bands * g.bands;
  Tile t;
  t.x0 = item / g.bands * g.tile_columns;
  t.x1 = least(t.x0 + g.tile_columns, g.pitch);
  t.y0 = (item - top) * g.band_rows;
  t.y1 = least((last - top) * g.band_rows, g.height);
  t.left = most(t.x0 - kHalo, 0);
  t.right = least(t.x1 + kHalo, g.pitch);
  return t;
}

// The last `depth` rows of a few planes over one tile and its halo. Everything outside the image is zero.
class Ring {
 public:
  const int64_t plane;

  Ring(const Geometry& geometry, int depth, int planes)
      : plane(geometry.tile_columns + 2 * kHalo), geometry_(geometry), depth_(depth), planes_(planes) {
    // Convolutions of halo columns, whose results are unused, read a few values before and after the rows.
    const int64_t values = depth * planes * plane + 2 * kHalo;
    data_ = Buffer<float>(values);
    std::memset(data_, 0, size_t(values) * sizeof(float));
  }

  void start(const Tile& tile) { tile_ = tile; }

  // Plane 0 of row y. Its element [x] is column x of the image.
  float* row(int64_t y) const {
    return data_ + kHalo + ((y % depth_ + depth_) % depth_) * planes_ * plane + kHalo - tile_.x0;
  }

  bool outside(int64_t y) const { return y < 0 || y >= geometry_.height; }
  void clear(int64_t y) const { std::memset(row(y) + tile_.x0 - kHalo, 0, size_t(planes_ * plane) * sizeof(float)); }
  // Writes zeros beside a row that was filled over [left, right).
  void close(int64_t y) const {
    float* at = row(y);
    const bool first = tile_.x0 == 0, last = geometry_.width < tile_.x1 + kHalo;
    if (!first && !last) return;
    for (int p = 0; p < planes_; ++p, at += plane) {
      if (first) std::memset(at - kHalo, 0, kHalo * sizeof(float));
      if (last) std::memset(at + geometry_.width, 0, size_t(tile_.x1 + kHalo - geometry_.width) * sizeof(float));
    }
  }

 private:
  const Geometry& geometry_;
  const int depth_, planes_;
  Buffer<float> data_;
  Tile tile_{};
};

// Moments of N planes of rows of one item. Deviations are taken from a pivot, the mean of the item's first row. This
// keeps float32 squares of one row exact enough; rows are summed in float64.
template <int N> class MomentSums {
 public:
  void add(const float* row, int64_t plane, int64_t x0, int64_t x1) {
    const bool first = count_ == 0;
    for (int c = 0; c < N; ++c) {
      const float* at = row + c * plane;
      if (first) {
        pivot_[c] = 0;
        DoubleVec sum{}, squares{};
        add_plane(at, x0, x1, 0.0f, sum, squares);
        pivot_[c] = float(sum_lanes(sum) / double(x1 - x0));
        sum_[c] = squares_[c] = DoubleVec{};
      }
      add_plane(at, x0, x1, pivot_[c], sum_[c], squares_[c]);
    }
    count_ += x1 - x0;
  }
  void finish(Moments* out) const {
    for (int c = 0; c < N; ++c) {
      const double n = double(count_), mean = sum_lanes(sum_[c]) / n;
      out[c] = {n, pivot_[c] + mean, sum_lanes(squares_[c]) - mean * mean * n};
    }
  }

 private:
  typedef float HalfVec __attribute__((vector_size(FFMEF_VECTOR_BYTES / 2)));

  static void widen(DoubleVec& total, FloatVec v) {
    HalfVec halves[2];
    std::memcpy(halves, &v, sizeof v);
    total += __builtin_convertvector(halves[0], DoubleVec) + __builtin_convertvector(halves[1], DoubleVec);
  }
  static void add_plane(const float* at, int64_t x0, int64_t x1, float pivot, DoubleVec& sum, DoubleVec& squares) {
    FloatVec s[2] = {}, q[2] = {};
    int64_t x = x0;
    for (; x + 2 * kLanes <= x1; x += 2 * kLanes)
#pragma GCC unroll 2
      for (int u = 0; u < 2; ++u) {
        const FloatVec d = load(at + x + u * kLanes) - pivot;
        s[u] += d;
        q[u] += d * d;
      }
    for (; x < x1; x += kLanes) {
      IntVec index;
      for (int i = 0; i < kLanes; ++i) index[i] = i;
      const IntVec inside = index < int32_t(least(x1 - x, kLanes));
      const FloatVec d = (FloatVec)((IntVec)(load(at + x) - pivot) & inside);
      s[0] += d;
      q[0] += d * d;
    }
    widen(sum, s[0] + s[1]);
    widen(squares, q[0] + q[1]);
  }

  int64_t count_ = 0;
  float pivot_[N];
  DoubleVec sum_[N], squares_[N];
};

// Accumulates the moments of every item in a tile, row by row from top to bottom.
template <int N> class TileMoments {
 public:
  TileMoments(const Geometry& g, const Tile& tile, Moments* moments)
      : band_rows_(g.band_rows),
        height_(g.height),
        x0_(tile.x0),
        x1_(least(tile.x1, g.width)),
        uppermost_(moments + tile.x0 / g.tile_columns * g.bands * kMaxChannels) {}

  void add(const float* row, int64_t plane, int64_t y) {
    sums_.add(row, plane, x0_, x1_);
    if ((y + 1) % band_rows_ != 0 && y + 1 != height_) return;
    sums_.finish(uppermost_ + y / band_rows_ * kMaxChannels);
    sums_ = {};
  }

 private:
  const int64_t band_rows_, height_, x0_, x1_;
  Moments* const uppermost_;
  MomentSums<N> sums_;
};

}  // namespace
}  // namespace FFMEF_ISA
}  // namespace ffmef
