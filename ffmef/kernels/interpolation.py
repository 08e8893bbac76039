"""Bilinear interpolation between cell centres in Triton, one axis at a time, and its adjoint.

The rules are those of csrc/common/interpolation.h. A coarse axis of ``size`` cells lies under a fine one: ``cells``
cells are as long as ``pixels`` pixels, and both axes start at the same edge. A grid that spans the picture, as in
``F.interpolate(..., align_corners=False)``, has ``cells = size`` and ``pixels`` the fine size. Cells of ``factor``
pixels each, as in pyramid_fuse, have ``cells = 1`` and ``pixels = factor``. Numbers must have room for
``2 * pixels * (size + 1)`` and ``2 * cells`` times the fine size. Importing this module imports triton.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tap_of(pixel, size, cells, pixels, DTYPE: tl.constexpr):
    """Return two cells and a share: a pixel's value is (1 - share) * first + share * second.

    Beyond the outermost centres, and on a cell's own centre, both are one cell and the share is zero.
    """
    unit = 2 * pixels
    place = tl.maximum((2 * pixel + 1) * cells - pixels, 0)
    first = place // unit
    rest = place - first * unit
    beyond = first >= size - 1
    first = tl.where(beyond, size - 1, first)
    rest = tl.where(beyond, 0, rest)
    second = tl.where(rest > 0, first + 1, first)
    return first, second, rest.to(DTYPE) / tl.cast(unit, DTYPE)


@triton.jit
def span_of(cell, size, cells, pixels, fine_size):
    """Return the first and one past the last of the pixels in which a cell has a share."""
    unit = 2 * cells
    first = tl.where(cell == 0, 0, tl.maximum(pixels * (2 * cell - 1) - cells, 0) // unit + 1)
    last = (pixels * (2 * cell + 3) - cells + unit - 1) // unit
    last = tl.where(cell == size - 1, fine_size, tl.minimum(last, fine_size))
    return first, last


@triton.jit
def share_of(cell, pixel, size, cells, pixels, DTYPE: tl.constexpr):
    """Return a cell's share in a pixel, zero outside :func:`span_of`; cells and pixels broadcast."""
    unit = 2 * pixels
    # Computed in the cell's type: plain numbers are 32 bits wide, and the last centre's place may need more.
    last = unit * (size - 1 + 0 * cell)
    place = tl.minimum(tl.maximum((2 * pixel + 1) * cells - pixels, 0), last)
    distance = tl.abs(place - unit * cell)
    return tl.maximum(unit - distance, 0).to(DTYPE) / tl.cast(unit, DTYPE)
