"""Problems of the CUDA kernels of PyramidFFMEF's pictures, their float64 results, and their run in the emulator."""

from __future__ import annotations

import copy
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import torch

from cuda_emulation import decoded, execute, numbers
from ffmef.adjust import NEUTRAL, Adjustments
from ffmef.imaging.colour import rgb_to_ycbcr
from ffmef.models import load
from ffmef.models.pyramid import PyramidFFMEF, to_rgb

SAMPLES = {"luminance": torch.float32, "rgb8": torch.uint8, "rgb16": torch.uint16, "rgb float": torch.float32}
TOP = {"luminance": 1, "rgb8": 255, "rgb16": 65535, "rgb float": 1}
# The largest difference from float64: levels of integers, absolute for floating point.
ALLOWED = {"luminance": 2e-5, "rgb8": 1, "rgb16": 12, "rgb float": 2e-4}


@dataclass(frozen=True)
class Case:
    """One fusion: what the exposures are, and the model."""

    name: str
    sample: str = "rgb8"
    count: int = 2
    height: int = 37
    width: int = 51
    masked: bool = False
    adjust: Adjustments = NEUTRAL
    channels: tuple[int, ...] = (16, 16, 32, 32)
    stem: int = 8
    octaves: int = 6
    bundled: bool = False  # weights
    offset: int = 0  # samples past a 16-byte boundary
    pictures: str = "noise"
    order: tuple[int, ...] = field(default=())
    brackets: int = 1  # in one call, on streams beside each other if there are several


def model_of(case: Case) -> PyramidFFMEF:
    if case.bundled:
        model = load("mef-pyramid")
        model.octaves = case.octaves
        return model
    torch.manual_seed(zlib.crc32(case.name.encode()))
    model = PyramidFFMEF(channels=case.channels, stem=case.stem, octaves=case.octaves)
    with torch.no_grad():
        model.predictor.head.weight.normal_(std=0.1)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
    return model.eval()


def pictures_of(case: Case, bracket: int = 0) -> list[torch.Tensor]:
    """Return the exposures: noise of several brightnesses, one picture several times, or what a scene looks like."""
    generator = torch.Generator().manual_seed(zlib.crc32(case.name.encode()) + bracket)
    planes = () if case.sample == "luminance" else (3,)
    shape = (case.height, case.width, *planes)
    drawn = []
    if case.pictures == "same":
        drawn = [torch.rand(shape, generator=generator)] * case.count
    elif case.pictures == "scene":
        y, x = torch.meshgrid(torch.arange(case.height) / 17, torch.arange(case.width) / 13, indexing="ij")
        light = 0.5 + 0.5 * torch.sin(x) * torch.cos(y)
        scene = light if not planes else torch.stack([light, light.roll(5, 1) ** 1.4, light.roll(3, 0) ** 0.7], -1)
        drawn = [(scene * 4.0 ** (n - (case.count - 1) / 2)).clamp(0, 1) for n in range(case.count)]
    else:
        drawn = [torch.rand(shape, generator=generator) * (n + 1) / case.count for n in range(case.count)]
    if case.order:
        drawn = [drawn[n] for n in case.order]
    if TOP[case.sample] == 1:
        return drawn
    return [(picture * TOP[case.sample]).round().to(torch.int32) for picture in drawn]


