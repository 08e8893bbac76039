"""PyramidFFMEF: shares and gains predicted on a coarse grid, applied band by band, for any number of exposures.

The definition of the model in plain torch; the native library computes the same. Shapes: B fused pictures, N
exposures, H x W pixels, h x w = ceil(H / 8) x ceil(W / 8) cells.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ffmef.adjust import NEUTRAL, Adjustments
from ffmef.imaging.colour import luminance_to_grey, rgb_to_ycbcr, ycbcr_to_rgb
from ffmef.models.layers import parameters_of
from ffmef.models.registry import PYRAMID_DESIGN as DESIGN
from ffmef.ops import pyramid_fuse
from ffmef.ops._backends import why_not
from ffmef.ops.library import flop_counters
from ffmef.ops.pyramid_exposures import pyramid_exposures, pyramid_luminance
from ffmef.ops.types import Backend

SCALE = 8
FINE_OCTAVES = 2  # how many of the finest octaves have a separate plane and are shrunk
PRIOR = 0.15  # the weight of validity's logarithm before training
GATE = 0.04  # the difference between exposures at which gains act by half
MORE_BANDS, MORE_BASE = 0.3, 1.5  # of gains with very many exposures: of the bands; of the base and fine octaves
KNEE, TOE, WHITE = 218.0, 24.0, 252.0  # of :func:`into_range`, on 0..255
FAR = 1e6  # no luminance counts as further from black
APART, STEP = 8.0, 4.0  # of :func:`smooth_chroma`: differences between exposures and steps of chroma that act by half
SLACK = 1e-3  # by which channels may pass W: rounding then keeps every bit of a picture fused with itself
_OF_BYTE = {torch.uint8: 1, torch.uint16: 257, torch.float32: 1 / 255}  # samples for each step of 8 bit
FLOOR = 0.02  # of validity: weights stay defined where no exposure is valid


def halve(pictures: Tensor) -> Tensor:
    """Return the means of 2 x 2 pixels, (B, N, H, W) -> (B, N, ceil(H / 2), ceil(W / 2)), an odd border repeated."""
    return F.avg_pool2d(_to_multiple(pictures, 2), 2)


def shrink(maps: Tensor) -> Tensor:
    """Return maps of half size by the filter [1 3 3 1] / 8 along both sides, h x w -> ceil(h / 2) x ceil(w / 2).

    The two middle taps fall on the cells that become one. Odd sides are first made even by repeating the border, which
    is then repeated for the outer taps too.
    """
    height, width = maps.shape[-2:]
    maps = F.pad(maps, (1, 1 + width % 2, 1, 1 + height % 2), mode="replicate")
    rows = (maps[..., 0:-3:2, :] + maps[..., 3::2, :] + 3 * (maps[..., 1:-2:2, :] + maps[..., 2:-1:2, :])) / 8
    return (rows[..., 0:-3:2] + rows[..., 3::2] + 3 * (rows[..., 1:-2:2] + rows[..., 2:-1:2])) / 8


def spread(maps: Tensor, step: int) -> Tensor:
    """Return maps (..., h, w) smoothed by the filter [1 2 1] / 4 along both sides, its taps ``step`` cells apart.

    Borders are repeated.
    """
    for side in (-2, -1):
        here = torch.arange(maps.shape[side], device=maps.device)
        before, after = (here - step).clamp_min(0), (here + step).clamp_max(maps.shape[side] - 1)
        maps = (maps.index_select(side, before) + maps.index_select(side, after) + 2 * maps) / 4
    return maps


def next_octave(maps: Tensor, octave: int) -> Tensor:
    """Return maps of octave number ``octave`` >= 1 from those of the octave before; the fine ones halve in size."""
    return shrink(maps) if octave <= FINE_OCTAVES else spread(maps, 2 ** (octave - FINE_OCTAVES - 1))


def validity_of(luminance: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``high`` and ``low``, how far Y / 255 is from white and from black: 0 where nothing is recorded."""
    return ((0.915 - luminance) / 0.06).clamp(0, 1), ((luminance - 0.065) / 0.05).clamp(0, 1)


def _to_multiple(maps: Tensor, step: int) -> Tensor:
    """Repeat the last row and column until both sides are multiples of ``step``."""
    down, right = -maps.shape[-2] % step, -maps.shape[-1] % step
    return F.pad(maps, (0, right, 0, down), mode="replicate") if down or right else maps


def _up(maps: Tensor, like: Tensor, factor: float = 2.0) -> Tensor:
    """Interpolate bilinearly to ``factor`` times the size, cut to the size of ``like``."""
    height, width = like.shape[-2:]
    return F.interpolate(maps, scale_factor=factor, mode="bilinear", align_corners=False)[..., :height, :width]


