"""The first design of PyramidFFMEF, to be removed: weights of bands, predicted on a coarse grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ffmef.ops import half_luminance, pyramid_fuse, pyramid_fuse_rgb
from ffmef.ops.pyramid_predict import available, pyramid_predict

SCALE = 8


def halve(pictures: Tensor) -> Tensor:
    """Return the means of 2 x 2 pixels, (B, N, H, W) -> (B, N, ceil(H / 2), ceil(W / 2)), an odd border repeated."""
    return F.avg_pool2d(_to_multiple(pictures, 2), 2)


def _to_multiple(maps: Tensor, step: int) -> Tensor:
    """Repeat the last row and column until both sides are multiples of ``step``."""
    down, right = -maps.shape[-2] % step, -maps.shape[-1] % step
    return F.pad(maps, (0, right, 0, down), mode="replicate") if down or right else maps


def _up(maps: Tensor, like: Tensor) -> Tensor:
    """Interpolate to the double size, cut to the size of ``like``."""
    height, width = like.shape[-2:]
    return F.interpolate(maps, scale_factor=2.0, mode="bilinear", align_corners=False)[..., :height, :width]


class Meet(nn.Module):
    """Adds to every image's map a 1x1 convolution of the mean and maximum over all images: order cannot matter."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, maps: Tensor, count: int) -> Tensor:
        """(B * N, c, h, w) -> the same."""
        apart = maps.unflatten(0, (-1, count))
        joined = self.conv(torch.cat([apart.mean(1), apart.amax(1)], 1))
        return F.relu(apart + joined.unsqueeze(1)).flatten(0, 1)


class CoarsePredictor(nn.Module):
    """From pictures of half size to one map per band, image and cell: a small U-Net over grids of 1/8, 1/16, ... size.

    All weights are shared by the images, which meet through mean and maximum only; there are no normalisation layers.
    A global mean at the coarsest grid tells each picture's exposure.

    Args:
        planes: maps per image to predict.
        channels: of the grids, finest (1/8) first.
        stem: channels at 1/4 size.
    """

    def __init__(self, planes: int, channels: Sequence[int], stem: int) -> None:
        super().__init__()
        finest, coarsest = channels[0], channels[-1]
        self.stem = nn.Conv2d(1, stem, 2, stride=2)
        self.enter = nn.Conv2d(stem, finest, 2, stride=2)
        self.meet = Meet(finest)
        steps = list(zip(channels[:-1], channels[1:]))
        self.down = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in steps)
        self.encode = nn.ModuleList(nn.Conv2d(coarse, coarse, 3, padding=1) for _, coarse in steps)
        self.overall = nn.Linear(coarsest, coarsest)
        self.meet_coarsest = Meet(coarsest)
        self.up = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for fine, coarse in steps)
        self.decode = nn.ModuleList(nn.Conv2d(fine, fine, 3, padding=1) for fine, _ in steps)
        self.head = nn.Conv2d(finest, planes, 1)

    def forward(self, half: Tensor, count: int) -> Tensor:
        """(B * N, 1, H / 2, W / 2) with sides that are multiples of 4 -> (B * N, planes, H / 8, W / 8)."""
        x = F.relu(self.stem(half))
        x = self.meet(self.enter(x), count)
        skips = []
        for down, encode in zip(self.down, self.encode):
            skips.append(x)
            x = F.relu(down(_to_multiple(x, 2)))
            x = F.relu(encode(x)) + x
        x = x + self.overall(x.mean((-2, -1)))[..., None, None]
        x = self.meet_coarsest(x, count)
        for up, decode, skip in zip(reversed(self.up), reversed(self.decode), reversed(skips)):
            x = F.relu(_up(up(x), skip) + skip)
            x = F.relu(decode(x)) + x
        return self.head(x)


