"""HRE: the extractor of hierarchical representations, all at full resolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ffmef.models.layers import Block, InstanceNorm

SLOPE = 0.2


class Residual(Block):
    """Two 3x3 convolutions, half the channels instance-normalised between them, plus a 1x1 convolution of the input."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.identity = nn.Conv2d(in_channels, channels, 1)
        self.conv_1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.norm = InstanceNorm(channels // 2)
        self.conv_2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.normalise(self.norm, self.convolve(self.conv_1, x), SLOPE, partly=True)
        return self.convolve(self.conv_2, y, SLOPE) + self.convolve(self.identity, x)


class Step(Block):
    """A convolution (or a transposed one on the way up), instance norm, ReLU; no step changes the resolution."""

    def __init__(self, channels: int, transposed: bool) -> None:
        super().__init__()
        conv = nn.ConvTranspose2d if transposed else nn.Conv2d
        self.conv = conv(channels, channels, 3, padding=1)
        self.norm = InstanceNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.normalise(self.norm, self.convolve(self.conv, x), 0.0)


class PointMix(Block):
    """1x1 convolution of two maps, instance norm, ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2 * channels, channels, 1)
        self.norm = InstanceNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.normalise(self.norm, self.convolve(self.conv, x), 0.0)


class Mix(nn.Module):
    """``gain_body * body([skip, y]) + gain_skip * y`` with learnable gains, 1.0 and 0.5 at the start."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.gain_body = nn.Parameter(torch.tensor([1.0]))
        self.gain_skip = nn.Parameter(torch.tensor([0.5]))

    def forward(self, skip: Tensor, y: Tensor) -> Tensor:
        return self.gain_body * self.body(torch.cat([skip, y], dim=1)) + self.gain_skip * y


def can_recompute() -> bool:
    """Return whether gradients are enabled and torch can recompute for them: under ``torch.func.grad`` it cannot."""
    if not torch.is_grad_enabled():
        return False
    hooks: Any = torch._C._autograd  # whose type hints lack the question
    return torch.compiler.is_compiling() or hooks._saved_tensors_hooks_is_enabled()


class HierarchicalRepresentationExtractor(Block):
    """From one luminance image (B, 1, H, W) to three maps (B, c, H, W): bottom, up2 and up1, deep to shallow.

    Instance norms use the statistics of the whole image, in evaluation mode too.

    Args:
        channels: c, even.

    Attributes:
        recompute: keep only the blocks' inputs for the backward pass, which recomputes the rest.

    Raises:
        ValueError: ``channels`` is odd or below 2.
    """

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.recompute = False
        if channels < 2 or channels % 2:
            raise ValueError(f"channels must be even and at least 2, got {channels}")
        c = channels
        self.stem = nn.Conv2d(1, c, 1)
        self.encode_1 = Residual(c, c)
        self.down_1 = Step(c, transposed=False)
        self.skip_1 = Mix(PointMix(c))
        self.encode_2 = Residual(c, c)
        self.down_2 = Step(c, transposed=False)
        self.skip_2 = Mix(PointMix(c))
        self.skip_3 = Mix(PointMix(c))
        self.bottom = Residual(c, c)
        self.up_2 = Step(c, transposed=True)
        self.skip_4 = Mix(PointMix(c))
        self.decode_2 = Residual(c, c)
        self.merge_2 = Mix(Residual(2 * c, c))
        self.up_1 = Step(c, transposed=True)
        self.skip_5 = Mix(PointMix(c))
        self.decode_1 = Residual(c, c)
        self.skip_6 = Mix(PointMix(c))
        self.merge_1 = Mix(Residual(2 * c, c))

    def forward(self, luminance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        run = self._run
        x = self.convolve(self.stem, luminance)
        e1 = run(self.encode_1, x)
        d1 = run(self.skip_1, x, run(self.down_1, e1))
        e2 = run(self.encode_2, d1)
        d2 = run(self.skip_2, d1, run(self.down_2, e2))
        d2 = run(self.skip_3, x, d2)
        bottom = run(self.bottom, d2)
        u2 = run(self.skip_4, bottom, run(self.up_2, bottom))
        u2 = run(self.merge_2, e2, run(self.decode_2, u2))
        u1 = run(self.skip_5, u2, run(self.up_1, u2))
        u1 = run(self.skip_6, bottom, run(self.decode_1, u1))
        u1 = run(self.merge_1, e1, u1)
        return bottom, u2, u1

    def _run(self, block: nn.Module, *inputs: Tensor) -> Tensor:
        if self.recompute and can_recompute():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)
