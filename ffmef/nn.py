"""The operators as torch modules."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ffmef.ops import adaptive_fuse
from ffmef.ops.adaptive_fuse import MAX_FILTER_SIZE, PADDING_MODES

__all__ = ["AdaptiveFuse", "initial_alphas"]


def initial_alphas(levels: int) -> Tensor:
    """Return the levels' weights at the start of training: 0.6, 0.3, 0.1 for three levels, as in the paper.

    Other numbers of levels start in the same spirit: halving from level to level, with sum 1.

    Example:
        >>> initial_alphas(3)
        tensor([0.6000, 0.3000, 0.1000])
    """
    if levels == 3:
        return torch.tensor([0.6, 0.3, 0.1])
    weights = 0.5 ** torch.arange(levels, dtype=torch.float32)
    return weights / weights.sum()


class AdaptiveFuse(nn.Module):
    """F-Fusion with learnable level weights: ``forward(images, filters)``, see :func:`ffmef.ops.adaptive_fuse`.

    Args:
        kernel_sizes: one odd filter side a level; ``forward`` checks the filters against it.
        padding_mode: "zeros", "replicate" or "reflect".
        backend: see :func:`ffmef.ops.adaptive_fuse`.

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
        self, kernel_sizes: Sequence[int] = (1, 3, 5), *, padding_mode: str = "zeros", backend: str | None = None
    ) -> None:
        super().__init__()
        self.kernel_sizes = tuple(kernel_sizes)
        if not self.kernel_sizes:
            raise ValueError("kernel_sizes must have at least one side, got none")
        if any(size % 2 == 0 or not 1 <= size <= MAX_FILTER_SIZE for size in self.kernel_sizes):
            raise ValueError(f"kernel_sizes must be odd and from 1 to {MAX_FILTER_SIZE}, got {self.kernel_sizes}")
        if padding_mode not in PADDING_MODES:
            raise ValueError(f"padding_mode must be one of {', '.join(PADDING_MODES)}, got {padding_mode!r}")
        self.padding_mode = padding_mode
        self.backend = backend
        self.alphas = nn.Parameter(initial_alphas(len(self.kernel_sizes)))

    def forward(self, images: Tensor, filters: Sequence[Tensor]) -> Tensor:
        if len(filters) != len(self.kernel_sizes):
            raise ValueError(f"filters must have {len(self.kernel_sizes)} levels like kernel_sizes, got {len(filters)}")
        for index, (level, size) in enumerate(zip(filters, self.kernel_sizes, strict=True)):
            # What is no filter at all, the operator explains.
            if isinstance(level, Tensor) and level.dim() == 5 and level.shape[2] != size * size:
                raise ValueError(
                    f"filters[{index}] must have {size * size} taps for kernel size {size}, got {level.shape[2]}"
                )
        return adaptive_fuse(images, filters, self.alphas, padding_mode=self.padding_mode, backend=self.backend)

    def extra_repr(self) -> str:
        return f"kernel_sizes={self.kernel_sizes}, padding_mode={self.padding_mode!r}"
