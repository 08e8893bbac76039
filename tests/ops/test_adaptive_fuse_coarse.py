"""The operator with filters on a coarser grid: what interpolation and the operator at full resolution give together."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from ffmef.ops import adaptive_fuse, reference
from ffmef.ops.reference import accumulator
from test_adaptive_fuse import (
    MODES,
    STRIDES,
    backward,
    bound,
    call,
    check_forward,
    check_threads_and_repetition,
    gradients,
    native,
    random,
)  # fmt: skip

# (B, N, C, H, W), (side, h, w) of each level
SIZES = [
    pytest.param((2, 2, 1, 16, 24), ((1, 2, 3), (3, 4, 6), (5, 16, 24)), id="eighths-quarters-full"),
    pytest.param((1, 2, 1, 37, 53), ((3, 5, 7), (5, 5, 7)), id="no-whole-factor"),
    pytest.param((1, 3, 4, 9, 11), ((3, 9, 4), (7, 2, 11)), id="one-axis-only"),
    pytest.param((2, 1, 2, 6, 7), ((1, 1, 1), (3, 1, 5), (9, 4, 1)), id="one-cell-across"),
    pytest.param((1, 2, 1, 2, 3), ((31, 1, 2), (11, 2, 1)), id="image-inside-filter"),
    pytest.param((1, 2, 1, 1, 1), ((3, 1, 1),), id="one-pixel"),
    pytest.param((1, 1, 1, 150, 5), ((3, 2, 3), (1, 1, 2)), id="tall-cells"),
    pytest.param((1, 1, 1, 3, 1100), ((5, 2, 140), (3, 3, 549)), id="several-tiles"),
    pytest.param((1, 1, 19, 2, 160), ((31, 1, 20),), id="narrow-tiles"),
    pytest.param((1, 1, 1, 20, 21), ((3, 19, 20), (1, 20, 20)), id="nearly-full"),
    pytest.param((1, 1, 1, 40, 33), ((7, 20, 11), (3, 13, 17)), id="small-cells"),
]


def arguments(shape, levels, dtype=torch.float64, device="cpu", seed: int = 0):
    """Images, filters and alphas of one call."""
    filters = [
        random(shape[0], shape[1], k * k, h, w, dtype=dtype, device=device, seed=seed + 1 + l)
        for l, (k, h, w) in enumerate(levels)
    ]
    alphas = random(len(levels), dtype=accumulator(dtype), device=device, seed=seed + 99)
    return random(*shape, dtype=dtype, device=device, seed=seed), filters, alphas


def tents(cells: int, pixels: int) -> torch.Tensor:
    """The share of every cell in every pixel, (pixels, cells): a tent over the cell's centre, flat beyond the
    outermost.

    Distances are whole numbers of half pixels, so they are exact; torch's own coordinates are not.
    """
    place = ((2 * torch.arange(pixels) + 1) * cells - pixels).clamp(0, 2 * pixels * (cells - 1))
    distance = (place[:, None] - 2 * pixels * torch.arange(cells)).abs()
    return (2 * pixels - distance).clamp(min=0).double() / (2 * pixels)


def upsampled(images, filters) -> list[torch.Tensor]:
    """The filters at full resolution, in float64."""
    height, width = images.shape[-2:]
    return [
        tents(f.shape[-2], height).to(f.device) @ f.double() @ tents(f.shape[-1], width).to(f.device).T for f in filters
    ]


def test_tents_are_torchs_interpolation():
    for (_, _, _, height, width), levels in (p.values for p in SIZES):
        for k, h, w in levels:
            coarse = random(1, k, h, w)
            fine = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
            torch.testing.assert_close(tents(h, height) @ coarse @ tents(w, width).T, fine, rtol=0, atol=1e-12)
            torch.testing.assert_close(reference.to_full_resolution(coarse, height, width), fine, rtol=0, atol=1e-12)


def at_full_resolution(images, filters, alphas, padding_mode):
    return reference.adaptive_fuse(images, upsampled(images, filters), alphas, padding_mode)


def check_gradients(images, filters, alphas, padding_mode, grad, computed) -> None:
    wide = [t.detach().cpu().double().resolve_neg() for t in (images, *filters, alphas, grad)]
    exact = gradients(wide[0], wide[1:-2], wide[-2], padding_mode, wide[-1], at_full_resolution)
    wide = [t.abs() for t in wide]
    sizes = gradients(wide[0], wide[1:-2], wide[-2], padding_mode, wide[-1], at_full_resolution)
    pixels = images.shape[-2] * images.shape[-1]
    for argument, g, e, size in zip((images, *filters, alphas), computed, exact, sizes, strict=True):
        assert g.dtype == argument.dtype and g.shape == argument.shape
        terms = grad.numel() if argument is alphas else images.shape[1] * sum(f.shape[2] for f in filters)
        if argument is not alphas and argument is not images:
            terms = 9 * pixels * images.shape[2] // (g.shape[-1] * g.shape[-2])
        error = (g.double().cpu() - e).abs().numpy()
        assert (error <= bound(e.numpy(), size.numpy(), g.dtype, terms, accumulator(images.dtype))).all(), error.max()


# --- values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding_mode", MODES)
@pytest.mark.parametrize("shape, levels", SIZES)
def test_forward(shape, levels, padding_mode, dtype, backend, device):
    images, filters, alphas = arguments(shape, levels, dtype, device)
    out = adaptive_fuse(images, filters, alphas, padding_mode=padding_mode, backend=backend)
    check_forward(images, upsampled(images, filters), alphas, padding_mode, out)


@pytest.mark.parametrize("padding_mode", MODES)
@pytest.mark.parametrize("shape, levels", SIZES)
def test_gradients(shape, levels, padding_mode, dtype, kernel_backend, device):
    images, filters, alphas = arguments(shape, levels, dtype, device)
    grad = random(shape[0], *shape[2:], dtype=dtype, device=device, seed=50)
    computed = gradients(images, filters, alphas, padding_mode, grad, call(kernel_backend))
    check_gradients(images, filters, alphas, padding_mode, grad, computed)


@pytest.mark.parametrize("width", range(1, 36))
def test_every_pair_of_widths(width, kernel_backend, device):
    """Every ratio of small grids, so that vectors begin and end at every place of a cell."""
    for cells in range(1, width + 1):
        dtype = (torch.float64, torch.float32, torch.float16, torch.bfloat16)[cells % 4]
        images, filters, alphas = arguments((1, 1, 1, 3, width), ((3, 2, cells),), dtype, device)
        out = adaptive_fuse(images, filters, alphas, backend=kernel_backend)
        check_forward(images, upsampled(images, filters), alphas, "zeros", out)
        grad = random(1, 1, 3, width, dtype=dtype, device=device, seed=7)
        check_gradients(
            images,
            filters,
            alphas,
            "zeros",
            grad,
            gradients(images, filters, alphas, "zeros", grad, call(kernel_backend)),
        )


def test_four_pixels_by_hand(backend, device):
    """Cells 0 and 8 over four pixels have their centres at 0.5 and 2.5: the pixels get 0, 2, 6 and 8."""
    image = torch.ones(1, 1, 4, 4, device=device)
    across = torch.tensor([0.0, 8.0], device=device)
    expected = torch.tensor([0.0, 2.0, 6.0, 8.0], device=device)
    for filters, plane in (
        (across.view(1, 1, 1, 1, 2), expected.expand(4, 4)),
        (across.view(1, 1, 1, 2, 1), expected.view(4, 1).expand(4, 4)),
    ):
        assert torch.equal(adaptive_fuse(image, [filters], backend=backend)[0], plane)
    # One row of gradients of the sum: the pixels' shares of each cell.
    filters = across.view(1, 1, 1, 1, 2).requires_grad_()
    adaptive_fuse(image, [filters], backend=backend).sum().backward()
    assert filters.grad.flatten().tolist() == [8.0, 8.0]


def test_constant_filters_are_a_convolution(backend, device):
    """A single cell over the whole image is one filter for all pixels."""
    images, filters, _ = arguments((1, 1, 1, 9, 12), ((5, 1, 1),), torch.float64, device)
    out = adaptive_fuse(images, filters, backend=backend)
    expected = F.conv2d(images[:, 0], filters[0].view(1, 1, 5, 5), padding=2)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)


def test_a_full_level_is_computed_as_before_beside_a_coarse_one(kernel_backend, device):
    """A coarse level of zeros changes nothing, not a bit."""
    images, filters, alphas = arguments((1, 2, 3, 33, 40), ((3, 33, 40), (5, 33, 40), (3, 5, 5)), torch.float32, device)
    filters[2].zero_()
    both = adaptive_fuse(images, filters, alphas, padding_mode="reflect", backend=kernel_backend)
    assert torch.equal(
        both, adaptive_fuse(images, filters[:2], alphas[:2], padding_mode="reflect", backend=kernel_backend)
    )


@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16], ids=str)
def test_low_precision_is_rounded_once(low, backend, device):
    """Interpolated filters are not rounded on the way: the error is that of the result's own rounding."""
    images, filters, alphas = arguments((1, 2, 1, 24, 40), ((1, 3, 5), (3, 3, 5), (5, 6, 8)), low, device)
    exact = at_full_resolution(images.double(), filters, alphas.double(), "zeros")
    out = adaptive_fuse(images, filters, alphas, backend=backend).double()
    assert (out - exact).abs().max() <= 0.51 * torch.finfo(low).eps * exact.abs().max() + 1e-5


