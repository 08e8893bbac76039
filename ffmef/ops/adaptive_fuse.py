"""Spatially varying filtering of several images at several filter sizes, and its alpha-weighted sum, in one operator.

The function here documents and validates; kernels are in ``csrc/`` and ``ffmef/kernels/``. The operator is linear in
each of images, filters and alphas, so two dispatcher operators, forward and backward, give derivatives of every order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn

from ffmef import _loader
from ffmef.ops import reference
from ffmef.ops._backends import Kernels, check_backend, declare, has_triton
from ffmef.ops._linear import LinearOperator, promote_all, register, triton_kernel
from ffmef.ops._overrides import overridable
from ffmef.ops.library import PLAIN_TYPES, autocasts, call, library, operator, refuse_derivatives
from ffmef.ops.types import Backend, PaddingMode

PADDING_MODES: tuple[str, ...] = get_args(PaddingMode)
MAX_FILTER_SIZE = 31
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_UNORDERED = (str, bytes, bytearray, memoryview, set, frozenset, Mapping, nn.ParameterDict, nn.ModuleDict)  # and texts
_NUMBERS = (int, float, torch.SymInt, torch.SymFloat)
_REAL = (*_NUMBERS, Tensor)
_SIDES = {k * k: k for k in range(1, MAX_FILTER_SIZE + 1, 2)}


@overridable
def adaptive_fuse(
    images: Tensor,
    filters: Sequence[Tensor],
    alphas: Tensor | Iterable[float | Tensor] | None = None,
    *,
    padding_mode: PaddingMode = "zeros",
    backend: Backend | None = None,
) -> Tensor:
    r"""Filter every image with its own filter at every pixel, at several filter sizes, and sum.

    .. math::
        out[b,c,y,x] = \sum_l \alpha_l \sum_n \sum_{(i,j)} f_l[b,n,i k_l + j,y,x]
                       \; I[b,n,c,y+i-r_l,x+j-r_l], \qquad r_l = (k_l - 1) / 2

    This is F-Fusion, equation 4 of FFMEF (CVPR workshops 2023), for any number of images, channels and levels. It
    equals unfolding each image, multiplying and summing, without the k*k copies.

    Filters of a level may be given on a coarser grid, (B, N, k*k, h, w) with h <= H and w <= W: :math:`f_l` is then
    what ``F.interpolate(filters, (H, W), mode="bilinear", align_corners=False)`` returns. The kernels interpolate row
    by row, and full-resolution filters never exist. The grid spans the image; where h divides H and w
    divides W, a cell is a block of pixels as in :func:`ffmef.ops.pyramid_fuse`.

    Args:
        images: (B, N, C, H, W) or (B, N, H, W); float64, float32, float16 or bfloat16, any strides.
        filters: L tensors (B, N, k*k, H, W) on the images' device, or (B, N, k*k, h, w) on a coarser grid, each
            level independently; k odd, 1 to 31, taps in row-major order. Each may have a dtype other than the images'
            (float64 only if all are). Strides are free; channels_last gives the same bits about as fast.
            Filters are not normalised.
        alphas: (L,) weights of the levels: a tensor of any floating dtype, or numbers or one-element tensors (an
            ``nn.ParameterList``, say); None means ones.
        padding_mode: what lies outside an image: "zeros", "replicate" (its nearest pixel), "reflect" (mirrored without
            repeating the border) or "circular" (the opposite side). Filters may be larger than the image: reflection
            then bounces and circular padding wraps repeatedly.
        backend: "reference", "cpu", "triton" or "cuda"; None selects the fastest that can run the tensors, see
            :func:`ffmef.ops.backends`.

    Returns:
        (B, C, H, W), or (B, H, W) for images without channels; contiguous, in the widest dtype among images and
        filters. Values are read as they are; products and sums are kept in float32 (float64 for float64) and rounded
        once at the end. Each gradient is likewise rounded once, to the dtype of its tensor.

    Raises:
        TypeError: an argument is not a tensor, or its dtype is not one of the four.
        ValueError: sizes, dtypes or devices disagree; the message names the argument, the rule and the value.
        RuntimeError: ``backend`` cannot run here; the message says why.

    Note:
        Differentiable to any order in images, filters and alphas, in reverse and forward mode, under ``torch.vmap``
        and all of ``torch.func``. Results and gradients are deterministic and do not depend on the number of threads;
        gradients of coarse filters gather each cell's contributions from all pixels. Autocast casts nothing: bfloat16
        filters with float32 images are read without conversion.

    Example:
        A filter whose only non-zero tap, a one, is the left one moves the image to the right:

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
    filters = as_list("filters", filters)
    if _is_usual(images, filters, alphas, padding_mode):
        images_5d, weights = images, cast(Tensor, alphas)
    else:
        images_5d, filters, weights = _validate(images, filters, alphas, padding_mode)
    check_backend("adaptive_fuse", backend, images=images)
    if backend == "reference":
        out = reference.adaptive_fuse(images_5d, filters, weights, padding_mode)
    else:
        name = "adaptive_fuse_triton" if backend == "triton" else "adaptive_fuse"
        tensors = [images_5d, *filters, weights]
        out = call(operator(name), tensors, images_5d, filters, weights, padding_mode)
    return out if images.dim() == 5 else out.squeeze(1)


