"""Convolutions and norms of FFMEF's blocks, by torch's operators or the native ones for training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ffmef.ops.norm_activation import instance_norm, norm_activation
from ffmef.ops.thin_convolution import SIZES, activated, thin_convolution

MOST_CHANNELS = 64  # beyond this, the library's blocked convolutions are faster


class Block(nn.Module):
    """A part of FFMEF: its layers hold the weights, its methods compute.

    Attributes:
        native: compute with :func:`ffmef.ops.thin_convolution` and :func:`ffmef.ops.norm_activation`, which
            run no hooks of the layers. The values are the same up to rounding.
    """

    native: bool = False

    def convolve(self, conv: nn.Conv2d | nn.ConvTranspose2d, x: Tensor, slope: float = 1.0) -> Tensor:
        """Convolve and activate: a slope of 1 leaves the sums as they are, 0 is ReLU."""
        if self.native and is_thin(conv):
            return thin_convolution(x, kernel_of(conv), conv.bias, slope=slope)
        return activated(conv(x), slope)

    def normalise(self, norm: InstanceNorm, x: Tensor, slope: float, *, partly: bool = False) -> Tensor:
        """Normalise all channels, or with ``partly`` only the first ones, as many as ``norm`` has, and activate all."""
        if self.native:
            return norm_activation(x, norm.weight, norm.bias, slope=slope, eps=norm.eps)
        count = norm.num_features
        normed = torch.cat([norm(x[:, :count]), x[:, count:]], dim=1) if partly else norm(x)
        return activated(normed, slope)


class InstanceNorm(nn.InstanceNorm2d):
    """``nn.InstanceNorm2d`` with weight and bias, whose forward-mode derivatives are right at every order."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=True)

    def forward(self, input: Tensor) -> Tensor:
        return instance_norm(input, self.weight, self.bias, self.eps)


def is_thin(conv: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    """Return whether a layer is a convolution with few channels, stride 1 and zero padding that keeps the size."""
    size = conv.kernel_size[0]
    return (
        conv.kernel_size == (size, size)
        and size in SIZES
        and conv.padding == (size // 2, size // 2)
        and conv.stride == conv.dilation == (1, 1)
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and max(conv.in_channels, conv.out_channels) <= MOST_CHANNELS
    )


def kernel_of(conv: nn.Conv2d | nn.ConvTranspose2d) -> Tensor:
    """Return the weight (O, I, k, k) of the plain convolution that equals this layer, transposed or not."""
    return conv.weight.flip(2, 3).transpose(0, 1) if isinstance(conv, nn.ConvTranspose2d) else conv.weight


def parameters_of(module: nn.Module) -> list[Tensor]:
    """Return ``list(module.parameters())``, with shared ones repeated, in a fifth of the time."""
    found: list[Tensor] = [one for one in module._parameters.values() if one is not None]
    for child in module._modules.values():
        if child is not None:
            found += parameters_of(child)
    return found