# --- strides, memory, threads --------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("trick", STRIDES)
def test_strides(trick, dtype, kernel_backend, device):
    if trick == "negative_bit" and dtype == torch.bfloat16:
        pytest.skip("torch has no complex bfloat16, so no bfloat16 tensor carries the negative bit")
    images, filters, alphas = arguments((2, 2, 3, 18, 21), ((1, 3, 4), (3, 4, 21), (9, 18, 5)), dtype, device)
    grad = random(2, 3, 18, 21, dtype=dtype, device=device, seed=70)
    images, *filters, grad = (STRIDES[trick](t) for t in (images, *filters, grad))
    out = adaptive_fuse(images, filters, alphas, padding_mode="reflect", backend=kernel_backend)
    check_forward(images, upsampled(images, [f.resolve_neg() for f in filters]), alphas, "reflect", out)
    check_gradients(
        images,
        filters,
        alphas,
        "reflect",
        grad,
        gradients(images, filters, alphas, "reflect", grad, call(kernel_backend)),
    )


def test_results_do_not_depend_on_threads_or_repetition(dtype, device):
    images, filters, alphas = arguments((2, 2, 1, 50, 1100), ((1, 7, 138), (3, 25, 550), (5, 50, 3)), dtype, device)
    check_threads_and_repetition(images, filters, alphas)


