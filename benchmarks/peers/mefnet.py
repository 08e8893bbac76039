"""MEFNet (Ma et al., TIP 2020): weight maps predicted at 128 pixels, carried up by a guided filter."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.peers.guided_filter import blend, fast_guided_filter, shrink

WIDTH = 24
SHORT_SIDE = 128


class AdaptiveNorm(nn.Module):
    """A learned mixture of the features and their instance norm."""

    def __init__(self):
        super().__init__()
        self.identity = nn.Parameter(torch.ones(1))
        self.normalised = nn.Parameter(torch.zeros(1))
        self.norm = nn.InstanceNorm2d(WIDTH, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.identity * x + self.normalised * self.norm(x)


class MEFNet(nn.Module):
    channels = 1

    def __init__(self):
        super().__init__()
        layers = []
        for inputs, dilation in ((1, 1), (WIDTH, 2), (WIDTH, 4), (WIDTH, 8), (WIDTH, 16), (WIDTH, 1)):
            convolution = nn.Conv2d(inputs, WIDTH, 3, padding=dilation, dilation=dilation, bias=False)
            layers += [convolution, AdaptiveNorm(), nn.LeakyReLU(0.2, inplace=True)]
        self.network = nn.Sequential(*layers, nn.Conv2d(WIDTH, 1, 1))

    def forward(self, *exposures: Tensor) -> Tensor:
        full = torch.cat(exposures)
        low = shrink(full, SHORT_SIDE)
        return blend(full, fast_guided_filter(low, self.network(low), full, radius=1, eps=1e-4))
