"""The whole FFMEF network in one operator, for inference on the CPU; docs/engine.md explains how it works."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ffmef import _loader
from ffmef.ops.library import carries_tangent, define, library, operator

CHANNELS = (4, 8, 16)
KERNEL_SIZES = ((1,), (1, 3), (3, 5), (1, 3, 5), (1, 3, 5, 7))


def unsupported(channels: int, kernel_sizes: Sequence[int]) -> str | None:
    """Return why the operator cannot run a network of this architecture here, or None.

    Example:
        >>> unsupported(6, (1, 3, 5))
        'channels must be 4, 8 or 16, got 6'
    """
    if channels not in CHANNELS:
        return f"channels must be 4, 8 or 16, got {channels}"
    if tuple(kernel_sizes) not in KERNEL_SIZES:
        return f"kernel_sizes must be one of {', '.join(map(str, KERNEL_SIZES))}, got {tuple(kernel_sizes)}"
    return _loader.cpu_missing


def unsupported_tensors(luminance: Tensor, parameters: Sequence[Tensor]) -> str | None:
    """Return why the operator cannot run these tensors, or None."""
    for name, tensor in (("luminance", luminance), *(("the parameters", p) for p in parameters)):
        if tensor.device.type != "cpu":
            return f"{name} must be on the CPU, got {tensor.device}"
        if tensor.dtype != torch.float32:
            return f"{name} must be float32, got {str(tensor.dtype)[6:]}"
    if torch.is_grad_enabled() and (luminance.requires_grad or any(p.requires_grad for p in parameters)):
        return "gradients are enabled (torch.inference_mode() or torch.no_grad() switches them off)"
    if carries_tangent(luminance, *parameters):
        return "forward-mode derivatives are enabled"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is enabled, and the engine computes in float32"
    return None


def ffmef_forward(
    luminance: Tensor, parameters: Sequence[Tensor], channels: int = 4, kernel_sizes: Sequence[int] = (1, 3, 5)
) -> Tensor:
    """Fuse two luminance images by the FFMEF network, without its filters or k*k maps ever reaching memory.

    The same as :class:`ffmef.models.FFMEF` in evaluation mode (CVPR workshops 2023, section 3), which calls this
    operator by itself where it can.

    Args:
        luminance: (B, 2, H, W) in [0, 1], float32, on the CPU, any strides; the darker exposure first.
        parameters: what ``model.parameters()`` yields, in that order; float32.
        channels: c of the network: 4, 8 or 16.
        kernel_sizes: one of the filter sets of the paper's table 2.

    Returns:
        (B, 1, H, W), unclamped. The bits do not depend on the number of threads; they do depend on the instruction set.

    Raises:
        ValueError: shapes or the architecture are not supported; the message names the argument, the rule and the value.
        RuntimeError: the tensors cannot be run here (device, dtype, gradients), or the parameters do not fit.

    Example:
        >>> import torch, ffmef
        >>> model = ffmef.models.FFMEF().eval()
        >>> with torch.inference_mode():
        ...     ffmef_forward(torch.rand(1, 2, 12, 16), list(model.parameters())).shape
        torch.Size([1, 1, 12, 16])
    """
    parameters = list(parameters)
    if luminance.dim() != 4 or luminance.shape[1] != 2:
        raise ValueError(f"luminance must be (B, 2, H, W), got shape {tuple(luminance.shape)}")
    if luminance.shape[2] * luminance.shape[3] == 1:
        raise ValueError("luminance must have more than one pixel for InstanceNorm, got 1 x 1")
    reason = unsupported(channels, kernel_sizes)
    if reason is not None:
        raise ValueError(reason)
    reason = unsupported_tensors(luminance, parameters)
    if reason is not None:
        raise RuntimeError(reason)
    return operator("ffmef_forward")(luminance, parameters, channels, list(kernel_sizes))


def _fake(luminance, parameters, channels, kernel_sizes):
    return luminance.new_empty((luminance.shape[0], 1, luminance.shape[2], luminance.shape[3]))


def _no_gradient(ctx, grad):
    raise RuntimeError("ffmef_forward has no gradient; set the model's engine to 'eager'")


define("ffmef_forward(Tensor luminance, Tensor[] parameters, int channels, int[] kernel_sizes) -> Tensor")
torch.library.register_fake("ffmef::ffmef_forward", _fake, lib=library)
torch.library.register_autograd("ffmef::ffmef_forward", _no_gradient, lib=library)
