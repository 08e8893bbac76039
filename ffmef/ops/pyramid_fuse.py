"""Fusion on a Laplacian pyramid with weights given on a coarse grid.

The function here documents and validates; kernels are in ``csrc/`` and ``ffmef/kernels/``. The operator is linear in
the images, and in weights and base together, so two dispatcher operators, forward and backward, give derivatives of
every order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ffmef import _loader
from ffmef.ops import reference
from ffmef.ops._backends import Kernels, check_backend, declare, has_triton
from ffmef.ops._linear import LinearOperator, promote_all, register, triton_kernel
from ffmef.ops._overrides import overridable
from ffmef.ops.adaptive_fuse import check_tensor
from ffmef.ops.library import autocasts, operator
from ffmef.ops.types import Backend

MAX_SCALE = 64


@overridable
def pyramid_fuse(
    images: Tensor, weights: Tensor, base: Tensor, *, scale: int = 8, backend: Backend | None = None
) -> Tensor:
    r"""Fuse images band by band on their Laplacian pyramids, with weights interpolated from a coarse grid.

    .. math::
        out_L = \sum_n U_{s/2^L}(base_n) \, G_{L,n}, \qquad
        out_l = U_2(out_{l+1}) + \sum_n U_{s/2^l}(w_{l,n}) \, \bigl(G_{l,n} - U_2(G_{l+1,n})\bigr), \qquad out = out_0

    :math:`G_{0,n}` is image n, :math:`G_{l+1}` the means of 2 x 2 pixels of :math:`G_l` (an odd border is repeated),
    and :math:`U_r` bilinear interpolation between pixel centres to an r times finer grid, constant beyond the outermost
    centres and cropped to the finer level's size. Where the weights are constant this is a filter spanned by a delta
    and tents of 2, 4, ... :math:`2^L` pixels, instead of F-Fusion's 1x1, 3x3 and 5x5 (FFMEF, CVPR workshops 2023,
    equation 4).

    Weights are not normalised. A base that sums to one over the images on the coarse grid does so at every pixel.

    Args:
        images: (B, N, C, H, W) or (B, N, H, W); float64, float32, float16 or bfloat16, any size, any strides.
        weights: (B, L, N, h, w) of the images' dtype and device with h = ceil(H / scale) and w = ceil(W / scale): one
            weight per band (finest first), image and cell. L may be 0.
        base: (B, N, h, w), like ``weights``, for the lowest level.
        scale: pixels along a side of a cell, a power of two from :math:`2^L` to 64.
        backend: "reference", "cpu", "triton" or "cuda"; None selects the fastest that can run the tensors, see
            :func:`ffmef.ops.backends`.

    Returns:
        (B, C, H, W), or (B, H, W) for images without channels; contiguous, in the images' dtype. Sums are kept in at
        least float32.

    Raises:
        TypeError: an argument is not a tensor, or its dtype is not one of the four.
        ValueError: sizes, dtypes or devices disagree; the message names the argument, the rule and the value.
        RuntimeError: ``backend`` cannot run here; the message says why.

    Note:
        Differentiable to any order in images, weights and base, in reverse and forward mode, under ``torch.vmap`` and
        all of ``torch.func``. Results and gradients are deterministic and do not depend on the number of threads.

    Example:
        The base of one image and the detail of another:

        >>> import torch
        >>> from ffmef.ops import pyramid_fuse
        >>> flat, stripes = torch.full((2, 8), 0.5), torch.tensor([0.0, 1.0]).repeat(2, 4)
        >>> weights = torch.tensor([0.0, 1.0]).view(1, 1, 2, 1, 1)
        >>> pyramid_fuse(torch.stack([flat, stripes])[None], weights, 1 - weights[:, 0])[0, 0]
        tensor([0., 1., 0., 1., 0., 1., 0., 1.])
    """
    if isinstance(scale, np.integer):
        scale = int(scale)
    images_5d, weights, base = _validate(images, weights, base, scale)
    check_backend("pyramid_fuse", backend, images=images)
    if backend == "reference":
        out = reference.pyramid_fuse(images_5d, weights, base, scale)
    else:
        name = "pyramid_fuse_triton" if backend == "triton" else "pyramid_fuse"
        out = operator(name)(images_5d, weights, base, scale)
    return out if images.dim() == 5 else out.squeeze(1)


def _validate(images: Tensor, weights: Tensor, base: Tensor, scale: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the arguments as the dispatcher takes them, or raise."""
    tensors = {"images": images, "weights": weights, "base": base}
    for name, value in tensors.items():
        check_tensor(name, value)
    if images.dim() not in (4, 5):
        raise ValueError(f"images must be (B, N, C, H, W) or (B, N, H, W), got shape {tuple(images.shape)}")
    if autocasts(images.device):
        images, weights, base = promote_all([images, weights, base])
    for name, value in (("weights", weights), ("base", base)):
        if value.dtype != images.dtype:
            raise ValueError(f"{name} must be {str(images.dtype)[6:]} like images, got {str(value.dtype)[6:]}")
        if value.device != images.device:
            raise ValueError(f"{name} must be on {images.device} like images, got {value.device}")
    if images.dim() == 4:
        images = images.unsqueeze(2)
    batch, count, channels, height, width = images.shape
    if count < 1 or channels < 1 or height < 1 or width < 1:  # min() would make exported graphs compare the sizes
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


# --- registration with the dispatcher --------------------------------------------------------------------------------


def _flops(images: Sequence[int], weights: Sequence[int], base: Sequence[int]) -> int:
    # For each value of the pyramid: four products to interpolate, four to build it, and two to weight and to add.
    return 10 * sum(
        images[0] * images[1] * images[2] * h * w for h, w in reference.pyramid_sizes(images[3], images[4], weights[1])
    )


_OPERATOR = LinearOperator(
    "pyramid_fuse",
    "(Tensor images, Tensor weights, Tensor base, int scale)",
    groups=[["images"], ["weights", "base"]],
    axes={"images": (0, 1, 2), "weights": (0, 2, None), "base": (0, 1, None)},
    promote=promote_all,
    flops=_flops,
)
_triton = triton_kernel("pyramid_fuse", "forward"), triton_kernel("pyramid_fuse", "backward")
declare("pyramid_fuse", reference=Kernels(), cpu=Kernels("pyramid_fuse"), triton=Kernels(), cuda=Kernels())
register(
    _OPERATOR,
    reference=reference.pyramid_fuse,
    reference_backward=reference.pyramid_fuse_backward,
    kernels={"CUDA": _triton} if _loader.cuda_missing is not None and has_triton() else {},
    triton=_triton,
)
