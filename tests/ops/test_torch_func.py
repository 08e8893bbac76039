"""All of torch.autograd and torch.func through the linear operators: both modes, any order, vmap, graphs."""

from __future__ import annotations

import os
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from ffmef.models import FFMEF, PyramidFFMEF
from ffmef.ops import adaptive_fuse, predict_and_fuse, pyramid_fuse

OPERATORS = ("adaptive_fuse", "coarse", "predict_and_fuse", "pyramid_fuse")
# torch's own tracer still calls a part of its scripting that it deprecates.
pytestmark = [
    *(pytest.mark.filterwarnings(f"ignore:`torch.jit.{name}` is deprecated") for name in ("script", "script_method")),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated"),
]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def problem(name: str, backend: str | None = None, *, height=4, width=5, seed=0, dtype=torch.float64):
    """A function of tensors alone, and tensors for it."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)

    images = random(1, 2, 2, height, width)
    if name in ("adaptive_fuse", "coarse"):
        grid = (2, 3) if name == "coarse" else (height, width)
        tensors = (images, random(1, 2, 1, *grid), random(1, 2, 9, *grid), random(2))

        def function(images, first, second, alphas):
            return adaptive_fuse(images, [first, second], alphas, padding_mode="reflect", backend=backend)

    elif name == "predict_and_fuse":
        tensors = (random(1, 2, 3, height, width), random(9, 3), random(9), images, random(1))
        if backend == "cpu":  # the native kernels' tensors
            tensors = (*(t.float() for t in tensors[:3]), images[:, :, :1].float(), tensors[4].float())

        def function(hidden, weight, bias, images, alphas):
            return predict_and_fuse(
                [hidden], [weight], [bias], images, alphas, padding_mode="replicate", backend=backend
            )

    else:
        cells = (-(-height // 2), -(-width // 2))
        tensors = (images, random(1, 1, 2, *cells), random(1, 2, *cells))

        def function(images, weights, base):
            return pyramid_fuse(images, weights, base, scale=2, backend=backend)

    return function, tensors


def close(actual, expected, dtype=torch.float64):
    bound = 1e-9 if dtype == torch.float64 else 2e-4
    torch.testing.assert_close(actual, expected, rtol=bound, atol=bound)


def tangents(tensors):
    return tuple(torch.rand_like(t) - 0.5 for t in tensors)


def by_reference(name, function, tensors):
    """The same problem in plain torch, in float64."""
    return problem(name, "reference")[0], tuple(t.double() for t in tensors)


@pytest.mark.parametrize("name", OPERATORS)
def test_gradcheck_in_every_way(name, backend):
    if (name, backend) == ("predict_and_fuse", "cpu"):
        backend = None  # float64 is torch's convolutions below the same operator
    function, tensors = problem(name, backend)
    leaves = [t.requires_grad_() for t in tensors]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that vmap falls back to a loop for torch's own operators
        assert torch.autograd.gradcheck(
            function,
            leaves,
            check_batched_grad=True,
            check_forward_ad=True,
            check_batched_forward_grad=True,
            fast_mode=True,
        )
        assert torch.autograd.gradgradcheck(
            function, leaves, check_batched_grad=True, check_fwd_over_rev=True, check_rev_over_rev=True, fast_mode=True
        )


@pytest.mark.parametrize("name", OPERATORS)
def test_jvp_and_vjp_are_those_of_plain_torch(name, backend):
    function, tensors = problem(name, backend)
    plain, exact = by_reference(name, function, tensors)
    directions = tangents(tensors)
    everywhere = tuple(t.double() for t in directions)
    result, tangent = jvp(function, tensors, directions)
    expected, expected_tangent = jvp(plain, exact, everywhere)
    dtype = tensors[0].dtype
    assert expected_tangent.abs().max() > 0.01
    close(result.double(), expected, dtype)
    close(tangent.double(), expected_tangent, dtype)
    # One argument at a time: what another one's tangent adds must not hide a missing one.
    for n in range(len(tensors)):
        one = jvp(lambda t: function(*tensors[:n], t, *tensors[n + 1 :]), (tensors[n],), (directions[n],))[1]
        want = jvp(lambda t: plain(*exact[:n], t, *exact[n + 1 :]), (exact[n],), (everywhere[n],))[1]
        close(one.double(), want, dtype)
    cotangent = torch.rand_like(result)
    _, pull = vjp(function, *tensors)
    _, pull_exact = vjp(plain, *exact)
    for g, e in zip(pull(cotangent), pull_exact(cotangent.double()), strict=True):
        close(g.double(), e, dtype)


@pytest.mark.parametrize("name", OPERATORS)
def test_dual_numbers(name, backend):
    function, tensors = problem(name, backend)
    directions = tangents(tensors)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, d) for t, d in zip(tensors, directions, strict=True)]
        tangent = forward_ad.unpack_dual(function(*duals)).tangent
    close(tangent, jvp(function, tensors, directions)[1], tensors[0].dtype)


@pytest.mark.parametrize("name", OPERATORS)
def test_jacobians_and_hessians(name, backend):
    function, tensors = problem(name, backend, height=3, width=3)
    plain, exact = by_reference(name, function, tensors)
    numbers, dtype = tuple(range(len(tensors))), tensors[0].dtype
    expected = torch.autograd.functional.jacobian(plain, exact)
    for rows in (jacrev(function, numbers)(*tensors), jacfwd(function, numbers)(*tensors)):
        for a, e in zip(rows, expected, strict=True):
            close(a.double(), e, dtype)

    def energy(f):
        return lambda *given: f(*given).square().sum()

    mixed = hessian(energy(function), (0, len(tensors) - 1))(*tensors)
    wanted = hessian(energy(plain), (0, len(tensors) - 1))(*exact)
    for row, want in zip(mixed, wanted, strict=True):
        for a, e in zip(row, want, strict=True):
            close(a.double(), e, dtype)


@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
@pytest.mark.parametrize("name", OPERATORS)
def test_autograd_functional(name, strategy):
    function, tensors = problem(name, height=3, width=3)
    vectorised = torch.autograd.functional.jacobian(function, tensors, vectorize=True, strategy=strategy)
    plain = torch.autograd.functional.jacobian(problem(name, "reference")[0], tensors)
    for a, e in zip(vectorised, plain, strict=True):
        close(a, e)

    def energy(*given):
        return function(*given).square().sum()

    given = tangents(tensors)
    _, product = torch.autograd.functional.hvp(energy, tensors, given)
    _, other = torch.autograd.functional.vhp(energy, tensors, given)
    for a, b in zip(product, other, strict=True):
        close(a, b)


@pytest.mark.parametrize("name", OPERATORS)
def test_batched_gradients(name):
    """Learnable alphas take the way that keeps each level's sum."""
    function, tensors = problem(name)
    leaves = [t.requires_grad_() for t in tensors]
    out = function(*leaves)
    rows = torch.rand(3, *out.shape, dtype=out.dtype)
    at_once = torch.autograd.grad(out, leaves, rows, is_grads_batched=True, retain_graph=True)
    for n, row in enumerate(rows):
        for a, e in zip(at_once, torch.autograd.grad(out, leaves, row, retain_graph=True), strict=True):
            close(a[n], e)


