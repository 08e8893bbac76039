"""What every loss needs to know about the pictures to be fused, computed once for all terms."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ffmef.imaging.colour import merge_chroma, rgb_to_ycbcr, ycbcr_to_rgb


@dataclass(frozen=True)
class Sources:
    """The pictures of one scene as a loss sees them: constants that no gradient reaches. :meth:`from_rgb` makes them.

    Attributes:
        rgb: (B, N, 3, H, W) in [0, 1].
        luminance: (B, N, H, W), Y / 255.
        chroma: (B, N, 2, H, W), Cb / 255 and Cr / 255, 128 / 255 for no colour.
        merged_chroma: (B, 2, H, W), the chroma of the fused picture (paper, eq. 1, or by shares) / 255.
        truth: (B, 3, H, W) in [0, 1], what the fused picture should be, or None if that is not known.

    Example:
        >>> import torch
        >>> sources = Sources.from_rgb(torch.full((1, 2, 3, 4, 5), 0.5))
        >>> sources.rgb.shape, sources.merged_chroma.shape
        (torch.Size([1, 2, 3, 4, 5]), torch.Size([1, 2, 4, 5]))
    """

    rgb: Tensor
    luminance: Tensor
    chroma: Tensor
    merged_chroma: Tensor
    truth: Tensor | None = None

    @classmethod
    @torch.no_grad()
    def from_rgb(cls, rgb: Tensor, *, chroma_from: int | None = None, truth: Tensor | None = None) -> Sources:
        """Split RGB pictures into luminance and chroma.

        Args:
            rgb: (B, N, 3, H, W), uint8 or floating in [0, 1]; no gradient reaches it, so none may be asked for.
            chroma_from: the picture whose chroma the fused picture takes (for visible and infrared); None merges all.
            truth: (B, 3, H, W), of the same type, or None.

        Raises:
            TypeError: ``rgb`` or ``truth`` is not a tensor of such a dtype.
            ValueError: ``rgb`` has another shape or requires a gradient, or ``chroma_from`` names no picture.

        Example:
            >>> import torch
            >>> Sources.from_rgb(torch.zeros(1, 2, 3, 4, 5, dtype=torch.uint8)).luminance.shape
            torch.Size([1, 2, 4, 5])
        """
        _check("rgb", rgb)
        if rgb.dim() != 5 or rgb.shape[2] != 3:
            raise ValueError(f"rgb must be (B, N, 3, H, W), got {tuple(rgb.shape)}")
        if chroma_from is not None and not 0 <= chroma_from < rgb.shape[1]:
            raise ValueError(f"chroma_from must be 0 to {rgb.shape[1] - 1}, got {chroma_from}")
        if truth is not None:
            _check("truth", truth)
        if truth is not None and truth.shape != rgb[:, 0].shape:
            raise ValueError(f"truth must be {tuple(rgb[:, 0].shape)} like a picture of rgb, got {tuple(truth.shape)}")
        rgb, truth = _scaled(rgb), None if truth is None else _scaled(truth)
        ycbcr = rgb_to_ycbcr(rgb * 255)
        chroma = ycbcr[:, :, 1:]
        merged = chroma[:, chroma_from] if chroma_from is not None else merge_chroma(list(chroma.unbind(1)))
        return cls(rgb, ycbcr[:, :, 0] / 255, chroma / 255, merged / 255, truth)

    @property
    def true_luminance(self) -> Tensor:
        """Y / 255 of the truth, (B, 1, H, W)."""
        if self.truth is None:
            raise ValueError("truth must be known, got None")
        return rgb_to_ycbcr(self.truth * 255)[:, :1] / 255

    @functools.cached_property
    def ycbcr(self) -> Tensor:
        """The sources in grey levels, (B, N, 3, H, W)."""
        return torch.cat([self.luminance.unsqueeze(2), self.chroma], 2) * 255

    @torch.no_grad()
    def with_chroma_of(self, shares: Tensor) -> Sources:
        """Return the same pictures with chroma merged by shares (B, N, h, w), see :func:`ffmef.models.merge_chroma`."""
        from ffmef.models.pyramid import merge_chroma

        merged = merge_chroma(self.rgb * 255, shares.float(), ycbcr=self.ycbcr)
        return replace(self, merged_chroma=merged / 255)

    def picture(self, fused: Tensor) -> Tensor:
        """Return the RGB picture (B, 3, H, W) of a fused luminance (B, 1, H, W), scaled to [0, 1] but not clipped."""
        return ycbcr_to_rgb(torch.cat([fused, self.merged_chroma.to(fused.dtype)], 1) * 255) / 255


def _check(name: str, maps: object) -> None:
    if not isinstance(maps, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(maps).__name__}")
    if not maps.is_floating_point() and maps.dtype != torch.uint8:
        raise TypeError(f"{name} must be uint8 or floating, got {str(maps.dtype)[6:]}")
    if maps.requires_grad:  # it would reach some of the maps, and not all
        raise ValueError(f"{name} must not require a gradient, which no source gets ({name}.detach() has none)")


def check_floating(fused: object) -> None:
    if not isinstance(fused, Tensor):
        raise TypeError(f"fused must be a tensor, got {type(fused).__name__}")
    if not fused.is_floating_point():
        raise TypeError(f"fused must be floating, in [0, 1], got {str(fused.dtype)[6:]}")


def _scaled(maps: Tensor) -> Tensor:
    return maps.float() / 255 if maps.dtype == torch.uint8 else maps


def check_fused(fused: Tensor, sources: Sources) -> Tensor:
    """Return ``fused`` in at least float32 after checking that it fits ``sources``."""
    check_floating(fused)
    expected = (sources.luminance.shape[0], 1, *sources.luminance.shape[-2:])
    if tuple(fused.shape) != expected:
        raise ValueError(f"fused must be {expected} like sources, got {tuple(fused.shape)}")
    return fused.to(torch.promote_types(fused.dtype, torch.float32))
