"""What the problems of all operators have in common: sizes, dtype, memory layout, and how far from float64 they may be.

Each operator's cases add what only that operator has, such as filter sizes or bands.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch

from ffmef.checks import tolerances
from ffmef.checks.problems import lay_out
from ffmef.ops.adaptive_fuse import PADDING_MODES

PADDINGS = PADDING_MODES
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
TOLERANCE = {getattr(torch, name): share for name, share in tolerances.TOLERANCE.items()}
SMALLEST = {getattr(torch, name): step for name, step in tolerances.SMALLEST.items()}


@dataclass(frozen=True)
class Problem:
    """One problem; its name is the seed of its values."""

    name: str
    batch: int = 1
    images: int = 2
    channels: int = 1
    height: int = 9
    width: int = 20
    dtype: torch.dtype = torch.float32
    layout: str = "contiguous"
    output_offset: int = 0

    def random(self) -> Random:
        return Random(torch.Generator().manual_seed(zlib.crc32(self.name.encode())), self.dtype)

    def laid_out_beside(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return what is not a picture, such as a gradient or alphas, in the layout that goes with the pictures'."""
        if self.layout == "expanded":  # as the gradient of a sum arrives
            return tensor[(slice(1),) * tensor.dim()].expand_as(tensor)
        return tensor if self.layout == "contiguous" else lay_out(tensor, "every second")


@dataclass
class Random:
    generator: torch.Generator
    dtype: torch.dtype

    def __call__(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(self.dtype)


@dataclass
class Expected:
    """A float64 result, and the sum of the magnitudes of its terms, against which rounding errors are measured."""

    value: torch.Tensor
    magnitude: torch.Tensor


def relative_error(result: torch.Tensor, expected: Expected) -> float:
    """Return the largest error of an element in units of its terms' magnitudes; infinity where not finite."""
    assert result.shape == expected.value.shape
    if result.numel() == 0:
        return 0.0
    if not bool(result.isfinite().all()):
        return float("inf")
    error = ((result.double() - expected.value).abs() - SMALLEST.get(result.dtype, 0.0)).clamp_min(0)
    return float((error / expected.magnitude).nan_to_num(nan=0.0, posinf=float("inf")).max())
