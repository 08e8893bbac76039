"""Runs cases of pyramid_cases.py through the emulated CUDA kernels of pyramid_fuse."""

from __future__ import annotations

from pathlib import Path

import torch

from cuda_emulation import DTYPE_CODES, decoded, encoded_tensor, execute, numbers
from problems import relative_error
from pyramid_cases import Case, expected_backward, expected_forward, make_tensors, shapes


def _encode(case: Case, backward: bool, far_rows: int | None) -> bytes:
    t = make_tensors(case)
    data = numbers(DTYPE_CODES[case.dtype], int(backward), case.output_offset, case.scale)
    data += encoded_tensor(t.images, far_rows) + encoded_tensor(t.weights) + encoded_tensor(t.base)
    if backward:
        data += encoded_tensor(t.gradient, far_rows) + numbers(*map(int, case.needed))
    return data


def run(program: Path, cases: list[Case], backward: bool, far_rows: int | None = None) -> list[list[torch.Tensor]]:
    """Run cases in the emulator and return the results of each."""
    kinds = [
        [(shape, case.dtype) for shape, needed in zip(shapes(case), case.needed) if needed]
        if backward
        else [(shapes(case)[3], case.dtype)]
        for case in cases
    ]
    encoded = numbers(len(cases)) + b"".join(_encode(case, backward, far_rows) for case in cases)
    return decoded(execute(program, encoded), kinds)


def worst(case: Case, results: list[torch.Tensor], backward: bool) -> float:
    """Return the largest relative error over the results of a case."""
    expected = expected_backward(case) if backward else [expected_forward(case)]
    assert len(results) == len(expected)
    return max(map(relative_error, results, expected))
