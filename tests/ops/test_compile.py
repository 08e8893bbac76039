"""The operator inside torch's own machinery: compilers, export, vmap, autocast, and its registrations' consistency."""

from __future__ import annotations

import itertools
import shutil

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from ffmef import _loader
from ffmef.models import FFMEF
from ffmef.ops import adaptive_fuse
from ffmef.ops.adaptive_fuse import _OPERATOR
from ffmef.ops.adaptive_fuse import PADDING_MODES as MODES

OP = torch.ops.ffmef.adaptive_fuse.default
BACKWARD_OP = torch.ops.ffmef.adaptive_fuse_backward.default
# Sizes that coincide with nothing else: equal numbers would be taken for one symbol.
SIZES = ((13, 17), (23, 19), (37, 14))
# torch's own tracer still calls a part of its scripting that it deprecates.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:`torch.jit.{name}` is deprecated") for name in ("script", "script_method")
]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def arguments(height: int, width: int, sides=(1, 3), *, batch=1, channels=1, dtype=torch.float32, seed=0, grid=None):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)

    filters = [random(batch, 2, k * k, *(grid or (height, width))) for k in sides]
    return (
        random(batch, 2, channels, height, width),
        filters,
        random(len(sides)).to(torch.float64 if dtype == torch.float64 else torch.float32),
    )


# --- registrations -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding_mode", MODES)
@pytest.mark.parametrize("sides", [(3,), (1, 3, 5)], ids=str)
@pytest.mark.parametrize("grid", [(5, 6), (2, 3)], ids=["full", "coarse"])
def test_opcheck_forward(sides, padding_mode, grid):
    images, filters, alphas = arguments(5, 6, sides, grid=grid)
    given = [images.requires_grad_(), [f.requires_grad_() for f in filters], alphas.requires_grad_(), padding_mode]
    checked = torch.library.opcheck(OP, given)
    assert set(checked.values()) == {"SUCCESS"}


@pytest.mark.parametrize("needs", [(True, 1, True), (False, 1, False), (True, 0, True)], ids=str)
@pytest.mark.parametrize("grid", [(5, 6), (2, 3)], ids=["full", "coarse"])
def test_opcheck_backward(needs, grid):
    images, filters, alphas = arguments(5, 6, (3, 1), grid=grid)
    grad = torch.rand(1, 1, 5, 6)
    given = [
        grad.requires_grad_(),
        images.requires_grad_(),
        [f.requires_grad_() for f in filters],
        alphas.requires_grad_(),
        "zeros",
    ]
    # Gradients that were not asked for are empty, which no numeric comparison can differentiate.
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    checked = torch.library.opcheck(BACKWARD_OP, (*given, needs[0], [needs[1], 1], needs[2]), test_utils=tests)
    assert set(checked.values()) == {"SUCCESS"}


def test_schemas_of_cpp_and_python_are_one():
    """The native library defines the operators; without it Python does: nobody may notice which."""
    for name, schema in (
        ("adaptive_fuse", _OPERATOR.forward_schema),
        ("adaptive_fuse_backward", _OPERATOR.backward_schema),
    ):
        defined = getattr(torch.ops.ffmef, name).default._schema
        assert str(defined) == f"ffmef::{name}{schema}"
        assert str(
            getattr(
                torch.ops.ffmef, f"{name}_triton" if name == "adaptive_fuse" else "adaptive_fuse_triton_backward"
            ).default._schema
        ).endswith(schema)


def test_fake_results_have_the_shapes_of_real_ones():
    from torch._subclasses import FakeTensorMode

    images, filters, alphas = arguments(5, 6, (3, 1), batch=2, channels=3)
    filters[1] = filters[1][..., ::2, ::3].mT.contiguous().mT
    images, grad = images.mT.contiguous().mT, torch.rand(2, 3, 5, 6)
    for needs in itertools.product([False, True], [[0, 0], [1, 0], [1, 1]], [False, True]):
        real_gradients = BACKWARD_OP(grad, images, filters, alphas, "zeros", *needs)
        with FakeTensorMode() as mode:
            fake = [mode.from_tensor(t) for t in (grad, images, *filters, alphas)]
            fake_gradients = BACKWARD_OP(fake[0], fake[1], fake[2:4], fake[4], "zeros", *needs)
        for real, shaped in zip(real_gradients, fake_gradients, strict=True):
            assert (real.shape, real.stride(), real.dtype) == (shaped.shape, shaped.stride(), shaped.dtype)


