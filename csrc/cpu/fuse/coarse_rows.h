// Rows of planes on a coarser grid: interpolation to full resolution where they are used, and its adjoint. As with
// vec.h, only *_kernels.cpp files include this header.
#pragma once
#include "../../common/interpolation.h"
#include "../base/buffer.h"
#include "../base/vec.h"

namespace ffmef {
namespace FFMEF_ISA {
namespace {

typedef int64_t LongVec __attribute__((vector_size(FFMEF_VECTOR_BYTES), may_alias));
template <class A> struct IndexOf {
  using type = int32_t;
  using vec = IntVec;
};
template <> struct IndexOf<double> {
  using type = int64_t;
  using vec = LongVec;
};

// out[l] = values[index[l]]
template <class V, class I> inline V pick(V values, I index) {
#if defined(__clang__)
  V out;
  for (int l = 0; l < int(sizeof(V) / sizeof(values[0])); ++l) out[l] = values[index[l]];
  return out;
#else
  return __builtin_shuffle(values, index);
#endif
}

// For every column of an image, the cells between which it lies, padded for whole vectors.
template <class T> struct CoarseColumns {
  using A = Acc<T>;
  using Index = typename IndexOf<A>::type;
  using IndexVec = typename IndexOf<A>::vec;

  int64_t cells, width;
  Buffer<Index> first;  // the left cell
  Buffer<Index>
      offset;  // the left cell, relative to that of the vector's first column (vectors start at multiples of lanes)
  Buffer<A> share;  // of the right cell

  // The most cells that interpolation reads past the last.
  static constexpr int64_t kSlack = 2 * lanes<T> + 2;

  CoarseColumns(int64_t cells_, int64_t width_)
      : cells(cells_),
        width(width_),
        first(width_ + 2 * lanes<T>),
        offset(width_ + 2 * lanes<T>),
        share(width_ + 2 * lanes<T>) {
    const Interpolation<int64_t> axis = spanning(cells, width);
    for (int64_t x = 0; x < width + 2 * lanes<T>; ++x) {
      const Tap<int64_t, A> tap = tap_of<A>(axis, x < width ? x : width - 1);
      first.data[x] = Index(tap.first);
      share.data[x] = tap.share;
      offset.data[x] = Index(tap.first - first.data[x / lanes<T> * lanes<T>]);
    }
  }

  // The cells [begin, end) between which columns [x0, x1) lie.
  int64_t begin(int64_t x0) const { return first.data[x0]; }
  int64_t end(int64_t x1) const { return first.data[x1 - 1] + 2 < cells ? first.data[x1 - 1] + 2 : cells; }

  // Closes a row of n cells for `expand`: repeats the last, then adds zeros. The row has room for n + kSlack.
  static void close(A* row, int64_t n) {
    row[n] = row[n - 1];
    for (int64_t i = n + 1; i < n + kSlack; ++i) row[i] = A(0);
  }

  // Writes out[0 .. x1 - x0) and up to a vector more. row[0] is cell begin(x0) of a closed row; x0 is a multiple of
  // lanes.
  void expand(A* out, const A* row, int64_t x0, int64_t x1) const {
    const A* from = row - begin(x0);
    for (int64_t x = x0; x < x1; x += lanes<T>) {
      IndexVec index;
      std::memcpy(&index, offset.data + x, sizeof index);
      const A* left = from + first.data[x];
      const Vec<T> s = load(share.data + x);
      store(out + x - x0, pick(load(left), index) * (splat(A(1)) - s) + pick(load(left + 1), index) * s);
    }
  }

  // The adjoint: to[0 .. cells] += what row[0 .. x1 - x0) contributes to each cell. The extra element collects zeros.
  void collect(A* to, const A* row, int64_t x0, int64_t x1) const {
    for (int64_t x = x0; x < x1;) {
      const Index cell = first.data[x];
      A low = A(0), high = A(0);
      for (; x < x1 && first.data[x] == cell; ++x) {
        low += (A(1) - share.data[x]) * row[x - x0];
        high += share.data[x] * row[x - x0];
      }
      to[cell] += low;
      to[cell + 1] += high;
    }
  }
};

}  // namespace
}  // namespace FFMEF_ISA
}  // namespace ffmef