@pytest.mark.parametrize("name", OPERATORS)
def test_vmap_over_each_argument_is_a_loop(name, backend):
    function, tensors = problem(name, backend)
    others = problem(name, backend, seed=1)[1]
    for n in range(len(tensors)):
        both = torch.stack([tensors[n], others[n]], -1)
        dims = [None] * len(tensors)
        dims[n] = -1
        given = [*tensors[:n], both, *tensors[n + 1 :]]
        out = vmap(function, tuple(dims))(*given)
        loop = torch.stack([function(*tensors[:n], t, *tensors[n + 1 :]) for t in (tensors[n], others[n])])
        close(out, loop, tensors[0].dtype)
        gradient = vmap(grad(lambda *a: function(*a).square().sum(), n), tuple(dims))(*given)
        one = grad(lambda *a: function(*a).square().sum(), n)
        expected = torch.stack([one(*tensors[:n], t, *tensors[n + 1 :]) for t in (tensors[n], others[n])])
        close(gradient, expected, tensors[0].dtype)


@pytest.mark.parametrize("name", OPERATORS)
def test_nested_and_chunked_vmap(name):
    sets = [problem(name, seed=s)[1] for s in range(4)]
    function = problem(name)[0]
    stacked = [torch.stack(column) for column in zip(*sets, strict=True)]
    expected = torch.stack([function(*one) for one in sets])
    close(vmap(function, chunk_size=3)(*stacked), expected)
    nested = vmap(vmap(function))(*(t.unflatten(0, (2, 2)) for t in stacked))
    close(nested.flatten(0, 1), expected)
    # Two axes over different arguments.
    first, last = stacked[0][:2], stacked[-1][:3]
    middle = [t[0] for t in stacked[1:-1]]
    grid = vmap(lambda a: vmap(lambda b: function(a, *middle, b))(last))(first)
    for i in range(2):
        for j in range(3):
            close(grid[i, j], function(first[i], *middle, last[j]))


