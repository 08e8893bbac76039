"""Check the operators' kernels on this machine against float64, time them, and print one page for a report."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ffmef.errors import InputError

if TYPE_CHECKING:
    import torch

# Largest error of an element, as a share of the sum of the magnitudes of its terms. float32 and float64: 16 roundings
# of the largest partial sum, for every order of summation. Half precision is summed in float32, so one rounding of
# the result, half a unit in the last place.
TOLERANCE = {"float32": 16 * 2.0**-24, "float16": 1.01 * 2.0**-11, "bfloat16": 1.01 * 2.0**-8, "float64": 16 * 2.0**-53}
# Half the smallest step of float16: what rounding costs a result too small for the relative bound.
SMALLEST = {"float16": 2.0**-25}

FILTER_SIZES = (1, 3, 5)
TIMED_SIZES = ((512, 512), (1080, 1920), (3000, 4000))


@dataclass(frozen=True)
class Problem:
    """One row of adaptive_fuse's matrix."""

    dtype: str
    padding: str
    batch: int
    images: int
    channels: int
    height: int
    width: int
    sizes: tuple[int, ...]
    layout: str = "contiguous"

    def __str__(self) -> str:
        shape = f"{self.batch}x{self.images}x{self.channels}x{self.height}x{self.width}"
        return f"{self.dtype} {self.padding} {shape} k={','.join(map(str, self.sizes))} {self.layout}"

    def tensors(self, normal: Callable[..., torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return images, filters and alphas, and a gradient of the output."""
        import torch

        images = lay_out(normal(self.batch, self.images, self.channels, self.height, self.width), self.layout)
        shapes = [(self.batch, self.images, k * k, self.height, self.width) for k in self.sizes]
        filters = [lay_out(normal(*shape), self.layout) for shape in shapes]
        alphas = normal(len(self.sizes)).to(torch.promote_types(images.dtype, torch.float32))
        return [images, *filters, alphas], normal(self.batch, self.channels, self.height, self.width)

    def run(self, leaves: list[torch.Tensor], backend: str) -> torch.Tensor:
        from ffmef import ops

        return ops.adaptive_fuse(leaves[0], leaves[1:-1], leaves[-1], padding_mode=self.padding, backend=backend)

    def define(self, leaves: list[torch.Tensor], magnitudes: bool) -> torch.Tensor:
        from ffmef.ops import reference

        return reference.adaptive_fuse(leaves[0], leaves[1:-1], leaves[-1], self.padding)


@dataclass(frozen=True)
class PyramidProblem:
    """One row of pyramid_fuse's matrix."""

    dtype: str
    batch: int
    images: int
    channels: int
    height: int
    width: int
    bands: int
    scale: int
    layout: str = "contiguous"

    def __str__(self) -> str:
        shape = f"{self.batch}x{self.images}x{self.channels}x{self.height}x{self.width}"
        return f"pyramid {self.dtype} {shape} bands={self.bands} scale={self.scale} {self.layout}"

    def tensors(self, normal: Callable[..., torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return images, weights and base, and a gradient of the output."""
        cells = (-(-self.height // self.scale), -(-self.width // self.scale))
        images = lay_out(normal(self.batch, self.images, self.channels, self.height, self.width), self.layout)
        weights = lay_out(normal(self.batch, self.bands, self.images, *cells), self.layout)
        base = lay_out(normal(self.batch, self.images, *cells), self.layout)
        return [images, weights, base], normal(self.batch, self.channels, self.height, self.width)

    def run(self, leaves: list[torch.Tensor], backend: str) -> torch.Tensor:
        from ffmef import ops

        return ops.pyramid_fuse(*leaves, scale=self.scale, backend=backend)

    def define(self, leaves: list[torch.Tensor], magnitudes: bool) -> torch.Tensor:
        return pyramid_terms(*leaves, self.scale, 1 if magnitudes else -1)


def pyramid_terms(
    images: torch.Tensor, weights: torch.Tensor, base: torch.Tensor, scale: int, sign: int
) -> torch.Tensor:
    """Return the definition of pyramid_fuse; with sign 1 its bands add what they subtract, so that magnitudes add up."""
    from ffmef.ops.reference import expand, halve

    bands = weights.shape[1]
    levels = [images]
    for _ in range(bands):
        levels.append(halve(levels[-1]))
    out = (expand(base, scale >> bands, *levels[-1].shape[-2:]).unsqueeze(2) * levels[-1]).sum(1)
    for level in reversed(range(bands)):
        size = levels[level].shape[-2:]
        band = levels[level] + sign * expand(levels[level + 1], 2, *size)
        fine = expand(weights[:, level], scale >> level, *size).unsqueeze(2)
        out = expand(out, 2, *size) + (fine * band).sum(1)
    return out


AnyProblem = Problem | PyramidProblem


@dataclass
class Tally:
    """What a backend did on the matrix."""

    passed: int = 0
    worst: float = 0.0  # in units of what is allowed
    failures: list[str] = field(default_factory=list)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="where to run (default: cuda)")
    parser.add_argument("--backend", help="one backend instead of all that can run there")
    parser.add_argument("--quick", action="store_true", help="a tenth of the matrix and no timing")


def matrix(quick: bool) -> list[AnyProblem]:
    """Return the problems: every dtype, padding, path of the kernels and memory layout."""
    problems = []
    for dtype in TOLERANCE:
        for padding in ("zeros", "replicate", "reflect"):
            problems += [
                Problem(dtype, padding, 2, 2, 1, 37, 144, (1, 3, 5)),
                Problem(dtype, padding, 1, 2, 1, 19, 67, (1, 3, 5)),
                Problem(dtype, padding, 1, 3, 3, 18, 72, (3, 7)),
                Problem(dtype, padding, 1, 2, 6, 9, 21, (1, 5)),
                Problem(dtype, padding, 1, 2, 1, 2, 3, (5, 7, 1)),
                Problem(dtype, padding, 1, 1, 2, 12, 40, (9, 3)),
                Problem(dtype, padding, 1, 2, 1, 1, 1, (3,)),
            ]
        problems += [
            Problem(dtype, "zeros", 2, 2, 3, 11, 32, (1, 3), "slice"),
            Problem(dtype, "reflect", 1, 2, 3, 11, 32, (3,), "transposed"),
            Problem(dtype, "zeros", 3, 2, 1, 9, 32, (1, 5), "expanded"),
            Problem(dtype, "zeros", 1, 2, 1, 5, 24, (1, 3) * 8 + (5,)),
        ]
    problems.append(Problem("float32", "replicate", 1, 1, 1, 12, 16, (31,)))
    for dtype in TOLERANCE:
        problems += [
            PyramidProblem(dtype, 2, 2, 1, 77, 144, 3, 8),
            PyramidProblem(dtype, 1, 3, 2, 37, 67, 3, 16),
            PyramidProblem(dtype, 1, 2, 1, 35, 39, 2, 4, "slice"),
            PyramidProblem(dtype, 2, 2, 3, 9, 24, 1, 2, "expanded"),
            PyramidProblem(dtype, 1, 2, 1, 5, 7, 1, 2, "transposed"),
            PyramidProblem(dtype, 1, 2, 1, 70, 45, 5, 32),
            PyramidProblem(dtype, 1, 1, 1, 9, 33, 0, 1),
            PyramidProblem(dtype, 1, 2, 1, 1, 1, 3, 8),
        ]
    return problems[2::12] if quick else problems


def interpretable(problems: list[AnyProblem]) -> list[AnyProblem]:
    """Return some small problems: in Triton's interpreter every tap of a tile takes tens of milliseconds."""
    small = [p for p in problems if isinstance(p, Problem) and p.height * p.width <= 400]
    small = [p for p in small if sum(k * k for k in p.sizes) <= 35 and (p.padding == "zeros" or max(p.sizes) <= 3)]
    tiny = [p for p in problems if isinstance(p, PyramidProblem) and p.height * p.width <= 40]
    return small[::3] + tiny


def lay_out(tensor: torch.Tensor, layout: str) -> torch.Tensor:
    """Return equal values in another memory layout."""
    if layout == "slice":
        larger = tensor.new_full([n + 3 for n in tensor.shape], float("nan"))
        view = larger[tuple(slice(1, n + 1) for n in tensor.shape)]
        return view.copy_(tensor)
    if layout == "transposed":
        return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == "expanded":
        return tensor[:1].expand_as(tensor)
    return tensor


def inputs(problem: AnyProblem, device: str) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return the operator's tensors and a gradient of its output; the same values on every call and device."""
    import torch

    random = torch.Generator().manual_seed(7)
    dtype = getattr(torch, problem.dtype)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, dtype=torch.float64).to(dtype).to(device)

    return problem.tensors(normal)


def results(problem: AnyProblem, device: str, backend: str) -> list[torch.Tensor]:
    """Return the output and the gradients of all tensors, on the CPU."""
    import torch

    tensors, gradient = inputs(problem, device)
    leaves = [leaf.detach().requires_grad_() for leaf in tensors]
    output = problem.run(leaves, backend)
    return [part.detach().cpu() for part in (output, *torch.autograd.grad(output, leaves, gradient))]


def references(problem: AnyProblem, magnitudes: bool) -> list[torch.Tensor]:
    """Return the same in float64 from plain torch, of the values or of their terms' magnitudes."""
    import torch

    tensors, gradient = inputs(problem, "cpu")
    change = torch.abs if magnitudes else torch.clone
    leaves = [change(leaf.double()).contiguous().requires_grad_() for leaf in tensors]
    output = problem.define(leaves, magnitudes)
    # Weights of no band have no part in the output.
    grads = torch.autograd.grad(output, leaves, change(gradient.double()), allow_unused=True)
    grads = [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, grads, strict=True)]
    return [part.detach() for part in (output, *grads)]


def error_of(problem: AnyProblem, found: list[torch.Tensor]) -> float:
    """Return the largest error of any element in units of what is allowed."""
    worst = 0.0
    values, magnitudes = references(problem, False), references(problem, True)
    # Triton's interpreter truncates to bfloat16 where GPUs round.
    slack = 2.0 if problem.dtype == "bfloat16" and os.environ.get("TRITON_INTERPRET") == "1" else 1.0
    for part, value, magnitude in zip(found, values, magnitudes, strict=True):
        if not bool(part.isfinite().all()):
            return float("inf")
        error = ((part.double() - value).abs() - SMALLEST.get(problem.dtype, 0.0)).clamp_min(0)
        share = (error / magnitude).nan_to_num(nan=0.0, posinf=float("inf"))
        if share.numel():
            worst = max(worst, float(share.max()) / TOLERANCE[problem.dtype] / slack)
    return worst


def check(backend: str, device: str, problems: list[AnyProblem]) -> Tally:
    """Run the matrix; a problem passes if it is right and the same when run again."""
    import torch

    tally = Tally()
    for problem in problems:
        try:
            found = results(problem, device, backend)
            error = error_of(problem, found)
            tally.worst = max(tally.worst, error)
            again = results(problem, device, backend)
            if error > 1:
                tally.failures.append(f"{problem}: error {error:.3g} times what is allowed")
            elif not all(map(torch.equal, found, again)):
                tally.failures.append(f"{problem}: another result when run again")
            else:
                tally.passed += 1
        except RuntimeError as failure:
            tally.failures.append(f"{problem}: {str(failure).splitlines()[0]}")
    return tally


def predictions(interpreted: bool) -> list[Problem]:
    """Return the problems of predict_and_fuse: every dtype, with and without vectors, maps taken in turns."""
    problems = []
    for dtype in TOLERANCE:
        problems += [
            Problem(dtype, "zeros", 2, 2, 1, 37, 144, (1, 3, 5)),
            Problem(dtype, "reflect", 1, 3, 3, 19, 67, (3, 7)),
            Problem(dtype, "replicate", 1, 2, 1, 4, 9, (9, 1)),
            Problem(dtype, "zeros", 1, 2, 1, 5, 9, (3,)),
        ]
    return problems[3::4] if interpreted else problems


def prediction_error(problem: Problem, device: str, backend: str) -> float:
    """Return predict_and_fuse's largest error in units of what is allowed; infinity where it changes when run again."""
    import torch

    from ffmef.ops import predict_and_fuse, reference

    (images, *hidden, alphas), _ = inputs(problem, "cpu")
    random = torch.Generator().manual_seed(11)
    weight = [torch.randn(k * k, k * k, generator=random, dtype=torch.float64).to(images.dtype) for k in problem.sizes]
    bias = [torch.randn(k * k, generator=random, dtype=torch.float64).to(images.dtype) for k in problem.sizes]

    def run() -> torch.Tensor:
        there = [[t.to(device) for t in tensors] for tensors in (hidden, weight, bias)]
        return predict_and_fuse(
            *there, images.to(device), alphas.to(device), padding_mode=problem.padding, backend=backend
        ).cpu()

    def expected(change: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        wide = [[change(t.double()) for t in tensors] for tensors in (hidden, weight, bias)]
        filters = [
            torch.einsum("ji,bnihw->bnjhw", w, h) + b.view(1, 1, -1, 1, 1) for h, w, b in zip(*wide, strict=True)
        ]
        return reference.adaptive_fuse(change(images.double()), filters, change(alphas.double()), problem.padding)

    with torch.inference_mode():
        found = run()
        if not bool(found.isfinite().all()) or not torch.equal(found, run()):
            return float("inf")
        error = ((found.double() - expected(torch.clone)).abs() - SMALLEST.get(problem.dtype, 0.0)).clamp_min(0)
        slack = 2.0 if problem.dtype == "bfloat16" and os.environ.get("TRITON_INTERPRET") == "1" else 1.0
        return float((error / expected(torch.abs)).nan_to_num(nan=0.0).max()) / TOLERANCE[problem.dtype] / slack


NETWORK_TOLERANCE = 1e-4  # of luminance, whose range is 1


def network_error(height: int, width: int, device: str, backend: str) -> float:
    """Return the whole network's largest error in units of what is allowed, against float64 layers on the CPU."""
    import torch

    from ffmef.models import FFMEF
    from ffmef.ops import ffmef_forward

    torch.manual_seed(5)
    model = FFMEF(backend="eager").eval()
    luminance = torch.rand(1, 2, height, width)
    with torch.inference_mode():
        parameters = [p.to(device) for p in model.parameters()]
        found = ffmef_forward(luminance.to(device), parameters, backend=backend).cpu()
        if not torch.equal(found, ffmef_forward(luminance.to(device), parameters, backend=backend).cpu()):
            return float("inf")
        expected = model.double()(luminance.double())
        scale = max(1.0, float(expected.abs().max()))  # random weights may leave the range of pictures
        return float((found - expected).abs().max()) / scale / NETWORK_TOLERANCE


def check_others(backend: str, device: str, interpreted: bool) -> tuple[list[str], bool]:
    """Return lines on the operators beside adaptive_fuse that ``backend`` has, and whether one of them failed."""
    checks: list[tuple[str, Callable[[], float]]] = []
    if backend in ("triton", "cuda"):
        for problem in predictions(interpreted):
            checks.append((f"predict_and_fuse {problem}", lambda p=problem: prediction_error(p, device, backend)))
    if backend in ("triton", "cpu"):
        for size in ((3, 5),) if interpreted else ((1, 2), (67, 150), (300, 401)):
            checks.append((f"ffmef_forward {size[0]} x {size[1]}", lambda s=size: network_error(*s, device, backend)))
    failures = []
    for name, error_of_check in checks:
        try:
            error = error_of_check()
            if not error <= 1:
                failures.append(f"{name}: error {error:.3g} times what is allowed, or another result when run again")
        except RuntimeError as failure:
            failures.append(f"{name}: {str(failure).splitlines()[0]}")
    if not checks:
        return [], False
    passed = len(checks) - len(failures)
    lines = [f"  {passed} of {len(checks)} problems of predict_and_fuse and ffmef_forward right and repeatable"]
    return lines + [f"  FAILED {failure}" for failure in failures], bool(failures)


def usable_backends(device: str, wanted: str | None) -> list[str]:
    """Return the backends to check, or raise InputError with the reason why there is none."""
    import torch

    from ffmef.ops import backends

    known = backends()
    if wanted is not None and wanted not in known:
        raise InputError(f"--backend must be one of {', '.join(known)}, got {wanted!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: no GPU is visible to torch; --device cpu checks what runs here")
    suited = ("triton", "cuda") if device == "cuda" else ("cpu", "triton")
    suited += ("reference",) if wanted == "reference" else ()
    chosen = [name for name in suited if wanted in (None, name) and known[name] is None]
    if not chosen:
        reason = known[wanted] if wanted else "none is available"
        raise InputError(f"no backend to check on {device}: {reason or f'{wanted} does not run there'}")
    return chosen


def graph_capture(backend: str) -> str:
    """Capture the forward pass in a CUDA graph, replay it on new values, and compare."""
    import torch

    from ffmef.ops import adaptive_fuse

    problem = Problem("float32", "zeros", 1, 2, 1, 64, 128, FILTER_SIZES)
    (images, *filters, alphas), _ = inputs(problem, "cuda")
    adaptive_fuse(images, filters, alphas, backend=backend)  # what is compiled or tuned at first use
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = adaptive_fuse(images, filters, alphas, backend=backend)
    images.mul_(2)
    graph.replay()
    torch.cuda.synchronize()
    return "yes" if torch.equal(output, adaptive_fuse(images, filters, alphas, backend=backend)) else "WRONG RESULT"


def bytes_moved(height: int, width: int, element: int) -> int:
    """Return the least traffic for two one-channel images: the filters, or their gradient, two images and one more."""
    taps = 2 * sum(k * k for k in FILTER_SIZES)
    return height * width * element * (taps + 3)


def time_of(run: Callable[[], object], device: str, rounds: int) -> float:
    """Return the median seconds of a call, by the GPU's clock where there is one."""
    import statistics

    import torch

    run()
    times: list[float] = []
    for _ in range(rounds):
        if device == "cuda":
            first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            first.record()
            run()
            last.record()
            last.synchronize()
            times.append(first.elapsed_time(last) / 1e3)
        else:
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
    return statistics.median(times)


def timing(backend: str, device: str) -> list[str]:
    """Return lines with times and bandwidths beside a plain copy's, the floor of what memory allows."""
    import torch

    from ffmef.ops import adaptive_fuse

    rounds = 20 if device == "cuda" else 5
    source = torch.empty(2**27 if device == "cuda" else 2**25, device=device)
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / time_of(lambda: target.copy_(source), device, rounds)
    del source, target
    lines = [f"  a copy moves {copy / 1e9:.0f} GB/s; forward: two images, k = 1, 3, 5, zeros"]
    for dtype in ("float32", "float16") if device == "cuda" else ("float32",):
        for height, width in TIMED_SIZES if device == "cuda" else TIMED_SIZES[:2]:
            element = getattr(torch, dtype).itemsize
            images = torch.rand(1, 2, 1, height, width, device=device).to(getattr(torch, dtype))
            filters = [torch.rand(1, 2, k * k, height, width, device=device).to(images.dtype) for k in FILTER_SIZES]
            alphas = torch.ones(3, device=device)
            floor = bytes_moved(height, width, element) / copy

            def forward() -> torch.Tensor:
                return adaptive_fuse(images, filters, alphas, backend=backend)

            seconds = time_of(forward, device, rounds)
            for leaf in filters:
                leaf.requires_grad_()
            output = forward()
            gradient = torch.ones_like(output)

            def backward() -> None:
                torch.autograd.grad(output, filters, gradient, retain_graph=True)

            back = time_of(backward, device, rounds)
            lines.append(
                f"  {dtype:<8} {height:>5} x {width:<5} forward {seconds * 1e3:8.3f} ms = {seconds / floor:5.2f} floors, "
                f"filters' gradient {back * 1e3:8.3f} ms = {back / floor:5.2f} floors"
            )
    return lines


def run(args: argparse.Namespace) -> int:
    import torch

    from ffmef.commands import info

    chosen = usable_backends(args.device, args.backend)
    print("\n".join(info.lines()))
    if args.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        print(
            f"GPU: {properties.name}, sm_{properties.major}{properties.minor}, {properties.total_memory / 2**30:.0f} GiB"
        )
    failed = False
    for backend in chosen:
        interpreted = backend == "triton" and args.device == "cpu"
        problems = interpretable(matrix(quick=False)) if interpreted else matrix(quick=args.quick)
        tally = check(backend, args.device, problems)
        failed |= bool(tally.failures)
        print(f"{backend} on {args.device}{', in the interpreter' if interpreted else ''}:")
        print(
            f"  {tally.passed} of {len(problems)} problems right and repeatable, forward and backward; "
            f"worst error {tally.worst:.2f} of what is allowed"
        )
        for failure in tally.failures[:20]:
            print(f"  FAILED {failure}")
        lines, wrong = check_others(backend, args.device, interpreted)
        failed |= wrong
        if lines:
            print("\n".join(lines))
        if args.device == "cuda":
            print(f"  captured in a CUDA graph: {graph_capture(backend)}")
        if not args.quick and not interpreted and backend != "reference":
            print("\n".join(timing(backend, args.device)))
    print("selftest: " + ("FAILED" if failed else "passed"))
    return 1 if failed else 0
