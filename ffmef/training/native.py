"""Replaces a network's modules with native operators during training."""

from __future__ import annotations

from torch import Tensor, nn

from ffmef.models import FFMEF
from ffmef.models.layers import is_thin, kernel_of
from ffmef.ops.thin_convolution import thin_convolution


class ThinConv2d(nn.Conv2d):
    """``Conv2d`` by :func:`ffmef.ops.thin_convolution`."""

    def forward(self, input: Tensor) -> Tensor:
        return thin_convolution(input, self.weight, self.bias)


class ThinConvTranspose2d(nn.ConvTranspose2d):
    """``ConvTranspose2d`` by :func:`ffmef.ops.thin_convolution`."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        return thin_convolution(input, kernel_of(self), self.bias)


_THIN = {nn.Conv2d: ThinConv2d, nn.ConvTranspose2d: ThinConvTranspose2d}


def use_native_operators(model: nn.Module) -> int:
    """Change how a model's layers compute, not what they compute; return how many convolutions changed.

    An FFMEF whose backend is None gets the backend "native". In other models,
    :func:`ffmef.ops.thin_convolution` computes layers that are exactly ``Conv2d`` or ``ConvTranspose2d``, have stride 1
    and few channels, and keep the size of the picture. Weights and their names stay. On a GPU, or without the native
    library, these fall back to torch's operators.
    """
    if isinstance(model, FFMEF):
        if model.backend is None:
            model.backend = "native"
        if model.backend not in ("native", "recompute"):
            return 0
        return sum(_replaced(module) for module in model.modules())
    changed = 0
    for module in model.modules():
        if _replaced(module):
            module.__class__ = _THIN[type(module)]
            changed += 1
    return changed


def _replaced(module: nn.Module) -> bool:
    return type(module) in _THIN and isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and is_thin(module)
