"""The fusion operator: our backends against unfold, shift-and-add, both compiled, and the floor; coarse filters too."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import formulations, harness
from ffmef import measure, ops

SIZES = {
    "tiny": (2, 33, 47),
    "128x128": (2, 128, 128),
    "551x707": (1, 551, 707),
    "1080p": (1, 1080, 1920),
    "12mp": (1, 3000, 4000),
}
KERNEL_SETS = ((1,), (1, 3), (3, 5), (1, 3, 5), (1, 3, 5, 7))
FORMULATIONS = {
    "unfold": formulations.unfold,
    "shift-and-add": formulations.shift_and_add,
    "floor": formulations.read_filters,
}
COMPILED = ("unfold-compiled", "shift-and-add-compiled")
BASELINE = "unfold"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}  # of the largest expected value


@dataclass(frozen=True)
class Case:
    provider: str
    size: str = "551x707"
    step: str = "forward"
    images: int = 2
    kernel_sizes: tuple[int, ...] = (1, 3, 5)
    dtype: str = "float32"
    threads: int = 1

    def __str__(self) -> str:
        kernels = "".join(map(str, self.kernel_sizes))
        return f"{self.step}-{self.size}-n{self.images}-k{kernels}-{self.dtype}-t{self.threads}-{self.provider}"

    @property
    def subject(self) -> str:
        return f"adaptive_fuse {str(self).removesuffix('-' + self.provider)}"

    @property
    def taps(self) -> int:
        return self.images * sum(size * size for size in self.kernel_sizes)

    @property
    def bytes_moved(self) -> int:
        """What a perfect kernel reads and writes, each plane once.

        Forward: filters and images in, the fused plane out. Backward to filters and alphas: the incoming gradient,
        the images and one saved plane per level in, the filters' gradients out. Both: also writing the saved planes.
        """
        batch, height, width = SIZES[self.size]
        levels = len(self.kernel_sizes)
        forward = self.taps + self.images + 1
        backward = 1 + self.images + levels + self.taps
        planes = {"forward": forward, "backward": backward, "both": forward + levels + backward}[self.step]
        return planes * batch * height * width * DTYPES[self.dtype].itemsize

    @property
    def memory_needed(self) -> int:
        """A generous estimate of what this case and its baseline occupy together, in bytes."""
        batch, height, width = SIZES[self.size]
        filters = self.taps * batch * height * width * DTYPES[self.dtype].itemsize
        return filters * (3 if self.step == "forward" else 6)


def cases(mode: str) -> list[Case]:
    """One factor at a time around the paper's size in a quick run; every combination in a full one."""
    native = harness.native_backends()
    every = ["floor", BASELINE, "shift-and-add", *COMPILED, "reference", *native]
    if mode == "smoke":
        tiny = [Case(provider, "tiny") for provider in every if provider != COMPILED[1]]
        tiny += [Case(provider, "tiny", "both") for provider in (BASELINE, *native)]
        tiny += [Case(native[-1] if native else "reference", "tiny", "backward", 5, (1, 3, 5, 7), "bfloat16")]
        return [case for case in tiny if measurable(case)]
    if mode == "full":
        combinations = itertools.product(
            (size for size in SIZES if size != "tiny"),
            ("forward", "backward", "both"),
            (2, 5),
            KERNEL_SETS,
            DTYPES,
            sorted({1, os.cpu_count()}),
            every,
        )
        return [case for case in (Case(c[-1], *c[:-1]) for c in combinations) if measurable(case)]
    plain = ["floor", BASELINE, *native]
    base = Case(BASELINE)
    shapes = [replace(base, size=size, step=step) for size in ("128x128", "1080p") for step in ("forward", "both")]
    shapes += [replace(base, step=step, threads=os.cpu_count()) for step in ("forward", "both")]
    shapes += [replace(base, kernel_sizes=sizes) for sizes in KERNEL_SETS if sizes != base.kernel_sizes]
    shapes += [replace(base, dtype=dtype) for dtype in DTYPES if dtype != base.dtype]
    shapes += [replace(base, images=5), replace(base, step="backward")]
    chosen = [replace(base, step=step, provider=name) for step in ("forward", "both") for name in every]
    chosen.remove(Case(COMPILED[1], step="both"))  # its compilation takes minutes
    chosen += [replace(shape, provider=name) for shape in shapes for name in plain]
    return [case for case in dict.fromkeys(chosen) if measurable(case)]


def measurable(case: Case) -> bool:
    """The floor has no backward pass, and a compiled graph frees what a repeated backward pass would need."""
    if case.provider == "floor":
        return case.step == "forward"
    return not (case.provider in COMPILED and case.step == "backward")


