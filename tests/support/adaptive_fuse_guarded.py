"""Runs the operator with arguments that touch unreadable pages, or frees results under a checking allocator.

A separate program, because the mistakes that it looks for end the process: see test_adaptive_fuse.py.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import mmap
import sys

import torch

import ffmef.ops
from ffmef.ops.adaptive_fuse import PADDING_MODES

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
PAGE = mmap.PAGESIZE

# (B, N, C, H, W), filter sides: rows that end at many places of a vector, one tile and two, every kernel size class
CASES = [((1, 2, 1, 3, width), (1, 3, 5, 7, 9)) for width in (1, 2, 7, 8, 15, 16, 17, 31, 33)]
CASES += [((2, 1, 3, 17, 5), (3,)), ((1, 1, 1, 2, 1031), (1, 5)), ((1, 2, 20, 1, 131), (31,))]
# Filters on a coarser grid: its cells as a share of the pixels; 1 keeps full resolution.
SHARES = (1, 1 / 8, 1 / 3, 0.9, 0.01)
# and at full resolution with a pixel's taps side by side, as in channels_last
GRIDS = [*((share, False) for share in SHARES), (1, True)]


def guarded(values: torch.Tensor, at_end: bool) -> torch.Tensor:
    """A copy whose last (or first) byte lies next to a page that must not be touched."""
    size = values.numel() * values.element_size()
    pages = math.ceil(size / PAGE)
    start = libc.mmap(
        None, (pages + 2) * PAGE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0
    )
    for page in (0, pages + 1):
        if libc.mprotect(start + page * PAGE, PAGE, 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")
    address = start + PAGE + (pages * PAGE - size if at_end else 0)
    memory = (ctypes.c_char * size).from_address(address)
    return torch.frombuffer(memory, dtype=values.dtype).view(values.shape).copy_(values)


def run(place) -> None:
    modes = itertools.cycle(PADDING_MODES)
    for dtype, ((batch, count, channels, height, width), sides), (share, turned) in itertools.product(
        (torch.float64, torch.float32, torch.float16, torch.bfloat16), CASES, GRIDS
    ):
        mode = next(modes)
        print(dtype, (batch, count, channels, height, width), sides, mode, share, turned, flush=True)
        grid = math.ceil(height * share), math.ceil(width * share)
        images = place(torch.rand(batch, count, channels, height, width).to(dtype))
        filters = [
            place(torch.rand(batch, count, *grid, k * k).to(dtype)).movedim(-1, 2)
            if turned
            else place(torch.rand(batch, count, k * k, *grid).to(dtype))
            for k in sides
        ]
        grad = place(torch.rand(batch, channels, height, width).to(dtype))
        leaves = [t.requires_grad_() for t in (images, *filters, torch.rand(len(sides)))]
        out = ffmef.ops.adaptive_fuse(images, filters, leaves[-1], padding_mode=mode, backend="cpu")
        results = torch.autograd.grad(out, leaves, grad)
        assert all(r.isfinite().all() for r in (out, *results))
        del out, results


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:] == ["--results"]:
        run(lambda values: values)
        print("all written within bounds")
    else:
        run(lambda values: guarded(values, at_end=True))
        run(lambda values: guarded(values, at_end=False))
        print("all read within bounds")