class Meet(nn.Module):
    """Adds a 1x1 convolution of the mean and maximum over all images to each image's map: order cannot matter."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, maps: Tensor, count: int) -> Tensor:
        """(B * N, c, h, w) -> the same."""
        apart = maps.unflatten(0, (-1, count))
        joined = self.conv(torch.cat([apart.mean(1), apart.amax(1)], 1))
        return F.relu(apart + joined.unsqueeze(1)).flatten(0, 1)


class CoarsePredictor(nn.Module):
    """From pictures at half size to maps per image and cell: a small U-Net over grids of 1/8, 1/16, ... size.

    All images share the weights and meet only through mean and maximum. There are no normalisation layers and no
    statistics over the whole picture, so distant pixels do not matter; borders are repeated.

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
        self.statistics = nn.Conv2d(3, finest, 1)
        self.meet = Meet(finest)
        steps = list(itertools.pairwise(channels))
        self.down = nn.ModuleList(nn.Conv2d(fine, coarse, 2, stride=2) for fine, coarse in steps)
        self.encode = nn.ModuleList(_repeating(coarse) for _, coarse in steps)
        self.overall = nn.Conv2d(coarsest, coarsest, 1)
        self.meet_coarsest = Meet(coarsest)
        self.up = nn.ModuleList(nn.Conv2d(coarse, fine, 1) for fine, coarse in steps)
        self.decode = nn.ModuleList(_repeating(fine) for fine, _ in steps)
        self.head = nn.Conv2d(finest, planes, 1)

    def forward(self, half: Tensor, statistics: Tensor, count: int) -> Tensor:
        """Half (B * N, 1, 4 h, 4 w) and statistics (B * N, 3, h, w) -> (B * N, planes, h, w)."""
        x = F.relu(self.stem(half))
        x = self.meet(self.enter(x) + self.statistics(statistics), count)
        skips = []
        for down, encode in zip(self.down, self.encode, strict=True):
            skips.append(x)
            x = F.relu(down(_to_multiple(x, 2)))
            x = F.relu(encode(x)) + x
        x = self.meet_coarsest(x + self.overall(x), count)
        for up, decode, skip in zip(reversed(self.up), reversed(self.decode), reversed(skips), strict=True):
            x = F.relu(_up(up(x), skip) + skip)
            x = F.relu(decode(x)) + x
        return self.head(x)


def _repeating(channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, padding=1, padding_mode="replicate")


