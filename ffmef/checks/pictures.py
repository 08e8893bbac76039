"""Checks of fusions on a device: PyramidFFMEF's kernels against float64, and every model against the CPU."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ffmef.adjust import NEUTRAL, Adjustments

if TYPE_CHECKING:
    import numpy as np
    import torch

    from ffmef.models.pyramid import PyramidFFMEF

TOP = {"uint8": 255, "uint16": 65535, "float32": 1, "luminance": 1}
# The largest difference from float64: levels of integers, absolute for floating point.
ALLOWED = {"uint8": 1, "uint16": 12, "float32": 2e-4, "luminance": 2e-5}
CHANGED = Adjustments(brightness=0.5, contrast=0.3, saturation=-0.4, prefer=1.5)


@dataclass(frozen=True)
class PictureProblem:
    """Exposures of one kind and size; ``masked``: only parts of them may be used."""

    kind: str
    count: int
    height: int
    width: int
    brackets: int = 1
    masked: bool = False
    adjust: Adjustments = NEUTRAL

    def __str__(self) -> str:
        parts = [f"{self.brackets} x " if self.brackets > 1 else "", f"{self.count} x {self.height} x {self.width}"]
        parts += [" partly usable" if self.masked else "", "" if self.adjust == NEUTRAL else " adjusted"]
        return f"pictures {self.kind} {''.join(parts)}"


def problems(device: str) -> list[PictureProblem]:
    """Return the problems: kinds of samples, vectors or not, octaves large and small, several brackets."""
    small = [
        PictureProblem("uint8", 2, 67, 150),
        PictureProblem("uint8", 2, 40, 136),
        PictureProblem("uint8", 2, 1, 1),
        PictureProblem("uint8", 3, 69, 75, masked=True, adjust=CHANGED),
        PictureProblem("uint8", 9, 35, 46),
        PictureProblem("uint16", 3, 37, 36),
        PictureProblem("float32", 2, 40, 11, masked=True),
        PictureProblem("luminance", 3, 45, 67),
        PictureProblem("uint8", 2, 17, 24, brackets=5),
        PictureProblem("uint8", 3, 12, 20, brackets=2, masked=True, adjust=CHANGED),
        PictureProblem("luminance", 2, 16, 9, brackets=3),
    ]
    # Octaves too large for one block have launches of their own.
    return [*small, PictureProblem("uint8", 9, 640, 992)] if device == "cuda" else small


def exposures_of(problem: PictureProblem) -> tuple[list[torch.Tensor], list[torch.Tensor] | None]:
    """Return the exposures, (brackets, height, width[, 3]) each, and how far each may be used in steps of 1/255."""
    import torch

    random = torch.Generator().manual_seed(problem.height)
    shape = (problem.brackets, problem.height, problem.width)
    planes, top = () if problem.kind == "luminance" else (3,), TOP[problem.kind]
    given, masks = [], []
    for n in range(problem.count):
        samples = torch.rand((*shape, *planes), generator=random) * (n + 1) / problem.count
        given.append(samples if top == 1 else (samples * top).round().to(getattr(torch, problem.kind)))
        masks.append(torch.randint(0, 256, shape, generator=random).to(torch.uint8))
    return given, masks if problem.masked else None


def definition(model: PyramidFFMEF, problem: PictureProblem) -> torch.Tensor:
    """Return the result in float64, not rounded, from plain torch on the CPU."""
    import torch

    from ffmef.imaging.colour import rgb_to_ycbcr
    from ffmef.models.pyramid import to_rgb

    wide, (given, masks) = copy.deepcopy(model).cpu().double(), exposures_of(problem)
    exposures = torch.stack([picture.double() for picture in given], 1)
    usable = None if masks is None else torch.stack(masks, 1).double() / 255
    if problem.kind == "luminance":
        return wide.fuse(exposures, usable, problem.adjust)[0][:, 0]
    rgb = exposures.movedim(-1, 2) * (255 / TOP[problem.kind])
    ycbcr = rgb_to_ycbcr(rgb)
    fused, shares = wide.fuse(ycbcr[:, :, 0] / 255, usable, problem.adjust)
    colour = to_rgb(fused, shares, rgb, usable, problem.adjust, ycbcr=ycbcr)
    return colour.movedim(1, -1) * (TOP[problem.kind] / 255)


def picture_error(model: PyramidFFMEF, problem: PictureProblem) -> float:
    """Return the largest error in units of what is allowed; infinity if their order or a repetition matters."""
    import torch

    place = next(model.parameters()).device
    given, masks = exposures_of(problem)

    def run(order: range) -> torch.Tensor:
        there = [given[n].to(place) for n in order]
        if problem.kind == "luminance":
            return model(torch.stack(there, 1)).cpu()[:, 0]
        usable = None if masks is None else [masks[n].to(place) for n in order]
        return model.fuse_rgb(there, usable, problem.adjust).cpu()

    with torch.inference_mode():
        found = run(range(problem.count))
        if not all(torch.equal(found, run(order)) for order in (range(problem.count), range(problem.count)[::-1])):
            return float("inf")
        wanted = definition(model, problem)
        if TOP[problem.kind] != 1:
            wanted = (wanted + 0.5).floor()
        return float((found.double() - wanted).abs().max()) / ALLOWED[problem.kind]


def stream_error(device: str) -> float:
    """Return 0 if :func:`ffmef.fuse_many` gives what single calls give, and infinity otherwise."""
    import numpy as np

    import ffmef

    random = np.random.default_rng(3)
    brackets = [list(random.integers(0, 256, (2, rows, 50, 3), dtype=np.uint8)) for rows in (30, 41, 30, 52, 30)]
    brackets[1] = [picture[..., 0] for picture in brackets[1]]
    for model in ("pyramid", "ffmef"):
        together = ffmef.fuse_many(iter(brackets), model=model, device=device)
        alone = [ffmef.fuse(bracket, model=model, device=device) for bracket in brackets]
        if not all(map(np.array_equal, together, alone)):
            return float("inf")
    return 0.0


@dataclass(frozen=True)
class Fusion:
    """A call of :func:`ffmef.fuse`; ``grey``: which pictures are; ``changed``: with validity and adjustments."""

    model: str
    dtype: str = "uint8"
    task: str = "mef"
    grey: tuple[int, ...] = ()
    changed: bool = False

    def __str__(self) -> str:
        grey = {0: "", 1: f" picture {self.grey[0] if self.grey else 0} grey", 2: " grey"}[len(self.grey)]
        return f"fuse {self.model} {self.task} {self.dtype}{grey}{' partly usable adjusted' if self.changed else ''}"


def fusions() -> list[Fusion]:
    """Return calls with every model, task and kind of picture."""
    depths = ("uint8", "uint16", "float32", "float64")
    kinds = [("uint8", (0, 1)), ("uint8", (0,)), ("float64", (1,)), ("float16", ())]
    found = [Fusion("ffmef", dtype) for dtype in depths] + [Fusion("ffmef", dtype, grey=grey) for dtype, grey in kinds]
    found += [Fusion("pyramid", dtype, changed=changed) for dtype in depths for changed in (False, True)]
    found += [Fusion("pyramid", dtype, grey=grey, changed=True) for dtype, grey in kinds]
    found += [Fusion("ffmef", "uint8", "mff"), Fusion("ffmef", "uint16", "mff", (1,))]
    found += [Fusion("ffmef", "uint8", "vif", grey) for grey in ((), (0,), (1,), (0, 1))]
    return [*found, *(Fusion("focus", dtype, "mff") for dtype in depths), Fusion("focus", "uint8", "mff", (0, 1))]


def fusion_error(fusion: Fusion, device: str) -> float:
    """Return the largest difference from the CPU in units of what is allowed; infinity if order or repetition matters.

    With ``device="cpu"`` the steps that other devices take run there.
    """
    import numpy as np

    import ffmef

    images = _scene_of(fusion)
    options: dict[str, Any] = {}
    if fusion.changed:
        options = {"validity": [_some_of(images[0]), None], "adjust": CHANGED}
    given: Any = dict(zip(("infrared", "visible"), images, strict=True)) if fusion.task == "vif" else images
    wanted = ffmef.fuse(given, fusion.task, model=fusion.model, **options).astype(np.float64)
    found = [_fused_there(fusion, images, options, device) for _ in range(3)]  # the second may be recorded as a graph
    same = all(np.array_equal(found[0], other) for other in found[1:])
    if fusion.task == "mef":
        turned = {**options, "validity": options["validity"][::-1]} if options else {}
        same &= np.array_equal(found[0], _fused_there(fusion, images[::-1], turned, device))
    if not same or found[0].shape != wanted.shape or found[0].dtype != images[0].dtype:
        return float("inf")
    allowed = {"uint8": 1, "uint16": 12, "float16": 2e-3}.get(fusion.dtype, 2e-4)
    if fusion.model == "focus":  # the CPU keeps some maps in half precision
        allowed = {"uint8": 1, "uint16": 65}.get(fusion.dtype, 1e-3)
    return float(np.abs(found[0].astype(np.float64) - wanted).max()) / allowed


def _scene_of(fusion: Fusion) -> list[np.ndarray]:
    """Return two pictures of a scene with smooth parts, noise, black and white; a hot object for infrared ones."""
    import numpy as np

    random, (y, x) = np.random.default_rng(5), np.mgrid[:43, :85]
    light = 0.5 + 0.5 * np.sin(x / 17) * np.cos(y / 13)
    scene = np.stack([light, light**1.4, np.roll(light, 5, 1) ** 0.7], -1) + 0.05 * random.random((*x.shape, 3))
    pair = [np.clip(scene * gain, 0, 1) for gain in (0.5, 2.0)]
    if fusion.task == "vif":
        pair[0] = np.where((x[..., None] - 40) ** 2 + (y[..., None] - 25) ** 2 < 150, 0.9, 0.3 * scene / 1.05)
    top = np.iinfo(fusion.dtype).max if fusion.dtype.startswith("uint") else 1
    whole = [(np.rint(picture * top) if top > 1 else picture).astype(fusion.dtype) for picture in pair]
    return [picture[..., 1].copy() if n in fusion.grey else picture for n, picture in enumerate(whole)]


def _some_of(image: np.ndarray) -> np.ndarray:
    import numpy as np

    height, width = image.shape[:2]
    return (np.arange(height * width).reshape(height, width) * 7 % 256).astype(np.uint8)


def _fused_there(fusion: Fusion, images: list, options: dict, device: str) -> np.ndarray:
    import ffmef

    if device == "cpu":
        return _fused_as_elsewhere(fusion, images, options)
    given: Any = dict(zip(("infrared", "visible"), images, strict=True)) if fusion.task == "vif" else images
    return ffmef.fuse(given, fusion.task, model=fusion.model, device=device, **options)


def _fused_as_elsewhere(fusion: Fusion, images: list, options: dict) -> np.ndarray:
    import torch

    from ffmef import models, on_device, pipeline

    model = models.load(models.registry.find(fusion.model).weights_for(fusion.task))

    def order_of(sums: list[float]) -> list[int]:
        return pipeline._exposure_order(sums, images, None)

    ordered = order_of if fusion.task == "mef" else None
    bracket = on_device.Bracket(images, fusion.task, **options, room=fusion.task == "vif", order_of=ordered)
    return on_device.start(model, bracket, torch.device("cpu"))()[0]
