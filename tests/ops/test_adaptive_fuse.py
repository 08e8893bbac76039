"""The operator against NumPy: every dtype, padding, size, stride pattern and derivative, and what it refuses.

Results are compared value by value with a bound that follows from rounding alone: half a unit of the result's dtype,
and some units of the accumulator for every term of the sum.
"""

from __future__ import annotations

import ctypes.util
import itertools
import math
import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ffmef import _loader
from ffmef.ops import adaptive_fuse, backends, reference
from ffmef.ops.adaptive_fuse import PADDING_MODES as MODES
from ffmef.ops.reference import accumulator

ROOT = Path(__file__).resolve().parents[2]
NUMPY_MODES = {"zeros": "constant", "replicate": "edge", "reflect": "reflect", "circular": "wrap"}
LOW = (torch.float16, torch.bfloat16)
OP = torch.ops.ffmef.adaptive_fuse.default
BACKWARD_OP = torch.ops.ffmef.adaptive_fuse_backward.default


def backward(*arguments):
    """The dispatcher's gradients of images, filters and alphas."""
    images, *filters, alphas = BACKWARD_OP(*arguments)
    return images, filters, alphas


native = pytest.mark.skipif(_loader.cpu_missing is not None, reason=f"cpu: {_loader.cpu_missing}")

# (B, N, C, H, W), filter sides
SIZES = [
    pytest.param((2, 2, 1, 5, 7), (1, 3, 5), id="paper"),
    pytest.param((1, 1, 3, 4, 9), (5, 1), id="one-image-rgb-descending"),
    pytest.param((1, 5, 4, 6, 6), (3,), id="five-images-four-channels"),
    pytest.param((1, 2, 1, 1, 1), (1, 3, 31), id="one-pixel"),
    pytest.param((1, 2, 2, 2, 3), (31, 9, 11), id="image-inside-filter"),
    pytest.param((1, 1, 1, 1, 40), (5, 7), id="one-row"),
    pytest.param((1, 1, 1, 40, 1), (7, 5), id="one-column"),
    pytest.param((2, 2, 1, 35, 19), (7, 3, 3), id="several-bands-size-twice"),
    pytest.param((1, 2, 1, 18, 1100), (3, 1), id="several-tiles-and-bands"),
    pytest.param((1, 1, 19, 2, 160), (31,), id="narrow-tiles"),  # 2 tiles in float32, 3 in float64
    pytest.param((1, 1, 1, 3, 1300), (9,), id="wide-generic"),
]


def random(
    *shape: int, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu", seed: int = 0
) -> torch.Tensor:
    """Values of both signs in (-1, 1), rounded to ``dtype``."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(*shape, dtype=torch.float64, generator=generator) * 2 - 1).to(dtype).to(device)


def arguments(shape, sides, dtype=torch.float64, device="cpu", seed: int = 0):
    """Images, filters and alphas of one call."""
    batch, count, channels, height, width = shape
    images = random(*shape, dtype=dtype, device=device, seed=seed)
    filters = [
        random(batch, count, k * k, height, width, dtype=dtype, device=device, seed=seed + 1 + l)
        for l, k in enumerate(sides)
    ]
    alphas = random(len(sides), dtype=accumulator(dtype), device=device, seed=seed + 99)
    return images, filters, alphas


def oracle(images, filters, alphas, padding_mode: str) -> np.ndarray:
    """The definition in NumPy and float64: pad, cut every window, multiply and sum."""
    images = images.detach().double().cpu().resolve_neg().numpy()
    batch, count, channels, height, width = images.shape
    out = np.zeros((batch, channels, height, width))
    for level, alpha in zip(filters, alphas, strict=True):
        side = math.isqrt(level.shape[2])
        padded = np.pad(images, [(0, 0)] * 3 + [(side // 2, side // 2)] * 2, mode=NUMPY_MODES[padding_mode])
        windows = np.lib.stride_tricks.sliding_window_view(padded, (side, side), axis=(3, 4))
        taps = level.detach().double().cpu().resolve_neg().numpy().reshape(batch, count, side, side, height, width)
        out += float(alpha) * np.einsum("bnchwij,bnijhw->bchw", windows, taps)
    return out


def bound(
    exact: np.ndarray, magnitude: np.ndarray, dtype: torch.dtype, terms: int, wide: torch.dtype | None = None
) -> np.ndarray:
    """Largest rounding error: one rounding to ``dtype`` of a sum whose terms' magnitudes add up to ``magnitude``."""
    wide = wide or accumulator(dtype)
    final = 0.0 if dtype == wide else 0.501 * torch.finfo(dtype).eps
    return (
        final * np.abs(exact)
        + torch.finfo(wide).eps * (4 + math.sqrt(terms)) * magnitude
        + torch.finfo(dtype).smallest_normal * 1e-2
    )


def check_forward(images, filters, alphas, padding_mode, out) -> None:
    exact = oracle(images, filters, alphas, padding_mode)
    magnitude = oracle(images.abs(), [f.abs() for f in filters], alphas.abs(), padding_mode)
    terms = images.shape[1] * sum(f.shape[2] for f in filters)
    assert out.dtype == images.dtype and out.is_contiguous() and out.shape == exact.shape
    error = np.abs(out.detach().double().cpu().numpy() - exact)
    assert (error <= bound(exact, magnitude, images.dtype, terms)).all(), error.max()


def gradients(images, filters, alphas, padding_mode, grad, function):
    """Gradients of all arguments, by automatic differentiation of ``function``."""
    leaves = [images, *filters, alphas]
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    out = function(leaves[0], leaves[1:-1], leaves[-1], padding_mode)
    return torch.autograd.grad(out, leaves, grad)


def exact_gradients(images, filters, alphas, padding_mode, grad):
    """Gradients in float64, by differentiating the plain torch forward, which the forward tests hold to NumPy."""
    wide = [t.detach().cpu().double().resolve_neg() for t in (images, *filters, alphas, grad)]
    return gradients(wide[0], wide[1:-2], wide[-2], padding_mode, wide[-1], reference.adaptive_fuse)


