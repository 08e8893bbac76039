"""PyramidFFMEF as one operator: pictures to a picture on the CPU or a GPU, luminance to luminance anywhere.

Graphs of torch.compile and torch.export hold ``pyramid_luminance`` instead of the network's own operators, because its
chain of halved sizes takes torch minutes to reason about when height and width are free. Native kernels compute it
where they can; derivatives and other devices run the model's definition in plain torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ffmef.adjust import NEUTRAL, Adjustments
from ffmef.ops._backends import Kernels, declare
from ffmef.ops.library import autograd_inside, define, flop_counters, implement, library, operator, refuse_derivatives

BANDS, CHANNEL_BLOCK, MOST_LEVELS, MOST_OCTAVES = 3, 16, 8, 16
MOST_ON_GPU = 64  # exposures, whose addresses are arguments of the kernels


def _no_kernel(channels: Sequence[int], stem: int, bands: int, octaves: int) -> str | None:
    """Return why the native operators cannot run a model of these sizes, or None."""
    if bands != BANDS:
        return f"bands must be {BANDS}, got {bands}"
    if len(channels) > MOST_LEVELS or any(c % CHANNEL_BLOCK for c in channels):
        return f"channels must be at most {MOST_LEVELS} multiples of {CHANNEL_BLOCK}, got {tuple(channels)}"
    if stem > CHANNEL_BLOCK:
        return f"stem must be at most {CHANNEL_BLOCK}, got {stem}"
    return f"octaves must be at most {MOST_OCTAVES}, got {octaves}" if octaves > MOST_OCTAVES else None


def _no_cuda_kernel(channels: Sequence[int], stem: int, bands: int, octaves: int, count: int = 2) -> str | None:
    """Return why the CUDA kernels cannot run a model of these sizes on so many exposures, or None."""
    if (reason := _no_kernel(channels, stem, bands, octaves)) is not None:
        return reason
    if len(channels) < 2 or channels[0] != CHANNEL_BLOCK or any(c > 2 * CHANNEL_BLOCK for c in channels):
        return f"channels must be {CHANNEL_BLOCK}, then {CHANNEL_BLOCK} or {2 * CHANNEL_BLOCK}, got {tuple(channels)}"
    return f"pictures must be at most {MOST_ON_GPU}, got {count}" if count > MOST_ON_GPU else None


_limits = f"PyramidFFMEF of {BANDS} bands, channels in multiples of {CHANNEL_BLOCK}, a stem of at most {CHANNEL_BLOCK}"
_cuda_limits = (
    f"the same with {CHANNEL_BLOCK}, then {CHANNEL_BLOCK} or {2 * CHANNEL_BLOCK} channels, {MOST_ON_GPU} exposures"
)
for _name, _derivatives in (("pyramid_exposures", False), ("pyramid_luminance", True)):
    _plain = Kernels(_name, float32=True, autocast=False, derivatives=_derivatives)
    declare(
        _name,
        cpu=replace(_plain, sizes=_no_kernel, limits=_limits),
        cuda=replace(_plain, sizes=_no_cuda_kernel, limits=_cuda_limits),
    )


def pyramid_exposures(
    pictures: Sequence[Tensor],
    validity: Sequence[Tensor],
    parameters: Sequence[Tensor],
    channels: Sequence[int],
    stem: int,
    octaves: int,
    adjust: Adjustments = NEUTRAL,
) -> Tensor:
    """Fuse RGB pictures as ``PyramidFFMEF.fuse_rgb`` does; the bits do not depend on the order of the pictures.

    Args:
        pictures: N tensors (H, W, 3), uint8, of one size, on the CPU; or on a GPU, where uint16 and float32 in [0, 1]
            work as well. N tensors (B, H, W, 3) are B brackets, which a GPU fuses beside each other if they are small.
        validity: N tensors (H, W) or (B, H, W), uint8, 255 where a pixel may be used; or an empty list.
        parameters: of the model, in the order of its ``parameters()``, float32.
        channels: of the predictor, multiples of 16.
        stem: of the predictor, at most 16.
        octaves: of the model.
        adjust: brightness, saturation, contrast and preference.

    Returns:
        (H, W, 3) or (B, H, W, 3), of the pictures' dtype.

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
    """Fuse luminance as ``PyramidFFMEF.forward`` does; differentiable once, in reverse and forward mode.

    Args:
        luminance: (B, N, H, W), float32, on the CPU or a GPU.
        parameters: as for :func:`pyramid_exposures`, like the arguments that follow.
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


_LUMINANCE = "Tensor luminance, Tensor[] parameters, int[] channels, int stem, int octaves"
define(
    "pyramid_exposures(Tensor[] pictures, Tensor[] validity, Tensor[] parameters, int[] channels, int stem, "
    "int octaves, float[] adjust) -> Tensor"
)
define(f"pyramid_luminance({_LUMINANCE}) -> Tensor")
library.define(
    f"pyramid_luminance_backward(Tensor grad, {_LUMINANCE}, bool need_luminance, bool need_parameters) -> Tensor[]",
    tags=torch.Tag.pt2_compliant_tag,
)


def _defined(luminance: Tensor, parameters: Sequence[Tensor], channels, stem: int, octaves: int) -> Tensor:
    """Run the model's definition with these parameters."""
    from ffmef.models import PyramidFFMEF
    from ffmef.models.shapes import shapes_only

    bands = parameters[0].shape[0] - 3
    with shapes_only(), torch._C._DisableFuncTorch():
        model = PyramidFFMEF(bands, tuple(channels), stem, octaves)
    names = [f"model.{name}" for name, _ in model.named_parameters()]
    if len(names) != len(parameters):
        raise RuntimeError(f"parameters must hold {len(names)} tensors, got {len(parameters)}")
    return torch.func.functional_call(_Definition(model), dict(zip(names, parameters, strict=True)), (luminance,))