def make_function(provider: str, mode: str) -> Callable:
    """Return the provider as ``function(images, filters, alphas)``."""
    if provider in COMPILED:
        torch.compiler.reset()
        plain = FORMULATIONS[provider.removesuffix("-compiled")]
        return torch.compile(plain, backend="eager" if mode == "smoke" else "inductor")
    if provider in FORMULATIONS:
        return FORMULATIONS[provider]
    return named(provider)


def named(backend: str) -> Callable:
    return lambda images, filters, alphas: ops.adaptive_fuse(images, filters, alphas, backend=backend)


@dataclass
class Inputs:
    images: Tensor
    filters: list[Tensor]
    alphas: Tensor
    grad: Tensor

    @classmethod
    def random(cls, case: Case, device: str, seed: int) -> Inputs:
        batch, height, width = SIZES[case.size]
        options = {"generator": harness.generator(seed, device), "device": device, "dtype": DTYPES[case.dtype]}
        return cls(
            images=torch.rand(batch, case.images, 1, height, width, **options),
            filters=[
                torch.rand(batch, case.images, size * size, height, width, **options).sub_(0.25).div_(size * size)
                for size in case.kernel_sizes
            ],
            alphas=torch.tensor([0.6, 0.3, 0.1, 0.05], device=device, dtype=options["dtype"])[: len(case.kernel_sizes)],
            grad=torch.rand(batch, 1, height, width, **options),
        )

    def cut(self, window: slice) -> Inputs:
        """Return a float64 copy of the same rows and columns of everything."""
        tensors = (
            self.images[..., window, window],
            [weights[..., window, window] for weights in self.filters],
            self.alphas,
            self.grad[..., window, window],
        )
        return Inputs(
            *([t.detach().double() for t in x] if isinstance(x, list) else x.detach().double() for x in tensors)
        )

    @property
    def nbytes(self) -> int:
        return harness.nbytes([self.images, *self.filters, self.alphas])


def make_run(function: Callable, step: str, inputs: Inputs) -> Callable[[], tuple[Tensor, ...]]:
    """Return a callable for one step; its results are the fused image, or the gradients of filters and alphas."""
    arguments = inputs.images, inputs.filters, inputs.alphas
    if step == "forward":
        return lambda: (function(*arguments),)
    wanted = [tensor.requires_grad_() for tensor in (*inputs.filters, inputs.alphas)]

    def both() -> tuple[Tensor, ...]:
        with torch.enable_grad():
            return torch.autograd.grad(function(*arguments), wanted, inputs.grad)

    if step == "both":
        return both
    with torch.enable_grad():
        fused = function(*arguments)
    return lambda: torch.autograd.grad(fused, wanted, inputs.grad, retain_graph=True)


def check(function: Callable, step: str, inputs: Inputs, side: int = 32) -> None:
    """Compare the results in two corners with the float64 oracle.

    A corner's oracle sees inputs that are wider by the filters' radius, so an image of any size can be checked. The
    alphas' gradients are sums over the whole image: they are compared where the corner is the whole image.
    """
    results = make_run(function, step, inputs)()
    height, width = inputs.images.shape[-2:]
    radius = max(int(weights.shape[2] ** 0.5) for weights in inputs.filters) // 2
    whole = side >= max(height, width)
    for near, wide in ((slice(0, side), slice(0, side + radius)), (slice(-side, None), slice(-side - radius, None))):
        expected = make_run(named("reference"), step, inputs.cut(wide))()
        for result, value in zip(results, expected, strict=True):
            if value.ndim > 1:
                result, value = result[..., near, near], value[..., near, near]
            elif not whole:
                continue
            limit = TOLERANCE[result.dtype] * max(value.abs().max().item(), 1e-3)
            worst = (result.double() - value).abs().max().item()
            assert worst <= limit, f"off by {worst:.3g} from the float64 oracle, more than {limit:.3g}"


@pytest.mark.cases(of=cases)
def test_adaptive_fuse(case, compare, mode, device):
    if reason := harness.unusable(case.provider, device):
        pytest.skip(reason)
    if case.memory_needed > 0.7 * (measure.available_memory(device) or float("inf")):
        pytest.skip(f"needs about {case.memory_needed / 2**30:.0f} GiB of free memory")
    function = make_function(case.provider, mode)
    inputs = Inputs.random(case, device, seed=0)
    if case.provider != "floor":
        if case.provider not in COMPILED:  # a second size would compile a second time
            check(function, case.step, Inputs.random(replace(case, size="tiny"), device, seed=1), side=64)
        check(function, case.step, inputs)
    copies = [
        inputs,
        *(Inputs.random(case, device, seed) for seed in range(1, harness.input_copies(inputs.nbytes, device))),
    ]
    run = harness.rotating([make_run(function, case.step, copy) for copy in copies])
    baseline = harness.rotating([make_run(formulations.unfold, case.step, copy) for copy in copies])
    floor = harness.rotating([make_run(formulations.read_filters, "forward", copy) for copy in copies])
    batch, height, width = SIZES[case.size]
    compare(
        run,
        subject=case.subject,
        provider=case.provider,
        threads=case.threads,
        baseline=None if case.provider == BASELINE else baseline,
        baseline_name=BASELINE,
        floor=None if case.provider == "floor" else floor,
        operator="adaptive_fuse",
        step=case.step,
        batch=batch,
        height=height,
        width=width,
        images=case.images,
        kernel_sizes=list(case.kernel_sizes),
        dtype=case.dtype,
        bytes_moved=case.bytes_moved,
        checked=case.provider != "floor",
        compiler="eager" if mode == "smoke" else "inductor",
    )


