"""The matrix of adaptive_fuse that every GPU kernel has to pass, and how far from float64 it may be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

import problems
from ffmef.checks.problems import lay_out
from ffmef.ops import reference
from problems import DTYPES, PADDINGS, Expected, Problem

# Half of what the selftest allows in float32: these problems are small.
TOLERANCE = problems.TOLERANCE | {torch.float32: 8 * 2.0**-24}


@dataclass(frozen=True)
class Case(Problem):
    """One problem and the gradients asked for."""

    sizes: tuple[int, ...] = (1, 3, 5)
    grids: tuple[tuple[int, int] | None, ...] | None = None  # of each level's filters; None is the images' own
    padding: str = "zeros"
    need_images: bool = True
    need_filters: tuple[bool, ...] | None = None
    need_alphas: bool = True

    @property
    def filters_needed(self) -> tuple[bool, ...]:
        return self.need_filters if self.need_filters is not None else (True,) * len(self.sizes)

    @property
    def grid_of_levels(self) -> list[tuple[int, int]]:
        return [grid or (self.height, self.width) for grid in self.grids or (None,) * len(self.sizes)]


@dataclass
class Tensors:
    images: torch.Tensor
    filters: list[torch.Tensor]
    alphas: torch.Tensor
    gradient: torch.Tensor


def make_tensors(case: Case) -> Tensors:
    """Return random inputs of a case; the same on every call."""
    normal = case.random()
    batch, count, height, width = case.batch, case.images, case.height, case.width
    images = lay_out(normal(batch, count, case.channels, height, width), case.layout)
    filters = [
        lay_out(normal(batch, count, size * size, *grid), case.layout)
        for size, grid in zip(case.sizes, case.grid_of_levels, strict=True)
    ]
    alphas = normal(len(case.sizes)).to(reference.accumulator(case.dtype))
    gradient = normal(batch, case.channels, height, width)
    return Tensors(images, filters, case.laid_out_beside(alphas), case.laid_out_beside(gradient))


def _forward(case: Case, t: Tensors) -> torch.Tensor:
    return reference.adaptive_fuse(t.images, t.filters, t.alphas, case.padding)


def _backward(case: Case, t: Tensors) -> list[torch.Tensor]:
    images, alphas = t.images.requires_grad_(), t.alphas.requires_grad_()
    filters = [f.requires_grad_() for f in t.filters]
    wanted = [images] if case.need_images else []
    wanted += [f for f, needed in zip(filters, case.filters_needed) if needed]
    wanted += [alphas] if case.need_alphas else []
    result = reference.adaptive_fuse(images, filters, alphas, case.padding)
    return list(torch.autograd.grad(result, wanted, t.gradient))


def _in_float64(case: Case, change: Callable[[torch.Tensor], torch.Tensor]) -> Tensors:
    t = make_tensors(case)
    images, alphas, gradient = (change(x.double().contiguous()) for x in (t.images, t.alphas, t.gradient))
    return Tensors(images, [change(f.double().contiguous()) for f in t.filters], alphas, gradient)


def expected_forward(case: Case) -> Expected:
    """Return the float64 result for the values that the case's dtype holds."""
    return Expected(_forward(case, _in_float64(case, torch.clone)), _forward(case, _in_float64(case, torch.abs)))


def expected_backward(case: Case) -> list[Expected]:
    """Return the float64 gradients asked for: images, filters level by level, alphas."""
    values = _backward(case, _in_float64(case, torch.clone))
    return list(map(Expected, values, _backward(case, _in_float64(case, torch.abs))))


def coarse_matrix() -> list[Case]:
    """Return cases with filters on coarser grids: whole and broken ratios, one cell, mixed with full levels."""
    cases = []
    for padding in PADDINGS:
        cases += [
            Case(f"coarse, {padding}", grids=((3, 5), (2, 4), None), padding=padding, batch=2),
            Case(
                f"coarse, odd, {padding}", height=11, width=37, sizes=(3, 5), grids=((4, 9), (11, 2)), padding=padding
            ),
            Case(f"coarse, small, {padding}", height=2, width=3, sizes=(7, 1), grids=((1, 2), (2, 1)), padding=padding),
        ]
    for dtype in DTYPES:
        short = str(dtype).removeprefix("torch.")
        cases += [
            Case(f"coarse, {short}, three channels", dtype=dtype, channels=3, sizes=(3, 1), grids=((3, 7), None)),
            Case(f"coarse, {short}, wide cells", dtype=dtype, width=43, sizes=(7, 5), grids=((2, 1), (3, 9)), batch=2),
            Case(
                f"coarse, {short}, nine taps", dtype=dtype, sizes=(9,), grids=((2, 3),), height=7, width=8, channels=5
            ),
        ]
    cases += [
        Case("coarse, one cell", grids=((1, 1),) * 3, images=1),
        Case("coarse, one pixel", height=1, width=1, sizes=(3,), grids=((1, 1),)),
        Case("coarse, nearly full", height=8, width=40, sizes=(3,), grids=((7, 39),)),
        Case("coarse, many tiles of cells", height=20, width=80, sizes=(3,), grids=((18, 70),)),
        Case("coarse, strided", grids=((3, 5), None, (9, 4)), layout="every second", channels=2),
        Case("coarse, transposed", grids=((3, 5), (2, 4), (1, 20)), layout="transposed", padding="reflect"),
        Case("coarse, expanded", grids=((3, 5), (2, 4), None), layout="expanded", batch=3),
        Case(
            "coarse, seventeen levels", sizes=(1, 3) * 8 + (5,), height=5, width=8, grids=((2, 3), None) * 8 + ((1, 8),)
        ),
        Case("coarse, no batch", batch=0, sizes=(3,), grids=((3, 5),)),
    ]
    return cases


