"""Builds the driver of the emulated CUDA kernels (tests/support/cuda_emulator) and runs cases through it."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch

from ffmef.ops import reference
from gpu_cases import TOLERANCE, Case, expected_backward, expected_forward, make_tensors
from problems import PADDINGS, relative_error

ROOT = Path(__file__).resolve().parents[2]
DTYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}


def _cuda_include() -> Path | None:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda", "/usr"]
    for home in filter(None, homes):
        if Path(home, "include", "cuda_fp16.h").is_file():
            return Path(home, "include")
    return None


CUDA_INCLUDE = _cuda_include()
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
needs_emulator = [
    pytest.mark.skipif(CUDA_INCLUDE is None, reason="the emulator needs the headers of a CUDA toolkit (set CUDA_HOME)"),
    pytest.mark.skipif(COMPILER is None, reason="the emulator needs a C++ compiler"),
]


def build(folder: Path, *flags: str, sources: Path = ROOT, operator: str = "adaptive_fuse") -> Path:
    """Compile the driver of an operator's emulated kernels and return the program."""
    program = folder / f"{operator}_driver"
    command = [COMPILER, "-std=c++20", "-O1", "-fno-strict-aliasing", "-isystem", str(CUDA_INCLUDE)]
    command += ["-Wall", "-Wextra", "-Werror", "-Wno-attributes", "-Wno-unknown-pragmas", *flags]
    command += ["-o", str(program), str(sources / f"tests/support/cuda_emulator/{program.name}.cpp")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0 and "-fsanitize" in str(flags) and "cannot find" in done.stderr:
        pytest.skip("the compiler lacks the sanitizer's library")
    assert done.returncode == 0, done.stderr[-4000:]
    return program


def numbers(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}q", *values)


def _raw(tensor: torch.Tensor) -> bytes:
    dense = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)
    return dense.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def encoded_tensor(tensor: torch.Tensor, stride_of_rows: int | None = None) -> bytes:
    strides = list(tensor.stride())
    if stride_of_rows is not None:
        strides[-2] = stride_of_rows
    # Only the first element's distance from a 16-byte boundary matters in the offset.
    offset = tensor.storage_offset() % (16 // tensor.element_size())
    return numbers(*tensor.shape, *strides, offset) + _raw(tensor)


def _encode(case: Case, backward: bool, far_rows: int | None) -> bytes:
    t = make_tensors(case)
    data = numbers(DTYPE_CODES[case.dtype], PADDINGS.index(case.padding), int(backward), case.output_offset)
    data += encoded_tensor(t.images, far_rows) + numbers(len(t.filters))
    data += b"".join(encoded_tensor(level, far_rows) for level in t.filters) + encoded_tensor(t.alphas)
    if backward:
        data += encoded_tensor(t.gradient, far_rows) + numbers(int(case.need_images), int(case.need_alphas))
        data += numbers(*map(int, case.filters_needed))
    return data


Kind = tuple[tuple[int, ...], torch.dtype]


def _result_kinds(case: Case, backward: bool) -> list[Kind]:
    plane = (case.height, case.width)
    if not backward:
        return [((case.batch, case.channels, *plane), case.dtype)]
    kinds: list[Kind] = []
    if case.need_images:
        kinds.append(((case.batch, case.images, case.channels, *plane), case.dtype))
    for size, grid, needed in zip(case.sizes, case.grid_of_levels, case.filters_needed):
        if needed:
            kinds.append(((case.batch, case.images, size * size, *grid), case.dtype))
    if case.need_alphas:
        kinds.append(((len(case.sizes),), reference.accumulator(case.dtype)))
    return kinds


class Failed(Exception):
    """The emulator or a sanitizer stopped the kernels."""


def why_failed(run: Callable, error_of: Callable, program: Path, cases: list) -> str:
    """Return why the cases fail on this program; an empty string if they pass. An error of 1 is the limit."""
    try:
        found = run(program, cases)
    except Failed as failure:
        return str(failure)
    # Two cases may share a name if they ask for different gradients.
    errors = [(case.name, error_of(case, result)) for case, result in zip(cases, found, strict=True)]
    # A NaN as an error is a failure, too.
    return next((f"{name}: {error:.1e} times what is allowed" for name, error in errors if not error <= 1), "")


def why_failed_either_way(run: Callable, worst: Callable, program: Path, forward: list, backward: list) -> str:
    """Return why cases fail, forward or backward (``run`` and ``worst`` know both); an empty string if they pass."""
    for direction, cases in ((False, forward), (True, backward)):

        def error_of(case: Case, results: list[torch.Tensor], direction: bool = direction) -> float:
            return worst(case, results, direction) / TOLERANCE[case.dtype]

        if reason := why_failed(partial(run, backward=direction), error_of, program, cases):
            return f"{'backward' if direction else 'forward'}, {reason}"
    return ""


def execute(program: Path, cases: bytes) -> bytes:
    """Run the program on encoded cases and return its results, or raise Failed with what stopped it."""
    cases_file, results_file = program.parent / "cases", program.parent / "results"
    cases_file.write_bytes(cases)
    options = {
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0",
        "UBSAN_OPTIONS": "halt_on_error=1",
        "TSAN_OPTIONS": "halt_on_error=1:report_signal_unsafe=0",
    }
    command = [str(program), str(cases_file), str(results_file)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **options})
    if done.returncode != 0:
        # A signal says nothing, and an empty reason would be taken for none.
        raise Failed(done.stderr[-3000:] or f"the program ended with status {done.returncode}")
    return results_file.read_bytes()


