"""The interpolation that kernels share, in C++ (csrc/common/interpolation.h) and Triton, against torch's own."""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from interpreter import INTERPRETED

ROOT = Path(__file__).resolve().parents[2]
COMPILER = shutil.which(os.environ.get("CXX", "g++"))

# (size, cells, pixels, fine size): coarse axes that span the fine one, and cells of whole numbers of pixels
SPANNING = [(coarse, coarse, fine, fine) for fine in range(1, 24) for coarse in range(1, fine + 1)]
SPANNING += [(13, 13, 1000, 1000), (500, 500, 4001, 4001), (46, 46, 707, 707)]
CELLS = [(-(-fine // factor), 1, factor, fine) for factor in (1, 2, 3, 8, 64) for fine in range(1, 70, 4)]


def expected(size: int, cells: int, pixels: int, fine: int) -> np.ndarray:
    """Return the share of each cell in each pixel, (fine, size), by interpolating impulses in float64."""
    impulses = torch.eye(size, dtype=torch.float64)[None]
    whole = fine if cells == size and pixels == fine else size * pixels // cells
    return F.interpolate(impulses, size=whole, mode="linear", align_corners=False)[0, :, :fine].T.numpy()


def check(axis: tuple[int, int, int, int], taps: np.ndarray, spans: np.ndarray, shares: np.ndarray) -> None:
    """Compare (fine, 3) taps, (size, 2) spans and (fine, size) shares with torch's interpolation."""
    exact, fine = expected(*axis), np.arange(axis[3])
    from_taps = np.zeros_like(exact)
    np.add.at(from_taps, (fine, taps[:, 0].astype(int)), 1 - taps[:, 2])
    np.add.at(from_taps, (fine, taps[:, 1].astype(int)), taps[:, 2])
    np.testing.assert_allclose(from_taps, exact, rtol=0, atol=1e-12)
    np.testing.assert_allclose(shares, from_taps, rtol=0, atol=2e-16)
    assert ((taps[:, 2] > 0) == (taps[:, 1] != taps[:, 0])).all(), "a share of zero names one cell"
    for cell, (first, last) in enumerate(spans.astype(int)):
        reached = np.flatnonzero(shares[:, cell])
        assert 0 <= first <= reached.min() and reached.max() < last <= axis[3]
        assert first == reached.min() and last == reached.max() + 1, "a span has no pixel to spare"


PROGRAM = """
#include "interpolation.h"
#include <cstdio>
#include <cstdlib>
template <class Int> void print(Int size, Int cells, Int pixels, Int fine) {
  const ffmef::Interpolation<Int> axis{size, cells, pixels};
  for (Int y = 0; y < fine; ++y) {
    const auto tap = ffmef::tap_of<double>(axis, y);
    std::printf("%lld %lld %.17g ", (long long)tap.first, (long long)tap.second, tap.share);
    if (cells != 1 || (pixels & (pixels - 1)) != 0) continue;
    int shift = 0;
    while ((Int(1) << shift) < pixels) ++shift;
    const auto same = ffmef::tap_of_power<double>(size, shift, y);
    if (same.first != tap.first || same.second != tap.second || same.share != tap.share) std::abort();
    for (Int i = 0; i < size; ++i)
      if (ffmef::share_of_power<double>(size, shift, i, y) != ffmef::share_of<double>(axis, i, y)) std::abort();
  }
  for (Int i = 0; i < size; ++i) {
    const auto span = ffmef::span_of(axis, i, fine);
    std::printf("%lld %lld ", (long long)span.first, (long long)span.last);
  }
  for (Int y = 0; y < fine; ++y)
    for (Int i = 0; i < size; ++i) std::printf("%.17g ", ffmef::share_of<double>(axis, i, y));
  std::printf("\\n");
}
int main() {
  long long a, b, c, d;
  while (std::scanf("%lld %lld %lld %lld", &a, &b, &c, &d) == 4) {
    print<int64_t>(a, b, c, d);
    print<int>(int(a), int(b), int(c), int(d));
  }
}
"""


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler was found")
def test_header(tmp_path: Path) -> None:
    (tmp_path / "program.cpp").write_text(PROGRAM)
    program = tmp_path / "program"
    subprocess.run(
        [COMPILER, "-std=c++17", "-O1", "-I", ROOT / "csrc" / "common", tmp_path / "program.cpp", "-o", program],
        check=True,
    )
    axes = SPANNING + CELLS
    given = "\n".join(" ".join(map(str, axis)) for axis in axes)
    lines = subprocess.run([program], input=given, capture_output=True, text=True, check=True).stdout.splitlines()
    for axis, line in zip(itertools.chain.from_iterable((axis, axis) for axis in axes), lines, strict=True):
        numbers, (size, fine) = np.array(line.split(), dtype=float), (axis[0], axis[3])
        taps, spans, shares = np.split(numbers, [3 * fine, 3 * fine + 2 * size])
        check(axis, taps.reshape(fine, 3), spans.reshape(size, 2), shares.reshape(fine, size))


if INTERPRETED:
    import triton
    import triton.language as tl

    from ffmef.kernels.interpolation import share_of, span_of, tap_of

    @triton.jit
    def kernel(taps, spans, shares, size, cells, pixels, fine, PIXELS: tl.constexpr, CELLS: tl.constexpr):
        y, i = tl.arange(0, PIXELS), tl.arange(0, CELLS)
        first, second, share = tap_of(y, size, cells, pixels, tl.float64)
        tl.store(taps + 3 * y, first, mask=y < fine)
        tl.store(taps + 3 * y + 1, second, mask=y < fine)
        tl.store(taps + 3 * y + 2, share, mask=y < fine)
        begin, end = span_of(i, size, cells, pixels, fine)
        tl.store(spans + 2 * i, begin, mask=i < size)
        tl.store(spans + 2 * i + 1, end, mask=i < size)
        both = share_of(i[None, :], y[:, None], size, cells, pixels, tl.float64)
        tl.store(shares + y[:, None] * size + i[None, :], both, mask=(y < fine)[:, None] & (i < size)[None, :])


@pytest.mark.interpreter
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_triton_helper() -> None:
    for axis in (SPANNING + CELLS)[::7] + SPANNING[-1:]:
        size, fine = axis[0], axis[3]
        taps, spans, shares = (
            torch.zeros(*shape, dtype=torch.float64) for shape in ((fine, 3), (size, 2), (fine, size))
        )
        kernel[(1,)](
            taps, spans, shares, *axis, PIXELS=triton.next_power_of_2(fine), CELLS=triton.next_power_of_2(size)
        )
        check(axis, taps.numpy(), spans.numpy(), shares.numpy())
