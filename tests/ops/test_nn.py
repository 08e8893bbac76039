"""The operator as a module."""

from __future__ import annotations

import copy

import pytest
import torch

from ffmef.models import FFMEF, PyramidFFMEF
from ffmef.nn import AdaptiveFuse, initial_alphas
from ffmef.ops import adaptive_fuse, predict_and_fuse, pyramid_fuse
from ffmef.ops.adaptive_fuse import PADDING_MODES


def arguments(sides=(1, 3, 5)):
    torch.manual_seed(0)
    return torch.rand(2, 2, 6, 7), [torch.rand(2, 2, k * k, 6, 7) for k in sides]


@pytest.mark.parametrize("padding_mode", ["zeros", "replicate", "reflect"])
def test_is_the_operator_with_its_alphas(padding_mode, backend):
    images, filters = arguments()
    module = AdaptiveFuse(padding_mode=padding_mode, backend=backend)
    assert torch.equal(module.alphas, torch.tensor([0.6, 0.3, 0.1]))
    expected = adaptive_fuse(images, filters, module.alphas, padding_mode=padding_mode, backend=backend)
    assert torch.equal(module(images, filters), expected)
    coarse = [f[..., ::3, ::2] for f in filters]
    expected = adaptive_fuse(images, coarse, module.alphas, padding_mode=padding_mode, backend=backend)
    assert torch.equal(module(images, coarse), expected)