# --- compile and export --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["tensor", "list", "none"])
def test_compiles_whole_and_once_for_every_size(given):
    counter = CompileCounterWithBackend("aot_eager")

    def function(images, filters, alphas):
        weights = {"tensor": alphas, "list": [0.5, 0.25], "none": None}[given]
        return adaptive_fuse(images * 2, filters, weights, padding_mode="reflect").square()

    compiled = torch.compile(function, backend=counter, fullgraph=True, dynamic=True)
    for height, width in SIZES:
        images, filters, alphas = arguments(height, width)
        leaves = [t.requires_grad_() for t in (images, *filters, alphas)]
        out, expected = compiled(images, filters, alphas), function(images, filters, alphas)
        torch.testing.assert_close(out, expected)
        wanted = leaves if given == "tensor" else leaves[:-1]
        for a, b in zip(
            torch.autograd.grad(out.sum(), wanted), torch.autograd.grad(expected.sum(), wanted), strict=True
        ):
            torch.testing.assert_close(a, b)
    assert counter.frame_count == 1


def test_coarse_filters_compile_once_for_every_size():
    counter = CompileCounterWithBackend("aot_eager")

    def function(images, first, second, alphas):
        return adaptive_fuse(images * 2, [first, second], alphas, padding_mode="reflect").square()

    compiled = torch.compile(function, backend=counter, fullgraph=True, dynamic=True)
    for (height, width), first, second in zip(
        SIZES, ((4, 5), (7, 3), (11, 8)), ((6, 10), (12, 18), (31, 9)), strict=True
    ):
        images, (a, _), alphas = arguments(height, width, grid=first)
        _, (_, b), _ = arguments(height, width, grid=second)
        leaves = [t.requires_grad_() for t in (images, a, b, alphas)]
        out, expected = compiled(*leaves), function(*leaves)
        torch.testing.assert_close(out, expected)
        for g, e in zip(
            torch.autograd.grad(out.sum(), leaves), torch.autograd.grad(expected.sum(), leaves), strict=True
        ):
            torch.testing.assert_close(g, e)
    assert counter.frame_count == 1


def test_network_compiles_whole_and_not_again_for_other_sizes():
    counter = CompileCounterWithBackend("aot_eager")
    model = FFMEF(channels=2, kernel_sizes=(1,)).eval()
    compiled = torch.compile(model, backend=counter, fullgraph=True, dynamic=True)
    counts = []
    with torch.no_grad():
        for height, width in SIZES:
            luminance = torch.rand(1, 2, height, width)
            torch.testing.assert_close(compiled(luminance), model(luminance))
            counts.append(counter.frame_count)
    assert counts[0] > 0 and set(counts) == {counts[0]}


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="inductor needs a C++ compiler")
def test_inductor():
    def function(images, filters, alphas):
        return adaptive_fuse(images + 1, filters, alphas) * 2

    compiled = torch.compile(function, fullgraph=True, dynamic=True)
    for height, width in SIZES[:2]:
        given = arguments(height, width)
        torch.testing.assert_close(compiled(*given), function(*given))


def test_export_shows_one_operator():
    class Module(torch.nn.Module):
        def forward(self, images, first, second, alphas):
            return adaptive_fuse(images, [first, second], alphas)

    images, filters, alphas = arguments(*SIZES[0])
    height, width = torch.export.Dim("height"), torch.export.Dim("width")
    sizes = {3: height, 4: width}
    program = torch.export.export(
        Module(),
        (images, *filters, alphas),
        dynamic_shapes={"images": sizes, "first": sizes, "second": sizes, "alphas": None},
    )
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert called.count(OP) == 1 and [t for t in called if "ffmef" in str(t)] == [OP]
    images, filters, alphas = arguments(*SIZES[1])
    torch.testing.assert_close(program.module()(images, *filters, alphas), adaptive_fuse(images, filters, alphas))