class Network(nn.Module):
    """A convolution predicts filters of two images, with learnable alphas."""

    def __init__(self, backend=None):
        super().__init__()
        self.head = nn.Conv2d(2, 20, 3, padding=1)
        self.alphas = nn.Parameter(torch.tensor([0.7, 0.3]))
        self.backend = backend

    def forward(self, images):
        filters = self.head(images.flatten(1, 2)).unflatten(1, (2, 10))
        return adaptive_fuse(images, filters.split([1, 9], 2), self.alphas, backend=self.backend)


@pytest.mark.parametrize("name", OPERATORS)
def test_vmap_over_nothing(name):
    function, tensors = problem(name)
    for number in range(len(tensors)):
        dims = tuple(1 if i == number else None for i in range(len(tensors)))
        given = [t.unsqueeze(1)[:, :0] if i == number else t for i, t in enumerate(tensors)]
        assert vmap(function, in_dims=dims)(*given).shape == (0, *function(*tensors).shape)
        slopes = vmap(grad(lambda *given: function(*given).sum(), argnums=number), in_dims=dims)(*given)
        assert slopes.shape == (0, *tensors[number].shape)


@pytest.mark.parametrize("name", OPERATORS)
def test_tensors_that_are_not_dense_are_refused(name):
    function, tensors = problem(name, dtype=torch.float32)
    number = 3 if name == "predict_and_fuse" else 0
    nested = torch.nested.nested_tensor(list(tensors[number]))
    for other, kind in (
        (tensors[number].to_sparse(), "sparse_coo"),
        (tensors[number].to_mkldnn(), "mkldnn"),
        (nested, "a nested tensor"),
    ):
        with pytest.raises(TypeError, match=f"images must be dense, got {kind}"):
            function(*tensors[:number], other, *tensors[number + 1 :])


def test_per_sample_gradients():
    torch.manual_seed(0)
    network, images = Network().double(), torch.rand(3, 2, 1, 6, 7, dtype=torch.float64)
    parameters = dict(network.named_parameters())

    def loss(p, sample):
        return functional_call(network, p, (sample[None],)).square().mean()

    at_once = vmap(grad(loss), (None, 0))(parameters, images)
    for n, sample in enumerate(images):
        network.zero_grad()
        network(sample[None]).square().mean().backward()
        for key, parameter in network.named_parameters():
            close(at_once[key][n], parameter.grad)


@pytest.mark.parametrize("name", OPERATORS)
def test_nested_forward_mode(name):
    """torch drops outer tangents inside the forward-mode rule of a function, without a word."""
    function, tensors = problem(name, height=3, width=4)
    directions = tangents(tensors)

    def along(step):
        return function(*(t + step * d + step * step * d.flip(-1) for t, d in zip(tensors, directions, strict=True)))

    def value(step):
        return along(step).square().sum()

    start = torch.tensor(0.3, dtype=torch.float64)
    second, third = grad(grad(value))(start), grad(grad(grad(value)))(start)
    close(jacfwd(jacfwd(value))(start), second)
    close(vmap(jacfwd(jacfwd(value)))(start.expand(2))[1], second)
    close(jacfwd(jacfwd(jacfwd(value)))(start), third)
    close(jacfwd(jacfwd(grad(value)))(start), third)


def test_functionalize():
    function, tensors = problem("adaptive_fuse")
    close(torch.func.functionalize(lambda *a: function(*a).add_(1))(*tensors), function(*tensors) + 1)
    for transformed in (hessian(lambda *a: function(*a).square().sum()), lambda *a: jvp(function, a, a)[1]):
        close(torch.func.functionalize(transformed)(*tensors), transformed(*tensors))


