"""The norm and activation in one operator: equal to torch's in value and gradients, wherever a vector ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ffmef.ops import norm_activation, thin_convolution
from ffmef.ops._backends import why_not

_missing = why_not("norm_activation", "cpu")
needs_native = pytest.mark.skipif(_missing is not None, reason=str(_missing))


def arguments(batch, channels, normed, height, width, mean=0.5):
    rng = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(batch, channels, height, width, generator=rng) + mean,
        *torch.randn(2, normed, generator=rng).unbind(0),
    ]
    return [t.requires_grad_() for t in tensors]


def before_activation(x, weight, bias, eps=1e-5):
    normed = F.instance_norm(x[:, : len(weight)], weight=weight, bias=bias, eps=eps)
    return torch.cat([normed, x[:, len(weight) :]], 1)


def expected(x, weight, bias, slope, eps=1e-5):
    return F.leaky_relu(before_activation(x, weight, bias, eps), slope)


def compare(tensors, slope, eps=1e-5):
    double = [t.detach().double().requires_grad_() for t in tensors]
    got, wanted = norm_activation(*tensors, slope=slope, eps=eps), expected(*double, slope, eps)
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)
    target = torch.randn(got.shape, generator=torch.Generator().manual_seed(1))
    # The slope jumps at zero, where rounding decides.
    target[before_activation(*double, eps).detach().abs() < 1e-5] = 0
    grads = torch.autograd.grad(got, tensors, target)
    for grad, other in zip(grads, torch.autograd.grad(wanted, double, target.double()), strict=True):
        torch.testing.assert_close(grad.double(), other, rtol=1e-4, atol=1e-4)


@needs_native
@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0])
@pytest.mark.parametrize(("channels", "normed"), [(4, 4), (4, 2), (3, 1)])
def test_equals_torch(channels, normed, slope):
    tensors = arguments(2, channels, normed, 9, 37)
    assert why_not("norm_activation", "cpu", input=tensors[0], weight=tensors[1]) is None
    compare(tensors, slope)


@needs_native
@pytest.mark.parametrize("pixels", [2, 3, 7, 15, 16, 17, 4095, 4096, 4097, 9000])
def test_every_end_of_a_plane(pixels):
    compare(arguments(1, 2, 1, 1, pixels), 0.2)


@needs_native
def test_eps_is_the_caller_s():
    compare(arguments(2, 3, 2, 5, 9), 0.2, eps=0.5)


@needs_native
def test_a_large_mean_keeps_the_variance():
    rng = torch.Generator().manual_seed(0)
    x = 1000 + 0.01 * torch.randn(1, 1, 300, 300, generator=rng)
    one, none = torch.ones(1), torch.zeros(1)
    wanted = expected(x.double(), one.double(), none.double(), 1.0)
    torch.testing.assert_close(norm_activation(x, one, none, slope=1.0).double(), wanted, rtol=0, atol=0.02)


@needs_native
def test_flat_pictures_strides_and_empty_batches():
    one, none = torch.ones(2), torch.zeros(2)
    assert torch.equal(
        norm_activation(torch.full((1, 2, 5, 6), 0.3), one, none, slope=1.0).round(decimals=4), torch.zeros(1, 2, 5, 6)
    )
    assert norm_activation(torch.empty(0, 2, 5, 6), one, none, slope=0.0).shape == (0, 2, 5, 6)
    x, weight, bias = arguments(2, 3, 2, 6, 20)
    turned = x.detach().transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()
    grad = torch.ones(1).expand(2, 3, 6, 20)
    for a, b in zip(
        *(
            (out, *torch.autograd.grad(out, leaf, grad))
            for leaf in (x, turned)
            for out in [norm_activation(leaf, weight, bias, slope=0.2)]
        ),
        strict=True,
    ):
        assert torch.equal(a, b)


@needs_native
def test_threads_do_not_change_the_bits():
    tensors = arguments(3, 4, 2, 30, 41)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            out = norm_activation(*tensors, slope=0.2)
            results.append([out, *torch.autograd.grad(out.square().sum(), tensors)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


@needs_native
@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_other_instruction_sets(isa):
    """In a separate process, because the set is chosen once."""
    code = "import sys; sys.path[:0] = ['tests/ops', 'tests/support']; import test_norm_activation as t; "
    code += "t.compare(t.arguments(2, 4, 3, 9, 37), 0.2)"
    environment = {**os.environ, "FFMEF_ISA": isa}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


@needs_native
def test_operators_in_the_dispatcher():
    x, weight, bias = (t.detach() for t in arguments(2, 3, 2, 4, 5))
    torch.library.opcheck(torch.ops.ffmef.norm_activation.default, (x, weight, bias, 0.2, 1e-5))
    backward = torch.ops.ffmef.norm_activation_backward.default
    torch.library.opcheck(backward, (x, x, weight, bias, torch.ones(2, 2, 2), 0.2))
    for wrong in (
        (x[:1], x, weight, bias, torch.ones(2, 2, 2), 0.2),
        (x, x, weight, bias, torch.ones(2, 1, 2), 0.2),
        (x, x.double(), weight, bias, torch.ones(2, 2, 2), 0.2),
    ):
        with pytest.raises(RuntimeError, match="must"):
            backward(*wrong)


@pytest.mark.parametrize("slope", [0.0, 0.2, 1.0])
def test_falls_back_to_torch(slope):
    tensors = [t.detach().double().requires_grad_() for t in arguments(2, 3, 2, 5, 6)]
    assert "must be float32" in why_not("norm_activation", "cpu", input=tensors[0], weight=tensors[1])
    assert torch.equal(norm_activation(*tensors, slope=slope), expected(*tensors, slope))
    torch.autograd.gradcheck(lambda *t: norm_activation(*t, slope=slope), tensors)


@pytest.mark.parametrize(
    ("shapes", "slope", "message"),
    [
        (((4, 5, 6), (4,), (4,)), 0.0, r"input must be \(B, C, H, W\), got shape \(4, 5, 6\)"),
        (
            ((1, 4, 5, 6), (5,), (5,)),
            0.0,
            r"weight must have one value for each of at most 4 channels, got shape \(5,\)",
        ),
        (((1, 4, 5, 6), (4,), (3,)), 0.0, r"bias must be \(4,\) like weight, got shape \(3,\)"),
        (((1, 4, 5, 6), (4,), (4,)), 1.5, "slope must be from 0 to 1, got 1.5"),
        (((1, 4, 1, 1), (4,), (4,)), 0.0, "input must have more than one pixel to be normalised, got 1"),
    ],
)
def test_mistakes_are_named(shapes, slope, message):
    with pytest.raises(ValueError, match=message):
        norm_activation(*(torch.zeros(shape) for shape in shapes), slope=slope)


def test_native_training_falls_back_under_transforms():
    """The native operators have gradients alone; torch's do the rest. Nor can torch recompute under transforms."""
    from torch.autograd import forward_ad
    from torch.func import grad, jvp

    from ffmef.models import FFMEF

    torch.manual_seed(0)
    native = FFMEF(backend="native").train()
    eager = FFMEF(backend="eager").train()
    eager.load_state_dict(native.state_dict())
    x = torch.rand(1, 2, 6, 7)
    for backend in ("native", "recompute"):
        native.backend = backend
        torch.testing.assert_close(grad(lambda x: native(x).sum())(x), grad(lambda x: eager(x).sum())(x))
    expected = jvp(eager, (x,), (x * x,))[1]
    torch.testing.assert_close(jvp(native, (x,), (x * x,))[1], expected)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(native(forward_ad.make_dual(x, x * x))).tangent
    torch.testing.assert_close(tangent, expected)


@pytest.mark.parametrize("slope", [0.25, 1.0])
def test_gradients_of_native_operators_are_differentiated(slope):
    """Also where the gradient that comes in is constant, and for tensors that are not contiguous."""

    def twice(function, *tensors):
        tensors = [tensor.clone().requires_grad_() for tensor in tensors]
        views = [tensor.transpose(0, 1) for tensor in tensors[:2]]
        grads = torch.autograd.grad(function(*views, tensors[2]).sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum((one**3).sum() for one in grads), tensors, materialize_grads=True)

    def both(x, weight, bias):
        x = norm_activation(x, weight[:, 0, 0, 0], bias, slope=slope)
        return thin_convolution(x**3, weight, bias, slope=slope) * x

    torch.manual_seed(0)
    tensors = torch.rand(3, 2, 7, 8), torch.randn(3, 3, 3, 3), torch.rand(3)
    for found, expected in zip(twice(both, *tensors), twice(both, *(t.double() for t in tensors)), strict=True):
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
