"""The thin convolution: equal to torch's in value and gradients, on every size that a vector can end in."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ffmef.models import FFMEF
from ffmef.ops import thin_convolution
from ffmef.ops._backends import why_not
from ffmef.training.native import use_native_operators

_missing = why_not("thin_convolution", "cpu")
needs_native = pytest.mark.skipif(_missing is not None, reason=str(_missing))


def arguments(batch, inputs, outputs, height, width, size, bias=True):
    rng = torch.Generator().manual_seed(0)
    shapes = [(batch, inputs, height, width), (outputs, inputs, size, size), *([(outputs,)] if bias else [])]
    return [torch.randn(shape, generator=rng).requires_grad_() for shape in shapes]


def compare(tensors, size, slope=1.0):
    before = F.conv2d(*(t.double() for t in tensors), padding=size // 2)
    expected = F.leaky_relu(before, slope)
    got = thin_convolution(*tensors, slope=slope)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=5e-5)
    target = torch.randn(got.shape, generator=torch.Generator().manual_seed(1))
    # The activation's slope jumps at zero, where rounding decides.
    target[before.detach().abs() < 1e-4] = 0
    grads = torch.autograd.grad(got, tensors, target)
    for grad, wanted in zip(grads, torch.autograd.grad(expected, tensors, target.double())):
        torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-4)


@needs_native
@pytest.mark.parametrize("size", [1, 3, 5, 7])
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 4), (4, 25), (9, 9), (8, 2), (3, 5)])
def test_equals_torch(inputs, outputs, size):
    tensors = arguments(2, inputs, outputs, 9, 37, size)
    assert refusal(tensors) is None
    compare(tensors, size)


@needs_native
@pytest.mark.parametrize("width", [1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 130])
def test_every_end_of_a_row(width):
    compare(arguments(1, 3, 5, 4, width, 3), 3)
    compare(arguments(1, 2, 4, 1, width, 5), 5)


@needs_native
@pytest.mark.parametrize("size", [1, 3])
def test_rows_longer_than_a_partial_sum(size):
    compare(arguments(1, 2, 2, 3, 4219, size), size, 0.2)


@needs_native
@pytest.mark.parametrize("slope", [0.0, 0.2])
@pytest.mark.parametrize(("size", "shape"), [(1, (4, 12)), (1, (5, 7)), (3, (5, 70)), (5, (4, 33))])
def test_activations(slope, size, shape):
    compare(arguments(2, 3, 5, *shape, size), size, slope)


@needs_native
@pytest.mark.parametrize("needed", [0, 1, 2])
def test_one_gradient_alone(needed):
    tensors = [t.detach() for t in arguments(2, 3, 4, 6, 20, 3)]
    leaf = tensors[needed].requires_grad_()
    got, expected = (
        torch.autograd.grad(out.square().sum(), leaf)[0]
        for out in (thin_convolution(*tensors), F.conv2d(*tensors, padding=1))
    )
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3)


@needs_native
def test_operators_in_the_dispatcher():
    input, weight, bias = (t.detach() for t in arguments(2, 3, 4, 6, 20, 3))
    grad = torch.randn(2, 4, 6, 20)
    torch.library.opcheck(torch.ops.ffmef.thin_convolution.default, (input, weight, bias, 0.2))
    backward = torch.ops.ffmef.thin_convolution_backward.default
    for need in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(backward, (grad, input, weight, grad.relu(), 0.0, *need))
    for wrong in ((grad[:, :3], input, weight, grad), (grad, input, weight, None), (grad, input, weight, grad[:1])):
        with pytest.raises(RuntimeError, match="must be"):
            backward(*wrong, 0.0, True, True)


@needs_native
def test_strides_no_bias_and_empty_batches():
    tensors = arguments(2, 4, 4, 6, 20, 3, bias=False)
    turned = tensors[0].detach().transpose(2, 3).contiguous().transpose(2, 3)
    assert not turned.is_contiguous()
    torch.testing.assert_close(thin_convolution(turned, tensors[1]), thin_convolution(*tensors))
    assert thin_convolution(torch.empty(0, 4, 6, 20), tensors[1]).shape == (0, 4, 6, 20)
    slope = torch.ones(1).expand(2, 4, 6, 20)
    wanted = torch.autograd.grad(F.conv2d(*tensors, padding=1), tensors, slope)
    for grad, other in zip(torch.autograd.grad(thin_convolution(*tensors), tensors, slope), wanted):
        torch.testing.assert_close(grad, other, rtol=1e-4, atol=1e-4)


@needs_native
def test_threads_do_not_change_the_bits():
    tensors = arguments(5, 4, 9, 16, 30, 3)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            out = thin_convolution(*tensors)
            results.append([out, *torch.autograd.grad(out.square().sum(), tensors)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*results))


@needs_native
@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_other_instruction_sets(isa):
    """In a separate process, because the set is chosen once."""
    code = (
        "import sys; sys.path[:0] = ['tests/ops', 'tests/support']; import test_thin_convolution as t\n"
        "for size in (1, 3, 5, 7): t.compare(t.arguments(1, 3, 6, 5, 37, size), size)\n"
    )
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "FFMEF_ISA": isa}
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def refusal(tensors: list[torch.Tensor]) -> str | None:
    return why_not("thin_convolution", "cpu", input=tensors[0], weight=tensors[1], side=tensors[1].shape[3])


def test_falls_back_to_torch():
    tensors = [t.detach().double() for t in arguments(1, 2, 3, 5, 6, 3)]
    assert "must be float32" in why_not(
        "thin_convolution", "cpu", input=tensors[0], weight=tensors[1], side=tensors[1].shape[3]
    )
    assert torch.equal(thin_convolution(*tensors), F.conv2d(*tensors, padding=1))
    nine = arguments(1, 2, 3, 12, 12, 9)
    torch.testing.assert_close(thin_convolution(*nine), F.conv2d(*nine, padding=4))
    for slope in (0.0, 0.2):
        assert torch.equal(thin_convolution(*tensors, slope=slope), F.leaky_relu(F.conv2d(*tensors, padding=1), slope))
    with pytest.raises(ValueError, match="slope must be from 0 to 1, got 2"):
        thin_convolution(*tensors, slope=2)


def test_a_network_computes_the_same():
    torch.manual_seed(0)
    plain, thin = FFMEF(kernel_sizes=(1, 3, 5, 7)), FFMEF(kernel_sizes=(1, 3, 5, 7))
    thin.load_state_dict(plain.state_dict())
    assert use_native_operators(thin) == len(
        [m for m in plain.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    )
    assert thin.state_dict().keys() == plain.state_dict().keys()
    luminance = torch.rand(2, 2, 20, 24)
    results = []
    for model in (plain, thin):
        fused = model(luminance)
        fused.square().mean().backward()
        results.append((fused, *(p.grad for p in model.parameters())))
    assert thin.backend == "native" and thin.extractor.merge_1.body.native and not plain.extractor.merge_1.body.native
    for one, two in zip(*results):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5 * one.abs().max().item() + 1e-7)


@needs_native
def test_training_needs_no_filters(monkeypatch):
    model = FFMEF(backend="native")
    monkeypatch.setattr(model, "predict_filters", None)
    luminance = torch.rand(1, 2, 9, 8)
    assert model(luminance).shape == (1, 1, 9, 8)
    for change in (model.double, model.float().eval):  # double precision and inference need them
        change()
        with pytest.raises(TypeError, match="not callable"):
            model(luminance.to(model.fuse.alphas.dtype))


@needs_native
def test_native_layers_serve_any_network(monkeypatch):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(4, 2, 3, padding=1))
    thin = copy.deepcopy(plain)
    assert use_native_operators(thin) == 2
    copied = copy.deepcopy(thin)
    for own, weight in zip(copied.parameters(), plain.parameters(), strict=True):
        own.data = 2 * weight.data
    x = torch.rand(1, 1, 9, 8)
    torch.testing.assert_close(thin(x), plain(x))
    assert not torch.allclose(copied(x), plain(x))  # computes by its own weights, not by those it was copied from
    assert thin.state_dict().keys() == plain.state_dict().keys()
    # It is the native operator that computes: without torch's, the layers still run.
    monkeypatch.setattr(F, "conv2d", None)
    torch.testing.assert_close(thin(x), thin(x))


def test_other_convolutions_are_left_alone():
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, stride=2, padding=1),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 2),
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(128, 4, 1),
        nn.Conv2d(4, 4, (1, 3), padding=(0, 1)),
    )
    assert use_native_operators(model) == 0


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((4, 5, 6), (2, 4, 3, 3)), r"input must be \(B, I, H, W\), got shape \(4, 5, 6\)"),
        (((1, 4, 5, 6), (2, 3, 3, 3)), r"weight must be \(O, 4, k, k\), got shape \(2, 3, 3, 3\)"),
        (((1, 4, 5, 6), (2, 4, 2, 2)), "weight must have an odd side, got 2"),
        (((1, 4, 5, 6), (2, 4, 3, 3), (3,)), r"bias must be \(2,\), got shape \(3,\)"),
    ],
)
def test_shapes_that_do_not_fit(shapes, message):
    with pytest.raises(ValueError, match=message):
        thin_convolution(*(torch.zeros(shape) for shape in shapes))