def check_gradients(images, filters, alphas, padding_mode, grad, computed) -> None:
    exact = exact_gradients(images, filters, alphas, padding_mode, grad)
    sizes = exact_gradients(images.abs(), [f.abs() for f in filters], alphas.abs(), padding_mode, grad.abs())
    for argument, g, e, size in zip((images, *filters, alphas), computed, exact, sizes, strict=True):
        assert g.dtype == argument.dtype and g.shape == argument.shape
        terms = grad.numel() if argument is alphas else images.shape[1] * sum(f.shape[2] for f in filters)
        error = (g.double().cpu() - e).abs().numpy()
        assert (error <= bound(e.numpy(), size.numpy(), g.dtype, terms, accumulator(images.dtype))).all(), error.max()


def call(backend):
    return lambda images, filters, alphas, mode: adaptive_fuse(
        images, filters, alphas, padding_mode=mode, backend=backend
    )


# --- values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding_mode", MODES)
@pytest.mark.parametrize("shape, sides", SIZES)
def test_forward(shape, sides, padding_mode, dtype, backend, device):
    images, filters, alphas = arguments(shape, sides, dtype, device)
    out = adaptive_fuse(images, filters, alphas, padding_mode=padding_mode, backend=backend)
    check_forward(images, filters, alphas, padding_mode, out)


@pytest.mark.parametrize("padding_mode", MODES)
@pytest.mark.parametrize("shape, sides", SIZES)
def test_gradients(shape, sides, padding_mode, dtype, kernel_backend, device):
    images, filters, alphas = arguments(shape, sides, dtype, device)
    batch, _, channels, height, width = shape
    grad = random(batch, channels, height, width, dtype=dtype, device=device, seed=50)
    computed = gradients(images, filters, alphas, padding_mode, grad, call(kernel_backend))
    check_gradients(images, filters, alphas, padding_mode, grad, computed)


@pytest.mark.parametrize("side", range(1, 32, 2))
def test_every_filter_side(side, kernel_backend, device):
    images, filters, alphas = arguments((1, 2, 1, 6, 21), (side,), torch.float32, device)
    for padding_mode in MODES:
        out = adaptive_fuse(images, filters, alphas, padding_mode=padding_mode, backend=kernel_backend)
        check_forward(images, filters, alphas, padding_mode, out)
        grad = random(1, 1, 6, 21, dtype=torch.float32, device=device, seed=9)
        check_gradients(
            images,
            filters,
            alphas,
            padding_mode,
            grad,
            gradients(images, filters, alphas, padding_mode, grad, call(kernel_backend)),
        )


@pytest.mark.parametrize(
    "sides",
    [*itertools.permutations((1, 3, 5)), (1,), (1, 3), (3, 5), (1, 3, 5, 7), (3, 3), (9, 31, 1, 11)],
    ids=str,
)
def test_any_set_of_filter_sizes_in_any_order(sides, kernel_backend, device):
    images, filters, alphas = arguments((1, 2, 1, 8, 10), sides, torch.float32, device)
    check_forward(
        images,
        filters,
        alphas,
        "reflect",
        adaptive_fuse(images, filters, alphas, padding_mode="reflect", backend=kernel_backend),
    )


@pytest.mark.parametrize("width", range(1, 40))
def test_every_row_end(width, kernel_backend, device):
    """Rows end in the middle of a vector at every place, in every dtype."""
    for dtype in (torch.float64, torch.float32, *LOW):
        images, filters, alphas = arguments((1, 1, 1, 2, width), (1, 3, 9), dtype, device)
        check_forward(images, filters, alphas, "zeros", adaptive_fuse(images, filters, alphas, backend=kernel_backend))
        grad = random(1, 1, 2, width, dtype=dtype, device=device, seed=7)
        check_gradients(
            images,
            filters,
            alphas,
            "zeros",
            grad,
            gradients(images, filters, alphas, "zeros", grad, call(kernel_backend)),
        )


def test_three_by_three_by_hand(backend, device):
    """Image 1 ... 9, taps 0 ... 8: the centre is 0*1 + 1*2 + ... + 8*9 = 240, and each padding's first corner."""
    image = torch.arange(1.0, 10.0, device=device).view(1, 1, 3, 3)
    taps = torch.arange(9.0, device=device).view(1, 1, 9, 1, 1).expand(1, 1, 9, 3, 3)
    for padding_mode, corner in (
        ("zeros", 4 * 1 + 5 * 2 + 7 * 4 + 8 * 5),
        ("replicate", 0 * 1 + 1 * 1 + 2 * 2 + 3 * 1 + 4 * 1 + 5 * 2 + 6 * 4 + 7 * 4 + 8 * 5),
        ("reflect", 0 * 5 + 1 * 4 + 2 * 5 + 3 * 2 + 4 * 1 + 5 * 2 + 6 * 5 + 7 * 4 + 8 * 5),
    ):
        out = adaptive_fuse(image, [taps], padding_mode=padding_mode, backend=backend)
        assert out[0, 1, 1].item() == 240
        assert out[0, 0, 0].item() == corner
    assert adaptive_fuse(image, [taps, taps], [1.0, -0.5], backend=backend)[0, 1, 1].item() == 120


def test_impulse_returns_the_filter(backend, device):
    """An image that is one at (5, 6) shows, at every pixel, the tap that looks at (5, 6)."""
    side, radius, row, column = 5, 2, 5, 6
    image = torch.zeros(1, 1, 11, 13, device=device)
    image[0, 0, row, column] = 1
    taps = random(1, 1, 25, 11, 13, dtype=torch.float32, device=device)
    out = adaptive_fuse(image, [taps], backend=backend)[0]
    expected = torch.zeros_like(out)
    for i, j in itertools.product(range(side), range(side)):
        y, x = row - i + radius, column - j + radius
        expected[y, x] = taps[0, 0, i * side + j, y, x]
    assert torch.equal(out, expected)


