"""The matrix of pyramid_fuse that every GPU kernel has to pass, and how far from float64 it may be."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch

from ffmef.checks.problems import lay_out, pyramid_terms
from problems import DTYPES, Expected, Problem


@dataclass(frozen=True)
class Case(Problem):
    """One problem and the gradients asked for."""

    height: int = 33
    width: int = 44
    bands: int = 3
    scale: int = 8
    needed: tuple[bool, bool, bool] = (True, True, True)  # images, weights, base


@dataclass
class Tensors:
    images: torch.Tensor
    weights: torch.Tensor
    base: torch.Tensor
    gradient: torch.Tensor


def shapes(case: Case) -> list[tuple[int, ...]]:
    """Return the shapes of images, weights, base and output."""
    cells = (-(-case.height // case.scale), -(-case.width // case.scale))
    pixels = (case.channels, case.height, case.width)
    images, batch = case.images, case.batch
    return [(batch, images, *pixels), (batch, case.bands, images, *cells), (batch, images, *cells), (batch, *pixels)]


def make_tensors(case: Case) -> Tensors:
    """Return random inputs of a case; the same on every call."""
    normal = case.random()
    images, weights, base, gradient = (normal(*shape) for shape in shapes(case))
    grid_layout = "transposed" if case.layout == "channels last" else case.layout
    images = lay_out(images, case.layout)
    weights, base = lay_out(weights, grid_layout), lay_out(base, grid_layout)
    return Tensors(images, weights, base, case.laid_out_beside(gradient))


def _expected(case: Case, backward: bool) -> list[Expected]:
    if case.batch == 0:
        all_shapes = shapes(case)
        empty = [shape for shape, needed in zip(all_shapes, case.needed) if needed] if backward else all_shapes[3:]
        return [Expected(torch.empty(shape), torch.empty(shape)) for shape in empty]
    results = []
    for sign, change in ((-1, torch.clone), (1, torch.abs)):
        t = make_tensors(case)
        leaves = [change(x.double().contiguous()).requires_grad_() for x in (t.images, t.weights, t.base)]
        output = pyramid_terms(*leaves, case.scale, sign)
        if backward:
            # Without bands the weights are unused, and their gradient is empty.
            grads = torch.autograd.grad(output, leaves, change(t.gradient.double()), allow_unused=True)
            results.append(
                [
                    torch.zeros_like(leaf) if grad is None else grad
                    for leaf, grad, needed in zip(leaves, grads, case.needed, strict=True)
                    if needed
                ]
            )
        else:
            results.append([output.detach()])
    return list(map(Expected, *results))


def expected_forward(case: Case) -> Expected:
    """Return the float64 result for the values that the case's dtype holds."""
    return _expected(case, backward=False)[0]


def expected_backward(case: Case) -> list[Expected]:
    """Return the float64 gradients asked for: images, weights, base."""
    return _expected(case, backward=True)


PAIRS = [(0, 1), (0, 4), (1, 2), (1, 8), (2, 4), (2, 8), (3, 8), (3, 16), (3, 64), (4, 16), (5, 32), (6, 64)]


def matrix() -> list[Case]:
    """Return the cases: each axis alone, and the combinations that share a code path."""
    cases = []
    for dtype in DTYPES:
        short = str(dtype).removeprefix("torch.")
        cases += [
            Case(f"{short}, vectors", dtype=dtype, batch=2, height=40, width=72),
            Case(f"{short}, odd sizes", dtype=dtype, height=37, width=71),
            Case(f"{short}, three channels", dtype=dtype, channels=3, images=3, width=20),
            Case(f"{short}, slices", dtype=dtype, layout="slice", width=24),
            Case(f"{short}, off a 16-byte boundary", dtype=dtype, layout="offset", width=24),
            Case(f"{short}, aligned slices", dtype=dtype, layout="aligned slice", width=24),
            Case(f"{short}, five bands", dtype=dtype, bands=5, scale=32, height=70, width=36, channels=2),
        ]
    for bands, scale in PAIRS:
        cases += [
            Case(f"{bands} bands, scale {scale}, many tiles", bands=bands, scale=scale, height=77, width=140),
            Case(f"{bands} bands, scale {scale}, odd", bands=bands, scale=scale, height=35, width=67, batch=2),
        ]
    for height, width in (
        (1, 1),
        (1, 9),
        (9, 1),
        (2, 2),
        (3, 5),
        (7, 8),
        (8, 8),
        (9, 17),
        (32, 64),
        (33, 65),
        (64, 32),
    ):
        cases.append(Case(f"{height} x {width}", height=height, width=width))
        cases.append(Case(f"{height} x {width}, six bands", height=height, width=width, bands=6, scale=64, images=1))
    cases += [
        Case("one image", images=1),
        Case("five images", images=5, width=13, batch=2, channels=2),
        Case("channels last", layout="channels last", channels=3, batch=2),
        Case("transposed", layout="transposed", channels=2),
        Case("every second pixel", layout="every second", width=16),
        Case("expanded", layout="expanded", batch=3, width=16),
        Case("output off a 16-byte boundary", width=16, output_offset=1),
        Case("no batch", batch=0),
        Case("large tiles", batch=9, channels=15, height=65, width=66, images=1),
    ]
    return cases


def backward_matrix() -> list[Case]:
    """Return the cases of the gradients: the whole matrix, and every choice of what is asked for."""
    cases = matrix()
    for (bands, scale), needed in itertools.product(((3, 8), (5, 32)), itertools.product((False, True), repeat=3)):
        if any(needed) and not all(needed):
            name = (
                f"{bands} bands, only {', '.join(n for n, want in zip(('images', 'weights', 'base'), needed) if want)}"
            )
            cases.append(replace(Case(name), bands=bands, scale=scale, needed=needed, channels=2))
    return cases
