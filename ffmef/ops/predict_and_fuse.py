"""The last 1x1 convolution of a prediction head and F-Fusion in one step, without the filters between them.

Both are linear, so the filters can be summed away: what remains is a convolution of the images with one output for each
hidden map, which is recomputed backwards instead of being stored. On the CPU native kernels compute both directions,
on GPUs
one computes the forward pass. Elsewhere torch does, a few rows at a time; on GPUs that is no loss backwards: its
convolutions
have the batch or the maps as channels, for which torch has tuned kernels, and the forward pass alone is what an
application waits for.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ffmef import _loader
from ffmef.ops._overrides import overridable
from ffmef.ops.adaptive_fuse import DTYPES, MAX_FILTER_SIZE, PADDING_MODES
from ffmef.ops.library import carries_tangent, define, implement, library, native_missing, operator
from ffmef.ops.reference import accumulator, pad
from ffmef.ops.selection import check_backend
from ffmef.ops.types import Backend, PaddingMode

_SCHEMA = "(Tensor[] hidden, Tensor[] weight, Tensor[] bias, Tensor images, Tensor alphas, str padding_mode) -> Tensor"

NATIVE_SIZES = (1, 3, 5, 7)
_missing = native_missing("predict_and_fuse_level")

# Values of all hidden maps' responses that exist at a time.
_CHUNK_VALUES = 1 << 20


@overridable
def predict_and_fuse(
    hidden: Sequence[Tensor],
    weight: Sequence[Tensor],
    bias: Sequence[Tensor],
    images: Tensor,
    alphas: Tensor | Sequence[float] | None = None,
    *,
    padding_mode: PaddingMode = "zeros",
    backend: Backend | None = None,
) -> Tensor:
    r"""Predict filters from hidden maps by a 1x1 convolution and fuse the images by them, without storing filters.

    .. math::
        out[b,c,y,x] = \sum_l \alpha_l \sum_n \sum_j \Big(\sum_i w_l[j,i]\, h_l[b,n,i,y,x] + b_l[j]\Big)\,
        I_j[b,n,c,y,x]
                     = \sum_l \alpha_l \sum_n \Big(\sum_i h_l[b,n,i,y,x] \sum_j w_l[j,i]\, I_j + \sum_j b_l[j]\,
                     I_j\Big)

    with :math:`I_j` the images moved by tap j. The same as :func:`ffmef.ops.adaptive_fuse` (equation 4 of FFMEF, CVPR
    workshops 2023) of ``conv2d(hidden, weight, bias)``, in less memory: neither pass holds the k*k filters, and the
    backward pass computes again what it needs.

    Args:
        hidden: L tensors (B, N, M, H, W), the input of each level's last convolution; float32 or float64, on GPUs also
            float16 or bfloat16, which are summed in float32.
        weight: L tensors (k*k, M) or (k*k, M, 1, 1), taps row-major, k odd.
        bias: L tensors (k*k,).
        images: (B, N, C, H, W) or (B, N, H, W).
        alphas: (L,) weights of the levels; ones where None.
        padding_mode: "zeros", "replicate" or "reflect", as in :func:`ffmef.ops.adaptive_fuse`.
        backend: "reference" (torch's convolutions, anywhere), "cpu" (float32 images of one channel, k up to 7),
            "triton" or "cuda"; None takes the fastest that can run the tensors.

    Returns:
        (B, C, H, W), or (B, H, W) for images without channels.

    Raises:
        ValueError: sizes, dtypes or devices disagree; the message names the argument, the rule and the value.
        RuntimeError: ``backend`` cannot run here; the message says why.

    Note:
        Differentiable to any order in every tensor; derivatives are the reference's on every backend, but the first
        of "cpu", whose
        bits do not depend on the number of threads. Under autocast, tensors are promoted to the widest of their dtypes.

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
    hidden, weight, bias = list(hidden), [w.flatten(1) for w in weight], list(bias)
    dtype = images.dtype
    if torch.is_autocast_enabled(images.device.type):
        for tensor in (*hidden, *weight, *bias):
            dtype = torch.promote_types(dtype, tensor.dtype)
        hidden, weight, bias = ([t.to(dtype) for t in tensors] for tensors in (hidden, weight, bias))
    images_5d = (images if images.dim() == 5 else images.unsqueeze(2)).to(dtype)
    if alphas is None or not isinstance(alphas, Tensor):
        values = [1.0] * len(hidden) if alphas is None else list(alphas)
        alphas = torch.tensor(values, dtype=accumulator(dtype), device=images.device)
    _check(hidden, weight, bias, images, images_5d, alphas, padding_mode)
    run = _kernel(backend, images_5d, hidden, weight, bias, alphas)
    with torch.autocast(images.device.type, enabled=False):
        if run is None:
            out = _composed(hidden, weight, bias, images_5d, alphas, padding_mode, native=backend != "reference")
        elif not torch.is_grad_enabled():
            out = run(hidden, weight, bias, images_5d, alphas, padding_mode)
        else:
            out = _ByKernel.apply(run, padding_mode, len(hidden), *hidden, *weight, *bias, images_5d, alphas)
    return out if images.dim() == 5 else out.squeeze(1)


def _kernel(backend: str | None, images: Tensor, hidden, weight, bias, alphas: Tensor):
    """Return the operator that runs this call, or None where torch's convolutions do."""
    check_backend(backend, images.device)
    if backend == "cpu":
        for h, w in zip(hidden, weight, strict=True):
            if (reason := not_native(h, _side(w), images.shape[2])) is not None:
                raise RuntimeError(f"backend 'cpu' is not available: {reason}")
    if backend in ("cpu", "reference") or (backend is None and (images.device.type != "cuda" or not _has_gpu_kernel())):
        return None
    if images.dtype not in DTYPES:
        raise ValueError(f"images must be float64, float32, float16 or bfloat16 on GPUs, got {str(images.dtype)[6:]}")
    if carries_tangent(images, *hidden, *weight, *bias, alphas):
        raise NotImplementedError("predict_and_fuse has forward-mode derivatives with backend 'reference' only")
    return operator("predict_and_fuse_triton" if backend == "triton" else "predict_and_fuse")


def _has_gpu_kernel() -> bool:
    return _loader.cuda_missing is None or importlib.util.find_spec("triton") is not None


def not_native(hidden: Tensor, side: int, channels: int) -> str | None:
    """Return why the native CPU kernels cannot run a level, or None."""
    if _missing is not None:
        return _missing
    if hidden.device.type != "cpu" or hidden.dtype != torch.float32:
        return f"hidden must be float32 on the CPU, got {str(hidden.dtype)[6:]} on {hidden.device}"
    if channels != 1:
        return f"images must have one channel, got {channels}"
    return None if side in NATIVE_SIZES else f"k must be one of {NATIVE_SIZES}, got {side}"


def _composed(hidden, weight, bias, images: Tensor, alphas: Tensor, padding_mode: str, native: bool = True) -> Tensor:
    out = None
    for h, w, b, alpha in zip(hidden, weight, bias, alphas.to(images.dtype).unbind(), strict=True):
        run_native = native and not_native(h, _side(w), images.shape[2]) is None
        level = alpha * _PredictAndFuse.apply(h, w, b, pad(images, _side(w) // 2, padding_mode), run_native)
        out = level if out is None else out + level
    return out


class _ByKernel(torch.autograd.Function):
    """A kernel's forward pass; derivatives of every order are those of the same sum composed of torch's operators."""

    @staticmethod
    def forward(ctx, run, padding_mode: str, levels: int, *tensors: Tensor) -> Tensor:
        ctx.padding_mode, ctx.levels = padding_mode, levels
        ctx.save_for_backward(*tensors)
        return run(*_ByKernel.arguments(tensors, levels), padding_mode)

    @staticmethod
    def arguments(tensors: Sequence[Tensor], levels: int) -> tuple:
        lists = [list(tensors[first : first + levels]) for first in (0, levels, 2 * levels)]
        return (*lists, *tensors[3 * levels :])

    @staticmethod
    def backward(ctx, grad: Tensor):
        tensors, again = ctx.saved_tensors, torch.is_grad_enabled()
        needed = ctx.needs_input_grad[3:]
        with torch.enable_grad():
            # Aliases, so that one tensor given twice has two gradients.
            leaves = [
                t.view_as(t) if again else t.detach().requires_grad_(n) for t, n in zip(tensors, needed, strict=True)
            ]
            out = _composed(*_ByKernel.arguments(leaves, ctx.levels), ctx.padding_mode)
        wanted = [leaf for leaf, n in zip(leaves, needed, strict=True) if n]
        found = iter(torch.autograd.grad(out, wanted, grad, create_graph=again))
        return None, None, None, *(next(found) if n else None for n in needed)


def _side(weight: Tensor) -> int:
    return round(weight.shape[0] ** 0.5)


def _check(hidden, weight, bias, images, images_5d, alphas, padding_mode) -> None:
    if images.dim() not in (4, 5):
        raise ValueError(f"images must be (B, N, C, H, W) or (B, N, H, W), got shape {tuple(images.shape)}")
    if not images.dtype.is_floating_point:
        raise ValueError(f"images must be of a floating dtype, got {str(images.dtype)[6:]}")
    if padding_mode not in PADDING_MODES:
        raise ValueError(f"padding_mode must be one of {', '.join(PADDING_MODES)}, got {padding_mode!r}")
    if not hidden:
        raise ValueError("hidden must have at least one level, got none")
    for name, levels in (("weight", weight), ("bias", bias)):
        if len(levels) != len(hidden):
            raise ValueError(f"{name} must have {len(hidden)} levels like hidden, got {len(levels)}")
    if tuple(alphas.shape) != (len(hidden),):
        raise ValueError(f"alphas must be ({len(hidden)},), one weight for each level, got shape {tuple(alphas.shape)}")
    batch, count, _, height, width = images_5d.shape
    for l, (h, w, b) in enumerate(zip(hidden, weight, bias, strict=True)):
        if h.dim() != 5 or (*h.shape[:2], *h.shape[3:]) != (batch, count, height, width):
            raise ValueError(
                f"hidden[{l}] must be ({batch}, {count}, M, {height}, {width}) like images, got shape {tuple(h.shape)}"
            )
        side = _side(w)
        if side * side != w.shape[0] or side % 2 == 0 or side > MAX_FILTER_SIZE:
            raise ValueError(
                f"weight[{l}] must have k*k rows with k odd and at most {MAX_FILTER_SIZE}, got {w.shape[0]}"
            )
        if w.dim() != 2 or w.shape[1] != h.shape[2]:
            raise ValueError(
                f"weight[{l}] must have {h.shape[2]} columns like hidden's maps, got shape {tuple(w.shape)}"
            )
        if tuple(b.shape) != (w.shape[0],):
            raise ValueError(f"bias[{l}] must be ({w.shape[0]},) like weight's rows, got shape {tuple(b.shape)}")
        for name, tensor in (("hidden", h), ("weight", w), ("bias", b)):
            if tensor.dtype != images_5d.dtype or tensor.device != images.device:
                raise ValueError(
                    f"{name}[{l}] must be {str(images_5d.dtype)[6:]} on {images.device} like images, "
                    f"got {str(tensor.dtype)[6:]} on {tensor.device}"
                )


def _chunks(hidden: Tensor, channels: int):
    """Yield (first row, one past the last) of pieces whose responses fit in the allowance."""
    batch, count, maps, height, width = hidden.shape
    rows = max(_CHUNK_VALUES // max(batch * count * (maps + 1) * channels * width, 1), 8)
    for top in range(0, height, rows):
        yield top, min(top + rows, height)


def _responses(weight: Tensor, bias: Tensor, padded: Tensor, top: int, bottom: int) -> Tensor:
    """Return (B, N, C, M + 1, rows, W): the images' convolution that each hidden map is multiplied by, bias last."""
    window = padded[..., top : bottom + _side(weight) - 1, :]
    return F.conv2d(window.flatten(0, 2).unsqueeze(1), _kernels(weight, bias)).unflatten(0, padded.shape[:3])


def _kernels(weight: Tensor, bias: Tensor) -> Tensor:
    """Return (M + 1, 1, k, k): what the images are convolved with for each hidden map, and for the bias."""
    side = _side(weight)
    return torch.cat([weight, bias[:, None]], 1).t().reshape(-1, 1, side, side)


class _PredictAndFuse(torch.autograd.Function):
    """One level, alpha 1, images padded already. The backward pass is made of differentiable steps, hence any order."""

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, bias: Tensor, padded: Tensor, native: bool) -> Tensor:
        ctx.native = native
        if native:
            hidden, padded = hidden.contiguous(), padded.contiguous()
        ctx.save_for_backward(hidden, weight, bias, padded)
        if native:
            return operator("predict_and_fuse_level")(
                hidden, _kernels(weight, bias).squeeze(1).contiguous(), padded.squeeze(2)
            ).unsqueeze(1)
        rows = []
        for top, bottom in _chunks(hidden, padded.shape[2]):
            responses = _responses(weight, bias, padded, top, bottom)
            fused = torch.einsum("bnihw,bncihw->bchw", hidden[..., top:bottom, :], responses[:, :, :, :-1])
            rows.append(fused + responses[:, :, :, -1].sum(1))
        return torch.cat(rows, 2) if rows else hidden.new_zeros(hidden.shape[0], padded.shape[2], *hidden.shape[3:])

    @staticmethod
    def backward(ctx, grad: Tensor):
        hidden, weight, bias, padded = ctx.saved_tensors
        need_hidden, need_weight, need_bias, need_padded, _ = ctx.needs_input_grad
        # A second derivative goes through torch's operators, and so does the images' own.
        if ctx.native and not need_padded and not torch.is_grad_enabled():
            hidden_grad, shares = operator("predict_and_fuse_level_backward")(
                grad.squeeze(1).contiguous(), hidden, _kernels(weight, bias).squeeze(1).contiguous(), padded.squeeze(2),
                need_hidden,
                need_weight or need_bias,
            )  # fmt: skip
            kernel_grad = shares.sum(0).flatten(1).t() if need_weight or need_bias else None
            return (
                hidden_grad if need_hidden else None,
                kernel_grad[:, :-1] if need_weight else None,
                kernel_grad[:, -1] if need_bias else None,
                None,
                None,
            )
        side, maps = _side(weight), weight.shape[1]
        hidden_rows = []
        kernel_grad = weight.new_zeros(maps + 1, 1, side, side)
        padded_grad = torch.zeros_like(padded) if need_padded else None
        for top, bottom in _chunks(hidden, padded.shape[2]):
            g = grad[:, None, :, None, top:bottom]  # (B, 1, C, 1, rows, W)
            if need_hidden:
                responses = _responses(weight, bias, padded, top, bottom)[:, :, :, :-1]
                hidden_rows.append(torch.einsum("bchw,bncihw->bnihw", grad[:, :, top:bottom], responses))
            if not (need_weight or need_bias or need_padded):
                continue
            # What each response receives: grad times its hidden map, and grad alone for the bias.
            h = hidden[:, :, None, :, top:bottom]
            ones = h.new_ones(()).expand(*h.shape[:3], 1, *h.shape[4:])
            received = (g * torch.cat([h, ones], 3)).flatten(0, 2)
            window = padded[..., top : bottom + side - 1, :].flatten(0, 2).unsqueeze(1)
            if need_weight or need_bias:
                # The convolution's weight gradient, itself a convolution with the batch as its channels.
                kernel_grad = kernel_grad + F.conv2d(window.transpose(0, 1), received.transpose(0, 1)).transpose(0, 1)
            if need_padded:
                back = F.conv_transpose2d(received, _kernels(weight, bias)).squeeze(1).unflatten(0, padded.shape[:3])
                padded_grad = padded_grad + F.pad(back, (0, 0, top, padded.shape[3] - bottom - side + 1))
        hidden_grad = None
        if need_hidden:
            hidden_grad = torch.cat(hidden_rows, 3) if hidden_rows else torch.zeros_like(hidden)
        kernel_grad = kernel_grad.flatten(1).t()
        return (
            hidden_grad,
            kernel_grad[:, :-1] if need_weight else None,
            kernel_grad[:, -1] if need_bias else None,
            padded_grad,
            None,
        )


def _fake(hidden, weight, bias, images, alphas, padding_mode):
    return images.new_empty(images.shape[:1] + images.shape[2:])


def _triton(*arguments):
    # Imported at the first call: importing triton takes longer than importing ffmef.
    from ffmef.kernels import predict_and_fuse as kernels

    return kernels.forward(*arguments)


def _no_gradient(ctx, grad):
    raise RuntimeError("this form of predict_and_fuse has no gradient; ffmef.ops.predict_and_fuse has")


if _missing is None:

    @torch.library.register_fake("ffmef::predict_and_fuse_level")
    def _(hidden: Tensor, kernels: Tensor, padded: Tensor) -> Tensor:
        return hidden.new_empty(hidden.shape[0], *hidden.shape[3:])

    @torch.library.register_fake("ffmef::predict_and_fuse_level_backward")
    def _(grad: Tensor, hidden: Tensor, kernels: Tensor, padded: Tensor, need_hidden: bool, need_kernels: bool):
        bands = hidden.shape[0] * ((hidden.shape[3] + 31) // 32)  # as many as the kernels cut
        return (
            torch.empty_like(hidden) if need_hidden else hidden.new_empty(0),
            hidden.new_empty(bands, *kernels.shape) if need_kernels else hidden.new_empty(0),
        )


define("predict_and_fuse" + _SCHEMA)
library.define("predict_and_fuse_triton" + _SCHEMA)
implement("predict_and_fuse", _composed, "CPU")
if _loader.cuda_missing is not None:
    implement("predict_and_fuse", _triton, "CUDA")
for _key in ("CPU", "CUDA"):
    implement("predict_and_fuse_triton", _triton, _key)
for _name in ("predict_and_fuse", "predict_and_fuse_triton"):
    torch.library.register_fake(f"ffmef::{_name}", _fake, lib=library)
    torch.library.register_autograd(f"ffmef::{_name}", _no_gradient, lib=library)