class PyramidFFMEF(nn.Module):
    r"""Filter-dominated fusion with filters from a coarse grid: 2 to any number of exposures in one pass, in any order.

    A predictor sees the luminance at half size and gives each image :math:`n`, in every cell of 8 x 8 pixels, a logit
    and a gain for each of the L bands, for the base at 1/8 size, for the two finest octaves below it and for all
    further ones: L + 3 planes of both. Then

    .. math::
        s_{k,n} &= \operatorname{softmax}_n\bigl(z_{k,n} + a_k \log(h_n (0.1 + 0.9\, l_n) + 0.02) + \log v_n\bigr) \\
        g_{k,n} &= q_{k,n}\, d / (d + 0.04) \cdot (1 + b_k (1 - 2 / N))

    z and q are what the head predicts; :math:`h_n, l_n` are the means over the cell of :func:`validity_of` the
    luminance at half size, :math:`v_n` the mean of the given ``validity`` (no less than 1e-6), d the mean of the
    difference between the brightest and the darkest image, so a picture fused with itself is unchanged. :math:`b_k` is
    0.3 for the bands, 1.5 for the base and the fine octaves and 0 for further ones: the more exposures share a softmax,
    the flatter it is, and gains make up for it.

    - Bands of :math:`G_0, G_1, G_2` (:func:`ffmef.ops.pyramid_fuse`): weights :math:`s_{k,n} (1 + g_{k,n})`.
    - Base: :math:`G_3 = P_0`, means of 8 x 8 pixels, and octaves :math:`P_1 \dots P_D` below it, with D = ``octaves``
      whatever the size of the picture. :func:`shrink` makes the two fine ones. Further ones stay on the grid of 1/32
      size, and :func:`spread` makes them, with taps :math:`2^{j-3}` cells apart: on grids that grew coarser,
      brightness would depend on where the picture begins. The shares and gains of the base plane belong to
      :math:`P_0`; those of the two planes of octaves are shrunk and spread as the pictures are, and :math:`s_j, g_j`
      belong to :math:`P_j`: of the plane of fine octaves for :math:`1 \le j \le 2`, of the other for :math:`j > 2`
      and for :math:`O_D`:

      .. math::
          O_D = \sum_n s_{D,n} P_{D,n}, \qquad
          O_j = U(O_{j+1}) + \sum_n s_{j,n} (1 + g_{j,n}) \bigl(P_{j,n} - U(P_{j+1,n})\bigr)

      U is :math:`U_2` for j < 2 and nothing for others.
      Shares sum to one on every grid, so that :math:`O_D` is a mean of what the exposures show there.
      :math:`O_0` replaces the base in ``pyramid_fuse``.

    Args:
        bands: bands of the Laplacian pyramid above the base, 0 to 3.
        channels: of the predictor's grids of 1/8, 1/16, ... size.
        stem: of the predictor at 1/4 size.
        octaves: D, below the grid of 1/8 size.
        design: of the weight file; only 4 is known.
        backend: of :func:`ffmef.ops.pyramid_fuse`.

    Attributes:
        octaves: may be changed at any time: with more octaves the whole picture tends to one brightness.
        backend: may be changed at any time.

    Raises:
        ValueError: ``bands``, ``octaves``, ``channels`` or ``stem`` is out of range, or ``design`` is not 4; when
            called, for luminance that is not (B, N, H, W) with N >= 2.

    Example:
        >>> import torch
        >>> model = PyramidFFMEF()
        >>> model(torch.rand(1, 3, 50, 70)).shape
        torch.Size([1, 1, 50, 70])
    """

    def __init__(
        self,
        bands: int = 3,
        channels: Sequence[int] = (16, 16, 32, 32),
        stem: int = 8,
        octaves: int = 6,
        *,
        design: int = DESIGN,
        backend: Backend | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= bands <= 3:
            raise ValueError(f"bands must be 0 to 3, got {bands}")
        if len(channels) < 1 or min(channels) < 1 or stem < 1:
            raise ValueError(f"channels and stem must be positive, got {tuple(channels)} and {stem}")
        if not 0 <= octaves <= 16:
            raise ValueError(f"octaves must be 0 to 16, got {octaves}")
        if design != DESIGN:
            raise ValueError(f"design must be {DESIGN}, got {design}")
        self.bands, self.channels, self.stem, self.octaves = bands, tuple(channels), stem, octaves
        self.backend = backend
        self.predictor = CoarsePredictor(2 * (bands + 3), self.channels, stem)
        self.prior = nn.Parameter(torch.full((bands + 3,), PRIOR))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # Start near the plain mean of the images.
        nn.init.normal_(self.predictor.head.weight, std=0.002)

    def config(self) -> dict:
        """Return the constructor's arguments, as weight files keep them."""
        return {
            "bands": self.bands,
            "channels": list(self.channels),
            "stem": self.stem,
            "octaves": self.octaves,
            "design": DESIGN,
        }

    def predict(
        self, half: Tensor, validity: Tensor | None = None, preference: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return shares and gains, (B, L + 3, N, h, w) each: bands, finest first, base, fine octaves, further octaves.

        Args:
            half: (B, N, ceil(H / 2), ceil(W / 2)), luminance in [0, 1] at half size.
            validity: (B, N, h, w), the part of each cell that may be used; None means all of it.
            preference: (B, N), added to the logits; None means 0.
        """
        batch, count = half.shape[:2]
        half = _to_multiple(half, SCALE // 2)
        high, low = (F.avg_pool2d(maps, 4) for maps in validity_of(half))
        apart = F.avg_pool2d(half.amax(1, keepdim=True) - half.amin(1, keepdim=True), 4)
        statistics = torch.stack([1 - high, 1 - low, apart.expand_as(high)], 2)
        planes = self.predictor(half.flatten(0, 1).unsqueeze(1), statistics.flatten(0, 1), count)
        logits, gains = planes.unflatten(0, (batch, count)).transpose(1, 2).chunk(2, dim=1)
        recorded = (high * (0.1 + 0.9 * low) + FLOOR).log().unsqueeze(1)
        logits = logits + self.prior.view(1, -1, 1, 1, 1) * recorded
        if validity is not None:
            logits = logits + validity.clamp_min(1e-6).log().unsqueeze(1)
        if preference is not None:
            logits = logits + preference[:, None, :, None, None]
        bands, base, further = (gains * (apart / (apart + GATE)).unsqueeze(1)).split([self.bands, 2, 1], 1)
        more = 1 - 2 / count
        gains = torch.cat([bands * (1 + MORE_BANDS * more), base * (1 + MORE_BASE * more), further], 1)
        return logits.softmax(2), gains

    def fuse(
        self, luminance: Tensor, validity: Tensor | None = None, adjust: Adjustments = NEUTRAL
    ) -> tuple[Tensor, Tensor]:
        """Return fused luminance (B, 1, H, W), unclamped, and the base's shares (B, N, h, w), which colour uses.

        Args:
            luminance: (B, N, H, W) in [0, 1], N >= 2 in any order.
            validity: (B, N, H, W) in [0, 1], how far each pixel may be used; None: as far as it is recorded.
            adjust: contrast and preference; the rest is :func:`adjust_colour`'s.

        Raises:
            ValueError: a shape is wrong.
        """
        _check_luminance(luminance)
        cells = None
        if validity is not None:
            if validity.shape != luminance.shape:
                raise ValueError(f"validity must be {tuple(luminance.shape)}, got shape {tuple(validity.shape)}")
            cells = F.avg_pool2d(_to_multiple(validity, SCALE), SCALE)
        levels = [luminance]
        for _ in range(3):
            levels.append(halve(levels[-1]))
        preference = float(adjust.prefer) * _ranks(luminance) if adjust.prefer else None
        shares, gains = self.predict(levels[1], cells, preference)
        weights = shares * (1 + gains) * (1 + adjust.contrast)
        base = self._base(levels[3], shares[:, -3:], weights[:, -3], gains[:, -2:], adjust.contrast)
        for level in (2, 1, 0):
            base = _up(base, levels[level])
        bands = pyramid_fuse(
            luminance,
            weights[:, : self.bands].contiguous(),
            torch.zeros_like(shares[:, 0]),
            scale=SCALE,
            backend=self.backend,
        )
        return bands.unsqueeze(1) + base, shares[:, -3]

    def _base(self, coarse: Tensor, shares: Tensor, weights: Tensor, gains: Tensor, contrast: float) -> Tensor:
        """Blend the luminance at 1/8 size (B, N, h, w) over the octaves -> (B, 1, h, w).

        Args:
            coarse: P_0.
            shares: (B, 3, N, h, w), of the base, of the fine and of further octaves.
            weights: of the band of P_0.
            gains: (B, 2, N, h, w), of the fine and of further octaves.
            contrast: the octaves' bands are multiplied by one more than this.
        """
        if not self.octaves:
            return (shares[:, 0] * coarse).sum(1, keepdim=True)
        pictures, bands = [coarse], [weights]
        share = [shares[:, 1], shares[:, 2]]
        gain = [gains[:, 0], gains[:, 1]]
        for octave in range(1, self.octaves + 1):
            share, gain = ([next_octave(maps, octave) for maps in both] for both in (share, gain))
            pictures.append(next_octave(pictures[-1], octave))
            plane = 0 if octave <= FINE_OCTAVES else 1
            bands.append(share[plane] * (1 + gain[plane]) * (1 + contrast))
        out = (share[1] * pictures[-1]).sum(1, keepdim=True)
        for octave in range(self.octaves - 1, -1, -1):
            below = pictures[octave + 1]
            if octave < FINE_OCTAVES:
                out, below = _up(out, pictures[octave]), _up(below, pictures[octave])
            out = out + (bands[octave] * (pictures[octave] - below)).sum(1, keepdim=True)
        return out

    def forward(
        self, luminance: Tensor, validity: Tensor | None = None, *, with_shares: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return the fused luminance that :meth:`fuse` returns first, or both with ``with_shares``.

        One native operator computes it where no derivatives are asked for; its bits do not depend on the order of the
        exposures. Compiled and exported graphs hold that operator with derivatives too: height and width stay free.
        """
        if validity is None and not with_shares:
            parameters = list(self.parameters())
            in_fx = isinstance(luminance, torch.fx.Proxy)  # it has no sizes, so the operator checks them
            if not in_fx:
                _check_luminance(luminance)
            if in_fx or self._is_one_operator(parameters, luminance):
                return pyramid_luminance(luminance, parameters, self.channels, self.stem, self.octaves)
        fused, shares = self.fuse(luminance, validity)
        return (fused, shares) if with_shares else fused

    def why_not_native(self, *tensors: Tensor, count: int = 2) -> str | None:
        """Return why the native operators cannot run the model on these tensors of ``count`` exposures now, or None."""
        return self._why_not_native(parameters_of(self), tensors, count)

    def _why_not_native(
        self, parameters: Sequence[Tensor], tensors: Sequence[Tensor], count: int, operator: str = "pyramid_exposures"
    ) -> str | None:
        if not all(tensor.numel() for tensor in tensors):
            return "tensors must not be empty"
        if flop_counters():
            return "a FlopCounterMode counts torch's operators"
        backend = "cuda" if parameters[0].device.type == "cuda" else "cpu"
        if self.backend not in (None, backend):
            return f"backend must be None or {backend!r}, got {self.backend!r}"
        sizes = {"channels": self.channels, "stem": self.stem, "bands": self.bands, "octaves": self.octaves}
        if not torch.is_grad_enabled():  # asking about one of each kind takes a tenth of the time
            parameters = list({(one.device, one.dtype): one for one in parameters}.values())
        given = {"tensors": list(tensors), "parameters": parameters, "count": count}
        return why_not(operator, backend, **given, **sizes)

    def _is_one_operator(self, parameters: Sequence[Tensor], luminance: Tensor) -> bool:
        """Return whether ``pyramid_luminance`` is to replace the model: at once or, with derivatives, in a graph."""
        if torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export():  # ffmef.onnx writes the graph itself
            return True
        in_graph = torch.compiler.is_compiling() or torch.jit.is_tracing()
        name = "pyramid_luminance" if in_graph else "pyramid_exposures"
        return self._why_not_native(parameters, [luminance], luminance.shape[1], name) is None

    @torch.inference_mode()
    def fuse_rgb(
        self, pictures: Sequence[Tensor], validity: Sequence[Tensor] | None = None, adjust: Adjustments = NEUTRAL
    ) -> Tensor:
        """Fuse two or more pictures (H, W, 3) of one size into one; the order cannot matter.

        Computes :meth:`fuse`, then :func:`to_rgb`, and rounds. One native operator does so on the CPU for uint8, and on
        a GPU for every dtype.

        Args:
            pictures: (H, W, 3) each; uint8, uint16 or float32 in [0, 1]. Or (B, H, W, 3) each, B brackets, for a
                result (B, H, W, 3): a GPU fuses small ones beside each other.
            validity: (H, W) or (B, H, W) for each, how far its pixels may be used: in [0, 1], in steps of 1/255, or
                uint8, the number of such steps; None: as far as they are recorded.
            adjust: brightness, saturation, contrast and preference.

        Raises:
            ValueError: there are fewer than two pictures, or the dtype is another.
        """
        if len(pictures) < 2:
            raise ValueError(f"pictures must be at least 2, got {len(pictures)}")
        dtype, device = pictures[0].dtype, pictures[0].device
        if dtype not in _OF_BYTE:
            raise ValueError(f"pictures must be uint8, uint16 or float32, got {str(dtype)[6:]}")
        steps = None
        if validity is not None:
            whole = torch.uint8
            steps = [v if v.dtype == whole else (v.clamp(0, 1) * 255).round().to(whole) for v in validity]
        parameters = parameters_of(self)
        native = parameters[0].device == device and self._why_not_native(parameters, (), len(pictures)) is None
        if native and (dtype == torch.uint8 or device.type == "cuda"):
            return pyramid_exposures(pictures, steps or [], parameters, self.channels, self.stem, self.octaves, adjust)
        if pictures[0].dim() == 4:
            masks = zip(*steps, strict=True) if steps else itertools.repeat(None)
            brackets = zip(zip(*pictures, strict=True), masks, strict=False)
            each = [self.fuse_rgb(bracket, mask, adjust) for bracket, mask in brackets]
            return torch.stack(each) if each else torch.empty_like(pictures[0])

        # Floating-point sums depend on their order, so the darkest picture comes first. Pictures of equal sums are
        # ordered by their samples, unless they are equal.
        wide = torch.float64 if dtype.is_floating_point else torch.int64
        sums = torch.stack([picture.to(wide).sum() for picture in pictures]).tolist()

        def key(index: int):
            return sums[index], pictures[index].cpu().numpy().tobytes() if sums.count(sums[index]) > 1 else b""

        order = sorted(range(len(pictures)), key=key)
        pictures = [pictures[index] for index in order]
        usable = None if steps is None else torch.stack([steps[index] for index in order]).unsqueeze(0) / 255
        rgb = torch.stack([picture.permute(2, 0, 1).float() for picture in pictures]).unsqueeze(0) / _OF_BYTE[dtype]
        ycbcr = rgb_to_ycbcr(rgb)
        fused, shares = self.fuse(ycbcr[:, :, 0].contiguous() / 255, usable, adjust)
        out = to_rgb(fused, shares, rgb, usable, adjust, ycbcr=ycbcr) * _OF_BYTE[dtype]
        if not dtype.is_floating_point:
            out = (out + 0.5).to(torch.int32).to(dtype)
        return out[0].permute(1, 2, 0).contiguous()

    def adopt(self, state: dict[str, Tensor], design: int) -> None:
        """Take over weights of an earlier design, to continue training from them.

        The third design has the same parameters. From the second, the fine octaves start with the plane of all octaves.
        From the first, only the trunk is taken: all octaves start with the base's plane, the cells' statistics start
        without effect, and the layer that saw the picture's mean sees the cell.

        Raises:
            RuntimeError: names or shapes do not fit.
        """
        state = dict(state)
        overall, head = "predictor.overall.weight", ("predictor.head.weight", "predictor.head.bias")
        for name, sizes in {overall: 2 if design == 1 else 4, head[0]: 4, head[1]: 1}.items():
            if name not in state or state[name].dim() != sizes:
                found = state[name].dim() if name in state else "no such weight"
                raise RuntimeError(f"{name} must have {sizes} dimensions, got {found}")
        count = self.bands + min(design, 3)  # planes of logits, and as many of gains
        if any(len(state[name]) != 2 * count for name in head):
            raise RuntimeError(f"predictor.head must have {2 * count} planes, got {len(state[head[1]])}")
        planes = [min(plane, count - 1) for plane in range(self.bands + 3)]
        for name in head:
            state[name] = state[name][planes + [count + plane for plane in planes]]
        if design == 1:
            state[overall] = state[overall][..., None, None]
            for name in ("weight", "bias"):
                own = getattr(self.predictor.statistics, name)
                state[f"predictor.statistics.{name}"] = torch.zeros_like(own)
            state["prior"] = self.prior.detach().clone()
        elif state.get("prior", self.prior).shape == (count,):
            state["prior"] = state["prior"][planes]
        self.load_state_dict(state)


def to_rgb(
    fused: Tensor,
    shares: Tensor,
    rgb: Tensor,
    validity: Tensor | None = None,
    adjust: Adjustments = NEUTRAL,
    *,
    ycbcr: Tensor | None = None,
) -> Tensor:
    """Return RGB (B, 3, H, W) on 0..255, not rounded, from what :meth:`PyramidFFMEF.fuse` returns.

    :func:`into_range` gives luminance, :func:`merge_chroma` and :func:`smooth_chroma` chroma; then come
    :func:`adjust_colour` and :func:`into_gamut`.

    Args:
        fused: (B, 1, H, W) in [0, 1], or beyond.
        shares: (B, N, h, w), of the base.
        rgb: (B, N, 3, H, W) on 0..255, the exposures.
        validity: (B, N, H, W) in [0, 1]; None: 1 everywhere.
        adjust: brightness and saturation; the rest is :meth:`PyramidFFMEF.fuse`'s.
        ycbcr: of ``rgb``, if known.
    """
    ycbcr = rgb_to_ycbcr(rgb) if ycbcr is None else ycbcr
    extremes = _extremes(ycbcr[:, :, 0], validity)
    luminance, white = into_range(fused * 255, rgb, validity, extremes=extremes)
    chroma = merge_chroma(rgb, shares, validity, ycbcr=ycbcr)
    chroma = smooth_chroma(chroma, fused * 255, ycbcr[:, :, 0], validity, extremes=extremes)
    return into_gamut(adjust_colour(torch.cat([luminance, chroma], 1), adjust), white)


def into_range(
    luminance: Tensor,
    rgb: Tensor,
    validity: Tensor | None = None,
    *,
    ycbcr: Tensor | None = None,
    extremes: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Compress fused luminance near white and black as far as some exposure shows more there.

    Fused bands can reach beyond every exposure. Clipping would leave flat white or black where the darkest or the
    brightest exposure has texture. With :math:`g = 1.164383\,(Y - 16)`, of the exposures :math:`g_n` and of the fused
    luminance g,

    .. math::
        W &= \max(\min_n \max RGB_n,\ 252), \qquad
        k = \max(\min_n g_n,\ 218), \qquad t = \min(\max_n g_n,\ 24) \\
        g' &= k + \frac{(W - k)(g - k)}{(W - k) + (g - k)} \ (g > k), \qquad
        g' = t - \frac{t\,(t - g)}{t + (t - g)} \ (g < t), \qquad g' = g \text{ else}

    The result reaches white where every exposure is white and black where every exposure is black. A picture fused with
    itself is unchanged. An exposure of validity v counts as :math:`255 - v\,(255 - x)` in minima and as
    :math:`v\,x` in the maximum.

    Args:
        luminance: Y (B, 1, H, W) on 0..255, studio swing, or beyond.
        rgb: (B, N, 3, H, W) on 0..255, the exposures.
        validity: (B, N, H, W) in [0, 1]; None: 1 everywhere.
        ycbcr: of ``rgb``, if known.
        extremes: the least and the greatest grey of the exposures (B, 1, H, W), if known.

    Returns:
        Y of the same shape, and W (B, 1, H, W), for :func:`into_gamut`.

    Example:
        >>> import torch
        >>> exposures = torch.tensor([150.0, 255.0]).view(1, 2, 1, 1, 1).expand(1, 2, 3, 1, 1)
        >>> y, white = into_range(torch.full((1, 1, 1, 1), 235.0), exposures)  # white, as in the brighter exposure
        >>> round(float(1.164383 * (y - 16)), 1), float(white)
        (235.7, 252.0)
    """
    if extremes is None:
        extremes = _extremes((rgb_to_ycbcr(rgb) if ycbcr is None else ycbcr)[:, :, 0], validity)
    darkest, brightest = extremes
    tops = rgb.amax(2) if validity is None else 255 - validity * (255 - rgb.amax(2))
    white = tops.amin(1, keepdim=True).clamp_min(WHITE)
    knee, toe = darkest.clamp_min(KNEE), brightest.clamp(0, TOE)
    grey = luminance_to_grey(luminance)
    above, below = (grey - knee).clamp_min(0), (toe - grey).clamp_min(0)
    room = (white - knee).clamp_min(0)
    bent = grey - above + below + room * above / (room + above + 1e-6) - toe * below / (toe + below + 1e-6)
    return bent / 1.164383 + 16, white


def merge_chroma(rgb: Tensor, shares: Tensor, validity: Tensor | None = None, *, ycbcr: Tensor | None = None) -> Tensor:
    r"""Merge the chroma of exposures by the fusion's own shares and by what each exposure has recorded.

    .. math::
        m_n &= U_8(s_n)\, (r_n + 0.02)\, v_n, \qquad
        r_n = [(232 - Y_n)/24]\,[(Y_n - 16)/32]\,(0.2 + 0.8\, [(252 - \max RGB_n)/24])\,
        (0.1 + 0.9\, [\min RGB_n/24]) \\
        d_n &= \max_{b,r} \Bigl| \sum_{k \ne n} m_k (C_n - C_k) \Bigr| / \Bigl(\sum_{k \ne n} m_k + 10^{-4}\Bigr),
        \qquad m'_n = m_n / (1 + (d_n / 16)^2)^4 \\
        C &= \sum_n m'_n C_n / \sum_n m'_n

    [x] is x clamped to [0, 1]; C is Cb - 128 and Cr - 128; s are the shares of the base. A channel near white or black
    has lost its part of the colour: a candle's deep orange, brightened, would turn pink. The second line trusts an
    exposure less the further its colour is from that of all others: a colour that only one exposure shows does not win,
    unless the others may not be used. With two exposures both distances are equal; the line changes nothing and is left
    out.

    Args:
        rgb: (B, N, 3, H, W) on 0..255.
        shares: (B, N, h, w), of the base.
        validity: (B, N, H, W), v; None: 1 everywhere.
        ycbcr: of ``rgb``, if known.

    Returns:
        (B, 2, H, W), Cb and Cr on 0..255, 128 for no colour.

    Raises:
        RuntimeError: the shapes do not fit; the error is torch's.

    Example:
        >>> import torch
        >>> grey = torch.full((1, 2, 3, 8, 8), 100.0)
        >>> merge_chroma(grey, torch.full((1, 2, 1, 1), 0.5)).round().unique()
        tensor([128.])
    """
    ycbcr = rgb_to_ycbcr(rgb) if ycbcr is None else ycbcr
    y, colours = ycbcr[:, :, 0], ycbcr[:, :, 1:] - 128
    mass = _up(shares, y, float(SCALE)) * (_recorded_colour(y, rgb.amax(2), rgb.amin(2)) + FLOOR)
    if validity is not None:
        mass = mass * validity.clamp_min(1e-6)
    mass = mass.unsqueeze(2)
    if rgb.shape[1] > 2:
        all_mass, total = mass.sum(1, keepdim=True), (mass * colours).sum(1, keepdim=True)
        distance = (all_mass * colours - total).abs().amax(2, keepdim=True) / (all_mass - mass + 1e-4)
        mass = mass / (1 + (distance / 16).square()).square().square()
    return (mass * colours).sum(1) / (mass.sum(1) + 1e-12) + 128


def smooth_chroma(
    chroma: Tensor,
    fused: Tensor,
    y: Tensor,
    validity: Tensor | None = None,
    *,
    extremes: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    r"""Reduce the noise of merged chroma: pixels 2i and 2i + 1 of a row approach each other where exposures differ.

    With :math:`\delta` half the step in chroma from a pixel to the other of its pair, e the step in fused luminance,
    and a the difference between the brightest and the darkest exposure there, in grey as in :func:`into_range` and no
    less than 0,

    .. math::
        C' = C + \frac{a}{a + 8} \cdot \frac{16}{16 + \delta_b^2 + \delta_r^2 + e^2}\, \delta

    Steps of some levels on smooth surfaces are noise and are halved or more. Edges of colour stay, and so does
    texture, which hides noise. A picture fused with itself is unchanged. The last column of an odd width has no other.

    Args:
        chroma: (B, 2, H, W), Cb and Cr on 0..255.
        fused: (B, 1, H, W), fused luminance on 0..255, studio swing, or beyond.
        y: (B, N, H, W), the exposures' luminance, likewise.
        validity: (B, N, H, W) in [0, 1]; None: 1 everywhere.
        extremes: as in :func:`into_range`.

    Returns:
        (B, 2, H, W).

    Example:
        >>> import torch
        >>> y = torch.tensor([50.0, 150.0]).view(1, 2, 1, 1).expand(1, 2, 1, 3)
        >>> chroma = torch.tensor([[120.0, 124.0, 130.0], [128.0, 128.0, 128.0]]).view(1, 2, 1, 3)
        >>> smooth_chroma(chroma, y[:, :1], y)[0, 0].round(decimals=2)
        tensor([[121.5000, 122.5000, 130.0000]])
    """
    columns = torch.arange(chroma.shape[3], device=chroma.device)
    other = (columns + 1 - columns % 2 * 2).clamp_max(chroma.shape[3] - 1)
    half, edge = ((maps.index_select(3, other) - maps) for maps in (chroma / 2, fused.clamp(-FAR, FAR)))
    darkest, brightest = _extremes(y, validity) if extremes is None else extremes
    apart = (brightest - darkest).clamp_min(0)
    far = half.square().sum(1, keepdim=True) + edge.square()
    return chroma + half * (apart / (apart + APART) / (1 + far / STEP**2))


def adjust_colour(ycbcr: Tensor, adjust: Adjustments) -> Tensor:
    """Return Y, Cb and Cr (B, 3, H, W) on 0..255 with the brightness and saturation of ``adjust``."""
    if not adjust.brightness and not adjust.saturation:
        return ycbcr
    factor = 2.0**adjust.brightness
    y, colours = ycbcr[:, :1] - 16, ycbcr[:, 1:] - 128
    gain = factor / (1 + (factor - 1) * (y / 219).clamp(0, 1))
    return torch.cat([y * gain + 16, colours * gain * (1 + adjust.saturation) + 128], 1)


def _extremes(y: Tensor, validity: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the least and the greatest grey of the exposures (B, 1, H, W), on 0..255, of luminance (B, N, H, W)."""
    greys = most = luminance_to_grey(y)
    if validity is not None:
        greys, most = 255 - validity * (255 - greys), validity * greys
    return greys.amin(1, keepdim=True), most.amax(1, keepdim=True)


def _check_luminance(luminance: Tensor) -> None:
    if luminance.dim() != 4 or luminance.shape[1] < 2:
        raise ValueError(f"luminance must be (B, N, H, W) with N >= 2, got shape {tuple(luminance.shape)}")


def _ranks(luminance: Tensor) -> Tensor:
    """Return ranks (B, N) in even steps from -1 for the darkest mean luminance to 1 for the brightest."""
    order = luminance.mean((2, 3)).argsort(dim=1, stable=True).argsort(dim=1)
    return 2 * order.to(luminance.dtype) / (luminance.shape[1] - 1) - 1


def into_gamut(ycbcr: Tensor, white: Tensor | float = 255.0) -> Tensor:
    """Return RGB on 0..255 from Y, Cb and Cr (B, 3, H, W): colours outside move towards grey and keep their hue.

    With g = 1.164383 (Y - 16) clamped to 0..255 and t, b the largest and smallest of R, G and B, chroma is multiplied
    by the smallest of 1, (W - g) / (t - g) where t > W, and g / (g - b) where b < 0; by 0 where g > W. W is raised by
    0.001: rounding may push a value that just reaches it beyond.

    Args:
        ycbcr: on 0..255.
        white: W, the most that channels may reach, (B, 1, H, W).
    """
    rgb = ycbcr_to_rgb(ycbcr)
    grey = luminance_to_grey(ycbcr[:, :1]).clamp(0, 255)
    colour = rgb - luminance_to_grey(ycbcr[:, :1])
    above, below = colour.amax(1, keepdim=True), -colour.amin(1, keepdim=True)
    room = (white + SLACK - grey).clamp_min(0)
    scale = torch.minimum(room / above.clamp_min(1e-6), grey / below.clamp_min(1e-6)).clamp(max=1)
    return (grey + scale * colour).clamp(0, 255)


def _recorded_colour(y: Tensor, top: Tensor, bottom: Tensor) -> Tensor:
    """Return how far colour is recorded, 0 to 1, from luminance, the largest and smallest of R, G, B, on 0..255."""
    darker = ((232 - y) / 24).clamp(0, 1) * ((y - 16) / 32).clamp(0, 1)
    return darker * (0.2 + 0.8 * ((252 - top) / 24).clamp(0, 1)) * (0.1 + 0.9 * (bottom / 24).clamp(0, 1))
