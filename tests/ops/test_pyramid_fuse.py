"""pyramid_fuse against its definition written out, and every registration of the operator."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from ffmef.ops import backends, pyramid_fuse

torch.set_num_threads(1)
BACKENDS = [
    pytest.param(name, marks=pytest.mark.skipif(reason is not None, reason=str(reason)))
    for name, reason in backends().items()
    if name in ("reference", "cpu")
]
SIZES = [(1, 1), (1, 9), (2, 2), (5, 7), (16, 24), (17, 33), (31, 50)]


def arguments(height, width, *, batch=1, count=2, channels=1, bands=3, scale=8, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    cells = (-(-height // scale), -(-width // scale))
    return tuple(
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in ((batch, count, channels, height, width), (batch, bands, count, *cells), (batch, count, *cells))
    )


def at(plane, y, x):
    """A plane's value at a fractional place, constant beyond the outermost centres."""
    height, width = len(plane), len(plane[0])
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    fy, fx = y - y0, x - x0
    upper = plane[y0][x0] * (1 - fx) + plane[y0][x1] * fx
    return upper * (1 - fy) + (plane[y1][x0] * (1 - fx) + plane[y1][x1] * fx) * fy


def finer(plane, factor, height, width):
    return [
        [at(plane, (y + 0.5) / factor - 0.5, (x + 0.5) / factor - 0.5) for x in range(width)] for y in range(height)
    ]


def mean_of_four(plane):
    height, width = len(plane), len(plane[0])
    rows, columns = range(0, height, 2), range(0, width, 2)
    clip = lambda i, n: min(i, n - 1)  # noqa: E731
    return [
        [sum(plane[clip(y + i, height)][clip(x + j, width)] for i in (0, 1) for j in (0, 1)) / 4 for x in columns]
        for y in rows
    ]