class _Definition(torch.nn.Module):
    def __init__(self, model) -> None:
        super().__init__()
        self.model = model

    def forward(self, luminance: Tensor) -> Tensor:
        return self.model.fuse(luminance)[0]


def _backward(grad, luminance, parameters, channels, stem, octaves, need_luminance, need_parameters) -> list[Tensor]:
    """Return the gradients of the luminance and of all parameters, or empty tensors; the forward pass is repeated."""
    needs = [need_luminance] + [need_parameters] * len(parameters)
    with autograd_inside(), torch.enable_grad():
        leaves = [t.detach().requires_grad_(n) for t, n in zip((luminance, *parameters), needs, strict=True)]
        out = _defined(leaves[0], leaves[1:], channels, stem, octaves)
        wanted = [leaf for leaf, need in zip(leaves, needs, strict=True) if need]
        found = iter(torch.autograd.grad(out, wanted, grad, materialize_grads=True))
    return [next(found) if need else leaf.new_empty(0) for leaf, need in zip(leaves, needs, strict=True)]


def _tangent(tensors: Sequence[Tensor], tangents: Sequence[Tensor | None], sizes) -> Tensor:
    """Return the forward-mode derivative: the derivative of reverse mode, which is linear in the gradient."""
    with autograd_inside(), torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in tensors]
        out = _defined(leaves[0], leaves[1:], *sizes)
        dummy = torch.zeros_like(out, requires_grad=True)
        moved = [leaf for leaf, tangent in zip(leaves, tangents, strict=True) if tangent is not None]
        grads = torch.autograd.grad(out, moved, dummy, create_graph=True, materialize_grads=True)
        along = [tangent for tangent in tangents if tangent is not None]
        (tangent,) = torch.autograd.grad(grads, [dummy], along)
    return tangent


class _Luminance(torch.autograd.Function):
    @staticmethod
    def forward(ctx, sizes, *tensors):
        ctx.sizes = sizes
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)
        with torch._C._AutoDispatchBelowAutograd():
            return operator("pyramid_luminance")(tensors[0], list(tensors[1:]), *sizes)

    @staticmethod
    def backward(ctx, grad):
        if grad is None:
            return (None,) * (1 + len(ctx.saved_tensors))
        luminance, *parameters = ctx.saved_tensors
        needs = ctx.needs_input_grad[1], any(ctx.needs_input_grad[2:])
        grads = operator("pyramid_luminance_backward")(grad, luminance, parameters, *ctx.sizes, *needs)
        wanted = ctx.needs_input_grad[1:]
        return None, *(g if need else None for g, need in zip(grads, wanted, strict=True))

    @staticmethod
    def jvp(ctx, sizes, *tangents):
        return _tangent(ctx.saved_tensors, tangents, ctx.sizes)


def _autograd(keyset, luminance, parameters, *sizes):
    tensors = (luminance, *parameters)
    if flop_counters():  # which count torch's operators
        return _defined(luminance, parameters, *sizes)
    if forward_ad._current_level >= 0 or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
        return _Luminance.apply(sizes, *tensors)
    with torch._C._AutoDispatchBelowAutograd():
        below = keyset & torch._C._after_autograd_keyset
        return operator("pyramid_luminance").redispatch(below, luminance, parameters, *sizes)


def _no_gradient(ctx, grad):
    raise RuntimeError("the native pyramid has no gradient; call the model where gradients are enabled")


implement("pyramid_luminance", _defined, "CompositeExplicitAutograd")
implement("pyramid_luminance_backward", _backward, "CompositeExplicitAutograd")
implement("pyramid_luminance", _autograd, "Autograd", with_keyset=True)
for _key in ("FuncTorchDynamicLayerFrontMode", "Batched"):  # the definition's operators support all of torch.func
    implement("pyramid_luminance", _defined, _key)
refuse_derivatives("pyramid_luminance_backward", "differentiate a PyramidFFMEF itself, neither compiled nor exported")
torch.library.register_autograd("ffmef::pyramid_exposures", _no_gradient, lib=library)


@torch.library.register_fake("ffmef::pyramid_exposures", lib=library)
def _(pictures, validity, parameters, channels, stem, octaves, adjust):
    return pictures[0].new_empty(pictures[0].shape)


@torch.library.register_fake("ffmef::pyramid_luminance", lib=library)
def _(luminance, parameters, channels, stem, octaves):
    batch, _, height, width = luminance.shape
    return luminance.new_empty((batch, 1, height, width))


@torch.library.register_fake("ffmef::pyramid_luminance_backward", lib=library)
def _(grad, luminance, parameters, channels, stem, octaves, need_luminance, need_parameters):
    needs = [need_luminance] + [need_parameters] * len(parameters)
    return [t.new_empty(t.shape if n else (0,)) for t, n in zip((luminance, *parameters), needs, strict=True)]
