"""Launches kernels on a GPU that is not there, each argument changed in turn: kept forms must be those of Triton.

If one kept form stood for two of Triton's, it would run a kernel compiled for other alignments, strides or types.
"""

from __future__ import annotations

import itertools
import math
import sys

import torch

import triton_without_gpu as gpu
from ffmef.kernels import adaptive_fuse, launch, pyramid_fuse


def strided(*shape: int, dtype: torch.dtype, offset: int, step: int) -> torch.Tensor:
    """Return zeros whose last stride is ``step`` and which start ``offset`` elements off an aligned address."""
    memory = torch.zeros(offset + math.prod(shape) * step, dtype=dtype)
    return memory[offset:].view(*shape[:-1], shape[-1] * step)[..., ::step]


def launch_all() -> None:
    """Call the operators on tensors that differ in everything that Triton specialises for."""
    kinds = [(torch.float32, *rest) for rest in itertools.product((16, 17, 1), (0, 1), (1, 2))]
    for dtype, width, offset, step in [*kinds, (torch.float16, 16, 0, 1)]:
        images = strided(1, 2, 1, 4, width, dtype=dtype, offset=offset, step=step)
        cells = torch.zeros(1, 2, 1, -(-width // 4), dtype=dtype)
        pyramid_fuse.forward(images, cells.unsqueeze(1), cells, 4)
    for alphas in (torch.ones(2), torch.ones(3)[1:]):
        images = torch.zeros(1, 2, 1, 4, 16)
        adaptive_fuse.forward(images, [images, torch.zeros(1, 2, 9, 2, 2)], alphas, "zeros")


def main() -> int:
    launch_all()
    first = [(name, function, grid, arguments[4:]) for name, function, grid, arguments in gpu.launched]
    compiled = gpu.driver.active.utils.loaded
    gpu.launched.clear()
    launch_all()  # through what was kept
    kept = [(name, function, grid) for name, function, grid, _ in gpu.launched]
    assert gpu.driver.active.utils.loaded == compiled, "a second call compiled again"
    gpu.launched.clear()
    # Now Triton's own choice, every time.
    launch._Forms.form_of = lambda self, values, warps: object()
    launch_all()
    own = [(name, function, grid) for name, function, grid, _ in gpu.launched]
    assert kept == own, [pair for pair in zip(kept, own, strict=True) if pair[0] != pair[1]][:3]
    assert [entry[:3] for entry in first] == own
    print(f"{len(own)} launches, {compiled} kernels: every form as Triton chooses it")
    return 0


if __name__ == "__main__":
    sys.exit(main())
