"""Convolution with few channels, forward and backward, for training on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ffmef.ops._backends import Kernels, declare, why_not
from ffmef.ops.library import flop_counters, operator

SIZES = (1, 3, 5, 7)


def _no_kernel(side: int) -> str | None:
    return None if side in SIZES else f"the kernel's side must be one of {SIZES}, got {side}"


declare(
    "thin_convolution",
    cpu=Kernels(
        "thin_convolution_backward",
        float32=True,
        autocast=False,
        transforms=False,
        sizes=_no_kernel,
        limits="k of 1, 3, 5 or 7",
    ),
)


def thin_convolution(input: Tensor, weight: Tensor, bias: Tensor | None = None, *, slope: float = 1.0) -> Tensor:
    r"""Convolve pictures of few channels with stride 1 and zero padding that keeps their size, then activate.

    .. math:: z[b,o,y,x] = bias[o] + \sum_{i,u,v} weight[o,i,u,v] \; input[b,i,y+u-r,x+v-r], \qquad r = (k-1)/2
    .. math:: out = z \text{ where } z > 0, \quad slope \cdot z \text{ elsewhere}

    Equal to ``leaky_relu(conv2d(input, weight, bias, padding=k // 2), slope)`` of ``torch.nn.functional``, to which it
    falls back where the native kernels cannot run. With 4 to 25 channels, as in FFMEF, a library's blocked convolutions
    mostly move data; here vector lanes hold neighbouring pixels, and nothing is rearranged.

    Args:
        input: (B, I, H, W).
        weight: (O, I, k, k), k odd.
        bias: (O,) or None.
        slope: 1 leaves the sums as they are, 0 is ReLU, and numbers between give a leaky ReLU.

    Returns:
        (B, O, H, W), differentiable in all three tensors, to higher orders by torch's operators. Neither the result
        nor its gradients depend on the number of threads.

    Raises:
        ValueError: the shapes do not fit, or ``slope`` is not in [0, 1].

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
    if not 0 <= slope <= 1:
        raise ValueError(f"slope must be from 0 to 1, got {slope}")
    native = why_not("thin_convolution", "cpu", input=input, weight=weight, side=weight.shape[3]) is None
    if not native or flop_counters():  # which count torch's operators
        return _plain(input, weight, bias, slope)
    return _ThinConvolution.apply(input, weight, bias, slope)


def _plain(input: Tensor, weight: Tensor, bias: Tensor | None, slope: float) -> Tensor:
    return activated(F.conv2d(input, weight, bias, padding=weight.shape[2] // 2), slope)


def differentiates_gradients() -> bool:
    """Return, in a backward pass, whether it was asked for with ``create_graph=True``."""
    return not torch.compiler.is_compiling() and torch.is_grad_enabled()


def gradients_by_torch(
    plain: Callable, inputs: Sequence[Tensor | None], options: Sequence, grad: Tensor, needed: Sequence[bool]
) -> list[Tensor | None]:
    """Return the gradients of ``plain(*inputs, *options)``, which can be differentiated again.

    ``once_differentiable`` does not always refuse that: ``torch.autograd.grad`` would silently leave out how the
    gradients depend on the inputs.
    """
    # Views: one input may depend on another, and that is no part of the operator's gradient.
    inputs = [None if tensor is None else tensor.view_as(tensor) for tensor in inputs]
    wanted = [tensor for tensor, need in zip(inputs, needed) if need and tensor is not None]
    found = iter(torch.autograd.grad(plain(*inputs, *options), wanted, grad, create_graph=True))
    return [next(found) if need and tensor is not None else None for tensor, need in zip(inputs, needed)]


def activated(x: Tensor, slope: float) -> Tensor:
    """Apply torch's activation of this slope: none, ReLU or leaky ReLU."""
    if slope == 1:
        return x
    return F.relu(x) if slope == 0 else F.leaky_relu(x, slope)


if why_not("thin_convolution", "cpu") is None:

    @torch.library.register_fake("ffmef::thin_convolution")
    def _(input: Tensor, weight: Tensor, bias: Tensor | None, slope: float) -> Tensor:
        return input.new_empty(input.shape[0], weight.shape[0], *input.shape[2:])

    @torch.library.register_fake("ffmef::thin_convolution_backward")
    def _(
        grad: Tensor,
        input: Tensor,
        weight: Tensor,
        out: Tensor | None,
        slope: float,
        need_input: bool,
        need_weight: bool,
    ):
        none, batch = input.new_empty(0), input.shape[0]
        return (
            torch.empty_like(input) if need_input else none,
            input.new_empty(batch, *weight.shape) if need_weight else torch.empty_like(none),
            input.new_empty(batch, weight.shape[0]) if need_weight else torch.empty_like(none),
        )


class _ThinConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input: Tensor, weight: Tensor, bias: Tensor | None, slope: float) -> Tensor:
        arguments = input.contiguous(), weight.contiguous(), None if bias is None else bias.contiguous()
        out = operator("thin_convolution")(*arguments, slope)
        # The sign of an activated value tells the slope there.
        ctx.save_for_backward(input, weight, bias, None if slope == 1 else out)
        ctx.slope = slope
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):
        input, weight, bias, out = ctx.saved_tensors
        if differentiates_gradients():
            return *gradients_by_torch(_plain, (input, weight, bias), (ctx.slope,), grad, ctx.needs_input_grad), None
        need_input, need_weight, need_bias, _ = ctx.needs_input_grad
        input_grad, weight_shares, bias_shares = operator("thin_convolution_backward")(
            grad.contiguous(),
            input.contiguous(),
            weight.contiguous(),
            out,
            ctx.slope,
            need_input,
            need_weight or need_bias,
        )
        return (
            input_grad if need_input else None,
            weight_shares.sum(0) if need_weight else None,
            bias_shares.sum(0) if need_bias else None,
            None,
        )