@pytest.mark.parametrize("strict", [False, True])
def test_export_with_a_grid_that_depends_on_the_image(strict):
    class Network(torch.nn.Module):
        def forward(self, images):  # torch cannot prove that H // 4 is at most H
            cells = torch.conv2d(images[:, 0], torch.ones(2, 2, 4, 4) / 16, stride=4).unflatten(1, (2, 1))
            return adaptive_fuse(images, [cells])

    images = torch.rand(1, 2, 2, 16, 20)
    sizes = {3: torch.export.Dim("height", min=8), 4: torch.export.Dim("width", min=8)}
    program = torch.export.export(Network(), (images,), dynamic_shapes=(sizes,), strict=strict)
    images = torch.rand(1, 2, 2, 33, 47)
    torch.testing.assert_close(program.module()(images), Network()(images))


def test_export_with_coarse_filters():
    class Module(torch.nn.Module):
        def forward(self, images, filters, alphas):
            return adaptive_fuse(images, [filters], alphas)

    def given(height, width, grid):
        images, filters, alphas = arguments(height, width, (3,), grid=grid)
        return images, *filters, alphas

    dim = {name: torch.export.Dim(name, min=2, max=4096) for name in ("height", "width", "rows", "columns")}
    shapes = {
        "images": {3: dim["height"], 4: dim["width"]},
        "filters": {3: dim["rows"], 4: dim["columns"]},
        "alphas": None,
    }
    program = torch.export.export(
        Module(), given(*SIZES[0], (4, 5)), dynamic_shapes=shapes, prefer_deferred_runtime_asserts_over_guards=True
    )
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert [t for t in called if "ffmef" in str(t)] == [OP]
    other = given(*SIZES[1], (6, 9))
    torch.testing.assert_close(program.module()(*other), adaptive_fuse(other[0], [other[1]], other[2]))


# --- vmap ----------------------------------------------------------------------------------------------------------


IN_DIMS = [
    (0, (0, 0), 0),
    (1, (None, 2), None),
    (None, (0, None), None),
    (None, (None, None), 0),
    (2, (None, None), None),
]


def mapped(in_dims, grid=None):
    """Arguments with a mapped dimension of 3, the flat dimensions, and what call number n of a loop gets."""
    stacked = [arguments(5, 6, dtype=torch.float64, batch=2, seed=s, grid=grid) for s in range(3)]
    dims = (in_dims[0], *in_dims[1], in_dims[2])
    separate = [(images, *filters, alphas) for images, filters, alphas in stacked]
    given = [tensors[0] if dim is None else torch.stack(tensors, dim) for tensors, dim in zip(zip(*separate), dims)]
    for tensor in given:
        tensor.requires_grad_()
    loop = [[t if dim is None else t.select(dim, n) for t, dim in zip(given, dims)] for n in range(3)]
    return given, dims, loop


def fuse_two(images, first, second, alphas):
    return adaptive_fuse(images, [first, second], alphas, padding_mode="replicate")


