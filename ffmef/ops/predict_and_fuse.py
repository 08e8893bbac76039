"""The last 1x1 convolution of a prediction head and F-Fusion in one step, without the filters between them.

Both are linear, so the filters can be summed away. What remains is a convolution of the images with one output per
hidden map, which the backward pass recomputes rather than stores. On the CPU, native kernels compute both
directions; on GPUs, one kernel computes the forward pass. Everywhere else torch computes, a few rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ffmef import _loader
from ffmef.ops import reference
from ffmef.ops._backends import Kernels, check_backend, declare, has_triton, why_not
from ffmef.ops._linear import LinearOperator, promote_all, register, triton_kernel
from ffmef.ops._overrides import overridable
from ffmef.ops.adaptive_fuse import MAX_FILTER_SIZE, PADDING_MODES, as_alphas, as_list, check_tensor
from ffmef.ops.library import autocasts, library, operator, refuse_derivatives
from ffmef.ops.reference import pad, pad_adjoint
from ffmef.ops.types import Backend, PaddingMode

NATIVE_SIZES = (1, 3, 5, 7)

# The most values of hidden maps' responses that exist at once.
_CHUNK_VALUES = 1 << 20


@overridable
def predict_and_fuse(
    hidden: Sequence[Tensor],
    weight: Sequence[Tensor],
    bias: Sequence[Tensor],
    images: Tensor,
    alphas: Tensor | Iterable[float | Tensor] | None = None,
    *,
    padding_mode: PaddingMode = "zeros",
    backend: Backend | None = None,
) -> Tensor:
    r"""Predict filters from hidden maps by a 1x1 convolution and fuse images with them, storing no filters.

    .. math::
        out[b,c,y,x] = \sum_l \alpha_l \sum_n \sum_j \Big(\sum_i w_l[j,i]\, h_l[b,n,i,y,x] + b_l[j]\Big)\,
        I_j[b,n,c,y,x]
                     = \sum_l \alpha_l \sum_n \Big(\sum_i h_l[b,n,i,y,x] \sum_j w_l[j,i]\, I_j + \sum_j b_l[j]\,
                     I_j\Big)

    with :math:`I_j` the images moved by tap j. Equal to :func:`ffmef.ops.adaptive_fuse` (equation 4 of FFMEF, CVPR
    workshops 2023) of ``conv2d(hidden, weight, bias)``, in less memory: neither pass holds the k*k filters, and the
    backward pass recomputes what it needs.

    Args:
        hidden: L tensors (B, N, M, H, W), the input of each level's last convolution; float32 or float64, on GPUs also
            float16 or bfloat16, which are summed in float32.
        weight: L tensors (k*k, M) or (k*k, M, 1, 1), taps row-major, k odd.
        bias: L tensors (k*k,).
        images: (B, N, C, H, W) or (B, N, H, W).
        alphas: (L,) weights of the levels; None means ones.
        padding_mode: "zeros", "replicate", "reflect" or "circular", as in :func:`ffmef.ops.adaptive_fuse`.
        backend: "reference" (torch's convolutions, anywhere), "cpu" (float32 images of one channel, k up to 7),
            "triton" or "cuda"; None selects the fastest that can run the tensors.

    Returns:
        (B, C, H, W), or (B, H, W) for images without channels.

    Raises:
        TypeError: an argument is not a tensor, or its dtype is not one of the four.
        ValueError: sizes, dtypes or devices disagree; the message names the argument, the rule and the value.
        RuntimeError: ``backend`` cannot run here; the message says why.

    Note:
        Differentiable to any order in every tensor, in reverse and forward mode, under ``torch.vmap`` and all of
        ``torch.func``. On "cpu", bits do not depend on the number of threads. Under autocast, tensors are promoted to
        the widest of their dtypes.

    Example:
        >>> import torch
        >>> from ffmef.ops import adaptive_fuse, predict_and_fuse
        >>> hidden, images = torch.rand(1, 2, 5, 4, 6), torch.rand(1, 2, 4, 6)
        >>> weight, bias = torch.rand(9, 5), torch.rand(9)
        >>> filters = torch.einsum("ji,bnihw->bnjhw", weight, hidden) + bias.view(1, 1, 9, 1, 1)
        >>> fused = predict_and_fuse([hidden], [weight], [bias], images)
        >>> torch.allclose(fused, adaptive_fuse(images, [filters]))
        True
    """
    hidden, weight, bias = as_list("hidden", hidden), as_list("weight", weight), as_list("bias", bias)
    _check_tensors(hidden, weight, bias, images)
    weight = [w.flatten(1) if w.dim() > 2 else w for w in weight]
    images_5d = images if images.dim() == 5 else images.unsqueeze(2)
    if autocasts(images.device):
        flat = promote_all([*hidden, *weight, *bias, images_5d])
        levels = len(hidden)
        hidden, weight, bias, images_5d = flat[:levels], flat[levels : -levels - 1], flat[-levels - 1 : -1], flat[-1]
    alphas = as_alphas(alphas, len(hidden), images_5d)
    check_tensor("alphas", alphas)
    _check(hidden, weight, bias, images, images_5d, alphas, padding_mode)
    sides = [_side(w) for w in weight]
    check_backend("predict_and_fuse", backend, hidden=hidden, sides=sides, channels=images_5d.shape[2])
    if backend == "reference":
        out = reference.predict_and_fuse(hidden, weight, bias, images_5d, alphas, padding_mode)
    else:
        name = "predict_and_fuse_triton" if backend == "triton" else "predict_and_fuse"
        out = operator(name)(hidden, weight, bias, images_5d, alphas, padding_mode)
    return out if images.dim() == 5 else out.squeeze(1)


def _no_kernel(sides: Iterable[int], channels: int) -> str | None:
    """Return why no native kernel exists for levels of these sides, or None."""
    if channels != 1:
        return f"images must have one channel, got {channels}"
    other = [side for side in sides if side not in NATIVE_SIZES]
    return f"k must be one of {NATIVE_SIZES}, got {other[0]}" if other else None


declare(
    "predict_and_fuse",
    reference=Kernels(),
    cpu=Kernels(
        "predict_and_fuse_level", float32=True, sizes=_no_kernel, limits="images of one channel, k of 1, 3, 5 or 7"
    ),
    triton=Kernels(),
    cuda=Kernels(),
)


def _is_native(hidden: Tensor, weight: Tensor, images: Tensor) -> bool:
    """Return whether the native kernels can run a level."""
    return why_not("predict_and_fuse", "cpu", hidden=hidden, sides=(_side(weight),), channels=images.shape[2]) is None


def _side(weight: Tensor) -> int:
    return round(int(weight.shape[0]) ** 0.5)


def _check_tensors(hidden, weight, bias, images) -> None:
    check_tensor("images", images)
    if images.dim() not in (4, 5):
        raise ValueError(f"images must be (B, N, C, H, W) or (B, N, H, W), got shape {tuple(images.shape)}")
    if not hidden:
        raise ValueError("hidden must have at least one level, got none")
    for name, levels in (("hidden", hidden), ("weight", weight), ("bias", bias)):
        if len(levels) != len(hidden):
            raise ValueError(f"{name} must have {len(hidden)} levels like hidden, got {len(levels)}")
        for l, level in enumerate(levels):
            check_tensor(f"{name}[{l}]", level)


def _check(hidden, weight, bias, images, images_5d, alphas, padding_mode) -> None:
    if padding_mode not in PADDING_MODES:
        raise ValueError(f"padding_mode must be one of {', '.join(PADDING_MODES)}, got {padding_mode!r}")
    if tuple(alphas.shape) != (len(hidden),):
        raise ValueError(f"alphas must be ({len(hidden)},), one weight for each level, got shape {tuple(alphas.shape)}")
    if alphas.device != images.device:
        raise ValueError(f"alphas must be on {images.device} like images, got {alphas.device}")
    batch, count, _, height, width = images_5d.shape
    for l, (h, w, b) in enumerate(zip(hidden, weight, bias, strict=True)):
        if h.dim() != 5 or (*h.shape[:2], *h.shape[3:]) != (batch, count, height, width):
            raise ValueError(
                f"hidden[{l}] must be ({batch}, {count}, M, {height}, {width}) like images, got shape {tuple(h.shape)}"
            )
        if w.dim() != 2 or w.shape[1] != h.shape[2]:
            raise ValueError(
                f"weight[{l}] must have {h.shape[2]} columns like hidden's maps, got shape {tuple(w.shape)}"
            )
        side = _side(w)
        if side * side != w.shape[0] or side % 2 == 0 or side > MAX_FILTER_SIZE:
            raise ValueError(
                f"weight[{l}] must have k*k rows with k odd and at most {MAX_FILTER_SIZE}, got {w.shape[0]}"
            )
        if tuple(b.shape) != (w.shape[0],):
            raise ValueError(f"bias[{l}] must be ({w.shape[0]},) like weight's rows, got shape {tuple(b.shape)}")
        for name, tensor in (("hidden", h), ("weight", w), ("bias", b)):
            if tensor.dtype != images_5d.dtype or tensor.device != images.device:
                raise ValueError(
                    f"{name}[{l}] must be {str(images_5d.dtype)[6:]} on {images.device} like images, "
                    f"got {str(tensor.dtype)[6:]} on {tensor.device}"
                )


# --- kernels from torch's convolutions and the native ones for a level --------------------------------------------


def _chunks(hidden: Tensor, channels: int):
    """Yield (first row, one past the last) of pieces whose responses fit in the allowance."""
    batch, count, maps, height, width = hidden.shape
    if batch * count * channels * height * width == 0:  # torch's convolutions need channels
        return
    rows = max(_CHUNK_VALUES // max(batch * count * (maps + 1) * channels * width, 1), 8)
    for top in range(0, height, rows):
        yield top, min(top + rows, height)


def _responses(weight: Tensor, bias: Tensor, padded: Tensor, top: int, bottom: int) -> Tensor:
    """Return (B, N, C, M + 1, rows, W): the images' convolution that each hidden map is multiplied by, bias last."""
    window = padded[..., top : bottom + _side(weight) - 1, :]
    return F.conv2d(window.flatten(0, 2).unsqueeze(1), _kernels(weight, bias)).unflatten(0, padded.shape[:3])


def _padded(images: Tensor, radius: int, padding_mode: str) -> Tensor:
    """Return the padded images; by indices, which zeros do not need, that was half of a small call's time."""
    if padding_mode == "zeros":
        return F.pad(images, (radius,) * 4) if radius else images
    return pad(images, radius, padding_mode) if radius else images


def _kernels(weight: Tensor, bias: Tensor) -> Tensor:
    """Return (M + 1, 1, k, k): what the images are convolved with for each hidden map, and for the bias."""
    side = _side(weight)
    return torch.cat([weight, bias[:, None]], 1).t().reshape(-1, 1, side, side)


def _forward(hidden, weight, bias, images: Tensor, alphas: Tensor, padding_mode: str) -> Tensor:
    """Run ``ffmef::predict_and_fuse`` by native kernels where they can, else by torch's convolutions."""
    out = images.new_zeros(images.shape[:1] + images.shape[2:])
    for h, w, b, alpha in zip(hidden, weight, bias, alphas.to(images.dtype).unbind(), strict=True):
        padded = _padded(images, _side(w) // 2, padding_mode)
        if _is_native(h, w, images):
            level = operator("predict_and_fuse_level")(*_native_arguments(h, w, b, padded)).unsqueeze(1)
        else:
            level = _level(h, w, b, padded)
        out = torch.addcmul(out, level, alpha)
    return out


def _native_arguments(hidden: Tensor, weight: Tensor, bias: Tensor, padded: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    kernels = _kernels(weight, bias).squeeze(1).contiguous()
    return hidden.contiguous(), kernels, padded.squeeze(2).contiguous()


def _level(hidden: Tensor, weight: Tensor, bias: Tensor, padded: Tensor) -> Tensor:
    rows = []
    for top, bottom in _chunks(hidden, padded.shape[2]):
        responses = _responses(weight, bias, padded, top, bottom)
        fused = torch.einsum("bnihw,bncihw->bchw", hidden[..., top:bottom, :], responses[:, :, :, :-1])
        rows.append(fused + responses[:, :, :, -1].sum(1))
    return torch.cat(rows, 2) if rows else hidden.new_zeros(hidden.shape[0], padded.shape[2], *hidden.shape[3:])


def _backward(
    grad, hidden, weight, bias, images, alphas, padding_mode, need_hidden, need_weight, need_bias, need_images,
    need_alphas,
):  # fmt: skip
    """Return the gradients, nested as the arguments are; those that are not needed are empty."""
    hidden_grads, weight_grads, bias_grads, alpha_grads = [], [], [], []
    image_grad = torch.zeros_like(images) if need_images else images.new_empty(0)
    for l, (h, w, b, alpha) in enumerate(zip(hidden, weight, bias, alphas.to(images.dtype).unbind(), strict=True)):
        padded = _padded(images, _side(w) // 2, padding_mode)
        need_kernels = bool(need_weight[l] or need_bias[l] or need_alphas)
        scaled, from_scaled = grad * alpha, False
        hidden_grad: Tensor | None = None
        kernel_grad: Any = None  # None where nothing asks for it
        if _is_native(h, w, images):
            # One pass gives all gradients where alpha's follows from the gradient times alpha.
            from_scaled = 1e-12 < abs(float(alpha)) < 1e12 and need_hidden[l]
            arguments = _native_arguments(h, w, b, padded)
            if need_hidden[l] or from_scaled:
                hidden_grad, shares = _native_backward(scaled, *arguments, need_hidden[l], need_kernels and from_scaled)
            if need_kernels and not from_scaled:
                _, shares = _native_backward(grad, *arguments, False, True)
            if need_kernels:
                kernel_grad = shares.sum(0).flatten(1).t()
        else:
            if need_hidden[l]:
                hidden_grad = _hidden_gradient(scaled, h, w, b, padded)
            if need_kernels:
                kernel_grad = _kernel_gradient(grad, h, w, padded)
        hidden_grads.append(h.new_empty(0) if hidden_grad is None else hidden_grad)
        scale = 1.0 if from_scaled else alpha
        weight_grads.append((kernel_grad[:, :-1] * scale).contiguous() if need_weight[l] else w.new_empty(0))
        bias_grads.append(kernel_grad[:, -1] * scale if need_bias[l] else b.new_empty(0))
        if need_alphas:  # linear in weight and bias together: the sum of each times its gradient
            total = (kernel_grad[:, :-1] * w).sum() + (kernel_grad[:, -1] * b).sum()
            alpha_grads.append(total / alpha if from_scaled else total)
        if need_images:
            image_grad += _image_gradient(scaled, h, w, b, images, padding_mode)
    alpha_grad = torch.stack(alpha_grads).to(alphas.dtype) if need_alphas else alphas.new_empty(0)
    return hidden_grads, weight_grads, bias_grads, image_grad, alpha_grad


def _native_backward(grad: Tensor, hidden, kernels, padded, need_hidden: bool, need_kernels: bool):
    run = operator("predict_and_fuse_level_backward")
    return run(grad.squeeze(1).contiguous(), hidden, kernels, padded, bool(need_hidden), bool(need_kernels))


def _hidden_gradient(grad: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor, padded: Tensor) -> Tensor:
    rows = [
        torch.einsum(
            "bchw,bncihw->bnihw", grad[:, :, top:bottom], _responses(weight, bias, padded, top, bottom)[:, :, :, :-1]
        )
        for top, bottom in _chunks(hidden, padded.shape[2])
    ]
    return torch.cat(rows, 3) if rows else torch.zeros_like(hidden)


def _received(grad: Tensor, hidden: Tensor, top: int, bottom: int) -> Tensor:
    """Return (B * N * C, M + 1, rows, W): grad times each hidden map, and grad alone for the bias."""
    h = hidden[:, :, None, :, top:bottom]
    ones = h.new_ones(()).expand(*h.shape[:3], 1, *h.shape[4:])
    return (grad[:, None, :, None, top:bottom] * torch.cat([h, ones], 3)).flatten(0, 2)


def _kernel_gradient(grad: Tensor, hidden: Tensor, weight: Tensor, padded: Tensor) -> Tensor:
    """Return (k*k, M + 1), the bias last: a convolution with the batch as its channels."""
    side, maps = _side(weight), weight.shape[1]
    total = weight.new_zeros(maps + 1, 1, side, side)
    for top, bottom in _chunks(hidden, padded.shape[2]):
        window = padded[..., top : bottom + side - 1, :].flatten(0, 2).unsqueeze(1)
        received = _received(grad, hidden, top, bottom)
        total += F.conv2d(window.transpose(0, 1), received.transpose(0, 1)).transpose(0, 1)
    return total.flatten(1).t()


def _image_gradient(grad, hidden, weight, bias, images: Tensor, padding_mode: str) -> Tensor:
    radius = _side(weight) // 2
    height, width = images.shape[-2:]
    padded_grad = images.new_zeros(*images.shape[:3], height + 2 * radius, width + 2 * radius)
    for top, bottom in _chunks(hidden, images.shape[2]):
        back = F.conv_transpose2d(_received(grad, hidden, top, bottom), _kernels(weight, bias))
        padded_grad[..., top : bottom + 2 * radius, :] += back.squeeze(1).unflatten(0, images.shape[:3])
    return pad_adjoint(padded_grad, radius, padding_mode)


# --- registration with the dispatcher --------------------------------------------------------------------------------


def _flops(hidden, weight, bias, images, alphas) -> int:
    batch, count, channels, height, width = images
    return 2 * batch * count * channels * height * width * sum(w[0] * (w[1] + 1) + w[1] for w in weight)


_OPERATOR = LinearOperator(
    "predict_and_fuse",
    "(Tensor[] hidden, Tensor[] weight, Tensor[] bias, Tensor images, Tensor alphas, str padding_mode)",
    groups=[["hidden"], ["weight", "bias"], ["images"], ["alphas"]],
    vanishing={0: ["bias"]},
    axes={
        "hidden": (0, 1, None),
        "weight": (None, None, None),
        "bias": (None, None, None),
        "images": (0, 1, 2),
        "alphas": (None, None, None),
    },
    promote=lambda flat: [*promote_all(flat[:-1]), flat[-1]],
    flops=_flops,
)
# On GPUs only the backward pass is left to torch: its convolutions have the batch or the maps as channels, for which
# there are tuned kernels, and applications run the forward pass alone.
_triton = triton_kernel("predict_and_fuse", "forward"), _backward
_gpu_forward = None if _loader.cuda_missing is None else _triton[0] if has_triton() else _forward
register(
    _OPERATOR,
    reference=_forward,
    reference_backward=_backward,
    kernels={"CPU": (_forward, _backward), "CUDA": (_gpu_forward, _backward)},
    triton=_triton,
)

if why_not("predict_and_fuse", "cpu") is None:
    for _name in ("predict_and_fuse_level", "predict_and_fuse_level_backward"):
        refuse_derivatives(_name, "differentiate ffmef.ops.predict_and_fuse")

    @torch.library.register_fake("ffmef::predict_and_fuse_level", lib=library)
    def _(hidden: Tensor, kernels: Tensor, padded: Tensor) -> Tensor:
        return hidden.new_empty(hidden.shape[0], *hidden.shape[3:])

    @torch.library.register_fake("ffmef::predict_and_fuse_level_backward", lib=library)
    def _(grad: Tensor, hidden: Tensor, kernels: Tensor, padded: Tensor, need_hidden: bool, need_kernels: bool):
        bands = hidden.shape[0] * ((hidden.shape[3] + 31) // 32)  # as many as the kernels cut
        return (
            torch.empty_like(hidden) if need_hidden else hidden.new_empty(0),
            hidden.new_empty(bands, *kernels.shape) if need_kernels else hidden.new_empty(0),
        )
