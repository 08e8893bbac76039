"""Lets a network's own modules compute by the native operators for training."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from ffmef.models import FFMEF
from ffmef.ops.thin_convolution import SIZES, thin_convolution

MOST_CHANNELS = 64  # beyond, the library's blocked convolutions win


def use_native_operators(model: nn.Module) -> int:
    """Change how a model's layers are computed, not what they compute; return how many convolutions were changed.

    Changed are ``Conv2d`` and ``ConvTranspose2d`` of stride 1 and few channels that keep the size of the picture
    (:func:`ffmef.ops.thin_convolution`), and FFMEF, which fuses without filters. Weights, their names and copies of the
    model made before are untouched. On a GPU, or without the native library, torch's operators serve.
    """
    changed = 0
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and _is_thin(module):
            module.forward = partial(_convolution, module)
            changed += 1
        elif isinstance(module, FFMEF):
            module.without_filters = True
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


def _convolution(module: nn.Conv2d | nn.ConvTranspose2d, x: Tensor) -> Tensor:
    weight = module.weight
    if isinstance(module, nn.ConvTranspose2d):
        weight = weight.flip(2, 3).transpose(0, 1)
    return thin_convolution(x, weight, module.bias)
