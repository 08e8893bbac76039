"""Lets a network's own modules compute their convolutions by :func:`ffmef.ops.thin_convolution`."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from ffmef.ops.thin_convolution import SIZES, thin_convolution

MOST_CHANNELS = 64  # beyond, the library's blocked convolutions win


def use_thin_convolutions(model: nn.Module) -> int:
    """Change how a model's thin convolutions are computed, not what they compute; return how many were changed.

    Changed are ``Conv2d`` and ``ConvTranspose2d`` of stride 1 that keep the size of the picture. Weights, their names and
    copies of the model made before are untouched. On a GPU, or without the native library, torch's convolution serves.
    """
    changed = 0
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and _is_thin(module):
            module.forward = partial(_forward, module)
            changed += 1
    return changed


def _is_thin(module: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    size = module.kernel_size[0]
    return (
        module.kernel_size == (size, size)
        and size in SIZES
        and module.padding == (size // 2, size // 2)
        and module.stride == module.dilation == (1, 1)
        and module.groups == 1
        and module.padding_mode == "zeros"
        and max(module.in_channels, module.out_channels) <= MOST_CHANNELS
    )


def _forward(module: nn.Conv2d | nn.ConvTranspose2d, x: Tensor) -> Tensor:
    weight = module.weight
    if isinstance(module, nn.ConvTranspose2d):
        weight = weight.flip(2, 3).transpose(0, 1)
    return thin_convolution(x, weight, module.bias)