# --- graphs ----------------------------------------------------------------------------------------------------------

TRANSFORMS = {
    "jvp": lambda f, n: lambda *a: jvp(f, a, tuple(t * t for t in a)),
    "grad": lambda f, n: grad(lambda *a: f(*a).square().sum(), tuple(range(n))),
    "jacfwd": lambda f, n: jacfwd(f, n - 1),
    "hessian": lambda f, n: hessian(lambda *a: f(*a).square().sum(), n - 1),
    "vmap": lambda f, n: vmap(lambda *a: f(*a), (0, *(None,) * (n - 1))),
    "per sample": lambda f, n: vmap(grad(lambda *a: f(*a).square().sum(), n - 1), (0, *(None,) * (n - 1))),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", OPERATORS)
def test_transforms_compile_whole(name, transform):
    function, tensors = problem(name, height=3, width=4)
    if transform in ("vmap", "per sample"):
        tensors = (torch.stack([tensors[0], 2 * tensors[0]]), *tensors[1:])
    run = TRANSFORMS[transform](function, len(tensors))
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*tensors), run(*tensors))


class Module(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *tensors):
        return self.function(*tensors)


@pytest.mark.parametrize("way", ["compile", "export", "trace", "trace strict"])
@pytest.mark.parametrize("name", OPERATORS)
def test_forward_mode_through_graphs_is_never_zero(name, way):
    """Graphs call the dispatcher's operators, past every Python function."""
    function, tensors = problem(name)
    module = Module(function).eval()
    if way == "compile":
        graph = torch.compile(module, backend="aot_eager")
    elif way == "export":
        graph = torch.export.export(module, tensors).module()
    else:
        graph = torch.jit.trace(module, tensors, strict=way == "trace strict")
    directions = tangents(tensors)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = jvp(function, tensors, directions)[1]
        close(jvp(graph, tensors, directions)[1], expected)
        if way == "compile":  # dual numbers do not pass torch.compile, with any operator
            return
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(t, d) for t, d in zip(tensors, directions, strict=True)]
            close(forward_ad.unpack_dual(graph(*duals)).tangent, expected)


@pytest.mark.parametrize("mode", ["no_grad", "grad", "inference_mode"])
@pytest.mark.parametrize("name", OPERATORS)
def test_graphs_hold_one_operator_whatever_the_grad_mode(name, mode):
    function, tensors = problem(name)
    module, called = Module(function), "adaptive_fuse" if name == "coarse" else name
    leaves = [t.requires_grad_(mode == "grad") for t in tensors]
    with torch.inference_mode(mode == "inference_mode"), torch.set_grad_enabled(mode == "grad"):
        expected = function(*leaves)
        if mode != "inference_mode":
            traced = torch.jit.trace(module, leaves)  # with torch's own check
            assert [n.kind() for n in traced.inlined_graph.nodes() if "ffmef" in n.kind()] == [f"ffmef::{called}"]
            assert torch.equal(traced(*leaves), expected)
        program = torch.export.export(module, tuple(leaves))
    for graph in (program.graph, program.run_decompositions().graph):
        targets = [str(n.target) for n in graph.nodes if n.op == "call_function" and "ffmef" in str(n.target)]
        assert targets == [f"ffmef.{called}.default"]
    assert torch.equal(program.module()(*leaves), expected)


@pytest.mark.parametrize("name", OPERATORS)
def test_training_graphs_hold_forward_and_backward(name):
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.compilers import make_boxed_compiler

    function, tensors = problem(name)
    called = "adaptive_fuse" if name == "coarse" else name
    seen: list[str] = []

    @make_boxed_compiler
    def note(graph, _):
        seen.extend(str(n.target) for n in graph.graph.nodes if "ffmef" in str(n.target))
        return graph.forward

    leaves = [t.requires_grad_() for t in tensors]
    compiled = torch.compile(function, backend=aot_autograd(fw_compiler=note), fullgraph=True)
    found = torch.autograd.grad(compiled(*leaves).sum(), leaves)
    for a, e in zip(found, torch.autograd.grad(function(*leaves).sum(), leaves), strict=True):
        close(a, e)
    assert seen == [f"ffmef.{called}.default", f"ffmef.{called}_backward.default"]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("training", [False, True])
