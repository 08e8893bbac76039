"""Check the operators' kernels on this machine against float64, time them, and print one page for a report."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from ffmef import checks
from ffmef.errors import InputError

if TYPE_CHECKING:
    import torch

    from ffmef.ops.types import Backend

TIMED_SIZES = ((512, 512), (1080, 1920), (3000, 4000))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="where to run (default: cuda)")
    parser.add_argument("--backend", help="check one backend instead of all that can run there")
    parser.add_argument("--quick", action="store_true", help="check a tenth of the matrix, without timing")


def run(args: argparse.Namespace) -> int:
    import torch

    from ffmef.commands import info

    chosen = usable_backends(args.device, args.backend)
    print("\n".join(info.lines()))
    if args.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        print(f"GPU: {properties.name}, sm_{properties.major}{properties.minor}, {memory}")
    failed = False
    for backend in chosen:
        interpreted = backend == "triton" and args.device == "cpu"
        problems = checks.interpretable(checks.matrix(quick=False)) if interpreted else checks.matrix(args.quick)
        workers = checks.worker_count(backend, args.device)
        tally = checks.check_in_processes(backend, args.device, problems, workers)
        failed |= bool(tally.failures)
        print(f"{backend} on {args.device}{', in the interpreter' if interpreted else ''}:")
        print(
            f"  {tally.passed} of {len(problems)} problems right and repeatable, forward and backward; "
            f"worst error {tally.worst:.2f} of what is allowed"
        )
        for failure in tally.failures[:20]:
            print(f"  FAILED {failure}")
        others = checks.check_others(backend, args.device, interpreted), checks.check_pictures(backend, args.device)
        failed |= any(wrong for _, wrong in others)
        for lines, _ in others:
            print("".join(f"{line}\n" for line in lines), end="")
        if args.device == "cuda":
            print(f"  captured in a CUDA graph: {graph_capture(backend)}")
        if not args.quick and not interpreted and backend != "reference":
            print("\n".join(timing(backend, args.device)))
    print("selftest: " + ("FAILED" if failed else "passed"))
    return 1 if failed else 0


def usable_backends(device: str, wanted: str | None) -> list[Backend]:
    """Return the backends to check, or raise InputError that says why there is none."""
    import torch

    from ffmef.ops import backends

    known = backends()
    if wanted is not None and wanted not in known:
        raise InputError(f"--backend must be one of {', '.join(known)}, got {wanted!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: no GPU is visible to torch; --device cpu checks what runs here")
    suited: list[Backend] = ["triton", "cuda"] if device == "cuda" else ["cpu", "triton"]
    if wanted == "reference":
        suited.append("reference")
    chosen = [name for name in suited if wanted in (None, name) and known[name] is None]
    if not chosen:
        reason = known[wanted] if wanted else "none is available"
        raise InputError(f"no backend to check on {device}: {reason or f'{wanted} does not run there'}")
    return chosen


def graph_capture(backend: Backend) -> str:
    """Capture the forward pass in a CUDA graph, replay it on new values, and compare."""
    import torch

    from ffmef.ops import adaptive_fuse

    problem = checks.FilterProblem("float32", 1, 2, 1, 64, 128, "zeros", checks.FILTER_SIZES)
    (images, *filters, alphas), _ = checks.inputs(problem, "cuda")
    adaptive_fuse(images, filters, alphas, backend=backend)  # compiles and tunes before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = adaptive_fuse(images, filters, alphas, backend=backend)
    images.mul_(2)
    graph.replay()
    torch.cuda.synchronize()
    return "yes" if torch.equal(output, adaptive_fuse(images, filters, alphas, backend=backend)) else "WRONG RESULT"


def timing(backend: Backend, device: str) -> list[str]:
    """Return lines with times and bandwidths, compared with a plain copy, the limit that memory sets."""
    import torch

    copy = _copy_bandwidth(device)
    lines = [f"  a copy moves {copy / 1e9:.0f} GB/s; forward: two images, k = 1, 3, 5, zeros"]
    for dtype in (torch.float32, torch.float16) if device == "cuda" else (torch.float32,):
        for height, width in TIMED_SIZES if device == "cuda" else TIMED_SIZES[:2]:
            floor = checks.bytes_moved(height, width, dtype.itemsize) / copy
            forward, backward = _seconds_of_both(backend, device, dtype, height, width)
            lines.append(
                f"  {str(dtype)[6:]:<8} {height:>5} x {width:<5} "
                f"forward {forward * 1e3:8.3f} ms = {forward / floor:5.2f} floors, "
                f"filters' gradient {backward * 1e3:8.3f} ms = {backward / floor:5.2f} floors"
            )
    return lines


def _rounds(device: str) -> int:
    return 20 if device == "cuda" else 5


def _copy_bandwidth(device: str) -> float:
    """Return the bytes that a plain copy reads and writes per second."""
    import torch

    source = torch.empty(2**27 if device == "cuda" else 2**25, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _median_seconds(lambda: target.copy_(source), device)


def _seconds_of_both(backend: Backend, device: str, dtype: torch.dtype, height: int, width: int) -> tuple[float, float]:
    """Return the seconds of the forward pass and of the filters' gradient."""
    import torch

    from ffmef.ops import adaptive_fuse

    images = torch.rand(1, 2, 1, height, width, device=device).to(dtype)
    filters = [torch.rand(1, 2, k * k, height, width, device=device).to(dtype) for k in checks.FILTER_SIZES]
    alphas = torch.ones(len(filters), device=device)

    def forward() -> torch.Tensor:
        return adaptive_fuse(images, filters, alphas, backend=backend)

    seconds = _median_seconds(forward, device)
    for leaf in filters:
        leaf.requires_grad_()
    output = forward()
    gradient = torch.ones_like(output)
    back = _median_seconds(lambda: torch.autograd.grad(output, filters, gradient, retain_graph=True), device)
    return seconds, back


def _median_seconds(run: Callable[[], object], device: str) -> float:
    import statistics

    from ffmef import measure

    run()
    (timings,) = measure.take_turns([run], _rounds(device), device)
    return statistics.median(timings.of("device" if device == "cuda" else "wall"))
