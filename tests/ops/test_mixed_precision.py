"""Images and filters of different dtypes in one kernel, and filters in any memory format, against float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ffmef.ops import adaptive_fuse, reference

LOW = (torch.float32, torch.float16, torch.bfloat16)
MIXED = [pair for pair in itertools.product(LOW, LOW) if pair[0] != pair[1]]
# One rounding of the result, plus float32's of the sums.
ROUNDING = {torch.float32: 2e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}


def tensors(image_dtype, filter_dtypes, grids, seed=0, height=21, width=37, channels=2):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64) - 0.25

    images = random(2, 2, channels, height, width).to(image_dtype)
    filters = [
        random(2, 2, k * k, *(grid or (height, width))).to(dtype)
        for k, grid, dtype in zip((1, 5, 3), grids, filter_dtypes, strict=True)
    ]
    return images, filters, random(3).float()


def compare(found, exact):
    bound = ROUNDING[found.dtype]
    torch.testing.assert_close(found.double(), exact, rtol=bound, atol=bound * float(exact.abs().max()))


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
@pytest.mark.parametrize("grids", [(None, None, None), ((4, 6), None, (7, 9))], ids=["full", "coarse"])
@pytest.mark.parametrize("pair", MIXED, ids=str)
def test_mixed_dtypes_are_rounded_once(pair, grids, padding_mode, backend):
    image_dtype, filter_dtype = pair
    images, filters, alphas = tensors(image_dtype, (filter_dtype, image_dtype, filter_dtype), grids)
    leaves = [t.requires_grad_() for t in (images, *filters, alphas)]
    out = adaptive_fuse(images, filters, alphas, padding_mode=padding_mode, backend=backend)
    assert out.dtype == torch.promote_types(*pair)
    exact_leaves = [t.detach().double().requires_grad_() for t in leaves]
    exact = reference.adaptive_fuse(exact_leaves[0], exact_leaves[1:-1], exact_leaves[-1], padding_mode)
    compare(out, exact)
    grad = torch.rand(out.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(out.dtype)
    found = torch.autograd.grad(out, leaves, grad)
    for g, leaf, e in zip(found, leaves, torch.autograd.grad(exact, exact_leaves, grad.double()), strict=True):
        assert g.dtype == leaf.dtype
        compare(g, e)


def test_two_dtypes_of_half_precision_meet_in_float32():
    images, filters, alphas = tensors(torch.float16, (torch.bfloat16,) * 3, (None,) * 3)
    assert adaptive_fuse(images, filters, alphas).dtype == torch.float32


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("dtypes", [*((t, t) for t in (torch.float64, *LOW)), MIXED[1]], ids=str)
@pytest.mark.parametrize("sides", [(1, 3, 5), (9, 7)], ids=str)
def test_channels_last_filters_give_the_bits_of_contiguous_ones(sides, dtypes, channels):
    """A convolution's output in channels_last, cut into levels: neighbouring taps lie side by side."""
    taps = [k * k for k in sides]
    generator = torch.Generator().manual_seed(0)
    height, width = 37, 149  # more rows and columns than are turned at a time, and no multiple of anything
    padding_mode = "circular" if channels == 1 else "reflect"
    images, predicted, grad = (
        torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape, dtype in (
            ((2, 2, channels, height, width), dtypes[0]),
            ((2, 2 * sum(taps), height, width), dtypes[1]),
            ((2, channels, height, width), dtypes[0]),
        )
    )
    given = predicted.to(memory_format=torch.channels_last).unflatten(1, (2, sum(taps))).split(taps, 2)
    plain = [f.contiguous() for f in predicted.unflatten(1, (2, sum(taps))).split(taps, 2)]
    assert given[0].stride(2) == 1 and given[0].stride(4) > 1

    def run(filters, alphas_need):
        leaves = [images.clone().requires_grad_(), *(f.detach().requires_grad_() for f in filters)]
        alphas = torch.linspace(0.5, 1, len(sides)).requires_grad_(alphas_need)
        out = adaptive_fuse(leaves[0], leaves[1:], alphas, padding_mode=padding_mode)
        return out, torch.autograd.grad(out, [*leaves, *([alphas] if alphas_need else [])], grad)

    out, gradients = run(given, False)
    expected, expected_gradients = run(plain, False)
    assert torch.equal(out, expected)
    for a, e in zip(gradients, expected_gradients, strict=True):
        assert torch.equal(a, e)
    # Alphas' gradient through the backward operator, which reads the filters.
    operator = torch.ops.ffmef.adaptive_fuse_backward.default
    alphas = torch.linspace(0.5, 1, len(sides))
    both = [
        operator(grad, images, list(f), alphas, padding_mode, False, [1] * len(sides), True)[-1] for f in (given, plain)
    ]
    torch.testing.assert_close(both[0], both[1], rtol=1e-6, atol=0)