@pytest.mark.parametrize("grid", [None, (2, 3)], ids=["full", "coarse"])
@pytest.mark.parametrize("in_dims", IN_DIMS, ids=str)
def test_vmap_is_a_loop(in_dims, grid):
    """Any argument may be mapped, over any of its dimensions."""
    given, dims, loop = mapped(in_dims, grid)
    out = torch.vmap(fuse_two, in_dims=dims)(*given)
    expected = torch.stack([fuse_two(*one) for one in loop])
    torch.testing.assert_close(out, expected)
    weights = torch.rand_like(out)
    for a, b in zip(
        torch.autograd.grad(out, given, weights), torch.autograd.grad(expected, given, weights), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    "needs", [(True, [1, 1], True), (False, [0, 1], False), (True, [0, 0], False), (False, [0, 0], True)], ids=str
)
@pytest.mark.parametrize("grid", [None, (2, 3)], ids=["full", "coarse"])
@pytest.mark.parametrize("in_dims", IN_DIMS, ids=str)
def test_vmap_of_the_backward_is_a_loop(in_dims, needs, grid):
    given, dims, loop = mapped(in_dims, grid)

    def backward(grad, images, first, second, alphas):
        return tuple(BACKWARD_OP(grad, images, [first, second], alphas, "reflect", *needs))

    for grad_dim in (None, 1):
        grads = torch.rand(2, 3, 1, 5, 6, dtype=torch.float64)
        grad = grads[:, 0].contiguous() if grad_dim is None else grads
        computed = torch.vmap(backward, in_dims=(grad_dim, *dims))(grad, *given)
        separate = [backward(grad if grad_dim is None else grad[:, n], *one) for n, one in enumerate(loop)]
        for position, result in enumerate(computed):
            torch.testing.assert_close(result, torch.stack([one[position] for one in separate]))


def test_batched_gradients():
    """Rows of a Jacobian, all at once."""
    images, filters, alphas = arguments(3, 4, dtype=torch.float64)
    alphas.requires_grad_()
    out = fuse_two(images, *filters, alphas).flatten()
    rows = torch.eye(12, dtype=torch.float64)
    (at_once,) = torch.vmap(lambda row: torch.autograd.grad(out, [alphas], row, retain_graph=True))(rows)
    columns = [
        adaptive_fuse(images, filters, row, padding_mode="replicate") for row in torch.eye(2, dtype=torch.float64)
    ]
    torch.testing.assert_close(
        at_once, torch.stack(columns, -1).view(12, 2)
    )  # linear in alphas: the derivatives are the values


def test_vmap_of_images_without_channels():
    images, filters, alphas = arguments(5, 6, dtype=torch.float64, batch=3)
    out = torch.vmap(lambda i, f, g: adaptive_fuse(i, [f, g], alphas))(
        images[:, None, :, 0], *[f[:, None] for f in filters]
    )
    torch.testing.assert_close(out[:, 0], adaptive_fuse(images[:, :, 0], filters, alphas))


# --- autocast ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_promotes_to_the_widest(low):
    """What a network under autocast hands over: float32 images, low-precision filters."""
    images, filters, alphas = arguments(6, 7)
    expected = adaptive_fuse(images, [f.to(low).float() for f in filters], alphas)
    with torch.autocast("cpu", dtype=low):
        mixed = adaptive_fuse(images, [f.to(low) for f in filters], alphas)
        one_low = adaptive_fuse(images, [filters[0], filters[1].to(low)], alphas)
        by_dispatcher = OP(images, [f.to(low) for f in filters], alphas, "zeros")
        all_low = adaptive_fuse(images.to(low), [f.to(low) for f in filters], alphas)
    assert mixed.dtype == one_low.dtype == torch.float32 and all_low.dtype == low
    assert torch.equal(mixed, expected) and torch.equal(by_dispatcher, expected)


@pytest.mark.parametrize("grid", [None, (2, 3)], ids=["full", "coarse"])
def test_autocast_differentiates(grid):
    images, filters, alphas = arguments(6, 7, grid=grid)
    filters = [f.bfloat16().requires_grad_() for f in filters]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        adaptive_fuse(images, filters, alphas).sum().backward()
    assert all(f.grad.dtype == torch.bfloat16 and f.grad.any() for f in filters)


def test_network_under_autocast():
    torch.manual_seed(0)
    model, luminance = FFMEF().eval(), torch.rand(1, 2, 16, 18)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(luminance)
    with torch.no_grad():
        expected = model(luminance)
    assert out.dtype == torch.float32
    assert (out - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.skipif(_loader.cpu_missing is not None, reason=f"cpu: {_loader.cpu_missing}")
def test_inference_mode_and_no_grad_agree():
    given = arguments(6, 7)
    with torch.inference_mode():
        out = adaptive_fuse(*given)
    assert out.is_inference() and torch.equal(out, adaptive_fuse(*given))
