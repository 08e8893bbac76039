"""SFP: attention between the images and prediction of their filters, one level at a time (equations 2 and 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ffmef.models.layers import Block


class Attention(Block):
    """One weight in (0, 1) per image and pixel, from the maps of both images."""

    def __init__(self, channels: int, images: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(images * channels, channels, 1)
        self.excite = nn.Conv2d(channels, images, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """(B, N, c, H, W) -> the same maps, each times its image's weight."""
        weights = torch.sigmoid(self.convolve(self.excite, self.convolve(self.squeeze, maps.flatten(1, 2), 0.0)))
        return maps * weights.unsqueeze(2)


class FilterHead(Block):
    """From one attended map (B, c, H, W) to its k*k filter taps (B, k*k, H, W)."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        taps = kernel_size * kernel_size
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.expand = nn.Conv2d(channels, taps, kernel_size, padding=kernel_size // 2)
        self.project = nn.Conv2d(taps, taps, 1)

    def hidden(self, attended: Tensor) -> Tensor:
        """Return the maps before the last 1x1 convolution, which is linear: fused kernels merge it with filtering."""
        return self.convolve(self.expand, self.convolve(self.conv, attended, 0.0), 0.0)

    def forward(self, attended: Tensor) -> Tensor:
        return self.project(self.hidden(attended))


class SpatialAdaptiveFilterPredictor(nn.Module):
    """Predict the filters of all images from their maps, one level at a time.

    Args:
        channels: c of the maps.
        kernel_sizes: the filters' side per level.
        images: N.
    """

    def __init__(self, channels: int = 4, kernel_sizes: Sequence[int] = (1, 3, 5), images: int = 2) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(Attention(channels, images) for _ in kernel_sizes)
        self.heads = nn.ModuleList(FilterHead(channels, size) for size in kernel_sizes)

    def each_head(self) -> list[FilterHead]:
        return cast("list[FilterHead]", list(self.heads))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """L maps (B, N, c, H, W) -> L filters (B, N, k*k, H, W)."""
        return self._by_heads(maps, self.heads)

    def hidden(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The same without the heads' last convolution."""
        return self._by_heads(maps, [head.hidden for head in self.each_head()])

    def _by_heads(self, maps: Sequence[Tensor], heads: Iterable[Callable[[Tensor], Tensor]]) -> list[Tensor]:
        results = []
        for attention, head, level in zip(self.attentions, heads, maps, strict=True):
            attended = attention(level)
            results.append(head(attended.flatten(0, 1)).unflatten(0, attended.shape[:2]))
        return results