def test_any_strides(device):
    images, filters, alphas = tensors(torch.float32, (torch.float32,) * 3, (None,) * 3)
    expected = adaptive_fuse(images, filters, alphas)
    for order in ((0, 1, 4, 3, 2), (4, 3, 2, 1, 0), (2, 0, 1, 4, 3)):
        back = [order.index(d) for d in range(5)]
        moved = [f.permute(order).contiguous().permute(back) for f in filters]
        assert torch.equal(adaptive_fuse(images, moved, alphas), expected)


class _Casts(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            self.elements += args[0].numel()
        return function(*args, **(kwargs or {}))


def test_autocast_casts_nothing():
    images, filters, alphas = tensors(torch.float32, (torch.bfloat16,) * 3, (None,) * 3)
    with torch.autocast("cpu", torch.bfloat16), _Casts() as casts:
        out = adaptive_fuse(images, filters, alphas)
    assert out.dtype == torch.float32 and casts.elements == 0
    assert torch.equal(out, adaptive_fuse(images, filters, alphas))
    with torch.autocast("cpu", torch.bfloat16):  # float64 is promoted, as before
        assert adaptive_fuse(images.double(), filters, alphas).dtype == torch.float64


@pytest.mark.parametrize("dtypes", [(torch.float64, torch.float32), (torch.float32, torch.float64)], ids=str)
def test_float64_stays_apart(dtypes):
    images, filters, alphas = tensors(dtypes[0], (dtypes[1],) * 3, (None,) * 3)
    with pytest.raises(ValueError, match=r"^filters\[0\] must be float"):
        adaptive_fuse(images, filters, alphas)
    with pytest.raises(RuntimeError, match=r"filters\[0\] must be|float64 images alone"):
        torch.ops.ffmef.adaptive_fuse(images, filters, alphas, "zeros")


@pytest.mark.parametrize("dtype", [torch.float64, *LOW], ids=str)
@pytest.mark.parametrize("shape", [(2, 2, 2, 18, 37), (1, 3, 1, 3, 1031), (1, 1, 1, 1, 3)], ids=str)
def test_one_level_of_one_tap_gives_the_bits_of_any_strides(shape, dtype):
    """Planes that are multiplied where they are, joined rows or not, against the way for others."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype)
    filters = torch.rand(*shape[:2], 1, *shape[3:], generator=generator, dtype=torch.float64).to(dtype)
    wide = torch.empty(*shape[:4], shape[4] + 3, dtype=dtype)[..., 1:-2].copy_(images)
    columns = images.mT.contiguous().mT
    expected = adaptive_fuse(columns, [filters], [0.7])
    exact = 0.7 * (images.double() * filters.double()).sum(1)
    torch.testing.assert_close(expected.double(), exact, rtol=3 * torch.finfo(dtype).eps, atol=1e-7)
    for given in (images, wide):
        assert torch.equal(adaptive_fuse(given, [filters], [0.7]), expected)
    alphas = torch.tensor([0.7], requires_grad=True)
    (slope,) = torch.autograd.grad(adaptive_fuse(images, [filters], alphas).double().sum(), alphas)
    torch.testing.assert_close(slope.double(), (exact / 0.7).sum()[None], rtol=1e-2 if dtype in LOW else 1e-5, atol=0)
