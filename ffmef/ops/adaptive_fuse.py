"""Spatially varying filtering of several images at several filter sizes, and its alpha-weighted sum, in one operator.

The function here documents and validates; kernels are in ``csrc/`` and ``ffmef/kernels/``. The operator is linear in
each of images, filters and alphas, so two dispatcher operators, forward and backward, give derivatives of every order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ffmef import _loader
from ffmef.ops import reference
from ffmef.ops._overrides import overridable
from ffmef.ops.library import autocast_available, carries_tangent, define, implement, library, operator
from ffmef.ops.selection import check_backend, warn_of_reference
from ffmef.ops.types import Backend, PaddingMode

PADDING_MODES = ("zeros", "replicate", "reflect")
MAX_FILTER_SIZE = 31
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_SIDES = {k * k: k for k in range(1, MAX_FILTER_SIZE + 1, 2)}

_FORWARD = "(Tensor images, Tensor[] filters, Tensor alphas, str padding_mode) -> Tensor"
_BACKWARD = (
    "(Tensor grad, Tensor images, Tensor[] filters, Tensor alphas, str padding_mode, "
    "bool need_images, int[] need_filters, bool need_alphas) -> (Tensor, Tensor[], Tensor)"
)


@overridable
def adaptive_fuse(
    images: Tensor,
    filters: Sequence[Tensor],
    alphas: Tensor | Sequence[float] | None = None,
    *,
    padding_mode: PaddingMode = "zeros",
    backend: Backend | None = None,
) -> Tensor:
    r"""Filter every image with its own filter at every pixel, at several filter sizes, and sum.

    .. math::
        out[b,c,y,x] = \sum_l \alpha_l \sum_n \sum_{(i,j)} f_l[b,n,i k_l + j,y,x]
                       \; I[b,n,c,y+i-r_l,x+j-r_l], \qquad r_l = (k_l - 1) / 2

    This is F-Fusion, equation 4 of FFMEF (CVPR workshops 2023), for any number of images, channels and levels. The
    same as unfolding each image, multiplying and summing, without the k*k copies.

    Filters of a level may be given on a coarser grid, (B, N, k*k, h, w) with h <= H and w <= W: :math:`f_l` is then
    what
    ``F.interpolate(filters, (H, W), mode="bilinear", align_corners=False)`` returns, interpolated row by row inside the
    kernels without ever existing at full resolution. The grid spans the image; where h divides H and w divides W, a
    cell is a block of pixels as in :func:`ffmef.ops.pyramid_fuse`.

    Args:
        images: (B, N, C, H, W) or (B, N, H, W); float64, float32, float16 or bfloat16, any strides.
        filters: L tensors (B, N, k*k, H, W) of the images' dtype and device, or (B, N, k*k, h, w) on a coarser grid,
            each level on its own; k odd, 1 to 31, taps in row-major order. Filters are not normalised.
        alphas: (L,) weights of the levels, a tensor of any floating dtype or numbers; ones where None.
        padding_mode: what lies outside an image: "zeros", "replicate" (its nearest pixel) or "reflect" (mirrored
            without repeating the border; it bounces where the image is smaller than the filter).
        backend: "reference", "cpu", "triton" or "cuda"; None takes the fastest that can run the tensors, see
            :func:`ffmef.ops.backends`.

    Returns:
        (B, C, H, W), or (B, H, W) for images without channels; contiguous, in the images' dtype. Sums are kept in at
        least float32.

    Raises:
        TypeError: an argument is not a tensor, or its dtype is not one of the four.
        ValueError: sizes, dtypes or devices disagree; the message names the argument, the rule and the value.
        RuntimeError: ``backend`` cannot run here; the message says why.
        NotImplementedError: forward-mode derivatives were asked of another backend than the reference.

    Note:
        Differentiable to any order in images, filters and alphas. Results and gradients are deterministic and do not
        depend on the number of threads; those of coarse filters gather what every pixel gives to a cell. Forward-mode
        derivatives (``torch.func.jvp``) and ``torch.func.grad`` need ``backend="reference"``; ``torch.autograd`` and
        ``torch.vmap`` do not. Under autocast, images and filters are promoted to the widest of their dtypes.

    Example:
        A filter with a single one in its left tap moves the image to the right:

        >>> import torch
        >>> from ffmef.ops import adaptive_fuse
        >>> image = torch.tensor([[1.0, 2.0, 3.0]]).view(1, 1, 1, 3)
        >>> taps = torch.zeros(1, 1, 9, 1, 3)
        >>> taps[:, :, 3] = 1.0
        >>> adaptive_fuse(image, [taps])
        tensor([[[0., 1., 2.]]])
        >>> adaptive_fuse(image, [taps, torch.ones(1, 1, 1, 1, 3)], [1.0, 0.5], padding_mode="replicate")
        tensor([[[1.5000, 2.0000, 3.5000]]])

        Two cells of one tap over four pixels: the weights 0 and 1, interpolated between the cells' centres:

        >>> adaptive_fuse(torch.ones(1, 1, 1, 4), [torch.tensor([0.0, 1.0]).view(1, 1, 1, 1, 2)])
        tensor([[[0.0000, 0.2500, 0.7500, 1.0000]]])
    """
    filters = _as_list(filters)
    images_5d, filters, alphas = _validate(images, filters, alphas, padding_mode)
    check_backend(backend, images.device)
    if backend == "reference":
        out = reference.adaptive_fuse(images_5d, filters, alphas, padding_mode)
    else:
        if carries_tangent(images_5d, *filters, alphas):
            raise NotImplementedError("adaptive_fuse has forward-mode derivatives with backend 'reference' only")
        name = "adaptive_fuse_triton" if backend == "triton" else "adaptive_fuse"
        if name == "adaptive_fuse" and _keeps_responses(images_5d, alphas):
            out, _ = operator("adaptive_fuse_responses")(images_5d, filters, alphas, padding_mode)
        else:
            out = operator(name)(images_5d, filters, alphas, padding_mode)
    return out if images.dim() == 5 else out.squeeze(1)


def _as_list(filters: Sequence[Tensor]) -> list[Tensor]:
    if isinstance(filters, Tensor):
        raise TypeError("filters must be a sequence of tensors, one for each level, got one tensor")
    try:
        return list(filters)
    except TypeError:
        raise TypeError(f"filters must be a sequence of tensors, got {type(filters).__name__}") from None


def _as_tensor(alphas: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    rule = "alphas must be a tensor or a sequence of numbers"
    if isinstance(alphas, (list, tuple)) and any(isinstance(alpha, Tensor) for alpha in alphas):
        raise TypeError(f"{rule}, got a sequence of tensors: stack them, so that their gradients are kept")
    try:
        if isinstance(alphas, (set, frozenset, dict)):
            raise TypeError("no order")
        return torch.tensor(list(alphas), dtype=dtype, device=device)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{rule}, got {type(alphas).__name__}") from None


def _check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.dtype not in DTYPES:
        raise TypeError(f"{name} must be float64, float32, float16 or bfloat16, got {str(value.dtype)[6:]}")


def _validate(
    images: Tensor, filters: list[Tensor], alphas: Tensor | Sequence[float] | None, padding_mode: str
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Return images with channels, filters and alphas as the dispatcher takes them, or raise."""
    _check_tensor("images", images)
    if images.dim() not in (4, 5):
        raise ValueError(f"images must be (B, N, C, H, W) or (B, N, H, W), got shape {tuple(images.shape)}")
    if not filters:
        raise ValueError("filters must have at least one level, got none")
    if padding_mode not in PADDING_MODES:
        raise ValueError(f"padding_mode must be one of {', '.join(PADDING_MODES)}, got {padding_mode!r}")
    for index, level in enumerate(filters):
        _check_tensor(f"filters[{index}]", level)
    device_type = images.device.type
    if autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        images, filters = _promote(images, filters)
    if images.dim() == 4:
        images = images.unsqueeze(2)
    batch, count, _, height, width = images.shape
    if count < 1:
        raise ValueError("images must hold at least one image, got N = 0")
    for index, level in enumerate(filters):
        name = f"filters[{index}]"
        if level.dim() != 5:
            raise ValueError(f"{name} must be (B, N, k*k, H, W), got shape {tuple(level.shape)}")
        if level.shape[0] != batch:
            raise ValueError(f"{name} must have batch size {batch} like images, got {level.shape[0]}")
        if level.shape[1] != count:
            raise ValueError(f"{name} must have {count} images like images, got {level.shape[1]}")
        if not any(level.shape[2] == taps for taps in _SIDES):
            raise ValueError(
                f"{name} must have k*k taps with k odd and at most {MAX_FILTER_SIZE}, got {level.shape[2]}"
            )
        if not (_fits(level.shape[3], height) and _fits(level.shape[4], width)):
            raise ValueError(
                f"{name} must have height and width {height} x {width} like images, "
                "or of a coarser grid of at least 1 x 1, "
                f"got {level.shape[3]} x {level.shape[4]}"
            )
        if level.dtype != images.dtype:
            raise ValueError(f"{name} must be {str(images.dtype)[6:]} like images, got {str(level.dtype)[6:]}")
        if level.device != images.device:
            raise ValueError(f"{name} must be on {images.device} like images, got {level.device}")
    if alphas is None:
        alphas = torch.ones(len(filters), dtype=reference.accumulator(images.dtype), device=images.device)
    elif not isinstance(alphas, Tensor):
        alphas = _as_tensor(alphas, reference.accumulator(images.dtype), images.device)
    _check_tensor("alphas", alphas)
    if alphas.dim() != 1 or alphas.shape[0] != len(filters):
        raise ValueError(
            f"alphas must be ({len(filters)},), one weight for each level, got shape {tuple(alphas.shape)}"
        )
    if alphas.device != images.device:
        raise ValueError(f"alphas must be on {images.device} like images, got {alphas.device}")
    return images, filters, alphas


