"""Convolution of few channels, forward and backward, for training on the CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ffmef import _loader
from ffmef.ops.library import operator

SIZES = (1, 3, 5, 7)
_missing = _loader.cpu_missing
if _missing is None and not hasattr(torch.ops.ffmef, "thin_convolution"):
    _missing = "the native library is older than this package: build it again"


def unsupported(input: Tensor, weight: Tensor) -> str | None:
    """Return why the native kernels cannot run these tensors, or None."""
    if _missing is not None:
        return _missing
    for name, tensor in (("input", input), ("weight", weight)):
        if tensor.device.type != "cpu" or tensor.dtype != torch.float32:
            return f"{name} must be float32 on the CPU, got {str(tensor.dtype)[6:]} on {tensor.device}"
    if torch.is_autocast_enabled("cpu"):
        return "autocast is enabled, and the kernels compute in float32"
    if weight.shape[-1] not in SIZES:
        return f"the kernel's side must be one of {SIZES}, got {weight.shape[-1]}"
    return None


def thin_convolution(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    r"""Convolve pictures of few channels, stride 1, borders of zeros, sizes kept.

    .. math:: out[b,o,y,x] = bias[o] + \sum_{i,u,v} weight[o,i,u,v] \; input[b,i,y+u-r,x+v-r], \qquad r = (k-1)/2

    The same as ``torch.nn.functional.conv2d(input, weight, bias, padding=k // 2)``, which serves where the native kernels
    cannot. With 4 to 25 channels, as in FFMEF, a library's blocked convolutions mostly move data; here pixels lie in
    the vector's lanes and nothing is rearranged.

    Args:
        input: (B, I, H, W).
        weight: (O, I, k, k), k odd.
        bias: (O,) or None.

    Returns:
        (B, O, H, W), differentiable once in all three. Neither it nor its gradients depend on the number of threads.

    Raises:
        ValueError: the shapes do not fit.

    Example:
        >>> import torch
        >>> thin_convolution(torch.ones(1, 1, 2, 3), torch.ones(1, 1, 3, 3)).tolist()
        [[[[4.0, 6.0, 4.0], [4.0, 6.0, 4.0]]]]
    """
    if input.dim() != 4:
        raise ValueError(f"input must be (B, I, H, W), got shape {tuple(input.shape)}")
    if weight.dim() != 4 or weight.shape[1] != input.shape[1] or weight.shape[2] != weight.shape[3]:
        raise ValueError(f"weight must be (O, {input.shape[1]}, k, k), got shape {tuple(weight.shape)}")
    if weight.shape[2] % 2 == 0:
        raise ValueError(f"weight must have an odd side, got {weight.shape[2]}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be ({weight.shape[0]},), got shape {tuple(bias.shape)}")
    if unsupported(input, weight) is not None:
        return F.conv2d(input, weight, bias, padding=weight.shape[2] // 2)
    return _ThinConvolution.apply(input, weight, bias)


if _missing is None:

    @torch.library.register_fake("ffmef::thin_convolution")
    def _(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return input.new_empty(input.shape[0], weight.shape[0], *input.shape[2:])

    @torch.library.register_fake("ffmef::thin_convolution_weight_grad")
    def _(input: Tensor, grad: Tensor, size: int) -> Tensor:
        return input.new_empty(input.shape[0], grad.shape[1], input.shape[1], size, size)


class _ThinConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        input, weight = input.contiguous(), weight.contiguous()
        ctx.save_for_backward(input, weight)
        return operator("thin_convolution")(input, weight, None if bias is None else bias.contiguous())

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        input, weight = ctx.saved_tensors
        grad = grad.contiguous()
        need_input, need_weight, need_bias = ctx.needs_input_grad
        input_grad = weight_grad = bias_grad = None
        if need_input:
            # The adjoint of a convolution is one with the kernel turned round and its channels swapped.
            input_grad = operator("thin_convolution")(grad, weight.flip(2, 3).transpose(0, 1).contiguous(), None)
        if need_weight:
            weight_grad = operator("thin_convolution_weight_grad")(input, grad, weight.shape[2]).sum(0)
        if need_bias:
            bias_grad = grad.sum((0, 2, 3))
        return input_grad, weight_grad, bias_grad