def written_out(images, weights, base, scale):
    """The definition in plain Python numbers: one batch element, one channel."""
    bands = weights.shape[0]
    pyramids = [[image.tolist()] for image in images]
    for pyramid in pyramids:
        for _ in range(bands):
            pyramid.append(mean_of_four(pyramid[-1]))
    out = None
    for level in reversed(range(bands + 1)):
        height, width = len(pyramids[0][level]), len(pyramids[0][level][0])
        total = [[0.0] * width for _ in range(height)] if out is None else finer(out, 2, height, width)
        for n, pyramid in enumerate(pyramids):
            coarse = base[n] if level == bands else weights[level, n]
            weight = finer(coarse.tolist(), scale >> level, height, width)
            below = finer(pyramid[level + 1], 2, height, width) if level < bands else None
            for y, x in itertools.product(range(height), range(width)):
                value = pyramid[level][y][x] - (below[y][x] if below else 0.0)
                total[y][x] += weight[y][x] * value
        out = total
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bands,scale", [(3, 8), (0, 1), (0, 4), (1, 2), (2, 8), (3, 16)])
@pytest.mark.parametrize("size", SIZES)
def test_definition(backend, size, bands, scale):
    images, weights, base = arguments(*size, count=3, bands=bands, scale=scale)
    expected = written_out(images[0, :, 0], weights[0], base[0], scale)
    got = pyramid_fuse(images, weights, base, scale=scale, backend=backend)
    torch.testing.assert_close(got[0, 0], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_weights_return_the_mean(backend):
    images, weights, base = arguments(37, 61, batch=2, count=4, channels=3)
    got = pyramid_fuse(images, torch.full_like(weights, 0.25), torch.full_like(base, 0.25), backend=backend)
    torch.testing.assert_close(got, images.mean(1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_batch_fuses_to_an_empty_batch(backend):
    inputs = [tensor.requires_grad_() for tensor in arguments(9, 11, batch=0, channels=2)]
    out = pyramid_fuse(*inputs, backend=backend)
    assert out.shape == (0, 2, 9, 11)
    out.sum().backward()
    assert [tensor.grad.shape for tensor in inputs] == [tensor.shape for tensor in inputs]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype,tolerance", [(torch.float32, 1e-5), (torch.float16, 4e-3), (torch.bfloat16, 3e-2)])
def test_dtypes(backend, dtype, tolerance):
    exact = arguments(45, 70, batch=2, channels=2, dtype=dtype)
    expected = pyramid_fuse(*(t.double() for t in exact), backend="reference")
    got = pyramid_fuse(*exact, backend=backend)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides(backend):
    images, weights, base = arguments(20, 30, batch=2, channels=2)
    expected = pyramid_fuse(images, weights, base, backend="reference")
    turned = images.transpose(-1, -2).contiguous().transpose(-1, -2)
    spread = torch.zeros(*weights.shape, 2, dtype=weights.dtype)
    spread[..., 1] = weights
    got = pyramid_fuse(turned, spread[..., 1], base.flip(1).contiguous().flip(1), backend=backend)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("bands,scale", [(3, 8), (1, 4), (0, 2)])
def test_derivatives(bands, scale):
    inputs = [t.requires_grad_() for t in arguments(9, 11, batch=2, channels=2, bands=bands, scale=scale)]
    call = lambda *tensors: pyramid_fuse(*tensors, scale=scale)  # noqa: E731
    assert gradcheck(call, inputs)
    assert gradgradcheck(call, inputs)


@pytest.mark.parametrize("needed", list(itertools.product([False, True], repeat=3))[1:])
@pytest.mark.parametrize("size", [(1, 1), (9, 14), (33, 50)])
def test_gradients_are_those_of_the_reference(needed, size):
    tensors = arguments(*size, batch=2, channels=2)
    grads = []
    for backend in ("reference", None):
        inputs = [t.clone().requires_grad_(n) for t, n in zip(tensors, needed)]
        out = pyramid_fuse(*inputs, backend=backend)
        generator = torch.Generator().manual_seed(1)
        out.backward(torch.randn(out.shape, generator=generator, dtype=out.dtype))
        grads.append([t.grad for t in inputs])
    for expected, got, n in zip(*grads, needed):
        assert (got is not None) == n
        if n:
            torch.testing.assert_close(got, expected)


def test_registration():
    for dtype in (torch.float64, torch.float32):
        inputs = [t.requires_grad_() for t in arguments(9, 11, batch=2, dtype=dtype)]
        torch.library.opcheck(torch.ops.ffmef.pyramid_fuse.default, (*inputs, 8))
        grad = torch.randn(2, 1, 9, 11, dtype=dtype)
        torch.library.opcheck(torch.ops.ffmef.pyramid_fuse_backward.default, (grad, *inputs, 8, True, True, True))
        torch.library.opcheck(torch.ops.ffmef.pyramid_fuse_backward.default, (grad, *inputs, 8, False, True, False))


def test_compiles_to_one_graph_for_any_size():
    call = torch.compile(lambda *t: pyramid_fuse(*t) * 2, backend="aot_eager", fullgraph=True, dynamic=True)
    for size in ((16, 24), (17, 33)):
        inputs = [t.requires_grad_() for t in arguments(*size)]
        got = torch.autograd.grad(call(*inputs).sum(), inputs)
        expected = torch.autograd.grad(pyramid_fuse(*inputs).sum() * 2, inputs)
        for a, b in zip(got, expected):
            torch.testing.assert_close(a, b)


def test_vmap():
    images, weights, base = arguments(9, 14, batch=3)
    stacked = torch.stack([images, images.flip(-1)])
    got = torch.vmap(lambda i: pyramid_fuse(i, weights, base))(stacked)
    torch.testing.assert_close(got[1], pyramid_fuse(stacked[1], weights, base))
    inputs = [t.requires_grad_() for t in (images, weights, base)]
    out = pyramid_fuse(*inputs)
    directions = torch.stack([torch.ones_like(out), out.detach()])
    together = torch.autograd.grad(out, inputs, directions, is_grads_batched=True, retain_graph=True)
    for index, direction in enumerate(directions):
        for batched, alone in zip(together, torch.autograd.grad(out, inputs, direction, retain_graph=True)):
            torch.testing.assert_close(batched[index], alone)


def test_autocast_promotes():
    images, weights, base = arguments(9, 14, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = pyramid_fuse(images, weights.bfloat16(), base.bfloat16())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, pyramid_fuse(images, weights.bfloat16().float(), base.bfloat16().float()))


@pytest.mark.skipif(backends()["cpu"] is not None, reason=str(backends()["cpu"]))
def test_threads_change_nothing():
    tensors = arguments(70, 90, batch=2, count=3, dtype=torch.float32)
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            inputs = [t.clone().requires_grad_() for t in tensors]
            out = pyramid_fuse(*inputs)
            out.square().sum().backward()
            results.append([out, *(t.grad for t in inputs)])
    finally:
        torch.set_num_threads(1)
    for a, b in zip(*results):
        assert torch.equal(a, b)


def test_mistakes_are_named():
    images, weights, base = arguments(16, 16)
    with pytest.raises(ValueError, match=r"scale must be a power of two from 8 \(2\^L\) to 64, got 4"):
        pyramid_fuse(images, weights, base, scale=4)
    with pytest.raises(ValueError, match=r"scale must be a power of two .* got 12"):
        pyramid_fuse(images, weights, base, scale=12)
    with pytest.raises(ValueError, match=r"weights must be \(1, 3, 2, 1, 1\) for these images, got \(1, 3, 2, 2, 2\)"):
        pyramid_fuse(images, weights, base, scale=16)
    with pytest.raises(ValueError, match=r"base must be \(1, 2, 2, 2\) for these images, got \(1, 2, 2, 3\)"):
        pyramid_fuse(images, weights, torch.zeros(1, 2, 2, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="base must be float64 like images, got float32"):
        pyramid_fuse(images, weights, base.float())
    with pytest.raises(TypeError, match="weights must be a tensor, got list"):
        pyramid_fuse(images, [weights], base)
    with pytest.raises(ValueError, match=r"images must be \(B, N, C, H, W\)"):
        pyramid_fuse(images[0, 0], weights, base)
    with pytest.raises(RuntimeError, match="'cuda' is not available"):
        pyramid_fuse(images, weights, base, backend="cuda")


def test_export_with_any_number_of_images():
    """Python's min over sizes would make the graph compare them: no more images than channels."""

    class Module(torch.nn.Module):
        def forward(self, images, weights):
            return pyramid_fuse(images, weights, weights[:, 0], scale=2)

    any_size = torch.export.Dim.DYNAMIC
    sizes = {0: any_size, 1: any_size}, {0: any_size, 2: any_size}
    given = torch.rand(2, 2, 3, 8, 6), torch.rand(2, 1, 2, 4, 3)
    graph = torch.export.export(Module(), given, dynamic_shapes=sizes, strict=False).module()
    more = torch.rand(1, 5, 3, 8, 6), torch.rand(1, 1, 5, 4, 3)
    assert torch.equal(graph(*more), Module()(*more))
