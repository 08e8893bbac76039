"""Computes a fixed set of results and writes them to the file named first: see test_adaptive_fuse.py.

A separate program, because a process chooses its instruction set only once (by the variable FFMEF_ISA).
"""

from __future__ import annotations

import itertools
import sys

import numpy as np
import torch

import ffmef.ops
from ffmef.ops.adaptive_fuse import PADDING_MODES

_ORDER = ("portable", "avx2", "avx512")


def rank(isa: str) -> int:
    """Position of an instruction set among those of one machine, narrow to wide."""
    return _ORDER.index(isa) if isa in _ORDER else len(_ORDER)


def _random(*shape: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(-1, 1, shape)).to(dtype)


def results() -> dict[str, np.ndarray]:
    """Outputs and gradients by name; those named ``exact`` are rounded only once, so every set gives the same bits."""
    found = {}
    for dtype in (torch.float64, torch.float32):
        for mode in PADDING_MODES:
            for sides, grid in itertools.product(((1, 3, 5), (7, 9), (31,)), ((18, 37), (3, 5), (11, 36))):
                images = _random(1, 2, 2, 18, 37, dtype=dtype, seed=1)
                filters = [_random(1, 2, k * k, *grid, dtype=dtype, seed=k) for k in sides]
                alphas = _random(len(sides), dtype=dtype, seed=3)
                leaves = [t.requires_grad_() for t in (images, *filters, alphas)]
                out = ffmef.ops.adaptive_fuse(images, filters, alphas, padding_mode=mode)
                computed = (out, *torch.autograd.grad(out, leaves, _random(1, 2, 18, 37, dtype=dtype, seed=4)))
                for n, value in enumerate(computed):
                    found[f"{str(dtype)[6:]}, {mode}, {sides}, {grid}, {n}"] = value.detach().numpy()
    for dtype in (torch.float16, torch.bfloat16):
        every = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype)
        shuffled = every[torch.from_numpy(np.random.default_rng(0).permutation(65536))]
        for name, a, b in (
            ("vectors", every.view(1, 1, 16, 4096), shuffled.view(1, 1, 1, 16, 4096)),
            ("elements", every.view(1, 1, 4096, 16).mT, shuffled.view(1, 1, 1, 4096, 16).mT),
            ("ends", every[:65520].view(1, 1, 5040, 13), shuffled[:65520].view(1, 1, 1, 5040, 13)),
        ):
            out = ffmef.ops.adaptive_fuse(a, [b])
            found[f"exact {name} {dtype}"] = out.float().numpy()
            found[f"exact torch {name} {dtype}"] = (a.float() * b[:, :, 0].float())[:, 0].to(dtype).float().numpy()
            np.testing.assert_array_equal(found[f"exact {name} {dtype}"], found[f"exact torch {name} {dtype}"])
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    np.savez(sys.argv[1], **results())
    try:
        from ffmef import _info

        print(_info.isa())
    except ImportError:
        print("unknown")
