"""PyramidFFMEF in one CPU operator, from pictures to a picture or from luminance to luminance, without derivatives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ffmef import _loader
from ffmef.adjust import NEUTRAL, Adjustments
from ffmef.ops.library import carries_tangent, define, library, native_missing, operator

CHANNEL_BLOCK = 16


def available(channels: Sequence[int], stem: int, bands: int, octaves: int) -> bool:
    """Return whether the native operators can run a model of these sizes."""
    return (
        _loader.cpu_missing is None
        and bands == 3
        and all(c % CHANNEL_BLOCK == 0 for c in channels)
        and len(channels) <= 8
        and stem <= CHANNEL_BLOCK
        and octaves <= 16
    )


def unsupported_tensors(*tensors: Tensor, parameters: Sequence[Tensor]) -> str | None:
    """Return why the native operators cannot run a model with these parameters on these tensors now, or None.

    Example:
        >>> unsupported_tensors(torch.zeros(1, dtype=torch.float64), parameters=[])
        'tensors must be float32 on the CPU, got float64 on cpu'
    """
    every = [*tensors, *parameters]
    for tensor in every:
        if tensor.device.type != "cpu" or tensor.dtype != torch.float32:
            return f"tensors must be float32 on the CPU, got {str(tensor.dtype)[6:]} on {tensor.device}"
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in every):
        return "gradients are enabled (torch.inference_mode() or torch.no_grad() switches them off)"
    if carries_tangent(*every):
        return "forward-mode derivatives are enabled"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is enabled, and the kernels compute in float32"
    return native_missing("pyramid_exposures")


def pyramid_exposures(
    pictures: Sequence[Tensor],
    validity: Sequence[Tensor],
    parameters: Sequence[Tensor],
    channels: Sequence[int],
    stem: int,
    octaves: int,
    adjust: Adjustments = NEUTRAL,
) -> Tensor:
    """Fuse 8-bit RGB pictures as ``PyramidFFMEF.fuse_rgb`` does; the same bits for any order of the pictures.

    Args:
        pictures: N tensors (H, W, 3), uint8, of one size, on the CPU.
        validity: N tensors (H, W), uint8, 255 for what may be used; or none.
        parameters: of the model, in the order of its own ``parameters()``, float32.
        channels: of the predictor, multiples of 16.
        stem: of the predictor, at most 16.
        octaves: of the model.
        adjust: what is to be different.

    Returns:
        (H, W, 3), uint8.

    Raises:
        RuntimeError: the sizes do not fit, or there is no native library.

    Example:
        >>> import torch
        >>> from ffmef.models import PyramidFFMEF
        >>> model = PyramidFFMEF()
        >>> grey = torch.full((20, 30, 3), 90, dtype=torch.uint8)
        >>> pyramid_exposures([grey, grey], [], list(model.parameters()), (16, 16, 32, 32), 8, 5)[0, 0]
        tensor([90, 90, 90], dtype=torch.uint8)
    """
    changes = [adjust.brightness, adjust.contrast, adjust.saturation, adjust.prefer]
    return operator("pyramid_exposures")(
        list(pictures), list(validity), list(parameters), list(channels), stem, octaves, changes
    )


def pyramid_luminance(
    luminance: Tensor, parameters: Sequence[Tensor], channels: Sequence[int], stem: int, octaves: int
) -> Tensor:
    """Fuse luminance as ``PyramidFFMEF.forward`` does.

    Args:
        luminance: (B, N, H, W), float32, on the CPU.
        parameters: as for :func:`pyramid_exposures`, like what follows.
        channels: of the predictor.
        stem: of the predictor.
        octaves: of the model.

    Returns:
        (B, 1, H, W), float32, unclamped.

    Raises:
        RuntimeError: the sizes do not fit, or there is no native library.

    Example:
        >>> import torch
        >>> from ffmef.models import PyramidFFMEF
        >>> model = PyramidFFMEF()
        >>> grey = torch.full((1, 2, 20, 30), 0.25)
        >>> pyramid_luminance(grey, list(model.parameters()), (16, 16, 32, 32), 8, 5)[0, 0, 0, 0].item()
        0.25
    """
    return operator("pyramid_luminance")(luminance, list(parameters), list(channels), stem, octaves)


define(
    "pyramid_exposures(Tensor[] pictures, Tensor[] validity, Tensor[] parameters, int[] channels, int stem, "
    "int octaves, float[] adjust) -> Tensor"
)
define("pyramid_luminance(Tensor luminance, Tensor[] parameters, int[] channels, int stem, int octaves) -> Tensor")


def _no_gradient(ctx, grad):
    raise RuntimeError("the native pyramid has no gradient; call the model where gradients are enabled")


for _name in ("pyramid_exposures", "pyramid_luminance"):
    torch.library.register_autograd(f"ffmef::{_name}", _no_gradient, lib=library)


@torch.library.register_fake("ffmef::pyramid_exposures", lib=library)
def _(pictures, validity, parameters, channels, stem, octaves, adjust):
    return pictures[0].new_empty(pictures[0].shape)


@torch.library.register_fake("ffmef::pyramid_luminance", lib=library)
def _(luminance, parameters, channels, stem, octaves):
    batch, _, height, width = luminance.shape
    return luminance.new_empty((batch, 1, height, width))
