// Rows of Laplacian pyramids: interpolation to finer grids and its adjoint, in the precision of sums. As with vec.h,
// only *_kernels.cpp files include this header.
#pragma once
#include <type_traits>

#include "../../common/interpolation.h"
#include "../base/buffer.h"
#include "../base/vec.h"
#include "pyramid_fuse.h"

namespace ffmef {
namespace FFMEF_ISA {
namespace {

template <class A> using Row = Buffer<A>;

inline int64_t half_of(int64_t size) { return (size + 1) / 2; }

// Rows of a grid `factor` times finer. Beyond the outermost centres, the border value holds.
using RowTap = Tap<int64_t, double>;

inline RowTap tap_of(int64_t fine, int factor, int64_t size) {
  return ffmef::tap_of<double>(with_cells_of<int64_t>(factor, size), fine);
}

// The share of coarse row i in a fine row.
inline double share_of(int64_t i, int64_t fine, int factor, int64_t size) {
  return ffmef::share_of<double>(with_cells_of<int64_t>(factor, size), i, fine);
}

// The fine rows in which coarse row i has a share: [first, last).
inline void support_of(int64_t i, int factor, int64_t coarse_size, int64_t fine_size, int64_t& first, int64_t& last) {
  const Span<int64_t> span = span_of(with_cells_of<int64_t>(factor, coarse_size), i, fine_size);
  first = span.first;
  last = span.last;
}

// out[0 .. n) = a + (b - a) * share.
template <class A>
inline void between(A* __restrict out, const A* __restrict a, const A* __restrict b, A share, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = a[i] + (b[i] - a[i]) * share;
}

// A row of n values -> out[0 .. (n + 1) * R), whose element R / 2 is the first pixel. Beyond the ends, they are
// repeated.
template <int R, class A> inline void expand_row_by(A* __restrict out, const A* __restrict row, int64_t n) {
  A share[R];
  for (int k = 0; k < R; ++k) share[k] = (A(k) + A(0.5)) / R;
  for (int k = 0; k < R; ++k) out[k] = row[0];
  for (int64_t j = 1; j < n; ++j) {
    const A a = row[j - 1], d = row[j] - a;
    for (int k = 0; k < R; ++k) out[j * R + k] = a + d * share[k];
  }
  for (int k = 0; k < R; ++k) out[n * R + k] = row[n - 1];
}

// R = 2 is half of the work at full resolution, so it has a loop that compiles to whole vectors of pairs.
template <class A> inline void expand_row_by_2(A* __restrict out, const A* __restrict row, int64_t n) {
  out[0] = out[1] = row[0];
  for (int64_t j = 1; j < n; ++j) {
    const A a = row[j - 1], b = row[j];
    out[2 * j] = A(0.75) * a + A(0.25) * b;
    out[2 * j + 1] = A(0.25) * a + A(0.75) * b;
  }
  out[2 * n] = out[2 * n + 1] = row[n - 1];
}

template <class A> inline const A* expand_row(A* out, const A* row, int64_t n, int factor) {
  switch (factor) {
    case 1: return row;
    case 2: expand_row_by_2(out, row, n); break;
    case 4: expand_row_by<4>(out, row, n); break;
    case 8: expand_row_by<8>(out, row, n); break;
    case 16: expand_row_by<16>(out, row, n); break;
    case 32: expand_row_by<32>(out, row, n); break;
    default: expand_row_by<64>(out, row, n); break;
  }
  return out + factor / 2;
}

inline int64_t expanded_size(int64_t n, int factor) { return (n + 1) * factor; }

// Expands row y of a plane (rows x n, contiguous): interpolates between two rows, then along the row.
template <class A> struct Expander {
  Row<A> mixed, fine;
  Expander(int64_t n, int factor) : mixed(n), fine(expanded_size(n, factor)) {}
  const A* operator()(const A* plane, int64_t rows, int64_t n, int factor, int64_t y) {
    const RowTap tap = tap_of(y, factor, rows);
    between(mixed.data, plane + tap.first * n, plane + tap.second * n, A(tap.share), n);
    return expand_row(fine.data, mixed.data, n, factor);
  }
};

// The adjoint of expand_row: adds a row of `width` pixels, times a factor, to cells[0 .. n). `padded` has
// expanded_size(n, factor) elements.
template <class A>
inline void collect_row(A* cells, const A* row, int64_t width, int64_t n, int factor, A gain, A* padded) {
  if (factor == 1) {
    for (int64_t i = 0; i < n; ++i) cells[i] += gain * row[i];
    return;
  }
  const int64_t size = expanded_size(n, factor), margin = factor / 2;
  for (int64_t i = 0; i < margin; ++i) padded[i] = A(0);
  std::memcpy(padded + margin, row, size_t(width) * sizeof(A));
  for (int64_t i = margin + width; i < size; ++i) padded[i] = A(0);
  A carried = A(0);  // the part of the previous segment that belongs to this cell
  for (int64_t j = 0; j <= n; ++j) {
    A low = A(0), high = A(0);
    for (int k = 0; k < factor; ++k) {
      const A share = (A(k) + A(0.5)) / A(factor), value = padded[j * factor + k];
      low += (A(1) - share) * value;
      high += share * value;
    }
    if (j == 0) {
      carried = low + high;  // nothing lies before the first cell
    } else if (j == n) {
      cells[n - 1] += gain * (carried + low + high);
    } else {
      cells[j - 1] += gain * (carried + low);
      carried = high;
    }
  }
}

}  // namespace
}  // namespace FFMEF_ISA
}  // namespace ffmef
