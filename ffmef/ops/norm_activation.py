"""Instance norm and activation in one operator, forward and backward, for training on the CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from ffmef.ops._backends import Kernels, declare, why_not
from ffmef.ops.library import operator
from ffmef.ops.thin_convolution import activated, differentiates_gradients, gradients_by_torch

declare("norm_activation", cpu=Kernels("norm_activation", float32=True, autocast=False, transforms=False))


def norm_activation(input: Tensor, weight: Tensor, bias: Tensor, *, slope: float, eps: float = 1e-5) -> Tensor:
    r"""Normalise the first channels of every picture by their mean and variance, then activate all channels.

    .. math:: z_c = weight_c \frac{x_c - \mu_c}{\sqrt{\sigma_c^2 + eps}} + bias_c \;\text{ for } c < M,
    .. math:: z_c = x_c \;\text{ beyond}
    .. math:: out = z \text{ where } z > 0, \quad slope \cdot z \text{ elsewhere}

    ``torch.nn.functional.instance_norm`` and ``leaky_relu`` in one operator, which keeps only its input for the
    backward pass. It falls back to torch's operators where the native kernels cannot run.

    Args:
        input: (B, C, H, W).
        weight, bias: (M,), M at most C.
        slope: 1 leaves the values as they are, 0 is ReLU, and numbers between give a leaky ReLU.
        eps: added to the variance.

    Returns:
        (B, C, H, W), differentiable in all three tensors, to higher orders by torch's operators. Neither the result
        nor its gradients depend on the number of threads.

    Raises:
        ValueError: the shapes do not fit, ``slope`` is not in [0, 1], or there is only one pixel.

    Example:
        >>> import torch
        >>> x = torch.tensor([[[[1.0, 3.0]], [[-5.0, 5.0]]]])
        >>> norm_activation(x, torch.ones(1), torch.zeros(1), slope=0.5, eps=0.0).tolist()
        [[[[-0.5, 1.0]], [[-2.5, 5.0]]]]
    """
    if input.dim() != 4:
        raise ValueError(f"input must be (B, C, H, W), got shape {tuple(input.shape)}")
    if weight.dim() != 1 or weight.shape[0] > input.shape[1]:
        raise ValueError(
            f"weight must have one value for each of at most {input.shape[1]} channels, got shape {tuple(weight.shape)}"
        )
    if bias.shape != weight.shape:
        raise ValueError(f"bias must be ({weight.shape[0]},) like weight, got shape {tuple(bias.shape)}")
    if not 0 <= slope <= 1:
        raise ValueError(f"slope must be from 0 to 1, got {slope}")
    if input.shape[2] * input.shape[3] == 1:
        raise ValueError("input must have more than one pixel to be normalised, got 1")
    if why_not("norm_activation", "cpu", input=input, weight=weight) is None:
        return _NormActivation.apply(input, weight, bias, slope, eps)
    return _plain(input, weight, bias, slope, eps)


def _plain(input: Tensor, weight: Tensor, bias: Tensor, slope: float, eps: float) -> Tensor:
    normed = instance_norm(input[:, : weight.shape[0]], weight, bias, eps)
    return activated(torch.cat([normed, input[:, weight.shape[0] :]], 1), slope)


def instance_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return ``F.instance_norm``, in forward mode by plain arithmetic.

    Derivatives of torch's forward-mode derivatives of norms are wrong (pytorch/pytorch#196699), and its compiler
    cannot trace these (#139756).
    """
    if forward_ad._current_level < 0 or x.shape[2] * x.shape[3] == 1:  # which torch refuses
        return F.instance_norm(x, weight=weight, bias=bias, eps=eps)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    variance, mean = torch.var_mean(wide, (2, 3), correction=0, keepdim=True)
    scale = (variance + eps).rsqrt() * weight.view(-1, 1, 1)
    return ((wide - mean) * scale + bias.view(-1, 1, 1)).to(x.dtype)


if why_not("norm_activation", "cpu") is None:

    @torch.library.register_fake("ffmef::norm_activation")
    def _(input: Tensor, weight: Tensor, bias: Tensor, slope: float, eps: float) -> tuple[Tensor, Tensor]:
        return torch.empty_like(input), input.new_empty(input.shape[0], weight.shape[0], 2)

    @torch.library.register_fake("ffmef::norm_activation_backward")
    def _(
        grad: Tensor, input: Tensor, weight: Tensor, bias: Tensor, statistics: Tensor, slope: float
    ) -> tuple[Tensor, Tensor]:
        return torch.empty_like(input), torch.empty_like(statistics)


class _NormActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input: Tensor, weight: Tensor, bias: Tensor, slope: float, eps: float) -> Tensor:
        arguments = input.contiguous(), weight.contiguous(), bias.contiguous()
        out, statistics = operator("norm_activation")(*arguments, slope, eps)
        ctx.save_for_backward(input, weight, bias, statistics)
        ctx.options = slope, eps
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        *inputs, statistics = ctx.saved_tensors
        if differentiates_gradients():
            return *gradients_by_torch(_plain, inputs, ctx.options, grad, ctx.needs_input_grad), None, None
        arguments = [tensor.contiguous() for tensor in (grad, *inputs, statistics)]
        input_grad, shares = operator("norm_activation_backward")(*arguments, ctx.options[0])
        weight_grad, bias_grad = shares.sum(0).unbind(1)
        return input_grad, weight_grad, bias_grad, None, None