def test_alphas_are_learned():
    images, filters = arguments()
    module = AdaptiveFuse()
    target = adaptive_fuse(images, filters, [0.2, -0.4, 0.9])
    optimiser = torch.optim.LBFGS(module.parameters(), max_iter=40, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        loss = (module(images, filters) - target).square().mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    torch.testing.assert_close(module.alphas.detach(), torch.tensor([0.2, -0.4, 0.9]), atol=1e-3, rtol=0)


@pytest.mark.parametrize("levels", [1, 2, 4, 5])
def test_initial_alphas_halve_and_sum_to_one(levels):
    alphas = initial_alphas(levels)
    assert alphas.shape == (levels,) and alphas.sum().item() == pytest.approx(1)
    assert torch.allclose(alphas[1:] * 2, alphas[:-1])
    assert torch.equal(AdaptiveFuse(range(1, 2 * levels, 2)).alphas, alphas)


def test_copies_and_state():
    images, filters = arguments((1, 3))
    module = AdaptiveFuse((1, 3), padding_mode="reflect")
    torch.nn.init.normal_(module.alphas)
    other = AdaptiveFuse((1, 3), padding_mode="reflect")
    other.load_state_dict(module.state_dict())
    for twin in (copy.deepcopy(module), other):
        assert torch.equal(twin(images, filters), module(images, filters))
    assert repr(module) == "AdaptiveFuse(kernel_sizes=(1, 3), padding_mode='reflect')"


def test_refusals():
    images, filters = arguments()
    module = AdaptiveFuse()
    with pytest.raises(ValueError) as caught:
        module(images, filters[:2])
    assert str(caught.value) == "filters must have 3 levels like kernel_sizes, got 2"
    with pytest.raises(ValueError) as caught:
        module(images, [filters[0], filters[2], filters[1]])
    assert str(caught.value) == "filters[1] must have 9 taps for kernel size 3, got 25"
    with pytest.raises(ValueError) as caught:
        module(images, [filters[0], filters[1], filters[2][0]])
    assert str(caught.value) == "filters[2] must be (B, N, k*k, H, W), got shape (2, 25, 6, 7)"
    with pytest.raises(TypeError) as caught:
        module(images, [filters[0], None, filters[2]])
    assert str(caught.value) == "filters[1] must be a tensor, got NoneType"
    for sizes, message in (
        ((), "kernel_sizes must have at least one side, got none"),
        ((1, 2), "kernel_sizes must be odd and from 1 to 31, got (1, 2)"),
        ((33,), "kernel_sizes must be odd and from 1 to 31, got (33,)"),
        ((-1,), "kernel_sizes must be odd and from 1 to 31, got (-1,)"),
    ):
        with pytest.raises(ValueError) as caught:
            AdaptiveFuse(sizes)
        assert str(caught.value) == message
    for wrong, message in (
        ({"kernel_sizes": 3}, "kernel_sizes must be a sequence of integers, got 3"),
        ({"kernel_sizes": "3"}, "kernel_sizes must be a sequence of integers, got '3'"),
        ({"kernel_sizes": (1, 3.0)}, "kernel_sizes[1] must be an integer, got 3.0"),
        ({"backend": "gpu"}, "backend must be one of reference, cpu, triton, cuda or None, got 'gpu'"),
    ):
        with pytest.raises((TypeError, ValueError)) as refused:
            AdaptiveFuse(**wrong)
        assert str(refused.value) == message
    with pytest.raises(ValueError) as caught:
        AdaptiveFuse(padding_mode="symmetric")
    assert str(caught.value) == f"padding_mode must be one of {', '.join(PADDING_MODES)}, got 'symmetric'"


def test_where_and_in_what_dtype_parameters_are_made():
    for sizes in ((1, 3), (1, 3, 5)):
        module = AdaptiveFuse(sizes, device="meta", dtype=torch.bfloat16)
        assert (module.alphas.device.type, module.alphas.dtype) == ("meta", torch.bfloat16)
        with torch.device("meta"):
            assert AdaptiveFuse(sizes).alphas.is_meta
        module = module.to_empty(device="cpu")
        torch.nn.init.constant_(module.alphas, float("nan"))
        module.reset_parameters()
        assert torch.equal(module.alphas, initial_alphas(len(sizes)).bfloat16())
        skipped = torch.nn.utils.skip_init(AdaptiveFuse, sizes, dtype=torch.float64)
        assert (skipped.alphas.device.type, skipped.alphas.dtype) == ("cpu", torch.float64)
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        assert {AdaptiveFuse(sizes).alphas.dtype for sizes in ((1,), (1, 3), (1, 3, 5))} == {torch.float64}
    finally:
        torch.set_default_dtype(default)
    with pytest.raises(ValueError, match="dtype must be a floating one, got int64"):
        AdaptiveFuse(dtype=torch.int64)


class Network(torch.nn.Module):
    """Filters from a convolution, fused by the module, as a user would write it."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Conv2d(4, 20, 3, padding=1)
        self.fuse = AdaptiveFuse((1, 3), padding_mode="replicate")

    def forward(self, images):
        filters = self.head(images.flatten(1, 2)).unflatten(1, (2, 10))
        return self.fuse(images, [filters[:, :, :1], filters[:, :, 1:]])


class AllOperators(torch.nn.Module):
    def forward(self, images, filters, hidden, weight, bias, coarse, base):
        fused = adaptive_fuse(images, filters, padding_mode="reflect")
        fused = fused + predict_and_fuse([hidden], [weight], [bias], images)
        return fused + pyramid_fuse(images, coarse, base, scale=4)


def test_symbolic_traces_keep_operators_whole():
    network, images = Network(), torch.rand(1, 2, 2, 6, 7)
    traced = torch.fx.symbolic_trace(network)
    assert torch.equal(traced(images), network(images))
    calls = [node.target for node in traced.graph.nodes if node.op == "call_function"]
    assert adaptive_fuse in calls
    filters = [torch.rand(1, 2, 9, 6, 7)]
    tensors = (images, filters, torch.rand(1, 2, 3, 6, 7), torch.rand(9, 3), torch.rand(9))
    tensors += (torch.rand(1, 2, 2, 2, 2), torch.rand(1, 2, 2, 2))
    traced = torch.fx.symbolic_trace(AllOperators())
    assert torch.equal(traced(*tensors), AllOperators()(*tensors))
    calls = {node.target for node in traced.graph.nodes}
    assert {adaptive_fuse, predict_and_fuse, pyramid_fuse} <= calls


def test_symbolic_traces_of_whole_networks_take_any_size():
    network, pyramid = FFMEF(), PyramidFFMEF()
    for part in (network.eval(), torch.nn.Sequential(network.train()), torch.nn.Sequential(pyramid)):
        traced = torch.fx.symbolic_trace(part)
        for size in ((1, 2, 16, 20), (2, 2, 17, 11)):
            luminance = torch.rand(size)
            torch.testing.assert_close(traced(luminance), part(luminance), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [(2,), ()])
def test_the_module_can_be_scripted(channels):
    images, filters = torch.rand(2, 2, *channels, 6, 7), [torch.rand(2, 2, k * k, 6, 7) for k in (1, 3)]
    module = AdaptiveFuse((1, 3), padding_mode="reflect")
    scripted = torch.jit.script(module)
    assert torch.equal(scripted(images, filters), module(images, filters))
    scripted(images, filters).sum().backward()
    grad, module.alphas.grad = module.alphas.grad, None
    module(images, filters).sum().backward()
    torch.testing.assert_close(grad, module.alphas.grad)


def test_subclasses_of_tensor_go_through_torchs_protocol():
    class Named(torch.Tensor):
        pass

    images = torch.rand(1, 1, 4, 4).as_subclass(Named)
    assert type(adaptive_fuse(images, [torch.rand(1, 1, 9, 4, 4)])) is Named