class FirstPyramidFFMEF(nn.Module):
    """Filter-dominated fusion with filters from a coarse grid: 2 to any number of exposures in one pass, in any order.

    A predictor sees the luminance at half size and gives every image a share (softmax over the images) and a gain for
    each band and the base on a grid of 1/8 size; :func:`ffmef.ops.pyramid_fuse` interpolates and applies their product.

    Args:
        bands: bands of the Laplacian pyramid above the base, 0 to 3.
        channels: of the predictor's grids of 1/8, 1/16, ... size.
        stem: of the predictor at 1/4 size.
        backend: of :func:`ffmef.ops.pyramid_fuse`.

    Attributes:
        backend: may be changed at any time.

    Example:
        >>> import torch
        >>> model = FirstPyramidFFMEF()
        >>> model(torch.rand(1, 3, 50, 70)).shape
        torch.Size([1, 1, 50, 70])
    """

    def __init__(
        self,
        bands: int = 3,
        channels: Sequence[int] = (16, 16, 32, 32),
        stem: int = 8,
        *,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= bands <= 3:
            raise ValueError(f"bands must be 0 to 3, got {bands}")
        if len(channels) < 1 or min(channels) < 1 or stem < 1:
            raise ValueError(f"channels and stem must be positive, got {tuple(channels)} and {stem}")
        self.bands, self.channels, self.stem = bands, tuple(channels), stem
        self.backend = backend
        self.predictor = CoarsePredictor(2 * (bands + 1), self.channels, stem)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)
        # Starts near the plain mean of the images.
        nn.init.normal_(self.predictor.head.weight, std=0.002)

    def config(self) -> dict:
        """Return the constructor's arguments, as weight files keep them."""
        return {"bands": self.bands, "channels": list(self.channels), "stem": self.stem}

    def predict_weights(self, half: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weights of the bands (B, L, N, h, w) and of the base (B, N, h, w).

        Args:
            half: (B, N, ceil(H / 2), ceil(W / 2)), luminance in [0, 1] at half size; h = ceil(H / 8), w = ceil(W / 8).
        """
        batch, count = half.shape[:2]
        half = _to_multiple(half, SCALE // 2)
        planes = self.predictor(half.flatten(0, 1).unsqueeze(1), count)
        logits, gains = planes.unflatten(0, (batch, count)).transpose(1, 2).chunk(2, dim=1)
        weights = logits.softmax(2) * (1 + gains)
        return weights[:, :-1], weights[:, -1]

    def forward(self, luminance: Tensor) -> Tensor:
        """Fuse luminance (B, N, H, W) in [0, 1], N >= 2 in any order, to (B, 1, H, W), unclamped."""
        if luminance.dim() != 4 or luminance.shape[1] < 2:
            raise ValueError(f"luminance must be (B, N, H, W) with N >= 2, got shape {tuple(luminance.shape)}")
        weights, base = self.predict_weights(halve(luminance))
        return pyramid_fuse(luminance, weights, base, scale=SCALE, backend=self.backend).unsqueeze(1)

    @torch.inference_mode()
    def fuse_rgb(self, pictures: Sequence[Tensor]) -> Tensor:
        """Fuse pictures (H, W, 3), uint8, at least 2 in any order, to one of them: all in a single pass over rows.

        Raises:
            ValueError: fewer pictures, or a model of 0 bands, which has ``forward`` only.
        """
        if len(pictures) < 2:
            raise ValueError(f"pictures must be at least 2, got {len(pictures)}")
        if not self.bands:
            raise ValueError("bands must be at least 1 to fuse RGB in one pass, got 0")
        half = half_luminance(pictures)
        if available(half, self.channels, self.stem):
            parameters = list(self.predictor.parameters())
            weights, base = pyramid_predict(half, parameters, self.channels, self.stem, self.bands)
        else:
            weights, base = (maps[0] for maps in self.predict_weights(half.unsqueeze(0)))
        return pyramid_fuse_rgb(pictures, half, weights, base, scale=SCALE)
