"""DeepFuse (Prabhakar et al., ICCV 2017), in the layout of the released weights and in the paper's layout."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


def convolution(inputs: int, outputs: int, size: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)


class DeepFuseReleased(nn.Module):
    """Six convolutions, leaky ReLU after every one, min-max stretch; 8-bit values go in unscaled."""

    channels = 1

    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleList([convolution(1, 32, 3), convolution(32, 64, 5)])
        self.decoder = nn.ModuleList(
            [convolution(64, 64, 7), convolution(64, 32, 5), convolution(32, 16, 5), convolution(16, 1, 7)]
        )

    def encode(self, x: Tensor) -> Tensor:
        for layer in self.encoder:
            x = F.leaky_relu_(layer(x), 0.01)
        return x

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        x = self.encode(first * 255) + self.encode(second * 255)
        for layer in self.decoder:
            x = F.leaky_relu_(layer(x), 0.01)
        low, high = x.aminmax()
        return (x - low) / (high - low)


class DeepFusePaper(nn.Module):
    """Five convolutions and tanh. A public port adds batch norms, which fold into the convolutions at inference."""

    channels = 1

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(convolution(1, 16, 5), nn.ReLU(True), convolution(16, 32, 7), nn.ReLU(True))
        self.decoder = nn.Sequential(
            convolution(32, 32, 7),
            nn.ReLU(True),
            convolution(32, 16, 5),
            nn.ReLU(True),
            convolution(16, 1, 5),
            nn.Tanh(),
        )

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.decoder(self.encoder(first) + self.encoder(second))
