"""Lets a network's own modules compute by the native operators for training."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from ffmef.models import FFMEF
from ffmef.models.extractor import SLOPE, PointMix, Residual, Step
from ffmef.models.predictor import Attention, FilterHead
from ffmef.ops.norm_activation import norm_activation
from ffmef.ops.thin_convolution import SIZES, thin_convolution

MOST_CHANNELS = 64  # beyond, the library's blocked convolutions win


def use_native_operators(model: nn.Module) -> int:
    """Change how a model's layers are computed, not what they compute; return how many convolutions were changed.

    Changed are ``Conv2d`` and ``ConvTranspose2d`` of stride 1 and few channels that keep the size of the picture
    (:func:`ffmef.ops.thin_convolution`), FFMEF's blocks, which activate within their convolutions and norms
    (:func:`ffmef.ops.norm_activation`), and FFMEF, which fuses without filters. Weights, their names and copies of the
    model made before are untouched. On a GPU, or without the native library, torch's operators serve.
    """
    changed = 0
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and _is_thin(module):
            module.forward = partial(_convolution, module)
            changed += 1
        elif isinstance(module, FFMEF):
            module.without_filters = True
        for kind, method, function in _BLOCKS:
            if isinstance(module, kind) and all(
                _is_thin(m) for m in module.children() if not isinstance(m, nn.InstanceNorm2d)
            ):
                setattr(module, method, partial(function, module))
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


def _convolution(module: nn.Conv2d | nn.ConvTranspose2d, x: Tensor, slope: float = 1.0) -> Tensor:
    weight = module.weight
    if isinstance(module, nn.ConvTranspose2d):
        weight = weight.flip(2, 3).transpose(0, 1)
    return thin_convolution(x, weight, module.bias, slope=slope)


def _normed(norm: nn.InstanceNorm2d, x: Tensor, slope: float) -> Tensor:
    return norm_activation(x, norm.weight, norm.bias, slope=slope, eps=norm.eps)


def _residual(block: Residual, x: Tensor) -> Tensor:
    y = _normed(block.norm, _convolution(block.conv_1, x), SLOPE)
    return _convolution(block.conv_2, y, SLOPE) + _convolution(block.identity, x)


def _step(block: Step | PointMix, x: Tensor) -> Tensor:
    return _normed(block.norm, _convolution(block.conv, x), 0.0)


def _attention(block: Attention, maps: Tensor) -> Tensor:
    weights = torch.sigmoid(_convolution(block.excite, _convolution(block.squeeze, maps.flatten(1, 2), 0.0)))
    return maps * weights.unsqueeze(2)


def _hidden(head: FilterHead, attended: Tensor) -> Tensor:
    return _convolution(head.expand, _convolution(head.conv, attended, 0.0), 0.0)


_BLOCKS = (
    (Residual, "forward", _residual),
    (Step, "forward", _step),
    (PointMix, "forward", _step),
    (Attention, "forward", _attention),
    (FilterHead, "hidden", _hidden),
)
