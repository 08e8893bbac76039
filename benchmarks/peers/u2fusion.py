"""U2Fusion (Xu et al., TPAMI 2020): densely connected convolutions on the stacked luminance pair."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GROWTH = 44


def convolution(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, padding_mode="reflect")


class U2Fusion(nn.Module):
    channels = 1

    def __init__(self):
        super().__init__()
        self.first = convolution(2, GROWTH)
        self.dense = nn.ModuleList(convolution(GROWTH * count, GROWTH) for count in range(1, 6))
        widths = (6 * GROWTH, 128, 64, 32)
        self.decoder = nn.ModuleList(convolution(*pair) for pair in zip(widths, widths[1:]))
        self.last = convolution(32, 1)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        x = F.leaky_relu_(self.first(torch.cat([first, second], dim=1)), 0.2)
        for layer in self.dense:
            x = torch.cat([F.leaky_relu_(layer(x), 0.2), x], dim=1)
        for layer in self.decoder:
            x = F.leaky_relu_(layer(x), 0.2)
        return torch.tanh(self.last(x)) / 2 + 0.5
