"""The operators as torch modules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ffmef.ops import adaptive_fuse
from ffmef.ops._backends import check_name
from ffmef.ops.adaptive_fuse import MAX_FILTER_SIZE, PADDING_MODES
from ffmef.ops.types import Backend, PaddingMode

__all__ = ["AdaptiveFuse", "initial_alphas"]


def initial_alphas(
    levels: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """Return the levels' weights at the start of training: 0.6, 0.3, 0.1 for three levels, as in the paper.

    With other numbers of levels, the weights halve from level to level, and their sum is 1.

    Args:
        levels: how many, at least 1.
        device: of the result; None means torch's default device.
        dtype: of the result; None means torch's default dtype.

    Example:
        >>> initial_alphas(3)
        tensor([0.6000, 0.3000, 0.1000])
    """
    if levels == 3:
        return torch.tensor([0.6, 0.3, 0.1], device=device, dtype=dtype)
    total = 2.0 - 0.5 ** (levels - 1)
    return torch.tensor([0.5**level / total for level in range(levels)], device=device, dtype=dtype)


class AdaptiveFuse(nn.Module):
    """F-Fusion with learnable level weights, see :func:`ffmef.ops.adaptive_fuse`.

    Args:
        kernel_sizes: one odd filter side per level; ``forward`` checks the filters against it.
        padding_mode: "zeros", "replicate", "reflect" or "circular".
        backend: see :func:`ffmef.ops.adaptive_fuse`.
        device: of the parameter ``alphas``; None: torch's default device.
        dtype: of the parameter ``alphas``, any floating dtype, independent of the images'; None: torch's default dtype.

    Raises:
        TypeError: ``kernel_sizes`` is not a sequence of integers.
        ValueError: a kernel size is not odd or not within 1 to 31, there is none, the padding mode or the backend is
            unknown, or the dtype is not floating. ``forward`` raises what :func:`ffmef.ops.adaptive_fuse` raises, and
            ValueError for filters that do not fit ``kernel_sizes``.

    Attributes:
        alphas: (L,), the weights of the levels; starts as :func:`initial_alphas`.

    Note:
        ``torch.fx`` keeps the operator as one node, and ``torch.jit.script`` takes the module; a scripted module
        uses the backend that ``backend=None`` would choose.

    Example:
        >>> import torch
        >>> fuse = AdaptiveFuse(kernel_sizes=(1, 3))
        >>> filters = [torch.rand(1, 2, 1, 4, 5), torch.rand(1, 2, 9, 4, 5)]
        >>> fuse(torch.rand(1, 2, 4, 5), filters).shape
        torch.Size([1, 4, 5])
        >>> fuse(torch.rand(1, 2, 32, 40), filters).shape  # filters on a coarser grid
        torch.Size([1, 32, 40])
    """

    def __init__(
        self,
        kernel_sizes: Sequence[int] = (1, 3, 5),
        *,
        padding_mode: PaddingMode = "zeros",
        backend: Backend | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(kernel_sizes, Iterable) or isinstance(kernel_sizes, (str, bytes)):
            raise TypeError(f"kernel_sizes must be a sequence of integers, got {kernel_sizes!r}")
        self.kernel_sizes = tuple(kernel_sizes)
        for index, size in enumerate(self.kernel_sizes):
            if not isinstance(size, int) or isinstance(size, bool):
                raise TypeError(f"kernel_sizes[{index}] must be an integer, got {size!r}")
        if not self.kernel_sizes:
            raise ValueError("kernel_sizes must have at least one side, got none")
        if any(size % 2 == 0 or not 1 <= size <= MAX_FILTER_SIZE for size in self.kernel_sizes):
            raise ValueError(f"kernel_sizes must be odd and from 1 to {MAX_FILTER_SIZE}, got {self.kernel_sizes}")
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"padding_mode must be one of {', '.join(PADDING_MODES)}, got {padding_mode!r}")
        if dtype is not None and not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating one, got {str(dtype)[6:]}")
        check_name(backend)
        self.padding_mode = padding_mode
        self.backend = backend
        self.alphas = nn.Parameter(torch.empty(len(self.kernel_sizes), device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the weights of the levels to :func:`initial_alphas`, as after construction."""
        with torch.no_grad():
            self.alphas.copy_(
                initial_alphas(len(self.kernel_sizes), device=self.alphas.device, dtype=self.alphas.dtype)
            )

    if TYPE_CHECKING:

        def __call__(self, images: Tensor, filters: Sequence[Tensor]) -> Tensor: ...

    # TorchScript does not know Sequence; any sequence is accepted.
    def forward(self, images: Tensor, filters: list[Tensor]) -> Tensor:
        """Filter every image with its own filter at every pixel and sum over images, taps and levels.

        Args:
            images: (B, N, C, H, W) or (B, N, H, W).
            filters: one (B, N, k*k, H, W) per level, or (B, N, k*k, h, w) on a coarser grid, in the order of
                ``kernel_sizes``.

        Returns:
            (B, C, H, W), or (B, H, W) for images without channels, in the images' dtype.

        Raises:
            ValueError: the number of levels, or the taps of one, differ from ``kernel_sizes``; and what
                :func:`ffmef.ops.adaptive_fuse` raises.
        """
        if torch.jit.is_scripting():
            images_5d = images if images.dim() == 5 else images.unsqueeze(2)
            out = torch.ops.ffmef.adaptive_fuse(images_5d, filters, self.alphas, self.padding_mode)
            return out if images.dim() == 5 else out.squeeze(1)
        if not isinstance(filters, torch.fx.Proxy):  # torch.fx does not know its length yet
            self._check(filters)
        return adaptive_fuse(images, filters, self.alphas, padding_mode=self.padding_mode, backend=self.backend)

    def _check(self, filters: Sequence[Tensor]) -> None:
        if len(filters) != len(self.kernel_sizes):
            raise ValueError(f"filters must have {len(self.kernel_sizes)} levels like kernel_sizes, got {len(filters)}")
        for index, (level, size) in enumerate(zip(filters, self.kernel_sizes, strict=True)):
            # The operator explains what is no filter at all.
            if isinstance(level, Tensor) and level.dim() == 5 and level.shape[2] != size * size:
                raise ValueError(
                    f"filters[{index}] must have {size * size} taps for kernel size {size}, got {level.shape[2]}"
                )

    def extra_repr(self) -> str:
        """Return the arguments that differ between modules."""
        backend = "" if self.backend is None else f", backend={self.backend!r}"
        return f"kernel_sizes={self.kernel_sizes}, padding_mode={self.padding_mode!r}{backend}"
