"""Filter prediction and fusion in one step against the two steps, and the memory that it is for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import ffmef.models.ffmef
from ffmef.ops import adaptive_fuse, predict_and_fuse
from ffmef.ops._backends import why_not
from ffmef.ops.adaptive_fuse import PADDING_MODES

module = sys.modules["ffmef.ops.predict_and_fuse"]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small_chunks(monkeypatch):
    """Make pieces of 8 rows, the fewest, so that small tests have several."""
    monkeypatch.setattr(module, "_CHUNK_VALUES", 1)


def case(sides=(1, 3, 5), maps=None, batch=2, count=2, channels=1, height=19, width=7, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    maps = maps or [k * k for k in sides]
    hidden = [rand(batch, count, m, height, width) for m in maps]
    weight = [rand(k * k, m, 1, 1) for k, m in zip(sides, maps, strict=True)]
    bias = [rand(k * k) for k in sides]
    return hidden, weight, bias, rand(batch, count, channels, height, width), rand(len(sides))


def two_steps(hidden, weight, bias, images, alphas, padding_mode="zeros"):
    filters = [
        F.conv2d(h.flatten(0, 1), w.flatten(1)[..., None, None], b).unflatten(0, h.shape[:2])
        for h, w, b in zip(hidden, weight, bias, strict=True)
    ]
    return adaptive_fuse(images, filters, alphas, padding_mode=padding_mode)


@pytest.mark.parametrize("padding_mode", ["zeros", "replicate", "reflect"])
@pytest.mark.parametrize("size", [(1, 1), (2, 9), (19, 7), (40, 3)], ids=str)
def test_equals_the_two_steps(size, padding_mode, small_chunks):
    arguments = case(maps=[2, 9, 4], channels=3, height=size[0], width=size[1])
    out = predict_and_fuse(*arguments, padding_mode=padding_mode)
    torch.testing.assert_close(out, two_steps(*arguments, padding_mode))


def test_images_without_channels_and_no_alphas():
    hidden, weight, bias, images, _ = case(sides=(3,))
    out = predict_and_fuse(hidden, [w.flatten(1) for w in weight], bias, images[:, :, 0])
    assert out.shape == images.shape[:1] + images.shape[3:]
    torch.testing.assert_close(out, two_steps(hidden, weight, bias, images[:, :, 0], torch.ones(1, dtype=out.dtype)))
    torch.testing.assert_close(predict_and_fuse(hidden, weight, bias, images[:, :, 0], [2.0]), 2 * out)


def test_empty_batch():
    arguments = case(batch=0)
    assert predict_and_fuse(*arguments).shape == (0, 1, 19, 7)


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("channels", [0, 1, 2])
def test_without_channels_and_without_hidden_maps(channels, backend):
    images, bias = torch.rand(2, 2, channels, 5, 6), torch.rand(9).requires_grad_()
    hidden, weight = torch.rand(2, 2, 0, 5, 6), torch.rand(9, 0)
    out = predict_and_fuse([hidden], [weight], [bias], images, backend=backend)
    torch.testing.assert_close(out, adaptive_fuse(images, [bias.view(1, 1, 9, 1, 1).expand(2, 2, 9, 5, 6)]))
    (gradient,) = torch.autograd.grad(out.sum(), bias)
    assert bool((gradient > 0).all()) == (channels > 0)
    maps = torch.rand(2, 2, 3, 5, 6).requires_grad_()
    predict_and_fuse([maps], [torch.rand(9, 3)], [bias], images, backend=backend).sum().backward()
    assert maps.grad.shape == maps.shape


@pytest.mark.parametrize("padding_mode", ["zeros", "replicate", "reflect"])
def test_gradients_equal_those_of_the_two_steps(padding_mode, small_chunks):
    hidden, weight, bias, images, alphas = case()
    leaves = [t.requires_grad_() for t in (*hidden, *weight, *bias, images, alphas)]
    target = torch.randn(2, 1, 19, 7, dtype=torch.float64)
    got = torch.autograd.grad(
        (predict_and_fuse(hidden, weight, bias, images, alphas, padding_mode=padding_mode) * target).sum(), leaves
    )
    expected = torch.autograd.grad(
        (two_steps(hidden, weight, bias, images, alphas, padding_mode) * target).sum(), leaves
    )
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("alpha", [0.0, 1e-30, 1e38])
def test_gradient_in_an_extreme_alpha_does_not_depend_on_it(alpha):
    hidden, weight, bias = torch.rand(1, 2, 3, 9, 11, requires_grad=True), torch.rand(9, 3), torch.rand(9)
    images, gradients = torch.rand(1, 2, 9, 11), []
    for value in (alpha, 1.0):
        alphas = torch.tensor([value], requires_grad=True)
        fused = predict_and_fuse([hidden], [weight], [bias], images, alphas)
        gradients.append(torch.autograd.grad(fused.sum(), [alphas, hidden])[0])
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=0)


@pytest.mark.parametrize("needed", ["hidden", "weight", "bias", "images", "alphas"])
def test_one_gradient_alone(needed):
    names = ("hidden", "weight", "bias", "images", "alphas")
    arguments = dict(zip(names, case(sides=(3,)), strict=True))
    leaf = arguments[needed] if isinstance(arguments[needed], torch.Tensor) else arguments[needed][0]
    leaf.requires_grad_()
    (got,) = torch.autograd.grad(predict_and_fuse(*arguments.values()).square().sum(), leaf)
    (expected,) = torch.autograd.grad(two_steps(*arguments.values()).square().sum(), leaf)
    torch.testing.assert_close(got, expected)


def test_gradcheck_and_gradgradcheck(small_chunks):
    sides = (1, 3)
    hidden, weight, bias, images, alphas = case(sides, maps=[2, 3], batch=1, height=9, width=2)
    leaves = [t.requires_grad_() for t in (*hidden, *weight, *bias, images, alphas)]

    def function(*flat):
        return predict_and_fuse(flat[0:2], flat[2:4], flat[4:6], flat[6], flat[7], padding_mode="reflect")

    torch.autograd.gradcheck(function, leaves)
    torch.autograd.gradgradcheck(function, leaves)


def test_autocast_promotes():
    hidden, weight, bias, images, alphas = case(dtype=torch.float32)
    expected = predict_and_fuse(hidden, weight, bias, images, alphas)
    low = [h.bfloat16() for h in hidden]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = predict_and_fuse(low, weight, bias, images, alphas)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, predict_and_fuse([h.float() for h in low], weight, bias, images, alphas))
    torch.testing.assert_close(out, expected, atol=1.0, rtol=0.1)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(images=torch.zeros(3, 4)), r"images must be \(B, N, C, H, W\) or \(B, N, H, W\), got shape \(3, 4\)"),
        (dict(padding_mode="wrap"), f"padding_mode must be one of {', '.join(PADDING_MODES)}, got 'wrap'"),
        (dict(hidden=[]), "hidden must have at least one level, got none"),
        (dict(weight=[]), "weight must have 1 levels like hidden, got 0"),
        (dict(alphas=torch.ones(2)), r"alphas must be \(1,\), one weight for each level, got shape \(2,\)"),
        (dict(hidden=[torch.zeros(2, 2, 9, 19, 8)]), r"hidden\[0\] must be \(2, 2, M, 19, 7\) like images, got shape"),
        (dict(weight=[torch.zeros(8, 9)]), r"weight\[0\] must have k\*k rows with k odd and at most 31, got 8"),
        (dict(weight=[torch.zeros(9, 8)]), r"weight\[0\] must have 9 columns like hidden's maps, got shape \(9, 8\)"),
        (dict(bias=[torch.zeros(8)]), r"bias\[0\] must be \(9,\) like weight's rows, got shape \(8,\)"),
        (
            dict(bias=[torch.zeros(9, dtype=torch.float32)]),
            r"bias\[0\] must be float64 on cpu like images, got float32 on cpu",
        ),
    ],
)
def test_mistakes_are_named(change, message):
    names = ("hidden", "weight", "bias", "images", "alphas")
    arguments = dict(zip(names, case(sides=(3,)), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        predict_and_fuse(**arguments)


@pytest.mark.parametrize(
    "change, message",
    [
        (
            dict(images=torch.zeros(2, 2, 19, 7, dtype=torch.int64)),
            "images must be float64, float32, float16 or bfloat16, got int64",
        ),
        (dict(weight=[torch.zeros(9, 9).tolist()]), r"weight\[0\] must be a tensor, got list"),
        (dict(hidden=torch.zeros(2, 2, 9, 19, 7)), "hidden must be a sequence of tensors, .* got one tensor"),
        (dict(bias=None), "bias must be a sequence of tensors, got NoneType"),
        (dict(bias=[torch.zeros(9).to_sparse()]), r"bias\[0\] must be dense, got sparse_coo"),
        (dict(alphas=torch.ones(1, dtype=torch.int64)), "alphas must be float64, .* got int64"),
    ],
)
def test_what_is_no_tensor_of_numbers_is_named(change, message):
    names = ("hidden", "weight", "bias", "images", "alphas")
    arguments = dict(zip(names, case(sides=(3,)), strict=True)) | change
    with pytest.raises(TypeError, match=message):
        predict_and_fuse(**arguments)


@pytest.mark.parametrize("channels", [1, 3])
def test_empty_batches_have_gradients(channels):
    shapes = [(0, 2, 4, 5, 6), (9, 4), (9,), (0, 2, channels, 5, 6), (1,)]
    hidden, weight, bias, images, alphas = (torch.rand(shape, requires_grad=True) for shape in shapes)
    out = predict_and_fuse([hidden], [weight], [bias], images, alphas, padding_mode="reflect")
    assert out.shape == (0, channels, 5, 6)
    for grad, shape in zip(torch.autograd.grad(out.sum(), (hidden, weight, bias, images, alphas)), shapes, strict=True):
        assert grad.shape == shape and not grad.any()


def test_the_dispatcher_s_operator():
    arguments = case(maps=[2, 9, 4], dtype=torch.float32)
    weight = [w.flatten(1) for w in arguments[1]]
    flat = (arguments[0], weight, *arguments[2:], "reflect")
    assert torch.equal(torch.ops.ffmef.predict_and_fuse(*flat), predict_and_fuse(*arguments, padding_mode="reflect"))
    torch.library.opcheck(torch.ops.ffmef.predict_and_fuse.default, flat)


def test_backends_are_checked():
    arguments = case()
    torch.testing.assert_close(predict_and_fuse(*arguments, backend="reference"), predict_and_fuse(*arguments))
    with pytest.raises(ValueError, match="backend must be one of .* got 'metal'"):
        predict_and_fuse(*arguments, backend="metal")


# --- the native kernels -------------------------------------------------------------------------------------------

_missing = why_not("predict_and_fuse", "cpu")
needs_native = pytest.mark.skipif(_missing is not None, reason=str(_missing))


def compare_native(arguments, padding_mode="zeros", needed=None):
    """Compare values and gradients with the reference in float64."""
    single = [[t.float().requires_grad_() for t in a] if isinstance(a, list) else a.float() for a in arguments]
    double = [[t.detach().double().requires_grad_() for t in a] if isinstance(a, list) else a.double() for a in single]
    out = predict_and_fuse(*single, padding_mode=padding_mode, backend="cpu")
    expected = predict_and_fuse(*double, padding_mode=padding_mode, backend="reference")
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-4)
    target = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    names = ["hidden", "weight", "bias"] if needed is None else needed
    got, wanted = (
        torch.autograd.grad(
            o, [t for name, ts in zip(("hidden", "weight", "bias"), a) if name in names for t in ts], target.to(o)
        )
        for o, a in ((out, single), (expected, double))
    )
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4 * float(b.abs().max()) + 1e-5)


@needs_native
@pytest.mark.parametrize("width", [1, 2, 15, 16, 17, 63, 64, 65, 130])
def test_native_at_every_end_of_a_row(width):
    compare_native(case((1, 3, 5, 7), maps=[1, 9, 25, 6], batch=1, height=5, width=width))


@needs_native
@pytest.mark.parametrize("padding_mode", ["zeros", "replicate", "reflect"])
@pytest.mark.parametrize("size", [(1, 1), (2, 9), (31, 7), (32, 8), (33, 70), (70, 3), (9, 1100)], ids=str)
def test_native_over_bands(size, padding_mode):
    compare_native(case(batch=2, count=3, height=size[0], width=size[1]), padding_mode)


@needs_native
@pytest.mark.parametrize("needed", [["hidden"], ["weight"], ["bias"], ["hidden", "bias"]], ids=str)
def test_native_gradients_alone(needed):
    compare_native(case((3, 5), height=40, width=20), needed=needed)


@needs_native
def test_native_of_strides_and_no_images():
    hidden, weight, bias, images, alphas = case((3,), dtype=torch.float32)
    turned = [h.transpose(3, 4).contiguous().transpose(3, 4) for h in hidden]
    grad = torch.ones(1).expand(2, 1, 19, 7)
    results = []
    for h in (hidden[0], turned[0]):
        leaf = h.detach().requires_grad_()
        out = predict_and_fuse([leaf], weight, bias, images, alphas, backend="cpu")
        results.append((out, *torch.autograd.grad(out, leaf, grad)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    none = case((3,), count=0, dtype=torch.float32)
    assert torch.equal(predict_and_fuse(*none, backend="cpu"), torch.zeros(2, 1, 19, 7))


@needs_native
def test_native_threads_do_not_change_the_bits():
    hidden, weight, bias, images, alphas = case(height=100, dtype=torch.float32)
    leaves = [t.requires_grad_() for t in (*hidden, *weight, *bias)]
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        out = predict_and_fuse(hidden, weight, bias, images, alphas, backend="cpu")
        results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


@needs_native
def test_native_second_derivatives_are_the_reference_s():
    results = []
    for backend in ("cpu", "reference"):
        hidden, weight, bias, images, alphas = case((3,), dtype=torch.float32, width=20)
        leaves = [t.requires_grad_() for t in (*hidden, *weight, *bias, images)]
        out = predict_and_fuse(hidden, weight, bias, images, alphas, backend=backend)
        first = torch.autograd.grad(out.square().sum(), leaves, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()))


@needs_native
@pytest.mark.parametrize("isa", ["portable", "avx2"])
def test_native_on_other_instruction_sets(isa):
    """In a separate process, because the set is chosen once."""
    code = (
        "import sys; sys.path[:0] = ['tests/ops', 'tests/support']; import test_predict_and_fuse as t\n"
        "t.compare_native(t.case((1, 3, 5, 7), height=35, width=37))\n"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "FFMEF_ISA": isa}
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@needs_native
def test_native_operators_in_the_dispatcher():
    hidden, weight, bias, images, _ = case((3,), dtype=torch.float32, height=40)
    kernels, padded = torch.randn(10, 3, 3), torch.randn(2, 2, 42, 9)
    torch.library.opcheck(torch.ops.ffmef.predict_and_fuse_level.default, (hidden[0], kernels, padded))
    for need in ((True, True), (False, True), (True, False)):
        arguments = (torch.randn(2, 40, 7), hidden[0], kernels, padded, *need)
        torch.library.opcheck(torch.ops.ffmef.predict_and_fuse_level_backward.default, arguments)
    for wrong in (
        (hidden[0], kernels[:9], padded),
        (hidden[0], kernels, padded[:, :, :41]),
        (hidden[0].double(), kernels, padded),
    ):
        with pytest.raises(RuntimeError, match="must be"):
            torch.ops.ffmef.predict_and_fuse_level(*wrong)


@needs_native
def test_what_native_kernels_cannot_run_is_said():
    for arguments, message in (
        (case(), "hidden must be float32, got float64"),
        (case(channels=3, dtype=torch.float32), "images must have one channel, got 3"),
        (case((9,), dtype=torch.float32), "k must be one of .* got 9"),
    ):
        with pytest.raises(RuntimeError, match=f"backend 'cpu' is not available: {message}"):
            predict_and_fuse(*arguments, backend="cpu")


# --- training FFMEF with it ---------------------------------------------------------------------------------------


def step(model, luminance):
    loss = model(luminance).square().mean()
    loss.backward()
    return loss


@pytest.mark.parametrize("values", [1, 1 << 22], ids=["bands of 8 rows", "one band"])
def test_recomputing_changes_no_gradient(monkeypatch, values):
    monkeypatch.setattr(ffmef.models.ffmef, "_HIDDEN_VALUES", values)
    torch.manual_seed(0)
    model = ffmef.models.FFMEF(kernel_sizes=(1, 3, 5)).double()
    luminance = torch.rand(2, 2, 27, 11, dtype=torch.float64)
    gradients = []
    for backend in ("eager", "recompute"):
        model.backend = backend
        model.zero_grad()
        step(model, luminance)
        gradients.append([p.grad for p in model.parameters()])
    for (name, _), plain, recomputed in zip(model.named_parameters(), *gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, msg=lambda text, name=name: f"{name}: {text}")


def test_recomputing_keeps_little():
    """Count what the graph holds after the forward pass, in bytes per pixel."""
    model = ffmef.models.FFMEF()
    luminance = torch.rand(1, 2, 40, 50)
    kept = []
    for backend in ("eager", "recompute"):
        model.backend = backend
        storages = {}

        def pack(tensor, storages=storages):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(luminance)
        kept.append(sum(s.nbytes() for s in storages.values()) / 2000)
    assert kept[1] < kept[0] / 3


PEAK = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
import ffmef
height, width, recompute = map(int, sys.argv[1:])
model = ffmef.models.FFMEF(backend="recompute" if recompute else "eager")
def step(h, w):
    model(torch.rand(1, 2, h, w)).square().mean().backward()
def memory(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
step(8, 8)
Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of importing
before = memory("VmRSS:")
step(height, width)
print((memory("VmHWM:") - before) / (height * width))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_training_step_takes_at_most_half_of_the_memory():
    """Peak of the process over a step, in bytes per pixel; freed memory goes back to the system at once."""
    environment = {
        "MALLOC_MMAP_THRESHOLD_": "65536",
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(ffmef.__file__).parent.parent),
    }
    peaks = []
    for recompute in (0, 1):
        command = [sys.executable, "-c", PEAK, "276", "354", str(recompute)]
        run = subprocess.run(command, env=environment, check=True, timeout=300, capture_output=True, text=True)
        peaks.append(float(run.stdout))
    print(f"bytes per pixel: eager {peaks[0]:.0f}, recomputed {peaks[1]:.0f}")
    assert peaks[1] <= peaks[0] / 2