def masks_of(case: Case, bracket: int = 0) -> list[torch.Tensor]:
    """Return the validity of each exposure on 0..255; the first exposure's is zero in a corner."""
    generator = torch.Generator().manual_seed(7 + bracket)
    masks = [torch.randint(0, 256, (case.height, case.width), generator=generator) for _ in range(case.count)]
    masks[0][: case.height // 2, : case.width // 2] = 0
    return [masks[n] for n in case.order] if case.order else masks


def expected(case: Case, bracket: int = 0) -> torch.Tensor:
    """Return the model's definition in float64: luminance, or RGB on the sample's scale, not rounded."""
    model = copy.deepcopy(model_of(case)).double()
    given = torch.stack([picture.double() for picture in pictures_of(case, bracket)])[None]
    usable = torch.stack(masks_of(case, bracket))[None].double() / 255 if case.masked else None
    with torch.inference_mode():
        if case.sample == "luminance":
            return model.fuse(given, usable, case.adjust)[0][0, 0]
        rgb = given.movedim(-1, 2) * (255 / TOP[case.sample])
        ycbcr = rgb_to_ycbcr(rgb)
        fused, shares = model.fuse(ycbcr[:, :, 0] / 255, usable, case.adjust)
        out = to_rgb(fused, shares, rgb, usable, case.adjust, ycbcr=ycbcr)
    return out[0].movedim(0, -1) * (TOP[case.sample] / 255)


def _bytes(tensor: torch.Tensor, case: Case) -> bytes:
    numpy = tensor.contiguous().numpy()
    kind = {"luminance": "<f4", "rgb8": "<u1", "rgb16": "<u2", "rgb float": "<f4"}[case.sample]
    return numpy.astype(kind).tobytes()


def encode(case: Case) -> bytes:
    model, change = model_of(case), case.adjust
    data = numbers(list(SAMPLES).index(case.sample), case.count, case.height, case.width, int(case.masked))
    data += numbers(case.brackets, case.offset)
    data += numbers(len(case.channels), *case.channels, case.stem, case.octaves)
    data += struct.pack("<4f", 2.0**change.brightness, 1 + change.contrast, 1 + change.saturation, change.prefer)
    data += b"".join(p.detach().contiguous().numpy().tobytes() for p in model.parameters())
    brackets = range(case.brackets)
    data += b"".join(_bytes(picture, case) for bracket in brackets for picture in pictures_of(case, bracket))
    if case.masked:
        masks = (mask for bracket in brackets for mask in masks_of(case, bracket))
        data += b"".join(mask.to(torch.uint8).numpy().tobytes() for mask in masks)
    return data


def run(program: Path, cases: list[Case]) -> list[torch.Tensor]:
    """Run cases in the emulator and return what each gives: a picture, or as many as there are brackets."""
    kinds = []
    for case in cases:
        planes = () if case.sample == "luminance" else (3,)
        kinds.append([((case.height, case.width, *planes), SAMPLES[case.sample])] * case.brackets)
    encoded = numbers(len(cases)) + b"".join(map(encode, cases))
    found = decoded(execute(program, encoded), kinds)
    return [parts[0] if len(parts) == 1 else torch.stack(parts) for parts in found]


def error_of(case: Case, result: torch.Tensor) -> float:
    """Return the largest difference from float64 in units of what is allowed."""
    wanted = torch.stack([expected(case, bracket) for bracket in range(case.brackets)])
    if TOP[case.sample] != 1:
        wanted, result = (wanted + 0.5).floor(), result.to(torch.int64)
    return ((result.double() - wanted).abs().max() / ALLOWED[case.sample]).item()


MANY = Adjustments(brightness=0.5, contrast=0.3, saturation=-0.4, prefer=1.5)
MATRIX = [
    Case("a pair"),
    Case("a pair, bundled weights", bundled=True, pictures="scene", height=75, width=141),
    Case("a pair, words", width=68, height=40, bundled=True),
    Case("off a boundary", width=68, height=18, offset=1),
    Case("one pixel", height=1, width=1),
    Case("one row", height=1, width=70),
    Case("two columns", height=45, width=2),
    Case("every rest of eight", height=21, width=30),
    Case("another rest of eight", height=26, width=19),
    Case("a third rest of eight", height=23, width=17),
    Case("whole cells", height=64, width=128),
    Case("many tiles", height=150, width=290, bundled=True),
    Case("three", count=3, bundled=True, pictures="scene"),
    Case("nine", count=9, height=35, width=46, bundled=True, pictures="scene"),
    Case("nine of noise", count=9, height=19, width=23),
    Case("usable parts", masked=True),
    Case("usable parts of three", masked=True, count=3, width=68),
    Case("adjusted", adjust=MANY, pictures="scene"),
    Case("adjusted, four", adjust=MANY, count=4, masked=True),
    Case("no octave", octaves=0),
    Case("one octave", octaves=1, height=80, width=99),
    Case("three octaves", octaves=3, height=99, width=80),
    Case("sixteen octaves", octaves=16),
    Case("two grids", channels=(16, 16)),
    Case("two wide grids", channels=(16, 32), stem=16),
    Case("three grids", channels=(16, 32, 16), stem=3),
    Case("five grids", channels=(16, 16, 32, 16, 16), stem=1, height=60, width=90),
    Case("luminance", sample="luminance"),
    Case("luminance, words", sample="luminance", width=68, count=3),
    Case("luminance, bundled weights", sample="luminance", bundled=True, pictures="scene", height=90, width=75),
    Case("luminance, nine", sample="luminance", count=9),
    Case("16 bit", sample="rgb16"),
    Case("16 bit, words", sample="rgb16", width=36, count=3, bundled=True),
    Case("floating point", sample="rgb float"),
    Case("floating point, words", sample="rgb float", width=36, masked=True, adjust=MANY),
]  # fmt: skip
