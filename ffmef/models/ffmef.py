"""FFMEF: the paper's network, from two luminance images to the fused one."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ffmef.models.extractor import HierarchicalRepresentationExtractor, can_recompute
from ffmef.models.layers import Block
from ffmef.models.predictor import SpatialAdaptiveFilterPredictor
from ffmef.nn import AdaptiveFuse
from ffmef.ops._backends import NAMES as OPERATOR_BACKENDS
from ffmef.ops._backends import why_not
from ffmef.ops.ffmef_forward import backend_of
from ffmef.ops.library import autocasts, flop_counters, operator
from ffmef.ops.predict_and_fuse import predict_and_fuse
from ffmef.ops.types import Backend

IMAGES = 2

# Ways to compute the model; with an operator's backend it computes layer by layer too.
WAYS = ("fused", "native", "recompute", "eager")
BACKENDS = (*WAYS, *OPERATOR_BACKENDS)

# The most values of hidden maps that exist at once where memory is to be saved.
_HIDDEN_VALUES = 1 << 22


class FFMEF(nn.Module):
    """Filter-dominated fusion of two exposures (Zheng, Huang, Yu, Zhao; CVPR workshops 2023).

    A hierarchical extractor, shared by both images, gives three maps; a predictor turns them into filters, larger ones
    from deeper maps (:meth:`maps_of_levels`); F-Fusion applies the filters to the luminance.

    Args:
        channels: c, even; the paper has 4.
        kernel_sizes: odd filter sides in ascending order; the paper's table 2 has (1,), (1, 3), (3, 5), (1, 3, 5) and
            (1, 3, 5, 7).
        backend: how to compute:

            - None: "fused" if it can run, otherwise "eager".
            - "fused": the whole network in one operator (:func:`ffmef.ops.ffmef_forward`). It works only in evaluation
              mode without gradients, raises an error otherwise, and runs no hooks of submodules.
            - "eager": layer by layer in torch, with the fastest backend of :func:`ffmef.ops.adaptive_fuse`.
            - "reference", "cpu", "triton" or "cuda": like "eager", with this backend of the fusion.
            - "native": for faster training on a CPU, with :func:`ffmef.ops.thin_convolution` and
              :func:`ffmef.ops.norm_activation`. Filters are never stored (:func:`ffmef.ops.predict_and_fuse`).
              ``ffmef train`` uses it. Without gradients it is the same as None.
            - "recompute": like "native" in a fraction of the memory: the backward pass recomputes activations
              instead of keeping them. Under ``torch.func.grad``, which cannot, it keeps them.

        engine, recompute: deprecated spellings of ``backend``.

    Raises:
        ValueError: ``kernel_sizes`` do not ascend or are not odd and at most 31, ``channels`` is odd, or ``backend`` is
            unknown; when called, for luminance that is not (B, 2, H, W).
        RuntimeError: when called, if ``backend`` is "fused" and cannot run; the message says why.

    Attributes:
        backend: may be changed at any time.

    Example:
        >>> import torch
        >>> model = FFMEF()
        >>> sum(p.numel() for p in model.parameters())
        7662
        >>> model(torch.rand(1, 2, 12, 16)).shape
        torch.Size([1, 1, 12, 16])
    """

    def __init__(
        self,
        channels: int = 4,
        kernel_sizes: Sequence[int] = (1, 3, 5),
        *,
        backend: str | None = None,
        engine: str | None = None,
        recompute: bool | None = None,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.kernel_sizes = tuple(kernel_sizes)
        if not self.kernel_sizes or list(self.kernel_sizes) != sorted(set(self.kernel_sizes)):
            raise ValueError(f"kernel_sizes must ascend, got {self.kernel_sizes}")
        if any(size % 2 == 0 or not 1 <= size <= 31 for size in self.kernel_sizes):
            raise ValueError(f"kernel_sizes must be odd and at most 31, got {self.kernel_sizes}")
        self.extractor = HierarchicalRepresentationExtractor(channels)
        self.predictor = SpatialAdaptiveFilterPredictor(channels, self.kernel_sizes, IMAGES)
        self.fuse = AdaptiveFuse(self.kernel_sizes)
        self.backend = backend
        if engine is not None:
            _warn("engine", 3)
            self._set_engine(engine)
        if recompute is not None:
            _warn("recompute", 3)
            self._set_recompute(recompute)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.xavier_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def backend(self) -> str | None:
        return self._backend

    @backend.setter
    def backend(self, value: str | None) -> None:
        if value is not None and value not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)} or None, got {value!r}")
        self._backend = value
        self.fuse.backend = cast("Backend", value) if value in OPERATOR_BACKENDS else None
        self.extractor.recompute = value == "recompute"
        for module in self.modules():
            if isinstance(module, Block):
                module.native = value in ("native", "recompute")

    # The spelling of version 0.1, kept for one release.

    @property
    def engine(self) -> str:
        _warn("engine", 3)
        return self._backend if self._backend in ("fused", "eager") else "auto"

    @engine.setter
    def engine(self, value: str) -> None:
        _warn("engine", 4)  # the assignment goes through nn.Module.__setattr__
        self._set_engine(value)

    def _set_engine(self, value: str) -> None:
        if value not in ("auto", "eager", "fused"):
            raise ValueError(f"engine must be one of auto, eager, fused, got {value!r}")
        if value == "fused" or self._backend in (None, "fused", "eager"):
            self.backend = None if value == "auto" else value

    @property
    def recompute(self) -> bool:
        _warn("recompute", 3)
        return self._backend == "recompute"

    @recompute.setter
    def recompute(self, value: bool) -> None:
        _warn("recompute", 4)
        self._set_recompute(value)

    def _set_recompute(self, value: bool) -> None:
        if value:
            self.backend = "recompute"
        elif self._backend == "recompute":
            self.backend = None

    def not_fused(self, luminance: Tensor, parameters: Sequence[Tensor]) -> str | None:
        """Return why the whole-network operator cannot run this model on ``luminance`` now, or None."""
        if self.training:
            return "the model is in training mode (model.eval() changes it)"
        if torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export():
            return "ONNX has no such operator"
        if torch.jit.is_tracing():
            return "a traced graph is the same with and without derivatives"
        if flop_counters():
            return "a FlopCounterMode counts torch's operators"
        if luminance.shape[2] * luminance.shape[3] == 1:
            return "InstanceNorm needs more than one pixel"
        sizes = {"channels": self.channels, "kernel_sizes": self.kernel_sizes}
        where = backend_of(luminance.device, self.channels)
        return why_not("ffmef_forward", where, luminance=luminance, parameters=list(parameters), **sizes)

    def config(self) -> dict:
        """Return the constructor's arguments, as weight files keep them."""
        return {"channels": self.channels, "kernel_sizes": list(self.kernel_sizes)}

    def maps_of_levels(self, bottom: Tensor, up2: Tensor, up1: Tensor) -> list[Tensor]:
        """Return the map that each level's filters are predicted from: shallow for small filters, deep for large.

        Sizes 1, 3 and 5 use up1, up2 and bottom, as in the paper, in every set; larger sizes use bottom too.
        """
        by_size = {1: up1, 3: up2}
        return [by_size.get(size, bottom) for size in self.kernel_sizes]

    def extract(self, luminance: Tensor) -> list[Tensor]:
        """(B, 2, H, W) -> the map of every level, (B, 2, c, H, W)."""
        maps = self.extractor(luminance.flatten(0, 1).unsqueeze(1))
        return self.maps_of_levels(*(m.unflatten(0, luminance.shape[:2]) for m in maps))

    def predict_filters(self, luminance: Tensor) -> list[Tensor]:
        """(B, 2, H, W) -> the filters of every level, (B, 2, k*k, H, W)."""
        return self.predictor(self.extract(luminance))

    def _needs_no_filters(self, luminance: Tensor) -> bool:
        return (
            self.backend == "native"
            and self.training
            and not autocasts(luminance.device)
            and why_not("predict_and_fuse", "cpu", hidden=luminance, sides=self.kernel_sizes, channels=1) is None
        )

    def _fuse_hidden(self, luminance: Tensor) -> Tensor:
        """(B, 2, H, W) -> (B, H, W), from the maps before each head's last convolution."""
        heads = self.predictor.each_head()
        hidden = self.predictor.hidden(self.extract(luminance))
        weight, bias = [head.project.weight for head in heads], [cast(Tensor, head.project.bias) for head in heads]
        return predict_and_fuse(hidden, weight, bias, luminance, self.fuse.alphas)

    def _fuse_without_filters(self, luminance: Tensor) -> Tensor:
        """(B, 2, H, W) -> (B, H, W), a few rows of hidden maps at a time, forwards and backwards."""

        def level_rows(index: int, maps: Tensor, top: int, bottom: int) -> Tensor:
            # The surrounding rows that the head's two convolutions and the filters need; none beyond a border.
            reach = 1 + self.kernel_sizes[index] // 2
            first, last = max(top - reach, 0), min(bottom + reach, luminance.shape[2])
            head = self.predictor.each_head()[index]
            attended = self.predictor.attentions[index](maps[..., first:last, :])
            hidden = head.hidden(attended.flatten(0, 1)).unflatten(0, attended.shape[:2])
            alpha = self.fuse.alphas[index : index + 1]
            images = luminance[..., first:last, :]
            fused = predict_and_fuse([hidden], [head.project.weight], [cast(Tensor, head.project.bias)], images, alpha)
            return fused[:, top - first : bottom - first]

        batch, _, height, width = luminance.shape
        maps, bands = self.extract(luminance), []
        rows = max(_HIDDEN_VALUES // (batch * IMAGES * max(self.kernel_sizes) ** 2 * width), 8)
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            bands.append(
                sum(checkpoint(level_rows, l, m, top, bottom, use_reentrant=False) for l, m in enumerate(maps))
            )
        return torch.cat(bands, 1)

    def forward(self, luminance: Tensor) -> Tensor:
        """Fuse luminance (B, 2, H, W) in [0, 1], the darker exposure first, to (B, 1, H, W), unclamped."""
        if isinstance(luminance, torch.fx.Proxy):  # torch.fx does not know its shape yet
            return self.fuse(luminance, self.predict_filters(luminance)).unsqueeze(1)
        if luminance.dim() != 4 or luminance.shape[1] != IMAGES:
            raise ValueError(f"luminance must be (B, {IMAGES}, H, W), got shape {tuple(luminance.shape)}")
        if self.backend in (None, "fused", "native", "recompute"):
            parameters = list(self.parameters())
            reason = self.not_fused(luminance, parameters)
            if reason is None:
                return operator("ffmef_forward")(luminance, parameters, self.channels, list(self.kernel_sizes))
            if self.backend == "fused":
                raise RuntimeError(f"backend 'fused' cannot run here: {reason}")
        if luminance.shape[0] == 0:  # torch's InstanceNorm refuses an empty batch
            return luminance.sum(1, keepdim=True)
        if self.backend == "recompute" and can_recompute():
            return self._fuse_without_filters(luminance).unsqueeze(1)
        if self._needs_no_filters(luminance):
            return self._fuse_hidden(luminance).unsqueeze(1)
        return self.fuse(luminance, self.predict_filters(luminance)).unsqueeze(1)


def _warn(old: str, stacklevel: int) -> None:
    message = f"{old} of FFMEF is deprecated: set backend instead"
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel)
