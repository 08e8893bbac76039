"""Samples of synthetic brackets, made on the training device, a whole batch at once.

Random numbers are drawn as in :class:`ffmef.data.SyntheticBrackets`, but from separate generators: the same kinds of
samples, not the same samples. Nothing waits for the device: it still trains on one batch while the next is prepared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ffmef.data.crops import draw_count, draw_window
from ffmef.data.dataset import EpochBatches, Mixture, TrainingSet
from ffmef.data.synthetic import LUMINANCE, SyntheticBrackets
from ffmef.errors import InputError


class DeviceBatches:
    """The batches of an epoch as uint8 (B, N, 3, size, size) on a device; a batch has one number of pictures.

    Args:
        dataset: the samples; its scenes must be synthetic brackets.
        batches: the batches; iteration begins where ``seek`` has put it.
        device: keeps all photographs in its memory.

    Raises:
        InputError: the scenes hold real exposures.
    """

    def __init__(self, dataset: TrainingSet, batches: EpochBatches, device: torch.device):
        mixed = dataset.scenes.parts if isinstance(dataset.scenes, Mixture) else []
        parts = [part for part in mixed if isinstance(part, SyntheticBrackets)]
        if not parts or len(parts) < len(mixed):
            raise InputError("on_device makes samples of photographs only, got data")
        self._dataset, self._batches, self._device, self._parts = dataset, batches, device, parts
        self._light = [
            torch.from_numpy(np.ascontiguousarray(light.transpose(2, 0, 1))).to(device)
            for part in parts
            for light in part.light
        ]
        self._generator = torch.Generator(device)

    def __iter__(self) -> Iterator[Tensor]:
        for places in self._batches:
            yield self.make(places)

    @torch.no_grad()
    def make(self, places: list[tuple[int, int]]) -> Tensor:
        """Return the samples of (epoch, number); they depend only on these and the seed."""
        rng = np.random.default_rng([self._dataset.seed, 2, *places[0]])
        self._generator.manual_seed(int(rng.integers(2**62)))
        part = self._parts[0]
        light = []
        for _, number in places:
            scene = self._scene(number % len(self._light), rng)
            if rng.random() < part.windows:
                scene = self._behind_window(scene, self._scene(int(rng.integers(len(self._light))), rng), rng)
            light.append(self._turn(scene, rng))
        gains = torch.stack([self._range(scene, rng) for scene in light])
        count = draw_count(part.count, part.largest_count, rng)
        steps = torch.linspace(0, 1, count, device=self._device)
        gains = gains[:, :1] * (gains[:, 1:] / gains[:, :1]) ** steps
        samples = self._take(torch.stack(light), gains, rng)
        if part.order == "random":
            samples = samples[:, torch.from_numpy(rng.permutation(count)).to(self._device)]
        return samples

    def _scene(self, index: int, rng: np.random.Generator) -> Tensor:
        """Return linear light (3, size, size)."""
        light, size = self._light[index], self._dataset.size
        if light.dtype == torch.uint8:
            part = self._cut(light, rng).clamp(0, 255)
            return self._spread_tones((part / 255) ** rng.uniform(1.9, 2.4) + 1e-4, rng)
        if light.shape[2] == 2 * light.shape[1]:
            return _view(light, size, rng)
        return self._cut(light, rng).clamp_min(0) + 1e-6

    def _cut(self, light: Tensor, rng: np.random.Generator) -> Tensor:
        size = self._dataset.size
        _, rows, columns = light.shape
        top, left, height, width = draw_window(rows, columns, size, self._dataset.recipe, rng)
        part = light[None, :, top : top + height, left : left + width].float()
        mode = "bilinear" if height * width >= size * size else "bicubic"
        return F.interpolate(part, (size, size), mode=mode, antialias=True)[0]

    def _turn(self, scene: Tensor, rng: np.random.Generator) -> Tensor:
        axes = [axis for axis in (1, 2) if rng.random() < 0.5] if self._dataset.flips else []
        scene = scene.flip(axes) if axes else scene
        return scene.transpose(1, 2) if self._dataset.turns and rng.random() < 0.5 else scene

    def _spread_tones(self, linear: Tensor, rng: np.random.Generator) -> Tensor:
        """Stretch the blurred logarithm of light by 1 to 2.5 times; detail keeps its contrast."""
        logarithm = _luminance(linear).log2()
        blur = self._blur(linear.shape[1] * rng.uniform(0.02, 0.15))
        base = blur @ logarithm @ blur.T
        return linear * ((base - base.mean()) * rng.uniform(0.0, 1.5)).exp2()

    def _blur(self, sigma: float) -> Tensor:
        """Return the matrix (size, size) that blurs columns by a Gaussian; its weights sum to 1 at borders too."""
        place = torch.arange(self._dataset.size, device=self._device, dtype=torch.float32)
        return (-(place[:, None] - place).square() / (2 * sigma**2)).softmax(1)

    def _behind_window(self, scene: Tensor, other: Tensor, rng: np.random.Generator) -> Tensor:
        """Return ``scene`` with ``other``, 2 to 6 stops brighter, in a random rectangle or half-plane."""
        place = torch.arange(self._dataset.size, device=self._device, dtype=torch.float32) / self._dataset.size
        rows, columns = place[:, None], place[None, :]
        if rng.random() < 0.5:
            centre, half = rng.uniform(0.2, 0.8, 2).tolist(), rng.uniform(0.12, 0.4, 2).tolist()
            mask = ((rows - centre[0]).abs() < half[0]) & ((columns - centre[1]).abs() < half[1])
        else:
            angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-0.25, 0.25)
            bend = rng.uniform(0, 0.12) * (rng.uniform(4, 20) * columns + rng.uniform(0, 6)).sin()
            mask = math.sin(angle) * (rows - 0.5 + bend) + math.cos(angle) * (columns - 0.5) > offset
        mask = mask.float()
        if rng.random() < 0.5:
            blur = self._blur(rng.uniform(0.4, 3.0))
            mask = blur @ mask @ blur.T
        level = _luminance(scene).median() / _luminance(other).median() * 2 ** rng.uniform(2, 6)
        return scene * (1 - mask) + other * (mask * level)

    def _range(self, scene: Tensor, rng: np.random.Generator) -> Tensor:
        """Return the smallest and the largest gain, (2,), which preserve highlights and shadows."""
        levels = _luminance(scene)[::2, ::2].flatten().sort().values
        last = len(levels) - 1
        under = _log_uniform(0.05, 0.8, rng) / levels[int(rng.uniform(0.92, 0.997) * last)]
        over = _log_uniform(0.02, 0.3, rng) / levels[int(rng.uniform(0.03, 0.35) * last)]
        over = torch.maximum(over, under * 2 ** rng.uniform(2.5, 4.5))
        over = torch.minimum(over, under * 2 ** rng.uniform(5.0, 8.0))
        jitter = self._parts[0].jitter
        under = under * 2 ** (-rng.uniform(0, 2.5) * (rng.random() < jitter))
        return torch.stack([under, over * 2 ** (rng.uniform(0, 3) * (rng.random() < jitter))])

    def _take(self, light: Tensor, gains: Tensor, rng: np.random.Generator) -> Tensor:
        """Photograph linear light (B, 3, size, size) with gains (B, N); 1.0 is the brightest recorded value."""
        low = np.array([1 / 2.4, 0.0, 3.0, 0.0005])
        high = np.array([1 / 1.9, 0.5, 4.5, 0.003])
        camera = torch.from_numpy(rng.uniform(low, high, (len(light), 4)).astype(np.float32))
        if self._device.type == "cuda":
            camera = camera.pin_memory()
        camera = camera.to(self._device, non_blocking=True)
        gamma, bend, full_well, read_noise = (value.view(-1, 1, 1, 1, 1) for value in camera.unbind(1))
        light = light.unsqueeze(1) * gains[:, :, None, None, None]
        noise = torch.randn(light.shape, device=self._device, generator=self._generator)
        light = light + noise * (light.clamp(0, 1) / 10**full_well + read_noise.square()).sqrt()
        curve = light.clamp(0, 1) ** gamma
        curve = (1 - bend) * curve + bend * (curve * curve * (3 - 2 * curve))
        return (curve * 255 + 0.5).to(torch.uint8)


def _luminance(rgb: Tensor) -> Tensor:
    red, green, blue = LUMINANCE.tolist()
    return red * rgb[0] + green * rgb[1] + blue * rgb[2]


def _log_uniform(low: float, high: float, rng: np.random.Generator) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _view(panorama: Tensor, size: int, rng: np.random.Generator) -> Tensor:
    """Return a random perspective view of an equirectangular panorama, 40 to 100 degrees wide, near the horizon."""
    half = math.tan(math.radians(rng.uniform(40, 100)) / 2)
    yaw, pitch = rng.uniform(0, 2 * np.pi), math.radians(rng.uniform(-30, 30))
    place = torch.linspace(-half, half, size, device=panorama.device)
    x, y = place[None, :], place[:, None]
    depth = math.cos(pitch) + y * math.sin(pitch)
    down = y * math.cos(pitch) - math.sin(pitch)
    longitude = (torch.atan2(x, depth) + yaw).remainder(2 * math.pi)
    latitude = torch.atan2(down, (x.square() + depth.square()).sqrt())
    rows = (latitude / math.pi + 0.5) * panorama.shape[1] - 0.5
    grid = torch.stack([longitude / math.pi - 1, rows * (2 / (panorama.shape[1] - 1)) - 1], -1)
    # The first column is repeated after the last, so the seam is interpolated too.
    closed = torch.cat([panorama, panorama[..., :1]], 2)
    return F.grid_sample(closed[None], grid[None], padding_mode="border", align_corners=True)[0] + 1e-6
