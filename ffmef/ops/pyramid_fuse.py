"""Fusion on a Laplacian pyramid with weights that are given on a coarse grid only.

The function here documents and validates; kernels are in ``csrc/`` and ``ffmef/kernels/``. The operator is linear in
the images and in weights
and base together, so two dispatcher operators, forward and backward, give derivatives of every order.
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from ffmef import _loader
from ffmef.ops import reference
from ffmef.ops._overrides import overridable
from ffmef.ops.adaptive_fuse import DTYPES
from ffmef.ops.library import carries_tangent, define, implement, library, operator
from ffmef.ops.selection import check_backend, warn_of_reference
from ffmef.ops.types import Backend

MAX_SCALE = 64

_FORWARD = "(Tensor images, Tensor weights, Tensor base, int scale) -> Tensor"
_BACKWARD = (
    "(Tensor grad, Tensor images, Tensor weights, Tensor base, int scale, "
    "bool need_images, bool need_weights, bool need_base) -> (Tensor, Tensor, Tensor)"
)


@overridable
def pyramid_fuse(
    images: Tensor, weights: Tensor, base: Tensor, *, scale: int = 8, backend: Backend | None = None
) -> Tensor:
    r"""Fuse images band by band on their Laplacian pyramids, with weights that are interpolated from a coarse grid.

    .. math::
        out_L = \sum_n U_{s/2^L}(base_n) \, G_{L,n}, \qquad
        out_l = U_2(out_{l+1}) + \sum_n U_{s/2^l}(w_{l,n}) \, \bigl(G_{l,n} - U_2(G_{l+1,n})\bigr), \qquad out = out_0

    :math:`G_{0,n}` is image n, :math:`G_{l+1}` the means of 2 x 2 pixels of :math:`G_l` (an odd border is repeated),
    and
    :math:`U_r` bilinear interpolation between pixel centres to an r times finer grid, constant beyond the outermost
    centres and cropped to the finer level's size. With one cell's weights this is a filter spanned by a delta and tents
    of 2, 4, ... :math:`2^L` pixels, in the place of F-Fusion's 1x1, 3x3 and 5x5 (FFMEF, CVPR workshops 2023, eq. 4).

    Weights are not normalised. A base that sums to one over the images on the coarse grid does so at every pixel.

    Args:
        images: (B, N, C, H, W) or (B, N, H, W); float64, float32, float16 or bfloat16, any size, any strides.
        weights: (B, L, N, h, w) of the images' dtype and device with h = ceil(H / scale) and w = ceil(W / scale); a
            weight for every band, finest first, image and cell. L may be 0.
        base: (B, N, h, w), like ``weights``, for the lowest level.
        scale: pixels of the images along a side of a cell, a power of two from :math:`2^L` to 64.
        backend: "reference", "cpu", "triton" or "cuda"; None takes the fastest that can run the tensors, see
            :func:`ffmef.ops.backends`.

    Returns:
        (B, C, H, W), or (B, H, W) for images without channels; contiguous, in the images' dtype. Sums are kept in at
        least float32.

    Raises:
        TypeError: an argument is not a tensor, or its dtype is not one of the four.
        ValueError: sizes, dtypes or devices disagree; the message names the argument, the rule and the value.
        RuntimeError: ``backend`` cannot run here; the message says why.

    Note:
        Differentiable to any order in images, weights and base. Results and gradients are deterministic and do not
        depend on the number of threads.

    Example:
        The base of one image and the detail of another:

        >>> import torch
        >>> from ffmef.ops import pyramid_fuse
        >>> flat, stripes = torch.full((2, 8), 0.5), torch.tensor([0.0, 1.0]).repeat(2, 4)
        >>> weights = torch.tensor([0.0, 1.0]).view(1, 1, 2, 1, 1)
        >>> pyramid_fuse(torch.stack([flat, stripes])[None], weights, 1 - weights[:, 0])[0, 0]
        tensor([0., 1., 0., 1., 0., 1., 0., 1.])
    """
    images_5d, weights, base = _validate(images, weights, base, scale)
    check_backend(backend, images.device)
    if backend == "reference":
        out = reference.pyramid_fuse(images_5d, weights, base, scale)
    else:
        if carries_tangent(images_5d, weights, base):
            raise NotImplementedError("pyramid_fuse has forward-mode derivatives with backend 'reference' only")
        name = "pyramid_fuse_triton" if backend == "triton" else "pyramid_fuse"
        out = operator(name)(images_5d, weights, base, scale)
    return out if images.dim() == 5 else out.squeeze(1)


def _check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.dtype not in DTYPES:
        raise TypeError(f"{name} must be float64, float32, float16 or bfloat16, got {str(value.dtype)[6:]}")


def _validate(images: Tensor, weights: Tensor, base: Tensor, scale: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the arguments as the dispatcher takes them, or raise."""
    tensors = {"images": images, "weights": weights, "base": base}
    for name, value in tensors.items():
        _check_tensor(name, value)
    if images.dim() not in (4, 5):
        raise ValueError(f"images must be (B, N, C, H, W) or (B, N, H, W), got shape {tuple(images.shape)}")
    if torch.is_autocast_enabled(images.device.type):
        images, weights, base = _promote(images, weights, base)
    for name, value in (("weights", weights), ("base", base)):
        if value.dtype != images.dtype:
            raise ValueError(f"{name} must be {str(images.dtype)[6:]} like images, got {str(value.dtype)[6:]}")
        if value.device != images.device:
            raise ValueError(f"{name} must be on {images.device} like images, got {value.device}")
    if images.dim() == 4:
        images = images.unsqueeze(2)
    batch, count, channels, height, width = images.shape
    if min(count, channels, height, width) < 1:
        raise ValueError(f"images must hold at least one image, channel and pixel, got shape {tuple(images.shape)}")
    if weights.dim() != 5:
        raise ValueError(f"weights must be (B, L, N, h, w), got shape {tuple(weights.shape)}")
    bands = weights.shape[1]
    if not isinstance(scale, int) or isinstance(scale, bool):
        raise TypeError(f"scale must be an integer, got {type(scale).__name__}")
    # Without 1 << bands: torch 2.11 cannot compile a shift by a number that may change.
    if not 1 <= scale <= MAX_SCALE or scale & (scale - 1) or bands >= scale.bit_length():
        raise ValueError(f"scale must be a power of two from {1 << bands} (2^L) to {MAX_SCALE}, got {scale}")
    cells = (-(-height // scale), -(-width // scale))
    if tuple(weights.shape) != (batch, bands, count, *cells):
        raise ValueError(
            f"weights must be {(batch, bands, count, *cells)} for these images, got {tuple(weights.shape)}"
        )
    if tuple(base.shape) != (batch, count, *cells):
        raise ValueError(f"base must be {(batch, count, *cells)} for these images, got {tuple(base.shape)}")
    return images, weights, base


def _promote(*tensors: Tensor) -> list[Tensor]:
    """Cast to the widest dtype among the tensors, what autocast does with operators of several."""
    wide = tensors[0].dtype
    for tensor in tensors[1:]:
        wide = torch.promote_types(wide, tensor.dtype)
    return [tensor.to(wide) for tensor in tensors]


# --- registrations: the same for the operator and for its form that always runs Triton ----------------------------


def _fake_forward(images, weights, base, scale):
    return images.new_empty(images.shape[:1] + images.shape[2:])


def _fake_backward(grad, images, weights, base, scale, need_images, need_weights, need_base):
    return tuple(
        tensor.new_empty(tensor.shape if needed else (0,))
        for tensor, needed in ((images, need_images), (weights, need_weights), (base, need_base))
    )


def _add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _register(operator_name: str) -> None:
    forward_op, backward_op = operator(operator_name), operator(f"{operator_name}_backward")

    def save_forward(ctx, inputs, output):
        *tensors, ctx.scale = inputs
        ctx.save_for_backward(*tensors)

    def forward_grad(ctx, grad):
        needs = ctx.needs_input_grad[:3]
        grads = backward_op(grad, *ctx.saved_tensors, ctx.scale, *needs)
        return (*(g if needed else None for g, needed in zip(grads, needs, strict=True)), None)

    def save_backward(ctx, inputs, output):
        *tensors, ctx.scale, did_images, did_weights, did_base = inputs
        ctx.did = (did_images, did_weights, did_base)
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    def backward_grad(ctx, *tangents):
        # <backward(grad, images, weights, base), (i, w, b)> = <grad, forward(i, weights, base) + forward(images, w, b)>
        grad, images, weights, base = ctx.saved_tensors
        image_tangent, weight_tangent, base_tangent = (
            t if did and t is not None else None for t, did in zip(tangents, ctx.did, strict=True)
        )
        need_grad, need_images, need_weights, need_base = ctx.needs_input_grad[:4]
        d_grad = d_images = d_weights = d_base = None
        if image_tangent is not None:
            if need_grad:
                d_grad = forward_op(image_tangent, weights, base, ctx.scale)
            if need_weights or need_base:
                _, w, b = backward_op(grad, image_tangent, weights, base, ctx.scale, False, need_weights, need_base)
                d_weights, d_base = (w if need_weights else None), (b if need_base else None)
        if weight_tangent is not None or base_tangent is not None:
            w = torch.zeros_like(weights) if weight_tangent is None else weight_tangent
            b = torch.zeros_like(base) if base_tangent is None else base_tangent
            if need_grad:
                d_grad = _add(d_grad, forward_op(images, w, b, ctx.scale))
            if need_images:
                d_images = backward_op(grad, images, w, b, ctx.scale, True, False, False)[0]
        return d_grad, d_images, d_weights, d_base, None, None, None, None

    def merged(size, tensors, dims):
        """The mapped axis joins the batch."""
        fronts = [
            t.movedim(d, 0) if d is not None else t.unsqueeze(0).expand(size, *t.shape)
            for t, d in zip(tensors, dims, strict=True)
        ]
        return [front.flatten(0, 1) for front in fronts]

    def vmap_forward(info, in_dims, images, weights, base, scale):
        flat = merged(info.batch_size, (images, weights, base), in_dims[:3])
        return forward_op(*flat, scale).unflatten(0, (info.batch_size, -1)), 0

    def vmap_backward(info, in_dims, grad, images, weights, base, scale, *needs):
        size = info.batch_size
        grads = backward_op(*merged(size, (grad, images, weights, base), in_dims[:4]), scale, *needs)
        parts = (g.unflatten(0, (size, -1)) if n else g.expand(size, 0) for g, n in zip(grads, needs, strict=True))
        return tuple(parts), (0, 0, 0)

    for name, fake, grad_of, setup, vmap in (
        (operator_name, _fake_forward, forward_grad, save_forward, vmap_forward),
        (f"{operator_name}_backward", _fake_backward, backward_grad, save_backward, vmap_backward),
    ):
        torch.library.register_fake(f"ffmef::{name}", fake, lib=library)
        torch.library.register_autograd(f"ffmef::{name}", grad_of, setup_context=setup, lib=library)
        torch.library.register_vmap(f"ffmef::{name}", vmap, lib=library)
    for device in ("cpu", "cuda"):
        implement(operator_name, _autocast(forward_op, device), f"Autocast{device.upper()}")


def _autocast(forward_op, device: str):
    def promoted(images, weights, base, scale):
        with torch.autocast(device, enabled=False):
            return forward_op(*_promote(images, weights, base), scale)

    return promoted


def _reference(function):
    def run(*args):
        warn_of_reference()
        return function(*args)

    return run


def _triton(function: str):
    def launch(*args):
        # Imported at the first call: importing triton takes longer than importing ffmef.
        from ffmef.kernels import pyramid_fuse as kernels

        return getattr(kernels, function)(*args)

    return launch


for _name in ("pyramid_fuse", "pyramid_fuse_triton"):
    _define = define if _name == "pyramid_fuse" else library.define
    _define(_name + _FORWARD)
    _define(f"{_name}_backward{_BACKWARD}")
if _loader.cpu_missing is not None:
    implement("pyramid_fuse", _reference(reference.pyramid_fuse), "CPU")
    implement("pyramid_fuse_backward", _reference(reference.pyramid_fuse_backward), "CPU")
if _loader.cuda_missing is not None:
    _has_triton = importlib.util.find_spec("triton") is not None
    implement("pyramid_fuse", _triton("forward") if _has_triton else reference.pyramid_fuse, "CUDA")
    implement("pyramid_fuse_backward", _triton("backward") if _has_triton else reference.pyramid_fuse_backward, "CUDA")
for _key in ("CPU", "CUDA"):
    implement("pyramid_fuse_triton", _triton("forward"), _key)
    implement("pyramid_fuse_triton_backward", _triton("backward"), _key)
for _name in ("pyramid_fuse", "pyramid_fuse_triton"):
    _register(_name)