def test_predict_and_fuse_compiles_once_for_every_size(channels, training):
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")

    def function(hidden, weight, bias, images):
        return predict_and_fuse([hidden], [weight], [bias], images * 2).square()

    compiled = torch.compile(function, backend=counter, fullgraph=True, dynamic=True)
    for height, width in ((13, 17), (23, 19), (64, 96), (33, 47)):
        given = [
            torch.rand(1, 2, 5, height, width),
            torch.rand(9, 5),
            torch.rand(9),
            torch.rand(1, 2, channels, height, width),
        ]
        leaves = [t.requires_grad_(training) for t in given]
        out, expected = compiled(*leaves), function(*leaves)
        torch.testing.assert_close(out, expected)
        if training:
            for a, e in zip(
                torch.autograd.grad(out.sum(), leaves), torch.autograd.grad(expected.sum(), leaves), strict=True
            ):
                torch.testing.assert_close(a, e)
    assert counter.frame_count == 1


def test_predict_and_fuse_exports_with_dynamic_sizes():
    class Whole(nn.Module):
        def forward(self, hidden, weight, bias, images):
            return predict_and_fuse([hidden], [weight], [bias], images)

    def given(height, width):
        return torch.rand(1, 2, 5, height, width), torch.rand(9, 5), torch.rand(9), torch.rand(1, 2, 3, height, width)

    sizes = {3: torch.export.Dim("height"), 4: torch.export.Dim("width")}
    program = torch.export.export(
        Whole(), given(64, 96), dynamic_shapes={"hidden": sizes, "weight": None, "bias": None, "images": sizes}
    )
    other = given(33, 47)
    torch.testing.assert_close(program.module()(*other), Whole()(*other))


# --- alphas however given --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        lambda p: nn.ParameterList(p),
        lambda p: list(p),
        lambda p: (q for q in p),
        lambda p: [p[0].view(1), p[1].view(1, 1)],
        lambda p: [p[0], p[1].half()],
    ],
    ids=["ParameterList", "list", "generator", "one element each", "dtypes"],
)
@pytest.mark.parametrize("name", ["adaptive_fuse", "predict_and_fuse"])
def test_alphas_in_parts_are_trained(name, given, backend):
    parts = [nn.Parameter(torch.tensor(v)) for v in (0.5, 0.25)]
    images = torch.rand(1, 2, 1, 5, 6)
    if name == "adaptive_fuse":
        filters = [torch.rand(1, 2, 1, 5, 6), torch.rand(1, 2, 9, 5, 6)]

        def run(alphas, backend=backend):
            return adaptive_fuse(images, filters, alphas, backend=backend)

    else:
        hidden = [torch.rand(1, 2, 3, 5, 6)] * 2
        weight, bias = [torch.rand(1, 3), torch.rand(9, 3)], [torch.rand(1), torch.rand(9)]

        def run(alphas, backend=backend):
            return predict_and_fuse(hidden, weight, bias, images, alphas, backend=backend)

    whole = torch.tensor([0.5, 0.25], requires_grad=True)
    expected = torch.autograd.grad(run(whole).square().sum(), whole)[0]
    out = run(given(parts))
    torch.testing.assert_close(out, run(whole))
    for found, wanted in zip(torch.autograd.grad(out.square().sum(), parts), expected, strict=True):
        assert wanted.abs() > 0.1
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)  # float16 has three digits


@pytest.mark.parametrize(
    "alphas, error, message",
    [
        ({0.5: 1, 0.25: 2}, TypeError, "alphas must be a tensor or a sequence of numbers or tensors, got dict"),
        (
            nn.ParameterDict({"a": torch.ones(())}),
            TypeError,
            "alphas must be a tensor or a sequence of numbers or tensors, got ParameterDict",
        ),
        ([torch.ones(2), torch.ones(2)], ValueError, "alphas[0] must be one number, got a tensor of shape (2,)"),
        ([torch.ones(()), "a"], TypeError, "alphas[1] must be a number or a tensor, got str"),
        ([torch.ones(()), torch.ones((), device="meta")], ValueError, "alphas[1] must be on cpu like images, got meta"),
    ],
    ids=["dict", "module of names", "vectors", "text", "device"],
)
def test_other_alphas_are_refused_by_name(alphas, error, message):
    filters = [torch.rand(1, 2, 1, 5, 6), torch.rand(1, 2, 9, 5, 6)]
    with pytest.raises(error) as caught:
        adaptive_fuse(torch.rand(1, 2, 1, 5, 6), filters, alphas)
    assert str(caught.value) == message


