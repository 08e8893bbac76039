"""Checks of PyramidFFMEF's kernels from pictures to a picture, with the bundled weights, against float64."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ffmef.adjust import NEUTRAL, Adjustments

if TYPE_CHECKING:
    import torch

    from ffmef.models.pyramid import PyramidFFMEF

TOP = {"uint8": 255, "uint16": 65535, "float32": 1, "luminance": 1}
# The largest difference from float64: levels of integers, absolute for floating point.
ALLOWED = {"uint8": 1, "uint16": 12, "float32": 2e-4, "luminance": 2e-5}
CHANGED = Adjustments(brightness=0.5, contrast=0.3, saturation=-0.4, prefer=1.5)


@dataclass(frozen=True)
class PictureProblem:
    """Exposures of one kind and size; ``masked``: only parts of them may be used."""

    kind: str
    count: int
    height: int
    width: int
    brackets: int = 1
    masked: bool = False
    adjust: Adjustments = NEUTRAL

    def __str__(self) -> str:
        parts = [f"{self.brackets} x " if self.brackets > 1 else "", f"{self.count} x {self.height} x {self.width}"]
        parts += [" partly usable" if self.masked else "", "" if self.adjust == NEUTRAL else " adjusted"]
        return f"pictures {self.kind} {''.join(parts)}"


def problems(device: str) -> list[PictureProblem]:
    """Return the problems: kinds of samples, vectors or not, octaves large and small, several brackets."""
    small = [
        PictureProblem("uint8", 2, 67, 150),
        PictureProblem("uint8", 2, 40, 136),
        PictureProblem("uint8", 2, 1, 1),
        PictureProblem("uint8", 3, 69, 75, masked=True, adjust=CHANGED),
        PictureProblem("uint8", 9, 35, 46),
        PictureProblem("uint16", 3, 37, 36),
        PictureProblem("float32", 2, 40, 11, masked=True),
        PictureProblem("luminance", 3, 45, 67),
        PictureProblem("uint8", 2, 17, 24, brackets=5),
        PictureProblem("uint8", 3, 12, 20, brackets=2, masked=True, adjust=CHANGED),
        PictureProblem("luminance", 2, 16, 9, brackets=3),
    ]
    # Octaves too large for one block have launches of their own.
    return [*small, PictureProblem("uint8", 9, 640, 992)] if device == "cuda" else small


def exposures_of(problem: PictureProblem) -> tuple[list[torch.Tensor], list[torch.Tensor] | None]:
    """Return the exposures, (brackets, height, width[, 3]) each, and how far each may be used in steps of 1/255."""
    import torch

    random = torch.Generator().manual_seed(problem.height)
    shape = (problem.brackets, problem.height, problem.width)
    planes, top = () if problem.kind == "luminance" else (3,), TOP[problem.kind]
    given, masks = [], []
    for n in range(problem.count):
        samples = torch.rand((*shape, *planes), generator=random) * (n + 1) / problem.count
        given.append(samples if top == 1 else (samples * top).round().to(getattr(torch, problem.kind)))
        masks.append(torch.randint(0, 256, shape, generator=random).to(torch.uint8))
    return given, masks if problem.masked else None


def definition(model: PyramidFFMEF, problem: PictureProblem) -> torch.Tensor:
    """Return the result in float64, not rounded, from plain torch on the CPU."""
    import torch

    from ffmef.imaging.colour import rgb_to_ycbcr
    from ffmef.models.pyramid import to_rgb

    wide, (given, masks) = copy.deepcopy(model).cpu().double(), exposures_of(problem)
    exposures = torch.stack([picture.double() for picture in given], 1)
    usable = None if masks is None else torch.stack(masks, 1).double() / 255
    if problem.kind == "luminance":
        return wide.fuse(exposures, usable, problem.adjust)[0][:, 0]
    rgb = exposures.movedim(-1, 2) * (255 / TOP[problem.kind])
    ycbcr = rgb_to_ycbcr(rgb)
    fused, shares = wide.fuse(ycbcr[:, :, 0] / 255, usable, problem.adjust)
    colour = to_rgb(fused, shares, rgb, usable, problem.adjust, ycbcr=ycbcr)
    return colour.movedim(1, -1) * (TOP[problem.kind] / 255)


def picture_error(model: PyramidFFMEF, problem: PictureProblem) -> float:
    """Return the largest error in units of what is allowed; infinity if their order or a repetition matters."""
    import torch

    place = next(model.parameters()).device
    given, masks = exposures_of(problem)

    def run(order: range) -> torch.Tensor:
        there = [given[n].to(place) for n in order]
        if problem.kind == "luminance":
            return model(torch.stack(there, 1)).cpu()[:, 0]
        usable = None if masks is None else [masks[n].to(place) for n in order]
        return model.fuse_rgb(there, usable, problem.adjust).cpu()

    with torch.inference_mode():
        found = run(range(problem.count))
        if not all(torch.equal(found, run(order)) for order in (range(problem.count), range(problem.count)[::-1])):
            return float("inf")
        wanted = definition(model, problem)
        if TOP[problem.kind] != 1:
            wanted = (wanted + 0.5).floor()
        return float((found.double() - wanted).abs().max()) / ALLOWED[problem.kind]


def stream_error(device: str) -> float:
    """Return 0 if :func:`ffmef.fuse_many` gives what single calls give, and infinity otherwise."""
    import numpy as np

    import ffmef

    random = np.random.default_rng(3)
    brackets = [list(random.integers(0, 256, (2, rows, 50, 3), dtype=np.uint8)) for rows in (30, 41, 30, 52, 30)]
    together = ffmef.fuse_many(iter(brackets), model="pyramid", device=device)
    alone = [ffmef.fuse(bracket, model="pyramid", device=device) for bracket in brackets]
    return 0.0 if all(map(np.array_equal, together, alone)) else float("inf")
