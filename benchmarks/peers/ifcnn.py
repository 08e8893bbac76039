"""IFCNN (Zhang et al., Information Fusion 2020) with the mean rule, the one meant for exposures."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH = 64


def convolution(inputs: int, size: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, WIDTH, size, padding=size // 2, padding_mode="replicate", bias=False)


class IFCNN(nn.Module):
    channels = 3

    def __init__(self):
        super().__init__()
        self.extract = nn.Sequential(
            convolution(3, 7), convolution(WIDTH, 3), nn.BatchNorm2d(WIDTH), nn.ReLU(inplace=True)
        )
        self.reconstruct = nn.Sequential(
            convolution(WIDTH, 3), nn.BatchNorm2d(WIDTH), nn.ReLU(inplace=True), nn.Conv2d(WIDTH, 3, 1)
        )
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, *exposures: Tensor) -> Tensor:
        features = sum(self.extract((image - self.mean) / self.deviation) for image in exposures) / len(exposures)
        return (self.reconstruct(features) * self.deviation + self.mean).clamp_(0, 1)