def test_arrays_and_mixed_numbers_keep_their_digits():
    images, filters = torch.rand(1, 2, 1, 5, 6).double(), [torch.rand(1, 2, k, 5, 6).double() for k in (1, 9)]
    expected = adaptive_fuse(images, filters, torch.tensor([0.1, 0.7], dtype=torch.float64))
    for alphas in (np.array([0.7, 0.1])[::-1], [torch.tensor(0.1, dtype=torch.float64), 0.7], [np.float64(0.1), 0.7]):
        assert torch.equal(adaptive_fuse(images, filters, alphas), expected)
    for alphas in (np.array([1j, 2]), [np.complex128(1j), 2], ["0.5", "1"], bytearray(b"12")):
        with pytest.raises(TypeError, match="alphas"):
            adaptive_fuse(images, filters, alphas)


def test_scale_may_be_of_numpy():
    function, tensors = problem("pyramid_fuse")
    assert torch.equal(pyramid_fuse(*tensors, scale=np.int64(2)), function(*tensors))


# --- what else torch asks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATORS)
def test_meta_tensors_give_shapes_forward_and_backward(name):
    function, tensors = problem(name)
    there = [t.to("meta").requires_grad_() for t in tensors]
    out = function(*there)
    assert out.is_meta and out.shape == function(*tensors).shape
    for g, t in zip(torch.autograd.grad(out.sum(), there), there, strict=True):
        assert g.is_meta and g.shape == t.shape


@pytest.mark.parametrize("name", OPERATORS)
def test_other_devices_fall_back_to_plain_torch(name):
    """No MPS or XPU is here: the dispatcher's own table says what they would run."""
    called = "adaptive_fuse" if name == "coarse" else name
    for direction in ("", "_backward"):
        table = torch._C._dispatch_dump_table(f"ffmef::{called}{direction}")
        for key in ("MPS", "XPU"):
            (line,) = [text for text in table.splitlines() if text.startswith(f"{key}:")]
            assert "default backend kernel" in line, line


def test_the_fallback_is_right_and_says_so_once():
    from ffmef.ops import _backends

    _backends.warn_of_reference.cache_clear()
    for name in OPERATORS:
        function, tensors = problem(name)
        called = getattr(torch.ops.ffmef, "adaptive_fuse" if name == "coarse" else name).default
        recorded = []

        class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                if func is called:
                    recorded.append(args)
                return func(*args, **(kwargs or {}))

        with Recorder():
            expected = function(*tensors)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            close(called._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *recorded[0]), expected)
    with pytest.warns(RuntimeWarning, match="it has no kernels for mps tensors"):
        _backends.warn_of_reference("mps")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _backends.warn_of_reference("mps")


@pytest.mark.parametrize("name", OPERATORS)
def test_flops_are_counted(name):
    from torch.utils.flop_counter import FlopCounterMode

    function, tensors = problem(name)
    with FlopCounterMode(display=False) as counter:
        function(*tensors)
    forward = counter.get_total_flops()
    pixels = 2 * 2 * 4 * 5  # images, channels and pixels
    products = {"adaptive_fuse": 10, "coarse": 10, "predict_and_fuse": 9 * 4 + 3, "pyramid_fuse": None}[name]
    assert forward == 2 * pixels * products if products else forward > 0
    leaves = [t.requires_grad_() for t in tensors]
    with FlopCounterMode(display=False) as counter:
        function(*leaves).sum().backward()
    assert counter.get_total_flops() > forward


