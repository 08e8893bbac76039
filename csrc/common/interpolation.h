// Bilinear interpolation between cell centres, one axis at a time, and its adjoint: shared by host and device code.
// Positions are integers in half pixels, because long grids would exceed a float's precision.
#pragma once
#include <cstdint>

#include "padding.h"

namespace ffmef {

// A coarse axis under a fine one: `cells` cells are as long as `pixels` pixels. Both axes start at the same edge. Int
// needs room for 2 * pixels * (size + 1) and 2 * cells * (fine size).
template <class Int = int64_t> struct Interpolation {
  Int size;           // of the coarse axis
  Int cells, pixels;  // cells <= pixels
};

// Cells of `factor` pixels; the fine axis may end inside the last one (as in pyramid_fuse).
template <class Int> static inline FFMEF_HOST_DEVICE Interpolation<Int> with_cells_of(Int factor, Int size) {
  return {size, 1, factor};
}

// A coarse axis that spans the fine one, as in F.interpolate(..., size, align_corners=False).
template <class Int> static inline FFMEF_HOST_DEVICE Interpolation<Int> spanning(Int size, Int fine_size) {
  return {size, size, fine_size};
}

// A pixel's value is (1 - share) * first + share * second. Beyond the outermost centres, and at a cell's centre, both
// are the same cell and the share is zero.
template <class Int, class Real> struct Tap {
  Int first, second;
  Real share;
};

template <class Real, class Int>
static inline FFMEF_HOST_DEVICE Tap<Int, Real> tap_of(const Interpolation<Int>& axis, Int pixel) {
  // (pixel + 1/2) * cells / pixels - 1/2 in units of 1 / (2 pixels).
  const Int place = (2 * pixel + 1) * axis.cells - axis.pixels, unit = 2 * axis.pixels;
  if (place <= 0) return {0, 0, Real(0)};
  const Int first = place / unit, rest = place - first * unit;
  if (first >= axis.size - 1) return {axis.size - 1, axis.size - 1, Real(0)};
  return {first, rest == 0 ? first : first + 1, Real(rest) / Real(unit)};
}

// The same for cells of 2^shift pixels, without integer division: GPUs have no instruction for it.
template <class Real, class Int>
static inline FFMEF_HOST_DEVICE Tap<Int, Real> tap_of_power(Int size, int shift, Int pixel) {
  const Int place = 2 * pixel + 1 - (Int(1) << shift), unit = Int(2) << shift;
  if (place <= 0) return {0, 0, Real(0)};
  const Int first = place >> (shift + 1), rest = place & (unit - 1);
  if (first >= size - 1) return {size - 1, size - 1, Real(0)};
  return {first, rest == 0 ? first : first + 1, Real(rest) * (Real(1) / Real(unit))};
}

// The pixels [first, last) in which a cell has a share.
template <class Int> struct Span {
  Int first, last;
};

template <class Int>
static inline FFMEF_HOST_DEVICE Span<Int> span_of(const Interpolation<Int>& axis, Int cell, Int fine_size) {
  const Int unit = 2 * axis.cells;
  const Int first = cell == 0 ? 0 : (axis.pixels * (2 * cell - 1) - axis.cells) / unit + 1;
  const Int last = (axis.pixels * (2 * cell + 3) - axis.cells + unit - 1) / unit;
  return {first, cell == axis.size - 1 || last > fine_size ? fine_size : last};
}

// The share of a cell in a pixel: a tent over the cell's centre, computed exactly, then rounded once.
template <class Real, class Int>
static inline FFMEF_HOST_DEVICE Real share_of(const Interpolation<Int>& axis, Int cell, Int pixel) {
  const Int unit = 2 * axis.pixels, last = unit * (axis.size - 1);
  Int place = (2 * pixel + 1) * axis.cells - axis.pixels;
  place = place < 0 ? 0 : place > last ? last : place;
  const Int distance = place < unit * cell ? unit * cell - place : place - unit * cell;
  return distance < unit ? Real(unit - distance) / Real(unit) : Real(0);
}

template <class Real, class Int>
static inline FFMEF_HOST_DEVICE Real share_of_power(Int size, int shift, Int cell, Int pixel) {
  const Tap<Int, Real> tap = tap_of_power<Real>(size, shift, pixel);
  return tap.first == cell ? Real(1) - tap.share : tap.second == cell ? tap.share : Real(0);
}

}  // namespace ffmef