def coarse_backward_matrix() -> list[Case]:
    """Return the cases of their gradients, and the choices of what is asked for."""
    base = Case("", height=7, width=13, sizes=(3, 1, 5), grids=((2, 5), None, (3, 13)), padding="reflect")
    none, some = (False, False, False), (True, False, False)
    return [
        *coarse_matrix(),
        replace(base, name="coarse, images only", need_filters=none, need_alphas=False),
        replace(base, name="coarse, filters only", need_images=False, need_alphas=False),
        replace(base, name="coarse, alphas only", need_images=False, need_filters=none),
        replace(base, name="coarse, some filters and alphas", need_images=False, need_filters=some),
        replace(
            base, name="coarse, some filters", need_images=False, need_filters=(False, True, True), need_alphas=False
        ),
    ]


def matrix() -> list[Case]:
    """Return the cases: each axis alone, and the combinations that share a code path."""
    cases = []
    for dtype in DTYPES:
        short = str(dtype).removeprefix("torch.")
        for padding in PADDINGS:
            # 24 columns suit every vector width, 21 suit none.
            cases.append(Case(f"{short}, {padding}, vectors", dtype=dtype, padding=padding, width=24, batch=2))
            cases.append(Case(f"{short}, {padding}, odd width", dtype=dtype, padding=padding, width=21))
        cases += [
            Case(f"{short}, three channels", dtype=dtype, channels=3, width=24, sizes=(3, 7)),
            Case(f"{short}, three channels, odd width", dtype=dtype, channels=3, width=11, images=3),
            Case(f"{short}, six channels", dtype=dtype, channels=6, width=16, sizes=(1, 5)),
            Case(f"{short}, nine taps across", dtype=dtype, sizes=(9, 3), width=16, padding="reflect"),
            Case(f"{short}, slices", dtype=dtype, layout="slice", width=16),
            Case(f"{short}, dense but off a 16-byte boundary", dtype=dtype, layout="offset", width=16),
            Case(f"{short}, aligned slices", dtype=dtype, layout="aligned slice", width=16),
        ]
    for size in (1, 3, 5, 7):
        cases.append(Case(f"one level of {size}", sizes=(size,), height=18, width=68, batch=2, padding="replicate"))
    for padding in PADDINGS:
        cases += [
            Case(f"many tiles, {padding}", height=37, width=132, padding=padding),
            Case(f"many tiles, odd, {padding}", height=19, width=67, padding=padding),
            Case(f"many tiles, two channels, {padding}", height=20, width=72, padding=padding, channels=2),
            Case(f"31 taps across, {padding}", sizes=(31,), height=8, width=12, padding=padding),
            Case(f"smaller than the filter, {padding}", height=2, width=3, sizes=(5, 7, 1), padding=padding),
            Case(f"one row, {padding}", height=1, width=8, padding=padding),
            Case(f"one column, {padding}", height=5, width=1, padding=padding),
            Case(f"one pixel, {padding}", height=1, width=1, padding=padding),
        ]
    cases += [
        Case("one image", images=1),
        Case("five images, odd width", images=5, width=13, batch=2, channels=4),
        Case("channels last", layout="channels last", channels=3, batch=2),
        Case("transposed", layout="transposed", channels=2, padding="reflect"),
        Case("every second pixel", layout="every second", width=16),
        Case("expanded", layout="expanded", batch=3, width=16),
        Case("expanded, nine taps across", layout="expanded", batch=2, sizes=(9,)),
        Case("output off a 16-byte boundary", width=16, output_offset=1),
        Case("seventeen levels", sizes=(1, 3) * 8 + (5,), height=5, width=8),
        Case("thirty-five levels, odd width", sizes=(3, 1) * 17 + (3,), height=5, width=7, padding="replicate"),
        Case("no batch", batch=0),
    ]
    return cases


def backward_matrix() -> list[Case]:
    """Return the cases of the gradients: the whole matrix, and every choice of what is asked for."""
    cases = matrix()
    for width in (16, 13):
        for channels in (1, 3, 5):
            base = Case("", width=width, channels=channels, padding="reflect")
            kind = f"width {width}, {channels} channels"
            some = (True, False, True)
            none = (False, False, False)
            cases += [
                replace(base, name=f"images only, {kind}", need_filters=none, need_alphas=False),
                replace(base, name=f"filters only, {kind}", need_images=False, need_alphas=False),
                replace(base, name=f"alphas only, {kind}", need_images=False, need_filters=none),
                replace(base, name=f"some filters, {kind}", need_images=False, need_filters=some, need_alphas=False),
                replace(base, name=f"some filters and alphas, {kind}", need_images=False, need_filters=some),
                replace(base, name=f"some filters and images, {kind}", need_filters=some, need_alphas=False),
            ]
    return cases