@pytest.mark.parametrize("padding_mode", ["replicate", "reflect"])
def test_constant_images_stay_constant(padding_mode, backend, device):
    images = torch.full((1, 2, 1, 6, 7), 0.375, dtype=torch.float64, device=device)
    filters = [torch.softmax(random(1, 2, k * k, 6, 7, device=device, seed=k), 2) / 2 for k in (1, 3, 9)]
    alphas = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64, device=device)
    out = adaptive_fuse(images, filters, alphas, padding_mode=padding_mode, backend=backend)
    torch.testing.assert_close(out, torch.full_like(out, 0.375), rtol=0, atol=1e-14)


def test_linear_in_each_argument(backend, device):
    images, filters, alphas = arguments((2, 2, 3, 6, 7), (1, 5), device=device)
    others = arguments((2, 2, 3, 6, 7), (1, 5), device=device, seed=500)

    def fuse(i, f, a):
        return adaptive_fuse(i, f, a, padding_mode="reflect", backend=backend)

    base = fuse(images, filters, alphas)
    mixed = [
        (fuse(2 * images - 3 * others[0], filters, alphas), fuse(others[0], filters, alphas)),
        (fuse(images, [2 * f - 3 * g for f, g in zip(filters, others[1])], alphas), fuse(images, others[1], alphas)),
        (fuse(images, filters, 2 * alphas - 3 * others[2]), fuse(images, filters, others[2])),
    ]
    for out, other in mixed:
        torch.testing.assert_close(out, 2 * base - 3 * other, rtol=0, atol=1e-12)


def test_images_without_channels(backend, device):
    images, filters, alphas = arguments((2, 2, 1, 5, 6), (1, 3), torch.float32, device)
    out = adaptive_fuse(images[:, :, 0], filters, alphas, backend=backend)
    assert out.shape == (2, 5, 6)
    assert torch.equal(out, adaptive_fuse(images, filters, alphas, backend=backend)[:, 0])


def test_alphas_of_every_kind(backend, device):
    images, filters, _ = arguments((1, 2, 1, 5, 6), (1, 3), torch.float32, device)
    ones = adaptive_fuse(images, filters, backend=backend)
    check_forward(images, filters, torch.ones(2), "zeros", ones)
    weighted = adaptive_fuse(images, filters, torch.tensor([0.5, 0.25], device=device), backend=backend)
    check_forward(images, filters, torch.tensor([0.5, 0.25]), "zeros", weighted)
    for alphas in (
        [0.5, 0.25],
        (0.5, 0.25),
        np.array([0.5, 0.25]),
        torch.tensor([0.5, 0.25], dtype=torch.float64, device=device),
        torch.tensor([0.5, 0.25], dtype=torch.float16, device=device),
        torch.tensor([0.5, 9.0, 0.25], device=device)[::2],
        torch.tensor([0.5, 9.0, 0.25], dtype=torch.float64, device=device)[::2],
    ):
        assert torch.equal(adaptive_fuse(images, filters, alphas, backend=backend), weighted)


@pytest.mark.parametrize(
    "shape", [(0, 2, 1, 4, 5), (2, 2, 0, 4, 5), (2, 2, 1, 0, 5), (2, 2, 1, 4, 0), (0, 1, 0, 0, 0)], ids=str
)
def test_empty(shape, backend, device):
    """Nothing in, nothing out, and gradients of zero."""
    for padding_mode in MODES:
        images, filters, alphas = arguments(shape, (1, 5), torch.float32, device)
        leaves = [t.requires_grad_() for t in (images, *filters, alphas)]
        out = adaptive_fuse(images, filters, alphas, padding_mode=padding_mode, backend=backend)
        assert out.shape == (shape[0], *shape[2:])
        out.sum().backward()
        for leaf in leaves:
            assert leaf.grad.shape == leaf.shape and not leaf.grad.any()