@pytest.mark.parametrize("shape", [(0, 2, 1, 4, 5), (2, 2, 0, 4, 5)], ids=str)
def test_empty(shape, backend, device):
    images, filters, alphas = arguments(shape, ((1, 2, 2), (5, 1, 5)), torch.float32, device)
    leaves = [t.requires_grad_() for t in (images, *filters, alphas)]
    out = adaptive_fuse(images, filters, alphas, padding_mode="reflect", backend=backend)
    assert out.shape == (shape[0], *shape[2:])
    out.sum().backward()
    for leaf in leaves:
        assert leaf.grad.shape == leaf.shape and not leaf.grad.any()


# --- derivatives ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding_mode", MODES)
def test_gradcheck_and_gradgradcheck(padding_mode, kernel_backend, device):
    images, filters, alphas = arguments((1, 2, 2, 3, 4), ((1, 2, 2), (3, 1, 3)), device=device)
    leaves = [t.requires_grad_() for t in (images, *filters, alphas)]

    def function(images, *rest):
        return adaptive_fuse(images, rest[:-1], rest[-1], padding_mode=padding_mode, backend=kernel_backend)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


def test_third_order_is_the_references(backend, device):
    def third(name):
        images, filters, alphas = arguments((1, 2, 1, 5, 6), ((1, 2, 3), (3, 5, 6)), device=device)
        leaves = [t.requires_grad_() for t in (images, *filters, alphas)]
        value = adaptive_fuse(images, filters, alphas, padding_mode="reflect", backend=name).sum()
        for order in (1, 2, 3):
            derivatives = torch.autograd.grad(value, leaves, create_graph=order < 3)
            weights = [random(*d.shape, device=device, seed=31 * order + n) for n, d in enumerate(derivatives)]
            value = sum((d * w).sum() for d, w in zip(derivatives, weights))
        return value

    torch.testing.assert_close(third(backend), third("reference"), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("wanted", [w for w in itertools.product([0, 1], repeat=3) if any(w)], ids=str)
def test_every_choice_of_gradients(wanted, kernel_backend, device):
    """Also of one coarse and one full level, and of the alphas without the filters."""
    images, filters, alphas = arguments((1, 2, 1, 18, 20), ((3, 3, 4), (1, 18, 20)), torch.float64, device)
    grad = random(1, 1, 18, 20, device=device, seed=3)
    exact = gradients(images, filters, alphas, "zeros", grad, at_full_resolution)
    leaves = [
        t.requires_grad_(bool(w)) for t, w in zip((images, *filters, alphas), (wanted[0], wanted[1], 0, wanted[2]))
    ]
    out = adaptive_fuse(leaves[0], leaves[1:3], leaves[3], backend=kernel_backend)
    computed = torch.autograd.grad(out, [leaf for leaf in leaves if leaf.requires_grad], grad)
    needed = [e for e, leaf in zip(exact, leaves) if leaf.requires_grad]
    for g, e in zip(computed, needed, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-12, atol=1e-12)


def test_the_plain_torch_backward_is_the_derivative_of_the_plain_torch_forward(dtype, device):
    for padding_mode in MODES:
        images, filters, alphas = arguments((2, 2, 2, 9, 7), ((1, 3, 7), (9, 2, 3), (3, 9, 5)), dtype, device)
        grad = random(2, 2, 9, 7, dtype=dtype, device=device, seed=8)
        i, f, a = reference.adaptive_fuse_backward(grad, images, filters, alphas, padding_mode, True, [1, 1, 1], True)
        check_gradients(images, filters, alphas, padding_mode, grad, [i, *f, a])


@native
@pytest.mark.parametrize("padding_mode", MODES)
@pytest.mark.parametrize("shape, levels", SIZES)
def test_gradients_by_the_backward_operator(shape, levels, padding_mode, dtype):
    """All at once, the alphas' among them, which automatic differentiation takes from the forward pass where it can."""
    images, filters, alphas = arguments(shape, levels, dtype)
    grad = random(shape[0], *shape[2:], dtype=dtype, seed=50)
    i, f, a = backward(grad, images, filters, alphas, padding_mode, True, [1] * len(filters), True)
    check_gradients(images, filters, alphas, padding_mode, grad, [i, *f, a])


@native
def test_unneeded_gradients_are_empty():
    images, filters, alphas = arguments((1, 2, 1, 6, 7), ((1, 2, 2), (3, 3, 3)), torch.float32)
    image_grad, filter_grads, alpha_grad = backward(
        torch.ones(1, 1, 6, 7), images, filters, alphas, "zeros", False, [0, 1], False
    )
    assert [tuple(t.shape) for t in (image_grad, *filter_grads, alpha_grad)] == [(0,), (0,), (1, 2, 9, 3, 3), (0,)]
