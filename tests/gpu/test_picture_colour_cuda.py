"""The CUDA kernels of colour, executed on the CPU thread by thread: the definition's bits, sanitizers, planted faults."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from budgets import cuda
from cuda_emulation import ROOT, Failed, Mutant, build, decoded, execute, needs_emulator, numbers, plant
from ffmef.imaging import colour

OPERATOR = "picture_colour"
DTYPES = (torch.uint8, torch.uint16, torch.float32, torch.float64)
TOP = {torch.uint8: 255, torch.uint16: 65535}


@dataclass(frozen=True)
class Case:
    """``sources`` coloured pictures whose chroma is merged; 0: a picture of 1 or 3 channels whose luminance is taken."""

    dtype: torch.dtype
    sources: int
    channels: int = 3
    pixels: int = 1500
    offset: int = 0


CASES = [Case(dtype, 0, channels, pixels, offset) for dtype in DTYPES for channels in (1, 3)
         for pixels, offset in ((1500, 0), (1, 0), (1027, 1))]  # fmt: skip
CASES += [Case(dtype, sources, 3, pixels, offset) for dtype in DTYPES for sources in (1, 2, 5)
          for pixels, offset in ((1500, 0), (3, 0), (1027, 1))]  # fmt: skip


def given(case: Case) -> tuple[list[torch.Tensor], torch.Tensor]:
    random = torch.Generator().manual_seed(case.pixels + case.sources)
    pictures = []
    for n in range(max(case.sources, 1)):
        values = torch.rand((case.pixels, case.channels), generator=random, dtype=torch.float64) * (n + 1) / 2
        values = values.clamp(max=1)
        values[::7] = values[::7, :1]  # grey
        values[1::31], values[2::31] = 0, 1
        top = TOP.get(case.dtype)
        samples = values.to(case.dtype) if top is None else (values * top).round().to(torch.int32).to(case.dtype)
        pictures.append(samples[..., 0][:, None] if case.channels == 1 else samples[:, None])
    return pictures, torch.rand(case.pixels, generator=random)


def expected(case: Case) -> torch.Tensor:
    pictures, fused = given(case)
    if case.sources:
        return colour.recoloured(fused[:, None], pictures, case.dtype)[:, 0]
    return colour.sample_luminance(pictures[0]).float()[:, 0]


def run(program: Path, cases: list[Case]) -> list[torch.Tensor]:
    data = numbers(len(cases))
    for case in cases:
        pictures, fused = given(case)
        code = DTYPES.index(case.dtype)
        data += numbers(code, case.sources, case.channels, case.pixels, case.offset)
        data += b"".join(picture.contiguous().numpy().tobytes() for picture in pictures)
        data += fused.numpy().tobytes() if case.sources else b""
    kinds = [[((c.pixels, 3), c.dtype) if c.sources else ((c.pixels,), torch.float32)] for c in cases]
    return [parts[0] for parts in decoded(execute(program, data), kinds)]


def why_wrong(program: Path) -> str:
    try:
        found = run(program, CASES)
    except Failed as failure:
        return str(failure)
    wrong = (case for case, result in zip(CASES, found, strict=True) if not torch.equal(result, expected(case)))
    return str(next(wrong, ""))


@needs_emulator[0]
@needs_emulator[1]
@pytest.mark.parametrize("sanitizer", [None, pytest.param("address,undefined", marks=pytest.mark.slow)])
def test_equals_the_definition_to_the_bit(tmp_path: Path, sanitizer: str | None) -> None:
    flags = () if sanitizer is None else ("-g", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all")
    assert why_wrong(build(tmp_path, *flags, operator=OPERATOR)) == ""


FILE = "cuda/picture_colour.cuh"
MUTANTS = [
    Mutant("another red", "T(1.596027)", "T(1.596127)", FILE),
    Mutant("another luminance of grey", "T(0.256789 + 0.504129 + 0.097906)", "T(0.858)", FILE),
    Mutant("no pixel left over", "for (int64_t pixel = first; pixel < p.pixels", "for (int64_t pixel = first; pixel + 1 < p.pixels",
           FILE, nth=1, count=2),
    Mutant("a mean of chroma", "from_red * red_size", "from_red", FILE),
    Mutant("cut, not rounded", "rintf(within(x.value, 255.0f))", "within(x.value, 255.0f)", FILE),
    Mutant("one source merged", "if (single) {", "if (false) {", FILE),
]  # fmt: skip


@needs_emulator[0]
@needs_emulator[1]
@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_planted_faults_show(tmp_path: Path, mutant: Mutant) -> None:
    assert why_wrong(plant(mutant, tmp_path, operator=OPERATOR)) != ""


@pytest.mark.slow
@pytest.mark.skipif(cuda.missing() is not None, reason=str(cuda.missing()))
def test_kernels_keep_everything_in_registers(tmp_path: Path) -> None:
    source, cubin = ROOT / "csrc/cuda/picture_colour.cu", tmp_path / "kernels.cubin"
    command = [cuda.find_nvcc(), "-cubin", "-std=c++17", "-O3", "-arch=sm_90", "-Xptxas", "-v", source, "-o", cubin]
    report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    assert report.count("Used ") == 24 and report.count(" 0 bytes stack frame") == 24