def _fits(cells: int, pixels: int) -> bool:
    # In this form compilers guard on one inequality, the same for full resolution and every coarser grid.
    return cells <= pixels and (cells >= 1 or pixels == 0)


def _promote(images: Tensor, filters: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Cast to the widest dtype among images and filters, what autocast does with operators of several tensors."""
    wide = images.dtype
    for level in filters:
        wide = torch.promote_types(wide, level.dtype)
    return images.to(wide), [level.to(wide) for level in filters]


# --- registrations: the same for the operator and for its form that always runs Triton ----------------------------


def _fake_forward(images, filters, alphas, padding_mode):
    return images.new_empty(images.shape[:1] + images.shape[2:])


def _fake_backward(grad, images, filters, alphas, padding_mode, need_images, need_filters, need_alphas):
    return (
        images.new_empty(images.shape if need_images else (0,)),
        [level.new_empty(level.shape if needed else (0,)) for level, needed in zip(filters, need_filters, strict=True)],
        alphas.new_empty((len(filters) if need_alphas else 0,)),
    )


def _keeps_responses(images: Tensor, alphas: Tensor) -> bool:
    """Return whether to keep each level's sum, a plane of L, because the alphas' gradient needs it.

    It would have to read all filters again otherwise.
    """
    return (
        _loader.cpu_missing is None and images.device.type == "cpu" and torch.is_grad_enabled() and alphas.requires_grad
    )


def _add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _to_front(size, tensor, dim):
    return tensor.movedim(dim, 0) if dim is not None else tensor.unsqueeze(0).expand(size, *tensor.shape)


def _unmapped(size, in_dims, images, filters, alphas):
    # The mapped axis joins the batch; mapped alphas join the filters, in which the operator is linear too.
    image_dim, filter_dims, alpha_dim = in_dims
    front_images = _to_front(size, images, image_dim)
    front_filters = [_to_front(size, f, d) for f, d in zip(filters, filter_dims, strict=True)]
    front_alphas = _to_front(size, alphas, alpha_dim)
    return front_images, front_filters, front_alphas


def _register(name: str) -> None:
    forward_op, backward_op = operator(name), operator(f"{name}_backward")

    def save_forward(ctx, inputs, output):
        images, filters, alphas, ctx.padding_mode = inputs
        ctx.save_for_backward(images, alphas, *filters)

    def forward_grad(ctx, grad):
        images, alphas, *filters = ctx.saved_tensors
        need_images, need_filters, need_alphas, _ = ctx.needs_input_grad
        image_grad, filter_grads, alpha_grad = backward_op(
            grad, images, filters, alphas, ctx.padding_mode, need_images, [int(n) for n in need_filters], need_alphas
        )
        return (
            image_grad if need_images else None,
            [g if n else None for g, n in zip(filter_grads, need_filters, strict=True)],
            alpha_grad if need_alphas else None,
            None,
        )

    def save_backward(ctx, inputs, output):
        grad, images, filters, alphas, ctx.padding_mode, *ctx.computed = inputs
        ctx.save_for_backward(grad, images, alphas, *filters)
        ctx.set_materialize_grads(False)

    def backward_grad(ctx, image_tangent, filter_tangents, alpha_tangent):
        # Linear in each argument: every term is the forward or the backward with one argument exchanged.
        grad, images, alphas, *filters = ctx.saved_tensors
        mode = ctx.padding_mode
        did_images, did_filters, did_alphas = ctx.computed
        if not did_images:
            image_tangent = None
        if not did_alphas:
            alpha_tangent = None
        tangents = [
            t if did and t is not None else None
            for t, did in zip(filter_tangents or [None] * len(filters), did_filters, strict=True)
        ]
        some = [l for l, t in enumerate(tangents) if t is not None]
        need_grad, need_images, need_filters, need_alphas, *_ = ctx.needs_input_grad
        d_grad = d_images = d_alphas = None
        d_filters: list[Tensor | None] = [None] * len(filters)
        if need_grad:
            if image_tangent is not None:
                d_grad = _add(d_grad, forward_op(image_tangent, filters, alphas, mode))
            if some:
                d_grad = _add(d_grad, forward_op(images, [tangents[l] for l in some], alphas[some], mode))
            if alpha_tangent is not None:
                d_grad = _add(d_grad, forward_op(images, filters, alpha_tangent, mode))
        if image_tangent is not None:
            _, f, a = backward_op(
                grad, image_tangent, filters, alphas, mode, False, [int(n) for n in need_filters], need_alphas
            )
            d_filters = [_add(d, x) if n else None for d, x, n in zip(d_filters, f, need_filters, strict=True)]
            d_alphas = _add(d_alphas, a) if need_alphas else None
        if some:
            i, _, a = backward_op(
                grad, images, [tangents[l] for l in some], alphas[some], mode, need_images, [0] * len(some), need_alphas
            )
            d_images = _add(d_images, i) if need_images else None
            if need_alphas:
                d_alphas = _add(
                    d_alphas, alphas.new_zeros(alphas.shape).index_put((torch.tensor(some, device=alphas.device),), a)
                )
        if alpha_tangent is not None:
            i, f, _ = backward_op(
                grad, images, filters, alpha_tangent, mode, need_images, [int(n) for n in need_filters], False
            )
            d_images = _add(d_images, i) if need_images else None
            d_filters = [_add(d, x) if n else None for d, x, n in zip(d_filters, f, need_filters, strict=True)]
        return d_grad, d_images, d_filters, d_alphas, None, None, None, None

    def scaled(front_filters, front_alphas):
        return [
            (f * front_alphas[:, l].to(f.dtype).view(-1, *[1] * (f.dim() - 1))).flatten(0, 1)
            for l, f in enumerate(front_filters)
        ]

    def vmap_forward(info, in_dims, images, filters, alphas, padding_mode):
        size = info.batch_size
        i, f, a = _unmapped(size, in_dims[:3], images, filters, alphas)
        if in_dims[2] is None:
            out = forward_op(i.flatten(0, 1), [x.flatten(0, 1) for x in f], alphas, padding_mode)
        else:
            out = forward_op(i.flatten(0, 1), scaled(f, a), torch.ones_like(a[0]), padding_mode)
        return out.unflatten(0, (size, -1)), 0

    def vmap_backward(
        info, in_dims, grad, images, filters, alphas, padding_mode, need_images, need_filters, need_alphas
    ):
        size = info.batch_size
        g = _to_front(size, grad, in_dims[0])
        i, f, a = _unmapped(size, in_dims[1:4], images, filters, alphas)
        flat_g, flat_i, ones = g.flatten(0, 1), i.flatten(0, 1), torch.ones_like(a[0])
        image_grad, filter_grads, _ = backward_op(
            flat_g, flat_i, scaled(f, a), ones, padding_mode, need_images, need_filters, False
        )
        image_grad = image_grad.unflatten(0, (size, -1)) if need_images else image_grad.expand(size, 0)
        filter_grads = [
            x.unflatten(0, (size, -1)) * a[:, l].to(x.dtype).view(-1, *[1] * 5) if n else x.expand(size, 0)
            for l, (x, n) in enumerate(zip(filter_grads, need_filters, strict=True))
        ]
        if need_alphas:  # one number for each sample, which the operator's own sum over the batch would mix
            responses = [forward_op(flat_i, [x.flatten(0, 1)], ones[:1], padding_mode) for x in f]
            alpha_grad = torch.stack(
                [(r * flat_g).unflatten(0, (size, -1)).flatten(1).sum(1) for r in responses], 1
            ).to(a.dtype)
        else:
            alpha_grad = a.new_empty((size, 0))
        return (image_grad, filter_grads, alpha_grad), (0, [0] * len(filters), 0)

    torch.library.register_fake(f"ffmef::{name}", _fake_forward, lib=library)
    torch.library.register_fake(f"ffmef::{name}_backward", _fake_backward, lib=library)
    torch.library.register_autograd(f"ffmef::{name}", forward_grad, setup_context=save_forward, lib=library)
    torch.library.register_autograd(f"ffmef::{name}_backward", backward_grad, setup_context=save_backward, lib=library)
    torch.library.register_vmap(f"ffmef::{name}", vmap_forward, lib=library)
    torch.library.register_vmap(f"ffmef::{name}_backward", vmap_backward, lib=library)
    for device in ("cpu", "cuda"):
        implement(name, _autocast(forward_op, device), f"Autocast{device.upper()}")


def _register_responses() -> None:
    """The forward operator that also returns each level's sum, (L, B, C, H, W) in the dtype of sums."""
    forward_op, backward_op = operator("adaptive_fuse_responses"), operator("adaptive_fuse_backward")

    def fake(images, filters, alphas, padding_mode):
        out = _fake_forward(images, filters, alphas, padding_mode)
        return out, out.new_empty((len(filters), *out.shape), dtype=reference.accumulator(images.dtype))

    def save(ctx, inputs, output):
        images, filters, alphas, ctx.padding_mode = inputs
        ctx.save_for_backward(images, alphas, output[1], *filters)
        ctx.set_materialize_grads(False)

    def gradient(ctx, grad, response_grads):
        images, alphas, responses, *filters = ctx.saved_tensors
        need_images, need_filters, need_alphas, _ = ctx.needs_input_grad
        image_grad = alpha_grad = None
        filter_grads: list[Tensor | None] = [None] * len(filters)
        if grad is not None:
            if need_images or any(need_filters):
                image_grad, filter_grads, _ = backward_op(
                    grad, images, filters, alphas, ctx.padding_mode, need_images, [int(n) for n in need_filters], False
                )
            if need_alphas:
                alpha_grad = (responses * grad).flatten(1).sum(1).to(alphas.dtype)
        if response_grads is not None:  # second derivatives
            one = alphas.new_ones(1)
            for l, (level, needed) in enumerate(zip(filters, need_filters, strict=True)):
                level_grad = response_grads[l].to(images.dtype)
                i, f, _ = backward_op(
                    level_grad, images, [level], one, ctx.padding_mode, need_images, [int(needed)], False
                )
                image_grad = _add(image_grad, i) if need_images else None
                filter_grads[l] = _add(filter_grads[l], f[0]) if needed else None
        return (
            image_grad if need_images else None,
            [g if n else None for g, n in zip(filter_grads, need_filters, strict=True)],
            alpha_grad,
            None,
        )

    def vmap(info, in_dims, images, filters, alphas, padding_mode):
        size = info.batch_size
        i, f, a = _unmapped(size, in_dims[:3], images, filters, alphas)
        _, responses = forward_op(i.flatten(0, 1), [x.flatten(0, 1) for x in f], torch.ones_like(a[0]), padding_mode)
        responses = responses.unflatten(1, (size, -1))
        weights = a.t().to(responses.dtype).view(len(f), size, 1, 1, 1, 1)
        return ((responses * weights).sum(0).to(images.dtype), responses), (0, 1)

    name = "ffmef::adaptive_fuse_responses"
    torch.library.register_fake(name, fake, lib=library)
    torch.library.register_autograd(name, gradient, setup_context=save, lib=library)
    torch.library.register_vmap(name, vmap, lib=library)


def _autocast(forward_op, device: str):
    def promoted(images, filters, alphas, padding_mode):
        with torch.autocast(device, enabled=False):
            images, filters = _promote(images, filters)
            return forward_op(images, filters, alphas, padding_mode)

    return promoted


def _triton(function: str):
    def launch(*args):
        # Imported at the first call: importing triton takes longer than importing ffmef.
        from ffmef.kernels import adaptive_fuse as kernels

        return getattr(kernels, function)(*args)

    return launch


def _reference(function):
    def run(*args):
        warn_of_reference()
        return function(*args)

    return run


for _name in ("adaptive_fuse", "adaptive_fuse_triton"):
    _define = define if _name == "adaptive_fuse" else library.define
    _define(_name + _FORWARD)
    _define(f"{_name}_backward{_BACKWARD}")
if _loader.cpu_missing is not None:
    implement("adaptive_fuse", _reference(reference.adaptive_fuse), "CPU")
    implement("adaptive_fuse_backward", _reference(reference.adaptive_fuse_backward), "CPU")
if _loader.cuda_missing is not None:
    implement("adaptive_fuse", _triton("forward"), "CUDA")
    implement("adaptive_fuse_backward", _triton("backward"), "CUDA")
for _key in ("CPU", "CUDA"):
    implement("adaptive_fuse_triton", _triton("forward"), _key)
    implement("adaptive_fuse_triton_backward", _triton("backward"), _key)
for _name in ("adaptive_fuse", "adaptive_fuse_triton"):
    _register(_name)
if _loader.cpu_missing is None:
    _register_responses()