@pytest.mark.parametrize("make", [FFMEF, lambda: FFMEF(backend="native"), PyramidFFMEF])
def test_flops_of_networks_do_not_depend_on_their_kernels(make):
    from torch.utils.flop_counter import FlopCounterMode

    network, counted = make(), set()
    for training, with_gradients in ((True, True), (False, True), (False, False)):
        network.train(training)
        with torch.set_grad_enabled(with_gradients), FlopCounterMode(display=False) as counter:
            network(torch.rand(1, 2, 16, 16))
        counted.add(counter.get_total_flops())
    # predict_and_fuse, with which the native backend trains, multiplies the bias too
    assert min(counted) > 100_000 and max(counted) < 1.01 * min(counted)


@pytest.mark.parametrize("name, make", [("ffmef_forward", FFMEF), ("pyramid_luminance", PyramidFFMEF)])
def test_flops_of_exported_networks_are_those_of_the_networks(name, make):
    from torch.utils.flop_counter import FlopCounterMode

    network, luminance = make().eval().requires_grad_(False), torch.rand(1, 2, 16, 24)
    with torch.no_grad():
        exported = torch.export.export(network, (luminance,))
    assert f"ffmef.{name}" in exported.graph_module.code
    totals, results = [], []
    for function in (network, exported.module()):
        with FlopCounterMode(display=False) as counter:
            results.append(function(luminance))
        totals.append(counter.get_total_flops())
    assert totals[0] == totals[1] > 100_000
    close(results[0], results[1])


def test_checkpointed_and_counted_in_one_pass_only():
    from torch.utils.checkpoint import checkpoint
    from torch.utils.flop_counter import FlopCounterMode

    function, tensors = problem("adaptive_fuse")
    leaves = [t.requires_grad_() for t in tensors]
    expected = torch.autograd.grad(function(*leaves).sum(), leaves)
    fused = checkpoint(function, *leaves, use_reentrant=False)
    with FlopCounterMode(display=False):
        fused.sum().backward()
    close([leaf.grad for leaf in leaves], list(expected))


def test_importing_does_not_import_triton():
    import subprocess
    import sys

    code = "import sys, ffmef.ops; raise SystemExit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == 0


@pytest.mark.parametrize("name", [*OPERATORS[:1], *OPERATORS[2:]])
def test_compilers_may_rely_on_the_registrations(name):
    for suffix in ("", "_backward"):
        assert torch.Tag.pt2_compliant_tag in getattr(torch.ops.ffmef, name + suffix).default.tags


def test_operators_without_derivatives_refuse_forward_mode():
    from ffmef.models import FFMEF

    model = FFMEF().eval().requires_grad_(False)
    luminance = torch.rand(1, 2, 12, 16)
    parameters = list(model.parameters())
    with forward_ad.dual_level(), torch.no_grad():
        dual = forward_ad.make_dual(luminance, luminance)
        with pytest.raises(NotImplementedError, match="ffmef_forward has no derivatives"):
            torch.ops.ffmef.ffmef_forward(dual, parameters, 4, [1, 3, 5])
    # The model leaves the operator aside where derivatives are asked for.
    assert jvp(model, (luminance,), (luminance,))[1].abs().max() > 0


def test_nested_forward_mode_of_the_network_and_one_graph_of_it():
    """torch gets derivatives of its norms' forward mode wrong and cannot compile that."""
    from ffmef.models import FFMEF

    torch.manual_seed(0)
    model, luminance = FFMEF(backend="eager").double(), torch.rand(1, 2, 6, 7, dtype=torch.float64)
    direction = torch.rand_like(luminance) - 0.5

    def value(step):
        return model(luminance + step * direction).square().sum()

    start = torch.tensor(0.1, dtype=torch.float64)
    expected = grad(grad(value))(start)
    close(jacfwd(jacfwd(value))(start), expected)
    close(jacrev(jacfwd(value))(start), expected)
    norm = model.extractor.down_1.norm

    def run(x):
        return jvp(norm, (x,), (x * x,))[1]

    x = torch.rand(1, 4, 3, 4, dtype=torch.float64)
    close(torch.compile(run, backend="aot_eager", fullgraph=True)(x), run(x))
    with pytest.raises(ValueError, match="more than 1 spatial element"), forward_ad.dual_level():
        norm(x[..., :1, :1])
    norm, x = norm.bfloat16(), x.bfloat16()
    torch.testing.assert_close(jvp(norm, (x,), (x,))[0], norm(x), rtol=0, atol=0.02)
