"""The matrix of predict_and_fuse that every GPU kernel has to pass; tolerances are those of gpu_cases.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ffmef.checks.problems import lay_out
from ffmef.ops import reference
from problems import DTYPES, PADDINGS, Expected, Problem


@dataclass(frozen=True)
class Case(Problem):
    """One problem; ``maps`` counts each level's hidden maps, k*k where None."""

    sizes: tuple[int, ...] = (1, 3, 5)
    maps: tuple[int, ...] | None = None
    padding: str = "zeros"


@dataclass
class Tensors:
    hidden: list[torch.Tensor]
    weight: list[torch.Tensor]
    bias: list[torch.Tensor]
    images: torch.Tensor
    alphas: torch.Tensor

    def changed(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Tensors:
        lists = ([change(t) for t in tensors] for tensors in (self.hidden, self.weight, self.bias))
        return Tensors(*lists, change(self.images), change(self.alphas))


def make_tensors(case: Case) -> Tensors:
    """Return random inputs of a case; the same on every call."""
    normal = case.random()
    batch, count, plane = case.batch, case.images, (case.height, case.width)
    maps = case.maps or [k * k for k in case.sizes]
    hidden = [lay_out(normal(batch, count, m, *plane), case.layout) for m in maps]
    weight = [normal(k * k, m) for k, m in zip(case.sizes, maps, strict=True)]
    bias = [normal(k * k) for k in case.sizes]
    images = lay_out(normal(batch, count, case.channels, *plane), case.layout)
    alphas = normal(len(case.sizes)).to(reference.accumulator(case.dtype))
    return Tensors(hidden, weight, bias, images, case.laid_out_beside(alphas))


def two_steps(t: Tensors, padding: str) -> torch.Tensor:
    """Predict the filters, then fuse with them."""
    filters = [
        torch.einsum("ji,bnihw->bnjhw", w, h) + b.view(1, 1, -1, 1, 1) for h, w, b in zip(t.hidden, t.weight, t.bias)
    ]
    return reference.adaptive_fuse(t.images, filters, t.alphas, padding)


def expected(case: Case) -> Expected:
    """Return the float64 result for the values that the case's dtype holds, and the scale for its errors."""
    wide = make_tensors(case).changed(lambda t: t.double().contiguous())
    return Expected(two_steps(wide, case.padding), two_steps(wide.changed(torch.abs), case.padding))


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
            Case(
                f"{short}, nine taps across",
                dtype=dtype,
                sizes=(9, 3),
                maps=(5, 2),
                width=16,
                padding="reflect",
                channels=5,
            ),
            Case(f"{short}, slices", dtype=dtype, layout="slice", width=16),
            Case(f"{short}, dense but off a 16-byte boundary", dtype=dtype, layout="offset", width=16),
            Case(f"{short}, aligned slices", dtype=dtype, layout="aligned slice", width=16),
        ]
    for size in (1, 3, 5, 7):
        cases.append(Case(f"one level of {size}", sizes=(size,), height=18, width=68, batch=2, padding="replicate"))
    for padding in PADDINGS:
        cases += [
            Case(f"many tiles, {padding}", height=37, width=132, padding=padding),
            Case(f"many tiles, odd, two channels, {padding}", height=19, width=67, padding=padding, channels=2),
            Case(f"31 taps across, {padding}", sizes=(31,), maps=(2,), height=8, width=12, padding=padding),
            Case(f"smaller than the filter, {padding}", height=2, width=3, sizes=(5, 7, 1), padding=padding),
            Case(f"one row, {padding}", height=1, width=8, padding=padding),
            Case(f"one pixel, {padding}", height=1, width=1, padding=padding),
        ]
    cases += [
        Case("one image", images=1),
        Case("other numbers of maps", maps=(3, 1, 7), width=16),
        # More maps than there is room for in the weights' shared memory: 40 of 7 x 7, 170 of 3 x 3.
        Case("maps in turns", sizes=(7, 3), maps=(81, 200), height=3, width=8),
        Case("maps in turns, odd width", sizes=(5,), maps=(73,), height=2, width=5, padding="reflect"),
        Case("five images, odd width", images=5, width=13, batch=2, channels=4),
        Case("channels last", layout="channels last", channels=3, batch=2),
        Case("transposed", layout="transposed", channels=2, padding="reflect"),
        Case("every second pixel", layout="every second", width=16),
        Case("expanded", layout="expanded", batch=3, width=16),
        Case("output off a 16-byte boundary", width=16, output_offset=1),
        Case("seventeen levels", sizes=(1, 3) * 8 + (5,), height=5, width=8),
        Case("no batch", batch=0),
    ]
    return cases