# --- filters on a coarser grid ---------------------------------------------------------------------------------------

CELL = 8  # pixels along a side


@dataclass(frozen=True)
class CoarseCase:
    """One filter for each cell: interpolated in the kernels (a backend's name) or, before them, by torch."""

    provider: str
    size: str = "551x707"
    step: str = "forward"
    threads: int = 1

    def __str__(self) -> str:
        return f"coarse-{self.step}-{self.size}-cell{CELL}-t{self.threads}-{self.provider}"

    @property
    def subject(self) -> str:
        return f"adaptive_fuse {str(self).removesuffix('-' + self.provider)}"

    @property
    def memory_needed(self) -> int:
        batch, height, width = SIZES[self.size]
        return 8 * 70 * 4 * batch * height * width  # interpolated filters, unfold's columns and their gradients


INTERPOLATED = "interpolate-"  # the filters, by torch, to full resolution; then the provider named behind it


def coarse_cases(mode: str) -> list[CoarseCase]:
    native = harness.native_backends()
    providers = [f"{INTERPOLATED}unfold", *(f"{INTERPOLATED}{name}" for name in native), *native]
    sizes = {"smoke": ("tiny",), "quick": ("551x707",), "full": ("551x707", "1080p", "12mp")}[mode]
    threads = sorted({1, os.cpu_count()}) if mode == "full" else [1]
    return [CoarseCase(*c) for c in itertools.product(providers, sizes, ("forward", "both"), threads)]


def interpolate_first(function: Callable) -> Callable:
    def run(images: Tensor, filters: list[Tensor], alphas: Tensor) -> Tensor:
        sizes = images.shape[-2:]
        fine = [
            F.interpolate(level.flatten(0, 1), sizes, mode="bilinear", align_corners=False).unflatten(
                0, level.shape[:2]
            )
            for level in filters
        ]
        return function(images, fine, alphas)

    return run


def coarse_inputs(case: CoarseCase, device: str, seed: int) -> Inputs:
    inputs = Inputs.random(Case(BASELINE, case.size), device, seed)
    return replace(inputs, filters=[level[..., ::CELL, ::CELL].contiguous() for level in inputs.filters])


@pytest.mark.cases(of=coarse_cases)
def test_coarse_filters(case, compare, device):
    if case.memory_needed > 0.7 * (measure.available_memory(device) or float("inf")):
        pytest.skip(f"needs about {case.memory_needed / 2**30:.0f} GiB of free memory")
    name = case.provider.removeprefix(INTERPOLATED)
    if reason := harness.unusable(name, device):
        pytest.skip(reason)
    function = FORMULATIONS[name] if name in FORMULATIONS else named(name)
    if name != case.provider:
        function = interpolate_first(function)
    small = coarse_inputs(replace(case, size="tiny"), device, seed=1)
    wide = Inputs(
        small.images.double(), [f.double() for f in small.filters], small.alphas.double(), small.grad.double()
    )
    for result, value in zip(
        make_run(function, case.step, small)(), make_run(named("reference"), case.step, wide)(), strict=True
    ):
        assert (result.double() - value).abs().max() <= TOLERANCE[torch.float32] * value.abs().max().clamp_min(1e-3)
    inputs = coarse_inputs(case, device, seed=0)
    baseline = make_run(interpolate_first(formulations.unfold), case.step, inputs)
    batch, height, width = SIZES[case.size]
    compare(
        make_run(function, case.step, inputs),
        subject=case.subject,
        provider=case.provider,
        threads=case.threads,
        baseline=None if name == BASELINE else baseline,
        baseline_name=f"{INTERPOLATED}unfold",
        floor=None,
        operator="adaptive_fuse",
        step=case.step,
        batch=batch,
        height=height,
        width=width,
        cell=CELL,
        images=2,
        kernel_sizes=[1, 3, 5],
        dtype="float32",
        checked=True,
    )
