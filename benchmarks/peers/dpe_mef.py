"""DPE-MEF (Han et al., Information Fusion 2022): one U-Net enhances luminance, a second one predicts colour."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DoubleConv(nn.Sequential):
    """Two 3x3 convolutions, each with batch norm and ReLU."""

    def __init__(self, inputs: int, outputs: int, middle: int | None = None):
        middle = middle or outputs
        super().__init__(
            nn.Conv2d(inputs, middle, 3, padding=1),
            nn.BatchNorm2d(middle),
            nn.ReLU(inplace=True),
            nn.Conv2d(middle, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )


class Encoder(nn.ModuleList):
    """Five levels, halving the resolution before each but the first; returns every level's features."""

    def __init__(self, inputs: int, widths: tuple[int, ...]):
        super().__init__(DoubleConv(*pair) for pair in zip((inputs, *widths), widths))

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for level in self:
            features.append(level(F.max_pool2d(features[-1], 2) if features else x))
        return features


class Decoder(nn.Module):
    """Four upsampling levels with skips and a 1x1 head."""

    def __init__(self, inputs: tuple[int, ...], widths: tuple[int, ...], outputs: int):
        super().__init__()
        self.levels = nn.ModuleList(DoubleConv(i, o, i // 2) for i, o in zip(inputs, widths))
        self.head = nn.Conv2d(widths[-1], outputs, 1)

    def forward(self, features: list[Tensor]) -> Tensor:
        *skips, x = features
        for level, skip in zip(self.levels, reversed(skips)):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = F.pad(x, (0, skip.shape[-1] - x.shape[-1], 0, skip.shape[-2] - x.shape[-2]))
            x = level(torch.cat([skip, x], dim=1))
        return torch.tanh(self.head(x)) / 2 + 0.5


class DPEMEF(nn.Module):
    channels = 3

    def __init__(self):
        super().__init__()
        self.single = Encoder(3, (16, 32, 64, 128, 128))
        self.joint = Encoder(6, (32, 64, 128, 256, 256))
        self.luminance = Decoder((1024, 384, 192, 96), (128, 64, 32, 32), 1)
        self.colour_encoder = Encoder(7, (32, 64, 128, 256, 256))
        self.colour_decoder = Decoder((512, 256, 128, 64), (128, 64, 32, 32), 2)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        levels = zip(self.single(first), self.single(second), self.joint(torch.cat([first, second], dim=1)))
        fused_y = self.luminance([torch.cat(level, dim=1) for level in levels])
        low, high = fused_y.aminmax()
        fused_y = (fused_y - low) / (high - low)
        stack = torch.cat([rgb_to_ycbcr(first), rgb_to_ycbcr(second), fused_y], dim=1)
        return ycbcr_to_rgb(torch.cat([fused_y, self.colour_decoder(self.colour_encoder(stack))], dim=1))


def rgb_to_ycbcr(rgb: Tensor) -> Tensor:
    """Full-range BT.601 on [0, 1], chroma centred on 0.5."""
    r, g, b = rgb.unbind(1)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    return torch.stack([y, (b - y) / 1.772 + 0.5, (r - y) / 1.402 + 0.5], dim=1)


def ycbcr_to_rgb(ycbcr: Tensor) -> Tensor:
    """The inverse of :func:`rgb_to_ycbcr`, clipped to [0, 1]."""
    y, cb, cr = ycbcr.unbind(1)
    r = y + 1.402 * (cr - 0.5)
    b = y + 1.772 * (cb - 0.5)
    g = (y - 0.299 * r - 0.114 * b) / 0.587
    return torch.stack([r, g, b], dim=1).clamp_(0, 1)