def as_list(name: str, levels: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors of all levels as the dispatcher takes them."""
    if isinstance(levels, Tensor):
        raise TypeError(f"{name} must be a sequence of tensors, one for each level, got one tensor")
    if isinstance(levels, _UNORDERED):
        raise TypeError(f"{name} must be a sequence of tensors, got {type(levels).__name__}")
    try:
        return list(levels)
    except TypeError:
        raise TypeError(f"{name} must be a sequence of tensors, got {type(levels).__name__}") from None


def as_alphas(alphas: Tensor | Iterable[float | Tensor] | None, levels: int, like: Tensor) -> Tensor:
    """Return the weights of the levels as one tensor, through which gradients reach every part."""
    dtype, rule = reference.accumulator(like.dtype), "alphas must be a tensor or a sequence of numbers or tensors"
    if isinstance(alphas, Tensor):
        return alphas
    if alphas is None:
        return torch.ones(levels, dtype=dtype, device=like.device)
    if isinstance(alphas, _UNORDERED):
        raise TypeError(f"{rule}, got {type(alphas).__name__}")
    if isinstance(alphas, np.ndarray) and (given := _of_array(alphas)) is not None:
        if given.is_complex():
            raise TypeError(f"alphas must be real, got {str(given.dtype)[6:]}")
        return given.to(device=like.device, dtype=dtype)
    try:
        values = list(alphas)
    except TypeError:
        raise TypeError(f"{rule}, got {type(alphas).__name__}") from None
    if all(isinstance(value, _NUMBERS) for value in values):
        try:
            return torch.tensor(values, dtype=dtype, device=like.device)
        except (OverflowError, RuntimeError):
            pass
    return _stacked(values, dtype, like)  # which names the value


def _of_array(values: np.ndarray) -> Tensor | None:
    """Return an array of numbers as a tensor, or None for an array of anything else."""
    try:
        return torch.tensor(np.ascontiguousarray(values))
    except TypeError:
        return None


def _stacked(values: list[float | Tensor], dtype: torch.dtype, like: Tensor) -> Tensor:
    parts = []
    for index, value in enumerate(values):
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(f"alphas[{index}] must be one number, got a tensor of shape {tuple(value.shape)}")
        if isinstance(value, Tensor) and value.device != like.device:
            raise ValueError(f"alphas[{index}] must be on {like.device} like images, got {value.device}")
        if isinstance(value, Tensor) and value.is_complex():
            raise TypeError(f"alphas[{index}] must be real, got {str(value.dtype)[6:]}")
        try:
            if isinstance(value, (str, bytes, bytearray)) or not (isinstance(value, _REAL) or value.imag == 0):
                raise TypeError
            part = value if isinstance(value, Tensor) else torch.tensor(float(value), dtype=dtype, device=like.device)
        except (TypeError, ValueError, OverflowError, AttributeError):
            raise TypeError(f"alphas[{index}] must be a number or a tensor, got {type(value).__name__}") from None
        parts.append(part.to(dtype).reshape(()))
    return torch.stack(parts)


def check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.dtype not in DTYPES:
        raise TypeError(f"{name} must be float64, float32, float16 or bfloat16, got {str(value.dtype)[6:]}")
    if value.layout != torch.strided or value.is_nested:
        layout = "a nested tensor" if value.is_nested else str(value.layout)[6:].removeprefix("_")
        raise TypeError(f"{name} must be dense, got {layout}")


def _is_usual(images: Tensor, filters: list[Tensor], alphas: Any, padding_mode: str) -> bool:
    """Return whether a call of plain tensors surely passes :func:`_validate` as it is, at a third of its cost."""
    if (
        torch.compiler.is_compiling()  # compilers should guard on as little as possible
        or torch._C._get_tracing_state() is not None
        or type(images) not in PLAIN_TYPES
        or images.is_nested  # whose other attributes raise
        or type(alphas) not in PLAIN_TYPES
        or alphas.is_nested
        or padding_mode not in PADDING_MODES
    ):
        return False
    shape, dtype, device = images.shape, images.dtype, images.device
    if len(shape) != 5 or dtype not in DTYPES or images.layout is not torch.strided or not filters:
        return False
    batch, count, _, height, width = shape
    for level in filters:
        if type(level) not in PLAIN_TYPES or level.is_nested:
            return False
        sizes = level.shape
        if (
            len(sizes) != 5
            or sizes[0] != batch
            or sizes[1] != count
            or sizes[2] not in _SIDES
            or sizes[3] != height
            or sizes[4] != width
            or level.dtype is not dtype
            or level.device != device
            or level.layout is not torch.strided
        ):
            return False
    return (
        count > 0
        and alphas.dim() == 1
        and len(alphas) == len(filters)
        and alphas.dtype in DTYPES
        and alphas.device == device
        and alphas.layout is torch.strided
        and not autocasts(device)
    )


def _validate(
    images: Tensor, filters: list[Tensor], alphas: Tensor | Iterable[float | Tensor] | None, padding_mode: str
) -> tuple[Tensor, list[Tensor], Tensor]:
    """Return images with channels, filters and alphas as the dispatcher takes them, or raise."""
    check_tensor("images", images)
    if images.dim() not in (4, 5):
        raise ValueError(f"images must be (B, N, C, H, W) or (B, N, H, W), got shape {tuple(images.shape)}")
    if not filters:
        raise ValueError("filters must have at least one level, got none")
    if padding_mode not in PADDING_MODES:
        raise ValueError(f"padding_mode must be one of {', '.join(PADDING_MODES)}, got {padding_mode!r}")
    for index, level in enumerate(filters):
        check_tensor(f"filters[{index}]", level)
    if autocasts(images.device):
        images, *filters = _promoted([images, *filters])
    if images.dim() == 4:
        images = images.unsqueeze(2)
    batch, count, _, height, width = images.shape
    if count < 1:
        raise ValueError("images must hold at least one image, got N = 0")
    for index, level in enumerate(filters):
        name = f"filters[{index}]"
        if level.dim() != 5:
            advice = "; one filter per channel: move the channels into the batch" if level.dim() == 6 else ""
            raise ValueError(f"{name} must be (B, N, k*k, H, W), got shape {tuple(level.shape)}{advice}")
        if level.shape[0] != batch:
            raise ValueError(f"{name} must have batch size {batch} like images, got {level.shape[0]}")
        if level.shape[1] != count:
            raise ValueError(f"{name} must have {count} images like images, got {level.shape[1]}")
        if not any(level.shape[2] == taps for taps in _SIDES):
            fits = 0 < level.shape[2] < MAX_FILTER_SIZE**2
            raise ValueError(
                f"{name} must have k*k taps with k odd and at most {MAX_FILTER_SIZE}, got {level.shape[2]}"
                + ("; other shapes fit into such a square with taps of zero" if fits else "")
            )
        if not (_fits(level.shape[3], height) and _fits(level.shape[4], width)):
            raise ValueError(
                f"{name} must have height and width {height} x {width} like images, "
                "or of a coarser grid of at least 1 x 1, "
                f"got {level.shape[3]} x {level.shape[4]}"
            )
        if (level.dtype == torch.float64) != (images.dtype == torch.float64):
            allowed = "float64 like images" if images.dtype == torch.float64 else "float32, float16 or bfloat16"
            raise ValueError(f"{name} must be {allowed}, got {str(level.dtype)[6:]}")
        if level.device != images.device:
            raise ValueError(f"{name} must be on {images.device} like images, got {level.device}")
    alphas = as_alphas(alphas, len(filters), images)
    check_tensor("alphas", alphas)
    if alphas.dim() != 1 or alphas.shape[0] != len(filters):
        raise ValueError(
            f"alphas must be ({len(filters)},), one weight for each level, got shape {tuple(alphas.shape)}"
        )
    if alphas.device != images.device:
        raise ValueError(f"alphas must be on {images.device} like images, got {alphas.device}")
    return images, filters, alphas


def _fits(cells: int, pixels: int) -> bool:
    if torch.compiler.is_exporting() and (torch.compiler.is_dynamo_compiling() or not _is_known(cells, pixels)):
        return True  # torch.export cannot prove that H // 4 <= H for every H; the exported operator checks its tensors
    # In this form compilers guard on one inequality, the same for full resolution and every coarser grid.
    return cells <= pixels and (cells >= 1 or pixels == 0)


def _is_known(*sizes: int) -> bool:
    return all(isinstance(size, int) for size in sizes)


# --- registration with the dispatcher --------------------------------------------------------------------------------


def _promoted(tensors: list[Tensor]) -> list[Tensor]:
    """Cast tensors that autocast mixes to one dtype, where the kernels cannot read them as they are."""
    return promote_all(tensors) if any(t.dtype == torch.float64 for t in tensors) else tensors


def _promote(flat: list[Tensor]) -> list[Tensor]:
    *tensors, alphas = flat
    return [*_promoted(tensors), alphas]


def _keep_responses(flat: Sequence[Tensor], ends: Sequence[int], options: tuple[str], needs: Sequence[bool]):
    """Keep each level's sum, (L, B, C, H, W), where the alphas' gradient would have to read all filters again."""
    images, *filters, alphas = flat
    if not needs[-1] or not _KEEPS or images.device.type != "cpu":
        return None
    return operator("adaptive_fuse_responses")(images, filters, alphas, *options)


def _alphas_gradient(grad: Tensor, responses: Tensor, flat: Sequence[Tensor]) -> dict[int, Tensor]:
    return {len(flat) - 1: (responses * grad).sum((1, 2, 3, 4)).to(flat[-1].dtype)}


def _kept_backward(grad: Tensor, responses: Tensor, flat: Sequence[Tensor], options: tuple[str], needs: Sequence[bool]):
    images, *filters, alphas = flat
    need_images, *of_filters, need_alphas = needs
    need_filters = [int(need) for need in of_filters]
    run = operator("adaptive_fuse_responses_backward")
    return run(grad, responses, images, filters, alphas, *options, need_images, need_filters, need_alphas)


def _flops(images: Sequence[int], filters: Sequence[Sequence[int]], alphas: Sequence[int]) -> int:
    batch, count, channels, height, width = images
    return 2 * batch * count * channels * height * width * sum(level[2] for level in filters)


# An older library lacks the second.
_KEEPS = _loader.cpu_missing is None and hasattr(torch.ops.ffmef, "adaptive_fuse_responses_backward")
_OPERATOR = LinearOperator(
    "adaptive_fuse",
    "(Tensor images, Tensor[] filters, Tensor alphas, str padding_mode)",
    groups=[["images"], ["filters"], ["alphas"]],
    axes={"images": (0, 1, 2), "filters": (0, 1, None), "alphas": (None, None, None)},
    promote=_promote,
    keep=_keep_responses,
    from_kept=_alphas_gradient,
    kept_backward=_kept_backward,
    flops=_flops,
)
_triton = triton_kernel("adaptive_fuse", "forward"), triton_kernel("adaptive_fuse", "backward")
declare("adaptive_fuse", reference=Kernels(), cpu=Kernels("adaptive_fuse"), triton=Kernels(), cuda=Kernels())
register(
    _OPERATOR,
    reference=reference.adaptive_fuse,
    reference_backward=reference.adaptive_fuse_backward,
    kernels={"CUDA": _triton} if _loader.cuda_missing is not None and has_triton() else {},
    triton=_triton,
)
if _KEEPS:
    for _name in ("adaptive_fuse_responses", "adaptive_fuse_responses_backward"):
        refuse_derivatives(_name, "differentiate ffmef.ops.adaptive_fuse")

    @torch.library.register_fake("ffmef::adaptive_fuse_responses", lib=library)
    def _(images, filters, alphas, padding_mode):
        dtype = reference.promoted_dtype(images, *filters)
        out = images.new_empty(images.shape[:1] + images.shape[2:], dtype=dtype)
        return out, out.new_empty((len(filters), *out.shape), dtype=reference.accumulator(dtype))

    @torch.library.register_fake("ffmef::adaptive_fuse_responses_backward", lib=library)
    def _(grad, responses, images, filters, alphas, padding_mode, need_images, need_filters, need_alphas):
        tensors, needs = [images, *filters, alphas], [need_images, *need_filters, need_alphas]
        return [t.new_empty(t.shape if n else (0,)) for t, n in zip(tensors, needs, strict=True)]
