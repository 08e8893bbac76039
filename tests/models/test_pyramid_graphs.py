"""PyramidFFMEF in graphs: compiled, exported and traced, with and without derivatives, at any size."""

from __future__ import annotations

import io

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, jvp, vmap

from ffmef import _loader
from ffmef.models import FFMEF, PyramidFFMEF

needs_native = pytest.mark.skipif(_loader.cpu_missing is not None, reason=str(_loader.cpu_missing))
OPERATOR = torch.ops.ffmef.pyramid_luminance.default
# An odd size, one that divides by everything, and several pictures at once; another first than later.
SIZES = ((1, 64, 96), (1, 33, 47), (2, 40, 41), (3, 9, 8))
pytestmark = [
    *(pytest.mark.filterwarnings(f"ignore:`torch.jit.{name}` is deprecated") for name in ("trace", "trace_method")),
    pytest.mark.filterwarnings("ignore:.* of FFMEF is deprecated:DeprecationWarning"),  # the tracer reads every name
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated"),
]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def model():
    torch.manual_seed(0)
    made = PyramidFFMEF(channels=(16, 16), octaves=2)
    torch.nn.init.normal_(made.predictor.head.weight, std=0.03)
    return made


def gradients(function, model, luminance):
    tensors = [luminance.requires_grad_(), *model.parameters()]
    return torch.autograd.grad(function(luminance).square().sum(), tensors)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@needs_native
@pytest.mark.parametrize("how", ["dynamic", "marked"])
def test_training_compiles_for_any_size(model, how):
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True if how == "dynamic" else None)
    for batch, height, width in SIZES:
        luminance = torch.rand(batch, 2, height, width)
        if how == "marked":
            torch._dynamo.mark_dynamic(luminance, (2, 3))
        for found, expected in zip(
            gradients(compiled, model, luminance), gradients(model, model, luminance), strict=True
        ):
            # Sums over all pixels of twice the result, which the native kernels round differently.
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
        with torch.no_grad():
            close(compiled(luminance), model(luminance))


@needs_native
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad])
@pytest.mark.parametrize("strict", [False, True])
def test_exports_with_free_sizes_whatever_the_grad_mode(model, mode, strict):
    sizes = {2: torch.export.Dim("height", min=2, max=4096), 3: torch.export.Dim("width", min=2, max=4096)}
    with mode():
        program = torch.export.export(model, (torch.rand(1, 2, 36, 44),), dynamic_shapes=(sizes,), strict=strict)
    assert [node.target for node in program.graph.nodes if node.op == "call_function"] == [OPERATOR]
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for _, height, width in SIZES:
        luminance = torch.rand(1, 2, height, width)
        close(loaded(luminance), model(luminance))


@needs_native
def test_derivatives_of_an_exported_model(model):
    exported = torch.export.export(model, (torch.rand(1, 2, 20, 28),)).module()
    luminance, direction = torch.rand(2, 1, 2, 20, 28)
    close(jvp(exported, (luminance,), (direction,)), jvp(model, (luminance,), (direction,)))
    close(grad(lambda x: exported(x).square().sum())(luminance), grad(lambda x: model(x).square().sum())(luminance))
    many = torch.rand(3, 1, 2, 20, 28)
    close(vmap(exported)(many), torch.stack([model(one) for one in many]))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(luminance, direction)
        tangent = forward_ad.unpack_dual(exported(dual)).tangent
        assert tangent is not None
        close(tangent, forward_ad.unpack_dual(model(dual)).tangent)
    (slope,) = torch.autograd.grad(exported(luminance.requires_grad_()).square().sum(), luminance, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiate a PyramidFFMEF itself"):
        slope.sum().backward()


@needs_native
def test_the_operator_gives_gradients_only_where_they_are_asked_for(model):
    luminance = torch.rand(1, 2, 20, 28, requires_grad=True)
    parameters, sizes = list(model.parameters()), (list(model.channels), model.stem, model.octaves)
    for p in parameters:
        p.requires_grad_(False)
    out = torch.ops.ffmef.pyramid_luminance(luminance, parameters, *sizes)
    (found,) = torch.autograd.grad(out.square().sum(), luminance)
    (expected,) = torch.autograd.grad(model(luminance).square().sum(), luminance)
    close(found, expected)
    needs = (False, True)
    grads = torch.ops.ffmef.pyramid_luminance_backward(out.detach(), luminance.detach(), parameters, *sizes, *needs)
    assert [g.shape for g in grads] == [torch.Size([0]), *(p.shape for p in parameters)]
    torch.library.opcheck(
        torch.ops.ffmef.pyramid_luminance_backward.default,
        (out.detach(), luminance.detach(), parameters, *sizes, *needs),
    )


def test_devices_without_a_kernel_run_the_definition(model):
    luminance, sizes = torch.rand(1, 2, 20, 28), (list(model.channels), model.stem, model.octaves)
    with torch.no_grad():
        parameters = list(model.parameters())
        found = OPERATOR._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, luminance, parameters, *sizes)
        close(found, model.fuse(luminance)[0])


@pytest.mark.parametrize("kind", [FFMEF, PyramidFFMEF])
def test_traces_pass_their_own_check_and_empty_batches_run(kind):
    model = kind().eval()
    luminance = torch.rand(1, 2, 24, 32)
    traced = torch.jit.trace(model, (luminance,))
    close(traced(luminance), model(luminance))
    traced(luminance).sum().backward()
    empty = torch.rand(0, 2, 24, 32, requires_grad=True)
    assert model(empty).shape == (0, 1, 24, 32)
    model(empty).sum().backward()