@pytest.mark.parametrize("low", LOW, ids=["float16", "bfloat16"])
def test_low_precision_error_is_at_most_twice_torchs(low, backend, device):
    images, filters, alphas = arguments((1, 2, 1, 24, 40), (1, 3, 5), low, device)
    exact = oracle(images, filters, alphas, "zeros")
    unfolded = 0
    for level, alpha in zip(filters, alphas):
        side = math.isqrt(level.shape[2])
        columns = torch.nn.functional.unfold(images[:, :, 0], side, padding=side // 2).view(1, 2, side * side, 24, 40)
        unfolded = unfolded + alpha.to(low) * (columns * level).sum((1, 2))
    ours = np.abs(adaptive_fuse(images, filters, alphas, backend=backend)[:, 0].double().cpu().numpy() - exact[:, 0])
    torchs = np.abs(unfolded.double().cpu().numpy() - exact[:, 0])
    assert ours.max() <= 2 * torchs.max() and ours.mean() <= 2 * torchs.mean()


# --- strides -------------------------------------------------------------------------------------------------------


def _inside_nan(x: torch.Tensor) -> torch.Tensor:
    big = x.new_full([s + 5 for s in x.shape], float("nan"))
    view = big[tuple(slice(2, 2 + s) for s in x.shape)]
    return view.copy_(x)


def _every_third(x: torch.Tensor) -> torch.Tensor:
    big = x.new_full([*x.shape[:-2], x.shape[-2] * 2, x.shape[-1] * 3], float("nan"))
    return big[..., ::2, 1::3].copy_(x)


def _dims_last(*dims: int):
    def move(x: torch.Tensor) -> torch.Tensor:
        back = [d % x.dim() for d in dims]
        return x.movedim(back, list(range(-len(back), 0))).contiguous().movedim(list(range(-len(back), 0)), back)

    return move


STRIDES = {
    "contiguous": torch.Tensor.contiguous,
    "transposed": lambda x: x.mT.contiguous().mT,
    "channels_last": _dims_last(-3),
    "batch_last": _dims_last(0),
    "slice_of_nan": _inside_nan,
    "every_third": _every_third,
    "expanded_rows": lambda x: x[..., :1, :].expand_as(x),
    "expanded_columns": lambda x: x[..., :1].expand_as(x),
    "expanded_everything": lambda x: x.flatten()[0].expand_as(x),
    "overlapping": lambda x: x.flatten().as_strided(x.shape, [1] * x.dim()),
    "negative_bit": lambda x: torch.complex(torch.zeros_like(x), x).conj().imag,
}


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("trick", STRIDES)
@pytest.mark.parametrize("where", ["images", "filters", "grad", "all"])
def test_strides(where, trick, dtype, kernel_backend, device):
    if trick == "negative_bit" and dtype == torch.bfloat16:
        pytest.skip("torch has no complex bfloat16, so no bfloat16 tensor carries the negative bit")
    shape, change = (2, 2, 3, 18, 21), STRIDES[trick]
    images, filters, alphas = arguments(shape, (1, 3, 9), dtype, device)
    grad = random(2, 3, 18, 21, dtype=dtype, device=device, seed=70)
    if where in ("images", "all"):
        images = change(images)
    if where in ("filters", "all"):
        filters = [change(f) for f in filters]
    if where in ("grad", "all"):
        grad = change(grad)
    check_forward(
        images,
        filters,
        alphas,
        "reflect",
        adaptive_fuse(images, filters, alphas, padding_mode="reflect", backend=kernel_backend),
    )
    check_gradients(
        images,
        filters,
        alphas,
        "reflect",
        grad,
        gradients(images, filters, alphas, "reflect", grad, call(kernel_backend)),
    )


def test_expanded_gradient_of_a_sum(kernel_backend, device):
    images, filters, alphas = arguments((1, 2, 1, 18, 20), (1, 3), torch.float32, device)
    leaves = [t.requires_grad_() for t in (images, *filters, alphas)]
    adaptive_fuse(images, filters, alphas, backend=kernel_backend).sum().backward()
    check_gradients(
        images, filters, alphas, "zeros", torch.ones(1, 1, 18, 20, device=device), [leaf.grad for leaf in leaves]
    )


@native
def test_offsets_beyond_32_bits():
    """Strides that spread a few rows over twelve gigabytes of address space, of which only touched pages exist."""
    anonymous, no_reserve = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 0x4000
    try:
        space = mmap.mmap(-1, 12 << 30, flags=anonymous | no_reserve)
    except OSError as error:
        pytest.skip(f"no address space of 12 GiB: {error}")
    flat = torch.frombuffer(space, dtype=torch.float32)
    images, filters, alphas = arguments((2, 2, 1, 4, 20), (1, 3), torch.float32)
    grad = random(2, 1, 4, 20, dtype=torch.float32, seed=4)
    step = 2**31 + 8
    spread = {
        "images over images": (images, (1000, step, 500, 100, 1)),
        "images over batch": (images, (step, 200, 150, 20, 1)),
        "filters over taps": (filters[1], (2000, 1000, step // 8, 20, 1)),
        "filters over rows": (filters[1], (20000, 10000, 100, step // 3, 1)),
        "filters over columns": (filters[1], (20000, 10000, 500, 100, step // 19)),
        "grad over rows": (grad, (100, 50, step // 3, 1)),
        "grad over batch": (grad, (step, 100, 20, 1)),
    }
    for name, (tensor, strides) in spread.items():
        assert sum((s - 1) * stride for s, stride in zip(tensor.shape, strides)) >= 2**31 - 2**20, name
        view = flat.as_strided(tensor.shape, strides).copy_(tensor)
        i, f, g = (view if tensor is original else original for original in (images, filters[1], grad))
        check_forward(i, [filters[0], f], alphas, "zeros", adaptive_fuse(i, [filters[0], f], alphas))
        check_gradients(
            i, [filters[0], f], alphas, "zeros", g, gradients(i, [filters[0], f], alphas, "zeros", g, call("cpu"))
        )


@native
def test_more_than_32_bits_of_filter_values():
    """2.2e9 filter values, one row of them repeated; every output row but those near the border is the same."""
    height, width = 1100, 2100
    assert 961 * height * width > 2**31
    taps = random(1, 1, 961, 1, width, dtype=torch.float32)
    column = random(1, 1, 1, 1, width, dtype=torch.float32, seed=2)
    out = adaptive_fuse(
        column.expand(1, 1, 1, height, width), [taps.expand(1, 1, 961, height, width)], padding_mode="replicate"
    )
    small = oracle(column.expand(1, 1, 1, 3, width), [taps.expand(1, 1, 961, 3, width)], torch.ones(1), "replicate")
    np.testing.assert_allclose(out[0, 0, 0].numpy(), small[0, 0, 0], atol=1e-3)
    assert torch.equal(out, out[:, :, :1].expand_as(out))


# --- memory --------------------------------------------------------------------------------------------------------


def _run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), **environment}
    return subprocess.run(
        [sys.executable, str(ROOT / "tests/support" / script), *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )


@native
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_reads_nothing_outside_its_arguments(isa):
    """Arguments end, then begin, at pages that cannot be read: one element too far kills the process."""
    done = _run("adaptive_fuse_guarded.py", FFMEF_ISA=isa)
    assert done.returncode == 0, f"status {done.returncode} after: {done.stdout[-300:]} {done.stderr[-1000:]}"
    assert done.stdout.strip().endswith("all read within bounds")


@native
def test_writes_nothing_outside_its_results():
    """The C library's checking allocator sees a byte written behind a block when the block is freed."""
    library = ctypes.util.find_library("c_malloc_debug")
    if library is None:
        pytest.skip("the C library has no libc_malloc_debug")
    done = _run("adaptive_fuse_guarded.py", "--results", LD_PRELOAD=library, GLIBC_TUNABLES="glibc.malloc.check=3")
    assert done.returncode == 0, f"status {done.returncode} after: {done.stdout[-300:]} {done.stderr[-1000:]}"
    assert done.stdout.strip().endswith("all written within bounds")


# --- half precision ------------------------------------------------------------------------------------------------


@native
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_instruction_sets_agree(isa, tmp_path):
    """Each set gives torch's own conversions to the bit, and the other results to rounding."""
    done = _run("adaptive_fuse_isa.py", str(tmp_path / "results.npz"), FFMEF_ISA=isa)
    assert done.returncode == 0, done.stderr[-2000:]
    import adaptive_fuse_isa

    used = done.stdout.strip()
    assert (
        used == isa
        or f"{isa} is more than this machine has" in used
        or adaptive_fuse_isa.rank(used) < adaptive_fuse_isa.rank(isa)
    )
    here = adaptive_fuse_isa.results()
    there = np.load(tmp_path / "results.npz")
    assert set(there.files) == set(here)
    for name, value in here.items():
        if name.startswith("exact"):
            np.testing.assert_array_equal(there[name], value, err_msg=name)
        else:
            # The last results are the gradients of alphas, sums over all pixels whose terms cancel.
            of_alphas = value.ndim == 1
            atol = (1e-5 if of_alphas else 3e-6) * max(1.0, np.abs(value).max())
            np.testing.assert_allclose(there[name], value, rtol=0, atol=atol, err_msg=name)


@native
@pytest.mark.parametrize("low", LOW, ids=["float16", "bfloat16"])
def test_every_low_precision_value_passes_unchanged(low):
    """All 65536 patterns: subnormal numbers, infinities and NaN included, in whole vectors and in strided elements."""
    values = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(low)
    for image in (values.view(1, 1, 64, 1024), values.view(1, 1, 1024, 64).mT):
        ones = torch.ones(1, 1, 1, *image.shape[2:], dtype=low)
        out = adaptive_fuse(image, [ones])
        assert torch.equal(out.isnan(), image[0].isnan())
        assert torch.equal(out.nan_to_num(0, 9e4, -9e4), image[0].nan_to_num(0, 9e4, -9e4))


@native
@pytest.mark.parametrize("low", LOW, ids=["float16", "bfloat16"])
def test_rounds_like_torch(low):
    """Products of two values are exact in float32, so the result must be torch's rounding of them, ties included."""
    generator = torch.Generator().manual_seed(5)
    bits = torch.randint(-(2**15), 2**15, (2, 1, 1, 256, 1031), generator=generator, dtype=torch.int32).to(torch.int16)
    a, b = bits.view(low)
    b[:, :, :128] = (
        1 + 2.0 ** -torch.randint(1, 8 if low == torch.bfloat16 else 11, (1, 1, 128, 1031), generator=generator)
    ).to(low)  # many ties
    expected = (a.float() * b.float()).to(low)
    out = adaptive_fuse(a, [b.unsqueeze(2)])[0]
    assert torch.equal(out.isnan(), expected[0, 0].isnan())
    assert torch.equal(out.nan_to_num(0), expected[0, 0].nan_to_num(0))


# --- derivatives ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding_mode", MODES)
@pytest.mark.parametrize(
    "shape, sides", [((1, 2, 2, 2, 3), (1, 3)), ((2, 1, 1, 3, 2), (5,))], ids=["two-levels", "inside-filter"]
)
def test_gradcheck_and_gradgradcheck(shape, sides, padding_mode, kernel_backend, device):
    leaves = [
        t.requires_grad_()
        for t in itertools.chain(*[[x] if torch.is_tensor(x) else x for x in arguments(shape, sides, device=device)])
    ]

    def function(images, *rest):
        return adaptive_fuse(images, rest[:-1], rest[-1], padding_mode=padding_mode, backend=kernel_backend)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


def test_third_order_is_the_references(backend, device):
    def third(name):
        images, filters, alphas = arguments((1, 2, 1, 3, 4), (1, 3), device=device)
        leaves = [t.requires_grad_() for t in (images, *filters, alphas)]
        value = adaptive_fuse(images, filters, alphas, padding_mode="reflect", backend=name).sum()
        for order in (1, 2, 3):
            derivatives = torch.autograd.grad(value, leaves, create_graph=order < 3)
            weights = [random(*d.shape, device=device, seed=31 * order + n) for n, d in enumerate(derivatives)]
            value = sum((d * w).sum() for d, w in zip(derivatives, weights))
        return value

    expected = third("reference")
    assert abs(expected.item()) > 1e-3
    torch.testing.assert_close(third(backend), expected, rtol=1e-10, atol=1e-12)


class _Recorder(TorchDispatchMode):
    """Notes which gradients each call of the backward operator was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[bool, list[int], bool]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is BACKWARD_OP:
            self.calls.append(tuple(args[5:8]))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("wanted", [w for w in itertools.product([False, True], repeat=4) if any(w)], ids=str)
def test_frozen_arguments_are_not_computed(wanted, device):
    """Only the gradients that someone needs are asked of the kernels, and they are right without the others."""
    images, filters, alphas = arguments((1, 2, 1, 18, 20), (3, 1), torch.float64, device)
    tensors = [images, *filters, alphas]
    leaves = [t.requires_grad_(w) for t, w in zip(tensors, wanted)]
    grad = random(1, 1, 18, 20, device=device, seed=3)
    out = adaptive_fuse(leaves[0], leaves[1:3], leaves[3])
    with _Recorder() as recorder:
        computed = torch.autograd.grad(out, [leaf for leaf, w in zip(leaves, wanted) if w], grad)
    # Native kernels keep what the alphas' gradient needs, so that it asks for no pass over the filters.
    kept = str(device) == "cpu" and backends()["cpu"] is None
    expected = [(wanted[0], [int(wanted[1]), int(wanted[2])], wanted[3] and not kept)]
    assert recorder.calls == (expected if any(wanted[:3]) or not kept else [])
    exact = [e for e, w in zip(exact_gradients(images, filters, alphas, "zeros", grad), wanted) if w]
    for g, e in zip(computed, exact, strict=True):
        torch.testing.assert_close(g.cpu(), e, rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(backends()["cpu"] is not None, reason=str(backends()["cpu"]))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_responses_are_what_each_level_adds(dtype):
    images, filters, alphas = arguments((2, 2, 3, 21, 35), (3, 1), dtype)
    responses_op = torch.ops.ffmef.adaptive_fuse_responses.default
    out, responses = responses_op(images, filters, alphas, "reflect")
    assert torch.equal(out, adaptive_fuse(images, filters, alphas, padding_mode="reflect"))
    for l, level in enumerate(filters):
        alone = reference.adaptive_fuse(images.double(), [level.double()], torch.ones(1), "reflect")
        torch.testing.assert_close(responses[l].double(), alone, rtol=1e-5, atol=1e-5)
    # What the plain operator keeps for its gradients; on its own it has none.
    with pytest.raises(NotImplementedError, match="adaptive_fuse_responses has no derivatives"):
        responses_op(images.requires_grad_(), filters, alphas, "reflect")[0].sum().backward()


@pytest.mark.skipif(backends()["cpu"] is not None, reason=str(backends()["cpu"]))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 2, 3, 21, 35), (1, 1, 1, 3, 1100)], ids=str)
def test_gradients_from_responses(shape, dtype):
    images, filters, alphas = arguments(shape, (3, 1), dtype)
    filters[1] = filters[1][..., ::2, ::2].contiguous()
    _, responses = torch.ops.ffmef.adaptive_fuse_responses(images, filters, alphas, "reflect")
    batch, _, channels, height, width = shape
    grad = torch.randn(width, channels, height, 2 * batch, dtype=torch.float64).to(dtype)[..., ::2].permute(3, 1, 2, 0)
    from_responses = torch.ops.ffmef.adaptive_fuse_responses_backward.default
    found = from_responses(grad, responses, images, filters, alphas, "reflect", True, [1, 1], True)
    plain = torch.ops.ffmef.adaptive_fuse_backward(grad, images, filters, alphas, "reflect", True, [1, 1], True)
    for ours, theirs in zip(found[:-1], plain[:-1], strict=True):
        assert torch.equal(ours, theirs)
    exact = (responses.double() * grad.double()).sum((1, 2, 3, 4))
    scale = (responses.double() * grad.double()).abs().sum()
    assert found[-1].dtype == alphas.dtype
    torch.testing.assert_close(found[-1].double(), exact, rtol=torch.finfo(alphas.dtype).eps, atol=1e-7 * float(scale))
    with pytest.raises(NotImplementedError, match="adaptive_fuse_responses_backward has no derivatives"):
        from_responses(grad.requires_grad_(), responses, images, filters, alphas, "zeros", True, [1, 1], True)[
            0
        ].sum().backward()


def test_unneeded_gradients_are_empty(device):
    images, filters, alphas = arguments((1, 2, 1, 6, 7), (1, 3), torch.float32, device)
    grad = torch.ones(1, 1, 6, 7, device=device)
    image_grad, filter_grads, alpha_grad = backward(grad, images, filters, alphas, "zeros", False, [0, 1], False)
    assert [tuple(t.shape) for t in (image_grad, *filter_grads, alpha_grad)] == [(0,), (0,), (1, 2, 9, 6, 7), (0,)]


@pytest.mark.parametrize("wanted", [(0,), (1,), (3,), (0, 1), (2, 3)], ids=str)
def test_second_order_with_frozen_arguments(wanted, backend, device):
    def second(name):
        images, filters, alphas = arguments((1, 2, 1, 4, 5), (3, 1), device=device)
        tensors = [images, *filters, alphas]
        leaves = [t.requires_grad_() if n in wanted else t for n, t in enumerate(tensors)]
        needed = [leaves[n] for n in wanted]
        out = adaptive_fuse(leaves[0], leaves[1:3], leaves[3], backend=name)
        # The incoming gradient depends on the output, so that its own derivative matters too.
        firsts = torch.autograd.grad((out**3).sum(), needed, create_graph=True)
        return torch.autograd.grad(sum((g * g).sum() for g in firsts), needed)

    for g, e in zip(second(backend), second("reference"), strict=True):
        torch.testing.assert_close(g, e, rtol=1e-9, atol=1e-9)


def test_the_plain_torch_backward_is_the_derivative_of_the_plain_torch_forward(dtype, device):
    """What serves where no compiler was, and what the gradients of the fake-free dispatcher come to."""
    for padding_mode in MODES:
        images, filters, alphas = arguments((2, 2, 2, 4, 5), (1, 9, 3), dtype, device)
        grad = random(2, 2, 4, 5, dtype=dtype, device=device, seed=8)
        i, f, a = reference.adaptive_fuse_backward(grad, images, filters, alphas, padding_mode, True, [1, 1, 1], True)
        check_gradients(images, filters, alphas, padding_mode, grad, [i, *f, a])
        i, f, a = reference.adaptive_fuse_backward(grad, images, filters, alphas, padding_mode, False, [0, 1, 0], False)
        assert [t.numel() for t in (i, f[0], f[2], a)] == [0, 0, 0, 0] and f[1].shape == filters[1].shape


# --- determinism ---------------------------------------------------------------------------------------------------


def check_threads_and_repetition(images, filters, alphas):
    """Assert that results and gradients are the same to the bit for any number of threads."""
    batch, _, channels, height, width = images.shape
    grad = random(batch, channels, height, width, dtype=images.dtype, device=images.device, seed=2)

    def everything():
        return [adaptive_fuse(images, filters, alphas), *gradients(images, filters, alphas, "zeros", grad, call(None))]

    threads = torch.get_num_threads()
    first = everything()
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            for a, b in zip(everything(), first, strict=True):
                assert torch.equal(a, b)
    finally:
        torch.set_num_threads(threads)


def test_results_do_not_depend_on_threads_or_repetition(dtype, device):
    images, filters, alphas = arguments((2, 2, 1, 50, 1100), (1, 3, 5), dtype, device)
    check_threads_and_repetition(images, filters, alphas)


# --- what is refused -----------------------------------------------------------------------------------------------

IMAGES = torch.ones(2, 2, 1, 4, 5)
FILTERS = [torch.ones(2, 2, 1, 4, 5), torch.ones(2, 2, 9, 4, 5)]
REFUSED = {
    "images list": (lambda: adaptive_fuse([1.0], FILTERS), TypeError, "images must be a tensor, got list"),
    "images int": (
        lambda: adaptive_fuse(IMAGES.int(), FILTERS),
        TypeError,
        "images must be float64, float32, float16 or bfloat16, got int32",
    ),
    "images complex": (
        lambda: adaptive_fuse(IMAGES.cfloat(), FILTERS),
        TypeError,
        "images must be float64, float32, float16 or bfloat16, got complex64",
    ),
    "images 3-D": (
        lambda: adaptive_fuse(IMAGES[0, 0], FILTERS),
        ValueError,
        "images must be (B, N, C, H, W) or (B, N, H, W), got shape (1, 4, 5)",
    ),
    "images none": (
        lambda: adaptive_fuse(IMAGES[:, :0], [f[:, :0] for f in FILTERS]),
        ValueError,
        "images must hold at least one image, got N = 0",
    ),
    "filters tensor": (
        lambda: adaptive_fuse(IMAGES, FILTERS[0]),
        TypeError,
        "filters must be a sequence of tensors, one for each level, got one tensor",
    ),
    "filters number": (lambda: adaptive_fuse(IMAGES, 3), TypeError, "filters must be a sequence of tensors, got int"),
    "filters empty": (lambda: adaptive_fuse(IMAGES, []), ValueError, "filters must have at least one level, got none"),
    "filters item": (
        lambda: adaptive_fuse(IMAGES, [FILTERS[0], None]),
        TypeError,
        "filters[1] must be a tensor, got NoneType",
    ),
    "filters int": (
        lambda: adaptive_fuse(IMAGES, [FILTERS[0].long()]),
        TypeError,
        "filters[0] must be float64, float32, float16 or bfloat16, got int64",
    ),
    "filters 4-D": (
        lambda: adaptive_fuse(IMAGES, [FILTERS[0][0]]),
        ValueError,
        "filters[0] must be (B, N, k*k, H, W), got shape (2, 1, 4, 5)",
    ),
    "filters batch": (
        lambda: adaptive_fuse(IMAGES, [FILTERS[0][:1]]),
        ValueError,
        "filters[0] must have batch size 2 like images, got 1",
    ),
    "filters images": (
        lambda: adaptive_fuse(IMAGES, [FILTERS[0], torch.ones(2, 3, 9, 4, 5)]),
        ValueError,
        "filters[1] must have 2 images like images, got 3",
    ),
    "filters even": (
        lambda: adaptive_fuse(IMAGES, [torch.ones(2, 2, 4, 4, 5)]),
        ValueError,
        "filters[0] must have k*k taps with k odd and at most 31, got 4; "
        "other shapes fit into such a square with taps of zero",
    ),
    "filters of channels": (
        lambda: adaptive_fuse(IMAGES, [torch.ones(2, 2, 1, 9, 4, 5)]),
        ValueError,
        "filters[0] must be (B, N, k*k, H, W), got shape (2, 2, 1, 9, 4, 5); "
        "one filter per channel: move the channels into the batch",
    ),
    "filters without order": (
        lambda: adaptive_fuse(IMAGES, set(FILTERS)),
        TypeError,
        "filters must be a sequence of tensors, got set",
    ),
    "filters by name": (
        lambda: adaptive_fuse(IMAGES, {"fine": FILTERS[0]}),
        TypeError,
        "filters must be a sequence of tensors, got dict",
    ),
    "filters no square": (
        lambda: adaptive_fuse(IMAGES, [torch.ones(2, 2, 8, 4, 5)]),
        ValueError,
        "filters[0] must have k*k taps with k odd and at most 31, got 8; "
        "other shapes fit into such a square with taps of zero",
    ),
    "filters no taps": (
        lambda: adaptive_fuse(IMAGES, [torch.ones(2, 2, 0, 4, 5)]),
        ValueError,
        "filters[0] must have k*k taps with k odd and at most 31, got 0",
    ),
    "filters too large": (
        lambda: adaptive_fuse(IMAGES, [torch.ones(2, 2, 33 * 33, 4, 5)]),
        ValueError,
        "filters[0] must have k*k taps with k odd and at most 31, got 1089",
    ),
    "filters size": (
        lambda: adaptive_fuse(IMAGES, [torch.ones(2, 2, 1, 4, 6)]),
        ValueError,
        "filters[0] must have height and width 4 x 5 like images, or of a coarser grid of at least 1 x 1, got 4 x 6",
    ),
    "filters coarse but empty": (
        lambda: adaptive_fuse(IMAGES, [torch.ones(2, 2, 1, 4, 0)]),
        ValueError,
        "filters[0] must have height and width 4 x 5 like images, or of a coarser grid of at least 1 x 1, got 4 x 0",
    ),
    "filters taller": (
        lambda: adaptive_fuse(IMAGES, [FILTERS[0], torch.ones(2, 2, 9, 5, 1)]),
        ValueError,
        "filters[1] must have height and width 4 x 5 like images, or of a coarser grid of at least 1 x 1, got 5 x 1",
    ),
    "filters dtype": (
        lambda: adaptive_fuse(IMAGES, [FILTERS[0].double()]),
        ValueError,
        "filters[0] must be float32, float16 or bfloat16, got float64",
    ),
    "filters device": (
        lambda: adaptive_fuse(IMAGES, [FILTERS[0].to("meta")]),
        ValueError,
        "filters[0] must be on cpu like images, got meta",
    ),
    "alphas length": (
        lambda: adaptive_fuse(IMAGES, FILTERS, torch.ones(3)),
        ValueError,
        "alphas must be (2,), one weight for each level, got shape (3,)",
    ),
    "alphas list": (
        lambda: adaptive_fuse(IMAGES, FILTERS, [1.0]),
        ValueError,
        "alphas must be (2,), one weight for each level, got shape (1,)",
    ),
    "alphas 2-D": (
        lambda: adaptive_fuse(IMAGES, FILTERS, torch.ones(2, 1)),
        ValueError,
        "alphas must be (2,), one weight for each level, got shape (2, 1)",
    ),
    "alphas int": (
        lambda: adaptive_fuse(IMAGES, FILTERS, torch.ones(2).int()),
        TypeError,
        "alphas must be float64, float32, float16 or bfloat16, got int32",
    ),
    "alphas device": (
        lambda: adaptive_fuse(IMAGES, FILTERS, torch.ones(2, device="meta")),
        ValueError,
        "alphas must be on cpu like images, got meta",
    ),
    "alphas number": (
        lambda: adaptive_fuse(IMAGES, FILTERS, 0.5),
        TypeError,
        "alphas must be a tensor or a sequence of numbers or tensors, got float",
    ),
    "alphas text": (
        lambda: adaptive_fuse(IMAGES, FILTERS, "ab"),
        TypeError,
        "alphas must be a tensor or a sequence of numbers or tensors, got str",
    ),
    "alphas set": (
        lambda: adaptive_fuse(IMAGES, FILTERS, {0.5, 1.0}),
        TypeError,
        "alphas must be a tensor or a sequence of numbers or tensors, got set",
    ),
    "alphas beyond": (
        lambda: adaptive_fuse(IMAGES, FILTERS, [1, 10**400]),
        TypeError,
        "alphas[1] must be a number or a tensor, got int",
    ),
    "alphas complex": (
        lambda: adaptive_fuse(IMAGES, FILTERS, [1.0, 1j]),
        TypeError,
        "alphas[1] must be a number or a tensor, got complex",
    ),
    "alphas complex tensor": (
        lambda: adaptive_fuse(IMAGES, FILTERS, [1.0, torch.ones((), dtype=torch.complex64)]),
        TypeError,
        "alphas[1] must be real, got complex64",
    ),
    "padding_mode": (
        lambda: adaptive_fuse(IMAGES, FILTERS, padding_mode="symmetric"),
        ValueError,
        f"padding_mode must be one of {', '.join(MODES)}, got 'symmetric'",
    ),
    "backend": (
        lambda: adaptive_fuse(IMAGES, FILTERS, backend="opencl"),
        ValueError,
        "backend must be one of reference, cpu, triton, cuda or None, got 'opencl'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_argument_rule_and_value(name):
    function, error, message = REFUSED[name]
    with pytest.raises(error) as caught:
        function()
    assert type(caught.value) is error and str(caught.value) == message


def test_missing_backends_say_why():
    listed = backends()
    assert list(listed) == ["reference", "cpu", "triton", "cuda"] and listed["reference"] is None
    for name, reason in listed.items():
        if reason is not None:
            with pytest.raises(RuntimeError) as caught:
                adaptive_fuse(IMAGES, FILTERS, backend=name)
            assert str(caught.value) == f"backend {name!r} is not available: {reason}"


def test_tensors_without_values_give_shapes():
    out = adaptive_fuse(IMAGES.to("meta"), [f.to("meta") for f in FILTERS])
    assert out.is_meta and out.shape == (2, 1, 4, 5)


@native
def test_backend_cpu_refuses_tensors_elsewhere():
    with pytest.raises(RuntimeError, match="^backend 'cpu' is not available: images must be on the CPU, got meta$"):
        adaptive_fuse(IMAGES.to("meta"), [f.to("meta") for f in FILTERS], backend="cpu")


@native
@pytest.mark.parametrize(
    "change",
    [
        dict(images=IMAGES[0]),
        dict(filters=[FILTERS[0][:1], FILTERS[1]]),
        dict(filters=[FILTERS[0][:, :1], FILTERS[1]]),
        dict(filters=[FILTERS[0].double(), FILTERS[1]]),
        dict(filters=[FILTERS[0][..., :0], FILTERS[1]]),
        dict(filters=[torch.ones(2, 2, 1, 4, 6), FILTERS[1]]),
        dict(filters=[torch.ones(2, 2, 1, 5, 4), FILTERS[1]]),
        dict(filters=[torch.ones(2, 2, 4, 4, 5), FILTERS[1]]),
        dict(filters=[torch.ones(2, 2, 1089, 4, 5), FILTERS[1]]),
        dict(filters=[FILTERS[0][0], FILTERS[1]]),
        dict(alphas=torch.ones(3)),
        dict(alphas=torch.ones(2, 1)),
        dict(padding_mode="symmetric"),
        dict(images=IMAGES.int(), filters=[f.int() for f in FILTERS]),
    ],
    ids=lambda change: "-".join(f"{k}" for k in change),
)
def test_the_dispatcher_operators_stay_within_memory(change):
    """Whoever calls the operators behind the public function's back gets an error, never a wrong read."""
    given = {"images": IMAGES, "filters": FILTERS, "alphas": torch.ones(2), "padding_mode": "zeros", **change}
    with pytest.raises(RuntimeError):
        OP(*given.values())
    with pytest.raises(RuntimeError):
        BACKWARD_OP(torch.ones(2, 1, 4, 5, dtype=given["images"].dtype), *given.values(), True, [1, 1], True)


@native
@pytest.mark.parametrize(
    "grad",
    [
        torch.ones(2, 1, 4, 6),
        torch.ones(2, 4, 5),
        torch.ones(1, 1, 4, 5),
        torch.ones(2, 2, 4, 5),
        torch.ones(2, 1, 4, 5).double(),
    ],
    ids=str,
)
def test_the_backward_operator_checks_the_gradient(grad):
    with pytest.raises(RuntimeError, match="grad must be"):
        BACKWARD_OP(grad, IMAGES, FILTERS, torch.ones(2), "zeros", True, [1, 1], True)
    with pytest.raises(RuntimeError, match="need_filters must have one value for each level"):
        BACKWARD_OP(torch.ones(2, 1, 4, 5), IMAGES, FILTERS, torch.ones(2), "zeros", True, [1], True)


@pytest.mark.parametrize("width", [192, 181])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_that_are_written_past_the_caches(dtype, width):
    """Levels of more than 2 MB, with rows that begin and end inside cache lines and others that do not."""
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(1, 2, 2, 181, width, generator=generator, dtype=dtype)
    filters = [torch.rand(1, 2, k * k, 181, width, generator=generator, dtype=dtype) for k in (3, 5)]
    assert all(f.nbytes > 2 << 20 for f in filters)
    grad = torch.rand(1, 2, 181, width, generator=generator, dtype=dtype)
    leaves = [f.requires_grad_() for f in filters]

    def gradients(backend):
        out = adaptive_fuse(images, leaves, [0.5, 2.0], padding_mode="reflect", backend=backend)
        return torch.autograd.grad(out, leaves, grad)

    for found, expected in zip(gradients(None), gradients("reference"), strict=True):
        torch.testing.assert_close(found, expected)