def decoded(data: bytes, kinds: list[list[Kind]]) -> list[list[torch.Tensor]]:
    """Return each case's results, of the shapes and dtypes in ``kinds``."""
    results, at = [], 0
    for number, parts in enumerate(kinds):
        status, at = struct.unpack_from("<i", data, at)[0], at + 4
        assert status == 0, f"case {number}: CUDA error {status}"
        results.append([])
        for shape, dtype in parts:
            count = torch.Size(shape).numel()
            end = at + count * dtype.itemsize
            part = torch.frombuffer(bytearray(data[at:end]), dtype=dtype) if count else torch.empty(0)
            results[-1].append(part.reshape(shape))
            at = end
    assert at == len(data)
    return results


def run(program: Path, cases: list[Case], backward: bool, far_rows: int | None = None) -> list[list[torch.Tensor]]:
    """Run cases in the emulator and return the results of each."""
    encoded = numbers(len(cases)) + b"".join(_encode(case, backward, far_rows) for case in cases)
    kinds = [_result_kinds(case, backward) for case in cases]
    return decoded(execute(program, encoded), kinds)


def worst(case: Case, results: list[torch.Tensor], backward: bool) -> float:
    """Return the largest relative error over the results of a case."""
    expected = expected_backward(case) if backward else [expected_forward(case)]
    assert len(results) == len(expected)
    return max(map(relative_error, results, expected))


@dataclass(frozen=True)
class Mutant:
    """A fault planted in a copy of the kernels, and the compiler flags under which it must show."""

    name: str
    right: str
    wrong: str
    file: str = "cuda/adaptive_fuse.cuh"
    flags: tuple[str, ...] = ()
    sign: str = ""  # what the failure has to say
    nth: int = 0  # which occurrence of `right`
    count: int = 1  # how many occurrences there are


def plant(mutant: Mutant, folder: Path, *flags: str, operator: str = "adaptive_fuse") -> Path:
    """Build the driver from a copy of the sources with the fault in it."""
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    shutil.copytree(ROOT / "tests/support/cuda_emulator", folder / "tests/support/cuda_emulator")
    file = folder / "csrc" / mutant.file
    pieces = file.read_text().split(mutant.right)
    assert len(pieces) == mutant.count + 1, "the line that the fault replaces has changed"
    split = mutant.nth + 1
    file.write_text(mutant.right.join(pieces[:split]) + mutant.wrong + mutant.right.join(pieces[split:]))
    return build(folder, "-w", *flags, *mutant.flags, sources=folder, operator=operator)
